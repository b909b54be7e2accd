"""Measures what a sweep loses if a machine's network is cut permanently in the middle of the run.

    sudo python benchmarks/network_cut.py [--shell]

There are three hosts on one bridge: a head and two workers with one CPU each. Each host is a set of Linux namespaces
(network, processes, mounts, home folder) with its own sshd. `ray up` starts a cluster on them from
deploy/cluster-local.yaml, as on one's own machines. `sweeper launch` runs a sweep across it from the head. After a quarter
of the trials one worker's link goes down and stays down. The results are compared with those of the same sweep run
undisturbed on this machine. The last line printed is a JSON object. About ten minutes on two cores.

Everything is in the script's own namespaces: this machine's network, home folder and other Rays are not touched, and
nothing is left after the end or an interruption. `--shell` stops after `ray up` and opens a shell beside the hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("ip", "mount", "nsenter", "rsync", "ssh", "ssh-keygen", "sshd", "unshare")
HOSTS = {"head": "10.99.0.10", "worker1": "10.99.0.11", "worker2": "10.99.0.12"}
BRIDGE = "10.99.0.1"
PORT = 6379
MINUTES = 20  # for the whole sweep
SWEEP = """
name: network_cut
summary: trainings of some ten seconds on one CPU
datasets: [digits]
splits: [quarters]
defenses:
  baseline: none
  dp: {name: dp_sgd, noise_multiplier: 1.0, accountant: rdp}
training: {epochs: 120, batch_size: 64, learning_rate: 0.1}
seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
attacks: [threshold]
"""
TABLES = ("trials", "history", "outputs", "attacks", "scores")
# These describe the machine and the moment, not the result. Shipped code has no commit to record.
INCIDENTAL = re.compile(r"_time_s$|_at$|^seconds_|^attempts$|^machine$|^host|^git_|^launch")


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def run(*command: str | Path, **options: Any) -> None:
    subprocess.run([str(each) for each in command], check=True, **options)


# The outer half: creates namespaces around everything, and removes them with their content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shell", action="store_true", help="only start the cluster, and open a shell beside it")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        return inside(arguments.inside, arguments.shell)
    os.environ["PATH"] += os.pathsep + "/usr/sbin:/sbin"  # for sshd and ip; not on every user's PATH
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if sys.platform != "linux" or os.geteuid() != 0 or missing:
        lacking = f", of which {', '.join(missing)} are not here" if missing else ""
        sys.stderr.write(
            "This needs Linux, root (it creates network namespaces; run it with sudo), and the programs "
            f"{', '.join(TOOLS)}{lacking}; on Debian or Ubuntu, `apt-get install openssh-server rsync iproute2 "
            "util-linux` installs them all. Nothing was run.\n"
        )
        return 2
    work = tempfile.mkdtemp(prefix="network-cut-", dir="/var/tmp")  # not in /tmp, which a private folder will cover
    command = ["unshare", "--net", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    command += [sys.executable, __file__, "--inside", work, *(["--shell"] if arguments.shell else [])]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 130
    finally:
        process.kill()  # killing the first process of a process namespace kills all others in it
        process.wait()
        shutil.rmtree(work, ignore_errors=True)


# The inner half


def inside(work: Path, shell: bool) -> int:
    run("mount", "-t", "tmpfs", "tmpfs", work)
    untouched_home = work / "untouched-home"
    untouched_home.mkdir()
    run("mount", "--bind", Path.home(), untouched_home)
    overlay(Path("/tmp"), work / "tmp")
    overlay(Path.home(), work / "home")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "bridge", "type", "bridge")
    run("ip", "address", "add", f"{BRIDGE}/24", "dev", "bridge")
    run("ip", "link", "set", "bridge", "up")
    run("ip", "route", "add", "default", "dev", "bridge")  # leads nowhere, but Ray finds its own address by it
    prepare_ssh(work)
    hosts = [start_host(work, name, address) for name, address in HOSTS.items()]
    environment = os.environ | {"RAY_UP_enable_autoscaler_v2": "0", "RAY_AUTH_MODE": "token"}
    environment["PATH"] = f"{sys.prefix}/bin{os.pathsep}{environment['PATH']}"
    run("ray", "get-auth-token", "--generate", env=environment, stdout=subprocess.DEVNULL)
    cluster_file = write_cluster_file(work)
    say("ray up")
    started = time.monotonic()
    log = work / "ray-up.log"
    with log.open("w") as file:
        up = subprocess.run(
            ["ray", "up", "-y", cluster_file],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    if up.returncode != 0:
        sys.stderr.write(log.read_text())
        say("ray up failed")
        return 1
    alive = Alive(work)
    alive.wait(len(HOSTS), 300)
    say(f"{alive.count} nodes after {time.monotonic() - started:.0f} s")
    if shell:
        say(f"The cluster file is {cluster_file}; the hosts are {HOSTS}; leave the shell to end everything.")
        return subprocess.run([os.environ.get("SHELL", "sh")], env=environment, cwd=ROOT).returncode
    found = cut_a_sweep(work, alive)
    for host in hosts:
        host.kill()
    say("the same sweep, undisturbed, on this machine")
    launch = ["sweeper", "launch", work / "sweep.yaml", "--local", "--cpus-per-trial", "1", "--out", work / "local"]
    run(*launch, env=environment, cwd=work, stdout=subprocess.DEVNULL)
    result = {"hosts": len(HOSTS)} | found | compare(work / "cluster", work / "local")
    sys.stdout.write(json.dumps(result) + "\n")
    wrong = any(result[key] for key in ("lost", "doubled", "different", "exit_code"))
    return int(wrong or result["cut_after_trials"] is None or result["seconds_until_noticed"] is None)


def overlay(folder: Path, changes: Path) -> None:
    """Make `folder` writable for this namespace alone."""
    run("mount", "-t", "overlay", "overlay", "-o", layers(folder, changes), folder)


def layers(below: Path, changes: Path) -> str:
    for name in ("upper", "work"):
        (changes / name).mkdir(parents=True)
    return f"lowerdir={below},upperdir={changes}/upper,workdir={changes}/work"


def prepare_ssh(work: Path) -> None:
    for name in ("host_key", "key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / name)
    (work / "sshd_config").write_text(
        f"HostKey {work}/host_key\nAuthorizedKeysFile {work}/key.pub\nPidFile none\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    )


def start_host(work: Path, name: str, address: str) -> subprocess.Popen[bytes]:
    """A host that shares only the disk and the bridge with the others; it has its own home folder."""
    home_layers = layers(work / "untouched-home", work / name)
    setup = (
        f"mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /run && mkdir /run/sshd && "
        f"mount -t overlay overlay -o {home_layers} {Path.home()} && hostname {name} && "
        f"exec {shutil.which('sshd')} -D -f {work}/sshd_config"
    )
    namespaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(["unshare", *namespaces, "sh", "-c", setup], stdin=subprocess.DEVNULL)
    own = Path("/proc/self/ns/net").readlink()
    network = Path(f"/proc/{process.pid}/ns/net")
    while network.readlink() == own:
        time.sleep(0.01)
    run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
    run("ip", "link", "set", name, "master", "bridge", "up")
    for line in (
        "link set lo up",
        f"address add {address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {BRIDGE}",
    ):
        run("nsenter", f"--net={network}", "ip", *line.split())
    wait_until(lambda: ssh(work, name, "true").wait() == 0, 30, f"{name} accepts no SSH")
    return process


def ssh(work: Path, name: str, command: str, **options: Any) -> subprocess.Popen[str]:
    """Run `command` in a login shell of a host, as its user would."""
    flags = ["-i", f"{work}/key", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    flags += ["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5"]
    remote = f"bash --login -i -c {shlex.quote(command)}"
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL} | options
    return subprocess.Popen(["ssh", *flags, f"root@{HOSTS[name]}", remote], text=True, **options)


def wait_until(condition: Any, seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.2)


def write_cluster_file(work: Path) -> str:
    """Write deploy/cluster-local.yaml for these hosts; instead of installing, they use this script's interpreter."""
    content = yaml.safe_load((ROOT / "deploy" / "cluster-local.yaml").read_text(encoding="utf-8"))
    content["cluster_name"] = "network-cut"
    content["provider"] |= {"head_ip": HOSTS["head"], "worker_ips": [HOSTS["worker1"], HOSTS["worker2"]]}
    content["auth"] = {"ssh_user": "root", "ssh_private_key": str(work / "key")}
    install = f"ln -sfn {sys.prefix} ~/venv"
    content["setup_commands"] = [install if "pip install" in each else each for each in content["setup_commands"]]
    start = "worker_start_ray_commands"
    content[start] = [each.replace("ray start", "ray start --num-cpus=1") for each in content[start]]
    path = work / "cluster.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


class Alive:
    """How many nodes the head considers alive, sampled once a second."""

    def __init__(self, work: Path) -> None:
        self.count = 0
        code = (
            "import ray, time; ray.init(address='auto', log_to_driver=False, logging_level='ERROR')\n"
            "while True: print(sum(node['Alive'] for node in ray.nodes()), flush=True); time.sleep(1)"
        )
        command = f"~/venv/bin/python -c {shlex.quote(code)}"
        self._process = ssh(work, "head", command, stdout=subprocess.PIPE)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if line.strip().isdigit():
                self.count = int(line)

    def wait(self, count: int, seconds: float) -> None:
        wait_until(lambda: self.count == count, seconds, f"not {count} nodes after {seconds:.0f} s, but {self.count}")


def cut_a_sweep(work: Path, alive: Alive) -> dict[str, Any]:
    """Run the sweep on the cluster and cut a worker off. Returns the measurements before results are compared."""
    (work / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
    command = (
        f"cd {work} && sweeper launch sweep.yaml --address {HOSTS['head']}:{PORT} --cpus-per-trial 1 --out cluster"
    )
    process = ssh(work, "head", command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    finished, cut_at, noticed, trials = 0, 0.0, None, 0
    failed: list[str] = []

    def watch() -> None:
        nonlocal noticed
        while noticed is None and process.poll() is None:
            if cut_at and alive.count < len(HOSTS):
                noticed = round(time.monotonic() - cut_at, 1)
                say(f"the lost worker was noticed {noticed} s after the cut")
            time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()
    limit = threading.Timer(MINUTES * 60, process.kill)
    limit.start()
    cut_after = None
    started = time.monotonic()
    for line in process.stdout or ():
        say(f"  {line.rstrip()}")
        if match := re.search(r": (\d+) trials, ", line):
            trials = int(match[1])
        if re.match(r"\d\d:\d\d:\d\d .* failed ", line):
            failed.append(line.strip())
        if re.match(r"\d\d:\d\d:\d\d .*finished ", line):
            finished += 1
        if cut_after is None and trials and finished >= trials // 4:
            run("ip", "link", "set", "worker2", "down")
            cut_at, cut_after = time.monotonic(), finished
            say("the link of worker2 is down")
    exit_code = process.wait()
    limit.cancel()
    return {
        "trials": trials,
        "cut_after_trials": cut_after,
        "seconds_until_noticed": noticed,
        "seconds": round(time.monotonic() - started, 1),
        "exit_code": exit_code,
        "failures_shown": len(failed),
    }


def compare(disturbed: Path, undisturbed: Path) -> dict[str, Any]:
    """Which targets are lost, duplicated, or different in some table."""
    tables = {
        name: (pq.read_table(disturbed / f"{name}.parquet"), pq.read_table(undisturbed / f"{name}.parquet"))
        for name in TABLES
    }
    here, there = (table.to_pylist() for table in tables["trials"])
    finished = [row["target_id"] for row in here if row["status"] == "finished"]
    expected = {row["target_id"] for row in there if row["status"] == "finished"}
    different: dict[str, list[str]] = {}
    for name, pair in tables.items():
        columns = [column for column in pair[1].column_names if not INCIDENTAL.search(column)]
        rows, rows_undisturbed = (by_target(table.select(columns).to_pylist()) for table in pair)
        for target_id in set(finished) & expected:
            if rows.get(target_id) != rows_undisturbed.get(target_id):
                different.setdefault(target_id, []).append(name)
    return {
        "finished": len(set(finished)),
        "lost": len(expected - set(finished)),
        "doubled": len(finished) - len(set(finished)),
        "different": len(different),
        "different_tables": sorted({name for names in different.values() for name in names}),
    }


def by_target(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Rows of each target as text, sorted, so that NaN equals NaN and the order of arrival does not matter."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["target_id"], []).append(repr(row))
    return {target_id: sorted(texts) for target_id, texts in found.items()}


if __name__ == "__main__":
    sys.exit(main())

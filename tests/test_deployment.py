"""The cluster files: valid by Ray's own schema, closed to strangers, and their commands are commands of ours.

Nothing is started, and no cloud's packages are needed.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from sweeper.cli import app

ROOT = Path(__file__).parents[1]
LAUNCHER_FILES = ("cluster.yaml", "deploy/cluster-local.yaml")
ALL_FILES = (*LAUNCHER_FILES, "deploy/rayjob.yaml")
DATA = Path("/data")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def content_of(name: str) -> dict[str, Any]:
    return yaml.safe_load(text_of(name))


def header_of(name: str) -> str:
    """The comment that a file begins with."""
    lines = text_of(name).splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


def parse_launch(command: str) -> dict[str, Any]:
    """The options of a `sweeper launch` command as our own command line reads them."""
    words = shlex.split(command, comments=True)
    assert words[:2] == ["sweeper", "launch"]
    launch = typer.main.get_command(app).commands["launch"]
    return launch.make_context("launch", words[2:]).params


def rayjob() -> dict[str, dict[str, Any]]:
    """The manifest's objects by their kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(text_of("deploy/rayjob.yaml"))}


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_file_says_at_its_top_what_to_edit_and_what_to_type(name: str) -> None:
    header = header_of(name)
    assert re.search(r"^Edit: ", header, flags=re.MULTILINE)
    assert "kubectl apply" in header if name == "deploy/rayjob.yaml" else f"ray up {name}" in header
    for command in re.findall(r"^ +(sweeper launch .*)", header, flags=re.MULTILINE):
        options = parse_launch(command)
        assert (options["sweep"], options["address"]) == ("lomurno2022", "auto")


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_a_launcher_file_is_valid_by_rays_own_schema(name: str) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(content_of(name), schema)
    prepared = prepare_config(content_of(name))
    validate_config(prepared)
    unknown = content_of(name).keys() - prepared.keys()
    assert not unknown


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_a_launched_cluster_is_closed_to_strangers(name: str) -> None:
    prepared = prepare_config(content_of(name))  # with what Ray adds by default: a dashboard for all on some clouds
    assert "0.0.0.0" not in json.dumps(prepared)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in prepared[key] if "ray start" in command]
        assert len(starts) == 1
        assert re.search(r"RAY_AUTH_MODE=token \S*ray start ", starts[0])
        assert ("--dashboard-host=127.0.0.1" in starts[0]) == ("--head" in starts[0])
    (remote,) = [path for path, local in prepared["file_mounts"].items() if local == "~/.ray/auth_token"]
    assert remote.endswith("/.ray/auth_token")
    for key in ("head_setup_commands", "worker_setup_commands"):
        assert prepared[key][0] == "chmod 600 ~/.ray/auth_token", "before anything that may fail"


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_a_launched_node_gets_our_pinned_libraries_and_not_our_results(name: str) -> None:
    content = content_of(name)
    (install,) = [command for command in content["setup_commands"] if "install" in command and "-e ." in command]
    assert "PIP_CONSTRAINT=constraints.txt" in install
    assert "'ray[default]'" in install
    assert {"data", "results", ".venv", ".git"} <= set(content["rsync_exclude"])


def test_cloud_workers_start_from_none_and_the_head_runs_no_trials() -> None:
    prepared = prepare_config(content_of("cluster.yaml"))
    types = prepared["available_node_types"]
    head = types[prepared["head_node_type"]]
    assert all(node_type["min_workers"] == 0 for node_type in types.values())
    assert (head["resources"]["CPU"], head["max_workers"]) == (0, 0)
    assert types["gpu_worker"]["max_workers"] == prepared["max_workers"] > 0
    assert any("boto3" in command for command in prepared["head_setup_commands"]), "the head starts the workers"


def test_cloud_machines_have_the_rights_that_the_script_makes() -> None:
    types = content_of("cluster.yaml")["available_node_types"]
    roles = {node_type["node_config"]["IamInstanceProfile"]["Name"] for node_type in types.values()}
    script = text_of("deploy/aws-iam.sh")
    assert roles == set(re.search(r"for name in (.*); do", script)[1].split())  # type: ignore[index]
    subprocess.run(["sh", "-n", ROOT / "deploy" / "aws-iam.sh"], check=True)


def test_ones_own_machines_are_all_used_and_the_head_runs_no_trials() -> None:
    content = content_of("deploy/cluster-local.yaml")
    (node_type,) = prepare_config(content)["available_node_types"].values()
    assert node_type["min_workers"] == len(content["provider"]["worker_ips"])
    assert "--num-cpus=0 --num-gpus=0" in content["head_start_ray_commands"][-1]
    assert "--num-cpus" not in content["worker_start_ray_commands"][-1]


def test_the_job_runs_a_command_of_ours() -> None:
    job = rayjob()["RayJob"]
    assert (job["apiVersion"], job["metadata"]["name"]) == ("ray.io/v1", "sweeper")
    options = parse_launch(job["spec"]["entrypoint"])
    assert (options["sweep"], options["address"], options["data"]) == ("lomurno2022", "auto", DATA)
    assert str(options["out_dir"]).startswith(("s3:/", "gs:/"))
    mounts = groups(job)[0]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert [mount["mountPath"] for mount in mounts] == [str(DATA)]


def test_the_job_is_closed_to_strangers() -> None:
    objects = rayjob()
    cluster = objects["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "sweeper-token"}
    assert "create secret generic sweeper-token --from-literal=auth_token=" in header_of("deploy/rayjob.yaml")
    assert "Secret" not in objects, "a token in a file is no secret"
    head = cluster["headGroupSpec"]
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    (rule,) = policy["ingress"]
    anywhere = [peer for peer in rule["from"] if "ipBlock" in peer or not peer.get("podSelector", True)]
    assert all("namespaceSelector" not in peer for peer in anywhere)
    for group in groups(objects["RayJob"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]
        assert pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]


def test_the_job_starts_gpu_workers_from_none_and_its_head_runs_no_trials() -> None:
    job = rayjob()["RayJob"]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    head, worker = groups(job)
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert worker["minReplicas"] == worker["replicas"] == 0 < worker["maxReplicas"]
    resources = worker["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"], "Ray counts what a pod may use"
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    for group in (head, worker):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_job_and_its_image_are_of_one_version() -> None:
    job = rayjob()["RayJob"]
    versions = dict(re.findall(r"^(\S+)==(\S+)$", text_of("constraints.txt"), flags=re.MULTILINE))
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == versions["ray"]
    (image,) = {group["template"]["spec"]["containers"][0]["image"] for group in groups(job)}
    project = tomllib.loads(text_of("pyproject.toml"))
    assert image == f"REGISTRY/sweeper:{project['project']['version']}"
    dockerfile = text_of("deploy/Dockerfile")
    build = f"docker build --file deploy/Dockerfile --tag {image} ."
    assert build in dockerfile
    assert build in header_of("deploy/rayjob.yaml")
    copied = set(re.search(r"^COPY (pyproject.*) \./$", dockerfile, flags=re.MULTILINE)[1].split())  # type: ignore[index]
    copied |= set(re.findall(r"^COPY (\S+) \1$", dockerfile, flags=re.MULTILINE))
    assert all((ROOT / name).exists() for name in copied)
    assert copied >= {
        "pyproject.toml",
        "constraints.txt",
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    }
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_the_network_cut_says_what_it_needs() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "network_cut.py"],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "are not here" not in result.stderr:
        pytest.skip("the tools are in /usr/sbin")
    assert result.returncode == 2
    assert "Nothing was run." in result.stderr
    assert "Traceback" not in result.stderr

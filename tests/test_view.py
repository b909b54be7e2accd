"""`sweeper view`: a page on loopback below a secret, from the store alone, while a sweep runs and afterwards."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from analysis_fixture import make_rows, write_tables
from cohort_fixture import add_cohort
from playwright.sync_api import Browser
from test_page_in_browser import browser, serious_violations

from analysis.load import load
from analysis.measure.against import compared
from analysis.measure.targets import measure
from sweeper.results.launches import Activity, Launch, Running
from sweeper.results.store import Store
from sweeper.sweep.check import check_sweep
from sweeper.sweep.expand import expand
from sweeper.trial.context import TrialContext
from sweeper.trial.failures import record_failure
from sweeper.trial.run import run_trial

__all__ = ["browser"]  # a fixture

SWEEP: dict[str, Any] = {
    "name": "seen",
    "datasets": {"digits": {"name": "digits", "max_train_examples": 100, "max_test_examples": 30}},
    "splits": ["coins"],
    "defenses": {"undefended": "none", "l2": {"name": "l2", "weight": 0.01}},
    "architectures": [{"name": "lomurno_cnn", "filters": [4, 4, 4], "dense_units": 8}],
    "training": {"epochs": 2, "batch_size": 20},
    "seeds": [0, 1],
    "attacks": ["threshold"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A sweep of four trials: one done, one failed, two to come."""
    folder = tmp_path_factory.mktemp("seen")
    found = Store(folder / "results")
    found.prepare()
    sweep = check_sweep(SWEEP, Path("seen.yaml"))
    trials = expand(sweep)
    found.write_sweep(sweep, trials)
    context = TrialContext(data_dir=folder, store=found, device=torch.device("cpu"))
    assert run_trial(trials[0], context).status == "finished"
    record_failure(trials[1], found, 1, "OutOfMemoryError: CUDA <b>out of memory</b>", "gpu_memory")
    found.storage.write(f"logs/{trials[1].target_id}.log", b"epoch 1/2\nCUDA out of memory\n")
    return found


@pytest.fixture(scope="module")
def address(store: Store) -> Iterator[str]:
    command = [sys.executable, "-m", "sweeper.cli", "view", store.location]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().removeprefix("View: ").strip()
    server.terminate()
    server.wait(20)
    server.stdout.close()


def answer(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as found:
        content: bytes = found.read()
    return content


def refused(url: str, **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        answer(url, **headers)
    error.value.close()
    return error.value.code


def state(address: str, wanted: Any = lambda sweep: True) -> dict[str, Any]:
    """The first sweep's state, as soon as it is as wanted."""
    for _ in range(600):
        found: dict[str, Any] = json.loads(answer(f"{address}state"))[0]
        if "trials" in found and wanted(found):
            return found
        time.sleep(0.2)
    raise AssertionError(found)


def running(store: Store) -> Running:
    [trial] = [
        each for each in expand(check_sweep(SWEEP, Path("seen.yaml"))) if (each.defense_label, each.seed) == ("l2", 1)
    ]
    curve = {"epoch": [1.0, 2.0, 3.0], "train_loss": [2.0, 1.5, 1.2], "test_accuracy": [0.1, 0.3, 0.4]}
    return Running(
        target_id=trial.target_id,
        title=trial.title,
        stage="epoch 3/9",
        fraction=0.17,
        seconds=12.0,
        node="here",
        curve=curve,
    )


@pytest.mark.slow
def test_the_state_is_what_the_store_says_and_follows_it(address: str, store: Store) -> None:
    found = state(address)
    assert (found["trials"], found["done"], found["failed"], found["left"]) == (4, 1, 1, 2)
    end = " · digits · coins"
    assert {arm["name"].removesuffix(end): (arm["total"], arm["done"], arm["failed"]) for arm in found["arms"]} == {
        "undefended": (2, 1, 0),
        "l2": (2, 0, 1),
    }
    assert found["causes"] == {"gpu_memory": 1}
    [failure] = found["failures"]
    assert "out of memory" in failure["error"]
    assert "epoch 1/2" in answer(f"{address}log/0/{failure['target_id']}").decode()
    with Launch(store.storage) as launch:
        one = running(store)
        launch.report(lambda: Activity(running=(one,), resources={"CPU": (1.0, 2.0)}))
        launch._beat()
        found = state(address, lambda sweep: sweep["running"])
        [seen] = found["running"]
        assert seen["curve"] == {name: list(values) for name, values in one.curve.items()}
        assert found["launches"][0]["resources"] == {"CPU": [1.0, 2.0]}
        assert sum(arm["running"] for arm in found["arms"]) == 1
    assert state(address, lambda sweep: not sweep["running"])["launches"] == []


@pytest.mark.slow
def test_only_who_knows_the_address_sees_anything(address: str) -> None:
    base, token = address.rstrip("/").rsplit("/", 1)
    assert base.startswith("http://127.0.0.1:")
    assert len(token) >= 20
    for path in ("", "state", "wrong/state", f"{token}x/state"):
        assert refused(f"{base}/{path}") == 404
    assert refused(f"{address}state", Host="evil.example") == 400
    outside = (
        "report/0/../../../etc/passwd",
        "report/0/%2e%2e/%2e%2e/etc/passwd",
        "report/7/report.html",
        "log/0/..%2fsweep",
    )
    for path in (*outside, "log/0/x"):
        assert refused(address + path) == 404


@pytest.mark.slow
def test_the_page_shows_it_all_and_changes_nothing_in_the_store(address: str, store: Store, browser: Browser) -> None:
    def files() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in store.storage.root.rglob("*") if path.is_file()}

    before = files()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.get_by_text("1 of 4 trials done, 1 failed").wait_for()
    assert page.locator("main table tbody tr").count() == 2
    assert page.get_by_text("gpu_memory 1").is_visible()
    assert serious_violations(page) == []
    summary = page.locator("details > summary").first
    summary.focus()
    summary.press("Enter")
    page.wait_for_timeout(5000)  # two more answers of the server
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    assert page.locator("details").first.get_attribute("open") is not None
    page.get_by_role("button", name="log").first.click()
    page.get_by_text("epoch 1/2").wait_for()
    page.get_by_role("button", name="Close").click()
    frame = page.frame_locator("iframe")
    frame.locator("h1").wait_for(timeout=120_000)
    assert "Privacy and utility: seen" in frame.locator("h1").inner_text()
    assert files() == before
    with Launch(store.storage) as launch:
        launch.report(lambda: Activity(running=(running(store),)))
        launch._beat()
        page.locator(".run .curves figure").first.wait_for()
        assert page.locator(".run .curves figure").count() == 2
        assert "training 1.200" in page.locator(".run figcaption").first.inner_text()
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert problems == []
    context.close()


@pytest.mark.slow
def test_the_page_of_a_launch_that_is_killed_ends_with_it(store: Store) -> None:
    start = (
        "import os, subprocess, sys\n"
        f"command = [sys.executable, '-m', 'sweeper.cli', 'view', {store.location!r}, '--end-with', str(os.getpid())]\n"
        "subprocess.run(command, start_new_session=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as launch:
        assert launch.stdout is not None
        try:
            address = launch.stdout.readline().removeprefix("View: ").strip()
            assert answer(address)
        finally:
            launch.kill()
        for _ in range(100):
            try:
                answer(address)
            except urllib.error.URLError:
                break
            time.sleep(0.2)
        else:
            raise AssertionError("the page is still served")


def test_what_holds_no_sweep_and_a_port_that_is_taken_are_refused(tmp_path: Path, store: Store) -> None:
    def view(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sweeper.cli", "view", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    found = view(str(tmp_path))
    assert found.returncode == 2
    assert "holds no sweep" in " ".join(found.stderr.split())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = view(store.location, "--port", str(taken.getsockname()[1]))
    assert found.returncode == 2
    assert "it cannot be used" in " ".join(found.stderr.split())


def test_aucs_of_different_attacks_are_not_compared(tmp_path: Path) -> None:
    def results(name: str, seeds: int, has_cohort: bool) -> Any:
        rows = make_rows(defenses=("baseline", "l2"), seeds=range(seeds), parts={"main": "coins"}, n=60)
        if has_cohort:
            add_cohort(rows, "lira", leak={"baseline": 1.0, "l2": 0.8})
        return measure(load(write_tables(tmp_path / name, rows)))

    strong, weak = results("strong", 8, True), results("weak", 4, False)
    assert {each.column for each in compared(strong, weak)} == {"test_accuracy"}
    assert {each.column for each in compared(weak, weak)} == {"test_accuracy", "auc"}


def test_two_sweeps_are_compared_within_intervals(tmp_path: Path) -> None:
    def results(name: str, leak: dict[str, float], accuracy: float) -> Any:
        rows = make_rows(defenses=("baseline", "dp_eps2", "l2"), seeds=range(8), parts={"main": "coins"}, n=60)
        for row in rows["trials"]:
            if row["defense"] == "l2":
                row["test_accuracy"] += accuracy
        add_cohort(rows, "lira", leak=leak)
        return measure(load(write_tables(tmp_path / name, rows)))

    first = results("first", {"baseline": 1.0, "dp_eps2": 0.3, "l2": 0.8}, 0.0)
    second = results("second", {"baseline": 1.0, "dp_eps2": 1.0, "l2": 0.1}, -0.1)
    found = {(each.arm, each.column): each for each in compared(first, second)}
    assert len(found) == 6
    assert found["L2", "auc"].outcome == "better"
    assert found["L2", "test_accuracy"].outcome == "worse"
    assert found["DP ε=2", "auc"].outcome == "worse"
    assert found["Baseline", "auc"].outcome == found["Baseline", "test_accuracy"].outcome == "cannot be told"
    for each in found.values():
        least = 0.5 if each.column == "auc" else 0.0
        assert each.difference.mean == pytest.approx(max(each.second.mean, least) - max(each.first.mean, least))
    assert {each.outcome for each in compared(first, first)} == {"cannot be told"}

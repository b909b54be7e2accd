"""`sweeper report` writes nothing but the report; `sweeper gather` writes the tables."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from s3_server import KEY, SECRET, S3Server, start_s3_server
from typer.testing import CliRunner

from sweeper.cli import app
from sweeper.report import local_folder
from sweeper.results.gather import gather
from sweeper.results.schema import SCHEMAS
from sweeper.results.store import Store
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.trial.context import TrialContext
from sweeper.trial.run import run_trial

pytestmark = pytest.mark.slow

__all__ = ["start_s3_server"]  # a fixture
TABLES = {f"{table}.parquet" for table in SCHEMAS}


def sweeper(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(tiny: Path, location: object) -> Store:
    """Record both trials of the sweep, and gather nothing."""
    sweep, store = load_sweep(str(tiny), ["attacks=[threshold]"]), Store(str(location))
    trials = expand(sweep)
    store.prepare()
    store.write_sweep(sweep, trials)
    for trial in trials:
        run_trial(trial, TrialContext(data_dir=tiny.parent, store=store, device=torch.device("cpu")))
    return store


@pytest.fixture
def out(tiny: Path, tmp_path: Path) -> Path:
    """The recorded results of a sweep."""
    return run(tiny, tmp_path / "out").storage.root


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Size, time and hash of every file of a results folder outside its report."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_size,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] != "report"
    }


def objects(store: Store) -> dict[str, Any]:
    """Size and time of every object of a store outside its report."""
    folders = ("", *(f"parts/{table}" for table in SCHEMAS), "weights", "quarantine", "attempts", "logs")
    return {f"{folder}/{name}": each for folder in folders for name, each in store.storage.entries(folder).items()}


def damage(out: Path, table: str) -> Path:
    """Cut off the end of a part."""
    part = min((out / "parts" / table).iterdir())
    part.write_bytes(part.read_bytes()[:-9])
    return part


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("damaged", [None, "trials", "history", "scores"])
def test_a_report_changes_no_other_file_of_the_results(
    damaged: str | None, elsewhere: bool, out: Path, tmp_path: Path
) -> None:
    gather(Store(out))
    (out / "trials.parquet").unlink()
    (out / "attacks.parquet").write_bytes(b"of an earlier launch")
    part = damage(out, damaged) if damaged else None
    before = snapshot(out)
    result = sweeper("report", out, *(["--to", tmp_path / "mine"] if elsewhere else []))
    assert snapshot(out) == before
    folder = tmp_path / "mine" if elsewhere else out / "report"
    assert (folder / "report.html").exists()
    assert {path.name for path in folder.iterdir()} == {"report.html", "tables", "figures"}
    assert (out / "report").exists() != elsewhere
    if part is None:
        assert (result.exit_code, result.stderr) == (0, "")
    else:
        assert result.exit_code == 1
        assert f"{part.name} in {out} is damaged and was left out" in result.stderr
        assert "Launch the sweep again" in result.stderr


def test_a_report_and_its_gathered_tables_say_the_same(out: Path, tmp_path: Path) -> None:
    assert sweeper("report", out, "--to", tmp_path / "of parts").exit_code == 0
    gather(Store(out))
    shutil.rmtree(out / "parts")
    assert sweeper("report", out, "--to", tmp_path / "of tables").exit_code == 0
    of_parts, of_tables = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "tables").iterdir()}
        for name in ("of parts", "of tables")
    )
    assert of_parts == of_tables


def test_results_that_cannot_be_written_are_reported_on_elsewhere(
    out: Path, tmp_path: Path, mount: Callable[[str], Path]
) -> None:
    disk = mount("size=64m")
    shutil.copytree(out, disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = snapshot(disk / "out")
    refused = sweeper("report", disk / "out")
    assert refused.exit_code == 2
    assert "The report cannot be written" in refused.stderr and "--to" in refused.stderr
    assert sweeper("report", disk / "out", "--to", tmp_path / "mine").exit_code == 0
    assert (tmp_path / "mine" / "report.html").exists()
    assert snapshot(disk / "out") == before


def test_a_report_on_an_object_store_adds_the_report_alone(
    s3_server: S3Server, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = run(tiny, s3_server.uri("sweeps/mine"))
    before = objects(store)
    for options, folder in ([], Path("results/mine/report")), (["--to", "elsewhere"], Path("elsewhere")):
        result = sweeper("report", store.storage.uri, *options)
        assert result.exit_code == 0, result.output
        assert KEY not in result.output and SECRET not in result.output
        assert (folder / "report.html").exists()
        assert "report.html" in store.storage.entries("report")
    assert objects(store) == before
    assert [path.name for path in Path("results/mine").iterdir()] == ["report"]


def test_the_copy_of_an_object_store_is_not_a_sweeps_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("s3://bucket/sweeps/mine")
    assert local_folder(store) == Path("results/mine")
    Path("results/mine/parts").mkdir(parents=True)
    assert local_folder(store) == Path("results/mine-copy")


def test_gathering_writes_every_table_and_no_report(out: Path) -> None:
    before = snapshot(out)
    result = sweeper("gather", out)
    assert result.exit_code == 0, result.output
    assert f"Tables: {out}" in result.stdout.replace("\n", "")
    after = snapshot(out)
    assert after.keys() - before.keys() == TABLES
    assert {name: after[name] for name in before} == before
    assert pq.read_metadata(out / "trials.parquet").num_rows == 2
    assert not (out / "report").exists()


def test_gathering_sets_damaged_parts_aside_and_says_so(out: Path) -> None:
    part = damage(out, "history")
    result = sweeper("gather", out)
    assert result.exit_code == 1
    assert f"{part.name} in {out} is damaged and was set aside in quarantine" in result.stderr
    assert "Launch the sweep again" in result.stderr
    assert not part.exists()
    assert sweeper("gather", out).exit_code == 0


@pytest.mark.parametrize("command", ["gather", "report"])
def test_targets_of_another_version_are_left_out_and_counted(command: str, out: Path) -> None:
    plan = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    plan["targets"].popitem()
    (out / "sweep.json").write_text(json.dumps(plan), encoding="utf-8")
    assert "1 recorded targets of other versions of this sweep are kept" in sweeper(command, out).stdout


def test_gathered_tables_are_not_lost_where_there_are_no_parts(out: Path, tmp_path: Path) -> None:
    gather(Store(out))
    shutil.rmtree(out / "parts")
    before = snapshot(out)
    for folder in (out, tmp_path / "nowhere"):
        result = sweeper("gather", folder)
        assert result.exit_code == 2
        assert f"{folder} holds no parts" in result.stderr
    assert snapshot(out) == before
    assert not (tmp_path / "nowhere").exists()


def test_an_object_stores_tables_are_gathered_there_and_here(
    s3_server: S3Server, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = run(tiny, s3_server.uri("sweeps/mine"))
    result = sweeper("gather", store.storage.uri)
    assert result.exit_code == 0, result.output
    assert KEY not in result.output and SECRET not in result.output
    assert str(tmp_path / "results" / "mine") in result.stdout.replace("\n", "")
    assert store.storage.entries("").keys() >= TABLES
    assert {path.name for path in Path("results/mine").iterdir()} == {*TABLES, "sweep.json"}
    assert "report" not in result.stdout

"""`plan` answers from a cached plan exactly as if it had resolved the sweep again, and only while nothing has changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import run_comparisons
from typer.testing import CliRunner

from sweeper.cli import app, plan_cache
from sweeper.cli import plan as plan_command
from sweeper.cli.plan_cache import MOST_PLANS, Plan, plan_key, read_plan, write_plan
from sweeper.results import layout
from sweeper.results.store import Store
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.trial.context import TrialContext
from sweeper.trial.failures import record_failure
from sweeper.trial.run import run_trial

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SWEEP = """
name: cached
summary: two mechanisms and their twins
datasets: [{name: digits, max_train_examples: 400, max_test_examples: 100}]
splits: [half]
defenses:
  none: none
  ac: {name: noise_then_clip, noise_scale: 0.01}
  dp: {name: dp_sgd, noise_multiplier: 1.0, accountant: rdp, delta: 0.02}
training: {epochs: 1, batch_size: 25, learning_rate: 0.1, paired_batches: true}
seeds: [0, 1]
attacks: [threshold]
"""
EMPTY = Plan(name="empty", summary="", paper="", cost="", expected="", missing=(), warnings=(), trials=(), targets=())


class Asked:
    """Runs `sweeper plan`, and notes how often a sweep was resolved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resolved = 0
        resolve = plan_command._resolve

        def counted(*args: Any, **kwargs: Any) -> Plan:
            self.resolved += 1
            return resolve(*args, **kwargs)

        monkeypatch.setattr(plan_command, "_resolve", counted)

    def __call__(self, *args: object) -> tuple[str, str]:
        """What `plan` prints: stdout and stderr."""
        result = CliRunner().invoke(app, ["plan", *map(str, args)])
        assert result.exit_code == 0, result.output
        return result.stdout, result.stderr

    def is_cached(self, *args: object) -> bool:
        """Whether `plan` answers without resolving the sweep."""
        before = self.resolved
        self(*args)
        return self.resolved == before


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "cached.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


def test_a_cached_plan_reads_like_a_new_one_in_every_state_of_the_results(
    sweep: Path, tmp_path: Path, ask: Asked, cached_plans: Path
) -> None:
    out = tmp_path / "out"
    store, trials = Store(out), expand(load_sweep(str(sweep)))
    by_name = {(trial.defense_label, trial.seed): trial for trial in trials}
    all_states: dict[str, str] = {}
    command = [sweep, "--data", tmp_path / "data", "--out", out]

    def compare_answers(state: str) -> None:
        for chosen in ([], ["--only", "ac"]):
            assert ask.is_cached(*command, *chosen) == bool(all_states), "only the first answer is resolved"
            kept = ask(*command, *chosen)[0]
            # A launch finds the statuses and comparisons by itself, from its trials
            shown = CliRunner().invoke(app, ["launch", *map(str, command), *chosen, "--dry-run"]).stdout
            assert kept.splitlines()[1:] == shown.splitlines()[1:]
        kept, rows = ask(*command)[0], ask(*command, "--json")[0]
        assert [row["status"] for row in json.loads(rows)] == [store.status(trial).word for trial in trials]
        saved = {path: path.read_bytes() for path in cached_plans.iterdir()}
        for path in saved:
            path.unlink()
        assert not ask.is_cached(*command)
        assert not ask.is_cached(*command, "--json")
        assert (ask(*command)[0], ask(*command, "--json")[0]) == (kept, rows)
        for path, content in saved.items():
            path.write_bytes(content)
        all_states[state] = kept

    def train(*names: tuple[str, int]) -> None:
        for name in names:
            run_trial(by_name[name], TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu")))

    compare_answers("nothing is recorded")
    store.prepare()
    train(("none", 0), ("none", 1), ("ac", 0))
    compare_answers("some targets are finished")
    run_comparisons(store, trials)
    compare_answers("their comparisons are done")
    record_failure(by_name["ac", 1], store, 1, "it died", "process_died")
    compare_answers("a target failed")
    for path in (out / "parts" / "attacks").glob(f"{by_name['none', 0].target_id}.*"):
        path.unlink()
    compare_answers("a finished target's attacks are missing")
    train(*by_name)
    run_comparisons(store, trials)
    compare_answers("everything is done")
    (out / layout.weights(by_name["none", 1].target_id)).unlink()
    compare_answers("a twin is to be trained again, so its comparisons are to do")
    assert len(set(all_states.values())) == len(all_states)


def test_a_cached_plan_repeats_the_warnings_and_the_missing_data(tmp_path: Path, ask: Asked) -> None:
    command = ("lomurno2022", "--data", tmp_path, "--only", "dp_eps8/mnist", "--set", "defenses.dp_eps8.delta=0.5")
    first = ask(*command)
    assert ask(*command) == first
    assert ask.resolved == 1
    assert "Missing: " in first[1] and "Warning: " in first[1]


def test_a_cached_plan_is_shown_without_pytorch(sweep: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['sweeper', 'plan', {str(sweep)!r}]\nfrom sweeper.cli import main\ntry: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ray', 'pandas', 'sklearn', 'scipy.stats', 'matplotlib'} & set(sys.modules); print(heavy, file=sys.stderr)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    runs = [
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
        for _ in range(2)
    ]
    assert "'torch'" in runs[0].stderr
    assert runs[1].stderr.strip().splitlines()[-1] == "set()"
    assert runs[1].stdout == runs[0].stdout
    assert len(list((tmp_path / "cache" / "sweeper" / "plans").iterdir())) == 1


def _edit_sweep(sweep: Path, data: Path) -> list[str]:
    sweep.write_text(sweep.read_text().replace("epochs: 1", "epochs: 2"))
    return []


def _replace_file(sweep: Path, data: Path) -> list[str]:
    path, new = data / "folder" / "file", data / "folder" / "new"
    new.write_bytes(b"b")
    shutil.copystat(path, new)
    new.replace(path)
    return []


def _change_link_target(sweep: Path, data: Path) -> list[str]:
    (data.parent / "elsewhere" / "file").write_bytes(b"longer")
    return []


def _make_folder(sweep: Path, data: Path) -> list[str]:
    (data / "cifar10").mkdir()
    return []


CHANGES: dict[str, Callable[[Path, Path], list[str]]] = {
    "the sweep is edited": _edit_sweep,
    "a key is overridden": lambda sweep, data: ["--set", "training.epochs=2"],
    "a part is chosen": lambda sweep, data: ["--only", "none"],
    "the output is JSON": lambda sweep, data: ["--json"],
    "the data folder is another": lambda sweep, data: ["--data", str(data / "folder")],
    "a data file is replaced by one of its size and time": _replace_file,
    "a file behind a link is changed": _change_link_target,
    "a data folder is added": _make_folder,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_plan_is_resolved_again_after_a_change(
    change: Callable[[Path, Path], list[str]], sweep: Path, tmp_path: Path, ask: Asked
) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder in (data / "folder", elsewhere):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"a")
    (data / "link").symlink_to(elsewhere, target_is_directory=True)
    ask(sweep, "--data", data)
    assert ask.is_cached(sweep, "--data", data)
    more = change(sweep, data)
    assert not ask.is_cached(sweep, "--data", data, *more)
    assert ask.is_cached(sweep, "--data", data, *more)


def test_a_plan_is_resolved_again_after_a_change_of_our_code(tmp_path: Path) -> None:
    for package in ("sweeper", "models", "attacks"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "from pathlib import Path; from sweeper.cli.plan_cache import plan_key; print(plan_key('demo', Path('data')))"
    )

    def key() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.strip()

    keys = [key()]
    assert key() == keys[0] != "None"
    for name in ("sweeper/sweep/preflight.py", "models/private/accounting.py", "attacks/membership/shadow.py"):
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        keys.append(key())
    assert len(set(keys)) == len(keys)


def test_other_libraries_are_another_key_and_other_components_are_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan_key("demo", tmp_path / "data")
    installed = tmp_path / "installed" / "newer-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: newer\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert plan_key("demo", tmp_path / "data") not in (before, None)
    (installed / "entry_points.txt").write_text("[sweeper.defenses]\nmine = mine:Mine\n")
    assert plan_key("demo", tmp_path / "data") is None


def test_a_plan_of_a_sweep_that_was_edited_meanwhile_is_not_cached(sweep: Path, ask: Asked) -> None:
    resolve = plan_command._resolve

    def edit_and_resolve(*args: Any, **kwargs: Any) -> Plan:
        sweep.write_text(SWEEP.replace("epochs: 1", "epochs: 2"))
        return resolve(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_command, "_resolve", edit_and_resolve)
        other = ask(sweep)
    sweep.write_text(SWEEP)
    assert ask(sweep) != other


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-9],
    "changed": lambda content: content.replace(b'"steps": 8', b'"steps": 9'),
    "foreign": lambda content: b'{"name": "demo"}\n',
    "not text": lambda content: bytes(range(256)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_counts_as_absent(
    damage: Callable[[bytes], bytes], sweep: Path, ask: Asked, cached_plans: Path
) -> None:
    first = ask(sweep)
    (path,) = cached_plans.iterdir()
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    assert ask(sweep) == first
    assert ask.resolved == 2
    assert path.read_bytes() == content


def test_a_plan_under_the_name_of_another_or_of_another_form_counts_as_absent(cached_plans: Path) -> None:
    write_plan("a", EMPTY)
    assert read_plan("a") == EMPTY
    shutil.copy(cached_plans / "a", cached_plans / "b")
    assert read_plan("b") is None
    for content in (b"[]", b'{"name": "empty"}', json.dumps({"name": 1}).encode(), b"[" * 10_000):
        (cached_plans / "c").write_bytes(plan_cache._checksum("c", content) + b"\n" + content)
        assert read_plan("c") is None


@pytest.mark.parametrize("blocked", [".", "sweeper", "sweeper/plans"])
def test_without_a_folder_for_it_a_plan_is_resolved_each_time(
    blocked: str, sweep: Path, tmp_path: Path, ask: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_cache, "_folder", lambda: tmp_path / "cache" / "sweeper" / "plans")
    (tmp_path / "cache" / blocked).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache" / blocked).write_bytes(b"a file, not a folder")
    first = ask(sweep)
    assert ask(sweep) == first
    assert ask.resolved == 2


def test_the_oldest_plans_are_deleted(cached_plans: Path) -> None:
    for number in range(MOST_PLANS + 3):
        write_plan(str(number), EMPTY)
        os.utime(cached_plans / str(number), (number, number))
    names = {path.name for path in cached_plans.iterdir()}
    assert names == {str(number) for number in range(3, MOST_PLANS + 3)}


def test_a_plan_of_very_many_files_is_not_cached(
    sweep: Path, tmp_path: Path, ask: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        (data / str(number)).write_bytes(b"")
    (data / "loop").symlink_to(data, target_is_directory=True)  # has no end
    monkeypatch.setattr(plan_cache, "MOST_DATA_FILES", 20)
    assert not ask.is_cached(sweep, "--data", data)
    assert not ask.is_cached(sweep, "--data", data)
    monkeypatch.setattr(plan_cache, "MOST_BYTES", 20)
    assert plan_key(str(sweep), tmp_path / "none") is None


@pytest.mark.parametrize(
    "reference",
    ["nothing.yaml", "no\0thing.yaml", f"{'x' * 300}.yaml", "\udcff.yaml"],
    ids=["missing", "null", "long", "bytes"],
)
def test_a_sweep_that_cannot_be_read_has_no_key(reference: str, tmp_path: Path) -> None:
    assert plan_key(reference, tmp_path) is None
    assert plan_key("demo", tmp_path / "no\0thing") is None

"""The source behind a record: what it covers, that its changes are reported, and what is then recomputed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from sweeper.cli import app
from sweeper.results.gather import gather
from sweeper.results.sources import recorded_sources
from sweeper.results.store import Store
from sweeper.sweep import components
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.trial import Trial
from sweeper.trial import provenance, sources
from sweeper.trial.context import TrialContext
from sweeper.trial.run import run_trial

DEFENSE = """
from dataclasses import dataclass
from typing import ClassVar

from models.defenses.base import Defense
from own_helper import SCALE


@dataclass(frozen=True, kw_only=True)
class Mine(Defense):
    source: ClassVar[str] = "a test"

    def edit_model(self, model):
        return model
"""


def forget_modules() -> None:
    for cached in (components.names, components.component_class, components._name_of_class):
        cached.cache_clear()
    for each in (sources._read, sources._behind):
        each.cache_clear()
    for name in ("models.defenses.mine", "own_package", "own_package.helper", "own_package.defense", "other_package"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's package with a defense `mine`, a helper that it imports, and another that it does not."""
    folder = tmp_path / "installed"
    (folder / "own_package").mkdir(parents=True)
    (folder / "own_package" / "__init__.py").write_text("")
    (folder / "own_package" / "helper.py").write_text("SCALE = 1.0\n")
    (folder / "own_package" / "unused.py").write_text("SCALE = 1.0\n")
    (folder / "own_package" / "defense.py").write_text(DEFENSE.replace("own_helper", "own_package.helper"))
    (folder / "own-1.0.dist-info").mkdir()
    (folder / "own-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (folder / "own-1.0.dist-info" / "entry_points.txt").write_text(
        "[sweeper.defenses]\nmine = own_package.defense:Mine\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    forget_modules()
    yield folder / "own_package"
    monkeypatch.undo()
    forget_modules()


def trials_of(tiny: Path) -> dict[str, Trial]:
    settings = ["defenses={mine: mine, l2: l2, dp: {name: dp_sgd, noise_multiplier: 1.0}}", "attacks=[threshold]"]
    return {trial.defense_label: trial for trial in expand(load_sweep(str(tiny), settings))}


@pytest.mark.slow
def test_the_hash_covers_a_component_and_what_it_imports_and_no_other(package: Path, tiny: Path) -> None:
    def hashes() -> dict[str, str]:
        forget_modules()
        return {label: sources.of_target(trial).sha256 for label, trial in trials_of(tiny).items()}

    before = hashes()
    assert len(set(before.values())) == 3
    assert hashes() == before
    (package / "unused.py").write_text("SCALE = 2.0\n")
    assert hashes() == before
    for edited in ("helper.py", "defense.py", "__init__.py"):
        (package / edited).write_text((package / edited).read_text() + "# edited\n")
        after = hashes()
        assert after["mine"] != before["mine"], edited
        assert {label: after[label] for label in ("l2", "dp")} == {label: before[label] for label in ("l2", "dp")}
        before = after
    names = {path.name for path in sources.of_target(trials_of(tiny)["dp"]).paths}
    assert {"train.py", "splits.py", "seeds.py", "digits.py", "lomurno_cnn.py", "dp_sgd.py", "rules.py"} <= names
    assert not {"l2.py", "mnist.py", "trial.py"} & names


def test_the_hash_of_an_attack_is_its_own(tiny: Path) -> None:
    trial = expand(load_sweep(str(tiny)))[0]
    found = [sources.of_attack(attack) for attack in (*trial.attacks, None)]
    assert len({each.sha256 for each in found}) == len(found)
    assert {"threshold.py", "metrics.py"} <= {path.name for path in found[0].paths}
    assert all(path.parts[-2] != "models" for each in found for path in each.paths)


@pytest.fixture
def recorded(package: Path, tiny: Path, tmp_path: Path) -> tuple[Store, dict[str, Trial], Path]:
    """Two recorded trials, one of them with the defense `mine`."""
    trials = {label: trial for label, trial in trials_of(tiny).items() if label != "dp"}
    store = Store(tmp_path / "out")
    store.prepare()
    for trial in trials.values():
        run_trial(trial, TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu"), raise_errors=True))
    return store, trials, package


@pytest.mark.slow
def test_what_other_code_made_is_told_and_only_that_is_made_anew(recorded: Any, tmp_path: Path, tiny: Path) -> None:
    store, trials, package = recorded
    assert sources.made_otherwise(list(trials.values()), recorded_sources(store)) == []
    (package / "defense.py").write_text((package / "defense.py").read_text() + "\nEDITED = True\n")
    forget_modules()
    trials = {label: trial for label, trial in trials_of(tiny).items() if label != "dp"}
    mine, other = trials["mine"], trials["l2"]
    command = ["launch", str(tiny), "--out", str(store.storage.root), "--set", "attacks=[threshold]"]
    command += ["--set", "defenses={mine: mine, l2: l2}"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "2 done, 0 to run" in told.stdout
    assert (
        f"1 targets on record were made by other code than there is now, the first of them {mine.target_id}"
        in told.stderr
    )
    assert "--redo-changed" in told.stderr and "`revision`" in told.stderr
    assert pq.read_table(store.storage.root / "trials.parquet").num_rows == 2
    dry = CliRunner().invoke(app, [*command, "--redo-changed", "--dry-run"])
    assert "1 targets of other code would be made anew" in dry.stdout and "2 done" in dry.stdout
    keys = sources.made_otherwise(list(trials.values()), recorded_sources(store))
    assert keys == [mine.target_id]
    store.forget(keys)
    assert (store.status(mine).word, store.status(other).word) == ("to do", "done")
    run_trial(mine, TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu"), raise_errors=True))
    # The gathered table is older than the part
    assert sources.made_otherwise(list(trials.values()), recorded_sources(store)) == []


def test_an_attack_of_other_code_leaves_its_target(recorded: Any) -> None:
    store, trials, _ = recorded
    mine = trials["mine"]
    attack = next(iter(mine.attack_ids))
    key = f"{mine.target_id}.{attack}"
    rows = store.read_part("attacks", key)
    column = rows.column_names.index("component_sha256")
    store._write(
        "attacks", key, rows.set_column(column, rows.schema.field(column), pa.array(["f" * 64] * rows.num_rows))
    )
    assert sources.made_otherwise(list(trials.values()), recorded_sources(store)) == [key]
    gather(store)
    assert sources.made_otherwise(list(trials.values()), recorded_sources(store)) == [key]
    store.forget([key])
    status = store.status(mine)
    assert (status.target, status.missing_attacks) == ("finished", (attack,))


def test_a_file_that_the_checkout_does_not_have_makes_it_dirty(
    package: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = trials_of(tiny)
    tracked = sources.of_target(trials["l2"]).paths
    monkeypatch.setattr(provenance, "checkout", lambda: ("c0ffee", False, tracked))
    dirty = {label: provenance.code(sources.of_target(trial))["git_dirty"] for label, trial in trials.items()}
    assert (dirty["l2"], dirty["mine"]) == (False, True)
    monkeypatch.setattr(provenance, "checkout", lambda: (None, False, frozenset()))
    assert provenance.code(sources.of_target(trials["l2"]))["git_dirty"] is None


def test_a_checkout_tells_its_commit_and_the_files_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sweeper"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "ε.py").write_text("")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    (package / "untracked.py").write_text("")
    monkeypatch.setattr(provenance.sweeper, "__file__", str(package / "__init__.py"))
    provenance.checkout.cache_clear()
    try:
        commit, differs, tracked = provenance.checkout()
        assert commit is not None and len(commit) == 40
        assert (differs, {path.name for path in tracked}) == (False, {"__init__.py", "ε.py"})
        (package / "__init__.py").write_text("edited = True\n")
        provenance.checkout.cache_clear()
        assert provenance.checkout()[1]
    finally:
        monkeypatch.undo()
        provenance.checkout.cache_clear()

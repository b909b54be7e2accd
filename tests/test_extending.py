"""The code in docs/extending.md works as shown: each component is one file, found by its name and run."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import run_comparisons

from analysis.load import load
from analysis.measure.targets import measure
from analysis.studies.base import chapters
from sweeper.results.gather import gather
from sweeper.results.store import Store
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.preflight import resolve_trials
from sweeper.trial.context import TrialContext
from sweeper.trial.run import run_trial

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
CODE = dict(
    re.findall(r"^`((?:models|attacks|analysis)/\S+\.py)`\..*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
)

SWEEP = """
datasets: [wine]
splits: [coins]
architectures: [shallow]
defenses:
  none: none
  noisy_start: {name: noisy_start, scale: 0.1}
  focal: focal
  private_focal: [focal, {name: dp_sgd, epsilon: 8, accountant: rdp}]
  subsampled: subsampled
  rounded: rounded
training: {epochs: 4, batch_size: 16, learning_rate: 0.2}
seeds: [0, 1, 2, 3]
attacks: [threshold, margin]
comparisons: [offset]
"""


@pytest.fixture
def added(tmp_path: Path, forget_components: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of the page, as if they were in the project's folders."""
    for name, code in CODE.items():
        path = tmp_path / "added" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        parent = Path(name).parent.parent if path.stem == "__init__" else Path(name).parent
        package = importlib.import_module(".".join(parent.parts))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "added" / parent)])
    forget_components()


def test_the_page_has_a_file_of_each_kind() -> None:
    assert sorted(str(Path(name).parent) for name in CODE) == [
        "analysis/studies/shokri2017",
        "attacks/comparisons",
        "attacks/membership",
        "models/architectures",
        "models/datasets",
        *["models/defenses"] * 4,
    ]
    assert PAGE.count("```python") == len(CODE)


@pytest.mark.slow
@pytest.mark.usefixtures("added")
def test_every_component_of_the_page_runs_in_one_sweep(tmp_path: Path) -> None:
    path = tmp_path / "extended.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    trials = expand(load_sweep(str(path)))
    resolved, _ = resolve_trials(trials, tmp_path)
    store = Store(tmp_path / "out")
    store.prepare()
    context = TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu"), raise_errors=True)
    assert [run_trial(trial, context).status for trial in trials] == ["finished"] * 24
    assert {each.status for each in run_comparisons(store, trials)} == {"finished"}
    gather(store)
    results = load(store.storage.root)

    recorded = results.trials.set_index("target_id")
    for each in resolved:
        assert recorded.loc[each.trial.target_id, "steps"] == each.plan.steps, each.trial.title
    accuracy = recorded.groupby("defense")["test_accuracy"].mean()
    assert accuracy.drop("private_focal").min() > 0.5
    assert recorded["epsilon_spent"].notna().groupby(recorded["defense"]).all().to_dict() == {
        name: name == "private_focal" for name in accuracy.index
    }
    assert set(results.attacks["score_name"].dropna()) >= {"margin", "offset"}
    assert set(results.cohorts["attack"]) == {"offset"}

    rounded = store.read_part("outputs", next(t.target_id for t in trials if t.defense_label == "rounded"))
    shares = np.exp(np.array(rounded.column("logits").to_pylist()))
    assert set(np.round(shares, 4).ravel()) <= {0.01, *np.round(np.arange(1, 11) / 10, 4)}

    titles = {study.title: chapter for study, chapter in chapters(results, measure(results))}
    (table,) = titles["Shokri et al. (2017)"].tables
    assert len(table.rows) == 6

"""The example of a defense in a package of its own: found by its entry point, trained, and its answers are noisy."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sweeper.results.store import Store
from sweeper.sweep import components
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.trial.context import TrialContext
from sweeper.trial.run import run_trial

PACKAGE = Path(__file__).parents[1] / "examples" / "package"


@pytest.fixture
def installed(tmp_path: Path, forget_components: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The package on the path, with the metadata that an installer makes of its pyproject.toml."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items())
        for group, each in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(points), encoding="utf-8")
    monkeypatch.syspath_prepend(str(metadata.parent))
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    forget_components()


@pytest.mark.usefixtures("installed")
def test_the_defense_of_a_package_is_found_and_trained(tiny: Path, tmp_path: Path) -> None:
    overrides = ["defenses={none: none, noisy: {name: gaussian_answers, scale: 3.0}}", "attacks=[threshold]"]
    trials = expand(load_sweep(str(tiny), overrides))
    store = Store(tmp_path / "out")
    store.prepare()
    context = TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu"), raise_errors=True)
    assert {run_trial(trial, context).status for trial in trials} == {"finished"}
    plain, noisy = (
        np.stack(
            store.read_part("outputs", next(each.target_id for each in trials if each.defense_label == label))
            .column("logits")
            .to_numpy()
        )
        for label in ("none", "noisy")
    )
    noise = noisy - plain
    assert noise.std() == pytest.approx(3.0, rel=0.05)
    assert abs(noise.mean()) < 0.2
    assert "gaussian_answers" in components.names("defense")

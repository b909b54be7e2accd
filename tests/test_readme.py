"""The README's examples work as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeper.sweep import components
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_defense_of_the_readme_is_found_trained_and_checked(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    import models.defenses
    from sweeper.results.store import Store
    from sweeper.trial.context import TrialContext
    from sweeper.trial.run import run_trial

    (code,) = [block for block in blocks("python") if "class NoisyStart" in block]
    folder = tmp_path / "defenses"
    folder.mkdir()
    (folder / "noisy_start.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(models.defenses, "__path__", [*models.defenses.__path__, str(folder)])
    for cached in (components.names, components.component_class, components._name_of_class):
        cached.cache_clear()
    try:
        sweep = load_sweep(str(tiny), ["defenses=[{name: noisy_start, scale: 0.02}]", "attacks=[threshold]"])
        (trial,) = expand(sweep)
        store = Store(tmp_path / "out")
        store.prepare()
        result = run_trial(
            trial, TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu"), raise_errors=True)
        )
        assert (result.status, trial.defense_label) == ("finished", "noisy_start")
    finally:
        monkeypatch.undo()
        for cached in (components.names, components.component_class, components._name_of_class):
            cached.cache_clear()


def test_the_sweep_files_of_the_readme_are_valid(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    n_trials = []
    for text in blocks("yaml"):
        path.write_text(text, encoding="utf-8")
        n_trials.append(len(expand(load_sweep(str(path)))))
    assert n_trials == [18, 4]


def test_the_overrides_of_the_readme_are_valid() -> None:
    shell = "\n".join(blocks("sh"))
    overrides = re.findall(r"--set (\S+)", shell)
    assert overrides
    load_sweep("lomurno2022", overrides)

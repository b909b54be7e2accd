"""The examples of the README and of the pages in docs/ work as shown."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from sweeper.sweep import components
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, pages: list[Path] = PAGES) -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
def test_the_defense_that_the_pages_show_is_found_trained_and_checked(
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


def sweep_files() -> list[tuple[str, str]]:
    return [(page.name, text) for page in PAGES for text in blocks("yaml", [page]) if "\ndefenses:" in text]


@pytest.mark.parametrize(("page", "text"), sweep_files(), ids=[page for page, _ in sweep_files()])
def test_the_sweep_files_of_the_pages_are_valid(tmp_path: Path, page: str, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    n_trials = len(expand(load_sweep(str(path))))
    assert n_trials == {"README.md": 24, "getting-started.md": 18}.get(page, n_trials)


def test_the_pages_that_a_newcomer_reads_first_have_a_sweep_file() -> None:
    assert {"README.md", "getting-started.md"} <= {page for page, _ in sweep_files()}


def test_the_overrides_of_the_pages_are_valid() -> None:
    found = 0
    for line in "\n".join(blocks("sh")).splitlines():
        command, *words = shlex.split(line, comments=True) or [""]
        overrides = [value for option, value in pairwise(words) if option == "--set"]
        if command == "sweeper" and overrides:
            load_sweep(words[1], overrides)
            found += len(overrides)
    assert found

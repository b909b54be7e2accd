"""The examples of the README and of the pages in docs/ work as shown."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, pages: list[Path] = PAGES) -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def sweep_files() -> list[tuple[str, str]]:
    return [(page.name, text) for page in PAGES for text in blocks("yaml", [page]) if "defenses:" in text]


@pytest.mark.parametrize(("page", "text"), sweep_files(), ids=[page for page, _ in sweep_files()])
def test_the_sweep_files_of_the_pages_are_valid(tmp_path: Path, page: str, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    n_trials = len(expand(load_sweep(str(path))))
    assert n_trials
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

"""Shared fixtures: the tiny sweep that most tests of the runner use."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

TINY = """
name: tiny
summary: small enough for a test
datasets: [{name: digits, max_train_examples: 400, max_test_examples: 100}]
splits: [quarters]
defenses:
  baseline: none
  dp: {name: dp_sgd, noise_multiplier: 1.0, accountant: rdp}
training: {epochs: 2, batch_size: 25, learning_rate: 0.1}
seeds: [0]
attacks:
  - threshold
  - {name: trained_attackers, attackers: [logistic_regression], search: none}
  - shadow
  - {name: layer_decoder, epochs: 1, width: 4, max_attacker_examples: 50, max_evaluated_examples: 20}
"""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip slow tests after a time in seconds since 1970, if one is set: the whole suite must end in time on any machine."""
    after = os.environ.get("SWEEPER_SKIP_SLOW_TESTS_AFTER")
    is_slow = any(item.get_closest_marker(name) for name in ("slow", "ray"))
    if after and is_slow and time.time() > float(after):
        pytest.skip("the machine is too slow to run all slow tests in time")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cached_plans(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for cached plans, empty at the start of each test."""
    folder = tmp_path_factory.mktemp("plans")
    monkeypatch.setattr("sweeper.cli.plan_cache._folder", lambda: folder)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The path of a sweep file with two targets and four attacks on each."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk with these options."""
    mounted = []

    def make(options: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs root's right to mount")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def forget_components() -> Iterator[Callable[[], None]]:
    """Forgets which components and studies were found, so that they are looked for again; also when the test has ended."""
    from analysis import studies
    from sweeper.sweep import components

    def forget() -> None:
        for cached in (components.names, components.component_class, components._name_of_class, studies.found):
            cached.cache_clear()

    yield forget
    forget()

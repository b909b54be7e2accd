"""The source code behind a result: the files of its components, and one hash over them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.results.expected import recorded_attacks
from sweeper.sweep import components

if TYPE_CHECKING:
    from attacks.base import Attack
    from attacks.comparisons.base import Comparison
    from sweeper.sweep.comparisons import ComparisonTask
    from sweeper.sweep.trial import Trial

_OUR_PACKAGES = frozenset({"models", "attacks"})
_TRAINING = ("models.train", "models.splits", "models.seeds")
_ATTACKING = ("attacks.base", "attacks.metrics", "attacks.auditing")
_SELECTING = ("attacks.selection", "attacks.metrics")


class Sources:
    """The files of some modules, and of all modules of ours or of their own package that these import, at any depth."""

    def __init__(self, files: dict[str, tuple[Path, bytes]]) -> None:
        self.paths = frozenset(path for path, _ in files.values())
        digest = hashlib.sha256()
        for name, (_, content) in sorted(files.items()):
            digest.update(f"{name}\n{len(content)}\n".encode() + content)
        self.sha256 = digest.hexdigest()
        """Hash of the modules' names and contents, independent of the files' locations."""


def of_target(trial: Trial) -> Sources:
    """Sources that affect a trial's target: its dataset, architecture and defenses, splits, seeds and the training loop."""
    parts = (trial.dataset, trial.architecture, *trial.defenses)
    return _behind(tuple(sorted({*_TRAINING, *(type(part).__module__ for part in parts)})))


def of_attack(attack: Attack | None) -> Sources:
    """Sources that affect an attack's rows; for None, those of the code that compares attacks."""
    return _behind(_SELECTING if attack is None else tuple(sorted({*_ATTACKING, type(attack).__module__})))


def of_comparison(comparison: Comparison) -> Sources:
    """Sources that affect a comparison's rows."""
    return _behind(tuple(sorted({*_ATTACKING, type(comparison).__module__})))


def made_otherwise(
    trials: Iterable[Trial], recorded: Mapping[str, str], tasks: Iterable[ComparisonTask] = ()
) -> list[str]:
    """The keys of `recorded` (target id, `target.attack` or comparison id, each with a hash) that were made by other code.

    If a target is listed, its attacks are not listed too.
    """
    found = []
    for trial in trials:
        target_id = trial.target_id
        if recorded.get(target_id, now := of_target(trial).sha256) != now:
            found.append(target_id)
            continue
        for each in recorded_attacks(trial):
            key = f"{target_id}.{each}"
            if recorded.get(key, now := of_attack(trial.attack_ids.get(each)).sha256) != now:
                found.append(key)
    for task in tasks:
        if recorded.get(task.comparison_id, now := of_comparison(task.comparison).sha256) != now:
            found.append(task.comparison_id)
    return found


def read_all() -> None:
    """Read and cache the sources of all components now, while they match the imported code."""
    for kind in components.KINDS:
        for name in components.names(kind):
            _behind((components.component_class(kind, name).__module__,))
    _behind(_TRAINING)
    _behind(_ATTACKING)
    _behind(_SELECTING)


@cache
def _behind(modules: tuple[str, ...]) -> Sources:
    own = _OUR_PACKAGES | {module.partition(".")[0] for module in modules}
    found: dict[str, tuple[Path, bytes]] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        source = _read(name) if name not in found and name.partition(".")[0] in own else None
        if source is not None:
            path, content, imported = source
            found[name] = path, content
            waiting += imported
    return Sources(found)


@cache
def _read(module: str) -> tuple[Path, bytes, tuple[str, ...]] | None:
    """A module's file, its content, and the names it may import; None if it is not a module with a source."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # most names imported from a module are not modules
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    content = path.read_bytes()
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    return path, content, tuple(_with_parents([module, *_imported(ast.parse(content), package)]))


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_parents(names: Iterable[str]) -> Iterator[str]:
    """The names of modules and of the packages that contain them, which are imported too."""
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[: end + 1]) for end in range(len(parts)))

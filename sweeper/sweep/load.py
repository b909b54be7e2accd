"""Reads a sweep's untrusted YAML file and applies `--set` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeper.errors import UserError, shown, unknown_name
from sweeper.sweep.check import PART_KEYS, TEXT_KEYS, check_sweep
from sweeper.sweep.expand import Sweep
from sweeper.sweep.packaged import packaged_sweeps
from sweeper.sweep.yaml_file import MOST_CHARACTERS, MOST_LEVELS, parse_yaml


def load_sweep(reference: str, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep called `reference` (a packaged name or a YAML path), with `key=value` overrides applied.

    An override's dotted key is a key of every part, or of one part as `parts.NAME.key`. A name or label selects its
    element in a list: `training.epochs=3`, `defenses.dp_eps2.epsilon=1`, `attacks.layer_decoder.epochs=2`,
    `optimizers.adam.learning_rate=0.01`, `defenses.dp.grid.max_grad_norm=[0.5, 1]`.

    Raises:
        UserError: anything in the file or the overrides is wrong.
    """
    packaged = packaged_sweeps()
    path = packaged.get(reference, Path(reference))
    if reference not in packaged and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{unknown_name('sweep', reference, packaged)} Or give the path of a .yaml file.")
    raw = _read_yaml(path)
    for override in overrides:
        _apply_override(raw, override)
    return check_sweep(raw, path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) else "it is not UTF-8 text, or its name is not a valid path"
        )
        raise UserError(
            f"The sweep file {path} cannot be read: {reason}. Packaged sweeps: {', '.join(packaged_sweeps())}."
        ) from None
    raw = parse_yaml(text, f"The sweep file {path}")
    if not isinstance(raw, dict):
        raise UserError(f"The sweep file {path} must hold a mapping with keys such as datasets and defenses.")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    segments = key.strip().split(".")
    if not equals or not all(segments):
        raise UserError(f"--set '{override}' must be key=value, such as training.epochs=3.")
    if len(segments) > MOST_LEVELS:
        raise UserError(f"--set '{override}': a key has at most {MOST_LEVELS} levels.")
    value = parse_yaml(text, f"The value of --set {key}")
    if segments[0] in TEXT_KEYS or segments[0] == "parts":
        _assign(raw, segments, value, override)
        return
    if segments[0] not in PART_KEYS:
        raise UserError(f"--set {override}: {unknown_name('key', segments[0], (*PART_KEYS, *TEXT_KEYS, 'parts'))}")
    parts = raw.get("parts")
    holders = [part for part in parts.values() if isinstance(part, dict)] if isinstance(parts, dict) else []
    holders = [part for part in holders if segments[0] in part]
    if segments[0] in raw or not holders:
        holders.append(raw)
    assigned, problem = 0, None
    for holder in holders:
        try:
            _assign(holder, segments, value, override)
            assigned += 1
        except UserError as error:  # leave a part that lacks the named element unchanged
            problem = error
    if not assigned and problem is not None:
        raise problem


def _assign(container: Any, segments: list[str], value: Any, override: str, nested: bool = False) -> None:
    """Set the value at a dotted key. An element of a list is found by its name; a bare name becomes a mapping."""
    head, rest = segments[0], segments[1:]
    if isinstance(container, list):
        names = [
            item if isinstance(item, str) else item.get("name") if isinstance(item, dict) else None
            for item in container
        ]
        if head not in names:
            raise UserError(f"--set {override}: {unknown_name('element', head, [str(name) for name in names])}")
        key: Any = names.index(head)
    else:
        key = head
        if rest and nested and key not in container:
            raise UserError(f"--set {override}: {unknown_name('label', key, container)}")
        container.setdefault(key, None)
    if not rest:
        container[key] = value
        return
    child = container[key]
    if child is None:
        child = {}
    elif isinstance(child, str):
        child = {"name": child}
    elif not isinstance(child, dict | list):
        raise UserError(f"--set {override}: '{head}' is {shown(child)} and has no '{rest[0]}' inside.")
    container[key] = child
    _assign(child, rest, value, override, nested=True)

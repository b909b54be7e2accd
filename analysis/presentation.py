"""A user's own names, order, colors and markers for everything that a report shows, from a YAML file.

    arms:
      dp_eps8: {name: "DP-SGD, ε = 8", color: "#0072B2", marker: D}
      undefended: {name: No defense}
    datasets:
      cifar10: CIFAR-10
    order: [undefended, dp_eps8]

All parts are optional. Arms that `order` leaves out follow in the usual order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

MARKERS = "osD^vP*Xh<>"
"""Matplotlib's names of the markers that an arm may have."""


class PresentationError(ValueError):
    """The file cannot be used; the text names it, what is wrong, and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """Names by label, of arms and datasets; colors (#rrggbb) and markers by label of an arm; and the first arms in order."""

    names: Mapping[str, str] = field(default_factory=dict)
    colors: Mapping[str, str] = field(default_factory=dict)
    markers: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()


_CURRENT: ContextVar[Presentation | None] = ContextVar("presentation", default=None)


def current() -> Presentation:
    """The presentation in force; an empty one by default."""
    return _CURRENT.get() or Presentation()


@contextmanager
def applied(presentation: Presentation) -> Iterator[None]:
    """Everything made within shows this presentation."""
    token = _CURRENT.set(presentation)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def read_presentation(path: Path) -> Presentation:
    """The presentation in a YAML file.

    Raises:
        PresentationError: the file cannot be read, or says something that is not allowed.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise PresentationError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    found = _mapping(path, "the file", {} if raw is None else raw)
    _known(path, "the file", found, ("arms", "datasets", "order"))
    names: dict[str, str] = {}
    looks: dict[str, dict[str, str]] = {"color": {}, "marker": {}}
    for label, name in _mapping(path, "datasets", found.get("datasets") or {}).items():
        names[str(label)] = _text(path, f"datasets.{label}", name)
    for label, arm in _mapping(path, "arms", found.get("arms") or {}).items():
        place = f"arms.{label}"
        _known(path, place, _mapping(path, place, arm), ("name", "color", "marker"))
        if "name" in arm:
            names[str(label)] = _text(path, f"{place}.name", arm["name"])
        for key, allowed, words in (
            ("color", r"#[0-9a-fA-F]{6}", "a color like '#0072B2'"),
            ("marker", f"[{re.escape(MARKERS)}]", f"one of {' '.join(MARKERS)}"),
        ):
            if key in arm:
                value = _text(path, f"{place}.{key}", arm[key])
                if not re.fullmatch(allowed, value):
                    raise PresentationError(f"{path}: {place}.{key}: got {value!r}; it must be {words}")
                looks[key][str(label)] = value
    order = found.get("order") or []
    if not isinstance(order, list):
        raise PresentationError(f"{path}: order: got {order!r}; it must be a list of labels of arms")
    return Presentation(
        names=names,
        colors=looks["color"],
        markers=looks["marker"],
        order=tuple(_text(path, f"order[{place}]", label) for place, label in enumerate(order)),
    )


def _mapping(path: Path, place: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise PresentationError(f"{path}: {place}: got {value!r}; it must be a mapping of keys to values")
    return value


def _known(path: Path, place: str, value: dict[Any, Any], allowed: tuple[str, ...]) -> None:
    for key in value:
        if key not in allowed:
            raise PresentationError(f"{path}: {place}: unknown key {key!r}; allowed are {', '.join(allowed)}")


def _text(path: Path, place: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise PresentationError(f"{path}: {place}: got {value!r}; it must be text")
    return value

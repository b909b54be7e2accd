"""Search spaces: which fields of an arm are drawn, and from what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sweeper.errors import UserError, shown, unknown_name

Kind = Literal["uniform", "loguniform", "int", "choice"]

_KINDS: tuple[Kind, ...] = ("uniform", "loguniform", "int", "choice")
_DIGITS = 4
"""Significant digits of drawn numbers: more would only make tables hard to read."""

Path = tuple[str, ...]
"""Where a field is: ("training", FIELD), ("architecture", FIELD), or ("defense", NAME, FIELD)."""

_ANY = ""
"""In place of a defense's name: whichever has the field."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """What a field is drawn from: `choice` among `options`, or a number from `low` to `high`, both included."""

    kind: Kind
    low: float = 0.0
    high: float = 0.0
    options: tuple[Any, ...] = ()

    @property
    def values(self) -> Sequence[Any] | None:
        """All values, if they can be listed."""
        if self.kind == "choice":
            return self.options
        return range(int(self.low), int(self.high) + 1) if self.kind == "int" else None

    def at(self, share: float) -> Any:
        """The value below which about this share of all draws fall; of a choice, the option at this share of the list."""
        if self.kind == "choice":
            return self.options[min(int(share * len(self.options)), len(self.options) - 1)]
        if self.kind == "int":
            count = int(self.high) - int(self.low) + 1
            return int(self.low) + min(int(share * count), count - 1)
        low, high = (math.log(self.low), math.log(self.high)) if self.kind == "loguniform" else (self.low, self.high)
        value = low + share * (high - low)
        return self.rounded(math.exp(value) if self.kind == "loguniform" else value)

    def rounded(self, value: Any) -> Any:
        """A proposed value as it is used: a drawn fraction has few digits."""
        return value if self.kind in ("choice", "int") else float(f"{value:.{_DIGITS}g}")


@dataclass(frozen=True, kw_only=True)
class Space:
    """The fields that are drawn in every arm, and those of single arms by the defense's label, which go first."""

    everywhere: Mapping[Path, Distribution]
    of_arms: Mapping[str, Mapping[Path, Distribution]]

    def of(self, label: str) -> dict[Path, Distribution]:
        """The fields of one arm. Some may name a defense or architecture that it does not have."""
        return {**self.everywhere, **self.of_arms.get(label, {})}


def check_space(raw: object, labels: Mapping[str, object], path: str) -> Space:
    """The space from its mapping in a sweep file.

        training: {FIELD: DISTRIBUTION}
        architecture: {FIELD: DISTRIBUTION}
        defenses: {LABEL: {FIELD: DISTRIBUTION, NAME: {FIELD: DISTRIBUTION}, training: {FIELD: DISTRIBUTION}}}

    A distribution is `{loguniform: [LOW, HIGH]}`, `{uniform: [LOW, HIGH]}`, `{int: [LOW, HIGH]}` or `{choice: [VALUE, …]}`.

    Raises:
        UserError: anything in it is wrong; `labels` are those of the arms.
    """
    if not isinstance(raw, dict) or not raw:
        raise UserError(f"{path}: got {shown(raw)}; it must map training, architecture or defenses to their fields.")
    for key in raw:
        if key not in ("training", "architecture", "defenses"):
            raise UserError(f"{path}: {unknown_name('key', key, ('training', 'architecture', 'defenses'))}")
    everywhere = _fields(("training",), raw.get("training", {}), f"{path}.training")
    everywhere |= _fields(("architecture",), raw.get("architecture", {}), f"{path}.architecture")
    of_arms: dict[str, dict[Path, Distribution]] = {}
    for label, fields in _mapping(raw.get("defenses", {}), f"{path}.defenses").items():
        where = f"{path}.defenses.{label}"
        if label not in labels:
            raise UserError(f"{path}.defenses: {unknown_name('label', label, labels)}")
        own: dict[Path, Distribution] = {}
        for key, value in _mapping(fields, where).items():
            if key in ("training", "architecture"):
                own |= _fields((key,), value, f"{where}.{key}")
            elif _is_distribution(value):
                own["defense", _ANY, key] = _distribution(value, f"{where}.{key}")
            else:
                own |= _fields(("defense", key), value, f"{where}.{key}")
        of_arms[str(label)] = own
    return Space(everywhere=everywhere, of_arms=of_arms)


def _mapping(raw: object, path: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise UserError(f"{path}: got {shown(raw)}; it must be a mapping.")
    return {str(key): value for key, value in raw.items()}


def _fields(prefix: Path, raw: object, path: str) -> dict[Path, Distribution]:
    return {(*prefix, field): _distribution(value, f"{path}.{field}") for field, value in _mapping(raw, path).items()}


def _is_distribution(raw: object) -> bool:
    return isinstance(raw, dict) and len(raw) == 1 and next(iter(raw)) in _KINDS


def _distribution(raw: object, path: str) -> Distribution:
    if not isinstance(raw, dict) or len(raw) != 1:
        raise UserError(
            f"{path}: got {shown(raw)}; it must be one of {{loguniform: [LOW, HIGH]}}, {{uniform: [LOW, HIGH]}}, "
            "{int: [LOW, HIGH]} and {choice: [VALUE, …]}."
        )
    kind, values = next(iter(raw.items()))
    if kind not in _KINDS:
        raise UserError(f"{path}: {unknown_name('distribution', kind, _KINDS)}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}.{kind}: got {shown(values)}; it must be a list.")
    if kind == "choice":
        if any(values[i] == values[j] for i in range(len(values)) for j in range(i)):
            raise UserError(f"{path}.choice: got {shown(values)}; a value is given twice.")
        return Distribution(kind=kind, options=tuple(values))
    is_number = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    if len(values) != 2 or not is_number or not all(map(math.isfinite, values)) or not values[0] < values[1]:
        raise UserError(f"{path}.{kind}: got {shown(values)}; it must be two numbers, the lower one first.")
    if kind == "loguniform" and values[0] <= 0:
        raise UserError(f"{path}.loguniform: got {shown(values)}; both numbers must be above 0.")
    if kind == "int" and not all(isinstance(each, int) for each in values):
        raise UserError(f"{path}.int: got {shown(values)}; both must be whole numbers.")
    return Distribution(kind=kind, low=float(values[0]), high=float(values[1]))

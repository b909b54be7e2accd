"""How numbers, estimates and the entries of a table read."""

from __future__ import annotations

from analysis import naming
from analysis.statistics.estimates import Estimate
from analysis.tables.model import Entry, Label, Mean, Number

EMPTY = "—"


def number(value: float | None, decimals: int, signed: bool = False) -> str:
    """`value` rounded, with a true minus sign; — for None."""
    if value is None:
        return EMPTY
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def estimate_text(value: Estimate | None, decimals: int, signed: bool = False) -> str:
    """“0.942 ± 0.004”, or the mean alone if there is no interval.

    “0.512 [0.498, 0.526]” if the interval is over examples or was recorded, or is cut at a bound of the quantity.
    """
    if value is None:
        return EMPTY
    if value.half_width is None:
        return number(value.mean, decimals, signed)
    if value.over in ("examples", "resamples") or value.is_cut:
        return interval_text(value, decimals, signed)
    return f"{number(value.mean, decimals, signed)}\u00a0±\u00a0{number(value.half_width, decimals)}"


def interval_text(value: Estimate, decimals: int, signed: bool = False, mean: bool = True) -> str:
    """“−0.021 [−0.126, +0.084]”, or the ends alone; the mean alone without an interval."""
    if value.half_width is None:
        return number(value.mean, decimals, signed)
    ends = f"[{number(value.low, decimals, signed)}, {number(value.high, decimals, signed)}]"
    return f"{number(value.mean, decimals, signed)} {ends}" if mean else ends


def p_text(value: float) -> str:
    """“= 0.034”, or “< 0.001”."""
    return "< 0.001" if value < 0.001 else f"= {number(value, 3)}"


def shown(entry: Entry) -> str:
    """The entry as it stands in a cell."""
    if entry is None:
        return EMPTY
    if isinstance(entry, str | int):
        return str(entry)
    if isinstance(entry, Label):
        return entry.text or naming.display(entry.value)
    if isinstance(entry, Number):
        return entry.text or number(entry.value, entry.decimals, entry.signed)
    if entry.ours is None and entry.note:
        return entry.note
    text = estimate_text(entry.ours, entry.decimals, entry.signed)
    return text if entry.supported or entry.ours is None else f"{text}\u00a0†"


def below(entry: Entry) -> list[str]:
    """The small lines below the entry: the published number, the difference, notes."""
    if isinstance(entry, Number):
        return list(entry.small)
    if not isinstance(entry, Mean):
        return []
    lines = []
    if entry.paper is not None:
        lines.append(f"paper {number(entry.paper, entry.decimals, entry.signed)}")
    if entry.difference is not None:
        lines.append(f"Δ {number(entry.difference, entry.decimals, signed=True)}")
    if entry.ours is not None and entry.note:
        lines.append(entry.note)
    return [*lines, *entry.small]

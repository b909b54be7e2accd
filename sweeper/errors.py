"""The error that a user can mend, and the sentence that proposes the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input. Its text says what was wrong, the value, what is allowed and what to do; exit code 2."""


def sentence(text: object) -> str:
    """The text with one full stop at its end."""
    return f"{str(text).rstrip('. ')}."


def unknown_name(kind: str, name: object, available: Iterable[str]) -> UserError:
    """`Unknown attack 'shadw'. Did you mean 'shadow'? Available: …`"""
    names = sorted(available)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(f"Unknown {kind} '{name}'.{hint} Available: {', '.join(names) or 'none'}.")

"""Membership inference: was an example in the training set? One file per attack."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def check_names(what: str, names: Sequence[str], allowed: Iterable[str]) -> None:
    """Raise ValueError if `names` is empty, has a duplicate, or has a name that is not in `allowed`."""
    allowed = tuple(allowed)
    if not names:
        raise ValueError(f"No {what} given. Available: {', '.join(allowed)}.")
    for name in names:
        if name not in allowed:
            nearest = difflib.get_close_matches(name, allowed, n=1)
            hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
            raise ValueError(f"Unknown {what} {name!r}. {hint}Available: {', '.join(allowed)}.")
        if names.count(name) > 1:
            raise ValueError(f"The {what} {name!r} is given more than once.")

"""The error that a user can fix, and the sentence that proposes the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 1800
"""Most characters of an error's text; the middle of a longer one is left out."""
_MOST_NAMES = 10_000
"""Most names searched for the nearest one."""


class UserError(Exception):
    """Wrong input. The text says what was wrong, the value, what is allowed and what to do; exit code 2.

    The text is one paragraph of limited length that any terminal can show, whatever it quotes.
    """

    def __init__(self, text: object) -> None:
        super().__init__(printable(text))


def printable(text: object, longest: int = _LONGEST) -> str:
    """The text with spaces for line ends and escapes for unprintable characters; the middle of a long text is cut out."""
    escaped = "".join(map(_printable, _cut(str(text), longest)))
    return _cut(escaped, longest)


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character in "\n\r\t" else character.encode("unicode_escape").decode()


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: 3 * longest // 4]} … {text[3 - longest // 4 :]}"


def shown(value: object) -> str:
    """A value for a message: its Python representation, of limited length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def reason_of(error: Exception) -> str:
    """An error's message; for an operating system error without its number and with the file first."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def sentence(text: object) -> str:
    """The text with exactly one full stop at its end."""
    return f"{str(text).rstrip('. ')}."


def unknown_name(kind: str, name: object, available: Iterable[str]) -> UserError:
    """`Unknown attack 'shadw'. Did you mean 'shadow'? Available: …`"""
    text = printable(name, 100)
    names = sorted(map(str, available))[:_MOST_NAMES]
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(f"Unknown {kind} '{text}'.{hint} Available: {', '.join(names) or 'none'}.")

"""The two consoles, output to them, and errors that the user can fix."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.text import Text

from sweeper.cli.streams import mend_streams
from sweeper.errors import UserError, printable

mend_streams()
# If the output is not a terminal, lines are long rather than truncated.
out = Console(width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, width=None if sys.stderr.isatty() else 200)
F = TypeVar("F", bound=Callable[..., Any])


def user_errors(command: F) -> F:
    """Turn an error that the user can fix into one paragraph on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            fail(str(error))
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader closed the pipe
                raise
            name = error.filename or "A file"
            fail(printable(f"{name} cannot be used: {error.strerror or error}."))
        except KeyboardInterrupt:
            err.print("Interrupted. All finished work is kept; the same command continues from there.")
            raise typer.Exit(1) from None

    return wrapper  # type: ignore[return-value]


def fail(text: str) -> None:
    err.print(Text.assemble(("Error: ", "bold red"), text), soft_wrap=not err.is_terminal)
    raise typer.Exit(2) from None


def warn(text: str) -> None:
    err.print(Text.assemble(("Warning: ", "bold yellow"), text), soft_wrap=not err.is_terminal)


def tell(*what: RenderableType, **how: Any) -> None:
    """Print. If the disk is full, the output is lost, but the sweep goes on."""
    try:
        out.print(*what, **how)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        out._buffer.clear()


def working(what: str) -> contextlib.AbstractContextManager[object]:
    """Show a spinner with `what` during the block, if the output is a terminal."""
    return err.status(what) if err.is_terminal else contextlib.nullcontext()


def print_left_out(count: int, location: str) -> None:
    if count:
        tell(
            f"{count} recorded targets of other versions of this sweep are kept in {escape(location)} but left out.",
            style="dim",
        )


def print_report(path: Path, location: str) -> None:
    """Print the report's path, and say that a copy is stored beside results in an object store."""
    tell(Text.assemble("Report: ", (str(path.absolute()), "bold")), soft_wrap=True)
    if "://" in location:
        tell(f"Copied to report/ in {location}", highlight=False, soft_wrap=True)


def print_tables(folder: Path, location: str) -> None:
    """Print the path of the gathered tables, and say that they are also beside results in an object store."""
    tell(Text.assemble("Tables: ", (str(folder.absolute()), "bold")), soft_wrap=True)
    if "://" in location:
        tell(f"Copied to {location}", highlight=False, soft_wrap=True)


def print_damaged(problems: Sequence[str]) -> None:
    for problem in problems:
        err.print(Text.assemble(("Damaged: ", "bold yellow"), problem), soft_wrap=True, highlight=False)


def print_json(rows: Sequence[dict[str, Any]] | dict[str, Any]) -> None:
    is_utf = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=not is_utf) + "\n")

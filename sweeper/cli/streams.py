"""Standard input, output and error, which may be closed, or unable to encode what is printed."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def mend_streams() -> None:
    """Put the null device where a standard stream is closed, and a `?` where one cannot encode a character.

    Called before anything else is opened: else a file or a socket would get a stream's descriptor, and child processes
    would print into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if name != "stdin" and isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # closed by whoever embeds this
                stream.reconfigure(errors="replace")

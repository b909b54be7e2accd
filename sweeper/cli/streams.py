"""Repairs standard input, output and error if they are closed or cannot encode the output."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def mend_streams() -> None:
    """Replace closed standard streams by the null device, and characters that a stream cannot encode by `?`.

    Call this before anything else is opened. Otherwise a file or socket would get the stream's descriptor, and child
    processes would print into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # This is the lowest free descriptor
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if name != "stdin" and isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # closed by the embedding program
                stream.reconfigure(errors="replace")

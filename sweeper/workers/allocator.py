"""Settings of glibc's allocator for processes that train on CPU; free of imports, so that they can be set first."""

from __future__ import annotations

import os
import sys

ALLOCATOR_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
"""Environment that keeps freed memory. Without it, glibc returns big blocks to the kernel at every step and faults them
in again, a page at a time. It is read when a process starts; for a program of your own:

    env MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 python my_program.py
"""


def restart_with_allocator_environment() -> None:
    """Start this Python program anew with the settings, unless it has them, or others, or this is not Linux."""
    missing = {name: value for name, value in ALLOCATOR_ENVIRONMENT.items() if name not in os.environ}
    if missing and sys.platform == "linux" and sys.executable:
        os.environ.update(missing)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

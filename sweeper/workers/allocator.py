"""Settings of glibc's allocator for processes that train on the CPU. Imports nothing heavy, so that they can be set first."""

from __future__ import annotations

import os
import sys

ALLOCATOR_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
"""Environment that keeps freed memory. Without it, glibc returns large blocks to the kernel at every step, and each page
faults in again. The settings are read when a process starts; for a program of your own:

    env MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 python my_program.py
"""


def restart_with_allocator_environment() -> None:
    """Restart this Python program with the settings, unless it has these or others already, or this is not Linux."""
    missing = {name: value for name, value in ALLOCATOR_ENVIRONMENT.items() if name not in os.environ}
    if missing and sys.platform == "linux" and sys.executable:
        os.environ.update(missing)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

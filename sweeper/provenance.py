"""Which code, on which machine, made a result."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
import sweeper

if TYPE_CHECKING:
    import torch


@cache
def code() -> dict[str, Any]:
    """Versions of sweeper and its libraries; the commit of the checkout it runs from, or nulls."""
    commit, dirty = _git()
    return {
        "sweeper_version": sweeper.__version__,
        "git_commit": commit,
        "git_dirty": dirty,
        "python_version": platform.python_version(),
        "torch_version": version("torch"),
        "opacus_version": version("opacus"),
    }


@cache
def training_code() -> str:
    """SHA-256 of the code that trains, and of the versions of what it trains with."""
    digest = hashlib.sha256(f"torch {version('torch')} opacus {version('opacus')}".encode())
    folder = Path(models.__path__[0])
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def machine(device: torch.device) -> dict[str, Any]:
    """The device, the processor and the number of CPU threads of this process."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "device": name,
        "machine": f"{platform.machine()} {processor()}".strip(),
        "threads": torch.get_num_threads(),
    }


def cpu_count() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def processor() -> str:
    """The processor's model name."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _git() -> tuple[str | None, bool | None]:
    folder = Path(sweeper.__file__).parents[1]
    if not (folder / ".git").exists():
        return None, None
    answers = []
    for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None, None
        answers.append(done.stdout.strip())
    return answers[0], bool(answers[1])

"""Records which code on which machine made a result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sweeper

if TYPE_CHECKING:
    import torch

    from sweeper.trial.sources import Sources


def code(sources: Sources) -> dict[str, Any]:
    """Versions of sweeper and its libraries; the checkout's commit, or nulls; the hash of the sources."""
    commit, differs, tracked = checkout()
    return {
        "sweeper_version": sweeper.__version__,
        "git_commit": commit,
        # A file that the commit lacks makes the code unknown, just as an edited file does.
        "git_dirty": None if commit is None else differs or not sources.paths <= tracked,
        "component_sha256": sources.sha256,
        "python_version": platform.python_version(),
        "torch_version": version("torch"),
        "opacus_version": version("opacus"),
    }


def training_code(sources: Sources) -> str:
    """What must be unchanged for a training to resume: the training code, and the versions of its libraries."""
    return f"{sources.sha256} torch {version('torch')} opacus {version('opacus')}"


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


@cache
def checkout() -> tuple[str | None, bool, frozenset[Path]]:
    """The commit of sweeper's checkout, whether tracked files differ from it, and the Python files it contains."""
    folder = Path(sweeper.__file__).parents[1]
    if not (folder / ".git").exists():
        return None, False, frozenset()
    answers = []
    for arguments in (
        ("rev-parse", "HEAD"),
        ("status", "--porcelain", "--untracked-files=no"),
        ("ls-files", "-z", "*.py"),
    ):
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None, False, frozenset()
        answers.append(done.stdout.strip())
    commit, status, files = answers
    return commit, bool(status), frozenset(folder / name for name in files.split("\0") if name)

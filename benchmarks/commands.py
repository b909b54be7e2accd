"""Times the commands that a person waits for, beside a Python that starts and imports the command line's libraries.

Each command runs several times in its own process, and the median counts. Exits with 1 if a command that only reads takes
longer than the limit. `plan` is timed with a sweep that it must resolve, and with the same sweep again; only the latter has
the limit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

BAR_S = 1.0
"""Limit in seconds for commands that only read."""


def seconds(command: list[str], repeats: int, prepare: Callable[[], object] = lambda: None) -> float:
    """The median time of a command. `prepare` is called before each run."""
    took = []
    for _ in range(repeats):
        prepare()
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three runs of each command instead of nine")
    repeats = 3 if parser.parse_args().quick else 9
    from sweeper.results.store import Store

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "results")
        store.prepare()
        store.storage.write("sweep.json", b'{"name": "none", "targets": {}}')
        store.storage.write("logs/0123456789abcdef.log", b"printed\n")
        results = str(store.storage.root)
        bare = seconds([sys.executable, "-c", "import typer, rich.table"], repeats)
        print(f"Python with typer and rich: {bare:.2f} s")
        slow = []
        cache = Path(folder) / "cache"
        os.environ["XDG_CACHE_HOME"] = str(cache)
        sweeper = [sys.executable, "-m", "sweeper.cli"]
        took = seconds([*sweeper, "plan", "demo"], repeats, lambda: shutil.rmtree(cache, ignore_errors=True))
        print(f"sweeper plan demo, the first time: {took:.2f} s, {took / bare:.1f} times as long as Python")
        for name, arguments in {
            "--help": ["--help"],
            "ls": ["ls"],
            "status": ["status", results],
            "logs": ["logs", results, "0123"],
            "plan demo, again": ["plan", "demo"],
        }.items():
            took = seconds([*sweeper, *arguments], repeats)
            print(f"sweeper {name}: {took:.2f} s, {took / bare:.1f} times as long as Python")
            if took > BAR_S:
                slow.append(name)
    if slow:
        print(f"Slower than {BAR_S:g} s: {'; '.join(slow)}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

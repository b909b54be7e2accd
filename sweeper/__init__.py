"""Command line, sweep specification, scheduling and records."""

from pathlib import Path

from sweeper.imports import pin_packages

__version__ = "0.1.0"

# On a cluster node this package is shipped alone; the others are found on Ray's path.
pin_packages([str(Path(__file__).parents[1])])

"""Command line, sweep specification, scheduling and records."""

from pathlib import Path

from sweeper.imports import pin_packages

__version__ = "0.1.0"

# Where this package is shipped to a cluster's node it stands alone, and Ray's path has the others.
pin_packages([str(Path(__file__).parents[1])])

"""Command line, sweep specification, scheduling and records."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.imports import pin_packages

if TYPE_CHECKING:
    from sweeper.auditing.function import audit

__version__ = "0.1.0"
__all__ = ["audit"]

# On a cluster node this package is shipped alone; the others are found on Ray's path.
pin_packages([str(Path(__file__).parents[1])])


def __getattr__(name: str) -> Any:
    """`sweeper.audit`, imported when it is first used, because attacks take a second to import."""
    if name != "audit":
        raise AttributeError(f"module 'sweeper' has no attribute '{name}'")
    from sweeper.auditing.function import audit

    return audit

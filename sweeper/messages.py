"""The messages of a launch, for its caller to show."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeper.cluster.events import Event
    from sweeper.sweep.comparisons import ComparisonTask
    from sweeper.sweep.trial import Trial


class Reporter:
    """Receives a launch's messages. This one ignores them; override the methods you need."""

    def tell(self, text: str) -> None:
        """Report progress, as one line of plain text."""

    def warn(self, text: str) -> None:
        """Report something that the user may want to change."""

    def working(self, what: str) -> contextlib.AbstractContextManager[object]:
        """Report that `what` is under way for the duration of the block."""
        return contextlib.nullcontext()

    def running(
        self, units: Sequence[Trial | ComparisonTask], n_done: int
    ) -> contextlib.AbstractContextManager[Callable[[Event], None]]:
        """Report that trials and comparisons run for the duration of the block; the value is called with each event."""
        return contextlib.nullcontext(lambda event: None)

    def damaged(self, problems: Sequence[str]) -> None:
        """Report that damaged files were set aside; their content is computed again."""

"""Posts what happens to a launch to a URL of the user's, such as the webhook of a chat."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from sweeper.errors import UserError, reason_of, shown

_TIMEOUT_S = 10.0
_LAST_S = 20.0
"""How long the end of a launch waits for what was not posted yet."""


class Notifier(contextlib.AbstractContextManager["Notifier"]):
    """Posts JSON to `url` one after the other, in a thread; does nothing without a URL. A post that fails is warned of once.

    Raises:
        UserError: the URL cannot be posted to.
    """

    def __init__(self, url: str | None, warn: Callable[[str], None]) -> None:
        parts = urlsplit(url or "")
        if url is not None and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise UserError(f"--notify: got {shown(url)}; it must be a URL that begins with http:// or https://.")
        self._url, self._warn = url, warn
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._has_warned = False
        self._thread = threading.Thread(target=self._go_on, name="sweeper-notify", daemon=True)

    def __enter__(self) -> Notifier:
        if self._url is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._url is not None:
            self._waiting.put(None)
            self._thread.join(_LAST_S)

    def post(self, content: Mapping[str, Any]) -> None:
        """Post this soon."""
        if self._url is not None:
            self._waiting.put(json.dumps(content).encode())

    def _go_on(self) -> None:
        while (content := self._waiting.get()) is not None:
            request = urllib.request.Request(
                str(self._url), content, {"Content-Type": "application/json"}, method="POST"
            )
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                    answer.read()
            except (OSError, ValueError, urllib.error.HTTPError) as error:
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                if not self._has_warned:
                    host = urlsplit(str(self._url)).hostname  # the rest of the URL may be a secret
                    self._warn(f"--notify: nothing could be posted to {host}: {reason_of(error)}. The launch goes on.")
                    self._has_warned = True

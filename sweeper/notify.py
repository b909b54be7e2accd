"""Posts what happens to a launch to a URL of the user's, such as the webhook of a chat."""

from __future__ import annotations

import contextlib
import http.client
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
        if url is not None and not _is_postable(url):
            raise UserError(
                f"--notify: got {shown(url)}; it must be a URL that begins with http:// or https://, without spaces or a user name."
            )
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
                _OPENER.open(request, timeout=_TIMEOUT_S).close()
            except (OSError, ValueError, http.client.HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                if not self._has_warned:
                    host = urlsplit(str(self._url)).hostname  # the rest of the URL may be a secret
                    why = reason_of(error) if isinstance(error, OSError) else type(error).__name__
                    self._warn(f"--notify: nothing could be posted to {host}: {why}. The launch goes on.")
                    self._has_warned = True


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect as an error: the standard one would ask the new place for a page, without what was posted."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _is_postable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    is_plain = url.isprintable() and " " not in url and "@" not in parts.netloc
    return parts.scheme in ("http", "https") and bool(parts.hostname) and is_plain

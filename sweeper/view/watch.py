"""Keeps what the page shows of one store up to date while somebody looks, and makes its report when results were added."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from sweeper.errors import UserError
from sweeper.results.store import Store
from sweeper.storage import StorageError
from sweeper.view.state import state_of

LOOKED_AT_S = 30.0
"""Nothing is read if nobody has asked for so long."""
_MOST_WAIT_S = 5.0
"""How long closing waits for a store that does not answer."""
_LEAST_REST_S, _REST = 20.0, 4.0
"""After a report is made, the next one waits for so many seconds, or so many times what it took."""


class Watch:
    """One store: its latest state, and its report in `folder`."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.state: dict[str, Any] = {"location": store.location, "problem": "reading …"}
        self._version = 0
        self._problem = ""
        self._made_of: object = None
        self._making: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._read_at = time.monotonic()
        self._began = self._may_begin = 0.0
        self._asked_at = time.monotonic()
        self._closing = threading.Event()
        self._every_s = 2.0 if store.storage.is_local else 10.0
        self._thread = threading.Thread(target=self._go_on, name="sweeper-view", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(_MOST_WAIT_S)
        if self._making is not None:
            self._making.kill()
            self._making.wait()
        if self._said is not None:
            self._said.close()

    def latest(self) -> dict[str, Any]:
        """The latest state, with how the report stands. Asking keeps it up to date."""
        self._asked_at = time.monotonic()
        report = {"version": self._version, "is_making": self._making is not None, "problem": self._problem}
        return self.state | {"report": report, "age_s": time.monotonic() - self._read_at}

    def _go_on(self) -> None:
        while True:
            if time.monotonic() - self._asked_at < LOOKED_AT_S:
                try:
                    self.state = state_of(self.store)
                    self._read_at = time.monotonic()
                    self._tend_report()
                except (UserError, StorageError, OSError) as error:
                    self.state = self.state | {"problem": str(error)}
            if self._closing.wait(self._every_s):
                return

    @property
    def _has_tables_alone(self) -> bool:
        """Whether somebody passed on the gathered tables without what they were gathered from."""
        storage = self.store.storage
        return storage.is_local and (storage.root / "trials.parquet").is_file()

    def _tend_report(self) -> None:
        now = time.monotonic()
        if self._making is not None and self._making.poll() is not None:
            self._problem = ""
            if self._making.returncode == 0:
                self._version += 1
            elif self._said is not None:
                self._said.seek(0)
                self._problem = self._said.read().decode(errors="replace").strip()[-2000:]
                self._made_of = None  # the next time it may be possible
            self._may_begin = now + max(_LEAST_REST_S, _REST * (now - self._began))
            self._making = None
        made_of = tuple(self.state.get(name) for name in ("done", "failed", "compared"))
        has_results = self.state.get("done") or self._has_tables_alone
        if self._making is None and now >= self._may_begin and made_of != self._made_of and has_results:
            self._made_of, self._began = made_of, now
            if self._said is not None:
                self._said.close()
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe would fill up, and nobody reads before the end
            command = [sys.executable, "-m", "sweeper.view.making", self.store.storage.uri, str(self.folder)]
            self._making = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._said)

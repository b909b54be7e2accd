"""A launch posts its failures and its end to a URL; what it cannot post does not stop it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sweeper.errors import UserError
from sweeper.launch import LaunchOptions, launch
from sweeper.messages import Reporter
from sweeper.notify import Notifier
from sweeper.workers.scheduling import Retries


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """A server on loopback, and what it was posted."""
    posted: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if "garbage" in self.path:
                self.wfile.write(b"what?\r\n\r\n")
                return
            self.send_response(404 if "missing" in self.path else 302 if "moved" in self.path else 204)
            if "moved" in self.path:
                self.send_header("Location", "/hook")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", posted
    server.shutdown()
    server.server_close()


def test_everything_is_posted_in_order_before_the_end(webhook: tuple[str, list[Any]]) -> None:
    url, posted = webhook
    warnings: list[str] = []
    with Notifier(url, warnings.append) as notifier:
        for number in range(20):
            notifier.post({"number": number})
    assert [one["number"] for one in posted] == list(range(20))
    assert warnings == []


def test_what_cannot_be_posted_is_warned_of_once_without_the_secret(webhook: tuple[str, list[Any]]) -> None:
    for kind in ("missing", "garbage", "moved", ""):
        url = f"{webhook[0]}/{kind}/s3cret" if kind else "http://127.0.0.1:9/s3cret"
        warnings: list[str] = []
        with Notifier(url, warnings.append) as notifier:
            notifier.post({"a": 1})
            notifier.post({"a": 2})
        assert len(warnings) == 1
        assert "127.0.0.1" in warnings[0]
        assert "s3cret" not in warnings[0]
    assert len(webhook[1]) == 6  # nobody was asked for a page in place of a post


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "hooks.example/x",
        "http://",
        "file:///etc/passwd",
        "http://[bad",
        "https://me:pass@host/x",
        "http://host/a b",
    ],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="--notify"):
        Notifier(url, lambda text: None)
    with pytest.raises(UserError, match="--notify"):
        launch("demo", LaunchOptions(notify=url))


@pytest.mark.ray
@pytest.mark.slow
def test_a_launch_posts_its_failures_and_its_end(tmp_path: Path, webhook: tuple[str, list[Any]]) -> None:
    url, posted = webhook
    path = tmp_path / "fails.yaml"
    path.write_text(
        "name: fails\ndatasets: [{name: digits, max_train_examples: 100, max_test_examples: 30}]\nsplits: [half]\n"
        "defenses: [none]\narchitectures: [mlp]\ntraining: {epochs: 5000, batch_size: 20}\n"
        "seeds: [0]\nattacks: []\n",
        encoding="utf-8",
    )
    options = LaunchOptions(out=tmp_path / "out", notify=url, time_limit_s=1.0, retries=Retries(failures=0))
    result = launch(str(path), options, Reporter())
    assert result.n_failed == 1
    failure, end = posted
    assert failure["event"] == "failure"
    assert (failure["sweep"], failure["results"]) == ("fails", str(tmp_path / "out"))
    assert "seed 0" in failure["title"]
    assert failure["error"]
    assert end["event"] == "end"
    assert (end["trials"], end["failed"], end["done"], end["is_whole"]) == (1, 1, 0, False)

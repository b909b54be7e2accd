"""An S3 server on this machine, by moto, in a process of its own: with failures on demand.

    from s3_server import Fault, S3Server, start_s3_server

    __all__ = ["start_s3_server"]    # the fixture `s3_server`: lives as long as the test file, skips without moto

    def test(s3_server: S3Server) -> None:
        uri = s3_server.uri("some/path")    # in a new bucket
        with s3_server.failing(Fault("500", rate=0.3)):
            ...

A process of its own, because a stream of pyarrow's that is collected as garbage talks to the server while it holds
the interpreter's lock: a server in a thread of the same interpreter could never answer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

KEY = "AKIDEXAMPLE"
SECRET = "wJalrXUtnFEMIK7MDENG"
"""Part of every URI; messages must not contain them."""

_CONTROL = "/-control"
_ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    "<Error><Code>{code}</Code><Message>{message}</Message><RequestId>0</RequestId></Error>"
)
_STATUSES = {
    "500": ("500 Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "503": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "403": ("403 Forbidden", "AccessDenied", "Access Denied"),
    "401": ("403 Forbidden", "InvalidAccessKeyId", "The access key id you provided does not exist in our records."),
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with some of the requests.

    kind: `500`, `503` (slow down), `403` (access denied), `401` (unknown key): answered so, and not carried out.
    `cut`: carried out, but the connection ends in the middle of the answer. `reset`: the connection ends before anything
    is done. `slow`: carried out after `delay_s` seconds.
    """

    kind: str
    rate: float = 1.0
    """The fraction of matching requests, drawn from `seed`."""
    seed: int = 0
    matches: str = ""
    """A request matches if `METHOD /bucket/key?query` contains this."""
    at_most: int | None = None
    """Number of requests that fail."""
    delay_s: float = 0.5


class S3Server:
    """Starts the server; the test's interface to it."""

    def __init__(self) -> None:
        self._buckets = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the server did not start; its error is above"

    def close(self) -> None:
        self._process.communicate("")  # the end of its input ends the server

    def uri(self, path: str = "", bucket: str | None = None) -> str:
        """The complete URI, secret and all, of a path: in the bucket named, made or not, or else in a new one."""
        if bucket is None:
            self._buckets += 1
            bucket = f"bucket-{self._buckets}"
            self._ask("PUT", f"/{bucket}")
        options = f"scheme=http&endpoint_override={self.address}&region=us-east-1"
        return f"s3://{KEY}:{SECRET}@{bucket}/{path}?{options}"

    @contextlib.contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Make requests fail within the block, each by the first fault that matches."""
        self._ask("PUT", _CONTROL, json.dumps([asdict(fault) for fault in faults]).encode())
        try:
            yield
        finally:
            self._ask("PUT", _CONTROL, b"[]")

    def requests(self) -> list[str]:
        """`METHOD /bucket/key?query` of everything that was asked for since the last call of this."""
        asked: list[str] = json.loads(self._ask("GET", _CONTROL))
        return asked

    def fill(self, uri: str, names: list[str]) -> None:
        """Put small objects below a URI of this server, without a request for each."""
        url = urlsplit(uri)
        bucket, prefix = url.netloc.rpartition("@")[2], unquote(url.path).strip("/")
        keys = [f"{prefix}/{name}" if prefix else name for name in names]
        self._ask("POST", _CONTROL, json.dumps({"bucket": bucket, "keys": keys}).encode())

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"http://{self.address}{path}", data=body, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: bytes = answer.read()
        return content


@pytest.fixture(scope="module", name="s3_server")
def start_s3_server() -> Iterator[S3Server]:
    """A server without faults."""
    pytest.importorskip("moto.server", reason="needs moto's S3 server: pip install 'moto[server]'")
    server = S3Server()
    yield server
    server.close()


class _Breaking:
    """moto as a WSGI application, and in front of it what breaks some of the requests."""

    def __init__(self, moto: Callable[..., Iterable[bytes]]) -> None:
        self._moto = moto
        self._faults: list[tuple[Fault, random.Random]] = []
        self._broken: dict[Fault, int] = {}
        self._requests: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == _CONTROL:
            return self._control(environ, start_response)
        fault = self._choose(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        if fault is None:
            return self._moto(environ, start_response)
        if fault.kind == "slow":
            time.sleep(fault.delay_s)
            return self._moto(environ, start_response)
        connection: socket.socket = environ["werkzeug.socket"]
        if fault.kind == "cut":
            return self._cut(self._moto(environ, start_response), connection)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault.kind == "reset":
            connection.shutdown(socket.SHUT_RDWR)
            start_response("500 Never Seen", [])
            return [b""]
        status, code, message = _STATUSES[fault.kind]
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else _ERROR.format(code=code, message=message).encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def _control(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answer = b""
        with self._lock:
            match environ["REQUEST_METHOD"]:
                case "PUT":
                    faults = [Fault(**fault) for fault in json.loads(body)]
                    self._faults = [(fault, random.Random(fault.seed)) for fault in faults]
                    self._broken = dict.fromkeys(faults, 0)
                case "POST":
                    self._fill(**json.loads(body))
                case _:
                    answer = json.dumps(self._requests).encode()
                    self._requests.clear()
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]

    @staticmethod
    def _fill(bucket: str, keys: list[str]) -> None:
        from moto.backends import get_backend
        from moto.core import DEFAULT_ACCOUNT_ID

        for key in keys:
            get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, b"1")

    def _choose(self, request: str) -> Fault | None:
        with self._lock:
            self._requests.append(request)
            for fault, draws in self._faults:
                if fault.matches not in request or self._broken[fault] == fault.at_most or draws.random() >= fault.rate:
                    continue
                self._broken[fault] += 1
                return fault
            return None

    @staticmethod
    def _cut(answer: Iterable[bytes], connection: socket.socket) -> Iterator[bytes]:
        body = b"".join(answer)
        yield body[: len(body) // 2]
        connection.shutdown(socket.SHUT_RDWR)


def _serve() -> None:
    """Serve until standard input ends, as it does too when the process that holds the other end dies."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, _Breaking(DomainDispatcherApplication(create_backend_app)), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()

"""The server of the page: on loopback, below a secret part of its URL."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from sweeper.errors import UserError
from sweeper.report import compared_tables
from sweeper.results import layout
from sweeper.results.store import Store
from sweeper.storage import StorageError
from sweeper.view.making import TABLES
from sweeper.view.watch import Watch

_PAGE = Path(__file__).parent / "page"
_MOST_LOG = 200_000
"""Bytes of a log that are shown, from its end."""
_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_PAGE_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; img-src 'self' data:"
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
)


def application(watches: Sequence[Watch], token: str) -> Starlette:
    """The page on several results, below /`token`/. Anything else, and any other host name, is refused."""

    @contextlib.asynccontextmanager
    async def alive(app: Starlette) -> AsyncIterator[None]:
        for watch in watches:
            watch.start()
        yield
        for watch in watches:
            await run_in_threadpool(watch.close)

    def watch_of(request: Request) -> Watch | None:
        place = int(request.path_params["place"])
        return watches[place] if place < len(watches) else None

    async def state(request: Request) -> Response:
        return JSONResponse([watch.latest() for watch in watches])

    async def log(request: Request) -> Response:
        watch, unit = watch_of(request), str(request.path_params["unit"])
        if watch is None or not layout.ID.fullmatch(unit):
            return PlainTextResponse("There is no such log.", 404)
        try:
            content = await run_in_threadpool(watch.store.storage.read, layout.log(unit))
        except (FileNotFoundError, StorageError):
            return PlainTextResponse("It has no log yet.", 404)
        return PlainTextResponse(content[-_MOST_LOG:].decode(errors="replace"))

    async def report(request: Request) -> Response:
        watch = watch_of(request)
        asked = str(request.path_params["path"])
        path = None if watch is None or not asked.isprintable() else (watch.folder / asked).resolve()
        if watch is None or path is None or not path.is_relative_to(watch.folder.resolve()) or not path.is_file():
            return PlainTextResponse("There is no report yet.", 404)
        kind = _KINDS.get(path.suffix, "application/octet-stream")
        return FileResponse(path, media_type=kind, headers={"Content-Security-Policy": _REPORT_POLICY})

    async def comparison(request: Request) -> Response:
        first, *others = [watch.folder / TABLES for watch in watches]
        try:
            return JSONResponse([await run_in_threadpool(compared_tables, first, other) for other in others])
        except UserError as error:
            return JSONResponse({"problem": str(error)}, 409)

    def page_file(name: str) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            headers = {
                "Content-Security-Policy": _PAGE_POLICY,
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-store",
            }
            return FileResponse(_PAGE / name, media_type=_KINDS[Path(name).suffix], headers=headers)

        return answer

    routes = [
        Route("/", page_file("view.html")),
        Route("/view.css", page_file("view.css")),
        Route("/view.js", page_file("view.js")),
        Route("/state", state),
        Route("/comparison", comparison),
        Route("/log/{place:int}/{unit}", log),
        Route("/report/{place:int}/{path:path}", report),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
        lifespan=alive,
    )


def serve(locations: Sequence[str], port: int, on_start: Callable[[str], None], *, end_with: int | None) -> None:
    """Serve the page on some results until Ctrl-C, or until `end_with`, the process that started this one, has ended.

    `on_start` gets the address.

    Raises:
        UserError: a store holds no sweep, or the port is taken.
    """
    stores = [Store(location, sets_aside=False) for location in locations]
    for store in stores:
        if store.planned() is None:
            raise UserError(f"{store.location} holds no sweep. Name the folder or URI that `sweeper launch` writes to.")
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        raise UserError(
            f"--port {port}: it cannot be used: {error.strerror}. Leave it out, and a free one is taken."
        ) from None
    token = secrets.token_urlsafe(16)
    with contextlib.closing(listening), tempfile.TemporaryDirectory(prefix="sweeper-view-") as folder:
        watches = [Watch(store, Path(folder) / str(place)) for place, store in enumerate(stores)]
        config = uvicorn.Config(
            application(watches, token), log_level="error", lifespan="on", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        if end_with is not None:
            threading.Thread(target=_end_with, args=(end_with, server), daemon=True).start()
        listening.listen()  # whoever connects before the server runs waits for it
        on_start(f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder is removed
        with contextlib.suppress(KeyboardInterrupt):  # the usual end
            server.run(sockets=[listening])


def _end_with(parent: int, server: uvicorn.Server) -> None:
    """End the server when `parent` is no longer this process's parent: it may be killed, and then it ends no server."""
    while os.getppid() == parent:
        time.sleep(1)
    server.should_exit = True

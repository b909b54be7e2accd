"""Files in a bucket of S3 or of Google Cloud Storage, through pyarrow.

pyarrow's S3 starts threads that do not survive a fork. So nothing connects before the first use, and a process that
forks must not have used a store before.

Why not obstore, whose conditional puts would make `Storage.create` atomic (as of version 0.12.1): it uses Google's XML
API, which gcp-storage-emulator and fake-gcs-server do not implement well enough for tests. It reads no AWS profiles and
looks up no bucket's region. One object with `//` or `/../` in its name, which anyone who can write to the bucket can
create, breaks every listing of that folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from sweeper.errors import UserError, sentence
from sweeper.storage.files import MAKE_ROOM, Entry, Problem, StorageError, system_problem
from sweeper.storage.location import BucketPath, is_file_name, is_temporary

# Arrow's default limit is 3 s without a byte. A busy store's copy or the end of a large upload can exceed that.
_REQUEST_TIMEOUT_S, _CONNECT_TIMEOUT_S = 30.0, 5.0
# Per request, within a second. So a failed part of a large upload is retried without the other parts.
_REQUEST_ATTEMPTS = 5
_GOOGLE_RETRIES_S = 10.0
_CHUNK_BYTES = 32 * 2**20


class RemoteFiles:
    """The files below a path in a bucket."""

    def __init__(self, location: BucketPath) -> None:
        self._location = location
        self._connected: Any = None

    def read(self, name: str) -> bytes:
        with self._missing_files_told(name), self._filesystem().open_input_stream(self._key(name)) as stream:
            before = None if self._location.scheme == "gs" else stream.metadata()
            content: bytes = stream.read()
        if before is None:  # a single request, which Google answers from one version
            return content
            # For S3, Arrow asks for the size and then reads that many bytes. If a larger file replaces the object in between,
            # only its beginning is read. So check that it is still the same file.
        with self._missing_files_told(name), self._filesystem().open_input_stream(self._key(name)) as stream:
            if stream.metadata() != before:
                raise OSError(errno.EAGAIN, "it was replaced while it was read")
        return content

    def write(self, name: str, content: bytes | Path) -> None:
        # Ctrl-C does not interrupt an upload that has begun.
        filesystem, key = self._filesystem(), self._key(name)
        pieces = iter([content]) if isinstance(content, bytes) else _pieces(content)
        with _missing_bucket_told(), _signals_held_back():
            _put(filesystem, key, pieces)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._missing_files_told(name):
            self._filesystem().delete_file(self._key(name))

    def move(self, name: str, to: str) -> bool:
        # Not pyarrow's own move: if it deleted the source but the reply was lost, a retry fails because the source is missing.
        with self._missing_files_told(name):
            self._filesystem().copy_file(self._key(name), self._key(to))
        return True

    def size(self, name: str) -> int | None:
        info = self._filesystem().get_file_info(self._key(name))
        return int(info.size) if info.is_file else None

    def entries(self, folder: str, temporary: bool) -> dict[str, Entry]:
        from pyarrow.fs import FileSelector

        try:
            with _missing_bucket_told(), self._missing_files_told(folder):
                # With allow_not_found, a missing bucket would look like an empty one.
                listing = self._filesystem().get_file_info(FileSelector(self._key(folder)))
        except FileNotFoundError:
            return {}
        return {
            info.base_name: Entry(info.size, info.mtime.astimezone(UTC))
            for info in listing
            if info.is_file and is_file_name(info.base_name) and not (temporary and not is_temporary(info.base_name))
        }

    def problem(self, error: OSError) -> Problem:
        if error.errno is not None:
            return system_problem(error)
        text = str(error)
        detail = (self._location.without_secrets(text).splitlines() or [type(error).__name__])[0]
        # Leave out the file name before it, which could match any pattern.
        answer = text.partition("AWS Error ")[2] or text
        for lasting in _LASTING:
            if lasting.pattern.search(answer):
                return Problem(lasting.reason, lasting.advice, f"The store says: {sentence(detail)}")
                # A store's unknown errors are more often transient than not, and losing an hour of training costs more than
                # waiting a minute.
        return Problem(
            "the store does not answer as it should",
            "Check the network, the endpoint and the store's state, then run the same command again.",
            f"The last answer: {sentence(detail)}",
            passes=True,
        )

    def _key(self, name: str) -> str:
        return "/".join(filter(None, (self._location.bucket, self._location.path, name)))

    def _filesystem(self) -> Any:
        """pyarrow's file system, connected on first use."""
        if self._connected is None:
            try:
                self._connected = _connect(self._location)
            except ValueError as error:  # pyarrow's ArrowInvalid, which can quote the options
                detail = self._location.without_secrets(str(error))
                raise UserError(f"{self._location.shown} cannot be used: {sentence(detail)}") from None
        return self._connected

    @contextlib.contextmanager
    def _missing_files_told(self, name: str) -> Iterator[None]:
        """Turn those errors of pyarrow that mean a missing file into a `FileNotFoundError`."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno is None and _NO_SUCH_FILE.search(str(error)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._key(name)) from None
            raise


@contextlib.contextmanager
def _missing_bucket_told() -> Iterator[None]:
    """For an operation that needs no file, Google's NOT_FOUND means that the bucket is missing."""
    try:
        yield
    except FileNotFoundError as error:
        if _GOOGLE_NOT_FOUND not in str(error):
            raise
        raise OSError(str(error)) from None


def _connect(location: BucketPath) -> Any:
    """pyarrow's file system for a location. Importing pyarrow.fs starts no threads; creating an S3FileSystem does."""
    from pyarrow import fs

    options: dict[str, Any] = dict(location.options)
    if location.scheme == "gs":
        return fs.GcsFileSystem(
            anonymous=location.user == "anonymous", retry_time_limit=timedelta(seconds=_GOOGLE_RETRIES_S), **options
        )
    if "force_virtual_addressing" in options:
        options["force_virtual_addressing"] = options["force_virtual_addressing"].lower() in ("1", "true")
    endpoint = (
        options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    if "region" not in options and not endpoint:
        options["region"] = fs.resolve_s3_region(location.bucket)
    return fs.S3FileSystem(
        access_key=location.user,
        secret_key=location.password,
        request_timeout=_REQUEST_TIMEOUT_S,
        connect_timeout=_CONNECT_TIMEOUT_S,
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=_REQUEST_ATTEMPTS),
        allow_delayed_open=True,  # a small file is one request, and is visible as soon as that completes
        **options,
    )


# Uploads


def _pieces(path: Path) -> Iterator[bytes]:
    """A local file's content in pieces, to limit memory use.

    Raises:
        StorageError: the file cannot be read, or its size changed meanwhile.
    """
    try:
        with path.open("rb", buffering=0) as source:
            left = os.fstat(source.fileno()).st_size
            while piece := source.read(_CHUNK_BYTES):
                left -= len(piece)
                yield piece
        reason = "its size changed while it was read" if left else ""
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise StorageError(f"{path} cannot be read, so it was not uploaded: {sentence(reason)}")


def _put(filesystem: Any, key: str, pieces: Iterator[bytes]) -> None:
    """Upload one object."""
    first = next(pieces, b"")  # an unreadable source fails here, before anything is opened
    stream = filesystem.open_output_stream(key)
    try:
        stream.write(first)
        for piece in pieces:
            stream.flush()  # wait for pending uploads, which bounds the memory
            stream.write(piece)
    except BaseException:
        # Closing the stream, or destroying it, would publish the incomplete content as the object. pyarrow cannot abort
        # an upload. So the stream must never be destroyed, not even at interpreter exit: leak one reference.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
        raise
    stream.close()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Delay Python's handlers of SIGINT and SIGTERM, which run in the main thread, until after the block."""
    received: list[tuple[int, FrameType | None]] = []

    def hold_back(number: int, frame: FrameType | None) -> None:
        received.append((number, frame))

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    try:
        for number in handlers:
            signal.signal(number, hold_back)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signalled, frame in received:
            handlers[signal.Signals(signalled)](signalled, frame)


# Errors


@dataclass(frozen=True)
class _Lasting:
    """A permanent error, recognized by a pattern in pyarrow's message."""

    pattern: re.Pattern[str]
    reason: str
    advice: str


_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role (for gs:// GOOGLE_APPLICATION_CREDENTIALS), "
    "on all nodes"
)
_GOOGLE_NOT_FOUND = "google::cloud::Status(NOT_FOUND"
_NO_SUCH_FILE = re.compile(r"AWS Error NO_SUCH_KEY|^No such file or directory '|^Cannot use file '.*' as a directory")
"""Errors of a missing file or folder for which pyarrow does not raise FileNotFoundError."""
_LASTING = (
    _Lasting(
        re.compile(
            rf"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist|Bucket '.*' not found|{re.escape(_GOOGLE_NOT_FOUND)}"
        ),
        "there is no such bucket",
        "Create it, or name another bucket with --out.",
    ),
    _Lasting(
        re.compile(
            r"INVALID_ACCESS_KEY|InvalidAccessKey|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|"
            r"MISSING_AUTH|UNRECOGNIZED_CLIENT|ExpiredToken|InvalidToken|TOO_SKEWED|TooSkewed"
        ),
        "the store does not accept the credentials",
        f"{_CREDENTIALS}; look also at the machine's clock.",
    ),
    _Lasting(
        re.compile(r"ACCESS_DENIED|HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED"),
        "access is denied",
        f"{_CREDENTIALS}, and give them the right to list the bucket and to read, write and delete in it.",
    ),
    _Lasting(
        re.compile(r"HTTP status 30[1278]|PERMANENT_REDIRECT|AuthorizationHeaderMalformed"),
        "the bucket is in another region",
        "Add ?region=NAME to the URI.",
    ),
    _Lasting(
        re.compile(r"HTTP status 507|quota.{0,20}exceeded|storage.?full|insufficient storage|no space left", re.I),
        "the store is full",
        MAKE_ROOM,
    ),
    _Lasting(
        re.compile(r"curlCode: (51|58|60|77)\b"),
        "no secure connection can be made",
        "Name the certificates to trust with ?tls_ca_file_path=FILE, or use ?scheme=http for a store without TLS.",
    ),
    _Lasting(
        re.compile(r"HTTP status (400|404|405|411|412|413|416|501)|INVALID_PARAMETER|VALIDATION|MethodNotAllowed"),
        "the store refuses the request",
        "Check the URI and its options.",
    ),
)

"""A results folder's files, on a local disk or in an object store: written whole or not at all.

A location is a folder, `s3://bucket/path` or `gs://bucket/path`. An S3 location takes options in its query, as
`s3://bucket/path?endpoint_override=minio:9000&scheme=http`; credentials come from the usual AWS_* variables, files and
roles, or stand in the URI (`s3://key:secret@bucket`), which no message repeats.

Nothing connects before it is needed: pyarrow's S3 starts threads that do not survive a fork, so a process that forks
must not use a remote `Storage` before it does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import re
import secrets
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from sweeper.errors import UserError, sentence

_Result = TypeVar("_Result")

PATIENCE_S = 60.0
"""How long an operation is tried again while the store answers with passing errors."""
PREPARE_PATIENCE_S = 10.0
"""The same for `prepare`, for whose answer a person waits."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 8.0
# Arrow's own limit is 3 s without a byte, which a busy store's copy or the end of a large upload can exceed.
_REQUEST_TIMEOUT_S, _CONNECT_TIMEOUT_S = 30.0, 5.0
# Of each request, within a second; a part of a large upload is thereby tried again without the other parts.
_REQUEST_ATTEMPTS = 5
_CHUNK_BYTES = 32 * 2**20
_STALE = timedelta(days=1)
_TEMPORARY = re.compile(r"\..*\.tmp")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OPTIONS = {
    "s3": ("region", "scheme", "endpoint_override", "force_virtual_addressing", "tls_ca_file_path", "session_token"),
    "gs": ("scheme", "endpoint_override", "project_id"),
}
_SECRET_OPTIONS = ("session_token",)


@dataclass(frozen=True)
class Entry:
    """What a listing says of one file."""

    size: int
    """Bytes."""
    modified: datetime
    """UTC, by the store's clock; object stores round to seconds or milliseconds."""


class StorageError(UserError):
    """The store is out of reach, refuses, or is full; what may pass was tried again. Its text says what to do."""


class Storage:
    """The files below one location.

    Names of files are relative POSIX paths; a `ValueError` refuses absolute ones, `..`, `.`, empty segments, backslashes
    and NUL. A name that starts with a dot and ends in `.tmp` is a temporary one, and in no listing.

    Every method raises `StorageError` if the store is out of reach, refuses or is full, `FileNotFoundError` only where it
    says so. Passing errors (5xx, throttling, timeouts, cut connections, a stale NFS handle) are tried again, with
    growing random pauses, for `PATIENCE_S` seconds.

    Raises:
        UserError: a scheme or an option of the URI is unknown, or the URI names no bucket.
    """

    def __init__(self, location: str | Path) -> None:
        given = str(location)
        if "\0" in given or not _is_text(given):
            raise UserError(
                f"{given!r} is no place for results: it has a NUL, or bytes that are no text in UTF-8. Name another."
            )
        scheme = _SCHEME.match(given)
        self._url: SplitResult | None = None
        self._filesystem: Any = None
        self._patience_s: float | None = None
        if scheme is None or scheme[1] == "file":
            self._folder = _local_folder(given) if scheme else Path(given)
            self.uri = str(self._folder.absolute())
            self.location = str(self._folder)
        else:
            self._url = _parse(given, scheme[1])
            self.uri = given
            self.location = _redacted(self._url)

    def __repr__(self) -> str:
        return f"Storage({self.location!r})"

    def __str__(self) -> str:
        return self.location

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.uri,)

    @property
    def is_local(self) -> bool:
        return self._url is None

    @property
    def root(self) -> Path:
        """The folder of a local store.

        Raises:
            UserError: the store is remote.
        """
        if self._url is not None:
            raise UserError(f"{self.location} is no folder of this machine. Name a local folder for this.")
        return self._folder

    def read(self, name: str) -> bytes:
        """The whole content, of one version of the file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        segments = _segments(name)
        if self.is_local:
            return self._attempt("read", name, lambda: self._read_local(self._folder.joinpath(*segments)))
        return self._attempt("read", name, lambda: self._read_remote(name))

    def write(self, name: str, content: bytes | Path) -> None:
        """Write or replace a file with these bytes, or with a copy of this local file.

        Whoever reads meanwhile sees the old file or the whole new one, and if this fails, the old one. Of an upload
        that failed, an object store can keep parts that no listing shows, until the bucket's rule for incomplete uploads
        removes them.

        Raises:
            FileNotFoundError: the local file to copy is not there.
        """
        segments = _segments(name)
        if self.is_local:
            target = self._folder.joinpath(*segments)
            self._attempt("written", name, lambda: _write_local(target, content, replace_file))
        else:
            self._attempt("written", name, lambda: self._upload(name, content))

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one; says whether it was written.

        On a local disk, of several at once exactly one succeeds. In an object store this looks and then writes: of two
        within the same instants both can succeed, and the later content stays. Use it to save work, not to guard it.
        """
        segments = _segments(name)
        if not self.is_local:
            if self.exists(name):
                return False
            self.write(name, content)
            return True
        target = self._folder.joinpath(*segments)
        return self._attempt("written", name, lambda: _write_local(target, content, _link))

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is deleted already."""
        segments = _segments(name)
        if self.is_local:
            self._attempt("deleted", name, lambda: _delete_local(self._folder.joinpath(*segments)))
            return
        with contextlib.suppress(FileNotFoundError):
            self._attempt("deleted", name, lambda: self._remote().delete_file(self._key(name)))

    def move(self, name: str, to: str) -> None:
        """Rename a file, replacing what is there. In an object store a copy, of at most 5 GB, and a deletion.

        Raises:
            FileNotFoundError: there is no such file.
        """
        source, target = _segments(name), _segments(to)
        if self.is_local:
            self._attempt(
                "moved", name, lambda: _move_local(self._folder.joinpath(*source), self._folder.joinpath(*target))
            )
            return
        # Not the file system's own move: tried again after its copy was made and the answer lost, it misses its source.
        self._attempt("moved", name, lambda: self._remote().copy_file(self._key(name), self._key(to)))
        self.delete(name)

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self._size(name) is not None

    def has_content(self, name: str) -> bool:
        """Whether there is a file of that name with anything in it."""
        return bool(self._size(name))

    def entries(self, folder: str = "") -> dict[str, Entry]:
        """The files directly in a folder, by name, in one listing; none if there is no such folder. `""` is the root.

        Files whose names no method takes, and names that are no text, are not among them.
        """
        return {name: entry for name, entry in self._entries(folder).items() if not _TEMPORARY.fullmatch(name)}

    def prepare(self, folders: Sequence[str]) -> None:
        """Make the folders, remove what writers that died left behind a day ago or earlier, and try to write, read and delete.

        Raises:
            StorageError: one of that is not possible.
        """
        names = {folder: _segments(folder) for folder in folders}
        probe = f".probe-{secrets.token_hex(8)}.tmp"
        self._patience_s = PREPARE_PATIENCE_S
        try:
            if self.is_local:
                for folder in ("", *names):
                    path = self._folder.joinpath(*names.get(folder, ()))
                    self._attempt("written", folder, partial(path.mkdir, parents=True, exist_ok=True))
            self.write(probe, b"probe")
            now = self._entries("")[probe].modified  # the store's clock, which may not be ours
            if self.read(probe) != b"probe":
                raise StorageError(
                    f"{self.location} does not give back what was written. Name another place with --out."
                )
            self.delete(probe)
            # Uploads to an object store have no temporary names; only probes do, and those are at the root.
            for folder in ("", *names) if self.is_local else ("",):
                for name, entry in self._entries(folder, temporary=True).items():
                    if now - entry.modified > _STALE:
                        self.delete(f"{folder}/{name}" if folder else name)
        except (FileNotFoundError, KeyError):
            raise StorageError(
                f"{self.location} does not show what was just written there. Is something else deleting its files, "
                "or is it a view of the store that lags behind? Name another place with --out."
            ) from None
        finally:
            self._patience_s = None

    # Local

    @staticmethod
    def _read_local(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno not in _NO_FILE_ERRNOS:
                raise
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None

    def _entries(self, folder: str, temporary: bool = False) -> dict[str, Entry]:
        """All files that a name leads to; or only the temporary ones, which saves looking at the others on a local disk."""
        segments = _segments(folder) if folder else ()
        try:
            if self.is_local:
                path = self._folder.joinpath(*segments)
                return self._attempt("listed", folder, lambda: _scan(path, temporary))
            entries = self._attempt("listed", folder, lambda: self._list_remote(folder))
        except FileNotFoundError:
            return {}
        listed = {name: entry for name, entry in entries.items() if _leads_to_a_file(name)}
        return {name: entry for name, entry in listed.items() if not temporary or _TEMPORARY.fullmatch(name)}

    # Remote

    def _size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        segments = _segments(name)
        if self.is_local:
            return self._attempt("read", name, lambda: _size_of_file(self._folder.joinpath(*segments)))
        info = self._attempt("read", name, lambda: self._remote().get_file_info(self._key(name)))
        return int(info.size) if info.is_file else None

    def _remote(self) -> Any:
        """The file system, connected on first use."""
        if self._filesystem is None:
            assert self._url is not None
            try:
                self._filesystem = _connect(self._url)
            except ValueError as error:  # pyarrow's ArrowInvalid, which can quote the options
                raise UserError(f"{self.location} cannot be used: {sentence(self._without_secrets(error))}") from None
        return self._filesystem

    def _key(self, name: str) -> str:
        assert self._url is not None
        return "/".join(filter(None, (_bucket(self._url), unquote(self._url.path).strip("/"), name)))

    def _read_remote(self, name: str) -> bytes:
        assert self._url is not None
        with self._remote().open_input_stream(self._key(name)) as stream:
            before = None if self._url.scheme == "gs" else stream.metadata()
            content: bytes = stream.read()
        if before is None:  # one request, which Google answers with one version
            return content
        # From S3 Arrow asks for the size and then for so many bytes. Of a file that is replaced in between by a larger one
        # it would give the beginning only: so look whether it is still the same one.
        with self._remote().open_input_stream(self._key(name)) as stream:
            if stream.metadata() != before:
                raise OSError(errno.EAGAIN, "it was replaced while it was read")
        return content

    def _list_remote(self, folder: str) -> dict[str, Entry]:
        from pyarrow.fs import FileSelector

        # allow_not_found would take a bucket that is not there for an empty one.
        listing = self._remote().get_file_info(FileSelector(self._key(folder)))
        return {info.base_name: Entry(info.size, info.mtime.astimezone(UTC)) for info in listing if info.is_file}

    def _upload(self, name: str, content: bytes | Path) -> None:
        """One attempt, which a Ctrl-C does not interrupt: an upload is finished once begun."""
        filesystem, key = self._remote(), self._key(name)
        pieces = iter([content]) if isinstance(content, bytes) else self._pieces(name, content)
        with _signals_held_back():
            _put(filesystem, key, pieces)

    def _pieces(self, name: str, path: Path) -> Iterator[bytes]:
        """The file's content, for memory's sake in pieces; a `StorageError` if that is not what its size promised."""
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
            raise StorageError(
                f"{self._where(name)} cannot be written: {path}, its source, cannot be read: {sentence(reason)} "
                "Nothing was written."
            )

    # Errors

    def _attempt(self, doing: str, name: str, work: Callable[[], _Result]) -> _Result:
        """What `work` returns, tried again while its errors may pass. `doing` completes "cannot be …"."""
        patience_s = PATIENCE_S if self._patience_s is None else self._patience_s
        started = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return work()
            except FileNotFoundError as error:
                if not self.is_local and doing in ("listed", "written") and _GOOGLE_NOT_FOUND in str(error):
                    # Google's way to say it of a bucket: of a file neither of these asks for one
                    raise self._error(doing, name, OSError(str(error)), 0.0) from None
                raise
            except OSError as error:
                if error.errno is None and _NO_SUCH_FILE.search(str(error)):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._where(name)) from None
                tried_s = time.monotonic() - started
                if not self._may_pass(error) or tried_s + pause_s > patience_s:
                    raise self._error(doing, name, error, tried_s) from None
            time.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _may_pass(self, error: OSError) -> bool:
        if self.is_local or error.errno is not None:
            return error.errno in _PASSING_ERRNOS
        # An unknown error of a store is more often a passing one than not, and a lost hour of training costs more
        # than a minute of waiting.
        return not any(problem.pattern.search(_answer(error)) for problem in _LASTING)

    def _error(self, doing: str, name: str, error: OSError, tried_s: float) -> StorageError:
        detail = (self._without_secrets(error).splitlines() or [type(error).__name__])[0]
        if error.errno is not None:
            detail = error.strerror or detail
            advice = "Name another place with --out."
            if error.errno in _FULL_ERRNOS:
                advice = "Make room there, or name another place with --out; what is finished there is kept."
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                advice = "Give yourself the permission there, or name another place with --out."
            return StorageError(f"{self._where(name)} cannot be {doing}: {sentence(detail)} {advice}")
        for problem in _LASTING:
            if problem.pattern.search(_answer(error)):
                text = f"{self._where(name)} cannot be {doing}: {problem.reason}. {problem.advice} The store says: {sentence(detail)}"
                return StorageError(text)
        return StorageError(
            f"{self._where(name)} cannot be {doing}: the store does not answer as it should, and was tried for {tried_s:.0f} s. "
            "Check the network, the endpoint and the store's state, then run the same command again. The last answer: "
            f"{sentence(detail)}"
        )

    def _where(self, name: str) -> str:
        base, mark, query = self.location.partition("?") if self._url is not None else (self.location, "", "")
        return f"{base.rstrip('/')}/{name}{mark}{query}" if name else self.location

    def _without_secrets(self, error: Exception) -> str:
        text = str(error)
        if self._url is not None:
            hidden = [self._url.username, self._url.password]
            hidden += [value for option, value in _options(self._url) if option in _SECRET_OPTIONS]
            for each in filter(None, hidden):
                text = text.replace(each, "***").replace(unquote(each), "***")
        return text


@dataclass(frozen=True)
class _Problem:
    """An error that does not pass, by what pyarrow's message has in it."""

    pattern: re.Pattern[str]
    reason: str
    advice: str


_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role (for gs:// GOOGLE_APPLICATION_CREDENTIALS), "
    "on all nodes"
)
_GOOGLE_NOT_FOUND = "google::cloud::Status(NOT_FOUND"
_NO_SUCH_FILE = re.compile(r"AWS Error NO_SUCH_KEY|^No such file or directory '|^Cannot use file '.*' as a directory")
"""Of a file or folder; but for these Arrow raises a FileNotFoundError."""
_LASTING = (
    _Problem(
        re.compile(
            rf"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist|Bucket '.*' not found|{re.escape(_GOOGLE_NOT_FOUND)}"
        ),
        "there is no such bucket",
        "Create it, or name another with --out.",
    ),
    _Problem(
        re.compile(
            r"INVALID_ACCESS_KEY|InvalidAccessKey|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|"
            r"MISSING_AUTH|UNRECOGNIZED_CLIENT|ExpiredToken|InvalidToken|TOO_SKEWED|TooSkewed"
        ),
        "the store does not accept the credentials",
        f"{_CREDENTIALS}; look also at the machine's clock.",
    ),
    _Problem(
        re.compile(r"ACCESS_DENIED|HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED"),
        "access is denied",
        f"{_CREDENTIALS}, and give them the right to list the bucket and to read, write and delete in it.",
    ),
    _Problem(
        re.compile(r"HTTP status 30[1278]|PERMANENT_REDIRECT|AuthorizationHeaderMalformed"),
        "the bucket is in another region",
        "Add ?region=NAME to the URI.",
    ),
    _Problem(
        re.compile(r"HTTP status 507|quota.{0,20}exceeded|storage.?full|insufficient storage|no space left", re.I),
        "the store is full",
        "Make room there, or name another place with --out; what is finished there is kept.",
    ),
    _Problem(
        re.compile(r"curlCode: (51|58|60|77)\b"),
        "no secure connection can be made",
        "Name the certificates to trust with ?tls_ca_file_path=FILE, or use ?scheme=http for a store without TLS.",
    ),
    _Problem(
        re.compile(r"HTTP status (400|404|405|411|412|413|416|501)|INVALID_PARAMETER|VALIDATION|MethodNotAllowed"),
        "the store refuses the request",
        "Check the URI and its options.",
    ),
)
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_FILE_ERRNOS = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
"""What a path answers that leads to no file: to nothing, to a folder, or round in circles."""
_PASSING_ERRNOS = {errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET}


def _answer(error: OSError) -> str:
    """What the store said, without the name of the file before it, which could look like anything."""
    text = str(error)
    return text.partition("AWS Error ")[2] or text


def _segments(name: str) -> tuple[str, ...]:
    """The parts of a name.

    Raises:
        ValueError: the name could lead out of the store, or is none.
    """
    segments = tuple(name.split("/"))
    if not {"", ".", ".."}.isdisjoint(segments) or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file in a store; it must be a relative path without '..' and '\\'")
    return segments


def _leads_to_a_file(name: str) -> bool:
    """Whether a name in a listing can be given to a `Storage`."""
    return "\\" not in name and _is_text(name)


# Locations


def _is_text(name: str) -> bool:
    """Whether a name is text: names of files can be other bytes, which Python shows as halves of surrogate pairs."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _local_folder(uri: str) -> Path:
    url = _split(uri, "file")
    if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
        raise UserError(f"{uri!r} names another machine. Write file:///path, or the path alone.")
    return Path(unquote(url.path))


def _split(uri: str, scheme: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError:  # brackets, as of an IPv6 address, or characters that stand for others
        raise UserError(
            f"The {scheme}:// URI cannot be parsed: what is before the path may have letters, digits, '-' and '.' only."
        ) from None


def _parse(uri: str, scheme: str) -> SplitResult:
    # Messages here must not repeat the URI: it can have credentials, and not where they belong.
    if scheme not in _OPTIONS:
        raise UserError(
            f"Unknown scheme '{scheme}://' of a place for results. Allowed: a folder, s3://bucket/path, gs://bucket/path."
        )
    url = _split(uri, scheme)
    if not _BUCKET.fullmatch(_bucket(url)):
        raise UserError(
            f"The {scheme}:// URI names no bucket. Write {scheme}://bucket/path. In a key or secret write / as %2F, ? as %3F, "
            "# as %23, @ as %40."
        )
    try:
        options = _options(url)
    except ValueError:
        raise UserError(
            f"The options of the {scheme}:// URI cannot be parsed. Write {scheme}://bucket/path?option=value&option=value."
        ) from None
    if url.fragment:
        raise UserError(f"The {scheme}:// URI has a '#'. Write %23 for one in a name.")
    for option, _ in options:
        if option not in _OPTIONS[scheme]:
            raise UserError(
                f"Unknown option '{option}' of a {scheme}:// URI. Available: {', '.join(_OPTIONS[scheme])}."
            )
    try:
        _segments("/".join(filter(None, (_bucket(url), unquote(url.path).strip("/")))))
    except ValueError:
        raise UserError(f"{_redacted(url)} has '..', '.', '//' or '\\' in its path. Write it without.") from None
    return url


def _bucket(url: SplitResult) -> str:
    return url.netloc.rpartition("@")[2]


def _options(url: SplitResult) -> list[tuple[str, str]]:
    # A plus sign stands for itself, as tokens have them.
    return parse_qsl(url.query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(url.query))


def _redacted(url: SplitResult) -> str:
    options = [(name, "***" if name in _SECRET_OPTIONS else value) for name, value in _options(url)]
    netloc = f"***@{_bucket(url)}" if "@" in url.netloc else url.netloc
    return urlunsplit((url.scheme, netloc, url.path, urlencode(options, safe="*:/"), ""))


def _connect(url: SplitResult) -> Any:
    """pyarrow's file system for the URL. Importing pyarrow.fs starts nothing; making an S3FileSystem does."""
    from pyarrow import fs

    options: dict[str, Any] = dict(_options(url))
    if url.scheme == "gs":
        return fs.GcsFileSystem(
            anonymous=url.username == "anonymous", retry_time_limit=timedelta(seconds=PREPARE_PATIENCE_S), **options
        )
    if "force_virtual_addressing" in options:
        options["force_virtual_addressing"] = options["force_virtual_addressing"].lower() in ("1", "true")
    endpoint = (
        options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    if "region" not in options and not endpoint:
        options["region"] = fs.resolve_s3_region(_bucket(url))
    return fs.S3FileSystem(
        access_key=unquote(url.username) if url.username else None,
        secret_key=unquote(url.password) if url.password else None,
        request_timeout=_REQUEST_TIMEOUT_S,
        connect_timeout=_CONNECT_TIMEOUT_S,
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=_REQUEST_ATTEMPTS),
        allow_delayed_open=True,  # small files are one request, and appear with it
        **options,
    )


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Python's handlers of SIGINT and SIGTERM, which run in the main thread, hear of one after the block only."""
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


def _put(filesystem: Any, key: str, pieces: Iterator[bytes]) -> None:
    """Upload one object."""
    first = next(pieces, b"")  # a source that cannot be read at all fails before anything is opened
    stream = filesystem.open_output_stream(key)
    try:
        stream.write(first)
        for piece in pieces:
            stream.flush()  # waits for what is on its way, which bounds the memory
            stream.write(piece)
    except BaseException:
        # To close the stream would make what is there so far the object, and so would its destructor. pyarrow has no
        # way to abort, so it must never be destroyed, not even when the interpreter ends: one reference too many.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
        raise
    stream.close()


# Local files


def _write_local(target: Path, content: bytes | Path, publish: Callable[[Path, Path], bool]) -> bool:
    """Write under a temporary name in the same folder, then `publish` that as the target; says whether it did."""
    prefix = f".{target.name[:40]}."
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=".tmp")
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, _CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        return publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(temporary: Path, target: Path) -> bool:
    """Give a file another's name, in whose place it comes, even where that is a folder."""
    try:
        temporary.replace(target)
    except IsADirectoryError:
        # Nothing here makes a folder of that name, so it is damage: kept, for whoever made it, under another name.
        target.replace(target.with_name(f"{target.name[:200]}.folder-{secrets.token_hex(4)}"))
        temporary.replace(target)
    return True


def _link(temporary: Path, target: Path) -> bool:
    """Give the file its name if nothing else has it."""
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        # NFS says so, too, where it did link and its first answer was lost.
        return temporary.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: claim the name, then fill it.
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        temporary.replace(target)
    return True


def _move_local(source: Path, target: Path) -> None:
    if _size_of_file(source) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(source, target)


def _delete_local(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        if error.errno not in _NO_FILE_ERRNOS:
            raise


def _size_of_file(path: Path) -> int | None:
    """None where there is no file; but a folder that may not be entered is an error, not a no."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno not in _NO_FILE_ERRNOS:
            raise
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _time(seconds: float) -> datetime:
    """The time of a file; any file system's, whose years can be beyond Python's."""
    return datetime.fromtimestamp(min(max(seconds, 0.0), 2.0**37), UTC)


def _scan(folder: Path, temporary: bool) -> dict[str, Entry]:
    entries = {}
    try:
        with os.scandir(folder) as scan:
            for each in scan:
                if not _leads_to_a_file(each.name) or (temporary and not _TEMPORARY.fullmatch(each.name)):
                    continue
                try:
                    if each.is_file():
                        status = each.stat()
                        entries[each.name] = Entry(status.st_size, _time(status.st_mtime))
                except OSError as error:  # deleted or renamed since, or a link to itself
                    if error.errno not in _NO_FILE_ERRNOS:
                        raise
    except NotADirectoryError:
        return {}
    return entries

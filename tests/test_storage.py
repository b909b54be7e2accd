"""Files on a local disk and in an object store: whole or not at all, retried, with clear errors."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from s3_server import KEY, SECRET, Fault, S3Server, start_s3_server

from sweeper.errors import UserError
from sweeper.storage import Entry, Storage, StorageError, remote
from sweeper.storage import storage as storage_module

__all__ = ["start_s3_server"]  # the fixture `s3_server`

LARGE = os.urandom(2**20) * 25
"""More than two of an S3 upload's parts."""


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    """The options of a URI that lead to a server that answers as Google's; it has the bucket `bucket`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "gcp_storage_emulator",
        "start",
        "--host=127.0.0.1",
        f"--port={port}",
        "--in-memory",
    ]
    server = subprocess.Popen([*command, "--default-bucket=bucket", "--quiet"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield f"endpoint_override=127.0.0.1:{port}&scheme=http"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=["local", "s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty store of each kind."""
    if request.param == "local":
        return Storage(tmp_path / "store")
    if request.param == "gs":
        return Storage(f"gs://anonymous@bucket/{secrets.token_hex(8)}/a b?{request.getfixturevalue('google')}")
    server: S3Server = request.getfixturevalue("s3_server")
    return Storage(server.uri("results/a b"))


@pytest.fixture
def s3(s3_server: S3Server) -> Storage:
    return Storage(s3_server.uri("results"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations give up soon."""
    monkeypatch.setattr(storage_module, "PATIENCE_S", 0.1)
    monkeypatch.setattr(storage_module, "PREPARE_PATIENCE_S", 0.1)


# What both kinds do


@pytest.mark.parametrize("content", [b"", b"x", b"\0\r\n" * 1000], ids=["empty", "one byte", "binary"])
def test_what_is_written_is_read(store: Storage, content: bytes) -> None:
    store.write("parts/trials/a.parquet", b"before, and longer than what follows" * 100)
    store.write("parts/trials/a.parquet", content)
    assert store.read("parts/trials/a.parquet") == content
    assert store.exists("parts/trials/a.parquet")
    assert store.entries("parts/trials")["a.parquet"].size == len(content)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\"), min_size=1, max_size=40),
    content=st.binary(max_size=200),
)
@example(name="a b+c%2F?#&=*", content=b"x")
@example(name="übergrößenträger 試行", content=b"x")
def test_any_name_is_that_name(store: Storage, name: str, content: bytes) -> None:
    if name in (".", "..") or (name.startswith(".") and name.endswith(".tmp")):
        return
    store.write(f"names/{name}", content)
    assert store.read(f"names/{name}") == content
    assert name in store.entries("names")
    store.delete(f"names/{name}")
    assert store.entries("names") == {}


@pytest.mark.parametrize(
    "name", ["", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", "a//b", "a/", ".", "./a", "a/./b", "a\\b", "a\0b"]
)
def test_names_that_could_lead_elsewhere_are_refused(store: Storage, name: str) -> None:
    operations: list[Callable[[], object]] = [
        lambda: store.read(name),
        lambda: store.write(name, b""),
        lambda: store.create(name, b""),
        lambda: store.delete(name),
        lambda: store.move(name, "a"),
        lambda: store.move("a", name),
        lambda: store.exists(name),
        lambda: store.prepare([name]) if name else store.read(name),
        lambda: store.entries(name) if name else store.read(name),
    ]
    for operation in operations:
        with pytest.raises(ValueError, match="not a valid file name in a store"):
            operation()


def test_what_is_missing(store: Storage) -> None:
    store.write("folder/file", b"x")
    for name in ("nothing", "folder", "folder/nothing", "no/such/folder"):
        assert not store.exists(name)
        with pytest.raises(FileNotFoundError):
            store.read(name)
        if name != "folder":
            store.delete(name)
        with pytest.raises(FileNotFoundError):
            store.move(name, "elsewhere")
    assert store.entries("nothing") == {}
    assert store.entries("folder/file") == {}
    with pytest.raises(FileNotFoundError):
        store.write("a", Path("no such file"))
    assert not store.exists("a")


def test_a_listing_has_the_files_directly_in_a_folder_with_the_store_s_times(store: Storage) -> None:
    store.write("parts/a", b"12345")
    store.write("parts/b.c", b"")
    store.write("parts/deeper/d", b"1")
    store.write("parts/.left.abc.tmp", b"1")
    entries = store.entries("parts")
    assert {name: entry.size for name, entry in entries.items()} == {"a": 5, "b.c": 0}
    for entry in entries.values():
        assert isinstance(entry, Entry)
        assert entry.modified.tzinfo is UTC
        assert abs(datetime.now(UTC) - entry.modified) < timedelta(minutes=1)
    store.write("top", b"1")
    assert list(store.entries("")) == ["top"]
    assert list(store.entries()) == ["top"]


def test_move_and_delete(store: Storage) -> None:
    store.write("a", b"new")
    store.write("there/b", b"old")
    store.move("a", "there/b")
    assert store.read("there/b") == b"new"
    assert not store.exists("a")
    store.move("there/b", "another/folder/c")
    assert store.entries("there") == {}
    store.delete("another/folder/c")
    store.delete("another/folder/c")
    assert not store.exists("another/folder/c")


def test_create_does_not_replace(store: Storage) -> None:
    assert store.create("claims/a", b"first")
    assert not store.create("claims/a", b"second")
    assert store.read("claims/a") == b"first"
    store.delete("claims/a")
    assert store.create("claims/a", b"third")


@pytest.mark.slow
def test_a_large_file_is_copied(store: Storage, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(LARGE)
    store.write("weights/a", source)
    assert store.read("weights/a") == LARGE


@pytest.mark.slow
def test_readers_see_the_old_or_the_new_content_whole(store: Storage) -> None:
    def content(version: int) -> bytes:
        return f"{version:08}".encode() * (1 + version * 7919 % 5000)

    draws = random.Random(0)  # without a pause now and then, a reader of a remote store starts anew each time
    store.write("a", content(0))
    done = threading.Event()
    seen = []

    def read() -> None:
        while not done.is_set():
            seen.append(store.read("a"))

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for version in range(1, 25):
            store.write("a", content(version))
            time.sleep(draws.uniform(0, 0.05))
        done.set()
        for reader in readers:
            reader.result()
    assert len(set(seen)) > 2
    assert all(each == content(int(each[:8])) for each in seen)


def test_prepare_leaves_nothing_of_its_own(store: Storage) -> None:
    store.prepare(["parts/trials", "weights"])
    store.prepare(["parts/trials", "weights"])
    assert store.entries("") == store.entries("parts/trials") == {}
    if store.is_local:
        assert (store.root / "parts" / "trials").is_dir()
        assert [path.name for path in store.root.iterdir() if path.is_file()] == []


def test_a_store_travels_by_its_location(store: Storage) -> None:
    store.write("a", b"1")  # connected
    twin = pickle.loads(pickle.dumps(store))
    assert twin.uri == store.uri
    assert twin.is_local == store.is_local
    assert twin.read("a") == b"1"
    assert Storage(store.uri).read("a") == b"1"


# Locations


def test_local_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = Storage("results")
    assert relative.location == str(relative) == "results"
    assert relative.root == Path("results")
    assert relative.uri == str(tmp_path / "results")
    assert Storage((tmp_path / "a b").as_uri()).root == tmp_path / "a b"
    relative.write("a", b"1")
    monkeypatch.chdir("/")
    assert Storage(relative.uri).read("a") == b"1"


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("ftp://host/x", r"Unknown scheme 'ftp://'.* a folder, s3://bucket/path, gs://bucket/path"),
        ("https://me:hunter2@host/x", "Unknown scheme 'https://'"),
        ("s3://", "names no bucket"),
        ("s3:/bucket/x", "names no bucket"),
        ("s3://me:hunter2@/x", "names no bucket"),
        ("s3://me:hunter2/rest@bucket/x", "names no bucket.*%2F"),
        ("s3://me:hunter2?rest@bucket/x", "names no bucket.*%3F"),
        (
            "s3://bucket/x?secret_kee=hunter2",
            "Unknown option 'secret_kee' of a s3:// URI. Available: region, scheme, endp",
        ),
        ("s3://bucket/x?hunter2", "cannot be parsed"),
        ("gs://bucket/x?region=a", "Unknown option 'region' of a gs:// URI"),
        ("file://host/x", "another machine"),
    ],
)
def test_locations_that_are_refused(location: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as error:
        Storage(location)
    assert "hunter2" not in str(error.value)


def test_a_remote_path_cannot_climb() -> None:
    for location in ("s3://bucket/a/../b", "s3://bucket/a//b", "s3://bucket/%2e%2e/b"):
        with pytest.raises(UserError, match="in its path"):
            Storage(location)


def test_only_a_local_store_has_a_folder() -> None:
    with pytest.raises(UserError, match="local folder"):
        _ = Storage("s3://bucket/x").root


def test_no_message_has_a_secret(s3_server: S3Server, impatient: None) -> None:
    stores = [
        Storage(s3_server.uri("x", bucket="missing-bucket")),
        Storage(s3_server.uri("x") + "&session_token=hunter2%2F+"),
        Storage(f"s3://{KEY}:{SECRET}@bucket/x?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:1"),
        Storage(f"s3://{KEY}:{SECRET}@bucket/x?region=us-east-1&scheme=ftp&endpoint_override=127.0.0.1:1"),
    ]
    texts = []
    for store in stores:
        texts += [repr(store), str(store), store.location]
        with s3_server.failing(Fault("403")), pytest.raises(UserError) as error:
            store.prepare(["a"])
        texts += [str(error.value), repr(error.value)]
        assert error.value.__cause__ is None
        assert error.value.__suppress_context__
    assert not [text for text in texts if KEY in text or SECRET in text or "hunter2" in text]
    assert all(SECRET in store.uri for store in stores)


# Local disks


def test_of_several_that_create_at_once_one_succeeds(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for turn in range(50):
            barrier = threading.Barrier(8)

            def create(number: int, name: str = f"claims/{turn}", barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return store.create(name, b"%d" % number)

            created = list(pool.map(create, range(8)))
            assert sum(created) == 1
            assert store.read(f"claims/{turn}") == b"%d" % created.index(True)
    assert len(list((tmp_path / "claims").iterdir())) == 50


def test_without_hard_links_one_succeeds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    store = Storage(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda number: store.create("a", b"%d" % number), range(8))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert store.read("a")


def test_files_are_readable_by_all(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    store.write("a", b"1")
    store.create("b", b"1")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_prepare_removes_what_dead_writers_left_a_day_ago(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    ages_h = {".a.1.tmp": 25, ".b.2.tmp": 23, "c.tmp": 25, ".d": 25}
    for folder in (tmp_path, tmp_path / "parts"):
        for name, age_h in ages_h.items():
            (folder / name).write_bytes(b"1")
            os.utime(folder / name, (time.time() - age_h * 3600,) * 2)
    Storage(tmp_path).prepare(["parts"])
    for folder in (tmp_path, tmp_path / "parts"):
        assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [".b.2.tmp", ".d", "c.tmp"]


def test_a_full_disk(mount: Callable[[str], Path], tmp_path: Path) -> None:
    folder = mount("size=64k")
    store = Storage(folder)
    store.write("a", b"old")
    source = tmp_path / "source"
    source.write_bytes(LARGE[:200_000])
    for content in (LARGE[:200_000], source):
        with pytest.raises(
            StorageError, match=r"a cannot be written: No space left on device\. Make room there"
        ) as error:
            store.write("a", content)
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    with pytest.raises(StorageError):
        store.create("b", LARGE[:200_000])
    assert store.read("a") == b"old"
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(StorageError, match="File too large\\. Make room there"):
            store.write("a", b"x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_disk(mount: Callable[[str], Path]) -> None:
    store = Storage(mount("ro"))
    for operation in (
        lambda: store.prepare(["parts"]),
        lambda: store.write("a", b"1"),
        lambda: store.create("a", b"1"),
    ):
        with pytest.raises(StorageError, match=r"cannot be written: Read-only file system\. Give yourself"):
            operation()


def test_a_folder_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(StorageError, match="results cannot be written: File exists"):
        Storage(tmp_path / "results").prepare([])
    with pytest.raises(StorageError, match="results/a cannot be written: Not a directory"):
        Storage(tmp_path / "results").write("a", b"1")


def test_a_stale_handle_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(tmp_path)
    store.write("a", b"1")
    read, failures = Path.read_bytes, [errno.ESTALE, errno.ESTALE]

    def stale(path: Path) -> bytes:
        if failures:
            raise OSError(failures.pop(), "Stale file handle")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    assert store.read("a") == b"1"


def test_many_files_are_listed_quickly(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    first = folder / "0"
    first.write_bytes(b"123")
    for number in range(1, 20_000):
        os.link(first, folder / str(number))
    start = time.monotonic()
    entries = Storage(tmp_path).entries("parts")
    assert time.monotonic() - start < 1.5
    assert len(entries) == 20_000


# Object stores


def everything(store: Storage, source: Path) -> None:
    """Every operation, with what it must give."""
    store.prepare(["parts"])
    for number in range(5):
        store.write(f"parts/{number}", b"%d" % number)
        assert store.read(f"parts/{number}") == b"%d" % number
    store.write("large", source)
    assert store.read("large") == source.read_bytes()
    store.create("created", b"1")
    store.move("parts/0", "moved")
    store.delete("parts/1")
    assert set(store.entries("parts")) == {"2", "3", "4"}
    assert store.exists("moved")
    assert not store.exists("parts/0")
    assert store.read("created") == b"1"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault("500", rate=0.3, seed=1),
        Fault("503", rate=0.3, seed=2),
        Fault("reset", rate=0.3, seed=3),
        Fault("cut", rate=0.3, seed=4),
        Fault("slow", rate=0.1, seed=5, delay_s=2.0),
    ],
    ids=lambda fault: fault.kind,
)
def test_passing_errors_are_tried_again(
    s3: Storage, s3_server: S3Server, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_REQUEST_TIMEOUT_S", 0.5)  # which a slow answer exceeds
    source = tmp_path / "source"
    source.write_bytes(LARGE[: 11 * 2**20] if fault.kind == "500" else LARGE[: 2**20])
    with s3_server.failing(fault):
        everything(s3, source)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"), [("500", "partNumber=2"), ("403", "partNumber=2"), ("reset", "POST /bucket")]
)
def test_a_failed_upload_leaves_the_old_object(
    s3: Storage, s3_server: S3Server, kind: str, part: str, tmp_path: Path, impatient: None
) -> None:
    source = tmp_path / "source"
    source.write_bytes(LARGE[: 11 * 2**20])
    s3.write("old", b"old")
    with s3_server.failing(Fault(kind, matches=part)):
        with pytest.raises(StorageError):
            s3.write("old", source)
        with pytest.raises(StorageError):
            s3.write("new", source.read_bytes())
    assert s3.read("old") == b"old"
    assert list(s3.entries("")) == ["old"]
    s3.write("new", source)
    assert s3.entries("")["new"].size == 11 * 2**20


def test_a_source_that_fails_midway_leaves_no_object(
    s3: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def pieces(*_: object) -> Iterator[bytes]:
        yield LARGE[: 11 * 2**20]
        yield LARGE[:100]
        raise StorageError("the source is gone")

    source = tmp_path / "source"
    source.write_bytes(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_pieces", pieces)
        with pytest.raises(StorageError, match="the source is gone"):
            s3.write("a", source)
    assert s3.entries("") == {}


def test_a_source_that_grows_meanwhile_is_refused(s3: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1" * 100)
    monkeypatch.setattr(remote, "_CHUNK_BYTES", 10)
    for edit in (lambda: source.write_bytes(b"2" * 200), lambda: os.truncate(source, 20)):
        source.write_bytes(b"1" * 100)
        pieces = remote._pieces(source)
        next(pieces)
        edit()
        with pytest.raises(StorageError, match="its size changed while it was read"):
            list(pieces)


def test_the_end_of_the_interpreter_completes_no_half_upload(s3: Storage) -> None:
    code = """
import sys
from sweeper.storage import location, remote
files = remote.RemoteFiles(location.parse(sys.argv[1]))
def pieces():
    yield b"1" * 2**24
    raise KeyboardInterrupt
try:
    remote._put(files._filesystem(), files._key("half"), pieces())
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code, s3.uri], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "interrupted\n"
    assert s3.entries("") == {}


def test_an_interrupted_upload_is_finished_first(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    put = remote._put

    def interrupted_put(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)
        put(*arguments)

    monkeypatch.setattr(remote, "_put", interrupted_put)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            s3.write("a", b"whole")
    finally:
        signal.signal(signal.SIGINT, before)
    assert s3.read("a") == b"whole"


def test_small_files_are_one_request(s3: Storage, s3_server: S3Server) -> None:
    s3.exists("connect")
    s3_server.requests()
    s3.write("a", b"1" * 10**6)
    assert [request.split()[0] for request in s3_server.requests()] == ["PUT"]
    s3.entries("")
    assert len(s3_server.requests()) == 1


def test_a_listing_has_all_pages(s3: Storage, s3_server: S3Server) -> None:
    s3_server.fill(s3.uri, [f"parts/{number:04}" for number in range(2500)])
    assert len(s3.entries("parts")) == 2500


def test_names_that_no_method_takes_are_in_no_listing(s3: Storage, s3_server: S3Server) -> None:
    s3_server.fill(s3.uri, ["parts/a", "parts/.", "parts/..", "parts/", "parts//b", "parts/../c", "parts/back\\slash"])
    assert list(s3.entries("parts")) == ["a"]


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("403", "access is denied. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("401", "the store does not accept the credentials. Set AWS_ACCESS_KEY_ID"),
    ],
)
def test_lasting_errors_are_quick_and_clear(s3: Storage, s3_server: S3Server, kind: str, problem: str) -> None:
    s3.write("a", b"1")
    operations: list[Callable[[], object]] = [lambda: s3.prepare([]), lambda: s3.write("a", b"2")]
    operations += [lambda: s3.entries("")]
    start = time.monotonic()
    with s3_server.failing(Fault(kind)):
        for operation in operations:
            with pytest.raises(StorageError) as error:
                operation()
            assert problem in str(error.value)
            assert "\n" not in str(error.value)
        for operation in (lambda: s3.read("a"), lambda: s3.exists("a"), lambda: s3.delete("a")):
            with pytest.raises(StorageError, match="access is denied"):  # the answer to a HEAD has no details
                operation()
    assert time.monotonic() - start < 2
    assert s3.read("a") == b"1"


def test_a_missing_bucket_is_no_empty_store(s3_server: S3Server) -> None:
    store = Storage(s3_server.uri("x", bucket="missing-bucket"))
    start = time.monotonic()
    for operation in (lambda: store.entries("parts"), lambda: store.prepare(["parts"]), lambda: store.write("a", b"")):
        with pytest.raises(
            StorageError, match=r"there is no such bucket\. Create it, or name another bucket with --out"
        ):
            operation()
    assert time.monotonic() - start < 2


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_store_out_of_reach() -> None:
    store = Storage("s3://bucket/x?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:1")
    for operation in (lambda: store.prepare([]), lambda: store.read("a")):
        with pytest.raises(StorageError, match=r"the store does not answer as it should.*Could not connect"):
            operation()


def test_names_do_not_decide_what_an_error_means(s3: Storage, s3_server: S3Server) -> None:
    with s3_server.failing(Fault("500", at_most=6)):
        s3.write("NO_SUCH_BUCKET/ACCESS_DENIED HTTP status 403", b"1")
    assert s3.read("NO_SUCH_BUCKET/ACCESS_DENIED HTTP status 403") == b"1"


def test_nothing_connects_before_the_first_use(s3: Storage) -> None:
    code = """
import os, pickle, sys
def threads():
    return sorted(open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task"))
import pyarrow
before = threads()
import sweeper.storage
store = pickle.loads(pickle.dumps(sweeper.storage.Storage(sys.argv[1])))
repr(store), store.location
assert threads() == before, threads()
assert not {"torch", "ray", "pyarrow.fs"} & set(sys.modules)
child = os.fork()
if child == 0:
    store.write("child", b"1")
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
store.write("parent", b"1")
"""
    subprocess.run([sys.executable, "-c", code, s3.uri], check=True, timeout=60)
    assert set(s3.entries("")) == {"child", "parent"}


def test_a_google_bucket_that_is_not_there_is_told(google: str) -> None:
    nowhere = Storage(f"gs://anonymous@nowhere/results?{google}")
    for attempt in (lambda: nowhere.prepare(["a"]), lambda: nowhere.write("a/x", b""), lambda: nowhere.entries("a")):
        with pytest.raises(StorageError, match="there is no such bucket"):
            attempt()

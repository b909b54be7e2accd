"""The results folder, on a disk or in an object store: what is recorded, written whole or not at all, and gathered.

    RESULTS/
      sweep.json                 which targets and attacks the sweep has now
      parts/TABLE/KEY.parquet    one file per target (KEY is its id) or per attack (KEY is target.attack);
                                 those of tpvd are made when tables are gathered
      weights/TARGET_ID.safetensors
      checkpoints/TARGET_ID.safetensors   of trainings that are under way
      attempts/TARGET_ID.json    how often a trial that has not ended was started
      logs/TARGET_ID.log         what a trial printed
      claims/, launches/         who works here now; see `launches.py`
      quarantine/                damaged files, set aside
      TABLE.parquet              gathered from the parts that sweep.json names

A target is done when its row in `parts/trials` is there, which is written after everything else of it; an
attack likewise in `parts/attacks`. A failure is a row too, in a file whose name says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from attacks.base import Attack
from attacks.comparisons.tpvd import displacement_sketch, tpvd, value_differences
from sweeper.errors import UserError
from sweeper.results import attempts, launches
from sweeper.results.checkpoints import metadata_of
from sweeper.results.schema import SCHEMA_VERSION, SCHEMAS
from sweeper.storage import Storage, StorageError, replace_file
from sweeper.sweep.expand import Sweep
from sweeper.sweep.trial import Trial, attack_id, identity

_TARGET_TABLES = ("history", "outputs", "trials")
_ATTACK_TABLES = ("scores", "reconstructions", "attacks")
_FOLDERS = ("weights", "checkpoints", "quarantine", attempts.FOLDER, attempts.LOGS, launches.CLAIMS, launches.FOLDER)
_FAILED = ".failed"
_SUFFIX = ".parquet"
_ROWS_AT_ONCE, _PARTS_AT_ONCE = 50_000, 500
"""Rows and parts of a gathered table that are held in memory at most, and make one row group."""
_READERS = 16
"""Parts of an object store that are fetched at a time."""
PARAMETERS = "parameters"
"""Key in the weights' metadata of the JSON list of those tensors that are parameters."""
_ID = re.compile(r"[0-9a-f]{16}")
_KEY = re.compile(r"[0-9a-f]{16}(\.[0-9a-f]{16})?(\.failed)?")
_STALE_S = 86400.0
_MOST_ROWS_PER_BYTE = 8
"""A part that claims more is damaged: rows differ by their ids or losses, so that real ones take a byte and more."""


_MEASURED = {
    table: [
        field.name for field in SCHEMAS[table] if pa.types.is_floating(field.type) and not field.name.endswith("time_s")
    ]
    for table in ("attacks", "reconstructions")
} | {"trials": ["train_accuracy", "test_accuracy", "train_loss", "test_loss", "epsilon_spent"]}
"""Columns that a tracker is told of."""


class DamagedError(Exception):
    """A file of the store cannot be read. It is set aside, so that what it held counts as missing and is made anew."""


@dataclass(frozen=True)
class Status:
    """What the store says of one trial."""

    target: str
    """`finished`, `failed` or `missing`."""
    missing_attacks: tuple[str, ...]
    """Ids of the attacks, and of their comparison, that are not recorded as finished."""
    failed_attacks: tuple[str, ...]

    @property
    def done(self) -> bool:
        return self.target == "finished" and not self.missing_attacks

    @property
    def word(self) -> str:
        """One word for a person: done, failed, partial or to do."""
        if self.done:
            return "done"
        if self.target == "failed" or self.failed_attacks:
            return "failed"
        return "partial" if self.target == "finished" else "to do"


_status = cache(Status)  # of 100,000 trials most have the same one


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What came of gathering: the folder that holds the tables, targets left out, damaged files set aside."""

    folder: Path
    left_out: int
    damaged: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed target or attack on record; without an attack it is the target that failed."""

    target_id: str
    attack_id: str | None
    attack: str | None
    cause: str | None
    error: str


class _Twins:
    """Which recorded targets have a twin, and the undefended ones that differ from one another by their seed alone."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []
        self._cells: dict[str, str] = {}
        self._seeds: dict[str, list[tuple[int, str]]] = {}

    def add(self, target_id: str, row: Mapping[str, Any]) -> None:
        """Take note of a finished target by its `twin_id`, `mechanism` and `config`."""
        if row["twin_id"] and _ID.fullmatch(row["twin_id"]):
            self.pairs.append((target_id, row["twin_id"]))
        if row["mechanism"] is None:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a configuration that another program wrote
                config = json.loads(row["config"])
                seed = int(config.pop("seed"))
                cell = identity(config)
                self._cells[target_id] = cell
                self._seeds.setdefault(cell, []).append((seed, target_id))

    def of_next_seed(self, target_id: str) -> str | None:
        """The undefended target with the next seed in the order of seeds, after the last one the first; None where it is alone."""
        ids = [each for _, each in sorted(self._seeds.get(self._cells.get(target_id, ""), []))]
        return None if len(ids) < 2 else ids[(ids.index(target_id) + 1) % len(ids)]


class Store:
    """Reads and writes one results folder; picklable, and cheap to make."""

    def __init__(self, location: str | Path) -> None:
        self.storage = Storage(location)

    @property
    def location(self) -> str:
        """The folder or URI, for messages."""
        return self.storage.location

    def prepare(self) -> None:
        """Create the folders and try to write.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.storage.prepare([*(f"parts/{table}" for table in SCHEMAS), *_FOLDERS])

    # What is there

    def _keys(self, table: str) -> Iterator[str]:
        """Keys of the parts of a table; a failed one's ends in `.failed`. An empty file, or of another name, is no part."""
        for name, entry in self.storage.entries(f"parts/{table}").items():
            key = name.removesuffix(_SUFFIX)
            if key != name and entry.size and _KEY.fullmatch(key):
                yield key

    def _weights(self) -> Iterator[str]:
        for name, entry in self.storage.entries("weights").items():
            if entry.size:
                yield name.removesuffix(".safetensors")

    def status(self, trial: Trial) -> Status:
        """The status of one trial, by a look at its own files."""
        target_id = trial.target_id
        have = {("weights", target_id)} if self.storage.has_content(_weights_name(target_id)) else set()
        for table, key in _wanted(trial):
            if self.storage.has_content(_part(table, key)):
                have.add((table, key))
        return _judge(trial, lambda table, key: (table, key) in have)

    def statuses(self, trials: Iterable[Trial]) -> dict[str, Status]:
        """The status of each trial, by target id; one listing of each folder for all of them.

        What is found is kept as one number per trial, for there may be very many.
        """
        by_id = {trial.target_id: trial for trial in trials}
        bits: dict[tuple[str, str], int] = {}
        for example in {trial.attacks: trial for trial in by_id.values()}.values():
            for table, key in _wanted(example):
                bits.setdefault((table, key.partition(".")[2]), 1 << len(bits))
        bits["weights", ""] = 1 << len(bits)
        found = dict.fromkeys(by_id, 0)
        for table in {table for table, _ in bits}:
            for key in self._weights() if table == "weights" else self._keys(table):
                target_id, _, rest = key.partition(".")
                if target_id in found and (table, rest) in bits:
                    found[target_id] |= bits[table, rest]
        return {
            target_id: _judge(trial, lambda table, key: bool(found[target_id] & bits[table, key.partition(".")[2]]))  # noqa: B023
            for target_id, trial in by_id.items()
        }

    def cut_short(self, failed: Collection[str]) -> set[str]:
        """Of trials with a failure on record those that were started again since, and did not come to an end."""
        last_failure: dict[str, datetime] = {}
        for table in ("trials", "attacks") if failed else ():
            for name, entry in self.storage.entries(f"parts/{table}").items():
                if name.endswith(_FAILED + _SUFFIX):
                    target_id = name.partition(".")[0]
                    last_failure[target_id] = max(entry.modified, last_failure.get(target_id, entry.modified))
        begun = self.storage.entries(attempts.FOLDER) if failed else {}
        started = {each: begun[f"{each}.json"].modified for each in failed if f"{each}.json" in begun}
        return {each for each, when in started.items() if each in last_failure and when >= last_failure[each]}

    def has_target(self, target_id: str) -> bool:
        """Whether the target is on record as finished."""
        return self.storage.has_content(_part("trials", target_id))

    def has_attack(self, target_id: str, attack: str) -> bool:
        """Whether the attack is on record as finished."""
        return self.storage.has_content(_part("attacks", f"{target_id}.{attack}"))

    def read_part(self, table: str, key: str) -> pa.Table:
        """One target's or attack's rows.

        Raises:
            DamagedError: the file is missing or unreadable.
            StorageError: the store cannot be read.
        """
        name = _part(table, key)
        content = self._read(name)
        target_id, _, attack = key.removesuffix(_FAILED).partition(".")
        try:
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            schema = file.schema_arrow
            metadata = schema.metadata or {}
            if metadata.get(b"sweeper_table") != table.encode():
                raise ValueError(f"it is no part of the table '{table}'")
            if file.metadata.num_rows > _MOST_ROWS_PER_BYTE * len(content):
                raise ValueError("it claims more rows than it could hold")
            if schema.equals(SCHEMAS[table]):  # several times as fast
                rows = pa.table(file.read(use_threads=False).columns, schema=SCHEMAS[table])
            elif metadata.get(b"schema_version") != str(SCHEMA_VERSION).encode():
                rows = pq.read_table(pa.BufferReader(content), schema=SCHEMAS[table], page_checksum_verification=True)
            else:
                raise ValueError("its columns are not those of its version")
            rows.validate(full=True)
            for column, expected in (("target_id", target_id), ("attack_id", attack)):
                if expected and rows.column(column).unique().to_pylist() != [expected]:
                    raise ValueError(f"it has no rows, or rows of another {column}")
        except pa.ArrowMemoryError:
            raise StorageError(
                f"{name} in {self.location} cannot be read: there is not enough memory for it."
            ) from None
        # Arrow has all of these for bytes that were a Parquet file
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            raise self._set_aside(name, error) from None
        return rows

    def read_weights(self, target_id: str) -> bytes:
        """A target's weights as safetensors, checked against the record of it.

        Raises:
            DamagedError: the file is missing, or is not what was recorded.
            StorageError: the store cannot be read.
        """
        name = _weights_name(target_id)
        content = self._read(name)
        recorded = self.read_part("trials", target_id).column("weights_sha256")[0].as_py()
        if recorded is not None and hashlib.sha256(content).hexdigest() != recorded:  # older records have none
            raise self._set_aside(name, ValueError("its SHA-256 is not the recorded one"))
        return content

    def _read(self, name: str) -> bytes:
        try:
            return self.storage.read(name)
        except FileNotFoundError:
            raise DamagedError(f"{name} in {self.location} is missing.") from None

    def _set_aside(self, name: str, error: Exception) -> DamagedError:
        """Move a damaged file to the quarantine; gives the error to raise."""
        what = "was set aside in quarantine"
        try:
            self.storage.move(name, f"quarantine/{name.replace('/', '.')}")
        except FileNotFoundError:
            pass  # another process has set it aside just now
        except StorageError:
            what = "cannot be set aside"
        return DamagedError(f"{name} in {self.location} is damaged and {what}: {_first_line(error)}.")

    def metrics(self, trial: Trial) -> dict[str, float]:
        """What is on record of a trial, under the names that a tracker shows: accuracies, ε, and each attack's metrics.

        Raises:
            DamagedError: a file of it is damaged.
            StorageError: the store cannot be read.
        """
        target_id = trial.target_id
        parts = [("trials", target_id)]
        for each in recorded_attacks(trial):
            parts += [(table, f"{target_id}.{each}") for table in ("attacks", "reconstructions")]
        found: dict[str, float] = {}
        attack = ""
        for table, key in parts:
            if not self.storage.has_content(_part(table, key)):
                continue
            for row in self.read_part(table, key).to_pylist():
                attack = row.get("attack") or attack  # rows of reconstructions follow their attack's
                score = "" if attack == BEST_OF else row.get("score_name")
                place = "/".join(filter(None, () if table == "trials" else (attack, score, row.get("layer"))))
                for name in _MEASURED[table]:
                    if row[name] is not None:
                        found[re.sub(r"[^\w./-]", "_", f"{place}/{name}" if place else name)] = row[name]
        return found

    def recorded_sources(self) -> dict[str, str]:
        """`component_sha256` of each finished target, by its id, and attack, by `target.attack`; older records have none.

        Parts that are older than the gathered table are not read, for there may be very many in an object store.
        """
        found: dict[str, str] = {}
        for table in ("trials", "attacks"):
            gathered, written_at = self._gathered_sources(table)
            entries = self.storage.entries(f"parts/{table}")
            newer = []
            for key in self._keys(table):
                if key.endswith(_FAILED):
                    continue
                part = entries.get(key + _SUFFIX)
                if written_at is None or key not in gathered or part is None or part.modified >= written_at:
                    newer.append(key)
                elif gathered[key] is not None:
                    found[key] = gathered[key]
            for key, rows in self._parts(table, newer, damaged=[]):
                if (recorded := rows.column("component_sha256")[0].as_py()) is not None:
                    found[key] = recorded
        return found

    def _gathered_sources(self, table: str) -> tuple[dict[str, Any], datetime | None]:
        """Keys and source hashes of a gathered table, and when it was written; nothing where it is not there."""
        name = table + _SUFFIX
        entry = self.storage.entries("").get(name)
        if entry is None:
            return {}, None
        try:
            file = pq.ParquetFile(pa.BufferReader(self.storage.read(name)))
            present = set(file.schema_arrow.names)
            rows = file.read(
                columns=[each for each in ("target_id", "attack_id", "component_sha256") if each in present]
            )
            ids = [rows.column(each).to_pylist() for each in ("target_id", "attack_id") if each in present]
            recorded = rows.column("component_sha256").to_pylist() if "component_sha256" in present else []
            keys = [".".join(each) for each in zip(*ids, strict=True)]
        # Gone, or damaged, which gathering mends
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException):
            return {}, None
        return dict(zip(keys, recorded or [None] * len(keys), strict=True)), entry.modified

    # Writing

    def forget(self, keys: Iterable[str]) -> None:
        """Delete what is recorded of targets, by their ids, with all their attacks, or of attacks, by `target.attack`.

        Attacks go before their target: where this is cut short, what is left still tells that other code made it.
        """
        chosen = set(keys)
        for table in (*reversed(_ATTACK_TABLES), "tpvd", *reversed(_TARGET_TABLES)):
            for key in list(self._keys(table)):
                plain = key.removesuffix(_FAILED)
                if plain in chosen or plain.partition(".")[0] in chosen:
                    self.storage.delete(_part(table, key))

    def write_target(
        self,
        target_id: str,
        trial: Mapping[str, Any],
        history: list[dict[str, Any]],
        outputs: Mapping[str, Any],
        weights: bytes,
    ) -> None:
        """Record a finished target. Its row in `trials` comes last: it says that all the rest is there.

        Raises:
            StorageError: the store cannot be written; so all methods that write.
        """
        self.storage.write(_weights_name(target_id), weights)
        self._write("history", target_id, pa.Table.from_pylist(history, schema=SCHEMAS["history"]))
        self._write("outputs", target_id, pa.table(dict(outputs), schema=SCHEMAS["outputs"]))
        row = dict(trial) | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
        self._write("trials", target_id, pa.Table.from_pylist([row], schema=SCHEMAS["trials"]))
        self.storage.delete(_part("trials", target_id + _FAILED))
        self.storage.delete(_checkpoint_name(target_id))

    def write_failed_target(self, target_id: str, trial: Mapping[str, Any]) -> None:
        """Record that a target failed; it does not count as done."""
        self._write("trials", target_id + _FAILED, pa.Table.from_pylist([dict(trial)], schema=SCHEMAS["trials"]))

    def write_attack(
        self,
        target_id: str,
        attack: str,
        attacks: list[dict[str, Any]],
        scores: Mapping[str, Any] | None,
        reconstructions: list[dict[str, Any]] | None,
    ) -> None:
        """Record a finished attack. Its rows in `attacks` come last."""
        key = f"{target_id}.{attack}"
        if scores is not None:
            self._write("scores", key, pa.table(dict(scores), schema=SCHEMAS["scores"]))
        if reconstructions is not None:
            table = pa.Table.from_pylist(reconstructions, schema=SCHEMAS["reconstructions"])
            self._write("reconstructions", key, table)
        self._write("attacks", key, pa.Table.from_pylist(attacks, schema=SCHEMAS["attacks"]))
        self.storage.delete(_part("attacks", key + _FAILED))

    def write_failed_attack(self, target_id: str, attack: str, row: Mapping[str, Any]) -> None:
        """Record that an attack failed; it does not count as done."""
        table = pa.Table.from_pylist([dict(row)], schema=SCHEMAS["attacks"])
        self._write("attacks", f"{target_id}.{attack}{_FAILED}", table)

    def write_sweep(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        """Record which targets and attacks the whole sweep has, expanded as `trials`; `gather` follows it."""
        content = {
            "name": sweep.name,
            "summary": sweep.summary,
            "paper": sweep.paper,
            "expected": sweep.expected,
            "targets": {trial.target_id: recorded_attacks(trial) for trial in trials},
            "kept": {
                each: table
                for trial in {trial.attacks: trial for trial in trials}.values()
                for each in recorded_attacks(trial)
                if (table := _kept(trial, each))
            },
        }
        self.storage.write("sweep.json", json.dumps(content).encode())

    def write_checkpoint(self, target_id: str, content: bytes) -> None:
        """Keep the latest checkpoint of a training; it is deleted when the target is recorded."""
        self.storage.write(_checkpoint_name(target_id), content)

    def read_checkpoint(self, target_id: str) -> bytes | None:
        """The latest checkpoint of a training, None where there is none."""
        try:
            return self.storage.read(_checkpoint_name(target_id))
        except FileNotFoundError:
            return None

    def clear_done(self, done: Collection[str]) -> None:
        """Delete what processes that were killed left of trials that are done by now."""
        for folder, ending in ((attempts.FOLDER, ".json"), ("checkpoints", ".safetensors")):
            for name in self.storage.entries(folder):
                if name.removesuffix(ending) in done:
                    self.storage.delete(f"{folder}/{name}")
        for table in ("trials", "attacks"):
            for key in self._keys(table):
                if key.endswith(_FAILED) and key.partition(".")[0] in done:
                    self.storage.delete(_part(table, key))

    # Reading it all

    def failures(self) -> Iterator[Failure]:
        """All failed targets and attacks on record."""
        for table in ("trials", "attacks"):
            keys = [key for key in self._keys(table) if key.endswith(_FAILED)]
            for _, rows in self._parts(table, keys, damaged=[]):
                for row in rows.to_pylist():
                    attack_id, attack = (None, None) if table == "trials" else (row["attack_id"], str(row["attack"]))
                    yield Failure(
                        target_id=row["target_id"],
                        attack_id=attack_id,
                        attack=attack,
                        cause=row["cause"],
                        error=row["error"] or "",
                    )

    def ended(self, planned: Mapping[str, Sequence[str]]) -> dict[str, datetime]:
        """Of the planned trials those that are done, as `statuses` says, with the time by the store's clock."""
        kept = self._sweep().get("kept", {})
        tables = (*_TARGET_TABLES, "attacks", *sorted(set(kept.values())))
        entries = {f"parts/{table}": self.storage.entries(f"parts/{table}") for table in tables}
        entries["weights"] = self.storage.entries("weights")
        ended = {}
        for target_id, attack_ids in planned.items():
            names = [_weights_name(target_id), *(_part(table, target_id) for table in _TARGET_TABLES)]
            for each in attack_ids:
                names += [_part(table, f"{target_id}.{each}") for table in ("attacks", kept.get(each)) if table]
            found = [entries[folder].get(name) for folder, _, name in (name.rpartition("/") for name in names)]
            times = [entry.modified for entry in found if entry is not None and entry.size]
            if len(times) == len(names):
                ended[target_id] = max(times)
        return ended

    def planned(self) -> dict[str, list[str]] | None:
        """Target ids to attack ids as the sweep has them now; None where it was never written.

        Raises:
            UserError: the file is damaged.
        """
        return self._sweep().get("targets")

    def _sweep(self) -> dict[str, Any]:
        """What `write_sweep` wrote; empty where it never did."""
        try:
            content = json.loads(self.storage.read("sweep.json"))
            if not all(_ID.fullmatch(each) for target, ids in content["targets"].items() for each in (target, *ids)):
                raise ValueError("it names something that is no id")
            # Of an earlier version it says nothing of what attacks keep
            content["kept"] = {
                each: table for each, table in content.get("kept", {}).items() if table in _ATTACK_TABLES
            }
            return dict(content)
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(
                f"sweep.json in {self.location} cannot be read: {_first_line(error)}. Launch the sweep again to write it "
                "anew; nothing is lost."
            ) from None

    def gather(self, copy: Path | None = None) -> Gathered:
        """Write each table as one file, from the parts that the sweep has now.

        Rows stand in the order of the sweep. Parts are read in small lots, so memory stays flat. A damaged part is set
        aside and left out. An object store's tables are written to the local folder `copy` and then stored.

        Raises:
            UserError: the folder holds no results.
            StorageError: the store cannot be read or written.
        """
        folder = self.storage.root if self.storage.is_local else copy
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".gather-*"):  # of a process that was killed
            with contextlib.suppress(FileNotFoundError):  # of one that has ended just now
                if time.time() - stale.stat().st_mtime > _STALE_S:
                    shutil.rmtree(stale, ignore_errors=True)
        planned = self.planned()
        recorded = set(self._keys("trials"))
        if planned is None:
            planned = self._everything(recorded)
        damaged: list[str] = []
        twins = _Twins()
        for table in ("trials", "tpvd", "history", "outputs", *_ATTACK_TABLES):
            if table == "tpvd":
                self._compare_with_twins(twins, damaged)
            there = recorded if table == "trials" else set(self._keys(table))
            keys = _keys_in_order(table, planned, there)
            self._gather_table(table, keys, folder, damaged, twins)
        left_out = {key.removesuffix(_FAILED) for key in recorded} - set(planned)
        if not self.storage.is_local and self.storage.exists("sweep.json"):
            (folder / "sweep.json").write_bytes(self._read("sweep.json"))
        return Gathered(folder=folder, left_out=len(left_out), damaged=tuple(damaged))

    def _everything(self, recorded: set[str]) -> dict[str, list[str]]:
        """What is on record as the plan, where the sweep's own is not there."""
        if not recorded:
            raise UserError(
                f"{self.location} holds no results of a sweep. Name the folder that `sweeper launch` wrote to."
            )
        everything: dict[str, list[str]] = {key.removesuffix(_FAILED): [] for key in sorted(recorded)}
        for key in sorted({key.removesuffix(_FAILED) for key in self._keys("attacks")}):
            target, _, attack = key.partition(".")
            everything.setdefault(target, []).append(attack)
        return everything

    def _gather_table(self, table: str, keys: Iterable[str], folder: Path, damaged: list[str], twins: _Twins) -> None:
        def write(path: Path) -> None:
            waiting: list[pa.Table] = []
            n_rows = 0
            with pq.ParquetWriter(path, SCHEMAS[table], compression="zstd", write_page_checksum=True) as writer:
                for key, rows in self._parts(table, keys, damaged):
                    if table == "trials" and not key.endswith(_FAILED):
                        for row in rows.select(["twin_id", "mechanism", "config"]).to_pylist():
                            twins.add(key, row)
                    waiting.append(rows)
                    n_rows += rows.num_rows
                    if n_rows >= _ROWS_AT_ONCE or len(waiting) >= _PARTS_AT_ONCE:
                        writer.write_table(pa.concat_tables(waiting))
                        waiting, n_rows = [], 0
                if waiting:
                    writer.write_table(pa.concat_tables(waiting))

        with tempfile.TemporaryDirectory(dir=folder, prefix=".gather-") as temporary:
            path = Path(temporary) / f"{table}{_SUFFIX}"
            write(path)
            if not self.storage.is_local:
                self.storage.write(path.name, path)
            replace_file(path, folder / path.name)

    def _parts(self, table: str, keys: Iterable[str], damaged: list[str]) -> Iterator[tuple[str, pa.Table]]:
        """Key and rows of each part, in order; what is damaged is set aside, added to `damaged`, and skipped."""

        def read(key: str) -> pa.Table | str:
            try:
                return self.read_part(table, key)
            except DamagedError as error:
                return str(error)

        remaining = iter(keys)
        with ThreadPoolExecutor(1 if self.storage.is_local else _READERS) as pool:
            while lot := list(islice(remaining, 4 * _READERS)):
                for key, rows in zip(
                    lot, map(read, lot) if self.storage.is_local else pool.map(read, lot), strict=True
                ):
                    if isinstance(rows, str):
                        damaged.append(rows)
                    else:
                        yield key, rows

    def _compare_with_twins(self, twins: _Twins, damaged: list[str]) -> None:
        """Record the TPVD of each target whose twin is on record too, unless that was done with the same weights.

        Only here, where all are looked at: of a target and its twins any may be finished first.
        """
        weights, done = self.storage.entries("weights"), self.storage.entries("parts/tpvd")
        for target_id, twin_id in twins.pairs:
            other_id = twins.of_next_seed(twin_id)
            ids = [target_id, twin_id, *([other_id] if other_id and f"{other_id}.safetensors" in weights else [])]
            names = [f"{each}.safetensors" for each in ids]
            if not all(name in weights for name in names):
                continue
            part = done.get(target_id + _SUFFIX)
            if part and part.modified >= max(weights[name].modified for name in names):
                continue
            if not self.has_target(twin_id):
                continue
            try:
                ours, twin, *others = (_parameters(self.read_weights(each)) for each in ids)
                differences = value_differences(ours, twin)
                row = {
                    "target_id": target_id,
                    "twin_id": twin_id,
                    "tpvd": tpvd(differences),
                    "tensors": [{"parameter": name, "value_difference": each} for name, each in differences.items()],
                    "displacement_sketch": displacement_sketch(ours, twin),
                    "other_init_twin_id": other_id if others else None,
                    "tpvd_other_init": tpvd(value_differences(ours, others[0])) if others else None,
                }
            except DamagedError as error:
                damaged.append(str(error))
                continue
            except ValueError as error:
                raise UserError(
                    f"The weights of {target_id} and {twin_id}, its twin, in {self.location} are not of one model: {error}. They "
                    "were made by different versions of the code; delete them and launch again."
                ) from None
            self._write("tpvd", target_id, pa.Table.from_pylist([row], schema=SCHEMAS["tpvd"]))

    def _write(self, table: str, key: str, rows: pa.Table) -> None:
        content = io.BytesIO()
        pq.write_table(rows, content, compression="zstd", write_page_checksum=True)
        self.storage.write(_part(table, key), content.getvalue())


def _part(table: str, key: str) -> str:
    return f"parts/{table}/{key}{_SUFFIX}"


def _weights_name(target_id: str) -> str:
    return f"weights/{target_id}.safetensors"


def _checkpoint_name(target_id: str) -> str:
    return f"checkpoints/{target_id}.safetensors"


def _kept(trial: Trial, each: str) -> str | None:
    """The table that keeps what one recorded attack measured of each example or layer."""
    attack = trial.attack_ids.get(each)
    return None if attack is None else {"membership": "scores", "inversion": "reconstructions"}[attack.family]


def _wanted(trial: Trial) -> Iterator[tuple[str, str]]:
    """Table and key of every part that says something of the trial's status."""
    target_id = trial.target_id
    yield from ((table, target_id) for table in _TARGET_TABLES)
    yield "trials", target_id + _FAILED
    for each in recorded_attacks(trial):
        yield "attacks", f"{target_id}.{each}"
        yield "attacks", f"{target_id}.{each}{_FAILED}"
        if kept := _kept(trial, each):
            yield kept, f"{target_id}.{each}"


def _judge(trial: Trial, has: Callable[[str, str], bool]) -> Status:
    """The status of a trial by the parts that are there.

    A row says that all the rest of its record is there; a part that was deleted or set aside since is made anew.
    """
    target_id = trial.target_id
    target = "missing"
    if has("weights", target_id) and all(has(table, target_id) for table in _TARGET_TABLES):
        target = "finished"
    elif has("trials", target_id + _FAILED):
        target = "failed"
    missing = []
    for each in recorded_attacks(trial):
        kept = _kept(trial, each)
        if not has("attacks", f"{target_id}.{each}") or (kept and not has(kept, f"{target_id}.{each}")):
            missing.append(each)
    failed = tuple(each for each in missing if has("attacks", f"{target_id}.{each}{_FAILED}"))
    return _status(target, tuple(missing), failed)


def _keys_in_order(table: str, planned: Mapping[str, Sequence[str]], there: set[str]) -> Iterator[str]:
    """Keys of a table's parts in the order of the plan; a finished one before a failed one of the same."""
    for target_id, attack_ids in planned.items():
        found = [f"{target_id}.{each}" for each in attack_ids] if table in _ATTACK_TABLES else [target_id]
        for key in found:
            yield from [each for each in (key, key + _FAILED) if each in there][:1]


BEST_OF = "best_of"
BEST_OF_REVISION = 2
"""As an attack's revision: it goes up when the same candidates would give other results."""


def best_of_id(candidate_ids: Iterable[str]) -> str:
    """The id of the comparison of these membership attacks."""
    return identity({"name": BEST_OF, "revision": BEST_OF_REVISION, "candidates": sorted(candidate_ids)})


def recorded_attacks(trial: Trial) -> list[str]:
    """Ids of all records under a trial's attacks: the attacks themselves, and the comparison of the membership ones."""
    return list(_recorded_attacks(trial.attacks))


@cache
def _recorded_attacks(attacks: tuple[Attack, ...]) -> tuple[str, ...]:
    ids = tuple(attack_id(attack) for attack in attacks)
    membership = [each for each, attack in zip(ids, attacks, strict=True) if attack.family == "membership"]
    return (*ids, best_of_id(membership)) if membership else ids


def _parameters(weights: bytes) -> dict[str, Any]:
    """The parameters among the tensors of safetensors.

    Raises:
        ValueError: they are of a version of the code that did not say which these are.
    """
    try:
        arrays = load_arrays(weights)
        return {name: arrays[name] for name in json.loads(metadata_of(weights)[PARAMETERS])}
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"parameters cannot be told ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

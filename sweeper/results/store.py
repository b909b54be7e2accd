"""Reads and writes the records in a results folder. Every file is written whole or not at all; `layout` names the files."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.errors import UserError, printable
from sweeper.results import layout
from sweeper.results.expected import Records, Status, judge, recorded_attacks, records_of, wanted_parts
from sweeper.results.layout import (
    ATTACK_TABLES,
    COMPARED_TABLES,
    COMPARISONS,
    FAILED,
    FOLDERS,
    ID,
    KEY,
    SUFFIX,
    TARGET_TABLES,
)
from sweeper.results.schema import SCHEMA_VERSION, SCHEMAS
from sweeper.storage import Storage, StorageError

if TYPE_CHECKING:
    from sweeper.sweep.expand import Sweep
    from sweeper.sweep.trial import Trial

_READERS = 16
"""Number of parts of an object store that are fetched at a time."""

PARAMETERS = "parameters"
"""Key in the weights' metadata for the JSON list of the tensors that are parameters."""

_MOST_ROWS_PER_BYTE = 8
"""A part that claims more rows per byte is damaged: rows differ by ids or losses, so each takes more than a byte."""


class DamagedError(Exception):
    """A file of the store cannot be read. Where it is set aside, its content counts as missing and is computed again."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A recorded failure of a target, an attack on it, or a comparison, whose id is then in place of the target's."""

    target_id: str
    attack_id: str | None
    attack: str | None
    """Name of the attack or comparison; None if the target itself failed."""
    cause: str | None
    error: str


class Store:
    """Reads and writes one results folder. Picklable and cheap to create.

    If `sets_aside` is false, reading moves no damaged file to the quarantine.
    """

    def __init__(self, location: str | Path, *, sets_aside: bool = True) -> None:
        self.storage = Storage(location)
        self._sets_aside = sets_aside

    @property
    def location(self) -> str:
        """The folder or URI, for messages."""
        return self.storage.location

    def prepare(self) -> None:
        """Create the folders and check that they can be written.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.storage.prepare([*(f"{layout.PARTS}/{table}" for table in SCHEMAS), *FOLDERS])

    # What is recorded

    def keys(self, table: str) -> Iterator[str]:
        """Keys of a table's parts; a failed part's key ends in `.failed`. Empty files and files with other names are skipped."""
        for name, entry in self.storage.entries(f"{layout.PARTS}/{table}").items():
            key = name.removesuffix(SUFFIX)
            if key != name and entry.size and KEY.fullmatch(key):
                yield key

    def _weights(self) -> Iterator[str]:
        for name, entry in self.storage.entries(layout.WEIGHTS).items():
            if entry.size:
                yield name.removesuffix(layout.TENSORS)

    def _answers(self) -> Iterator[str]:
        for name, entry in self.storage.entries(layout.ANSWERS).items():
            if entry.size:
                yield name.removesuffix(layout.TENSORS)

    def status(self, trial: Trial) -> Status:
        """The status of one trial, from its own files."""
        target_id, records = trial.target_id, records_of(trial)
        have = {("weights", target_id)} if self.storage.has_content(layout.weights(target_id)) else set()
        if records.queries and self.has_answers(target_id, records.queries):
            have.add(("answers", f"{target_id}.{records.queries}"))
        for table, key in wanted_parts(target_id, records):
            if self.storage.has_content(layout.part(table, key)):
                have.add((table, key))
        return judge(target_id, records, lambda table, key: (table, key) in have)

    def statuses(self, trials: Iterable[Trial]) -> dict[str, Status]:
        """The status of each trial, by target id, from a single listing of each folder."""
        return self.statuses_of({trial.target_id: records_of(trial) for trial in trials})

    def statuses_of(self, records: Mapping[str, Records]) -> dict[str, Status]:
        """The same from the records that each target must have, by target id.

        The parts found are kept as one number per trial, because there may be very many trials.
        """
        bits: dict[tuple[str, str], int] = {}
        for each, example_id in {each: target_id for target_id, each in records.items()}.items():
            for table, key in wanted_parts(example_id, each):
                bits.setdefault((table, key.partition(".")[2]), 1 << len(bits))
            if each.queries:
                bits.setdefault(("answers", str(each.queries)), 1 << len(bits))
        bits["weights", ""] = 1 << len(bits)
        others = {"weights": self._weights, "answers": self._answers}
        found = dict.fromkeys(records, 0)
        for table in {table for table, _ in bits}:
            for key in others[table]() if table in others else self.keys(table):
                target_id, _, rest = key.partition(".")
                if target_id in found and (table, rest) in bits:
                    found[target_id] |= bits[table, rest]
        return {
            target_id: judge(
                target_id,
                each,
                lambda table, key: bool(found[target_id] & bits[table, key.partition(".")[2]]),  # noqa: B023
            )
            for target_id, each in records.items()
        }

    def cut_short(self, failed: Collection[str]) -> set[str]:
        """Those of the failed trials that were started again since their last failure and did not end."""
        last_failure: dict[str, datetime] = {}
        for table in ("trials", "attacks", COMPARISONS) if failed else ():
            for name, entry in self.storage.entries(f"{layout.PARTS}/{table}").items():
                if name.endswith(FAILED + SUFFIX):
                    target_id = name.partition(".")[0]
                    last_failure[target_id] = max(entry.modified, last_failure.get(target_id, entry.modified))
        begun = self.storage.entries(layout.ATTEMPTS) if failed else {}
        started = {each: begun[f"{each}.json"].modified for each in failed if f"{each}.json" in begun}
        return {each for each, when in started.items() if each in last_failure and when >= last_failure[each]}

    def has_target(self, target_id: str) -> bool:
        """Whether the target is recorded as finished."""
        return self.storage.has_content(layout.part("trials", target_id))

    def has_attack(self, target_id: str, attack: str) -> bool:
        """Whether the attack is recorded as finished."""
        return self.storage.has_content(layout.part("attacks", f"{target_id}.{attack}"))

    def has_answers(self, target_id: str, queries: int) -> bool:
        """Whether the target's answers to this many queries are recorded."""
        return self.storage.has_content(layout.answers(target_id, queries))

    def read_part(self, table: str, key: str) -> pa.Table:
        """One target's or attack's rows.

        Raises:
            DamagedError: the file is missing or unreadable.
            StorageError: the store cannot be read.
        """
        name = layout.part(table, key)
        content = self.read_file(name)
        target_id, _, attack = key.removesuffix(FAILED).partition(".")
        try:
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            schema = file.schema_arrow
            metadata = schema.metadata or {}
            if metadata.get(b"sweeper_table") != table.encode():
                raise ValueError(f"it is not a part of the table '{table}'")
            if file.metadata.num_rows > _MOST_ROWS_PER_BYTE * len(content):
                raise ValueError("it claims more rows than it can hold")
            if schema.equals(SCHEMAS[table]):  # several times faster
                rows = pa.table(file.read(use_threads=False).columns, schema=SCHEMAS[table])
            elif metadata.get(b"schema_version") != str(SCHEMA_VERSION).encode():
                rows = pq.read_table(pa.BufferReader(content), schema=SCHEMAS[table], page_checksum_verification=True)
            else:
                raise ValueError("its columns are not those of its version")
            rows.validate(full=True)
            named = "comparison_id" if table in (COMPARISONS, *COMPARED_TABLES) else "target_id"
            for column, expected in ((named, target_id), ("attack_id", attack)):
                if expected and rows.column(column).unique().to_pylist() != [expected]:
                    raise ValueError(f"it has no rows, or rows of another {column}")
        except pa.ArrowMemoryError:
            raise StorageError(
                f"{name} in {self.location} cannot be read: there is not enough memory for it."
            ) from None
            # Errors that Arrow raises for damaged Parquet files
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            raise self.set_aside(name, error) from None
        return rows

    def read_weights(self, target_id: str) -> bytes:
        """A target's weights as safetensors, checked against the recorded hash.

        Raises:
            DamagedError: the file is missing, or differs from the recorded hash.
            StorageError: the store cannot be read.
        """
        name = layout.weights(target_id)
        content = self.read_file(name)
        recorded = self.read_part("trials", target_id).column("weights_sha256")[0].as_py()
        if recorded is not None and hashlib.sha256(content).hexdigest() != recorded:  # older records have none
            raise self.set_aside(name, ValueError("its SHA-256 is not the recorded one"))
        return content

    def read_file(self, name: str) -> bytes:
        """A file's content.

        Raises:
            DamagedError: the file is missing.
            StorageError: the store cannot be read.
        """
        try:
            return self.storage.read(name)
        except FileNotFoundError:
            raise DamagedError(f"{name} in {self.location} is missing.") from None

    def set_aside(self, name: str, error: Exception) -> DamagedError:
        """Move a damaged file to the quarantine, if this store does so. Returns the error to raise."""
        what = "was set aside in quarantine" if self._sets_aside else "was left out"
        try:
            if self._sets_aside:
                self.storage.move(name, f"{layout.QUARANTINE}/{name.replace('/', '.')}")
        except FileNotFoundError:
            pass  # another process has just set it aside
        except StorageError:
            what = "cannot be set aside"
        return DamagedError(f"{name} in {self.location} is damaged and {what}: {_first_line(error)}.")

    # Writing

    def forget(self, keys: Iterable[str]) -> None:
        """Delete the records of targets (by id, with all their attacks) or of attacks (by `target.attack`).

        Attacks are deleted before their target, so that after an interruption the rest still shows that other code made it.
        """
        chosen = set(keys)
        for name in list(self.storage.entries(layout.ANSWERS)):
            if name.partition(".")[0] in chosen:
                self.storage.delete(f"{layout.ANSWERS}/{name}")
        for table in (*reversed(ATTACK_TABLES), COMPARISONS, *COMPARED_TABLES, *reversed(TARGET_TABLES)):
            for key in list(self.keys(table)):
                plain = key.removesuffix(FAILED)
                if not chosen.isdisjoint((plain, *plain.split("."))):
                    self.storage.delete(layout.part(table, key))

    def write_target(
        self,
        target_id: str,
        trial: Mapping[str, Any],
        history: list[dict[str, Any]],
        outputs: Mapping[str, Any],
        weights: bytes,
    ) -> None:
        """Record a finished target. Its row in `trials` is written last and marks the record as complete.

        Raises:
            StorageError: the store cannot be written; this holds for all methods that write.
        """
        self.storage.write(layout.weights(target_id), weights)
        self._write("history", target_id, pa.Table.from_pylist(history, schema=SCHEMAS["history"]))
        self._write("outputs", target_id, pa.table(dict(outputs), schema=SCHEMAS["outputs"]))
        row = dict(trial) | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
        self._write("trials", target_id, pa.Table.from_pylist([row], schema=SCHEMAS["trials"]))
        self.storage.delete(layout.part("trials", target_id + FAILED))
        self.storage.delete(layout.checkpoint(target_id))

    def write_answers(self, target_id: str, queries: int, content: bytes) -> None:
        """Record a target's answers to this many queries about each example."""
        self.storage.write(layout.answers(target_id, queries), content)

    def write_run_without_model(self, target_id: str, trial: Mapping[str, Any], history: list[dict[str, Any]]) -> None:
        """Record a run of a search that diverged or was stopped early. It counts as done: its search does not need more."""
        if history:
            self._write("history", target_id, pa.Table.from_pylist(history, schema=SCHEMAS["history"]))
        self._write("trials", target_id, pa.Table.from_pylist([dict(trial)], schema=SCHEMAS["trials"]))
        self.storage.delete(layout.part("trials", target_id + FAILED))
        self.storage.delete(layout.checkpoint(target_id))

    def write_failed_target(self, target_id: str, trial: Mapping[str, Any]) -> None:
        """Record a failed target; it does not count as done."""
        self._write("trials", target_id + FAILED, pa.Table.from_pylist([dict(trial)], schema=SCHEMAS["trials"]))

    def write_attack(
        self,
        target_id: str,
        attack: str,
        attacks: list[dict[str, Any]],
        scores: Mapping[str, Any] | None,
        reconstructions: list[dict[str, Any]] | None,
    ) -> None:
        """Record a finished attack. Its rows in `attacks` are written last."""
        key = f"{target_id}.{attack}"
        if scores is not None:
            self._write("scores", key, pa.table(dict(scores), schema=SCHEMAS["scores"]))
        if reconstructions is not None:
            table = pa.Table.from_pylist(reconstructions, schema=SCHEMAS["reconstructions"])
            self._write("reconstructions", key, table)
        self._write("attacks", key, pa.Table.from_pylist(attacks, schema=SCHEMAS["attacks"]))
        self.storage.delete(layout.part("attacks", key + FAILED))

    def write_failed_attack(self, target_id: str, attack: str, row: Mapping[str, Any]) -> None:
        """Record a failed attack; it does not count as done."""
        table = pa.Table.from_pylist([dict(row)], schema=SCHEMAS["attacks"])
        self._write("attacks", f"{target_id}.{attack}{FAILED}", table)

    def write_comparison(
        self, comparison_id: str, row: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> None:
        """Record a finished comparison: its rows of each table. Its row in `comparisons` is written last."""
        for table, rows in tables.items():
            named = [{"comparison_id": comparison_id, **each} for each in rows]
            self._write(table, comparison_id, pa.Table.from_pylist(named, schema=SCHEMAS[table]))
        self._write(COMPARISONS, comparison_id, pa.Table.from_pylist([dict(row)], schema=SCHEMAS[COMPARISONS]))
        self.storage.delete(layout.part(COMPARISONS, comparison_id + FAILED))

    def write_failed_comparison(self, comparison_id: str, row: Mapping[str, Any]) -> None:
        """Record a failed comparison; it does not count as done."""
        table = pa.Table.from_pylist([dict(row)], schema=SCHEMAS[COMPARISONS])
        self._write(COMPARISONS, comparison_id + FAILED, table)

    def write_sweep(self, sweep: Sweep, trials: Sequence[Trial], searches: Sequence[Mapping[str, Any]] = ()) -> None:
        """Record the targets, attacks and searches of the whole sweep, expanded as `trials`; `gather` follows this list."""
        arms = list(dict.fromkeys(trial.arm_title for trial in trials))
        places = {arm: place for place, arm in enumerate(arms)}
        content = {
            "arms": arms,
            "arm_of": {trial.target_id: places[trial.arm_title] for trial in trials},
            "name": sweep.name,
            "summary": sweep.summary,
            "paper": sweep.paper,
            "expected": sweep.expected,
            "targets": {trial.target_id: recorded_attacks(trial) for trial in trials},
            "queries": {trial.target_id: trial.kept_queries for trial in trials if trial.kept_queries},
            "search_runs": [trial.target_id for trial in trials if trial.search_run is not None],
            "kept": {
                each: table
                for records in dict.fromkeys(map(records_of, trials))
                for each, table in records.attacks
                if table
            },
            "searches": list(searches),
        }
        self.storage.write(layout.SWEEP, json.dumps(content).encode())

    def write_comparisons_now(self, members: Mapping[str, Sequence[str]]) -> None:
        """Record the current comparisons by id, each with its targets that have rows of their own; `gather` follows this."""
        self.storage.write(layout.COMPARISONS_NOW, json.dumps(members).encode())

    def comparisons_now(self) -> dict[str, list[str]] | None:
        """What `write_comparisons_now` recorded; None if the file is missing or damaged."""
        try:
            members = json.loads(self.storage.read(layout.COMPARISONS_NOW))
            ids = [*members, *(each for targets in members.values() for each in targets)]
            return dict(members) if all(ID.fullmatch(each) for each in ids) else None
        except (FileNotFoundError, ValueError, AttributeError, TypeError, RecursionError):
            return None

    def write_checkpoint(self, target_id: str, content: bytes) -> None:
        """Store the latest checkpoint of a training; it is deleted when the target is recorded."""
        self.storage.write(layout.checkpoint(target_id), content)

    def read_checkpoint(self, target_id: str) -> bytes | None:
        """The latest checkpoint of a training; None if there is none."""
        try:
            return self.storage.read(layout.checkpoint(target_id))
        except FileNotFoundError:
            return None

    def clear_done(self, done: Collection[str]) -> None:
        """Delete the leftovers of killed processes for trials that are done."""
        for folder, ending in ((layout.ATTEMPTS, ".json"), (layout.CHECKPOINTS, layout.TENSORS)):
            for name in self.storage.entries(folder):
                if name.removesuffix(ending) in done:
                    self.storage.delete(f"{folder}/{name}")
        for table in ("trials", "attacks"):
            for key in self.keys(table):
                if key.endswith(FAILED) and key.partition(".")[0] in done:
                    self.storage.delete(layout.part(table, key))

        # Reading everything

    def failures(self) -> Iterator[Failure]:
        """All recorded failures of targets, attacks and comparisons."""
        for table, id_column, name_column in (
            ("trials", "target_id", None),
            ("attacks", "target_id", "attack"),
            (COMPARISONS, "comparison_id", "comparison"),
        ):
            keys = [key for key in self.keys(table) if key.endswith(FAILED)]
            for _, rows in self.parts(table, keys, damaged=[]):
                for row in rows.to_pylist():
                    yield Failure(
                        target_id=row[id_column],
                        attack_id=row.get("attack_id"),
                        attack=row[name_column] if name_column else None,
                        cause=row["cause"],
                        error=row["error"] or "",
                    )

    def ended(self, planned: Mapping[str, Sequence[str]]) -> dict[str, datetime]:
        """The planned trials that are done, as in `statuses`, with their end time by the store's clock."""
        sweep = self._sweep()
        kept, queries, runs = sweep.get("kept", {}), sweep.get("queries", {}), set(sweep.get("search_runs", ()))
        tables = (*TARGET_TABLES, "attacks", *sorted(set(kept.values())))
        entries = {f"{layout.PARTS}/{table}": self.storage.entries(f"{layout.PARTS}/{table}") for table in tables}
        entries |= {folder: self.storage.entries(folder) for folder in (layout.WEIGHTS, layout.ANSWERS)}
        ended = {}
        for target_id, attack_ids in planned.items():
            names = [layout.weights(target_id), *(layout.part(table, target_id) for table in TARGET_TABLES)]
            if target_id in runs:
                names = [layout.part("trials", target_id)]
            if target_id in queries:
                names.append(layout.answers(target_id, queries[target_id]))
            for each in attack_ids:
                names += [layout.part(table, f"{target_id}.{each}") for table in ("attacks", kept.get(each)) if table]
            found = [entries[folder].get(name) for folder, _, name in (name.rpartition("/") for name in names)]
            times = [entry.modified for entry in found if entry is not None and entry.size]
            if len(times) == len(names):
                ended[target_id] = max(times)
        return ended

    def planned(self) -> dict[str, list[str]] | None:
        """Target ids to attack ids of the current sweep; None if it was never written.

        Raises:
            UserError: the file is damaged.
        """
        return self._sweep().get("targets")

    def arms(self) -> dict[str, str]:
        """The arm of each target of the current sweep, in words; empty if an earlier version wrote it.

        Raises:
            UserError: the file is damaged.
        """
        sweep = self._sweep()
        arms, places = sweep.get("arms", []), sweep.get("arm_of", {})
        try:
            return {target_id: printable(arms[place], 300) for target_id, place in places.items()}
        except (IndexError, TypeError, AttributeError):
            return {}

    def searches(self) -> list[dict[str, Any]]:
        """The searches of the current sweep, as `write_sweep` recorded them.

        Raises:
            UserError: the file is damaged.
        """
        return list(self._sweep().get("searches", []))

    def _sweep(self) -> dict[str, Any]:
        """The content written by `write_sweep`; empty if there is none."""
        try:
            content = json.loads(self.storage.read(layout.SWEEP))
            if not all(ID.fullmatch(each) for target, ids in content["targets"].items() for each in (target, *ids)):
                raise ValueError("it contains something that is not an id")
                # A file of an earlier version does not list what attacks store
            content["kept"] = {each: table for each, table in content.get("kept", {}).items() if table in ATTACK_TABLES}
            for search in content.get("searches", []):
                if not all(ID.fullmatch(each) for each in (search["search_id"], *search["runs"], *search["targets"])):
                    raise ValueError("a search has something that is not an id")
            return dict(content)
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(
                f"sweep.json in {self.location} cannot be read: {_first_line(error)}. Launch the sweep again to rewrite it; "
                "nothing is lost."
            ) from None

    def parts(self, table: str, keys: Iterable[str], damaged: list[str]) -> Iterator[tuple[str, pa.Table]]:
        """Key and rows of each part, in order. A damaged part is skipped, and a line on it is added to `damaged`."""

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

    def _write(self, table: str, key: str, rows: pa.Table) -> None:
        content = io.BytesIO()
        pq.write_table(rows, content, compression="zstd", write_page_checksum=True)
        self.storage.write(layout.part(table, key), content.getvalue())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

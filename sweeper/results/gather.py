"""Gathers the parts of a results folder into one Parquet file per table."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.errors import UserError
from sweeper.results import layout
from sweeper.results.layout import ATTACK_TABLES, COMPARED_TABLES, COMPARISONS, FAILED, SUFFIX
from sweeper.results.schema import SCHEMAS
from sweeper.results.store import Store
from sweeper.storage import replace_file

_ROWS_AT_ONCE, _PARTS_AT_ONCE = 50_000, 500
"""Most rows and most parts of a gathered table held in memory; they make one row group."""
_STALE_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The folder with the tables, the number of targets left out, and one line for each damaged part."""

    folder: Path
    left_out: int
    damaged: tuple[str, ...]


def gather(store: Store, copy: Path | None = None) -> Gathered:
    """Write the tables into the results folder. A damaged part is set aside.

    An object store's tables are written to the local folder `copy`, too.

    Raises:
        UserError: the folder holds no results.
        StorageError: the store cannot be read or written.
    """
    folder = store.storage.root if store.storage.is_local else copy
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".gather-*"):  # left by a process that was killed
        with contextlib.suppress(FileNotFoundError):  # the process has just ended
            if time.time() - stale.stat().st_mtime > _STALE_S:
                shutil.rmtree(stale, ignore_errors=True)

    def publish(path: Path) -> None:
        if not store.storage.is_local:
            store.storage.write(path.name, path)
        replace_file(path, folder / path.name)

    with tempfile.TemporaryDirectory(dir=folder, prefix=".gather-") as name:
        temporary = Path(name)
        gathered = write_tables(store, temporary, publish)
        if not store.storage.is_local and (temporary / layout.SWEEP).exists():
            replace_file(temporary / layout.SWEEP, folder / layout.SWEEP)
    return replace(gathered, folder=folder)


def write_tables(store: Store, folder: Path, publish: Callable[[Path], None] = lambda path: None) -> Gathered:
    """Write each table as one file into `folder`, from the parts that belong to the sweep now, and a copy of `sweep.json`.

    Rows are in the order of the sweep. Parts are read in small batches, so memory use stays constant. A damaged part is left
    out. `publish` is called with the path of each table when it is complete.

    Raises:
        UserError: the store holds no results.
        StorageError: the store cannot be read.
    """
    planned = store.planned()
    recorded = set(store.keys("trials"))
    if planned is None:
        planned = _everything(store, recorded)
    compared = store.comparisons_now()
    if compared is None:
        compared = {
            key.removesuffix(FAILED): []
            for table in (COMPARISONS, *COMPARED_TABLES)
            for key in sorted(store.keys(table))
        }
    of_target: dict[str, list[str]] = {}
    for comparison_id, members in compared.items():
        for target_id in members:
            of_target.setdefault(target_id, []).append(comparison_id)
    planned = {
        target_id: list(dict.fromkeys([*ids, *of_target.get(target_id, ())])) for target_id, ids in planned.items()
    }
    damaged: list[str] = []

    searches = _SearchColumns(store.searches())

    def write(table: str, keys: Iterable[str]) -> None:
        path = folder / f"{table}{SUFFIX}"
        _write_table(store, table, keys, path, damaged, searches.filled if table == "trials" else lambda rows: rows)
        publish(path)

    for table in ("trials", "history", "outputs", *ATTACK_TABLES):
        there = recorded if table == "trials" else set(store.keys(table))
        write(table, _keys_in_order(table, planned, there))
    for table in (COMPARISONS, *COMPARED_TABLES):
        there = set(store.keys(table))
        write(table, [each for key in compared for each in (key, key + FAILED) if each in there])
    left_out = {key.removesuffix(FAILED) for key in recorded} - set(planned)
    if store.storage.exists(layout.SWEEP):
        (folder / layout.SWEEP).write_bytes(store.storage.read(layout.SWEEP))
    return Gathered(folder=folder, left_out=len(left_out), damaged=tuple(damaged))


def _everything(store: Store, recorded: set[str]) -> dict[str, list[str]]:
    """All records as the plan, if the sweep's own plan is missing."""
    if not recorded:
        raise UserError(
            f"{store.location} holds no results of a sweep. Name the folder that `sweeper launch` wrote to."
        )
    everything: dict[str, list[str]] = {key.removesuffix(FAILED): [] for key in sorted(recorded)}
    for key in sorted({key.removesuffix(FAILED) for key in store.keys("attacks")}):
        target, _, attack = key.partition(".")
        everything.setdefault(target, []).append(attack)
    return everything


class _SearchColumns:
    """Fills the columns of `trials` that say what chose a target's settings. They are the sweep's, not the target's."""

    _COLUMNS: ClassVar[dict[str, str]] = {
        **{name: name for name in ("search_id", "search_runs", "search_law", "epsilon_shown")},
        **{name: name for name in ("epsilon_run", "epsilon_with_search", "epsilon_trained_anew")},
        "search_objective": "objective",
        "search_basis": "basis",
    }
    """Keys of a search in `sweep.json` by column."""

    def __init__(self, searches: Sequence[Mapping[str, Any]]) -> None:
        self._of_target = {target_id: each for each in searches for target_id in (*each["runs"], *each["targets"])}

    def filled(self, rows: pa.Table) -> pa.Table:
        """The rows of targets with these columns."""
        found = [self._of_target.get(target_id) for target_id in rows.column("target_id").to_pylist()]
        for name, key in self._COLUMNS.items() if any(found) else ():
            place = rows.schema.get_field_index(name)
            values = pa.array([each and each.get(key) for each in found], rows.schema.field(place).type)
            rows = rows.set_column(place, rows.schema.field(place), values)
        return rows


def _write_table(
    store: Store,
    table: str,
    keys: Iterable[str],
    path: Path,
    damaged: list[str],
    filled: Callable[[pa.Table], pa.Table],
) -> None:
    waiting: list[pa.Table] = []
    n_rows = 0
    with pq.ParquetWriter(path, SCHEMAS[table], compression="zstd", write_page_checksum=True) as writer:
        for _, rows in store.parts(table, keys, damaged):
            waiting.append(filled(rows))
            n_rows += rows.num_rows
            if n_rows >= _ROWS_AT_ONCE or len(waiting) >= _PARTS_AT_ONCE:
                writer.write_table(pa.concat_tables(waiting))
                waiting, n_rows = [], 0
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _keys_in_order(table: str, planned: Mapping[str, Sequence[str]], there: set[str]) -> Iterator[str]:
    """Keys of a table's parts in the plan's order; a finished part takes precedence over a failed one."""
    for target_id, attack_ids in planned.items():
        found = [f"{target_id}.{each}" for each in attack_ids] if table in ATTACK_TABLES else [target_id]
        for key in found:
            yield from [each for each in (key, key + FAILED) if each in there][:1]

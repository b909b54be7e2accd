"""Which source code made the recorded results."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.results import layout
from sweeper.results.layout import COMPARISONS, FAILED, SUFFIX
from sweeper.results.store import Store


def recorded_sources(store: Store) -> dict[str, str]:
    """`component_sha256` of finished results, by target id, `target.attack` or comparison id; older records have none.

    Parts that are older than the gathered table are not read, because an object store may hold very many.
    """
    found: dict[str, str] = {}
    for table in ("trials", "attacks", COMPARISONS):
        gathered, written_at = _gathered_sources(store, table)
        entries = store.storage.entries(f"{layout.PARTS}/{table}")
        newer = []
        for key in store.keys(table):
            if key.endswith(FAILED):
                continue
            part = entries.get(key + SUFFIX)
            if written_at is None or key not in gathered or part is None or part.modified >= written_at:
                newer.append(key)
            elif gathered[key] is not None:
                found[key] = gathered[key]
        for key, rows in store.parts(table, newer, damaged=[]):
            if (recorded := rows.column("component_sha256")[0].as_py()) is not None:
                found[key] = recorded
    return found


def _gathered_sources(store: Store, table: str) -> tuple[dict[str, Any], datetime | None]:
    """Keys and source hashes of a gathered table, and when it was written; empty if there is no such table."""
    name = table + SUFFIX
    entry = store.storage.entries("").get(name)
    if entry is None:
        return {}, None
    try:
        file = pq.ParquetFile(pa.BufferReader(store.storage.read(name)))
        present = set(file.schema_arrow.names)
        rows = file.read(
            columns=[
                each for each in ("comparison_id", "target_id", "attack_id", "component_sha256") if each in present
            ]
        )
        ids = [rows.column(each).to_pylist() for each in ("comparison_id", "target_id", "attack_id") if each in present]
        recorded = rows.column("component_sha256").to_pylist() if "component_sha256" in present else []
        keys = [".".join(each) for each in zip(*ids, strict=True)]
        # Missing, or damaged; gathering repairs it
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException):
        return {}, None
    return dict(zip(keys, recorded or [None] * len(keys), strict=True)), entry.modified

"""The schemas of the Parquet tables, and the document that describes them.

`docs/schema.md` is generated from `tables/`, and a test keeps the two equal. If you change a column, increase
`SCHEMA_VERSION`.
"""

from __future__ import annotations

import pyarrow as pa

from sweeper.results.tables import attacks, comparisons, targets

SCHEMA_VERSION = 9

_TABLES = targets.TABLES | attacks.TABLES | comparisons.TABLES


def _schema(name: str) -> pa.Schema:
    purpose, columns = _TABLES[name]
    fields = [pa.field(column, kind, metadata={"description": text}) for column, kind, text in columns]
    return pa.schema(
        fields, metadata={"sweeper_table": name, "schema_version": str(SCHEMA_VERSION), "purpose": purpose}
    )


SCHEMAS: dict[str, pa.Schema] = {name: _schema(name) for name in _TABLES}
"""The schema of each table, by table name."""


def markdown() -> str:
    """The text of `docs/schema.md`."""
    lines = [
        "# The Parquet tables",
        "",
        f"Schema version {SCHEMA_VERSION}. Generated from `sweeper/results/tables/`; a test keeps them equal.",
        "Every table is one file, `RESULTS/NAME.parquet`, gathered when a launch ends and by `sweeper gather`.",
        "While a sweep runs, the same rows are in `RESULTS/parts/NAME/`, one file per target, attack or comparison.",
        "Weights are `RESULTS/weights/TARGET_ID.safetensors`. Null means: not measured or not defined.",
    ]
    for name, (purpose, columns) in _TABLES.items():
        lines += ["", f"## {name}", "", purpose, "", "| column | type | meaning |", "| --- | --- | --- |"]
        lines += [
            f"| `{column}` | {str(kind).replace('|', chr(92) + '|')} | {text.replace('|', chr(92) + '|')} |"
            for column, kind, text in columns
        ]
    return "\n".join(lines) + "\n"

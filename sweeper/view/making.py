"""Makes the report of a store for the page: `python -m sweeper.view.making RESULTS FOLDER`, a process of its own.

Making a report takes seconds of a processor; the page answers meanwhile.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from sweeper.errors import UserError
from sweeper.messages import Reporter
from sweeper.report import current_tables, report_on
from sweeper.results.store import Store

TABLES = "parquet"
"""The folder beside the report with the tables that it was made from."""


def main() -> int:
    """Writes the report, and its problem to stderr if there is one. The tables are kept beside it, for comparisons."""
    location, folder = sys.argv[1], Path(sys.argv[2])
    if hasattr(os, "nice"):
        os.nice(10)  # trials go first
    store = Store(location, sets_aside=False)
    try:
        with current_tables(store, folder) as tables:
            report_on(tables.folder, folder, store, Reporter(), keeps_copy=False)
            kept = folder / TABLES
            kept.mkdir(exist_ok=True)
            for path in tables.folder.glob("*.parquet"):
                shutil.copyfile(path, kept / path.name)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

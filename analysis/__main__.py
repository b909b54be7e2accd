"""`python -m analysis RESULTS [--out DIR]`: writes the report of a results folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.load import ResultsError
from analysis.report.write import write_report


def main(arguments: list[str] | None = None) -> int:
    """Writes the report and says where it is. The exit status is 2 if the results cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Tables, figures and a report.")
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder with the Parquet tables")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RESULTS/report)")
    options = parser.parse_args(arguments)
    try:
        page = write_report(options.results, options.out)
    except (ResultsError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    out = page.parent
    sys.stdout.write(f"Report: {page}\nTables: {out / 'tables'}\nFigures: {out / 'figures'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m analysis RESULTS [--out DIR]`: writes the report of a results folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.load import ResultsError
from analysis.measure.answer import WITHIN, Preference, PreferenceError
from analysis.presentation import Presentation, PresentationError, read_presentation
from analysis.report.write import write_report


def main(arguments: list[str] | None = None) -> int:
    """Writes the report and says where it is. The exit status is 2 if the results cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Tables, figures and a report.")
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder with the Parquet tables")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RESULTS/report)")
    parser.add_argument("--weight", type=float, metavar="W", help="best is the highest accuracy − W · (AUC − 0.5)")
    parser.add_argument(
        "--within", type=float, metavar="POINTS", default=WITHIN,
        help="without --weight, best is the lowest AUC within so many points of the best accuracy (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument("--style", type=Path, metavar="FILE", help="YAML with names, order, colors and markers of arms")
    options = parser.parse_args(arguments)
    try:
        preference = Preference(within=options.within, weight=options.weight)
        presentation = Presentation() if options.style is None else read_presentation(options.style)
        page = write_report(options.results, options.out, preference=preference, presentation=presentation)
    except (ResultsError, PresentationError, PreferenceError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    out = page.parent
    sys.stdout.write(f"Report: {page}\nTables: {out / 'tables'}\nFigures: {out / 'figures'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

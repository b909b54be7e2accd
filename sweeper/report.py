"""The report of a results folder: the tables that it is made from, and where it goes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sweeper.errors import UserError, reason_of

if TYPE_CHECKING:
    from sweeper.messages import Reporter
    from sweeper.results.gather import Gathered
    from sweeper.results.store import Store


@contextlib.contextmanager
def current_tables(store: Store, out: Path) -> Iterator[Gathered]:
    """The tables by the parts on record now, in a temporary folder below `out`, the report's folder.

    If a local folder has no parts, only its gathered tables were passed on; it is then used itself.

    Raises:
        UserError: `out` cannot be written, or there are no results.
        StorageError: the store cannot be read.
    """
    from sweeper.results import layout
    from sweeper.results.gather import Gathered, write_tables

    if store.storage.is_local and not (store.storage.root / layout.PARTS).is_dir():
        yield Gathered(folder=store.storage.root, left_out=0, damaged=())
        return
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            # `write_report` removes folders of this name that killed processes left.
            temporary = stack.enter_context(tempfile.TemporaryDirectory(dir=out, prefix=".making-"))
            tables = write_tables(store, Path(temporary))
        except OSError as error:
            raise _unwritten(error) from None
        yield tables


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a user wants of a report: the rule of the best defense (`Preference` of the analysis), and a file of names and looks."""

    weight: float | None = None
    within: float = 2.0
    style: Path | None = None


def report_on(
    tables: Path,
    to: Path | None,
    store: Store,
    reporter: Reporter,
    wishes: Wishes | None = None,
    *,
    keeps_copy: bool = True,
) -> Path:
    """Write the report on a folder of tables. Returns the page's path.

    With `keeps_copy`, it is copied beside results in an object store.

    Raises:
        UserError: the tables or the wishes cannot be used, or the report cannot be written.
    """
    from analysis.load import ResultsError
    from analysis.measure.answer import Preference, PreferenceError
    from analysis.presentation import PresentationError, read_presentation
    from analysis.report.write import write_report
    from sweeper.results import layout

    def copy(name: str, path: Path) -> None:
        if keeps_copy and not store.storage.is_local:
            store.storage.write(f"{layout.REPORT}/{name}", path)

    wishes = wishes or Wishes()
    try:
        preference = Preference(weight=wishes.weight, within=wishes.within)
        presentation = None if wishes.style is None else read_presentation(wishes.style)
        with reporter.working("writing the report"):
            return write_report(tables, to, copy, preference, presentation)
    except (ResultsError, PreferenceError, PresentationError) as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise _unwritten(error) from None


def compared_tables(first: Path, second: Path) -> list[dict[str, Any]]:
    """What changed from one folder of tables to another, as plain values: a row per arm, place and quantity.

    Raises:
        UserError: one of them cannot be read.
    """
    from analysis.load import ResultsError, load
    from analysis.measure.against import compared
    from analysis.measure.targets import measure

    try:
        changes = compared(measure(load(first)), measure(load(second)))
    except ResultsError as error:
        raise UserError(str(error)) from None

    def ends(estimate: Any) -> list[float | None]:
        return [estimate.mean, estimate.low, estimate.high]

    return [
        {
            **{name: getattr(each, name) for name in ("arm", "where", "column", "outcome")},
            **{name: ends(getattr(each, name)) for name in ("first", "second", "difference")},
        }
        for each in changes
    ]


def local_folder(store: Store) -> Path:
    """The folder for a store's tables and report on this machine: its own, or that of an object store's copy."""
    if store.storage.is_local:
        return store.storage.root
    place = urlsplit(store.storage.uri)
    return copy_folder(PurePosixPath(place.path).name or place.netloc.rpartition("@")[2])


def copy_folder(name: str) -> Path:
    """The local folder for an object store's tables and report; never the folder of a sweep's own results."""
    folder = Path("results") / name
    return folder.with_name(f"{name}-copy") if (folder / "parts").exists() else folder


def _unwritten(error: OSError) -> UserError:
    return UserError(
        f"The report cannot be written: {reason_of(error)}. Name another folder with `sweeper report --to`."
    )

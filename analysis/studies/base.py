"""What a study is, and the chapter that it adds to a report.

The package `analysis/studies/NAME/` has the constant `STUDY`. Its chapter must not depend on what other studies find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis import studies
from analysis.claims import Claim
from analysis.figures.style import FigureFile
from analysis.load import Results
from analysis.measure.targets import BASELINE_LABELS, Measurements
from analysis.report.findings import Finding
from analysis.tables.model import Table


def _no_figures(directory: Path) -> list[FigureFile]:
    return []


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What a study says about some results. Each part may be empty.

    `draw` writes the figures below a folder, as PNG and SVG. `glossary` has each term with its meaning. `covers_all` is True
    if the chapter covers everything in the results. The report then leaves out the chapters of other studies, and the findings
    by dataset, which would repeat the chapter.
    """

    findings: tuple[Finding, ...] = ()
    claims: tuple[Claim, ...] = ()
    tables: tuple[Table, ...] = ()
    draw: Callable[[Path], list[FigureFile]] = _no_figures
    glossary: tuple[tuple[str, str], ...] = ()
    covers_all: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """A paper, and how results are compared with it.

    `title` is its short name, as in “Abadi et al. (2016)”; `sweep` is the sweep that repeats it, and `smaller_sweeps` ask the same
    questions of less. `chapter` gives None for
    results that the study says nothing about. `judging` and `reading` explain its verdicts and its tables to a reader.

    `display_names` are how people write the labels of its sweep. `datasets` and `defenses` are labels that every table and
    figure shows first, in this order. The file names of its figures begin with one of `figure_names`; a report deletes
    an earlier report's figures with such names.
    """

    title: str
    citation: str
    sweep: str
    chapter: Callable[[Results, Measurements], Chapter | None]
    smaller_sweeps: tuple[str, ...] = ()
    judging: str = ""
    reading: str = ""
    display_names: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ()
    figure_names: tuple[str, ...] = ()

    def is_own(self, results: Results) -> bool:
        """Whether the results come from a sweep that repeats the paper."""
        return bool({self.sweep, *self.smaller_sweeps} & set(results.trials["sweep"]))


def chapters(results: Results, measured: Measurements) -> list[tuple[Study, Chapter]]:
    """Every study with a chapter for these results, or only the study whose chapter covers all of them.

    A chapter does not cover results with defenses that another study lists, unless they come from its own sweep alone. Undefended
    models belong to any study.
    """
    made = [(study, chapter) for study in studies.found() if (chapter := study.chapter(results, measured)) is not None]
    labels = set(results.trials["defense"]) - set(BASELINE_LABELS)
    for study, chapter in made:
        others = {label for other in studies.found() if other is not study for label in other.defenses}
        is_only = {study.sweep, *study.smaller_sweeps} >= set(results.trials["sweep"])
        if chapter.covers_all and (is_only or not labels & others):
            return [(study, chapter)]
    return [(study, replace(chapter, covers_all=False)) for study, chapter in made]

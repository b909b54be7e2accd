"""Studies: each one found works on any results, the core names none, and a new one is one new folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from analysis_fixture import make_rows, write_tables
from factor_fixture import make_factor_rows, write_factor_tables

import analysis
from analysis import naming, studies
from analysis.claims import Verdict
from analysis.figures import style
from analysis.load import Results, load
from analysis.measure.targets import Measurements, measure
from analysis.report.figures import is_ours
from analysis.report.write import write_report
from analysis.studies.base import Chapter, Study, chapters
from analysis.tables.as_csv import table_csv
from analysis.tables.as_html import table_html
from analysis.tables.as_latex import table_latex

pytestmark = pytest.mark.slow

FOLDER = Path(analysis.__file__).parent
FOUND = {study.sweep: study for study in studies.found()}


@pytest.fixture(scope="module", autouse=True)
def small_figures() -> Iterator[None]:
    """Figures of few pixels: drawing is most of the time that a report takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Results, Measurements]]:
    """Results of defenses, of mechanisms, and of no trial."""
    folder = tmp_path_factory.mktemp("results")
    defenses = make_rows(datasets=("mnist",), seeds=(0, 1), n=5)
    mechanisms = make_factor_rows(datasets=("mnist",), models=("lin_cnn",), optimizers=("adam",), seeds=(0, 1), n=3)
    directories = {
        "defenses": write_tables(folder / "defenses", defenses),
        "mechanisms": write_factor_tables(folder / "mechanisms", mechanisms),
        "nothing": write_tables(folder / "nothing", {name: [] for name in defenses}),
    }
    loaded = {name: load(directory) for name, directory in directories.items()}
    return {name: (results, measure(results)) for name, results in loaded.items()}


def paper_folders() -> list[Path]:
    return sorted(path.parent for path in (FOLDER / "studies").glob("*/__init__.py"))


def test_every_folder_is_a_study() -> None:
    assert [path.name for path in paper_folders()] == [study.sweep for study in studies.found()]
    assert all(isinstance(study, Study) for study in studies.found())


@pytest.mark.parametrize("fixture", ["defenses", "mechanisms", "nothing"])
@pytest.mark.parametrize("name", sorted(FOUND))
def test_a_study_gives_a_whole_chapter_or_none(
    measured: dict[str, tuple[Results, Measurements]], tmp_path: Path, name: str, fixture: str
) -> None:
    study = FOUND[name]
    chapter = study.chapter(*measured[fixture])
    if chapter is None:
        return
    assert isinstance(chapter, Chapter)
    for table in chapter.tables:
        assert bool(table.rows) != bool(table.missing)
        assert all(len(row) == len(table.columns) for row in table.rows)
        lines = table_csv(table).splitlines()
        assert len(lines) == 1 + len(table.rows)
        assert len(set(lines[0].split(","))) == len(lines[0].split(","))
        assert naming.latex_label("mine", table.name) in table_latex(table, "mine") or table.missing
        page = table_html(table)
        assert page.count("<tr>") == (1 + len(table.rows) if table.rows else 0)
        assert not re.search(r"\b(nan|None)\b", page)
    names = [table.name for table in chapter.tables]
    assert len(set(names)) == len(names)
    assert {claim.verdict for claim in chapter.claims} <= set(get_args(Verdict))
    assert all(claim.evidence for claim in chapter.claims)
    assert all(finding.sentences for finding in chapter.findings)
    assert all(term and meaning for term, meaning in chapter.glossary)
    with style.style():
        figures = chapter.draw(tmp_path)
    assert all(bool(figure.png) != bool(figure.missing) for figure in figures)
    assert all(figure.name.startswith(study.figure_names) for figure in figures)
    assert all(is_ours(path.name) for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fixture", "own", "other"),
    [
        ("defenses", "lomurno2022", "lin2020"),
        ("mechanisms", "lin2020", "lomurno2022"),
        ("nothing", "lomurno2022", "lin2020"),
    ],
)
def test_results_have_the_chapter_of_their_own_study(
    measured: dict[str, tuple[Results, Measurements]], fixture: str, own: str, other: str
) -> None:
    names = [study.sweep for study, _ in chapters(*measured[fixture])]
    assert own in names
    assert other not in names


def test_studies_agree_on_names_and_share_no_file(measured: dict[str, tuple[Results, Measurements]]) -> None:
    names: dict[str, set[str]] = {}
    for study in studies.found():
        for label, name in study.display_names.items():
            names.setdefault(label, {naming.display(label)}).add(name)
    assert all(len(found) == 1 for found in names.values())
    owned = [beginning for study in studies.found() for beginning in study.figure_names]
    assert not [(a, b) for a in owned for b in (*owned, "tradeoff", "roc") if a is not b and b.startswith(a)]
    files: list[str] = []
    for study in studies.found():
        found = {
            table.name
            for given in measured.values()
            if (chapter := study.chapter(*given)) is not None
            for table in chapter.tables
        }
        files += found
    assert len(set(files)) == len(files)
    assert not {"summary", "recipes"} & set(files)


def test_the_core_and_the_template_name_no_paper() -> None:
    papers = [path.name for path in paper_folders()]
    surnames = {word for study in studies.found() for word in re.findall(r"[A-Z]\w+", study.title)}
    assert {"Lin", "Lomurno"} <= surnames
    named = re.compile("|".join([*papers, *(rf"\b{name}\b" for name in sorted(surnames))]))
    spoken = re.compile(r"(table|figure) ?\d|(first|second|other) paper|\bfactors?\b|\blin_|\blomurno", re.IGNORECASE)
    core = [
        path
        for path in [*FOLDER.rglob("*.py"), *FOLDER.rglob("*.jinja")]
        if not any(path.is_relative_to(folder) for folder in paper_folders())
    ]
    assert len(core) > 25
    for path in core:
        text = path.read_text(encoding="utf-8")
        assert not (found := named.search(text) or spoken.search(text)), f"{path}: {found}"


# --- a new study ------------------------------------------------------------------------------

NEW_STUDY = """
from analysis.claims import ABOVE_ZERO, Vote, decide
from analysis.report.findings import Finding
from analysis.statistics.estimates import estimate
from analysis.studies.base import Chapter, Study
from analysis.tables.model import Column, Label, Mean, Table


def _chapter(results, measured):
    if "my_defense" not in measured.defenses:
        return None
    accuracy = estimate(measured.frame["test_accuracy"])
    return Chapter(
        findings=(Finding(heading="What the made-up study finds", sentences=("It finds <little>.",)),),
        claims=(decide("Accuracy is above zero.", [Vote(words="all", judged=accuracy, claimed=ABOVE_ZERO)]),),
        tables=(
            Table(
                name="made_up_accuracy",
                title="Accuracy",
                columns=(Column(key="what", name="What", kind="label"), Column(key="x", name="X", kind="mean")),
                rows=((Label(value="my_defense"), Mean(ours=accuracy, paper=0.5)),),
            ),
        ),
        glossary=(("A made-up term", "Its meaning."),),
        covers_all=True,
    )


STUDY = Study(
    title="Made & Up (2099)",
    citation="Made & Up (2099), “A made-up paper”",
    sweep="made_up2099",
    chapter=_chapter,
    display_names={"my_defense": "My Defense"},
    figure_names=("made_up_",),
)
"""


@pytest.fixture
def made_up_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One more folder in `analysis/studies`."""
    (tmp_path / "found" / "made_up2099").mkdir(parents=True)
    (tmp_path / "found" / "made_up2099" / "__init__.py").write_text(NEW_STUDY, encoding="utf-8")

    def forget() -> None:
        studies.found.cache_clear()
        naming._display_names.cache_clear()

    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path / "found")])
    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.mark.usefixtures("made_up_study")
def test_a_study_is_added_by_one_folder(tmp_path: Path) -> None:
    rows = make_rows(defenses=("none", "my_defense"), seeds=(0, 1), n=5)
    directory = write_tables(tmp_path / "results", rows)
    (directory / "report" / "figures").mkdir(parents=True)
    (directory / "report" / "figures" / "made_up_old.png").write_text("of an earlier report")
    page = write_report(directory).read_text(encoding="utf-8")
    assert "What Made &amp; Up (2099) claimed, and what held here" in page
    assert "Accuracy is above zero." in page
    assert "It finds &lt;little&gt;." in page
    assert "<dt>A made-up term</dt>" in page
    assert "My Defense" in page
    assert "Lomurno" not in page  # the new study covers all of these results
    assert (
        (directory / "report" / "tables" / "made_up_accuracy.csv")
        .read_text(encoding="utf-8")
        .startswith("what,x_mean,x_low,x_high,x_n_seeds,x_paper,x_difference\nmy_defense,")
    )
    assert not (directory / "report" / "figures" / "made_up_old.png").exists()
    # Results with the defenses of another study are not covered: both have a chapter
    results = load(write_tables(tmp_path / "both", make_rows(defenses=("none", "my_defense", "l2"), seeds=(0,), n=5)))
    found = chapters(results, measure(results))
    assert {"lomurno2022", "made_up2099"} <= {study.sweep for study, _ in found}
    assert not any(chapter.covers_all for _, chapter in found)


def test_a_report_is_all_that_is_written(tmp_path: Path) -> None:
    rows = make_factor_rows(datasets=("mnist",), models=("lin_cnn",), optimizers=("adam",), seeds=(0,), n=3)
    directory = write_factor_tables(tmp_path / "results", rows)

    def state() -> dict[str, tuple[bytes, int]]:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path.relative_to(tmp_path).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    write_report(directory)
    after = state()
    assert {name: after[name] for name in before} == before
    new = {name.removeprefix("results/report/") for name in set(after) - set(before)}
    assert {name.split("/")[0] for name in new} == {"report.html", "tables", "figures"}
    assert {name.rsplit(".", 1)[-1] for name in new} == {"html", "csv", "tex", "png", "svg", "pdf"}

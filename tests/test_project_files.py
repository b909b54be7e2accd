"""Files about the project that no program of ours reads agree with it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import sweeper

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_has_what_its_format_requires_and_the_project_s_version() -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["type"] == "software"
    assert citation["authors"] == [{"name": "The sweeper developers"}]
    assert (citation["title"], citation["license"]) == (PROJECT["project"]["name"], PROJECT["project"]["license"])
    assert citation["version"] == PROJECT["project"]["version"] == sweeper.__version__
    known = {"cff-version", "message", "title", "type", "abstract", "authors", "version", "license", "keywords"}
    assert set(citation) <= known, "of the format's keys, those that this file uses"


def test_every_package_of_the_wheel_says_that_it_is_typed() -> None:
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (ROOT / package / "py.typed").read_bytes() == b""


def test_the_workflow_runs_the_checks_on_the_oldest_python_and_a_new_one() -> None:
    job = read(".github/workflows/ci.yml")["jobs"]["check"]
    versions = job["strategy"]["matrix"]["python"]
    assert f">={versions[0]}" == PROJECT["project"]["requires-python"]
    assert len(versions) == 2
    (step,) = [step for step in job["steps"] if step.get("run") == ".ci/run"]
    assert step["env"]["PYTHON"] == "${{ steps.python.outputs.python-path }}", "the Makefile's variable"


def test_the_hooks_before_a_commit_are_those_of_make_lint() -> None:
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nlint:")[1].split("\n\n")[0]
    commands = {line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in lint.splitlines()[1:]}
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert {hook["entry"] for hook in repository["hooks"]} == commands


@pytest.mark.parametrize("path", FORMS, ids=[path.stem for path in FORMS])
def test_the_forms_for_issues_are_complete(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    for field in fields:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert field["attributes"]["label"]


def test_the_changes_begin_with_what_is_not_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[:2] == ["## Unreleased", f"## {PROJECT['project']['version']}"]

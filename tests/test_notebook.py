"""The notebook reads made-up results, with pandas and matplotlib alone."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest
from analysis_fixture import write_tables
from cohort_fixture import with_cohorts
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "reading_results.ipynb"


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_runs_and_says_what_the_results_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = write_tables(tmp_path / "results", with_cohorts(broken={"l2"}))
    monkeypatch.setenv("SWEEPER_RESULTS", str(results))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read()
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "finished    24" in text
    assert "defense: baseline" in text, "the arm with the highest AUC"
    assert "1 of 3 nulls miss .5: l2" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_the_notebook_is_committed_without_outputs_and_needs_no_code_of_ours() -> None:
    code = [cell for cell in read().cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    nodes = list(ast.walk(ast.parse("\n".join(cell.source for cell in code))))
    imported = {each.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for each in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported - sys.stdlib_module_names == {"pandas", "matplotlib"}


def test_the_notebook_s_links_lead_to_files() -> None:
    prose = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", prose)
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links)

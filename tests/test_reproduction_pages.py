"""The reproduction pages: their tables are those of their CSV files, and each says which code made its results."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
MADE = runpy.run_path(str(ROOT / "docs" / "reproduction" / "tables.py"))
IDS = [page.parent.name for page in MADE["PAGES"]]


@pytest.mark.parametrize("page", MADE["PAGES"], ids=IDS)
def test_the_tables_of_a_page_are_those_of_its_csv_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert MADE["written"](page) == text, "run: python docs/reproduction/tables.py"


def test_another_number_in_a_table_or_in_its_csv_is_found(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    (tmp_path / "one.csv").write_text(
        "dataset,defense,auc_mean,auc_low,auc_high,n\nmnist,l2,.51,.5,.52,3\nmnist,dp_eps2,.6,,,1\ncifar10,l2,.7,.6,.8,3\n"
    )
    comment = (
        '<!-- table\ncsv: one.csv\nwhere: {dataset: mnist}\nsort: auc\ncolumns: {Defense: "{defense}", '
        'AUC: "{auc:.2f}", low: "{auc_low:.1f}", seeds: "{n}"}\n-->\n'
    )
    rows = (
        "| Defense | AUC | low | seeds |\n| --- | --- | --- | --- |\n"
        "| DP ε=2 | 0.60 | – | 1 |\n| L2 | 0.51 [0.50, 0.52] | 0.5 | 3 |\n"
    )
    whole = f"Before.\n\n{comment}{rows}<!-- end -->\n\nAfter.\n"
    page.write_text(whole, encoding="utf-8")
    assert MADE["written"](page) == whole
    page.write_text(whole.replace("0.51", "0.57"), encoding="utf-8")
    assert MADE["written"](page) == whole


@pytest.mark.parametrize("page", MADE["PAGES"], ids=IDS)
def test_a_page_names_the_code_that_made_its_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    trials = page.parent / "results" / "trials.parquet"
    if trials.exists():
        made = pd.read_parquet(trials, columns=["git_commit", "schema_version"]).drop_duplicates()
        assert all(f"`{commit[:7]}`" in text for commit in made["git_commit"])
        assert all(f"schema {version}" in text for version in made["schema_version"])
    else:
        assert re.search(r"made at commit `[0-9a-f]{7}`", text)

"""The examples of audits and of a gate in continuous integration."""

from __future__ import annotations

import runpy
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sweeper.release import gate, parse_limit
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_forests_and_boosted_trees_are_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "audit" / "tree_models.py"))["main"](tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed if line[0] != " "] == ["random_forest", "xgboost"]
    for name in ("random_forest", "xgboost"):
        metrics = pd.read_parquet(tmp_path / f"{name}.parquet").set_index("score_name")
        lira = metrics.loc["online_log_odds"]
        assert lira["auc_low"] > 0.55
        assert lira["null_auc_low"] <= 0.5 <= lira["null_auc_high"]
        metrics_file = str(tmp_path / f"{name}.parquet")
        assert gate(metrics_file, [parse_limit("auc=0.99", is_least=False)]).verdict == "pass"
        assert gate(metrics_file, [parse_limit("auc=0.51", is_least=False)]).verdict == "fail"
        records = pd.read_parquet(tmp_path / f"{name}_records.parquet")
        assert (records[records["attack"] == "lira"].groupby("example_id").size() == 1).all()


def test_the_workflow_names_a_sweep_and_a_gate_that_exist() -> None:
    workflow = yaml.safe_load((EXAMPLES / "ci" / "workflow.yaml").read_text(encoding="utf-8"))
    commands = [shlex.split(step["run"]) for step in workflow["jobs"]["privacy"]["steps"] if "run" in step]
    launch, judge, card = (words for words in commands if words[0] == "sweeper")
    trials = expand(load_sweep(str(EXAMPLES.parent / launch[2])))
    assert len(trials) == 32
    out = launch[launch.index("--out") + 1]
    assert judge[:3] == ["sweeper", "gate", out]
    assert card[:3] == ["sweeper", "card", out]
    labels = {trial.defense_label for trial in trials}
    assert {words[words.index("--defense") + 1] for words in (judge, card)} <= labels
    limits = [
        parse_limit(judge[place + 1], is_least=word == "--min")
        for place, word in enumerate(judge)
        if word in ("--max", "--min")
    ]
    assert {limit.name for limit in limits} == {"auc", "tpr@1%", "epsilon", "test_accuracy"}
    assert int(judge[judge.index("--min-seeds") + 1]) <= len({trial.seed for trial in trials})

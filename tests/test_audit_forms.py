"""Audits of what people have: one number per record, regressors, several models, arrays, and the Python function."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import sweeper
from sweeper.auditing.forms import read_stored, stored_arrays
from sweeper.auditing.outputs import StoredCohort, StoredOutputs, StoredScores
from sweeper.cli import app
from sweeper.errors import UserError

N = 300


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def members(n: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, 1]).random(n) < 0.5


def cohort(
    models: int = 16, n: int = N, classes: int = 3, queries: int = 1, leak: float = 1.5, seed: int = 0
) -> dict[str, Any]:
    """Models whose true logit is higher on their own members, above a difficulty that records have in all models."""
    rng = np.random.default_rng(seed)
    is_member = rng.random((models, n)) < 0.5
    label = rng.integers(0, classes, n)
    logits = rng.normal(size=(models, n, queries, classes))
    hard = 3 * rng.normal(size=n)
    logits[:, np.arange(n), :, label] += (hard + leak * is_member).T[:, :, None]
    return {"is_member": is_member, "label": label, "logits": logits}


def long_table(content: dict[str, Any], **more: Any) -> pa.Table:
    """One row per model, record and query."""
    m, n, q, _ = content["logits"].shape
    model, record, query = (
        each.ravel() for each in np.meshgrid(np.arange(m), np.arange(n), np.arange(q), indexing="ij")
    )
    return pa.table(
        {
            "model": [f"model {each}" for each in model],
            "example_id": record,
            "query": query,
            "label": content["label"][record],
            "is_member": content["is_member"][model, record],
            "logits": list(content["logits"][model, record, query]),
            **more,
        }
    )


# One number per record


@pytest.mark.parametrize("name", ["score", "loss"])
def test_one_number_per_record_is_ranked_as_it_is(tmp_path: Path, name: str) -> None:
    member = members()
    values = np.random.default_rng(1).normal(size=N) + member
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"is_member": member, name: values if name == "score" else -values}), path)
    result = command("audit", path, "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["attack"] == name
    assert row["auc"] == pytest.approx(roc_auc_score(member, values))
    assert (row["n_members"], row["n_non_members"]) == (member.sum(), (~member).sum())
    assert "one score" not in result.output
    assert command("audit", path, "--attack", "loss").exit_code == 2


def test_a_regressor_is_judged_by_its_residuals(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    member = members()
    target = rng.normal(size=N)
    prediction = target + rng.normal(size=N) * np.where(member, 0.5, 1.0)
    path = tmp_path / "regression.parquet"
    pq.write_table(pa.table({"is_member": member, "prediction": prediction, "target": target}), path)
    (row,) = json.loads(command("audit", path, "--json").stdout)
    assert row["auc"] == pytest.approx(roc_auc_score(member, -np.abs(prediction - target)))
    found = sweeper.audit(is_member=member, prediction=prediction, target=target)
    assert found.metrics["auc"][0] == row["auc"]


def test_per_record_says_which_records_an_attacker_finds(tmp_path: Path) -> None:
    member = members()
    values = np.random.default_rng(1).normal(size=N) + 2 * member
    path, records = tmp_path / "scores.parquet", tmp_path / "records.parquet"
    pq.write_table(pa.table({"is_member": member, "score": values, "example_id": np.arange(N) + 7}), path)
    assert command("audit", path, "--per-record", records).exit_code == 0
    found = pd.read_parquet(records).set_index("example_id")
    assert len(found) == N
    for place in (0, 17, 200):
        assert found.loc[place + 7, "fpr"] == pytest.approx(np.mean(values[~member] >= values[place]))
    # An attacker who says "member" where the share is below 10 % has that FPR
    assert found.loc[~found["is_member"], "fpr"].le(0.1).mean() == pytest.approx(0.1, abs=0.02)
    assert command("audit", path, "--per-record", tmp_path / "no" / "where.parquet").exit_code == 2


@pytest.mark.parametrize("form", ["scores", "outputs", "cohort", "arrays"])
def test_records_keep_ids_that_are_text(tmp_path: Path, form: str) -> None:
    content = cohort(models=8, n=60)
    names = np.array([f"patient {(7 * place) % 60}" for place in range(60)])
    path, records = tmp_path / "stored.parquet", tmp_path / "records.parquet"
    member, first = content["is_member"][0], content["logits"][0, :, 0]
    if form == "scores":
        pq.write_table(pa.table({"is_member": member, "score": first[:, 0], "example_id": names}), path)
    elif form == "outputs":
        table = {"is_member": member, "label": content["label"], "logits": list(first), "example_id": names}
        pq.write_table(pa.table(table), path)
    else:
        table = long_table(content)
        ids = pa.array(names[table.column("example_id").to_numpy()])
        table = table.set_column(table.column_names.index("example_id"), "example_id", ids)
        pq.write_table(table, path)
    if form == "arrays":
        found = sweeper.audit(**content, example_id=names, attacks=["lira"]).records
    else:
        attack = [] if form == "scores" else ["--attack", "lira" if form == "cohort" else "loss"]
        assert command("audit", path, *attack, "--per-record", records).exit_code == 0
        found = pd.read_parquet(records)
    if form in ("cohort", "arrays"):  # without those that all models have, or none
        assert 50 < len(found) < 60
        place_of = {name: place for place, name in enumerate(names)}
        assert (found["label"] == content["label"][[place_of[each] for each in found["example_id"]]]).all()
    else:
        assert set(found["example_id"]) == set(names)
    if form == "scores":
        scores = found.set_index("example_id")["score"]
        np.testing.assert_array_equal(scores[names], first[:, 0])


# Several models


def test_models_that_attack_each_other_see_more_than_a_threshold(tmp_path: Path) -> None:
    content = cohort()
    path = tmp_path / "models.parquet"
    pq.write_table(long_table(content), path)
    result = command(
        "audit", path, "--json", "--per-record", tmp_path / "records.parquet", "--out", tmp_path / "out.parquet"
    )
    assert result.exit_code == 0, result.output
    rows = {(row["attack"], row["score_name"]): row for row in json.loads(result.stdout)}
    assert set(rows) >= {("lira", "online_log_odds"), ("ratio", "online"), ("label_only", "label_only")}
    threshold = np.mean(
        [
            roc_auc_score(member, logits[np.arange(N), 0, content["label"]] - np.delete(logits[:, 0], 0, 1).max(1) * 0)
            for member, logits in zip(content["is_member"], content["logits"], strict=True)
        ]
    )
    lira = rows["lira", "online_log_odds"]
    assert lira["auc"] > threshold + 0.1
    assert lira["null_auc_low"] <= 0.5 <= lira["null_auc_high"]
    assert (lira["n_targets"], lira["n_examples"]) == (16, N)
    records = pd.read_parquet(tmp_path / "records.parquet")
    assert len(records[records["attack"] == "lira"]) == N
    printed = command("audit", path, "--attack", "ratio")
    assert printed.exit_code == 0
    assert "16 models that attack each other" in printed.output


def test_a_gaussian_cohort_has_the_auc_of_its_likelihood_ratio() -> None:
    """Scores N(difficulty, 1), one higher with the record: an attacker who knows both has AUC Φ(1/√2); 32 models come near it."""
    rng = np.random.default_rng(3)
    is_member = rng.random((32, 2000)) < 0.5
    score = 5 * rng.normal(size=2000) + is_member + rng.normal(size=(32, 2000))
    found = sweeper.audit(is_member=is_member, score=score, attacks=["lira"]).metrics.set_index("score_name")
    best = norm.cdf(1 / math.sqrt(2))
    assert best - 0.03 < found.loc["online_log_odds", "auc"] < best + 0.005
    blind = np.mean([roc_auc_score(member, each) for member, each in zip(is_member, score, strict=True)])
    assert blind < 0.6


def test_all_forms_of_one_cohort_give_the_same(tmp_path: Path) -> None:
    content = cohort(models=6, queries=2)
    pq.write_table(long_table(content), tmp_path / "long.parquet")
    shuffled = long_table(content).take(np.random.default_rng(0).permutation(6 * N * 2))
    for model in range(6):
        folder = tmp_path / "folder" / f"model={model}"
        folder.mkdir(parents=True)
        rows = [place for place, name in enumerate(shuffled.column("model").to_pylist()) if name == f"model {model}"]
        pq.write_table(shuffled.take(rows).drop_columns(["model"]), folder / "outputs.parquet")
    np.savez(tmp_path / "arrays.npz", **content)
    np.savez(
        tmp_path / "transposed.npz",
        membership=content["is_member"].T,
        labels=content["label"],
        logits=content["logits"],
    )
    forms = [read_stored(tmp_path / name) for name in ("long.parquet", "folder", "arrays.npz", "transposed.npz")]
    forms.append(stored_arrays(**content))
    for stored in forms:
        assert isinstance(stored, StoredCohort)
        np.testing.assert_array_equal(stored.is_member, content["is_member"])
        np.testing.assert_array_equal(stored.label, content["label"])
        np.testing.assert_allclose(stored.logits, content["logits"])


def test_probabilities_of_a_cohort_are_its_logits_up_to_a_constant() -> None:
    content = cohort(models=4)
    logits = content.pop("logits")
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    by_logits = sweeper.audit(**content, logits=logits, attacks=["lira"]).metrics
    by_probabilities = sweeper.audit(**content, probabilities=probabilities, attacks=["lira"]).metrics
    np.testing.assert_allclose(by_logits["auc"], by_probabilities["auc"], atol=1e-6)


def test_losses_of_a_cohort_are_attacked_as_the_probabilities_that_they_are_of() -> None:
    content = cohort(models=6)
    logits = content.pop("logits")[:, :, 0]
    true = np.take_along_axis(logits, content["label"][None, :, None], axis=2)[..., 0]
    loss = np.log(np.exp(logits).sum(-1)) - true
    by_logits = sweeper.audit(**content, logits=logits, attacks=["lira", "ratio"]).metrics
    by_loss = sweeper.audit(is_member=content["is_member"], loss=loss).metrics
    assert set(by_loss["attack"]) == {"lira", "ratio"}  # there are no labels to be right about
    for score in ("online_log_odds", "online"):
        expected, found = (table.set_index("score_name").loc[score, "auc"] for table in (by_logits, by_loss))
        assert found == pytest.approx(expected, abs=1e-6)


def test_one_output_unit_and_named_classes(tmp_path: Path) -> None:
    member, label = members(), np.random.default_rng(0).integers(0, 2, N)
    single = np.random.default_rng(1).normal(size=N)
    flat, column = (
        sweeper.audit(is_member=member, label=label, logits=each).metrics for each in (single, single[:, None])
    )
    pd.testing.assert_frame_equal(flat, column)
    with pytest.raises(UserError, match="number the classes"):
        sweeper.audit(is_member=member, label=np.where(label, "yes", "no"), logits=single)
    with pytest.raises(UserError, match="3 dimensions"):
        sweeper.audit(is_member=member, label=label, logits=np.zeros((N, 2, 3)))
    path = tmp_path / "one.parquet"
    pq.write_table(
        pa.table({"is_member": member, "score": single, "model": ["only"] * N, "example_id": np.arange(N)}), path
    )
    (row,) = json.loads(command("audit", path, "--json").stdout)
    assert row["auc"] == pytest.approx(roc_auc_score(member, single))


def test_records_that_no_model_or_every_model_has_are_not_in_the_pool() -> None:
    content = cohort(models=8)
    content["is_member"][:, :20] = False
    content["is_member"][:, 20:30] = True
    found = sweeper.audit(**content).metrics
    count = content["is_member"].sum(axis=0)
    assert set(found["n_examples"]) == {((count > 0) & (count < 8)).sum()}
    assert "rmia_online" in set(found["score_name"])
    assert f"{(count == 8).sum()} records are members of all models" in found["input_changes"][0][0]
    without = {name: np.delete(each, np.arange(30), axis=1 if name != "label" else 0) for name, each in content.items()}
    pool = sweeper.audit(**without, attacks=["lira"]).metrics
    np.testing.assert_allclose(pool["auc"], found.loc[found["attack"] == "lira", "auc"])


def test_complements_may_be_anywhere_and_are_no_references() -> None:
    rng = np.random.default_rng(0)
    half = rng.random((4, N)) < 0.5
    is_member = np.concatenate([half, ~half])[[0, 5, 2, 7, 4, 1, 6, 3]]
    found = sweeper.audit(is_member=is_member, score=rng.normal(size=(8, N)), attacks=["ratio"]).metrics
    assert set(found["n_units"]) == {4}
    assert found["auc"].between(0.44, 0.56).all()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"is_member": np.tile(members(), (6, 1))}, "have the same members"),
        ({"is_member": np.stack([members()] * 3), "logits": np.zeros((3, N, 3))}, "need at least 4"),
        ({"is_member": np.stack([members(seed=seed) | (seed == 0) for seed in range(6)])}, "only members"),
        ({"is_member": np.argsort(np.random.default_rng(0).random((6, N)), axis=0) < 3}, "exactly 3 of the 6 models"),
        ({"is_member": np.zeros((5, N), dtype=bool)}, "do not fit"),
        ({"label": np.zeros(4, dtype=int)}, "label must have 300"),
        ({"label": np.full(N, 3)}, "from 0 to 2"),
        ({"label": None}, "need label"),
        ({"logits": None}, "no answers given"),
        ({"score": np.zeros((6, N))}, "exactly one of"),
        ({"is_member": np.full((6, N), 2)}, "true or false"),
        ({"logits": np.full((6, N, 1, 3), np.nan)}, "not finite"),
        ({"attacks": ["loss"]}, "Unknown attack 'loss'"),
        ({"example_id": np.arange(3)}, "example_id has the shape"),
    ],
)
def test_cohorts_that_cannot_be_attacked_are_refused_in_words(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        sweeper.audit(**(cohort(models=6) | change))


def test_files_that_do_not_fit_are_refused_in_words(tmp_path: Path) -> None:
    content = cohort(models=4)
    table = long_table(content)
    path = tmp_path / "models.parquet"
    for changed, problem in (
        (table.slice(1), "did not answer the same records"),
        (table.set_column(3, "label", pa.array(np.arange(table.num_rows) // 7 % 3)), "their labels differ"),
        (pa.concat_tables([table, table.slice(0, 1)]), "not the same queries of every record"),
    ):
        pq.write_table(changed, path)
        result = command("audit", path)
        assert result.exit_code == 2
        assert problem in " ".join(result.output.split()), result.output
    np.savez(tmp_path / "none.npz", logits=content["logits"])
    assert "has no array 'is_member'" in " ".join(command("audit", tmp_path / "none.npz").output.split())
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    assert command("audit", tmp_path / "broken.npz").exit_code == 2
    np.savez(tmp_path / "pickled.npz", is_member=np.array([{}], dtype=object))
    assert command("audit", tmp_path / "pickled.npz").exit_code == 2


# The function, and the gate on its results


def test_the_function_and_the_command_find_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    member, label = members(), rng.integers(0, 3, N)
    logits = rng.normal(size=(N, 3))
    path = tmp_path / "outputs.parquet"
    pq.write_table(
        pa.table({"example_id": np.arange(N), "is_member": member, "label": label, "logits": list(logits)}), path
    )
    by_command = json.loads(command("audit", path, "--attack", "loss", "--attack", "entropy", "--json").stdout)
    found = sweeper.audit(is_member=member, label=label, logits=logits, attacks=["loss", "entropy"])
    assert found.metrics["auc"].tolist() == [row["auc"] for row in by_command]
    assert set(found.records["attack"]) == {"loss", "entropy"}
    found.save(tmp_path / "function.parquet")
    command("audit", path, "--attack", "loss", "--attack", "entropy", "--out", tmp_path / "command.parquet")
    assert pq.read_table(tmp_path / "function.parquet").equals(pq.read_table(tmp_path / "command.parquet"))
    single = rng.normal(size=N)
    binary = sweeper.audit(is_member=member, label=label % 2, logits=single).metrics.set_index("attack")
    assert binary.loc["loss", "auc"] == pytest.approx(roc_auc_score(member, np.where(label % 2, single, -single)))
    assert isinstance(stored_arrays(is_member=member, label=label, logits=logits), StoredOutputs)
    assert isinstance(stored_arrays(is_member=member, score=single), StoredScores)


def test_the_gate_judges_an_audited_cohort_with_its_null_and_its_size(tmp_path: Path) -> None:
    leaky, tight = tmp_path / "leaky.parquet", tmp_path / "tight.parquet"
    sweeper.audit(**cohort(models=16, leak=3.0)).save(leaky)
    sweeper.audit(**cohort(models=16, leak=0.0)).save(tight)
    assert command("gate", leaky, "--max", "auc=0.6").exit_code == 1
    passed = command("gate", tight, "--max", "auc=0.6")
    assert passed.exit_code == 0, passed.output
    assert "lira/online_log_odds" in passed.output
    few = command("gate", tight, "--max", "auc=0.6", "--min-seeds", 17)
    assert few.exit_code == 2
    assert "16 seeds finished" in few.output
    assert command("gate", tight, "--max", "epsilon=1").exit_code == 2


def test_a_score_has_no_labels_to_attack(tmp_path: Path) -> None:
    content = cohort()
    path = tmp_path / "scores.npz"
    np.savez(path, is_member=content["is_member"], score=content["logits"][:, :, 0, 0])
    result = command("audit", path, "--attack", "label_only", "--out", tmp_path / "out.parquet")
    assert result.exit_code == 2
    assert "needs the labels that models answer" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("model", lambda n: [None] * 300 + ["one"] * (n - 300), "300 nulls"),
        ("query", lambda n: ["first"] * n, "must be a number"),
        ("query", lambda n: pa.nulls(n, pa.int64()), "whole numbers, without nulls"),
        ("query", lambda n: [0.5] * n, "whole numbers, without nulls"),
    ],
)
def test_models_and_queries_of_each_row_are_checked(tmp_path: Path, column: str, values: Any, problem: str) -> None:
    table = long_table(cohort(models=4))
    table = table.set_column(table.column_names.index(column), column, pa.array(values(len(table))))
    path = tmp_path / "models.parquet"
    pq.write_table(table, path)
    result = command("audit", path)
    assert result.exit_code == 2
    assert problem in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"is_member": [[True, False], [True]], "score": [[1.0, 2.0], [1.0, 2.0]]}, "no array of one shape"),
        ({"is_member": members(), "prediction": np.zeros(N), "target": ["x"] * N}, "must be real numbers"),
        ({"is_member": members(), "score": np.zeros(N, dtype=complex)}, "must be real numbers"),
        (
            {"is_member": np.tile(members(), (4, 1)), "score": np.zeros((4, N, 2))},
            "one number for each value of is_member",
        ),
        ({"is_member": members(), "label": np.zeros(N, int), "logits": np.full((N, 3), -np.inf)}, "only logits of −∞"),
        (
            {"is_member": members(), "label": np.zeros(N, int), "logits": np.full((N, 3), np.nan)},
            "not finite",
        ),
    ],
)
def test_arrays_of_a_wrong_type_or_shape_are_refused_in_words(arrays: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        stored_arrays(**arrays)


def test_a_logit_may_rule_a_class_out() -> None:
    logits = np.random.default_rng(0).normal(size=(N, 3))
    logits[:5, 2] = -np.inf
    label = np.zeros(N, dtype=int)
    found = sweeper.audit(is_member=members(), label=label, logits=logits).metrics.set_index("attack")
    logits[:5, 2] = -1e9
    finite = sweeper.audit(is_member=members(), label=label, logits=logits).metrics.set_index("attack")
    assert found["auc"].to_dict() == pytest.approx(finite["auc"].to_dict())

"""`sweeper audit`: any model's outputs in, metrics out; wrong files explained."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from sweeper.auditing import attack as auditing
from sweeper.auditing.attack import ATTACK_NAMES
from sweeper.cli import app

GOLDEN = Path(__file__).parent / "data" / "golden"
KEYS = [
    "attack",
    "auc",
    "auc_low",
    "auc_high",
    "advantage",
    "advantage_null",
    "tpr_at_fpr_0.001",
    "tpr_at_fpr_0.001_low",
    "tpr_at_fpr_0.001_high",
    "tpr_at_fpr_0.01",
    "tpr_at_fpr_0.01_low",
    "tpr_at_fpr_0.01_high",
    "tpr_at_fpr_0.1",
    "tpr_at_fpr_0.1_low",
    "tpr_at_fpr_0.1_high",
    "n_members",
    "n_non_members",
    "n_tied",
    "largest_tie",
    "n_rows",
    "input_changes",
]


def audit(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def columns(n: int = 200, classes: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, classes))
    return {
        "example_id": np.arange(n),
        "is_member": np.arange(n) < n // 2,
        "label": rng.integers(0, classes, n),
        "logits": list(logits),
    }


def written(path: Path, **changes: Any) -> Path:
    content = columns() | changes
    pq.write_table(pa.table({name: value for name, value in content.items() if value is not None}), path)
    return path


def golden_file(name: str, path: Path) -> Path:
    """TensorFlow Privacy's inputs as a Parquet file."""
    content = np.load(GOLDEN / f"mia_{name}_inputs.npz")
    logits = np.concatenate([content["logits_member"], content["logits_nonmember"]])
    n = len(content["logits_member"])
    pq.write_table(
        pa.table(
            {
                "example_id": np.arange(len(logits)),
                "is_member": np.arange(len(logits)) < n,
                "label": np.concatenate([content["labels_member"], content["labels_nonmember"]]),
                "logits": list(logits),
            }
        ),
        path,
    )
    return path


# AUC of TensorFlow Privacy (commit 03035d5) on the same logits; its arithmetic follows the logits' dtype.
@pytest.mark.parametrize(
    ("name", "dtype", "attack", "auc"),
    [
        ("mnist", "float64", "loss", 0.49663175000000004),
        ("mnist", "float64", "modified_entropy", 0.49684625),
        ("mnist", "float32", "loss", 0.50122725),
        ("mnist", "float32", "modified_entropy", 0.4999275),
        ("mnist", "float32", "entropy", 0.49490175),
        ("synth", "float64", "loss", 0.6807842500000001),
        ("synth", "float64", "modified_entropy", 0.6806015),
        ("synth", "float64", "entropy", 0.6496607499999999),
    ],
)
def test_the_command_gives_tensorflow_privacys_auc(
    name: str, dtype: str, attack: str, auc: float, tmp_path: Path
) -> None:
    path = golden_file(name, tmp_path / "outputs.parquet")
    result = audit(path, "--attack", attack, "--form", "tensorflow_privacy", "--dtype", dtype, "--json")
    assert result.exit_code == 0
    (row,) = json.loads(result.stdout)
    assert row["auc"] == pytest.approx(auc, abs=1e-6)
    assert row["tpr_at_fpr_0.001"] is None  # 2,000 non-members are too few for this FPR


@pytest.mark.slow
def test_json_is_the_whole_of_stdout_and_has_every_attack(tmp_path: Path, quick: None) -> None:
    path, metrics = written(tmp_path / "outputs.parquet"), tmp_path / "metrics.parquet"
    result = audit(path, "--json", "--out", metrics)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [row["attack"] for row in rows] == list(ATTACK_NAMES)
    assert [list(row) for row in rows] == [KEYS] * 8
    assert pq.read_table(metrics).to_pylist() == rows
    assert json.loads(audit(path, "--json").stdout) == rows, "the same seed gives the same numbers"


def test_probabilities_do_as_well_as_logits(tmp_path: Path) -> None:
    logits = np.stack(columns()["logits"])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    first = audit(written(tmp_path / "a.parquet"), "--attack", "modified_entropy", "--json")
    second = audit(
        written(tmp_path / "b.parquet", logits=None, probabilities=list(probabilities)),
        "--attack",
        "modified_entropy",
        "--json",
    )
    assert json.loads(first.stdout)[0]["auc"] == pytest.approx(json.loads(second.stdout)[0]["auc"], abs=1e-9)


def test_other_types_of_columns_are_read(tmp_path: Path) -> None:
    base = json.loads(audit(written(tmp_path / "a.parquet"), "--attack", "loss", "--json").stdout)
    logits = np.stack(columns()["logits"])
    variants = {
        "fixed": {"logits": pa.FixedSizeListArray.from_arrays(logits.ravel(), 4)},
        "large": {"logits": pa.array(list(logits), type=pa.large_list(pa.float64()))},
        "membership as 1 and 0": {"is_member": (np.arange(200) < 100).astype(np.int8)},
        "text ids": {"example_id": [f"patient-{i}" for i in range(200)]},
    }
    for name, change in variants.items():
        assert (
            json.loads(audit(written(tmp_path / "b.parquet", **change), "--attack", "loss", "--json").stdout) == base
        ), name


def test_the_table_for_people_says_what_was_computed(tmp_path: Path) -> None:
    result = audit(written(tmp_path / "outputs.parquet"), "--attack", "loss")
    assert result.exit_code == 0
    assert "in the form log_odds, float64" in result.stdout
    assert "100 members, 100 non-members" in result.stdout


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained attackers at one point of their grids."""
    monkeypatch.setattr(auditing, "TrainedAttackers", functools.partial(auditing.TrainedAttackers, search="none"))


def repeated(n_examples: int, times: int, seed: int = 0) -> dict[str, Any]:
    """Uninformative outputs, each example's repeated `times` times, in random order."""
    rng = np.random.default_rng(seed)
    row = rng.permutation(np.repeat(np.arange(n_examples), times))
    return {
        "example_id": row,
        "is_member": row < n_examples // 2,
        "label": rng.integers(0, 4, n_examples)[row],
        "logits": list(rng.normal(size=(n_examples, 4))[row]),
    }


def test_repeats_of_an_example_tell_an_attacker_nothing(tmp_path: Path, quick: None) -> None:
    """Folds by row would have each example's copies in both: nearest neighbors then find it, with an AUC near 1.

    By example the AUC's null deviation is at most .05 (two halves that err as one); four are allowed.
    """
    path = written(tmp_path / "outputs.parquet", **repeated(200, 8))
    names = ("knn", "logistic_regression", "random_forest", "loss")
    result = audit(path, *(part for name in names for part in ("--attack", name)), "--json")
    assert result.exit_code == 0, result.stderr
    for row in json.loads(result.stdout):
        assert abs(row["auc"] - 0.5) < 0.2, row["attack"]
        assert (row["n_members"], row["n_non_members"], row["n_rows"]) == (100, 100, 1600)


def test_repeats_of_an_example_make_no_interval_narrower(tmp_path: Path) -> None:
    once = written(tmp_path / "once.parquet", **repeated(200, 1))
    often = written(tmp_path / "often.parquet", **repeated(200, 8))
    kept = [name for name in KEYS if name not in ("n_rows", "auc", "auc_low", "auc_high", "advantage")]
    for name in ("loss", "entropy"):
        widths = []
        for path in (once, often):
            (row,) = json.loads(audit(path, "--attack", name, "--json").stdout)
            widths.append(row["auc_high"] - row["auc_low"])
            assert {key: row[key] for key in kept if "tpr" not in key} == {
                "attack": name,
                "input_changes": [],
                "advantage_null": row["advantage_null"],
                "n_members": 100,
                "n_non_members": 100,
                "n_tied": 0,
                "largest_tie": 1,
            }
        assert widths[1] == pytest.approx(widths[0], rel=0.05)


def test_repeats_and_ties_are_said(tmp_path: Path) -> None:
    content = repeated(200, 3)
    result = audit(written(tmp_path / "often.parquet", **content), "--attack", "loss")
    assert "example_id repeats: 600 rows are 200 examples" in " ".join(result.stdout.split())
    assert "equals another's" not in result.stdout
    plain = audit(written(tmp_path / "plain.parquet"), "--attack", "loss").stdout
    assert "example_id repeats" not in plain and "equals another's" not in plain
    probabilities = [np.eye(4)[label] * 0.9 + 0.025 for label in columns()["label"]]
    tied = written(tmp_path / "tied.parquet", logits=None, probabilities=probabilities)
    result = audit(tied, "--attack", "loss")
    assert "of 200: loss 200 (at most 200 alike)" in " ".join(result.stdout.split())
    (row,) = json.loads(audit(tied, "--attack", "loss", "--json").stdout)
    assert (row["auc"], row["n_tied"], row["largest_tie"]) == (0.5, 200, 200)
    assert row["tpr_at_fpr_0.1"] == pytest.approx(0.1), "a tie is broken at random, and tells nothing"


def with_nan() -> list[Any]:
    logits = np.stack(columns()["logits"])
    logits[17, 2] = np.nan
    return list(logits)


WRONG = {
    "NaN": ({"logits": with_nan()}, "NaN or infinity in 1 rows, the first is row 17"),
    "null logits": ({"logits": [None, *columns()["logits"][1:]]}, "has 1 nulls"),
    "ragged": ({"logits": [np.zeros(3), *columns()["logits"][1:]]}, "has rows of 3, 4 values"),
    "no values": ({"logits": [np.zeros(0)] * 200}, "has rows of 0 values"),
    "one value for four classes": ({"logits": np.zeros(200)}, "but column 'logits' have 2 classes"),
    "text": ({"logits": ["0.5"] * 200}, "must be a number, or a list of numbers"),
    "no logits": ({"logits": None}, "lacks logits or probabilities"),
    "no label": ({"label": None}, "lacks label"),
    "label out of range": ({"label": np.full(200, 9)}, "row 0 has label 9"),
    "label as text": ({"label": ["a"] * 200}, "must be whole numbers"),
    "label of a half": ({"label": np.full(200, 0.5)}, "must be whole numbers"),
    "membership of two": ({"is_member": np.full(200, 2)}, "must be true or false"),
    "no members": ({"is_member": np.zeros(200, bool)}, "at least 2 members, got 0"),
    "one non-member": ({"is_member": np.arange(200) < 199}, "at least 2 non-members, got 1"),
    "not probabilities": ({"logits": None, "probabilities": [np.full(4, 0.9)] * 200}, "probabilities"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_outputs_are_explained(case: str, tmp_path: Path) -> None:
    changes, expected = WRONG[case]
    result = audit(written(tmp_path / "outputs.parquet", **changes), "--attack", "loss")
    assert result.exit_code == 2, result.output
    assert expected in result.stderr
    assert result.stdout == ""


def test_too_few_for_a_trained_attacker_is_explained(tmp_path: Path) -> None:
    result = audit(written(tmp_path / "outputs.parquet", is_member=np.arange(200) < 195), "--attack", "knn")
    assert result.exit_code == 2
    assert "non-members, got 5" in result.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "does not exist"), (b"PAR1 not", "not a readable Parquet file"), (b"", "not a readable")],
)
def test_wrong_files_are_explained(content: bytes | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "outputs.parquet"
    if content is not None:
        path.write_bytes(content)
    result = audit(path)
    assert result.exit_code == 2
    assert expected in result.stderr


def test_unknown_names_are_explained(tmp_path: Path) -> None:
    path = written(tmp_path / "outputs.parquet")
    result = audit(path, "--attack", "los")
    assert result.exit_code == 2
    assert "Did you mean 'loss'?" in result.stderr
    assert audit(path, "--dtype", "float16").exit_code == 2
    assert "Did you mean 'log_odds'?" in audit(path, "--form", "logodds").stderr
    both = audit(path, "--dtype", "float32")
    assert both.exit_code == 2
    assert "Add --form tensorflow_privacy" in both.stderr


def test_an_empty_table_is_explained(tmp_path: Path) -> None:
    path = written(tmp_path / "outputs.parquet")
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert "has no rows" in audit(path).stderr

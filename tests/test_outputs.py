"""Stored outputs in common forms: each form of one table reads as that table, and every change is reported."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from scipy.special import expit, log_softmax, softmax
from typer.testing import CliRunner

from attacks.base import AttackTarget
from attacks.membership.threshold import Threshold
from sweeper.auditing import attack as auditing
from sweeper.auditing.outputs import StoredOutputs, read_outputs
from sweeper.cli import app
from sweeper.errors import UserError

BASE = Path(__file__).parent / "data" / "cases" / "outputs.parquet"
AUCS = {"loss": 0.7335, "max_posterior": 0.7201, "entropy": 0.7255, "modified_entropy": 0.7309}
N, CLASSES = 2000, 10
Table = dict[str, Any]


def audit(*arguments: object, attacks: tuple[str, ...] = tuple(AUCS)) -> Any:
    named = [part for name in attacks for part in ("--attack", name)]
    return CliRunner().invoke(app, ["audit", *map(str, arguments), *named])


def aucs(path: Path) -> tuple[dict[str, float], list[str]]:
    result = audit(path, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert all(row["input_changes"] == rows[0]["input_changes"] for row in rows)
    return {row["attack"]: row["auc"] for row in rows}, rows[0]["input_changes"]


def base() -> Table:
    table = pq.read_table(BASE)
    columns = {name: table.column(name).to_numpy() for name in ("example_id", "is_member", "label")}
    return columns | {"logits": np.stack(table.column("logits").to_numpy())}


def rows_of(values: np.ndarray) -> list[np.ndarray]:
    return list(values)


def write(path: Path, columns: Table) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def changed(**changes: Any) -> Table:
    """The base table with other columns; None leaves one out."""
    columns = base() | {"logits": rows_of(base()["logits"])} | changes
    return {name: column for name, column in columns.items() if column is not None}


def per_class(name: str, values: np.ndarray, numbers: Any = range(CLASSES)) -> Table:
    return {name.format(i): values[:, i] for i in numbers}


# Ways to write the same table


def as_wide(folder: Path) -> Path:
    return write(folder / "a.parquet", changed(logits=None) | per_class("logit_{}", base()["logits"]))


def as_wide_in_disorder(folder: Path) -> Path:
    """By the alphabet, logit_10 would come before logit_2."""
    logits = np.column_stack([base()["logits"], np.full(N, -50.0), np.full(N, -50.0)])  # two classes that never occur
    return write(folder / "a.parquet", per_class("logits_{:02}", logits, reversed(range(12))) | changed(logits=None))


def as_wide_probabilities(folder: Path) -> Path:
    p = softmax(base()["logits"].astype(np.float64), axis=1)
    return write(folder / "a.parquet", changed(logits=None) | per_class("proba_{}", p))


def as_tensor(folder: Path) -> Path:
    return write(folder / "a.parquet", changed(logits=pa.FixedShapeTensorArray.from_numpy_ndarray(base()["logits"])))


def as_tensor_of_one_row(folder: Path) -> Path:
    logits = base()["logits"][:, None, :]
    return write(folder / "a.parquet", changed(logits=pa.FixedShapeTensorArray.from_numpy_ndarray(logits)))


def as_hive(folder: Path) -> Path:
    pyarrow.dataset.write_dataset(
        pa.table(changed()),
        folder / "a",
        format="parquet",
        partitioning=pyarrow.dataset.partitioning(pa.schema([("is_member", pa.bool_())]), flavor="hive"),
    )
    (folder / "a" / "_SUCCESS").touch()
    (folder / "a" / "is_member=true" / "._part-0.parquet").write_bytes(b"\0\5\x16\7")
    return folder / "a"


def as_spark_hive(folder: Path) -> Path:
    """Partitioned by numbers, and by another column too."""
    table = changed(is_member=base()["is_member"].astype(int), source=np.arange(N) % 3)
    pq.write_to_dataset(pa.table(table), folder / "a", partition_cols=["is_member", "source"])
    return folder / "a"


def as_hive_by_label(folder: Path) -> Path:
    """Whose folders' names are numbers: the classes, and the membership of a part."""
    table = changed(is_member=base()["is_member"].astype(int))
    pq.write_to_dataset(pa.table(table), folder / "a", partition_cols=["label", "is_member"])
    return folder / "a"


def as_two_files(folder: Path) -> Path:
    (folder / "a").mkdir()
    for name, chosen in (("members", base()["is_member"]), ("others", ~base()["is_member"])):
        columns = {key: column[chosen] for key, column in base().items()}
        write(folder / "a" / f"{name}.parquet", columns | {"logits": rows_of(columns["logits"])})
    return folder / "a"


def as_pandas_index(folder: Path) -> Path:
    frame = pd.DataFrame(changed()).drop(columns="example_id").rename_axis("example_id")
    frame.to_parquet(folder / "a.parquet")
    assert "example_id" not in pq.read_schema(folder / "a.parquet").names
    return folder / "a.parquet"


def as_shuffled_pandas_index(folder: Path) -> Path:
    frame = pd.DataFrame(changed()).set_index(["is_member", "example_id"]).sample(frac=1, random_state=0)
    frame.to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def as_floats(folder: Path) -> Path:
    floats = {name: base()[name].astype(np.float64) for name in ("is_member", "label", "example_id")}
    return write(folder / "a.parquet", changed(**floats))


def as_text_of_membership(folder: Path) -> Path:
    text = np.where(base()["is_member"], "True", "false")
    return write(folder / "a.parquet", changed(is_member=pa.array(text).dictionary_encode()))


def as_decimals(folder: Path) -> Path:
    logits = [[Decimal(f"{value:.7f}") for value in row] for row in base()["logits"].tolist()]
    return write(folder / "a.parquet", changed(logits=pa.array(logits, pa.list_(pa.decimal128(12, 7)))))


def as_log_probabilities(folder: Path) -> Path:
    return write(folder / "a.parquet", changed(logits=rows_of(log_softmax(base()["logits"].astype(float), axis=1))))


def with_an_unrelated_column_twice(folder: Path) -> Path:
    table = pa.table(changed() | {"note": ["a"] * N})
    pq.write_table(table.append_column("note", table.column("note")), folder / "a.parquet")
    return folder / "a.parquet"


SAME = [
    as_wide,
    as_wide_in_disorder,
    as_wide_probabilities,
    as_tensor,
    as_tensor_of_one_row,
    as_hive,
    as_spark_hive,
    as_hive_by_label,
    as_two_files,
    as_pandas_index,
    as_shuffled_pandas_index,
    as_floats,
    as_text_of_membership,
    as_decimals,
    as_log_probabilities,
    with_an_unrelated_column_twice,
]


def test_the_base_table_gives_its_four_values() -> None:
    found, changes = aucs(BASE)
    assert found == pytest.approx(AUCS, abs=5e-5)
    assert changes == []


@pytest.mark.slow
@pytest.mark.parametrize("variant", SAME, ids=lambda each: each.__name__)
def test_another_way_to_write_the_table_gives_the_same_values(variant: Callable[[Path], Path], tmp_path: Path) -> None:
    found, changes = aucs(variant(tmp_path))
    assert found == pytest.approx(aucs(BASE)[0], abs=2e-6)
    assert changes == (["the 3 parts by 'source' are combined"] if variant is as_spark_hive else [])


@pytest.mark.parametrize("variant", SAME, ids=lambda each: each.__name__)
def test_ids_membership_and_labels_go_with_their_rows(variant: Callable[[Path], Path], tmp_path: Path) -> None:
    population = read_outputs(variant(tmp_path)).population
    order = np.argsort(population.outputs.example_id)
    for name, column in base().items():
        if name == "logits":
            continue
        source = population if name == "is_member" else population.outputs
        np.testing.assert_array_equal(getattr(source, name)[order], column)


# Probabilities that miss by rounding


def probabilities() -> np.ndarray:
    return softmax(base()["logits"].astype(np.float64), axis=1)


def with_one_sure_answer(values: np.ndarray, others: float, row: int = 3) -> np.ndarray:
    values = values.copy()
    values[row] = others
    values[row, 2] = 1 + (np.finfo(np.float32).eps if others == 0 else 0)
    return values


def rounded(dtype: Any) -> np.ndarray:
    return probabilities().astype(dtype)


MISSES = {
    "one last bit above 1": with_one_sure_answer(rounded(np.float32), 0.0),
    "below 0 by rounding": with_one_sure_answer(probabilities(), -1e-9),
    "hardly below 0": with_one_sure_answer(probabilities(), -1e-17),
    "two decimals": probabilities().round(2),
    "two decimals in float32": probabilities().round(2).astype(np.float32),
    "three decimals": probabilities().round(3),
    "float16": rounded(np.float16),
    "bfloat16": (rounded(np.float32).view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MISSES)
def test_probabilities_that_miss_by_rounding_are_renormalized_and_it_is_said(case: str, tmp_path: Path) -> None:
    values = MISSES[case]
    path = write(tmp_path / "a.parquet", changed(logits=None, probabilities=rows_of(values)))
    stored = read_outputs(path)
    p = stored.population.outputs.values
    assert p.min() >= 0
    assert p.max() <= 1
    assert np.abs(p.sum(axis=1) - 1).max() < 1e-6
    assert np.abs(p - values.astype(np.float64)).max() < 0.04
    (change,) = stored.changes
    assert "rows of probabilities are off by rounding" in change
    assert "renormalized" in change
    found, changes = aucs(path)
    assert changes == [change]
    assert change in " ".join(audit(path).stdout.split())
    # The same values as from logits, except for one certain answer or ties by rounding
    sure = base()["logits"].copy()
    if case in list(MISSES)[:3]:
        sure[3] = np.where(np.arange(CLASSES) == 2, 50, 0)
    exact = aucs(write(tmp_path / "b.parquet", changed(logits=rows_of(sure))))[0]
    assert found == pytest.approx(exact, abs=1e-4 if "decimals" not in case and "float16" not in case else 2e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_add_up_to_one_are_left_alone(dtype: Any, tmp_path: Path) -> None:
    values = rounded(np.float32).astype(dtype)
    stored = read_outputs(write(tmp_path / "a.parquet", changed(logits=None, probabilities=rows_of(values))))
    np.testing.assert_array_equal(stored.population.outputs.values, values)
    assert stored.changes == ()


def test_many_classes_in_two_decimals_may_lose_much_of_their_sum(tmp_path: Path) -> None:
    values = np.full((N, 1000), 0.4 / 999)
    values[:, 0] = 0.6
    columns = changed(logits=None, label=np.zeros(N, dtype=int), probabilities=rows_of(values.round(2)))
    stored = read_outputs(write(tmp_path / "a.parquet", columns))
    assert stored.population.outputs.values[:, 0].min() == 1.0
    assert "sums by up to 0.4" in stored.changes[0]


NOT_PROBABILITIES = {
    "logits": base()["logits"],
    "one row of logits": np.where(np.arange(N)[:, None] == 17, base()["logits"], probabilities()),
    "sigmoids": expit(base()["logits"]),
    "percent": 100 * probabilities(),
    "rounded after scaling by 1.2": (1.2 * probabilities()).clip(0, 1).round(2),
    "one below 0 by a hundredth": probabilities() - np.where(np.arange(N)[:, None] == 5, 0.01, 0),
    "zeros": probabilities() * (np.arange(N)[:, None] != 4),
    "a sum of .97": probabilities() * 0.97,
}


@pytest.mark.parametrize("case", NOT_PROBABILITIES)
def test_what_is_off_by_more_than_rounding_is_refused(case: str, tmp_path: Path) -> None:
    columns = changed(logits=None, probabilities=rows_of(NOT_PROBABILITIES[case]))
    result = audit(write(tmp_path / "a.parquet", columns))
    assert result.exit_code == 2
    message = " ".join(result.stderr.split())
    assert "column 'probabilities'" in message
    assert "are not probabilities, the first is row" in message
    if case == "one row of logits":
        assert "1 of 2000 rows are not probabilities, the first is row 17" in message


# Binary models with one value


def binary() -> tuple[Table, np.ndarray]:
    columns = changed(logits=None, label=base()["label"] % 2)
    return columns, base()["logits"][:, 0] - base()["logits"][:, 1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_one_logit_or_probability_is_two_classes(dtype: Any, tmp_path: Path) -> None:
    columns, logit = binary()
    one, p = logit.astype(dtype), expit(logit).astype(dtype)
    two = np.column_stack([np.zeros(N), logit])
    expected, nothing = aucs(write(tmp_path / "two.parquet", columns | {"logits": rows_of(two)}))
    assert nothing == []
    variants: list[Table] = [
        {"logits": one},
        {"logits": rows_of(one[:, None])},
        {"logit_0": one},
        {"logits": pa.FixedShapeTensorArray.from_numpy_ndarray(one[:, None])},
        {"probabilities": p},
        {"probabilities": rows_of(p[:, None])},
        {"logits": one, "label": columns["label"].astype(bool)},
        {"logits": one, "label": columns["label"].astype(float)},
    ]
    for variant in variants:
        found, changes = aucs(write(tmp_path / "one.parquet", columns | variant))
        assert found == pytest.approx(expected, abs=2e-5), variant.keys()
        (change,) = changes
        assert "of two classes" in change
    values = read_outputs(write(tmp_path / "p.parquet", columns | {"probabilities": p})).population.outputs.values
    np.testing.assert_allclose(values[:, 1], p)  # a label of 1 is the class whose probability is given
    np.testing.assert_allclose(values.sum(axis=1), 1)


def test_a_binary_probability_that_misses_by_rounding_is_renormalized(tmp_path: Path) -> None:
    columns, logit = binary()
    p = expit(logit)
    p[:2] = 1 + 1e-7, -1e-9
    stored = read_outputs(write(tmp_path / "a.parquet", columns | {"probabilities": p}))
    np.testing.assert_array_equal(stored.population.outputs.values[:2], [[0, 1], [1, 0]])
    assert len(stored.changes) == 2
    result = audit(write(tmp_path / "a.parquet", columns | {"probabilities": logit}))
    assert result.exit_code == 2
    assert "Are they logits?" in result.stderr


# Logits of −∞


def test_masked_classes_are_probabilities_of_zero(tmp_path: Path) -> None:
    """As the same logits with a number so low that its probability is 0."""
    masked = np.random.default_rng(0).random((N, CLASSES)) < 0.3
    masked[np.arange(N), base()["label"]] = False
    infinite, low = (np.where(masked, value, base()["logits"]) for value in (-np.inf, -1e4))
    path = write(tmp_path / "a.parquet", changed(logits=rows_of(infinite)))
    found, (change,) = aucs(path)
    assert change.startswith(f"{masked.any(axis=1).sum()} of 2000 rows have logits of −∞")
    expected, _ = aucs(write(tmp_path / "b.parquet", changed(logits=rows_of(low))))
    assert found == pytest.approx(expected, abs=1e-12)


def test_an_answer_that_rules_out_the_true_class_scores_lowest(tmp_path: Path) -> None:
    """And one that rules out all others scores highest; no score is NaN."""
    logits, label = base()["logits"].copy(), base()["label"]
    logits[np.arange(0, N, 5), label[::5]] = -np.inf
    logits[1] = np.where(np.arange(CLASSES) == label[1], logits[1], -np.inf)
    stored = read_outputs(write(tmp_path / "a.parquet", changed(logits=rows_of(logits))))
    for scores in Threshold().run(AttackTarget(population=stored.population), np.random.default_rng(0)):
        assert not np.isnan(scores.score).any()
        assert scores.score[1] == scores.score.max()
        if scores.name in ("loss", "modified_entropy"):
            assert scores.score[::5].max() < np.delete(scores.score, np.s_[::5]).min()


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_masked_class_stops_no_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "TrainedAttackers", functools.partial(auditing.TrainedAttackers, search="none"))
    logits = base()["logits"][:200].copy()
    logits[::7, 0] = -np.inf
    columns = {name: column[:200] for name, column in base().items()} | {"logits": rows_of(logits)}
    result = audit(write(tmp_path / "a.parquet", columns), "--json", attacks=auditing.ATTACK_NAMES)
    assert result.exit_code == 0, result.output
    assert all(0 <= row["auc"] <= 1 for row in json.loads(result.stdout))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("logits", np.nan, "NaN or infinity in 1 rows, the first is row 17"),
        ("logits", np.inf, "NaN or infinity in 1 rows, the first is row 17"),
        ("probabilities", np.nan, "NaN or infinity in 1 rows, the first is row 17"),
        ("probabilities", -np.inf, "NaN or infinity in 1 rows, the first is row 17"),
    ],
)
def test_values_that_rank_nowhere_are_refused(column: str, value: float, message: str, tmp_path: Path) -> None:
    values = (base()["logits"] if column == "logits" else probabilities()).copy()
    values[17, 2] = value
    result = audit(write(tmp_path / "a.parquet", changed(logits=None) | {column: rows_of(values)}))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_row_without_a_possible_class_is_refused(tmp_path: Path) -> None:
    logits = base()["logits"].copy()
    logits[17] = -np.inf
    with pytest.raises(UserError, match="row 17 has only logits of −∞"):
        read_outputs(write(tmp_path / "a.parquet", changed(logits=rows_of(logits))))


# What cannot be read


def columns_twice(name: str) -> Callable[[Path], None]:
    def write_it(path: Path) -> None:
        table = pa.table(changed())
        pq.write_table(table.append_column(name, table.column(name)), path)

    return write_it


def table_of(**changes: Any) -> Callable[[Path], None]:
    return lambda path: write(path, changed(**changes)) and None


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "logits twice": (columns_twice("logits"), "has 2 columns called 'logits'. Drop all but one."),
    "ids twice": (columns_twice("example_id"), "has 2 columns called 'example_id'"),
    "a class left out": (
        table_of(logits=None, **per_class("logit_{}", base()["logits"], [0, 1, 3])),
        "has logit_0, logit_1, logit_3, but no such column for class 2",
    ),
    "classes from 1": (
        table_of(logits=None, **per_class("prob_{}", base()["logits"], [1])),
        "has prob_1, but no such column for class 0. There must be one for each class from 0. A binary model's",
    ),
    "a number beyond all bounds": (table_of(logits=None, logit_999999999=np.zeros(N)), "no such column for class 0"),
    "one class twice": (
        table_of(logits=None, **per_class("logit_{}", base()["logits"]), logit_00=np.zeros(N)),
        "several columns for one class: logit_0, logit_00",
    ),
    "a list and columns": (
        table_of(**per_class("logit_{}", base()["logits"])),
        "column 'logits' and columns 'logit_0'",
    ),
    "text in a column of a class": (
        table_of(logits=None, **per_class("logit_{}", base()["logits"]), logit_10=["a"] * N),
        "must be a number",
    ),
    "membership of a half": (table_of(is_member=np.full(N, 0.5)), "is_member' is of type double, with 0.5 in row 0"),
    "membership in other words": (table_of(is_member=["in", *["out"] * (N - 1)]), "with 'in' in row 0"),
    "a null in a column of a class": (
        table_of(logits=None, **per_class("logit_{}", base()["logits"]) | {"logit_3": pa.nulls(N, pa.float32())}),
        "column 'logit_3' has 2000 nulls",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    path = tmp_path / "a.parquet"
    make(path)
    result = audit(path)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert str(path) in result.stderr
    assert "Arrow" not in result.stderr


def test_a_part_of_a_table_whose_index_is_numbered_as_a_whole_is_refused(tmp_path: Path) -> None:
    path = as_pandas_index(tmp_path)
    table = pq.read_table(path)
    for kept in (table.slice(0, 100), pa.concat_tables([table, table])):
        pq.write_table(kept, path)
        with pytest.raises(UserError, match="'example_id' is pandas' index of a table of which this is a part"):
            read_outputs(path)


def test_folders_without_outputs_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a folder without \*.parquet files"):
        read_outputs(tmp_path)
    (tmp_path / "x=1").mkdir()
    as_wide(tmp_path)
    write(tmp_path / "x=1" / "b.parquet", changed())
    with pytest.raises(UserError, match=r"b.parquet has its outputs in column 'logits', but .*a.parquet in columns"):
        read_outputs(tmp_path)


def test_a_file_whose_name_is_not_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.parquet")
    path.write_bytes(BASE.read_bytes())
    assert len(read_outputs(path).population.outputs) == N


def test_probabilities_beside_logits_are_not_used_and_that_is_said(tmp_path: Path) -> None:
    stored: StoredOutputs = read_outputs(
        write(tmp_path / "a.parquet", changed(probabilities=rows_of(np.full((N, CLASSES), 0.1))))
    )
    assert not stored.population.outputs.is_probability
    assert stored.changes == ("logits are used; the probabilities beside them are ignored",)


def test_ids_that_are_not_numbers_keep_who_is_who(tmp_path: Path) -> None:
    for ids in ([f"patient-{i % 7}" for i in range(N)], [(i % 7) + 0.5 for i in range(N)]):
        found = read_outputs(write(tmp_path / "a.parquet", changed(example_id=ids))).population.outputs.example_id
        np.testing.assert_array_equal(found, np.arange(N) % 7)


@pytest.mark.slow
def test_a_wide_and_wrong_file_always_exits_with_2(tmp_path: Path) -> None:
    """A thread of Arrow's that still held the file when the interpreter exited aborted the process, now and then."""
    path = write(tmp_path / "a.parquet", {f"feature_{i}": np.zeros(200, dtype=np.float32) for i in range(2000)})
    command = [sys.executable, "-c", "from sweeper.cli import main; main()", "audit", str(path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        _, error = run.communicate(timeout=300)
        assert run.returncode == 2, error
        assert "feature_19, … (2000 columns)" in " ".join(error.split())


def test_no_thread_of_arrows_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    read = pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile, "read", lambda self, **options: (calls.append(options), read(self, **options))[1]
    )
    read_outputs(as_wide(tmp_path))
    assert [options["use_threads"] for options in calls] == [False]
    assert len(calls[0]["columns"]) == 3 + CLASSES

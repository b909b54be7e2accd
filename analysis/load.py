"""Reads a results folder into frames. If that fails, one paragraph says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

ScoreKey = tuple[str, str, str]
"""(target_id, attack_id, score_name): names one attack's scores on one target."""

FPR_COLUMNS: dict[float, str] = {
    0.001: "tpr_at_fpr_0.001",
    0.01: "tpr_at_fpr_0.01",
    0.1: "tpr_at_fpr_0.1",
}
"""The column of the true positive rate at each recorded false positive rate."""

TNR_COLUMNS: dict[float, str] = {fnr: f"tnr_at_fnr_{fnr:g}" for fnr in FPR_COLUMNS}
"""The column of the true negative rate at each false negative rate: the tail of a target's losses."""

POOLED_COLUMNS: dict[float, str] = {fpr: f"pooled_tpr_at_fpr_{fpr:g}" for fpr in (0.0001, 0.001, 0.01)}
CALIBRATED_COLUMNS: dict[float, str] = {fpr: f"calibrated_tpr_at_fpr_{fpr:g}" for fpr in POOLED_COLUMNS}
"""The columns of `cohorts` with the rates over all targets of a cell together: of the raw scores, and calibrated per example."""


_DAMAGED = (pa.ArrowException, OSError, ValueError, LookupError, TypeError)
"""What Arrow raises for a damaged Parquet file."""
_CHECKED = pads.ParquetFragmentScanOptions(page_checksum_verification=True)


class ResultsError(ValueError):
    """The results folder cannot be read; the text names the file, what is wrong and what to do."""


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


_KINDS: dict[str, Callable[[pa.DataType], bool]] = {
    "text": _is_text,
    "number": _is_number,
    "boolean": lambda kind: bool(pa.types.is_boolean(kind)),
    "time": lambda kind: bool(pa.types.is_timestamp(kind)),
    "list": _is_list,
    "images": _is_list,
}


def _columns(**kinds: str) -> dict[str, str]:
    return {name: kind for kind, names in kinds.items() for name in names.split()}


# The columns that the analysis uses. A table may have more.
_TABLES: dict[str, dict[str, str]] = {
    "trials": _columns(
        text="target_id sweep part dataset split architecture defense status error dataset_sha256 accountant "
        "adjacency sampling no_guarantee_reason sweeper_version git_commit python_version torch_version "
        "opacus_version device machine",
        number="seed attempts n_train n_non_members n_test epochs batch_size steps train_accuracy "
        "test_accuracy train_time_s epsilon_target epsilon_spent delta noise_multiplier threads",
        boolean="git_dirty",
        time="started_at",
    ),
    "attacks": _columns(
        text="target_id attack_id attack family score_name status error paper_protocol_score",
        number="n_members n_non_members auc auc_low auc_high advantage paper_protocol_auc attack_time_s "
        + " ".join(FPR_COLUMNS.values()),
        boolean="uses_target_membership_labels",
        list="candidates",
    ),
    "scores": _columns(text="target_id attack_id score_name", number="example_id score", boolean="is_member"),
    "reconstructions": _columns(
        text="target_id attack_id layer",
        number="layer_index mse_members mse_non_members mse_test mse_gap mse_constant mse_untrained",
        images="examples",
    ),
}

# Results of an earlier version, or of another kind of sweep, may lack these columns. They are then null.
_OPTIONAL: dict[str, dict[str, str]] = {
    "trials": _columns(
        text="optimizer mechanism noise_unit clipping twin_id config component_sha256 split_label canary_kind search_id search_law "
        "search_objective search_basis epsilon_shown cause",
        number="n_members n_canaries canary_seed n_reference n_validation learning_rate noise_scale max_grad_norm train_loss test_loss "
        "validation_accuracy search_run search_runs epsilon_run epsilon_with_search epsilon_trained_anew",
        boolean="paired_batches",
        list="rdp adaptive_attacks worst_canaries",
    ),
    "attacks": _columns(
        text="config",
        number="epsilon_lower_bound advantage_null balanced_accuracy n_references null_auc decided_tpr decided_fpr "
        + " ".join(TNR_COLUMNS.values())
        + " "
        + " ".join(f"{column}_{end}" for column in FPR_COLUMNS.values() for end in ("low", "high")),
    ),
    "history": _columns(
        text="target_id",
        number="epoch train_loss train_accuracy test_loss test_accuracy held_out_loss epsilon_spent train_time_s clip_norm "
        "clipped_fraction",
    ),
    "comparisons": _columns(text="comparison_id comparison config status error", list="members"),
    "cohorts": _columns(
        text="comparison_id attack score_name",
        number="n_targets n_units n_examples top_share epsilon_lower_bound audit_delta "
        + " ".join(
            f"{column}{end}"
            for column in (
                *("auc", "null_auc", *FPR_COLUMNS.values()),
                *(*CALIBRATED_COLUMNS.values(), *POOLED_COLUMNS.values()),
            )
            for end in ("", "_low", "_high")
        ),
    ),
    "tpvd": _columns(text="target_id twin_id", number="tpvd tpvd_other_init", list="tensors displacement_sketch"),
}

_WHAT_TO_DO = (
    "Give the folder that `sweeper launch` wrote; if the sweep was stopped before it ended, "
    "`sweeper gather` writes the tables from what is there."
)


@dataclass(frozen=True, kw_only=True)
class Results:
    """The tables of one results folder. Columns that a table lacks are null.

    Runs of searches, which chose settings and are not evaluated, are in `search_runs` alone; `trials` and the tables of what was
    measured have the other targets. Scores and example images are large and stay on disk; see `read_scores` and
    `read_examples`. `history` has a row per
    target and epoch, `comparisons` a row per comparison of a group of targets, `cohorts` a row per attack on a cohort and
    score, and `tpvd` a row per target whose non-private twin finished. They are empty if the folder has no such table.
    """

    directory: Path
    trials: pd.DataFrame
    attacks: pd.DataFrame
    reconstructions: pd.DataFrame
    history: pd.DataFrame
    comparisons: pd.DataFrame
    cohorts: pd.DataFrame
    tpvd: pd.DataFrame
    search_runs: pd.DataFrame = field(default_factory=pd.DataFrame)
    planned: int | None = None
    """The number of targets in the sweep, if the folder says it."""
    expected: str = ""
    """What the sweep can show, in the words of its own file."""


def _path(directory: Path, table: str) -> Path:
    return directory / f"{table}.parquet"


def _checked_path(directory: Path, table: str) -> Path:
    """The path of `table`, after a check of its columns."""
    path = _path(directory, table)
    if not path.is_file():
        raise ResultsError(f"The results have no table '{table}': {path} is not there. {_WHAT_TO_DO}")
    try:
        schema = pq.read_schema(path)
        names = schema.names
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    wanted = _TABLES.get(table, {})
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ResultsError(
            f"{path} lacks the columns {', '.join(missing)}. It was written by another version of sweeper, "
            f"or is not its table '{table}'. Make the report with the version that wrote it, or run "
            "the sweep again."
        )
    for name, kind in _present(table, names).items():
        found = schema.field(name).type
        # A column that holds only nulls may have lost its type in another tool.
        if not (pa.types.is_null(found) or _KINDS[kind](found)):
            raise ResultsError(
                f"{path}: column '{name}' holds {found}, not {kind}. It was changed after sweeper "
                "wrote it, or written by another version. Restore the file, or run the sweep again."
            )
    return path


def _unreadable(path: Path, error: Exception) -> ResultsError:
    reason = " ".join(str(error).split())
    return ResultsError(f"{path} cannot be read as Parquet: {reason}. The file is damaged or cut off. {_WHAT_TO_DO}")


def _present(table: str, names: Iterable[str]) -> dict[str, str]:
    """Those columns of the file that the analysis uses."""
    known = {**_TABLES.get(table, {}), **_OPTIONAL.get(table, {})}
    there = set(names)
    return {name: kind for name, kind in known.items() if name in there}


def _frame(directory: Path, table: str) -> pd.DataFrame:
    optional = _OPTIONAL.get(table, {})
    if table not in _TABLES and not _path(directory, table).is_file():
        return _typed(pd.DataFrame(columns=list(optional)), optional)
    path = _checked_path(directory, table)
    try:
        present = {name: kind for name, kind in _present(table, pq.read_schema(path).names).items() if kind != "images"}
        frame = pq.read_table(path, columns=list(present), page_checksum_verification=True).to_pandas()
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    for name in ("target_id", "attack_id"):
        if name in frame and frame[name].isna().any():
            raise ResultsError(
                f"{path}: column '{name}' has nulls, so some rows cannot be identified. It was changed after "
                "sweeper wrote it. Restore the file, or run the sweep again."
            )
    absent = {name: None for name in optional if name not in present}
    return _typed(frame.assign(**absent), {**_TABLES.get(table, {}), **optional})


def _typed(frame: pd.DataFrame, kinds: dict[str, str]) -> pd.DataFrame:
    untyped = [name for name, kind in kinds.items() if kind == "number" and frame[name].isna().all()]
    text = [name for name, kind in kinds.items() if kind == "text"]
    # Ids join tables, so they stay unchanged. Other text is shown to people.
    visible = {name: frame[name].map(_visible, na_action="ignore") for name in text if not name.endswith("_id")}
    # pandas reads a column of nulls as numbers
    return frame.assign(**visible).astype({**dict.fromkeys(untyped, float), **dict.fromkeys(text, "str")})


def _visible(text: str) -> str:
    """The text with control characters, and characters that change its direction, spelled out."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text
    )


def load(directory: Path) -> Results:
    """The tables under `directory`.

    Raises:
        ResultsError: the folder or a table is missing, damaged, or lacks a column.
    """
    if not directory.is_dir():
        raise ResultsError(f"There is no results folder {directory}. {_WHAT_TO_DO}")
    _checked_path(directory, "scores")
    everything = _with_defaults(_frame(directory, "trials"))
    is_run = everything["search_run"].notna()
    runs = set(everything.loc[is_run, "target_id"])

    def evaluated(table: str) -> pd.DataFrame:
        frame = _frame(directory, table)
        return frame[~frame["target_id"].isin(runs)].reset_index(drop=True) if runs else frame

    return Results(
        directory=directory,
        trials=everything[~is_run].reset_index(drop=True),
        search_runs=everything[is_run].reset_index(drop=True),
        attacks=evaluated("attacks"),
        reconstructions=evaluated("reconstructions"),
        history=evaluated("history"),
        comparisons=_frame(directory, "comparisons"),
        cohorts=_frame(directory, "cohorts"),
        tpvd=_frame(directory, "tpvd"),
        planned=_planned(directory, len(runs)),
        expected=_expected(directory),
    )


def _with_defaults(trials: pd.DataFrame) -> pd.DataFrame:
    """Results from before there were canaries: all members are attacked, and a split's label is its name."""
    return trials.assign(
        n_members=trials["n_members"].fillna(trials["n_train"]),
        split_label=trials["split_label"].fillna(trials["split"]),
    )


def _about(directory: Path, key: str) -> Any:
    """What `sweep.json` has under `key`; None if the key or the file is missing."""
    try:
        return json.loads((directory / "sweep.json").read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # tables are complete without this file


def _planned(directory: Path, n_runs: int) -> int | None:
    """How many targets are to be evaluated; `n_runs` of those on record chose settings."""
    targets, runs = _about(directory, "targets"), _about(directory, "search_runs")
    n_runs = len(runs) if isinstance(runs, list) else n_runs
    return len(targets) - n_runs if isinstance(targets, list | dict) else None


def _expected(directory: Path) -> str:
    expected = _about(directory, "expected")
    return _visible(" ".join(expected.split())) if isinstance(expected, str) else ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One attack's scores on one target: `score` (n,), higher means more likely a member."""

    example_id: npt.NDArray[np.int64]
    is_member: npt.NDArray[np.bool_]
    score: npt.NDArray[np.float64]


def read_scores(results: Results, wanted: Mapping[ScoreKey, float]) -> Iterator[tuple[ScoreKey, Scores]]:
    """The scores of each key in `wanted` that the table has, one key after the other.

    `wanted` says how many scores each key has, or infinity if the number is unknown. `sweeper` writes the scores of one key
    together, so few are in memory at a time.
    """
    if not wanted:
        return
    path = _checked_path(results.directory, "scores")
    names = ("target_id", "attack_id", "score_name")
    filters = [pads.field(name).isin(sorted({key[i] for key in wanted})) for i, name in enumerate(names)]
    begun: dict[ScoreKey, list[pd.DataFrame]] = {}
    try:
        # Dictionary encoding keeps a target's id in memory once, not once per example.
        layout = pads.ParquetFileFormat(dictionary_columns=set(names), default_fragment_scan_options=_CHECKED)
        data = pads.dataset(path, format=layout)
        columns = [*names, "example_id", "is_member", "score"]
        for batch in data.to_batches(columns=columns, filter=filters[0] & filters[1] & filters[2]):
            for key, rows in batch.to_pandas().groupby(list(names), observed=True, sort=False):
                if key not in wanted:
                    continue
                begun.setdefault(key, []).append(rows[["example_id", "is_member", "score"]])
                if sum(map(len, begun[key])) >= wanted[key]:
                    yield key, _scores(begun.pop(key))
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    yield from ((key, _scores(parts)) for key, parts in begun.items())


def _scores(parts: list[pd.DataFrame]) -> Scores:
    rows = pd.concat(parts)
    return Scores(
        example_id=rows["example_id"].to_numpy(dtype=np.int64),
        is_member=rows["is_member"].to_numpy(dtype=bool),
        score=rows["score"].to_numpy(dtype=float),
    )


def read_examples(
    results: Results, targets: Iterable[str], attack_id: str
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Recorded example images of one inversion attack, by target id and layer: ids, errors and PNGs."""
    path = _checked_path(results.directory, "reconstructions")
    wanted = pads.field("target_id").isin(sorted(set(targets))) & (pads.field("attack_id") == attack_id)
    try:
        data = pads.dataset(path, format=pads.ParquetFileFormat(default_fragment_scan_options=_CHECKED))
        rows = data.to_table(columns=["target_id", "layer", "examples"], filter=wanted).to_pylist()
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    return {(row["target_id"], row["layer"]): row["examples"] or [] for row in rows}


_EXPOSURE_COLUMNS = (
    "example_id",
    "label",
    "n_in",
    "n_out",
    "exposure",
    *(f"found_at_fpr_{fpr}{end}" for fpr in ("0.001", "0.01") for end in ("", "_low", "_high")),
    "image_png",
)


def read_exposed(results: Results, comparison_ids: Iterable[str], count: int) -> dict[str, list[dict[str, Any]]]:
    """The `count` most exposed examples of each attack on a cohort, most exposed first; no key for one without any."""
    wanted = sorted(set(comparison_ids))
    if not wanted or not _path(results.directory, "exposure").is_file():
        return {}
    path = _checked_path(results.directory, "exposure")
    try:
        layout = pads.ParquetFileFormat(default_fragment_scan_options=_CHECKED)
        data = pads.dataset(path, format=layout)
        found = {}
        for comparison_id in wanted:
            here = pads.field("comparison_id") == comparison_id
            exposure = data.to_table(columns=["example_id", "exposure"], filter=here)
            top = exposure.sort_by([("exposure", "descending"), ("example_id", "ascending")]).slice(0, count)
            rows = data.to_table(
                columns=list(_EXPOSURE_COLUMNS), filter=here & pads.field("example_id").isin(top["example_id"])
            ).to_pylist()
            if rows:
                found[comparison_id] = sorted(rows, key=lambda row: (-row["exposure"], row["example_id"]))
        return found
    except _DAMAGED as error:
        raise _unreadable(path, error) from error

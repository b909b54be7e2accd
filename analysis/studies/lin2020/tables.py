"""Tables 3–12 of the second paper with our numbers, what the paper concluded from its own beside them.

Source: Lin et al. 2020, Tables 3–12. Deviations: every number is a mean over seeds with its 95 % t-interval
where the paper has one run; accuracy is a fraction, on test examples and on training examples; the tests have
effect sizes and adjusted p-values; epochs to a stated loss and the averages of the abstract are tables of
their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import naming
from analysis.statistics.estimates import Estimate, estimate
from analysis.studies.lin2020 import numbers as lin2020
from analysis.studies.lin2020.factors import (
    CA,
    KINDS,
    NORMAL,
    QUANTILES,
    SEQUENCES,
    Cell,
    FactorStudy,
    kind_name,
    level_name,
    mean_over_seeds,
    ordered,
    paired,
)
from analysis.studies.lin2020.influences import analyze
from analysis.studies.lin2020.significance import influences_table, leakage_table, normality_table
from analysis.tables.table import Column, Entry, Label, Mean, Table

LOSS_LEVEL = math.log(10) / 2
"""Half the loss of guessing among the ten classes that all of the paper's datasets have."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A quantity of a training: its column, its name and how it is rounded."""

    key: str
    name: str
    decimals: int


TEST = Shown(key="accuracy", name="Test accuracy", decimals=3)
TRAIN = Shown(key="train_accuracy", name="Training accuracy", decimals=3)
LOSS = Shown(key="loss", name="Training loss", decimals=3)
TPVD = Shown(key="tpvd", name="TPVD", decimals=3)
OTHER_INIT = Shown(key="tpvd_other_init", name="TPVD, other initialization", decimals=3)
AUC = Shown(key="auc", name="Honest AUC", decimals=3)
AUDIT = Shown(key="epsilon_lower_bound", name="Audited ε, lower bound", decimals=2)

_PAPERS = {
    "accuracy": "accuracy",
    "train_accuracy": "accuracy",
    "loss": "loss",
    "tpvd": "tpvd",
    "tpvd_other_init": "tpvd",
}
"""Which of the paper's quantities stands beside ours: it does not say which accuracy its own is, nor which twin its TPVD has."""

_CELL_COLUMNS = (
    Column(key="dataset", name="Dataset", kind="label"),
    Column(key="model", name="Model", kind="label"),
    Column(key="optimizer", name="Optimizer", kind="label"),
)
_NO_SEQUENCE = "No trial with a fixed clip norm and a sequence finished, so there is nothing to show."
_TABLE_OF = {"mnist": "lin_table3", "cifar10": "lin_table4", "svhn": "lin_table5"}


def factor_tables(study: FactorStudy) -> list[Table]:
    """Every table, in the paper's order."""
    accuracy, training, loss = (analyze(study, dependent) for dependent in ("accuracy", "train_accuracy", "loss"))
    return [
        *_training_tables(study),
        _gains(study),
        _distortion(study),
        _quantiles(study),
        normality_table(study, accuracy, "lin_table8", "Table 8. Shapiro–Wilk test of test accuracy"),
        normality_table(study, training, "lin_table8_train", "Table 8. Shapiro–Wilk test of training accuracy"),
        normality_table(study, loss, "lin_table9", "Table 9. Shapiro–Wilk test of convergence (final training loss)"),
        influences_table(accuracy, "lin_table10", "Table 10. Which factors matter for test accuracy"),
        influences_table(training, "lin_table10_train", "Table 10. Which factors matter for training accuracy"),
        influences_table(loss, "lin_table11", "Table 11. Which factors matter for convergence (final training loss)"),
        _ladder(study),
        _convergence(study),
        leakage_table(study),
    ]


def _mean(rows: pd.DataFrame, shown: Shown, paper: float | None = None) -> Mean:
    return Mean(ours=estimate(rows[shown.key]), decimals=shown.decimals, paper=paper)


def _settings(rows: pd.DataFrame) -> list[tuple[float, float, str]]:
    """Noise, clip norm and sequence of `rows`, in the paper's order."""
    present = set(rows[["noise", "clip", "sequence"]].itertuples(index=False, name=None))
    return sorted(present, key=lambda row: (row[0], row[1], SEQUENCES.index(row[2])))


def _pick(rows: pd.DataFrame, setting: tuple[float, float, str]) -> pd.DataFrame:
    noise, clip, sequence = setting
    return rows[(rows["noise"] == noise) & (rows["clip"] == clip) & (rows["sequence"] == sequence)]


def _places(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Model and optimizer of `rows`, in the paper's order."""
    present = set(rows[["model", "optimizer"]].itertuples(index=False, name=None))
    order = [(m, o) for m in ordered("model", rows["model"]) for o in ordered("optimizer", rows["optimizer"])]
    return [place for place in order if place in present]


def _place_columns(places: Sequence[tuple[str, str]]) -> list[Column]:
    return [
        Column(
            key=f"{model}_{optimizer}", name=", ".join(naming.display(x) for x in (model, optimizer) if x), kind="mean"
        )
        for model, optimizer in places
    ]


_SETTING_COLUMNS = (
    Column(key="noise", name="Noise", kind="label"),
    Column(key="clip", name="Clip norm", kind="label"),
    Column(key="sequence", name="Sequence", kind="label"),
    Column(key="quantity", name="Quantity", kind="label"),
)


def _by_place(
    study: FactorStudy, dataset: str, quantities: Sequence[Shown], places: Sequence[tuple[str, str]], normal: bool
) -> list[tuple[Entry, ...]]:
    """Rows of noise, clip norm, sequence and quantity; a column per model and optimizer."""
    here = study.compared[study.compared["dataset"] == dataset]
    rows: list[tuple[Entry, ...]] = []
    if normal:
        undefended = study.frame[(study.frame["dataset"] == dataset) & (study.frame["kind"] == NORMAL)]
        for shown in quantities:
            cells = [_mean(study.at((dataset, *place), undefended), shown) for place in places]
            if any(cell.ours for cell in cells):
                rows.append(("—", "—", kind_name(NORMAL), shown.name, *cells))
    for setting in _settings(here):
        noise, clip, sequence = setting
        for shown in quantities:
            means = []
            for model, optimizer in places:
                found = _pick(study.at((dataset, model, optimizer), here), setting)
                paper = lin2020.number(dataset, model, optimizer, noise, clip, sequence, _PAPERS[shown.key])
                means.append(_mean(found, shown, paper))
            rows.append((f"{noise:g}", f"{clip:g}", sequence, shown.name, *means))
    return rows


def _training_tables(study: FactorStudy) -> list[Table]:
    """Tables 3, 4 and 5, and one of the same shape for every other dataset."""
    datasets = ordered("dataset", study.frame["dataset"])
    names = {dataset: _TABLE_OF.get(dataset, f"lin_training_{naming.file_name(dataset)}") for dataset in datasets}
    # Of the paper's datasets the missing ones are named, unless the study has none of them.
    published = list(_TABLE_OF) if set(_TABLE_OF) & set(datasets) else []
    made: list[Table] = []
    for dataset in [*published, *(one for one in datasets if one not in published)]:
        name = names.get(dataset, _TABLE_OF.get(dataset, ""))
        numbered = f"Table {name.removeprefix('lin_table')}. " if dataset in _TABLE_OF else ""
        here = study.compared[study.compared["dataset"] == dataset]
        places = _places(here)
        rows = _by_place(study, dataset, (TEST, TRAIN, LOSS), places, normal=True) if places else []
        made.append(
            Table(
                name=name,
                title=f"{numbered}Training results on {naming.display(dataset)}",
                caption=lin2020.CONCLUSIONS.get(name, ""),
                columns=(*_SETTING_COLUMNS, *_place_columns(places)),
                rows=tuple(rows),
                notes=(
                    "CA clips first and adds noise after; AC adds noise first and clips after. Accuracy is a fraction; "
                    "the training loss is that of the whole training set after the last epoch, in nats.",
                )
                if rows
                else (),
                missing="" if rows else f"{naming.display(dataset)}: {_NO_SEQUENCE}",
            )
        )
    return made


def _gains(study: FactorStudy) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for dataset in ordered("dataset", study.compared["dataset"]):
        for model in ordered("model", study.compared["model"]):
            here = study.compared[(study.compared["dataset"] == dataset) & (study.compared["model"] == model)]
            accuracies, loss = [accuracy_gain(here, column) for column in (TEST.key, TRAIN.key)], loss_reduction(here)
            if loss is None and not any(accuracies):
                continue
            published = lin2020.gain(dataset, model, "accuracy_gain")
            rows.append(
                (
                    Label(value=dataset),
                    Label(value=model),
                    len(paired(here, "accuracy")),
                    *(Mean(ours=each, decimals=1, signed=True, paper=published) for each in accuracies),
                    Mean(ours=loss, decimals=1, paper=lin2020.gain(dataset, model, "loss_reduction")),
                )
            )
    return Table(
        name="lin_gains",
        title="What noise first gains over clipping first, on average",
        caption=lin2020.CONCLUSIONS["lin_gains"],
        columns=(
            Column(key="dataset", name="Dataset", kind="label"),
            Column(key="model", name="Model", kind="label"),
            Column(key="pairs", name="Pairs"),
            Column(key="accuracy_gain", name="Test accuracy gain (points)", kind="mean"),
            Column(key="train_accuracy_gain", name="Training accuracy gain (points)", kind="mean"),
            Column(key="loss_reduction", name="Loss reduction (%)", kind="mean"),
        ),
        rows=tuple(rows),
        notes=(
            "AC against CA of the same seed, noise, clip norm and optimizer, averaged within a seed, then over seeds. "
            "Gains are in percentage points; the reduction is 100·(CA − AC)/CA of the final training loss, pair by pair. "
            "The paper does not say whether its gains are points or percent, nor how it averaged. "
            + lin2020.ACCURACY_IN_WORDS,
        )
        if rows
        else (),
        missing="" if rows else _NO_SEQUENCE,
    )


def accuracy_gain(rows: pd.DataFrame, column: str) -> Estimate | None:
    """Mean gain of accuracy, on test or training examples as `column` says, of AC against CA, in points."""
    return mean_over_seeds(paired(rows, column).assign(value=lambda pairs: 100 * pairs["value"]))


def loss_reduction(rows: pd.DataFrame) -> Estimate | None:
    """Mean reduction of the training loss of AC against CA, pair by pair, in percent."""
    loss = paired(rows, "loss")
    return mean_over_seeds(loss[loss[CA] > 0].assign(value=lambda pairs: -100 * pairs["value"] / pairs[CA]))


def _distortion(study: FactorStudy) -> Table:
    """Table 6. The paper shows MNIST and says that the others are similar: here all stand."""
    known = study.compared[study.compared["tpvd"].notna()]
    places = _places(known)
    rows: list[tuple[Entry, ...]] = []
    for dataset in ordered("dataset", known["dataset"]):
        rows += [
            (Label(value=dataset), *row)
            for row in _by_place(study, dataset, (TEST, TRAIN, TPVD, OTHER_INIT), places, normal=False)
        ]
    return Table(
        name="lin_table6",
        title="Table 6. Accuracy and TPVD by noise, clip norm and sequence",
        caption=lin2020.CONCLUSIONS["lin_table6"],
        columns=(Column(key="dataset", name="Dataset", kind="label"), *_SETTING_COLUMNS, *_place_columns(places)),
        rows=tuple(rows),
        notes=_NOTES if rows else (),
        missing="" if rows else "No target with a fixed clip norm has a TPVD.",
    )


TPVD_IN_WORDS = (
    "TPVD is how far the weights lie from those of the same training without noise and clipping, relative to their "
    "size, averaged over the parameter tensors. It says how much the weights were changed. It is no guarantee, and "
    "nothing in its definition looks at a training example. The twin shares the target’s seed, and so its initialization; "
    "the other is the undefended model of the next seed, initialized anew, with members and batches of its own."
)
_NOTES = (TPVD_IN_WORDS, lin2020.TPVD_IN_WORDS, lin2020.ACCURACY_IN_WORDS)


def _quantiles(study: FactorStudy) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for cell in adaptive_cells(study):
        here = study.at(cell)
        for label, noise, clip, found in adaptive_rows(here):
            sequence = label if label in SEQUENCES else ""
            papers = [
                lin2020.number(*cell, None, clip, sequence, quantity) if sequence and clip is not None else None
                for quantity in ("accuracy", "tpvd")
            ]
            rows.append(
                (
                    *(Label(value=part) for part in cell),
                    kind_name(label),
                    "—" if clip is None else f"{clip:g}",
                    "—" if noise is None else f"{noise:g}",
                    _mean(found, TEST, papers[0]),
                    _mean(found, TRAIN, papers[0]),
                    _mean(found, LOSS),
                    _mean(found, TPVD, papers[1]),
                    _mean(found, OTHER_INIT, papers[1]),
                    _mean(found, AUC),
                    _mean(found, AUDIT),
                )
            )
    return Table(
        name="lin_table7",
        title="Table 7. Noise first at a fixed clip norm against quantile clipping",
        caption=lin2020.CONCLUSIONS["lin_table7"],
        columns=(
            *_CELL_COLUMNS,
            Column(key="method", name="Method", kind="label"),
            Column(key="clip", name="Clip norm", kind="label"),
            Column(key="noise", name="Noise", kind="label"),
            *(
                Column(key=shown.key, name=shown.name, kind="mean")
                for shown in (TEST, TRAIN, LOSS, TPVD, OTHER_INIT, AUC, AUDIT)
            ),
        ),
        rows=tuple(rows),
        notes=(
            lin2020.QUANTILE_IN_WORDS,
            "The paper does not say which noise its rows at fixed clip norms have. Clipping first is not in its table: at the "
            "same clip norm it says how much of AC’s lead is due to a fixed clip norm in place of a quantile.",
            *_NOTES,
        )
        if rows
        else (),
        missing="" if rows else "No target with a quantile rule finished.",
    )


def adaptive_cells(study: FactorStudy) -> list[Cell]:
    """The datasets, models and optimizers in which a quantile rule was tried."""
    return [cell for cell in study.cells if study.at(cell)["kind"].isin(QUANTILES).any()]


def adaptive_rows(here: pd.DataFrame) -> list[tuple[str, float | None, float | None, pd.DataFrame]]:
    """Kind, noise, clip norm and targets of what Section 5.3 compares in one cell, the undefended first."""
    found: list[tuple[str, float | None, float | None, pd.DataFrame]] = []
    for kind in KINDS:
        rows = here[here["kind"] == kind]
        if rows.empty:
            continue
        if kind not in SEQUENCES:
            levels = [None if pd.isna(noise) else float(noise) for noise in rows["noise"].drop_duplicates()]
            for noise in sorted(levels, key=lambda level: -1.0 if level is None else level):
                chosen = rows[rows["noise"].isna()] if noise is None else rows[rows["noise"] == noise]
                found.append((kind, noise, None, chosen))
            continue
        for clip in lin2020.ADAPTIVE_CLIPS:
            at_clip = rows[rows["clip"] == clip]
            for noise in ordered("noise", at_clip["noise"]):
                found.append((kind, float(noise), clip, at_clip[at_clip["noise"] == noise]))
    return found


def ladders(study: FactorStudy) -> list[tuple[Cell, float, pd.DataFrame]]:
    """The cells and noise scales with three clip norms or more, those of the paper's Table 12 first."""
    rows = study.frame[study.frame["sequence"].notna() & study.frame["clip"].notna() & study.frame["noise"].notna()]
    found = []
    for cell in study.cells:
        for noise in ordered("noise", study.at(cell, rows)["noise"]):
            here = study.at(cell, rows)
            here = here[here["noise"] == noise]
            if here["clip"].nunique() >= 3:
                found.append((cell, float(noise), here))
    return sorted(found, key=lambda item: (*item[0], item[1]) != lin2020.LADDER)


_LADDER = (TEST, TRAIN, TPVD, OTHER_INIT)


def _ladder(study: FactorStudy) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for cell, noise, here in ladders(study):
        for clip in ordered("clip", here["clip"]):
            at_clip = here[here["clip"] == clip]
            cells = []
            for shown in _LADDER:
                for sequence in SEQUENCES:
                    paper = lin2020.number(*cell, noise, clip, sequence, _PAPERS[shown.key])
                    cells.append(_mean(at_clip[at_clip["sequence"] == sequence], shown, paper))
            rows.append((*(Label(value=part) for part in cell), f"{noise:g}", f"{clip:g}", *cells))
    return Table(
        name="lin_table12",
        title="Table 12. Accuracy and TPVD by clip norm",
        caption=lin2020.CONCLUSIONS["lin_table12"],
        columns=(
            *_CELL_COLUMNS,
            Column(key="noise", name="Noise", kind="label"),
            Column(key="clip", name="Clip norm", kind="label"),
            *(
                Column(key=f"{shown.key}_{sequence.lower()}", name=f"{shown.name}, {sequence}", kind="mean")
                for shown in _LADDER
                for sequence in SEQUENCES
            ),
        ),
        rows=tuple(rows),
        notes=_NOTES if rows else (),
        missing="" if rows else "No dataset, model and optimizer has three clip norms or more at one noise scale.",
    )


def epochs_to_loss(history: pd.DataFrame, level: float = LOSS_LEVEL) -> pd.DataFrame:
    """Per target `value`: the first epoch whose training loss is at most `level`, null where none is.

    The loss is that of the epoch's batches as they were met, in train mode.
    """
    firsts = history[history["train_loss"] <= level].groupby("target_id")["epoch"].min()
    targets = history.drop_duplicates("target_id").set_index("target_id")
    return targets.assign(value=firsts.reindex(targets.index)).reset_index()


def _convergence(study: FactorStudy) -> Table:
    reached = epochs_to_loss(study.history)
    places = _places(study.compared)
    rows: list[tuple[Entry, ...]] = []
    for dataset in ordered("dataset", study.compared["dataset"]):
        here = study.compared[study.compared["dataset"] == dataset]
        settings: list[tuple[float, float, str] | None] = [None, *_settings(here)]
        for setting in settings:
            cells = []
            for place in places:
                source = study.frame if setting is None else study.compared
                targets = study.at((dataset, *place), source)
                targets = targets[targets["kind"] == NORMAL] if setting is None else _pick(targets, setting)
                found = reached[reached["target_id"].isin(targets["target_id"])]
                known = int(found["value"].notna().sum())
                note = "" if found.empty else f"{known} of {len(found)} seeds"
                if len(found) and not known:
                    note = f"not reached (0 of {len(found)})"
                cells.append(Mean(ours=estimate(found["value"]), decimals=1, note=note))
            if any(cell.note for cell in cells):
                words = ("—", "—", kind_name(NORMAL)) if setting is None else _setting_words(setting)
                rows.append((Label(value=dataset), *words, *cells))
    return Table(
        name="lin_convergence",
        title=f"Epochs until the training loss is at most {LOSS_LEVEL:.3f}",
        caption=lin2020.CONCLUSIONS["lin_convergence"],
        columns=(Column(key="dataset", name="Dataset", kind="label"), *_SETTING_COLUMNS[:3], *_place_columns(places)),
        rows=tuple(rows),
        notes=(
            "The level is half the loss of guessing among ten classes, ln(10)/2. The mean is over the seeds that reached "
            "it, so it flatters a setting that few of them did.",
        )
        if rows
        else (),
        missing="" if rows else "No loss by epoch was recorded.",
    )


def _setting_words(setting: tuple[float, float, str]) -> tuple[str, str, str]:
    noise, clip, sequence = setting
    return level_name("noise", noise), level_name("clip", clip), sequence

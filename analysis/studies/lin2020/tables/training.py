"""Tables 3–6, the average gains, and the convergence, by noise, clip norm and sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis import naming
from analysis.statistics.estimates import Estimate, estimate
from analysis.studies.lin2020 import numbers as lin2020
from analysis.studies.lin2020.factors.frame import FactorStudy
from analysis.studies.lin2020.factors.levels import (
    CA,
    NORMAL,
    SEQUENCES,
    kind_name,
    level_name,
    ordered,
)
from analysis.studies.lin2020.factors.pairs import mean_over_seeds, paired
from analysis.studies.lin2020.tables.quantities import (
    LOSS,
    NOTES,
    OTHER_INIT,
    PAPERS,
    TEST,
    TPVD,
    TRAIN,
    Quantity,
    mean_of,
)
from analysis.tables.model import Column, Entry, Label, Mean, Table

LOSS_LEVEL = math.log(10) / 2
"""Half the loss of guessing among ten classes; all of the paper's datasets have ten."""


_NO_SEQUENCE = "No trial with a fixed clip norm and a sequence finished, so there is nothing to show."
_TABLE_OF = {"mnist": "lin_table3", "cifar10": "lin_table4", "svhn": "lin_table5"}


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
    study: FactorStudy, dataset: str, quantities: Sequence[Quantity], places: Sequence[tuple[str, str]], normal: bool
) -> list[tuple[Entry, ...]]:
    """Rows of noise, clip norm, sequence and quantity; a column per model and optimizer."""
    here = study.compared[study.compared["dataset"] == dataset]
    rows: list[tuple[Entry, ...]] = []
    if normal:
        undefended = study.frame[(study.frame["dataset"] == dataset) & (study.frame["kind"] == NORMAL)]
        for quantity in quantities:
            cells = [mean_of(study.at((dataset, *place), undefended), quantity) for place in places]
            if any(cell.ours for cell in cells):
                rows.append(("—", "—", kind_name(NORMAL), quantity.name, *cells))
    for setting in _settings(here):
        noise, clip, sequence = setting
        for quantity in quantities:
            means = []
            for model, optimizer in places:
                found = _pick(study.at((dataset, model, optimizer), here), setting)
                paper = lin2020.number(dataset, model, optimizer, noise, clip, sequence, PAPERS[quantity.key])
                means.append(mean_of(found, quantity, paper))
            rows.append((f"{noise:g}", f"{clip:g}", sequence, quantity.name, *means))
    return rows


def training_tables(study: FactorStudy) -> list[Table]:
    """Tables 3, 4 and 5, and one of the same shape for every other dataset."""
    datasets = ordered("dataset", study.frame["dataset"])
    names = {dataset: _TABLE_OF.get(dataset, f"lin_training_{naming.file_name(dataset)}") for dataset in datasets}
    # The paper's missing datasets are named too, unless the study has none of the paper's datasets.
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
                    "CA clips, then adds noise; AC adds noise, then clips. Accuracy is a fraction; "
                    "the training loss is over the whole training set after the last epoch, in nats.",
                )
                if rows
                else (),
                missing="" if rows else f"{naming.display(dataset)}: {_NO_SEQUENCE}",
            )
        )
    return made


def gains_table(study: FactorStudy) -> Table:
    """Gains of noise first over clipping first, beside the averages of the paper's abstract."""
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
        title="Average gains of noise first over clipping first",
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
    """Mean gain in accuracy of AC over CA, in points, on test or training examples as `column` says."""
    return mean_over_seeds(paired(rows, column).assign(value=lambda pairs: 100 * pairs["value"]))


def loss_reduction(rows: pd.DataFrame) -> Estimate | None:
    """Mean reduction of the training loss of AC relative to CA, pair by pair, in percent."""
    loss = paired(rows, "loss")
    return mean_over_seeds(loss[loss[CA] > 0].assign(value=lambda pairs: -100 * pairs["value"] / pairs[CA]))


def distortion_table(study: FactorStudy) -> Table:
    """Table 6, for every dataset. The paper shows MNIST and says that the others are similar."""
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
        notes=NOTES if rows else (),
        missing="" if rows else "No target with a fixed clip norm has a TPVD.",
    )


def epochs_to_loss(history: pd.DataFrame, level: float = LOSS_LEVEL) -> pd.DataFrame:
    """Per target `value`: the first epoch whose training loss is at most `level`; null if there is none.

    The loss is that of the epoch's own batches, in train mode.
    """
    firsts = history[history["train_loss"] <= level].groupby("target_id")["epoch"].min()
    targets = history.drop_duplicates("target_id").set_index("target_id")
    return targets.assign(value=firsts.reindex(targets.index)).reset_index()


def convergence_table(study: FactorStudy) -> Table:
    """Epochs until the training loss is at most `LOSS_LEVEL`. The paper has no such table."""
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
            "it, so it flatters a setting in which few seeds did.",
        )
        if rows
        else (),
        missing="" if rows else "No loss by epoch was recorded.",
    )


def _setting_words(setting: tuple[float, float, str]) -> tuple[str, str, str]:
    noise, clip, sequence = setting
    return level_name("noise", noise), level_name("clip", clip), sequence

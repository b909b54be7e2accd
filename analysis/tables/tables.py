"""Tables 1–4 with our numbers beside the paper's, and a summary of each defense.

Source: Lomurno & Matteucci 2022, Tables 1–4. Deviations: every number is a mean over seeds with its 95 %
t-interval where the paper has one run; training time also stands as a ratio to the baseline, for seconds of
two machines do not compare; membership inference has the honest AUC beside the paper's maximum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from analysis import naming
from analysis.load import FPR_COLUMNS
from analysis.measure.measurements import (
    NOT_NEGATIVE,
    PERCENT_CHANGE,
    Measurements,
    Setting,
    against_baseline,
    average_over_datasets,
    measured_fpr,
)
from analysis.measure.verdicts import beats_guessing, decoder_works
from analysis.statistics.estimates import Estimate, estimate
from analysis.studies.lomurno2022 import numbers as paper


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a line of a table measures. `signed` numbers are changes and are shown with their sign."""

    key: str
    name: str
    unit: str
    decimals: int
    signed: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Ours and the paper's; either can be missing. One that is not `supported` measured nothing: a note says why."""

    ours: Estimate | None
    paper: float | None
    supported: bool = True

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity of one row. `cells` follows the table's columns."""

    setting: Setting
    row: str
    label: str
    quantity: Quantity
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; with no lines, `missing` says why. `notes` are sentences for the reader."""

    name: str
    title: str
    corner: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    missing: str = ""


ACCURACY = Quantity(key="test_accuracy", name="Test accuracy", unit="fraction", decimals=3)
TIME = Quantity(key="train_time_s", name="Training time", unit="seconds", decimals=1)
SHORT_TIME = Quantity(key="train_time_s", name="Training time", unit="seconds", decimals=2)
RATIO = Quantity(key="time_ratio", name="Ratio to baseline", unit="times the baseline", decimals=2)
PAPER_AUC = Quantity(key="paper_protocol_auc", name="Paper’s protocol", unit="fraction", decimals=3)
HONEST_AUC = Quantity(key="auc", name="Honest", unit="fraction", decimals=3)
MSE_CHANGE = Quantity(key="mse_change", name="Change of reconstruction MSE", unit="percent", decimals=1, signed=True)

UNSUPPORTED = (
    "† Neither decoder, of the defense or of the baseline, is shown to beat both controls there (the mean image and an "
    "untrained target) on every dataset, by a test over seeds that holds for all decoders together: no verdict rests on it."
)
ONE_SEED = "† One seed shows nothing of what a decoder can do: no verdict rests on it."
_NO_TRIAL = "No trial finished, so there is nothing to show."
_NO_BASELINE = (
    "No baseline finished (a defense labeled baseline, no_defense, none or undefended), "
    "so there is nothing to compare with."
)


def accuracy_table(measured: Measurements) -> Table:
    """Table 1: fraction of test examples right, higher is better."""
    lines = [
        _line(measured, setting, dataset, ACCURACY, {
            defense: Cell(
                ours=measured.estimate(setting, dataset, defense, "test_accuracy"),
                paper=paper.number(1, dataset, defense),
            )
            for defense in measured.defenses
        })
        for setting, dataset in measured.paper_rows()
    ]  # fmt: skip
    return _table(measured, "table1", "Table 1. Test accuracy (fraction, higher is better)", lines)


def time_table(measured: Measurements) -> Table:
    """Table 2: seconds of all optimizer steps but the first, and the ratio to the same seed's baseline."""
    lines = []
    seconds = TIME if measured.frame["train_time_s"].median() >= 10 else SHORT_TIME
    ratios = time_ratios(measured)
    for setting, dataset in measured.paper_rows():
        lines.append(_line(measured, setting, dataset, seconds, {
            defense: Cell(
                ours=measured.estimate(setting, dataset, defense, "train_time_s"),
                paper=paper.number(2, dataset, defense),
            )
            for defense in measured.defenses
        }))  # fmt: skip
        if ratios is not None:
            lines.append(_line(measured, setting, dataset, RATIO, {
                defense: Cell(
                    ours=estimate_in(ratios, setting, dataset, defense),
                    paper=paper.time_ratio(dataset, defense),
                )
                for defense in measured.defenses
            }))  # fmt: skip
    notes = [
        "Seconds cover the optimizer’s steps only: loading, the first step and evaluation are not counted. "
        "Seconds of two machines do not compare; ratios to the baseline do, as far as the implementations do."
    ]
    if ratios is None:
        notes.append(_NO_BASELINE)
    return _table(measured, "table2", "Table 2. Training time (lower is better)", lines, notes)


def membership_table(measured: Measurements) -> Table:
    """Table 3: AUC of membership inference, the paper's optimistic maximum and the honest one."""
    lines = []
    for setting, dataset in measured.paper_rows():
        for quantity in (PAPER_AUC, HONEST_AUC):
            lines.append(_line(measured, setting, dataset, quantity, {
                defense: Cell(
                    ours=measured.estimate(setting, dataset, defense, quantity.key),
                    paper=paper.number(3, dataset, defense) if quantity is PAPER_AUC else None,
                )
                for defense in measured.defenses
            }))  # fmt: skip
    lines = [line for line in lines if any(cell.ours for cell in line.cells)]
    notes = [
        "Paper’s protocol: the largest AUC over all scores, on the very examples it is reported on, so it "
        "flatters the attacker and lies above 0.5 even where nothing leaks. Honest: the score is chosen on "
        "each half of the examples and measured on the other; the paper has no such number; its interval holds the choice of "
        "seeds and of examples. 0.5 is guessing, and a mean below it is noise: it counts as 0.5 in every ranking."
    ]
    title = "Table 3. AUC of membership inference, best of all scores (lower is better)"
    missing = "No membership attack has a finished best_of row."
    return _table(measured, "table3", title, lines, notes, missing=missing)


def inversion_settings(measured: Measurements) -> list[Setting]:
    """Settings with reconstructions, the official split first."""
    present = set(measured.inversion["setting"]) if len(measured.inversion) else set()
    return [setting for setting in measured.settings if setting.key in present]


def layers(measured: Measurements, setting: Setting) -> list[str]:
    """The cut points from the input to the output."""
    rows = measured.inversion[measured.inversion["setting"] == setting.key]
    return [str(layer) for layer in rows.sort_values("layer_index")["layer"].unique()]


def mse_changes(measured: Measurements, setting: Setting) -> pd.DataFrame | None:
    """Per target and layer `value`: 100·(MSE − MSE_baseline)/MSE_baseline on test images, same seed."""
    if measured.baseline is None or measured.inversion.empty:
        return None
    rows = measured.inversion[measured.inversion["setting"] == setting.key]
    changes = against_baseline(rows, measured.baseline, "mse_test", "percent", extra="layer")
    return None if changes.empty else changes


def inversion_table(measured: Measurements) -> Table:
    """Table 4: percentage change of the reconstruction MSE against the baseline, averaged over datasets.

    A cell is supported where, on every dataset, the decoder of the defense or of the baseline is shown to beat both controls.
    """
    defenses = [defense for defense in measured.defenses if defense != measured.baseline]
    lines: list[Line] = []
    notes = ["Below zero, the defense made the target easier to invert than the baseline at that layer."]
    compared: set[str] = set()
    left_out: set[str] = set()
    for number, setting in enumerate(inversion_settings(measured)):
        changes = mse_changes(measured, setting)
        if changes is None:
            continue
        # Averages over different datasets do not compare: only those that every defense has are taken.
        present = [set(rows["dataset"]) for _, rows in changes[changes["defense"].isin(defenses)].groupby("defense")]
        common = set.intersection(*present) if present else set()
        if common:
            left_out |= set.union(*present) - common
            changes = changes[changes["dataset"].isin(common)]
        works = decoder_works(measured, setting)
        for layer in layers(measured, setting):
            cells = []
            for defense in defenses:
                chosen = changes[(changes["layer"] == layer) & (changes["defense"] == defense)]
                ours, datasets = average_over_datasets(chosen, "value", PERCENT_CHANGE)
                compared.update(datasets)
                published = paper.number(4, layer, defense) if number == 0 else None
                supported = all(
                    works.get((dataset, label, layer), False)
                    for dataset in datasets
                    for label in [defense if works.get((dataset, defense, layer)) else str(measured.baseline)]
                )
                cells.append(Cell(ours=ours, paper=published, supported=supported))
            lines.append(
                Line(
                    setting=setting,
                    row=layer,
                    label=naming.display(layer),
                    quantity=MSE_CHANGE,
                    cells=tuple(cells),
                )
            )
    lines = [line for line in lines if any(cell.ours for cell in line.cells)]
    if compared:
        names = naming.listing([naming.display(d) for d in measured.datasets if d in compared])
        notes.append(f"Ours is averaged over {names}; the paper’s over CIFAR-10, MNIST and F-MNIST.")
    if left_out:
        names = naming.listing([naming.display(d) for d in measured.datasets if d in left_out])
        notes.append(f"{names}: left out, for not every defense has reconstructions there.")
    if any(cell.ours and not cell.supported for line in lines for cell in line.cells):
        notes.append(ONE_SEED if measured.inversion["seed"].nunique() == 1 else UNSUPPORTED)
    missing = "No reconstructions were recorded." if measured.inversion.empty else _NO_BASELINE
    title = "Table 4. Change of reconstruction MSE against the baseline by layer (percent, higher is better)"
    table = _table(measured, "table4", title, lines, notes, missing=missing)
    return replace(table, corner="Layer", columns=tuple(defenses))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One defense on one dataset. Epsilon is the largest over seeds; `guarantee` says it in words.

    `guessing_p` is the p-value of the AUC against 0.5, adjusted for all rows of the summary; `tpr_examples` the
    mean ends of the seeds' intervals over examples; `advantage_null` what guessing gives with as many examples.
    """

    setting: Setting
    dataset: str
    defense: str
    n_seeds: int
    epsilon_spent: float | None
    delta: float | None
    accountant: str
    guarantee: str
    accuracy: Estimate | None
    auc: Estimate | None
    guessing_p: float | None
    fpr: float | None
    tpr: Estimate | None
    tpr_examples: tuple[float, float] | None
    advantage: Estimate | None
    advantage_null: float | None
    time_ratio: Estimate | None


def summary_table(measured: Measurements) -> list[Summary]:
    """Table 5, ours: what each defense guarantees, what it costs, and what the attacks got."""
    ratios = time_ratios(measured)
    p_values = beats_guessing(measured)
    summaries = []
    for setting, dataset in measured.rows():
        fpr = measured_fpr(measured.at(setting, dataset))
        for defense in measured.defenses:
            rows = measured.of(setting, dataset, defense)
            if rows.empty:
                continue
            epsilon, delta, accountant, guarantee = _guarantee(rows)
            summaries.append(
                Summary(
                    setting=setting,
                    dataset=dataset,
                    defense=defense,
                    n_seeds=len(rows),
                    epsilon_spent=epsilon,
                    delta=delta,
                    accountant=accountant,
                    guarantee=guarantee,
                    accuracy=measured.estimate(setting, dataset, defense, "test_accuracy"),
                    auc=measured.estimate(setting, dataset, defense, "auc"),
                    guessing_p=p_values.get((setting.key, dataset, defense)),
                    fpr=fpr,
                    tpr=None if fpr is None else measured.estimate(setting, dataset, defense, FPR_COLUMNS[fpr]),
                    tpr_examples=None if fpr is None else _mean_ends(rows, FPR_COLUMNS[fpr]),
                    advantage=measured.estimate(setting, dataset, defense, "advantage"),
                    advantage_null=_mean(rows["advantage_null"]),
                    time_ratio=None if ratios is None else estimate_in(ratios, setting, dataset, defense),
                )
            )
    return summaries


def _mean(values: pd.Series) -> float | None:
    known = values.dropna()
    return None if known.empty else float(known.mean())


def _mean_ends(rows: pd.DataFrame, column: str) -> tuple[float, float] | None:
    low, high = _mean(rows[f"{column}_low"]), _mean(rows[f"{column}_high"])
    return None if low is None or high is None else (low, high)


def _guarantee(rows: pd.DataFrame) -> tuple[float | None, float | None, str, str]:
    """ε, δ, the accountant and the sentence. The weakest of the seeds' guarantees speaks for all."""
    if rows["epsilon_spent"].isna().any():
        reasons = sorted({str(reason) for reason in rows["no_guarantee_reason"].dropna()})
        why = "; ".join(reason.rstrip(". ") for reason in reasons) or "the reason was not recorded"
        return None, None, "", f"no formal guarantee: {why}"
    worst = rows.loc[rows["epsilon_spent"].idxmax()]
    epsilon, delta = float(worst["epsilon_spent"]), float(worst["delta"])
    accountant = str(worst["accountant"])
    how = [f"{accountant.upper()} accountant", f"{str(worst['sampling']).capitalize()} batches"]
    if not pd.isna(worst["adjacency"]):
        how.append(str(worst["adjacency"]).replace("_", " "))
    words = f"ε = {epsilon:.2f}, δ = {naming.scientific(delta)} ({', '.join(how)})"
    return epsilon, delta, accountant, words


def time_ratios(measured: Measurements) -> pd.DataFrame | None:
    """Per target `value`: its training time over that of the baseline of the same dataset and seed."""
    if measured.baseline is None or measured.baseline not in set(measured.frame["defense"]):
        return None
    return against_baseline(measured.frame, measured.baseline, "train_time_s", "ratio")


def estimate_in(values: pd.DataFrame, setting: Setting, dataset: str, defense: str) -> Estimate | None:
    """Mean and interval over seeds of `value`, a ratio, for one cell."""
    here = (values["setting"] == setting.key) & (values["dataset"] == dataset)
    return estimate(values.loc[here & (values["defense"] == defense), "value"], NOT_NEGATIVE)


def _line(measured: Measurements, setting: Setting, dataset: str, quantity: Quantity, cells: dict[str, Cell]) -> Line:
    return Line(
        setting=setting,
        row=dataset,
        label=naming.display(dataset),
        quantity=quantity,
        cells=tuple(cells.values()),
    )


def _table(
    measured: Measurements,
    name: str,
    title: str,
    lines: list[Line],
    notes: list[str] | None = None,
    missing: str = _NO_TRIAL,
) -> Table:
    return Table(
        name=name,
        title=title,
        corner="Dataset",
        columns=measured.defenses,
        lines=tuple(lines),
        notes=tuple(notes or ()) if lines else (),
        missing="" if lines else missing,
    )

"""Tables 1–4 with our numbers beside the paper's.

Source: Lomurno & Matteucci 2022, Tables 1–4. Deviations: every number is a mean over seeds with its 95 % t-interval; the
paper has one run. Training time is also given as a ratio to the baseline, because seconds on two machines cannot be compared.
Membership inference also has the honest AUC; the paper has only the maximum over scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from analysis import naming
from analysis.measure.cost import time_ratio, time_ratios
from analysis.measure.inversion import decoder_works, inversion_settings, layers, mse_changes
from analysis.measure.targets import PERCENT_CHANGE, Measurements, Setting, average_over_datasets
from analysis.statistics.estimates import Estimate
from analysis.studies.lomurno2022 import numbers as paper
from analysis.tables.model import Column, Label, Mean, Table


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a row measures. A `signed` quantity is a change."""

    key: str
    name: str
    unit: str
    decimals: int
    signed: bool = False

    def mean(self, ours: Estimate | None, published: float | None, supported: bool = True) -> Mean:
        """Ours and the paper's, rounded as this quantity is."""
        return Mean(ours=ours, paper=published, decimals=self.decimals, signed=self.signed, supported=supported)


ACCURACY = Quantity(key="test_accuracy", name="Test accuracy", unit="fraction", decimals=3)
TIME = Quantity(key="train_time_s", name="Training time (s)", unit="seconds", decimals=1)
SHORT_TIME = Quantity(key="train_time_s", name="Training time (s)", unit="seconds", decimals=2)
RATIO = Quantity(key="time_ratio", name="Ratio to baseline", unit="times the baseline", decimals=2)
PAPER_AUC = Quantity(key="paper_protocol_auc", name="Paper’s protocol", unit="fraction", decimals=3)
HONEST_AUC = Quantity(key="auc", name="Honest", unit="fraction", decimals=3)
MSE_CHANGE = Quantity(key="mse_change", name="Change of reconstruction MSE", unit="percent", decimals=1, signed=True)

UNSUPPORTED = (
    "† Neither the defense’s decoder nor the baseline’s is shown to beat both controls (the mean image and an untrained "
    "target) on every dataset, by a test over seeds that holds for all decoders together. No verdict rests on the number."
)
ONE_SEED = "† One seed cannot show what a decoder can do. No verdict rests on the number."
_NO_TRIAL = "No trial finished, so there is nothing to show."
_NO_BASELINE = (
    "No baseline finished (a defense labeled baseline, no_defense, none or undefended), "
    "so there is nothing to compare with."
)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One quantity of one dataset or layer, named by its label; `cells` has one entry per defense."""

    setting: Setting
    label: str
    quantity: Quantity
    cells: tuple[Mean, ...]


def paper_tables(measured: Measurements) -> tuple[Table, ...]:
    """Tables 1–4, in order."""
    return accuracy_table(measured), time_table(measured), membership_table(measured), inversion_table(measured)


def accuracy_table(measured: Measurements) -> Table:
    """Table 1: fraction of test examples that are classified correctly, higher is better."""
    rows = []
    for setting, dataset in measured.official_rows():

        def cell(defense: str, setting: Setting = setting, dataset: str = dataset) -> Mean:
            ours = measured.estimate(setting, dataset, defense, "test_accuracy")
            return ACCURACY.mean(ours, paper.number(1, dataset, defense))

        rows.append(_row(measured, setting, dataset, ACCURACY, cell))
    return _table("table1", "Table 1. Test accuracy (fraction, higher is better)", measured.defenses, rows)


def time_table(measured: Measurements) -> Table:
    """Table 2: seconds of all optimizer steps but the first, and the ratio to the baseline of the same seed."""
    seconds = TIME if measured.frame["train_time_s"].median() >= 10 else SHORT_TIME
    ratios = time_ratios(measured)
    rows = []
    for setting, dataset in measured.official_rows():

        def time(defense: str, setting: Setting = setting, dataset: str = dataset) -> Mean:
            ours = measured.estimate(setting, dataset, defense, "train_time_s")
            return seconds.mean(ours, paper.number(2, dataset, defense))

        def ratio(defense: str, setting: Setting = setting, dataset: str = dataset) -> Mean:
            return RATIO.mean(time_ratio(ratios, setting, dataset, defense), paper.time_ratio(dataset, defense))

        rows.append(_row(measured, setting, dataset, seconds, time))
        if ratios is not None:
            rows.append(_row(measured, setting, dataset, RATIO, ratio))
    notes = [
        "Seconds cover the optimizer’s steps only: loading, the first step and evaluation are not counted. "
        "Seconds on two machines cannot be compared; ratios to the baseline can, as far as the implementations can."
    ]
    if ratios is None:
        notes.append(_NO_BASELINE)
    return _table("table2", "Table 2. Training time (lower is better)", measured.defenses, rows, notes)


def membership_table(measured: Measurements) -> Table:
    """Table 3: AUC of membership inference, the paper's optimistic maximum and the honest one."""
    rows = []
    for setting, dataset in measured.official_rows():
        for quantity in (PAPER_AUC, HONEST_AUC):

            def cell(
                defense: str, setting: Setting = setting, dataset: str = dataset, quantity: Quantity = quantity
            ) -> Mean:
                ours = measured.estimate(setting, dataset, defense, quantity.key)
                return quantity.mean(ours, paper.number(3, dataset, defense) if quantity is PAPER_AUC else None)

            rows.append(_row(measured, setting, dataset, quantity, cell))
    rows = [row for row in rows if any(cell.ours for cell in row.cells)]
    notes = [
        "Paper’s protocol: the largest AUC over all scores, on the very examples it is reported on, so it "
        "overstates the attack and lies above 0.5 even if nothing leaks. Honest: the score is chosen on "
        "each half of the examples and measured on the other; the paper has no such number. Its interval covers the choice "
        "of seeds and of examples. 0.5 is guessing, and a mean below it is noise: it counts as 0.5 in every ranking."
    ]
    title = "Table 3. AUC of membership inference, best of all scores (lower is better)"
    missing = "No membership attack has a finished best_of row."
    return _table("table3", title, measured.defenses, rows, notes, missing=missing)


def inversion_table(measured: Measurements) -> Table:
    """Table 4: change in percent of the reconstruction MSE against the baseline, averaged over datasets.

    A cell is supported if, on every dataset, the decoder of the defense or of the baseline is shown to beat both controls.
    """
    defenses = [defense for defense in measured.defenses if defense != measured.baseline]
    rows: list[_Row] = []
    notes = ["Below zero, the defense made the target easier to invert than the baseline at that layer."]
    compared: set[str] = set()
    left_out: set[str] = set()
    for place, setting in enumerate(inversion_settings(measured)):
        changes = mse_changes(measured, setting)
        if changes is None:
            continue
        # Averages over different datasets cannot be compared, so only datasets that every defense has are used.
        present = [set(found["dataset"]) for _, found in changes[changes["defense"].isin(defenses)].groupby("defense")]
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
                supported = all(
                    works.get((dataset, defense, layer)) or works.get((dataset, str(measured.baseline), layer))
                    for dataset in datasets
                )
                published = paper.number(4, layer, defense) if place == 0 else None
                cells.append(MSE_CHANGE.mean(ours, published, supported))
            rows.append(_Row(setting=setting, label=layer, quantity=MSE_CHANGE, cells=tuple(cells)))
    rows = [row for row in rows if any(cell.ours for cell in row.cells)]
    if compared:
        names = naming.listing([naming.display(d) for d in measured.datasets if d in compared])
        notes.append(f"Ours is averaged over {names}; the paper’s over CIFAR-10, MNIST and F-MNIST.")
    if left_out:
        names = naming.listing([naming.display(d) for d in measured.datasets if d in left_out])
        notes.append(f"{names}: left out, because not every defense has reconstructions there.")
    if any(cell.ours and not cell.supported for row in rows for cell in row.cells):
        notes.append(ONE_SEED if measured.inversion["seed"].nunique() == 1 else UNSUPPORTED)
    missing = "No reconstructions were recorded." if measured.inversion.empty else _NO_BASELINE
    title = "Table 4. Change of reconstruction MSE against the baseline by layer (percent, higher is better)"
    return _table("table4", title, defenses, rows, notes, missing=missing, first=("layer", "Layer"))


def _row(
    measured: Measurements, setting: Setting, dataset: str, quantity: Quantity, cell: Callable[[str], Mean]
) -> _Row:
    cells = tuple(cell(defense) for defense in measured.defenses)
    return _Row(setting=setting, label=dataset, quantity=quantity, cells=cells)


def _table(
    name: str,
    title: str,
    defenses: tuple[str, ...] | list[str],
    rows: list[_Row],
    notes: list[str] | None = None,
    missing: str = _NO_TRIAL,
    first: tuple[str, str] = ("dataset", "Dataset"),
) -> Table:
    """One row per setting, dataset or layer, and quantity; one column per defense."""
    has_settings = any(row.setting.label for row in rows)
    has_quantities = len({row.quantity for row in rows}) > 1
    return Table(
        name=name,
        title=title,
        columns=(
            Column(key="split", kind="label", csv_only=True),
            Column(key="architecture", kind="label", csv_only=True),
            Column(key=first[0], name=first[1], kind="label"),
            Column(key="setting", name="Setting", kind="label", csv_only=not has_settings),
            Column(key="quantity", name="Quantity", kind="label", csv_only=not has_quantities),
            Column(key="unit", kind="label", csv_only=True),
            *(Column(key=defense, name=naming.display(defense), kind="mean") for defense in defenses),
        ),
        rows=tuple(
            (
                row.setting.split,
                row.setting.architecture,
                Label(value=row.label),
                row.setting.label,
                Label(value=row.quantity.key, text=row.quantity.name),
                row.quantity.unit,
                *row.cells,
            )
            for row in rows
        ),
        notes=tuple(notes or ()) if rows else (),
        missing="" if rows else missing,
    )

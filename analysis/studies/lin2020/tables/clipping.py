"""Tables 7 and 12: fixed clip norms against quantile rules, and the ladder of clip norms.

Source: Lin et al. 2020, Sections 5.3 and 7. Deviations: see `tables`.
"""

from __future__ import annotations

import pandas as pd

from analysis.studies.lin2020 import numbers as lin2020
from analysis.studies.lin2020.factors.frame import FactorStudy
from analysis.studies.lin2020.factors.levels import KINDS, QUANTILES, SEQUENCES, Cell, kind_name, ordered
from analysis.studies.lin2020.tables.quantities import (
    AUC,
    AUDIT,
    CELL_COLUMNS,
    LOSS,
    NOTES,
    OTHER_INIT,
    PAPERS,
    TEST,
    TPVD,
    TRAIN,
    mean_of,
)
from analysis.tables.model import Column, Entry, Label, Table


def quantiles_table(study: FactorStudy) -> Table:
    """Table 7: noise first at a fixed clip norm against quantile clipping. Clipping first is our addition."""
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
                    mean_of(found, TEST, papers[0]),
                    mean_of(found, TRAIN, papers[0]),
                    mean_of(found, LOSS),
                    mean_of(found, TPVD, papers[1]),
                    mean_of(found, OTHER_INIT, papers[1]),
                    mean_of(found, AUC),
                    mean_of(found, AUDIT),
                )
            )
    return Table(
        name="lin_table7",
        title="Table 7. Noise first at a fixed clip norm against quantile clipping",
        caption=lin2020.CONCLUSIONS["lin_table7"],
        columns=(
            *CELL_COLUMNS,
            Column(key="method", name="Method", kind="label"),
            Column(key="clip", name="Clip norm", kind="label"),
            Column(key="noise", name="Noise", kind="label"),
            *(
                Column(key=quantity.key, name=quantity.name, kind="mean")
                for quantity in (TEST, TRAIN, LOSS, TPVD, OTHER_INIT, AUC, AUDIT)
            ),
        ),
        rows=tuple(rows),
        notes=(
            lin2020.QUANTILE_IN_WORDS,
            "The paper does not state the noise of its rows at fixed clip norms. Clipping first is not in its table. At the "
            "same clip norm, it shows how much of AC’s lead is due to a fixed clip norm instead of a quantile.",
            *NOTES,
        )
        if rows
        else (),
        missing="" if rows else "No target with a quantile rule finished.",
    )


def adaptive_cells(study: FactorStudy) -> list[Cell]:
    """The datasets, models and optimizers in which a quantile rule was tried."""
    return [cell for cell in study.cells if study.at(cell)["kind"].isin(QUANTILES).any()]


def adaptive_rows(here: pd.DataFrame) -> list[tuple[str, float | None, float | None, pd.DataFrame]]:
    """What Section 5.3 compares in one cell, as rows of kind, noise, clip norm and targets; the undefended come first."""
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
    """The cells and noise scales with at least three clip norms. Those of the paper's Table 12 come first."""
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


def ladder_table(study: FactorStudy) -> Table:
    """Table 12: accuracy and TPVD by clip norm, at one noise scale."""
    rows: list[tuple[Entry, ...]] = []
    for cell, noise, here in ladders(study):
        for clip in ordered("clip", here["clip"]):
            at_clip = here[here["clip"] == clip]
            cells = []
            for quantity in _LADDER:
                for sequence in SEQUENCES:
                    paper = lin2020.number(*cell, noise, clip, sequence, PAPERS[quantity.key])
                    cells.append(mean_of(at_clip[at_clip["sequence"] == sequence], quantity, paper))
            rows.append((*(Label(value=part) for part in cell), f"{noise:g}", f"{clip:g}", *cells))
    return Table(
        name="lin_table12",
        title="Table 12. Accuracy and TPVD by clip norm",
        caption=lin2020.CONCLUSIONS["lin_table12"],
        columns=(
            *CELL_COLUMNS,
            Column(key="noise", name="Noise", kind="label"),
            Column(key="clip", name="Clip norm", kind="label"),
            *(
                Column(key=f"{quantity.key}_{sequence.lower()}", name=f"{quantity.name}, {sequence}", kind="mean")
                for quantity in _LADDER
                for sequence in SEQUENCES
            ),
        ),
        rows=tuple(rows),
        notes=NOTES if rows else (),
        missing="" if rows else "No dataset, model and optimizer has three clip norms or more at one noise scale.",
    )

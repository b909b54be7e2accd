"""The tables as CSV (tidy, full precision), as LaTeX (booktabs) and as text for the report's cells."""

from __future__ import annotations

import csv
import io

from analysis import naming
from analysis.statistics.estimates import Estimate
from analysis.tables.tables import Cell, Line, Quantity, Summary, Table

EMPTY = "—"

CSV_HEADER = (
    "split",
    "architecture",
    "quantity",
    "unit",
    "row",
    "column",
    "ours_mean",
    "ours_low",
    "ours_high",
    "n_seeds",
    "interval_over",
    "paper",
    "difference",
    "supported",
)


def number(value: float | None, decimals: int, signed: bool = False) -> str:
    """`value` rounded, with a true minus sign; — for None."""
    if value is None:
        return EMPTY
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def estimate_text(value: Estimate | None, decimals: int, signed: bool = False) -> str:
    """“0.942 ± 0.004”; the mean alone without an interval.

    “0.512 [0.498, 0.526]” where the interval is over examples, or is cut at a bound of the quantity.
    """
    if value is None:
        return EMPTY
    if value.half_width is None:
        return number(value.mean, decimals, signed)
    if value.over == "examples" or value.is_cut:
        return interval_text(value, decimals, signed)
    return f"{number(value.mean, decimals, signed)}\u00a0±\u00a0{number(value.half_width, decimals)}"


def interval_text(value: Estimate, decimals: int, signed: bool = False, mean: bool = True) -> str:
    """“−0.021 [−0.126, +0.084]”, or the ends alone; the mean alone without an interval."""
    if value.half_width is None:
        return number(value.mean, decimals, signed)
    ends = f"[{number(value.low, decimals, signed)}, {number(value.high, decimals, signed)}]"
    return f"{number(value.mean, decimals, signed)} {ends}" if mean else ends


def p_text(value: float) -> str:
    """“= 0.034”, or “< 0.001”."""
    return "< 0.001" if value < 0.001 else f"= {number(value, 3)}"


def ours_text(cell: Cell, quantity: Quantity) -> str:
    """Our number with its interval, as shown in a table."""
    text = estimate_text(cell.ours, quantity.decimals, quantity.signed)
    return text if cell.supported or cell.ours is None else f"{text}\u00a0†"


def paper_text(cell: Cell, quantity: Quantity) -> str:
    """The paper's number, or —."""
    return number(cell.paper, quantity.decimals, quantity.signed)


def difference_text(cell: Cell, quantity: Quantity) -> str:
    """Ours minus the paper's, or —."""
    return number(cell.difference, quantity.decimals, signed=True)


def _csv(header: tuple[str, ...], rows: list[list[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return text.getvalue()


def _parts(value: Estimate | None) -> list[object]:
    if value is None:
        return [None, None, None, 0]
    return [value.mean, value.low, value.high, value.n]


def table_csv(table: Table) -> str:
    """One line per cell; labels as in the sweep file, empty where there is no number."""
    rows: list[list[object]] = []
    for line in table.lines:
        for column, cell in zip(table.columns, line.cells, strict=True):
            where = [line.setting.split, line.setting.architecture, line.quantity.key, line.quantity.unit]
            over = cell.ours.over if cell.ours is not None and cell.ours.low is not None else None
            rows.append(
                [*where, line.row, column, *_parts(cell.ours), over, cell.paper, cell.difference, cell.supported]
            )
    return _csv(CSV_HEADER, rows)


def line_details(line: Line, table: Table) -> list[str]:
    """What tells the line from others of its row: the setting and the quantity, where there are several."""
    details = [line.setting.label] if line.setting.label else []
    if len({other.quantity for other in table.lines}) > 1:
        unit = " (s)" if line.quantity.unit == "seconds" else ""
        details.append(f"{line.quantity.name.lower()}{unit}")
    return details


def table_latex(table: Table, sweep: str) -> str:
    """A booktabs table, its label that of `sweep`; under each of our lines the paper's numbers and the differences."""
    if table.missing:
        return f"% {table.title}: {table.missing}\n"
    body = []
    previous = ""
    for line in table.lines:
        if previous and line.row != previous:
            body.append(r"\addlinespace")
        previous = line.row
        words = ", ".join([line.label, *line_details(line, table)])
        body.append(_latex_row(words, [ours_text(cell, line.quantity) for cell in line.cells]))
        if any(cell.paper is not None for cell in line.cells):
            body.append(_latex_row("  paper", [paper_text(cell, line.quantity) for cell in line.cells]))
            differences = [difference_text(cell, line.quantity) for cell in line.cells]
            body.append(_latex_row("  difference", differences))
    header = _latex_row(table.corner, [naming.display(column) for column in table.columns])
    layout = "l" + "r" * len(table.columns)
    label = naming.latex_label(sweep, table.name)
    return latex_frame(table.title, list(table.notes), label, layout, header, body)


def _latex_row(label: str, cells: list[str]) -> str:
    indent = r"\quad " if label.startswith("  ") else ""
    return indent + " & ".join(naming.latex(text.strip()) for text in [label, *cells]) + r" \\"


def latex_frame(title: str, notes: list[str], label: str, layout: str, header: str, body: list[str]) -> str:
    """A booktabs table around `header` and `body`, which are LaTeX already; title and notes are its caption."""
    # LaTeX numbers tables itself: "Table 1." is left out of the caption.
    interval = "± is the half-width of a 95 % interval over seeds, of the honest AUC over seeds and examples."
    caption = " ".join([title.split(". ", 1)[-1] + ".", *notes, interval])
    lines = [
        r"% Needs \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{naming.latex(caption)}}}",
        rf"\label{{{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        header,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _beside(text: str, name: str, value: float | None) -> str:
    return text if value is None else f"{text} ({name} {number(value, 3)})"


SUMMARY_TITLE = "Table 5. Each defense: what it guarantees, what it costs, what the attacks got"


def summary_csv(summaries: list[Summary]) -> str:
    """One line per defense and dataset; the optimizer is named where it varies."""
    estimates = ("accuracy", "auc", "tpr", "advantage", "time_ratio")
    several = any(item.setting.optimizer for item in summaries)
    header = (
        "split",
        "architecture",
        *(("optimizer",) if several else ()),
        "dataset",
        "defense",
        "n_seeds",
        "epsilon_spent",
        "delta",
        "accountant",
        "guarantee",
        "guessing_p_holm",
        "fpr",
        "tpr_examples_low",
        "tpr_examples_high",
        "advantage_null",
        *(f"{name}_{part}" for name in estimates for part in ("mean", "low", "high", "n_seeds")),
    )
    rows: list[list[object]] = []
    for item in summaries:
        row: list[object] = [item.setting.split, item.setting.architecture]
        row += [item.setting.optimizer] if several else []
        row += [item.dataset, item.defense]
        row += [item.n_seeds, item.epsilon_spent, item.delta, item.accountant, item.guarantee, item.guessing_p]
        row += [item.fpr, *(item.tpr_examples or (None, None)), item.advantage_null]
        for name in estimates:
            row += _parts(getattr(item, name))
        rows.append(row)
    return _csv(header, rows)


def summary_latex(summaries: list[Summary], sweep: str) -> str:
    """A booktabs table of the summary, its label that of `sweep`."""
    body = []
    for item in summaries:
        setting = f" ({item.setting.label})" if item.setting.label else ""
        tpr = estimate_text(item.tpr, 3)
        cells = [
            naming.display(item.defense),
            EMPTY if item.epsilon_spent is None else f"{item.epsilon_spent:.2f}",
            EMPTY if item.delta is None else naming.scientific(item.delta),
            estimate_text(item.accuracy, 3),
            estimate_text(item.auc, 3),
            EMPTY if item.fpr is None else f"{tpr} ({100 * item.fpr:g} %)",
            _beside(estimate_text(item.advantage, 3), "guessing", item.advantage_null),
            estimate_text(item.time_ratio, 2),
        ]
        body.append(_latex_row(naming.display(item.dataset) + setting, cells))
    names = ["Defense", "ε spent", "δ", "Accuracy", "Honest AUC", "TPR (at FPR)", "Advantage", "Time ratio"]
    notes = ["— under ε: no formal guarantee."]
    if not summaries:
        return f"% {SUMMARY_TITLE}: no trial finished.\n"
    return latex_frame(
        SUMMARY_TITLE, notes, naming.latex_label(sweep, "table5"), "llrrrrrrr", _latex_row("Dataset", names), body
    )

"""Tables as LaTeX, with booktabs."""

from __future__ import annotations

from itertools import zip_longest

from analysis import naming
from analysis.tables.model import Table
from analysis.tables.text import below, shown


def table_latex(table: Table, sweep: str) -> str:
    """The table as LaTeX, with a label that contains the name of `sweep`.

    Small lines below an entry become separate rows.
    """
    if table.missing:
        return f"% {table.title}: {table.missing}\n"
    body: list[str] = []
    has_lines_below = any(below(entry) for row in table.rows for entry in row)
    for at, row in enumerate(table.rows):
        if body and has_lines_below:
            body.append(r"\addlinespace")
        entries = [row[place] for place in table.visible]
        body.append(_row(["" if table.repeats(at, place) else shown(row[place]) for place in table.visible]))
        body += [_row(list(line)) for line in zip_longest(*map(below, entries), fillvalue="")]
    # LaTeX numbers tables itself, so the caption leaves out a number before the title.
    title = table.title.split(". ", 1)[-1]
    interval = "± is the half-width of a 95 % interval over seeds; for the honest AUC, over seeds and examples."
    caption = " ".join([f"{title}.", *([table.caption] if table.caption else []), *table.notes, interval])
    columns = [table.columns[place] for place in table.visible]
    layout = "".join("l" if column.kind in ("label", "text") else "r" for column in columns)
    lines = [
        r"% Needs \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{naming.latex(caption)}}}",
        rf"\label{{{naming.latex_label(sweep, table.name)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        _row([column.name for column in columns]),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return " & ".join(naming.latex(cell) for cell in cells) + r" \\"

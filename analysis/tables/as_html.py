"""Tables as HTML. Every label and text is escaped, because they come from users' files."""

from __future__ import annotations

from markupsafe import Markup

from analysis.tables.model import Entry, Kind, Label, Mean, Number, Table
from analysis.tables.text import below, shown

_CLASSES: dict[Kind, Markup] = {"label": Markup(' class="text"'), "text": Markup(' class="words"')}


def table_html(table: Table) -> Markup:
    """The title, the caption, the rows or the reason why there are none, and the notes."""
    lines = [Markup("<h3>{}</h3>").format(table.title)]
    if table.caption:
        lines.append(Markup('<p class="note">{}</p>').format(table.caption))
    if table.missing:
        lines.append(Markup('<p class="none">{}</p>').format(table.missing))
    elif table.folded:
        words = Markup("<details><summary>{} rows</summary>").format(len(table.rows))
        lines += [words, rows_html(table), Markup("</details>")]
    else:
        lines.append(rows_html(table))
    lines += [Markup('<p class="note">{}</p>').format(note) for note in table.notes]
    return Markup("\n").join(lines)


def rows_html(table: Table) -> Markup:
    """The header and the rows alone, in a box that scrolls sideways."""
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(_class(table, place), table.columns[place].name)
        for place in table.visible
    )
    box = Markup('<div class="scroll" tabindex="0" role="region" aria-label="{}">').format(table.title)
    opened = Markup('<table class="data" data-name="{}">\n<thead><tr>{}</tr></thead>\n<tbody>').format(table.name, head)
    lines = [box + opened]
    for row in range(len(table.rows)):
        cells = (_cell(table, row, place, is_first=not at) for at, place in enumerate(table.visible))
        lines.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
    return Markup("\n").join([*lines, Markup("</tbody></table></div>")])


def _cell(table: Table, row: int, place: int, is_first: bool) -> Markup:
    entry = table.rows[row][place]
    text, small = shown(entry), below(entry)
    if table.columns[place].kind == "mean" and " [" in text:
        # The interval has its own line, because columns of means would otherwise be too wide.
        text, _, ends = text.partition(" [")
        small = [f"[{ends}", *small]
    words = Markup('<span class="again">{}</span>').format(text) if table.repeats(row, place) else Markup.escape(text)
    lines = Markup("").join(Markup('<span class="sub">{}</span>').format(line) for line in small)
    tag = Markup('th scope="row"') if is_first else Markup("td")
    end = Markup("th") if is_first else Markup("td")
    return Markup("<{}{}{}>{}{}</{}>").format(tag, _class(table, place), _sorted_by(entry), words, lines, end)


def _sorted_by(entry: Entry) -> Markup:
    """The number by which the page's script sorts a cell; none for words."""
    if isinstance(entry, str | Label):
        return Markup("")
    if isinstance(entry, Mean):
        value = None if entry.ours is None else entry.ours.mean
    else:
        value = entry.value if isinstance(entry, Number) else entry
    return Markup(' data-v="{}"').format("" if value is None else value)


def _class(table: Table, place: int) -> Markup:
    return _CLASSES.get(table.columns[place].kind, Markup(""))

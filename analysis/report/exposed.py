"""The examples that the primary attack finds most exposed: pictures, or rows of a table where the data are no images."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

from analysis import naming
from analysis.load import Results, read_exposed
from analysis.measure.leak import cohort
from analysis.measure.targets import Measurements, Setting
from analysis.report.leaks import top_sentence
from analysis.tables.model import Column, Entry, Label, Number, Table
from analysis.tables.text import number

MOST_EXAMPLES = 12
"""Of one arm; fewer if there are many arms, because each picture makes the page longer to load."""
_FEWEST_EXAMPLES, _MOST_PICTURES = 3, 360
_SHOWN_PX = 64
_FOUND_FPRS = ("0.001", "0.01")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One example: its PNG in base64, what it is for those who do not see it, and a short line below it."""

    png: str
    description: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class ExposedArm:
    """The most exposed examples of one defense, `key` in the sweep. `sentence` says which share of the leak they carry."""

    key: str
    defense: str
    sentence: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """The most exposed examples of one setting and dataset; `table` has those of which there is no picture."""

    setting: Setting
    dataset: str
    heading: str
    arms: tuple[ExposedArm, ...]
    table: Table | None


def exposed(results: Results, measured: Measurements) -> list[Exposed]:
    """For each setting and dataset with a primary attack, the most exposed examples of each defense, the baseline's first.

    A defense against which the attack is broken has none.
    """
    cohorts = {str(one) for primary in measured.primaries.values() for one in primary.cohorts["comparison_id"]}
    each = max(_FEWEST_EXAMPLES, min(MOST_EXAMPLES, _MOST_PICTURES // max(1, len(cohorts))))
    examples = read_exposed(results, cohorts, each)
    return [found for row in measured.rows() if (found := _exposed(measured, examples, *row)) is not None]


def _exposed(
    measured: Measurements, examples: dict[str, list[dict[str, Any]]], setting: Setting, dataset: str
) -> Exposed | None:
    primary = measured.primary(setting, dataset)
    if primary is None:
        return None
    arms, rows = [], []
    for defense in sorted(measured.defenses, key=lambda label: label != measured.baseline):
        row = cohort(measured, setting, dataset, defense)
        found = [] if row is None or defense in primary.broken else examples.get(str(row["comparison_id"]), [])
        if not found:
            continue
        has_images = all(each["image_png"] for each in found)
        arms.append(
            ExposedArm(
                key=defense,
                defense=naming.display(defense),
                sentence=top_sentence(measured, setting, dataset, defense),
                pictures=tuple(_picture(each) for each in found) if has_images else (),
            )
        )
        if not has_images:
            rows += [_row(defense, each) for each in found]
    if not arms:
        return None
    return Exposed(
        setting=setting,
        dataset=dataset,
        heading=measured.row_label(setting, dataset),
        arms=tuple(arms),
        table=_table(rows) if rows else None,
    )


def _found(example: dict[str, Any]) -> tuple[str, str]:
    """At which FPR the attack finds the example, and in which share of the targets with it; both empty if not known."""
    for fpr in _FOUND_FPRS:
        share, low, high = (example[f"found_at_fpr_{fpr}{end}"] for end in ("", "_low", "_high"))
        if share is not None and not math.isnan(share):
            return f"{100 * float(fpr):g} %", f"{number(share, 2)} [{number(low, 2)}, {number(high, 2)}]"
    return "", ""


def _picture(example: dict[str, Any]) -> Picture:
    fpr, share = _found(example)
    words = f"Example {example['example_id']} of class {example['label']}, exposure {number(example['exposure'], 1)}"
    if fpr:
        words += f", found at {fpr} FPR in a share of {share} of the targets trained on it"
    return Picture(
        png=base64.b64encode(_small(example["image_png"])).decode("ascii"),
        description=words,
        caption=f"class {example['label']}, {number(example['exposure'], 1)}",
    )


def _small(png: bytes) -> bytes:
    """The picture at no more than the size at which it is shown."""
    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) <= _SHOWN_PX:
            return png
        image.thumbnail((_SHOWN_PX, _SHOWN_PX))
        small = io.BytesIO()
        image.save(small, "PNG", optimize=True)
    return small.getvalue()


def _row(defense: str, example: dict[str, Any]) -> tuple[Entry, ...]:
    fpr, share = _found(example)
    return (
        Label(value=defense),
        str(example["example_id"]),
        str(example["label"]),
        Number(value=example["exposure"], decimals=2),
        Number(value=None, text=share, small=(f"at {fpr} FPR",) if fpr else ()),
    )


def _table(rows: list[tuple[Entry, ...]]) -> Table:
    return Table(
        name="exposed",
        title="Most exposed examples",
        columns=(
            Column(key="defense", name="Defense", kind="label"),
            Column(key="example_id", name="Example"),
            Column(key="label", name="Class"),
            Column(key="exposure", name="Exposure"),
            Column(key="found", name="Share of targets found in"),
        ),
        rows=tuple(rows),
        folded=len(rows) > 2 * MOST_EXAMPLES,
    )

"""Whether a model may be released: the gate and the card on results of a sweep, or on the metrics of an audit."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.load import Results, ResultsError, load
from analysis.measure.targets import Measurements, Setting, measure
from analysis.release.card import Card, card_of
from analysis.release.facts import Fact, Place, Seen, places_missing, places_of, seen_by
from analysis.release.gate import HIGHER_IS_BETTER, LEAKS, LOWER_IS_BETTER, Decision, Limit, decide
from sweeper.auditing.attack import METRICS, THRESHOLD_NAMES
from sweeper.auditing.forms import ONE_NUMBER
from sweeper.errors import UserError, unknown_name
from sweeper.report import current_tables
from sweeper.results.store import Store

__all__ = ["Card", "Decision", "Limit", "card", "gate", "parse_limit"]

_OF_AN_AUDIT = {"auc": "auc"} | {f"tpr@{100 * fpr:g}%": f"tpr_at_fpr_{fpr:g}" for fpr in (0.001, 0.01, 0.1)}
"""Columns of an audit's metrics by the names of quantities."""

LEAST_SEEDS = 8
"""Seeds that the gate wants unless it is told otherwise: as many as LiRA needs to be the primary attack."""

_NO_SETTING = Setting(key="", label="", split="", architecture="", file_name="")

OnDamaged = Callable[[Sequence[str]], None]


def gate(
    results: str,
    limits: Sequence[Limit],
    *,
    defense: str | None = None,
    dataset: str | None = None,
    attack: str | None = None,
    min_seeds: int | None = None,
    on_damaged: OnDamaged = lambda problems: None,
) -> Decision:
    """Judge a defense of a sweep, or an audited model if `results` is a file. `analysis.release.gate` says how.

    `min_seeds` is 8 by default.

    Raises:
        UserError: there is no such defense, dataset or attack, no limit, or the results cannot be read.
    """
    if not limits:
        raise UserError("The gate has no limits. Give some, such as --max auc=0.55 --min test_accuracy=0.9.")
    if Path(results).is_file():
        if defense is not None or dataset is not None:
            raise UserError(f"{results} is the audit of one model; leave out --defense and --dataset.")
        audited = _audited(Path(results), attack, [limit.name for limit in limits])
        if audited.is_audit and min_seeds is not None:
            raise UserError(f"{results} is the audit of one model, which has no seeds; leave out --min-seeds.")
        return decide([audited], limits, min_seeds or LEAST_SEEDS)
    with _measured(results, defense, on_damaged) as (tables, measured, label):
        if attack is not None and attack not in (known := sorted(set(tables.cohorts["attack"]))):
            raise unknown_name("attack on the cohort in these results", attack, known)
        places = places_of(tables, measured, label, attack)
        missing = places_missing(tables, label) if dataset is None else []
    if dataset is not None:
        known = sorted({place.dataset for place in places})
        places = [place for place in places if place.dataset == dataset]
        if not places:
            raise unknown_name("dataset of this defense", dataset, known)
    return decide(places, limits, min_seeds or LEAST_SEEDS, missing)


def card(results: str, defense: str | None, on_damaged: OnDamaged = lambda problems: None) -> Card:
    """The card of a defense of a sweep.

    Raises:
        UserError: there is no such defense, or the results cannot be read.
    """
    with _measured(results, defense, on_damaged) as (tables, measured, label):
        return card_of(tables, measured, label, places_of(tables, measured, label))


def parse_limit(text: str, *, is_least: bool) -> Limit:
    """The limit in `NAME=VALUE`, as `--max` and `--min` take it.

    Raises:
        UserError: the name is unknown there, or the value is no number.
    """
    option, allowed = ("--min", HIGHER_IS_BETTER) if is_least else ("--max", LOWER_IS_BETTER)
    name, equals, value = text.partition("=")
    name = re.sub(r"\s", "", name).lower()
    if name == "epsilon_lower_bound":
        raise UserError(
            f"{option} {text}: a lower bound on ε is small where an attack is weak, so a small one shows nothing. Limit epsilon, auc "
            "or a TPR; the card shows the bound."
        )
    if not equals or name not in allowed:
        example = f"{option} {allowed[0]}={0.9 if is_least else 0.55}"
        raise UserError(
            f"{option} {text}: {unknown_name('quantity', name, allowed)} Write NAME=VALUE, such as {example}."
        )
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise UserError(f"{option} {text}: the value must be a number from 0.")
    return Limit(name=name, value=number, is_least=is_least)


@contextlib.contextmanager
def _measured(results: str, defense: str | None, on_damaged: OnDamaged) -> Iterator[tuple[Results, Measurements, str]]:
    """The tables by what is on record now, what they measure, and the defense's label, which must be among them."""
    store = Store(results, sets_aside=False)
    with tempfile.TemporaryDirectory() as folder, current_tables(store, Path(folder)) as tables:
        on_damaged(tables.damaged)
        try:
            loaded = load(tables.folder)
        except ResultsError as error:
            raise UserError(str(error)) from None
        measured = measure(loaded)
        if defense is None:
            raise UserError(f"Name the defense with --defense. There are: {', '.join(measured.defenses) or 'none'}.")
        if defense not in measured.defenses:
            raise unknown_name("defense with a finished target in these results", defense, measured.defenses)
        yield loaded, measured, defense


def _audited(path: Path, attack: str | None, names: Sequence[str]) -> Place:
    """An audited model, with what each attack saw, or `attack` alone.

    Raises:
        UserError: the file has no metrics of an audit, or audits do not measure one of `names`.
    """
    try:
        rows = pq.ParquetFile(path).read().to_pylist()
    except (OSError, ValueError, pa.ArrowException):
        rows = []
    is_cohort = bool(rows) and {"score_name", "config", "n_targets", "null_auc", "auc_high"} <= rows[0].keys()
    measured = LEAKS if is_cohort else tuple(_OF_AN_AUDIT)
    for name in names:
        if name not in measured:
            kind = "leak" if name in LEAKS else "quantity"
            raise UserError(
                f"{path} is an audit, which does not measure the {kind} '{name}'; limit {', '.join(measured)}."
            )
    if is_cohort:
        return _audited_cohort(path, rows, attack)
    if not rows or not {"attack", *METRICS} <= rows[0].keys():
        raise UserError(f"{path} has no metrics of an audit. Give the file that `sweeper audit --out` wrote.")
    known = [str(row["attack"]) for row in rows]
    missing: list[str] = []
    if attack is None and not set(known) & set(ONE_NUMBER):
        missing = [f"attack '{name}' did not run" for name in THRESHOLD_NAMES if name not in known]
    if attack is not None:
        rows = [row for row in rows if row["attack"] == attack]
        if not rows:
            raise unknown_name("attack in this audit", attack, known)
    seen = []
    for row in rows:
        facts = {
            name: Fact(
                name=name,
                words="AUC" if name == "auc" else f"TPR at {name.removeprefix('tpr@').removesuffix('%')} % FPR",
                value=row[column],
                low=row[f"{column}_low"],
                high=row[f"{column}_high"],
                source=f"{path.name}: attack = {row['attack']}, {column}",
            )
            for name, column in _OF_AN_AUDIT.items()
            if row[column] is not None
        }
        seen.append(Seen(attack=str(row["attack"]), score_name="", why="audit", facts=facts, null=None, is_sound=True))
    return Place(
        setting=_NO_SETTING,
        dataset="",
        label=path.name,
        targets=pd.DataFrame(),
        facts={},
        seen=tuple(seen),
        missing=tuple(missing),
        is_audit=True,
    )


def _audited_cohort(path: Path, rows: list[dict[str, Any]], attack: str | None) -> Place:
    """Audited models that attack each other, judged as the seeds of a sweep are."""
    frame = pd.DataFrame(rows)
    if attack is not None and attack not in (known := sorted(set(frame["attack"]))):
        raise unknown_name("attack in this audit", attack, known)
    n_models = int(frame["n_targets"].max())
    seen, missing = seen_by(frame, [], attack, 1, n_models, path.name)
    return Place(
        setting=_NO_SETTING,
        dataset="",
        label=path.name,
        targets=pd.DataFrame(index=range(n_models)),
        facts={},
        seen=tuple(seen),
        missing=tuple(missing),
    )

"""Attacks on a cohort of models that sweeper did not train: each model's references are the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from attacks.auditing import DEFAULT_DELTA
from attacks.base import AttackError, BoolArray, IntArray, MembershipScores
from attacks.cohort.attack import CohortAttack, units_of
from attacks.cohort.cohort import Answers
from attacks.cohort.exposure import exposure_rows
from attacks.cohort.summary import summarize
from attacks.comparisons.label_only import LabelOnly
from attacks.comparisons.lira import Lira
from attacks.comparisons.ratio import Ratio
from sweeper.auditing.outputs import StoredCohort
from sweeper.errors import UserError

COHORT_ATTACKS: dict[str, CohortAttack] = {"lira": Lira(), "ratio": Ratio(), "label_only": LabelOnly()}
LEAST_MODELS = 4


@dataclass(kw_only=True)
class _Model:
    """One model of the cohort, as attacks see it."""

    target_id: str
    seed: int
    stored: Answers

    def parameters(self) -> Mapping[str, npt.NDArray[np.floating]]:
        raise NotImplementedError("an audit has no weights")

    def answers(self) -> Answers:
        return self.stored

    def membership_scores(self) -> Mapping[str, MembershipScores]:
        raise NotImplementedError("an audit has no recorded scores")


def audit_cohort(
    stored: StoredCohort,
    attack_names: Sequence[str],
    *,
    seed: int,
    on_attack: Callable[[str], None] = lambda name: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the named attacks of `COHORT_ATTACKS`. Returns a row per attack and score, and a row per record and attack.

    Rows have the columns of the tables `cohorts` and `exposure` of a sweep.

    Raises:
        UserError: there are too few models, their memberships tell each other, or an attack cannot run.
    """
    stored = _with_the_pool_first(stored)
    order, seeds = _order(stored.is_member[:, _in_pool(stored.is_member)])
    models = [_model(stored, place, seeds[at]) for at, place in enumerate(order)]
    names = [name for name in dict.fromkeys(attack_names) if name != "label_only" or stored.has_classes]
    if not names:
        raise UserError(
            "Attack 'label_only' needs the labels that models answer; a score has none. Take lira or ratio."
        )
    metrics: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for name in names:
        on_attack(name)
        attack = COHORT_ATTACKS[name]
        rng = np.random.default_rng([seed, list(COHORT_ATTACKS).index(name)])
        try:
            results = attack.run(models, rng)
        except (AttackError, ValueError) as error:
            raise UserError(f"Attack '{name}': {error}") from None
        for result in results:
            metrics.append(
                {
                    "comparison_id": "audit",
                    "attack": name,
                    "config": json.dumps({"spread": getattr(attack, "spread", None)}),
                    "score_name": result.name,
                    "is_first": result is results[0],
                    **summarize(result, DEFAULT_DELTA, rng).columns(),
                    "input_changes": list(stored.changes),
                }
            )
        records += [{"attack": name, "score_name": results[0].name, **row} for row in exposure_rows(results[0])]
    return metrics, records


def _model(stored: StoredCohort, place: int, seed: int) -> _Model:
    return _Model(
        target_id=stored.models[place],
        seed=seed,
        stored=Answers(
            example_id=stored.example_id,
            label=stored.label,
            in_pool=_in_pool(stored.is_member),
            is_member=stored.is_member[place],
            logits=stored.logits[place],
        ),
    )


def _in_pool(member: BoolArray) -> BoolArray:
    """Whether some model has each record and some has not."""
    count = member.sum(axis=0)
    return np.asarray((count > 0) & (count < len(member)))


def _with_the_pool_first(stored: StoredCohort) -> StoredCohort:
    """Without the records that all models have, of which nothing is to be found; those that none has come last."""
    pool, nobodys = _in_pool(stored.is_member), ~stored.is_member.any(axis=0)
    places = np.concatenate([np.flatnonzero(pool), np.flatnonzero(nobodys)])
    everybodys = int((~pool & ~nobodys).sum())
    changes = [
        f"{everybodys} records are members of all models, so that nothing can be told of them; they are left out"
    ]
    return replace(
        stored,
        example_id=stored.example_id[places],
        label=stored.label[places],
        is_member=stored.is_member[:, places],
        logits=stored.logits[:, places],
        changes=(*stored.changes, *changes[: bool(everybodys)]),
    )


def _order(member: BoolArray) -> tuple[list[int], list[int]]:
    """The models with complements side by side, and a number for each, consecutive for complements alone.

    Raises:
        UserError: there are too few models, or the number of other models with a record tells whether this one has it.
    """
    n_models = len(member)
    if n_models < LEAST_MODELS:
        raise UserError(
            f"There are {n_models} models; attacks on a cohort need at least {LEAST_MODELS}. With one, leave out the column 'model'."
        )
    if not member.shape[1]:
        raise UserError("All models have the same members among these records, so none tells anything about another.")
    if member.all(axis=1).any() or (~member).all(axis=1).any():
        raise UserError(
            "A model has no members, or only members, among these records; attacks need both of every model."
        )
    order: list[int] = []
    for one in range(n_models):
        if one in order:
            continue
        order.append(one)
        order += [
            other for other in range(one + 1, n_models) if other not in order and (member[one] != member[other]).all()
        ][:1]
    seeds = [2 * place for place in range(n_models)]
    for place in range(1, n_models):
        if (member[order[place - 1]] != member[order[place]]).all():
            seeds[place] = seeds[place - 1] + 1
    try:
        unit = units_of(member[order], seeds)
    except AttackError as error:
        raise UserError(f"{error} Leave one of them out.") from None
    _refuse_counts(member[order], unit)
    return order, seeds


def _refuse_counts(member: BoolArray, unit: IntArray) -> None:
    """Refuse a design in which counting the other models with a record tells whether a model has it."""
    counts = member.sum(axis=0)
    if len(np.unique(unit)) == len(unit) and (counts == counts[0]).all():
        raise UserError(
            f"Each record is in exactly {counts[0]} of the {len(member)} models, so the number of other models with it tells whether a "
            "model has it, and attacks would see leaks that are not there. Draw the members of each model by independent coins, or "
            "train pairs of models with complementary members."
        )

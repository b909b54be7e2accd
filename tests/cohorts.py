"""Cohorts of random models, with and without a leak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from attacks.base import MembershipScores
from attacks.cohort.cohort import Answers


@dataclass(frozen=True)
class Model:
    """A target of a cohort, whose answers are known."""

    target_id: str
    seed: int
    known: Answers

    def parameters(self) -> Mapping[str, npt.NDArray[np.floating]]:
        raise NotImplementedError

    def answers(self) -> Answers:
        return self.known

    def membership_scores(self) -> Mapping[str, MembershipScores]:
        raise NotImplementedError


def random_cohort(
    n_models: int,
    n_pool: int,
    rng: np.random.Generator,
    *,
    leak: float = 0.0,
    pairs: bool = False,
    halves: bool = False,
    n_queries: int = 1,
    n_classes: int = 4,
    n_others: int = 40,
) -> list[Model]:
    """Models with Gaussian logits. A member's true logit is higher by `leak`, and by a part that the models share.

    Members are drawn by independent coins, by complementary pairs, or in exact halves of the models.
    """
    n = n_pool + n_others
    label = rng.integers(0, n_classes, n)
    member = rng.random((n_models, n_pool)) < 0.5
    if pairs:
        member[1::2] = ~member[: n_models - n_models % 2 : 2]
    if halves:
        member = rng.random((n_models, n_pool)).argsort(axis=0) < n_models / 2
    shared = 2 * rng.normal(size=(n, 1, n_classes))
    models = []
    for seed in range(n_models):
        logits: npt.NDArray[Any] = shared + rng.normal(size=(n, n_queries, n_classes))
        inside = np.flatnonzero(member[seed])
        logits[inside, :, label[inside]] += leak
        models.append(
            Model(
                target_id=f"{seed:016x}",
                seed=seed,
                known=Answers(
                    example_id=np.arange(n),
                    label=label,
                    in_pool=np.arange(n) < n_pool,
                    is_member=np.concatenate([member[seed], np.zeros(n_others, dtype=bool)]),
                    logits=logits,
                ),
            )
        )
    return models

"""Label only: which of the queries about an example a target answers rightly, and nothing else of its answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from attacks.base import BoolArray, IntArray
from attacks.cohort.attack import CohortAttack
from attacks.cohort.cohort import Cohort, Design
from attacks.cohort.logistic import leave_out_fits, prior_log_odds
from attacks.cohort.threads import in_order

FloatArray = npt.NDArray[np.float64]

_AT_ONCE = 16
"""Number of examples that are fitted at a time: few enough for the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class LabelOnly(CohortAttack):
    """Label only: the log-odds of membership, given which queries about an example the target answers rightly.

    It needs a model's decisions only, so hiding or blurring confidences is no defense against it. A query is answered rightly
    if the true class has the highest logit; a tie for the highest counts as wrong. With one query per example it knows one
    bit; use several.

    For each example and target, an L2-regularized logistic regression is fitted on the target's references. Its features are
    a reference's right/wrong bits on the example's queries, and its classes are with and without the example. The intercept
    is not penalized. Both scores are in nats:

    - `label_only`: the fit's log-odds at the target's own bits.
    - `label_only_ratio`: the same minus log(n_in / n_out), the log-odds without any bits, of n_in references with the example
      and n_out without it. Coins make n_in differ between examples; that says nothing about the target and would blur the
      ranking, most with few references.

    If all references have the example, or none has, both scores are 0, the log-odds of a fair coin. Fits are solved until no
    component of the gradient exceeds 1e-5, which moves scores by less than 1e-3 at the default `inverse_regularization`.
    Nothing is random.

    Source: Choquette-Choo et al. 2021, for attacks by the labels of augmented queries; Aerni, Zhang & Tramèr 2024, for one
    regression per example. Deviations: Choquette-Choo et al. fit one network for all examples, on shadow models of their own;
    Aerni et al. have about as many references with each example as without it, so that their two scores would hardly differ.
    """

    source: ClassVar[str] = "Choquette-Choo et al. 2021; Aerni, Zhang & Tramèr 2024"

    inverse_regularization: float = 1.0
    """C: the weight of the log-losses' sum against ½ ‖weights‖²."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.inverse_regularization < math.inf:
            raise ValueError(
                f"inverse_regularization is {self.inverse_regularization}; it must be a finite number above 0"
            )

    def score_names(self) -> tuple[str, ...]:
        return ("label_only_ratio", "label_only")

    def scores(
        self, cohort: Cohort, designs: Sequence[Design], rng: np.random.Generator
    ) -> list[dict[str, FloatArray]]:
        shapes = [(len(design.targets), cohort.n_examples) for design in designs]
        found = [{name: np.empty(shape) for name in self.score_names()} for shape in shapes]
        sets = [_reference_sets(design) for design in designs]
        ridge = 1 / self.inverse_regularization

        def score_block(block: slice) -> None:
            right = (cohort.signal("hinge", block) > 0).swapaxes(0, 1)
            for start in range(0, len(right), _AT_ONCE):
                bits = right[start : start + _AT_ONCE]
                some = slice(block.start + start, block.start + start + len(bits))
                for design, (kept, own), scores in zip(designs, sets, found, strict=True):
                    member = design.member[design.references, some].T
                    fits = leave_out_fits(bits[:, design.references], member, kept, ridge)[:, own]
                    log_odds = (fits[..., :-1] * bits[:, design.targets]).sum(axis=2) + fits[..., -1]
                    prior = np.nan_to_num(prior_log_odds(member, kept))[:, own]
                    scores["label_only"][:, some] = log_odds.T
                    scores["label_only_ratio"][:, some] = (log_odds - prior).T

        for _ in in_order(score_block, cohort.blocks()):
            pass
        return found


def _reference_sets(design: Design) -> tuple[BoolArray, IntArray]:
    """Which references are used (sets, references), and each target's set. Targets of a unit have the same."""
    used = [np.isin(design.references, design.references_of(target)) for target in design.targets.tolist()]
    kept, own = np.unique(used, axis=0, return_inverse=True)
    return kept, own

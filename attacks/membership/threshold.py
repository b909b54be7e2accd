"""Membership from one number per example: how sure the model is of its answer. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attacks.base import Attack, AttackTarget, FloatArray, IntArray, MembershipScores
from attacks.membership import check_names
from attacks.probabilities import class_probabilities, log_likelihood

_LOG_FLOOR = 1e-30


def _max_posterior(probabilities: FloatArray, label: IntArray) -> FloatArray:
    highest: FloatArray = probabilities.max(axis=1)
    return highest


def _entropy(probabilities: FloatArray, label: IntArray) -> FloatArray:
    negative_entropy: FloatArray = (probabilities * _floored_log(probabilities)).sum(axis=1)
    return negative_entropy


def _modified_entropy(probabilities: FloatArray, label: IntArray) -> FloatArray:
    at_label = np.arange(len(label)), label
    complement = 1 - probabilities
    weight, log = probabilities.copy(), _floored_log(complement)
    weight[at_label] = complement[at_label]
    log[at_label] = _floored_log(probabilities[at_label])
    negative_entropy: FloatArray = (weight * log).sum(axis=1)
    return negative_entropy


def _floored_log(probabilities: FloatArray) -> FloatArray:
    log: FloatArray = np.log(np.maximum(probabilities, _LOG_FLOOR))
    return log


_SCORES = {
    "max_posterior": _max_posterior,
    "loss": log_likelihood,
    "entropy": _entropy,
    "modified_entropy": _modified_entropy,
}
_DTYPES = ("float64", "float32")


@dataclass(frozen=True, kw_only=True)
class Threshold(Attack):
    """Score each example by the model's confidence; whoever uses the score sets the threshold.

    With p the class probabilities and y the true label, the scores, higher for members, are

    - `max_posterior`: max_i p_i, in (0, 1];
    - `loss`: log max(p_y, 1e-8), in nats, at most 0;
    - `entropy`: Σ_i p_i log p_i, in nats, at most 0;
    - `modified_entropy`: (1 − p_y) log p_y + Σ_{i≠y} p_i log(1 − p_i), in nats, at most 0.

    Logarithms of the two entropies are of max(·, 1e-30), so that p = 0 and p = 1 are legal. Nothing is
    random. Labels are the true ones; `max_posterior` and `entropy` do not look at them.

    Source: `loss`, Yeom et al. 2018; `max_posterior` and `entropy`, Salem et al. 2019, adversary 3
    (deviation: no threshold is set from random images, since the AUC needs none); `modified_entropy`,
    Song & Mittal 2021, equation 8. Floors and `scipy.special.softmax` are TensorFlow Privacy's, and so
    are the AUCs of `loss` and `modified_entropy` at equal dtype. TensorFlow Privacy uses the plain
    entropy only where it is given no labels, and has no maximum posterior.
    """

    family: ClassVar[str] = "membership"
    source: ClassVar[str] = "Yeom et al. 2018; Salem et al. 2019 (adversary 3); Song & Mittal 2021"

    scores: tuple[str, ...] = tuple(_SCORES)
    """Which scores to give, by name."""

    dtype: str = "float64"
    """`float64` or `float32`: what logits are cast to before the softmax. In float32 the most confident
    answers tie, which changes the AUC and the TPR at a low FPR; TensorFlow Privacy computes in the dtype
    that the logits come in, mostly float32."""

    def __post_init__(self) -> None:
        check_names("score", self.scores, _SCORES)
        check_names("dtype", (self.dtype,), _DTYPES)

    def run(self, target: AttackTarget, rng: np.random.Generator) -> list[MembershipScores]:
        """One `MembershipScores` for each of `scores`, in that order.

        Raises:
            AttackError: too few members or non-members, or outputs that cannot be used
                (`class_probabilities` says which).
        """
        population = target.population
        self.check_population(int(population.is_member.sum()), int((~population.is_member).sum()))
        outputs = population.outputs
        probabilities = class_probabilities(outputs, self.dtype)
        return [
            MembershipScores(
                name=name,
                example_id=outputs.example_id,
                is_member=population.is_member,
                score=_SCORES[name](probabilities, outputs.label).astype(np.float64),
            )
            for name in self.scores
        ]

"""Membership inference by thresholding the model's confidence. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from attacks.base import Attack, AttackTarget, FloatArray, IntArray, MembershipScores, ModelOutputs
from attacks.membership import check_names
from attacks.probabilities import class_probabilities, log_likelihood, log_odds

_Floats = npt.NDArray[np.float64]

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


# TensorFlow Privacy's scores, from probabilities (n, classes) and true labels (n,).
_CLIPPED = {
    "max_posterior": _max_posterior,
    "loss": log_likelihood,
    "entropy": _entropy,
    "modified_entropy": _modified_entropy,
}


def _log_softplus(x: _Floats) -> _Floats:
    """log log(1 + e^x). With x the log-odds of p, this is the log of −log(1 − p). It equals x if 1 + e^x rounds to 1."""
    with np.errstate(divide="ignore"):
        log: _Floats = np.where(x < -37, x, np.log(np.logaddexp(0, x)))
    return log


def _log_surprise(odds: _Floats) -> _Floats:
    """log(−p log p), where `odds` are the log-odds of p; −inf for p = 0."""
    with np.errstate(invalid="ignore"):  # −inf + inf at p = 0
        return np.where(odds == -np.inf, -np.inf, _log_softplus(-odds) - np.logaddexp(0, -odds))


def _entropy_of_odds(odds: _Floats, label_odds: _Floats) -> _Floats:
    entropy: _Floats = -logsumexp(np.sort(_log_surprise(odds), axis=1), axis=1)
    return entropy


def _modified_entropy_of_odds(odds: _Floats, label_odds: _Floats) -> _Floats:
    # log(−p log(1 − p)) for each class, but log(−(1 − p) log p) for the label.
    terms = _log_softplus(odds) - np.logaddexp(0, -odds)
    terms[np.arange(len(odds)), (odds < label_odds[:, None]).sum(axis=1)] = _log_softplus(-label_odds) - np.logaddexp(
        0, label_odds
    )
    entropy: _Floats = -logsumexp(np.sort(terms, axis=1), axis=1)
    return entropy


# Scores with the same order but without saturation, from the log-odds of all classes (n, classes) and of the label (n,).
_UNSATURATED = {
    "max_posterior": lambda odds, label_odds: odds[:, -1],
    "loss": lambda odds, label_odds: label_odds,
    "entropy": _entropy_of_odds,
    "modified_entropy": _modified_entropy_of_odds,
}
_FORMS = ("log_odds", "tensorflow_privacy")
_DTYPES = ("float64", "float32")


@dataclass(frozen=True, kw_only=True)
class Threshold(Attack):
    """Scores each example by the model's confidence; users of the score set the threshold.

    Let p be the class probabilities and y the true label. Scores are higher for members and order examples by

    - `max_posterior`: max_i p_i;
    - `loss`: log p_y;
    - `entropy`: −H, H = −Σ_i p_i log p_i;
    - `modified_entropy`: −M, M = −(1 − p_y) log p_y − Σ_{i≠y} p_i log(1 − p_i).

    In floating point these saturate: p_y is exactly 1 for several percent of a confident network's examples, so their
    scores tie. The default, `form: log_odds`, therefore uses increasing transforms, in nats: log(p / (1 − p)) for the first
    two, −log H and −log M for the others. They are computed from logits on the log scale. Scores tie only if outputs are
    equal, up to the order of the classes. A probability of 0 or 1 gives ±inf.

    `form: tensorflow_privacy` uses that library's values: max_i p_i; log max(p_y, 1e-8); Σ_i p_i log p_i; and
    (1 − p_y) log p_y + Σ_{i≠y} p_i log(1 − p_i). Logarithms in the two entropies are of max(·, 1e-30). At equal `dtype` the
    AUCs equal that library's, except that it uses the plain entropy only if it has no labels, and has no maximum posterior.

    Nothing is random. Labels are the true labels; `max_posterior` and `entropy` do not use them.

    Source: `loss`, Yeom et al. 2018; `max_posterior` and `entropy`, Salem et al. 2019, adversary 3
    (deviation: no threshold is set from random images, since the AUC needs none); `modified_entropy`,
    Song & Mittal 2021, equation 8.
    """

    family: ClassVar[str] = "membership"
    revision: ClassVar[int] = 2
    source: ClassVar[str] = "Yeom et al. 2018; Salem et al. 2019 (adversary 3); Song & Mittal 2021"

    scores: tuple[str, ...] = tuple(_CLIPPED)
    """Names of the scores to compute."""

    form: str = "log_odds"
    """`log_odds` does not saturate; `tensorflow_privacy` has clipped values that may tie."""

    dtype: str = "float64"
    """`float64` or `float32`: logits are cast to it before the softmax of `form: tensorflow_privacy`. The library itself
    computes in the dtype of the logits, usually float32. `log_odds` always uses float64."""

    def __post_init__(self) -> None:
        check_names("score", self.scores, _CLIPPED)
        check_names("form", (self.form,), _FORMS)
        check_names("dtype", (self.dtype,), _DTYPES)
        if self.dtype != "float64" and self.form != "tensorflow_privacy":
            raise ValueError(
                f"dtype is {self.dtype} and form is {self.form}, which computes in float64. "
                "Set form to tensorflow_privacy, or leave dtype out."
            )

    def run(self, target: AttackTarget, rng: np.random.Generator) -> list[MembershipScores]:
        """One `MembershipScores` for each of `scores`, in that order.

        Raises:
            AttackError: there are too few members or non-members, or outputs are unusable (see `class_probabilities`).
        """
        population = target.population
        self.check_population(int(population.is_member.sum()), int((~population.is_member).sum()))
        return [
            MembershipScores(
                name=name,
                example_id=population.outputs.example_id,
                is_member=population.is_member,
                score=score,
            )
            for name, score in zip(self.scores, self._values(population.outputs), strict=True)
        ]

    def _values(self, outputs: ModelOutputs) -> list[_Floats]:
        if self.form == "tensorflow_privacy":
            probabilities = class_probabilities(outputs, self.dtype)
            return [_CLIPPED[name](probabilities, outputs.label).astype(np.float64) for name in self.scores]
        odds, label_odds = log_odds(outputs)
        return [_UNSATURATED[name](odds, label_odds) for name in self.scores]

"""Class probabilities, log-odds and losses of stored model outputs.

A confident network's softmax is exactly 1 for many examples, in float32 and for several percent of them in
float64 too, and what is computed from it ties. `log_odds` does not saturate. This module imports no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, softmax

from attacks.base import AttackError, FloatArray, ModelOutputs

LOSS_PROBABILITY_FLOOR = 1e-8


def class_probabilities(outputs: ModelOutputs, dtype: npt.DTypeLike = np.float64) -> FloatArray:
    """Probabilities (n, classes) in `dtype`: the softmax of logits cast to it, or the outputs' own.

    Raises:
        AttackError: a row holds NaN or +inf, or −inf only; a label is not a column of `values`; or outputs
            said to be probabilities are not (outside [0, 1], or a row's sum is more than 1e-3 off 1).
    """
    _check(outputs)
    values: FloatArray = outputs.values.astype(dtype)
    if outputs.is_probability:
        return values
    probabilities: npt.NDArray[np.floating[Any]] = softmax(values, axis=1)
    return probabilities


def log_odds(outputs: ModelOutputs) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """log(p / (1 − p)) of every class, and of the true label, in float64 and in nats, from −inf to +inf.

    The first (n, classes) has each row in ascending order, so that answers that differ by the order of their
    classes alone give bitwise the same row; the second is (n,). From logits z it is z_i minus the log of the sum
    of e^z over the other classes, which does not saturate where p rounds to 1: two confident answers that differ
    keep their order. Probabilities are taken by their logarithms, so that 1 − p is the sum of the other
    classes' and a row need not sum to 1; equal probabilities still tie.

    Raises:
        AttackError: as `class_probabilities`.
    """
    _check(outputs)
    logits = outputs.values.astype(np.float64)
    if outputs.is_probability:
        with np.errstate(divide="ignore"):  # the log of a probability of 0
            logits = np.log(logits)
    ascending = np.sort(logits, axis=1)
    top = ascending[:, -1:]
    others: npt.NDArray[np.float64] = logsumexp(ascending[:, :-1], axis=1, keepdims=True)
    log_p = ascending - top - np.logaddexp(0, others - top)
    # Where a class is not the top one p is at most 1/2, and 1 − p loses nothing.
    odds = np.where(ascending == top, top - others, log_p - np.log1p(-np.exp(np.minimum(log_p, -np.log(2)))))
    row = np.arange(len(outputs))
    return odds, odds[row, (ascending < logits[row, outputs.label][:, None]).sum(axis=1)]


def _check(outputs: ModelOutputs) -> None:
    n_classes = outputs.values.shape[1]
    if len(outputs) and (outputs.label.min() < 0 or outputs.label.max() >= n_classes):
        raise AttackError(
            f"Labels must be 0 … {n_classes - 1} for outputs with {n_classes} classes, "
            f"got {outputs.label.min()} … {outputs.label.max()}."
        )
    # −inf is a legal logit of a class that is ruled out, as long as another class is not.
    broken = ~np.isfinite(outputs.values.max(axis=1))
    if broken.any():
        raise AttackError(
            f"{int(broken.sum())} of {len(outputs)} outputs are not finite. "
            "Did the training diverge? There is nothing to attack."
        )
    if not outputs.is_probability:
        return
    off_by = np.abs(outputs.values.sum(axis=1) - 1)
    if len(outputs) and (outputs.values.min() < 0 or outputs.values.max() > 1 or off_by.max() > 1e-3):
        raise AttackError(
            "The outputs are said to be probabilities, but some are outside [0, 1] or do not sum to 1. Are they logits?"
        )


def log_likelihood(probabilities: FloatArray, label: npt.NDArray[np.int64]) -> FloatArray:
    """log max(p_y, 1e-8) for each row (n,): minus the cross-entropy loss, floored.

    The floor is TensorFlow Privacy's; examples beyond it tie.
    """
    p_label = probabilities[np.arange(len(label)), label]
    floored: FloatArray = np.log(np.maximum(p_label, LOSS_PROBABILITY_FLOOR))
    return floored

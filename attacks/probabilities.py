"""Class probabilities, log-odds and losses of stored model outputs.

A confident network's softmax is exactly 1 for many examples in float32, and for several percent even in float64. Scores
computed from it tie. `log_odds` does not saturate. This module does not import torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, softmax

from attacks.base import AttackError, FloatArray, ModelOutputs

LOSS_PROBABILITY_FLOOR = 1e-8

_OUTSIDE = 1e-3
"""Maximum distance from [0, 1] that counts as rounding: one unit in the last place of float16 at 1."""
_SUM = 1e-2
"""Maximum deviation of a row's sum from 1 that counts as rounding; the relative error of bfloat16 is 0.004."""
_MOST_DECIMALS = 5
"""With more decimals, the sum deviates by less than `_SUM` for up to 2,000 classes."""


def class_probabilities(outputs: ModelOutputs, dtype: npt.DTypeLike = np.float64) -> FloatArray:
    """Probabilities (n, classes) in `dtype`: the softmax of logits cast to `dtype`, or the outputs' own probabilities.

    Raises:
        AttackError: a row contains NaN or +inf, or only −inf; a label is not a column of `values`; or outputs marked as
            probabilities are not (see `normalized_probabilities`).
    """
    values = _checked(outputs, dtype)
    if outputs.is_probability:
        return normalized_probabilities(outputs.values)[0].astype(dtype)
    with np.errstate(over="ignore"):  # a logit difference of −inf is a probability of 0
        probabilities: npt.NDArray[np.floating[Any]] = softmax(values, axis=1)
    return probabilities


def log_odds(outputs: ModelOutputs) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """log(p / (1 − p)) of every class and of the true label, float64, in nats, from −inf to +inf.

    The first result (n, classes) has each row in ascending order, so outputs that differ only in the order of classes give
    bitwise equal rows. The second is (n,). For logits z, the log-odds are z_i minus the log of the sum of e^z over the other
    classes. This does not saturate if p rounds to 1, so different confident outputs keep their order. Probabilities are
    converted to logarithms first; 1 − p is then the sum over the other classes, and a row need not sum to 1. Equal
    probabilities still tie.

    Raises:
        AttackError: as `class_probabilities`.
    """
    logits = _checked(outputs, np.float64)
    if outputs.is_probability:
        with np.errstate(divide="ignore"):  # the log of a probability of 0
            logits = np.log(normalized_probabilities(outputs.values)[0].astype(np.float64))
    ascending = np.sort(logits, axis=1)
    top = ascending[:, -1:]
    with np.errstate(over="ignore"):  # a logit difference beyond float64 gives log-odds of ±inf
        others: npt.NDArray[np.float64] = logsumexp(ascending[:, :-1], axis=1, keepdims=True)
        log_p = ascending - top - np.logaddexp(0, others - top)
        # For a class that is not the top one, p is at most 1/2, and 1 − p loses no precision.
        odds = np.where(ascending == top, top - others, log_p - np.log1p(-np.exp(np.minimum(log_p, -np.log(2)))))
    row = np.arange(len(outputs))
    return odds, odds[row, (ascending < logits[row, outputs.label][:, None]).sum(axis=1)]


def _checked(outputs: ModelOutputs, dtype: npt.DTypeLike) -> FloatArray:
    """The values in `dtype`; raises AttackError for outputs that no attack can score."""
    n_classes = outputs.values.shape[1]
    if len(outputs) and (outputs.label.min() < 0 or outputs.label.max() >= n_classes):
        raise AttackError(
            f"Labels must be 0 … {n_classes - 1} for outputs with {n_classes} classes, "
            f"got {outputs.label.min()} … {outputs.label.max()}."
        )
    # A logit of −inf, for an excluded class, is legal if another class is not excluded.
    with np.errstate(over="ignore"):
        values: FloatArray = outputs.values.astype(dtype)
    broken = ~np.isfinite(values.max(axis=1))
    if broken.any():
        raise AttackError(
            f"{int(broken.sum())} of {len(outputs)} outputs are not finite in {np.dtype(dtype)}. "
            "Did the training diverge? There is nothing to attack."
        )
    return values


def normalized_probabilities(values: FloatArray) -> tuple[FloatArray, str | None]:
    """`values` (n, classes) as probabilities, and a sentence that says what was changed, or None.

    A row that misses [0, 1] or a sum of 1 by rounding is clipped to [0, 1] and divided by its sum. All other rows are
    unchanged to the bit. A deviation counts as rounding if values are at most 1e-3 outside [0, 1] and the sum is at most
    0.01 off 1. If all values have at most five decimals, any sum that rounding to them can cause is also accepted.

    Raises:
        AttackError: a row deviates more; the message names it.
    """
    sums = values.sum(axis=1, dtype=np.float64)
    lowest, highest = values.min(axis=1), values.max(axis=1)
    # Rounding error of a sum of k float32 numbers; float64 values were often float32 before. NaN and infinities always
    # count as off.
    last_bits = values.shape[1] * np.finfo(np.float32).eps
    off = ~((lowest >= 0) & (highest <= 1) & (np.abs(sums - 1) <= last_bits))
    if not off.any():
        return values, None
    by_rounding = (lowest >= -_OUTSIDE) & (highest <= 1 + _OUTSIDE) & (sums > 0)
    by_rounding &= (np.abs(sums - 1) <= _SUM) | _round_from_probabilities(values)
    wrong = np.flatnonzero(off & ~by_rounding)
    if len(wrong):
        row = wrong[0]
        raise AttackError(
            f"{len(wrong)} of {len(values)} rows are not probabilities, the first is row {row}: its values lie in "
            f"[{lowest[row]:.6g}, {highest[row]:.6g}] and add up to {sums[row]:.6g}. Are they logits?"
        )
    normalized = values.astype(np.float64)
    clipped = normalized[off].clip(0, 1)
    outside = np.abs(normalized[off] - clipped).max()
    normalized[off] = clipped / clipped.sum(axis=1, keepdims=True)
    return normalized, (
        f"{int(off.sum())} of {len(values)} rows of probabilities are off by rounding (sums by up to "
        f"{np.abs(sums - 1).max():.2g}, values outside [0, 1] by up to {outside:.2g}) and were renormalized"
    )


def _round_from_probabilities(values: FloatArray) -> npt.NDArray[np.bool_]:
    """Which rows (n,) can result from rounding probabilities to the number of decimals of `values`."""
    exact = values.astype(np.float64)
    for decimals in range(1, _MOST_DECIMALS + 1):
        rounded = exact.round(decimals)
        if np.allclose(exact, rounded, rtol=_precision(values), atol=1e-12):
            half = 0.5 * 10.0**-decimals
            least, most = (rounded - half).clip(0, 1).sum(axis=1), (rounded + half).clip(0, 1).sum(axis=1)
            within: npt.NDArray[np.bool_] = (least <= 1) & (most >= 1)
            return within
    return np.zeros(len(values), dtype=np.bool_)


def _precision(values: FloatArray) -> float:
    return float(np.finfo(values.dtype).eps) if values.dtype.kind == "f" else 0.0


def log_likelihood(probabilities: FloatArray, label: npt.NDArray[np.int64]) -> FloatArray:
    """log max(p_y, 1e-8) for each row (n,): the negative cross-entropy loss with a floor.

    The floor is TensorFlow Privacy's; examples below it tie.
    """
    p_label = probabilities[np.arange(len(label)), label]
    floored: FloatArray = np.log(np.maximum(p_label, LOSS_PROBABILITY_FLOOR))
    return floored

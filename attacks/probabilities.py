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

_OUTSIDE = 1e-3
"""How far outside [0, 1] rounding may put a probability: one unit in the last place of float16 at 1."""
_SUM = 1e-2
"""How far off 1 the sum of a row may be: the probabilities' relative error in bfloat16 is 0.004."""
_MOST_DECIMALS = 5
"""Of probabilities with more decimals, the sum is off by less than `_SUM` for up to 2,000 classes."""


def class_probabilities(outputs: ModelOutputs, dtype: npt.DTypeLike = np.float64) -> FloatArray:
    """Probabilities (n, classes) in `dtype`: the softmax of logits cast to it, or the outputs' own.

    Raises:
        AttackError: a row holds NaN or +inf, or −inf only; a label is not a column of `values`; or outputs
            said to be probabilities are not (`normalized_probabilities` says which are).
    """
    values = _checked(outputs, dtype)
    if outputs.is_probability:
        return normalized_probabilities(outputs.values)[0].astype(dtype)
    with np.errstate(over="ignore"):  # logits whose difference is −inf, a probability of 0
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
    logits = _checked(outputs, np.float64)
    if outputs.is_probability:
        with np.errstate(divide="ignore"):  # the log of a probability of 0
            logits = np.log(normalized_probabilities(outputs.values)[0].astype(np.float64))
    ascending = np.sort(logits, axis=1)
    top = ascending[:, -1:]
    with np.errstate(over="ignore"):  # logits whose difference is beyond float64 are log-odds of ±inf
        others: npt.NDArray[np.float64] = logsumexp(ascending[:, :-1], axis=1, keepdims=True)
        log_p = ascending - top - np.logaddexp(0, others - top)
        # Where a class is not the top one p is at most 1/2, and 1 − p loses nothing.
        odds = np.where(ascending == top, top - others, log_p - np.log1p(-np.exp(np.minimum(log_p, -np.log(2)))))
    row = np.arange(len(outputs))
    return odds, odds[row, (ascending < logits[row, outputs.label][:, None]).sum(axis=1)]


def _checked(outputs: ModelOutputs, dtype: npt.DTypeLike) -> FloatArray:
    """The values in `dtype`; what no attack can score is refused."""
    n_classes = outputs.values.shape[1]
    if len(outputs) and (outputs.label.min() < 0 or outputs.label.max() >= n_classes):
        raise AttackError(
            f"Labels must be 0 … {n_classes - 1} for outputs with {n_classes} classes, "
            f"got {outputs.label.min()} … {outputs.label.max()}."
        )
    # −inf is a legal logit of a class that is ruled out, as long as another class is not.
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
    """`values` (n, classes) as probabilities, and what had to be changed for that, in words; None for nothing.

    A row that misses [0, 1] or a sum of 1 by rounding is clipped to [0, 1] and divided by its sum; all others stay
    as they are to the bit. Rounding is: up to 1e-3 outside [0, 1]; and a sum up to 0.01 off 1 or, where all values
    have at most five decimals, one that probabilities which round to these values can have.

    Raises:
        AttackError: a row is further off; the text names it.
    """
    sums = values.sum(axis=1, dtype=np.float64)
    lowest, highest = values.min(axis=1), values.max(axis=1)
    # What a sum of k numbers of float32 may be off; float64 often holds what was float32 before. NaN and infinities are
    # off by any measure.
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
    """Which rows (n,) some probabilities give when they are rounded to the decimals that all `values` show."""
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
    """log max(p_y, 1e-8) for each row (n,): minus the cross-entropy loss, floored.

    The floor is TensorFlow Privacy's; examples beyond it tie.
    """
    p_label = probabilities[np.arange(len(label)), label]
    floored: FloatArray = np.log(np.maximum(p_label, LOSS_PROBABILITY_FLOOR))
    return floored

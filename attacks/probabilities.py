"""Class probabilities and losses of stored model outputs, with the dtype of the arithmetic spelled out.

In float32 a confident network's softmax is exactly 1 for many examples, and their scores tie; in
float64 they do not. So the dtype belongs to the definition of a score. This module imports no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from attacks.base import AttackError, FloatArray, ModelOutputs

LOSS_PROBABILITY_FLOOR = 1e-8


def class_probabilities(outputs: ModelOutputs, dtype: npt.DTypeLike = np.float64) -> FloatArray:
    """Probabilities (n, classes) in `dtype`: the softmax of logits cast to it, or the outputs' own.

    Raises:
        AttackError: a row holds NaN or +inf, or −inf only; a label is not a column of `values`; or outputs
            said to be probabilities are not (outside [0, 1], or a row's sum is more than 1e-3 off 1).
    """
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
    values: FloatArray = outputs.values.astype(dtype)
    if not outputs.is_probability:
        probabilities: npt.NDArray[np.floating[Any]] = softmax(values, axis=1)
        return probabilities
    off_by = np.abs(values.sum(axis=1) - 1)
    if len(outputs) and (values.min() < 0 or values.max() > 1 or off_by.max() > 1e-3):
        raise AttackError(
            "The outputs are said to be probabilities, but some are outside [0, 1] or do not sum to 1. Are they logits?"
        )
    return values


def log_likelihood(probabilities: FloatArray, label: npt.NDArray[np.int64]) -> FloatArray:
    """log max(p_y, 1e-8) for each row (n,): minus the cross-entropy loss, floored.

    The floor is TensorFlow Privacy's; examples beyond it tie.
    """
    p_label = probabilities[np.arange(len(label)), label]
    floored: FloatArray = np.log(np.maximum(p_label, LOSS_PROBABILITY_FLOOR))
    return floored

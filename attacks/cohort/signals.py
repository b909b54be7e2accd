"""Signals of membership in a model's logits: how much it prefers the true class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def log_odds(logits: FloatArray, label: npt.NDArray[np.int64]) -> FloatArray:
    """z_y − log Σ_{i≠y} e^{z_i} = log(p_y / (1 − p_y)), in nats, of logits (n, queries, classes) and labels (n,).

    It does not saturate where p_y rounds to 0 or 1. Returns (n, queries).

    Source: Carlini et al. 2022, section V.
    """
    others, own = _others(logits, label)
    top = others.max(axis=-1)
    others -= top[..., None]
    np.exp(others, out=others)
    result: FloatArray = own - top - np.log(others.sum(axis=-1))
    return result


def hinge(logits: FloatArray, label: npt.NDArray[np.int64]) -> FloatArray:
    """z_y − max_{i≠y} z_i, of logits (n, queries, classes) and labels (n,). Returns (n, queries)."""
    others, own = _others(logits, label)
    result: FloatArray = own - others.max(axis=-1)
    return result


SIGNALS: dict[str, Callable[[FloatArray, npt.NDArray[np.int64]], FloatArray]] = {"log_odds": log_odds, "hinge": hinge}


def _others(logits: FloatArray, label: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """The logits with the true class at −inf, and the true class's logit (n, queries)."""
    row = np.arange(len(label))
    own = logits[row, :, label]
    others = logits.copy()
    others[row, :, label] = -np.inf
    return others, own

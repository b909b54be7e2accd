"""Total parameters value difference: how far a mechanism moved a model's weights from its undefended twin's.

It depends on the seed, the initialization and the optimizer, and is no guarantee. This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

FloatTensor = npt.NDArray[np.floating]

SKETCH_SIZE = 256


def value_differences(weights: Mapping[str, FloatTensor], twin: Mapping[str, FloatTensor]) -> dict[str, float | None]:
    """‖W − W̄‖ / ‖W‖ of each parameter tensor, W being the twin's (equations 16 and 17), in the twin's order.

    0 for identical tensors. None where the twin's tensor is zero, or either is not finite, which the paper does not foresee.

    Raises:
        ValueError: the two have tensors of other names or shapes.

    Source: Lin, Bao, Li, Si & Chu 2020, section 4.5.3, after Wang et al. 2006.
    """
    if weights.keys() != twin.keys():
        raise ValueError(f"the tensors {sorted(weights.keys() ^ twin.keys())} are in one of the two models only")
    differences: dict[str, float | None] = {}
    for name, reference in twin.items():
        if weights[name].shape != reference.shape:
            raise ValueError(f"'{name}' is {weights[name].shape} in one model and {reference.shape} in its twin")
        norm = float(np.linalg.norm(reference.astype(np.float64).ravel()))
        distance = float(np.linalg.norm((weights[name].astype(np.float64) - reference).ravel()))
        differences[name] = distance / norm if norm > 0 and math.isfinite(distance / norm) else None
    return differences


def tpvd(differences: Mapping[str, float | None]) -> float | None:
    """The mean of the tensors' value differences (equation 18), those that have none left out; None if none has.

    Every tensor counts alike, biases too: the paper's sum is over "weights" without saying whether these are among them.
    """
    known = [value for value in differences.values() if value is not None]
    return float(np.mean(known)) if known else None


def displacement_sketch(
    weights: Mapping[str, FloatTensor], twin: Mapping[str, FloatTensor]
) -> npt.NDArray[np.float32] | None:
    """A count sketch (256,) of all that TPVD is made of: (W − W̄) / ‖W‖ of every tensor, W being the twin's.

    The distance between the sketches of two targets with one twin estimates, to some 9 %, that between their weights on
    the same scale: near 0 beside the sketches' own norms, both are one run. None where no tensor has a value difference.

    Source: Charikar, Chen & Farach-Colton 2002, with one row.
    """
    known = [name for name, value in value_differences(weights, twin).items() if value is not None]
    if not known:
        return None
    moved = np.concatenate(
        [((weights[name].astype(np.float64) - twin[name]) / np.linalg.norm(twin[name])).ravel() for name in known]
    )
    fixed = np.random.Generator(np.random.PCG64(0))  # the same buckets and signs for all models of one shape
    bucket, sign = fixed.integers(0, SKETCH_SIZE, len(moved)), fixed.integers(0, 2, len(moved)) * 2 - 1
    return np.bincount(bucket, weights=moved * sign, minlength=SKETCH_SIZE).astype(np.float32)

"""Total parameters value difference (TPVD): distance of a private model's weights from those of its undefended twin.

It depends on seed, initialization and optimizer, and is not a guarantee. This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from attacks.comparisons.base import ComparedTarget, Comparison, TargetLabel

FloatTensor = npt.NDArray[np.floating]

SKETCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class Tpvd(Comparison):
    """TPVD: distance of a private target's weights from its undefended twin of the same seed, and from one of another seed."""

    tables: ClassVar[tuple[str, ...]] = ("tpvd",)
    source: ClassVar[str] = "Lin, Bao, Li, Si & Chu 2020, section 4.5.3"

    def groups(self, targets: Sequence[TargetLabel]) -> Iterator[tuple[str, ...]]:
        """A target, its twin and, if it exists, the twin's counterpart with the next seed (after the last seed, the first)."""
        known = {target.target_id: target for target in targets}
        cells: dict[str, list[TargetLabel]] = {}
        for target in targets:
            if not target.is_private:
                cells.setdefault(target.cell_id, []).append(target)
        following: dict[str, str] = {}
        for cell in cells.values():
            ids = [each.target_id for each in sorted(cell, key=lambda each: (each.seed, each.target_id))]
            following |= dict(zip(ids, ids[1:] + ids[:1], strict=True)) if len(ids) > 1 else {}
        for target in targets:
            if target.twin_id in known:
                other = following.get(target.twin_id)
                yield (target.target_id, target.twin_id, *([other] if other else []))

    def run(self, group: Sequence[ComparedTarget], rng: np.random.Generator) -> list[Mapping[str, Any]]:
        ours, twin, *others = (target.parameters() for target in group)
        differences = value_differences(ours, twin)
        return [
            {
                "target_id": group[0].target_id,
                "twin_id": group[1].target_id,
                "tpvd": tpvd(differences),
                "tensors": [{"parameter": name, "value_difference": each} for name, each in differences.items()],
                "displacement_sketch": displacement_sketch(ours, twin),
                "other_init_twin_id": group[2].target_id if others else None,
                "tpvd_other_init": tpvd(value_differences(ours, others[0])) if others else None,
            }
        ]


def value_differences(weights: Mapping[str, FloatTensor], twin: Mapping[str, FloatTensor]) -> dict[str, float | None]:
    """‖W − W̄‖ / ‖W‖ for each parameter tensor, where W is the twin's (equations 16 and 17), in the twin's order.

    0 for identical tensors. None if the twin's tensor is zero or either tensor is not finite; the paper does not cover this.

    Raises:
        ValueError: the names or shapes of the tensors differ.

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
    """The mean of the tensors' value differences (equation 18), ignoring None; None if all are None.

    All tensors have equal weight, including biases. The paper sums over "weights" and does not say if these include biases.
    """
    known = [value for value in differences.values() if value is not None]
    return float(np.mean(known)) if known else None


def displacement_sketch(
    weights: Mapping[str, FloatTensor], twin: Mapping[str, FloatTensor]
) -> npt.NDArray[np.float32] | None:
    """A count sketch (256,) of (W − W̄) / ‖W‖ over all tensors, where W is the twin's.

    For two targets with the same twin, the distance between their sketches estimates, to about 9 %, the distance between
    their weights on the same scale. If it is near 0 relative to the sketches' norms, both are the same run. None if no
    tensor has a value difference.

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

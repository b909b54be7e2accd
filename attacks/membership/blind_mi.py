"""Membership inference by moving examples toward known non-members. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from attacks.base import (
    Attack,
    AttackError,
    AttackResult,
    AttackTarget,
    BlackBox,
    BoolArray,
    IntArray,
    MembershipDecisions,
    ModelOutputs,
)
from attacks.probabilities import class_probabilities

_Floats = npt.NDArray[np.float64]

_N_PROBES = 20
_BATCH = 20
_WIDTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6)
_MMD_FLOOR = 1e-4


@dataclass(frozen=True, kw_only=True)
class BlindMi(Attack):
    """Decides which examples are members by their distance from known non-members, in small batches (BlindMI-Diff-w).

    The features of an answer are the probability of the true label and the two largest probabilities. Probes N are 20
    test examples, filtered by Sobel's edge detector and labeled as before: images that nobody trained on. The population is
    split at random into batches of 20. All examples of a batch begin as members M. In each pass, every j of M for which

        MMD(N ∪ {j}, M \\ {j}) > MMD(N, M)

    is moved out of M after the pass; N stays as it is. Passes are repeated until none moves. The last example of M is not
    moved alone. With k(x, y) = Σ_s exp(−‖x − y‖² / 2s) over 19 widths s from 1e-6 to 1e6, the distance is

        MMD(X, Y) = max(1e-4, mean k(X, X) + mean k(Y, Y) − 2 mean k(X, Y)).

    **One operating point.** The decision has no score behind it, hence no ROC curve and no AUC, and `best_of` does not
    compare it. The attack is transductive: an example's decision depends on its batch, and the share of members among the
    population shapes all decisions. The target's membership labels are not used.

    Probes come from test examples outside the population. If fewer than 20 are outside (under the split `official`, all
    test examples are in it), all test examples are candidates: the probes' originals are then among the non-members that are
    evaluated.

    Random: the probes and the batches.

    Source: Hui et al. 2021, and their public code (hyhmia/BlindMI, commit 5089d20), which never adds a moved example to N.
    Deviations: in that code probes come from the population itself, members included; here members are never probes. All
    computations are in float64 (there, float32).
    """

    family: ClassVar[str] = "membership"
    result: ClassVar[type[AttackResult]] = MembershipDecisions
    source: ClassVar[str] = "Hui et al. 2021 (BlindMI-Diff-w)"
    needs_images: ClassVar[bool] = True

    max_passes: int = _BATCH
    """Maximum number of passes over a batch. Each pass but the last moves an example, so 20 passes always suffice."""

    def __post_init__(self) -> None:
        if self.max_passes < 1:
            raise ValueError(f"max_passes is {self.max_passes}; it must be at least 1")

    def run(self, target: AttackTarget, rng: np.random.Generator) -> list[MembershipDecisions]:
        """One `MembershipDecisions`, named `diff_w`. Queries the target once, with 20 images.

        Raises:
            AttackError: there are too few members, non-members or test examples; the target cannot be queried; or outputs
                are unusable (see `class_probabilities`).
        """
        outputs, is_member = target.population.outputs, target.population.is_member
        self.check_population(int(is_member.sum()), int((~is_member).sum()))
        if target.black_box is None:
            raise AttackError(
                "blind_mi queries the target with filtered images; stored outputs alone are not enough. "
                "Run it on a target that sweeper trained, or use an attack on outputs, such as threshold."
            )
        features = _features(outputs)
        probes = _features(_probe_answers(target.black_box, outputs.example_id, rng))
        to_probes, among_probes = _kernel(features, probes).sum(axis=1), float(_kernel(probes, probes).sum())
        decided = np.empty(len(outputs), dtype=np.bool_)
        order = rng.permutation(len(outputs))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            within = _kernel(features[batch], features[batch])
            decided[batch] = _remaining(among_probes, to_probes[batch], within, self.max_passes)
        return [MembershipDecisions(name="diff_w", example_id=outputs.example_id, is_member=is_member, decided=decided)]


def _probe_answers(black_box: BlackBox, evaluated: IntArray, rng: np.random.Generator) -> ModelOutputs:
    """The target's answers about the probes, each with the label of its original."""
    test = black_box.test
    candidates = np.flatnonzero(~np.isin(test.example_id, evaluated))
    if len(candidates) < _N_PROBES:
        candidates = np.arange(len(test.example_id))
    if len(candidates) < _N_PROBES:
        raise AttackError(
            f"blind_mi draws {_N_PROBES} probes from the test examples, and there are {len(candidates)}. "
            "Give it more test examples, or leave this attack out."
        )
    chosen = rng.choice(candidates, _N_PROBES, replace=False)
    images = test.inputs[torch.from_numpy(chosen).to(test.inputs.device)]
    return ModelOutputs(
        example_id=test.example_id[chosen],
        label=black_box.test_label[chosen],
        values=black_box.query(_sobel(images)),
    )


def _sobel(images: Tensor) -> Tensor:
    """The edges of uint8 images (n, channels, height, width): the mean of |∂x| and |∂y|, each at most 255, rounded.

    As OpenCV computes it, with a 3×3 kernel and borders mirrored about the outermost pixels.
    """
    padded = pad(images.float(), (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    across, down = rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]
    return ((across.abs().clamp(max=255) + down.abs().clamp(max=255)) / 2).round().to(torch.uint8)


def _features(outputs: ModelOutputs) -> _Floats:
    """The probability of the true label and the two largest probabilities, (n, 3)."""
    probabilities = class_probabilities(outputs)
    top = -np.sort(-probabilities, axis=1)[:, :2]
    features: _Floats = np.column_stack((probabilities[np.arange(len(outputs)), outputs.label], top))
    return features


def _kernel(x: _Floats, y: _Floats) -> _Floats:
    """k(x, y) of every pair, (len(x), len(y))."""
    distance = ((x[:, None] - y) ** 2).sum(axis=2)
    total: _Floats = np.zeros_like(distance)
    for width in _WIDTHS:
        total += np.exp(-distance / (2 * width))
    return total


def _remaining(among_probes: float, to_probes: _Floats, within: _Floats, max_passes: int) -> BoolArray:
    """Which examples (n,) of a batch remain members.

    `among_probes` is the sum of the kernel over all pairs of probes, `to_probes` (n,) over the pairs of each example with the
    probes; `within` (n, n) is the kernel in the batch. The sums after a move follow from these and from the sums before it.
    """
    own = within.diagonal()
    remains = np.ones(len(own), dtype=np.bool_)
    for _ in range(max_passes):
        n, m = _N_PROBES, int(remains.sum())
        if m < 2:
            break
        to_members = within[:, remains].sum(axis=1)
        across, among_members = to_probes[remains].sum(), to_members[remains].sum()
        now = among_probes / n**2 + among_members / m**2 - 2 * across / (n * m)
        moved = (
            (among_probes + 2 * to_probes + own) / (n + 1) ** 2
            + (among_members - 2 * to_members + own) / (m - 1) ** 2
            - 2 * (across - to_probes + to_members - own) / ((n + 1) * (m - 1))
        )
        leaves = remains & (np.maximum(moved, _MMD_FLOOR) > max(now, _MMD_FLOOR))
        if not leaves.any():
            break
        remains &= ~leaves
    return remains

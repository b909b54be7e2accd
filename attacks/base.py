"""What every attack takes and gives back.

An attack is a frozen dataclass in a file of its own; the file's name is the name users type.
It sees an `AttackTarget`, never the code that trained it. This module imports no torch, so
that an audit of stored outputs starts quickly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class AttackError(ValueError):
    """The attack cannot be run on what it was given; the text says what to do about it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelOutputs:
    """What a model answers to `n` queries, in eval mode, under one deterministic transform.

    `example_id` (n,) and `label` (n,) are int64; `values` (n, classes) holds logits, or class
    probabilities where `is_probability` is true (a model behind an API gives nothing else).
    """

    example_id: IntArray
    label: IntArray
    values: FloatArray
    is_probability: bool = False

    def __len__(self) -> int:
        return len(self.example_id)


@dataclass(frozen=True, kw_only=True, eq=False)
class Membership:
    """A model's outputs on its own members and non-members, which are told apart by `is_member` (n,)."""

    outputs: ModelOutputs
    is_member: BoolArray


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images as (n, channels, height, width) uint8, with the ids they have in the dataset."""

    example_id: IntArray
    images: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class WhiteBox:
    """The target's inside: its activations at named cut points, and images to attack with.

    `activations(images, cut)` takes uint8 images and gives the trained target's activations in eval
    mode; `untrained_activations` the same for a model of the same architecture, freshly initialized
    (the control: what the architecture alone gives away). `attacker` is disjoint from everything the
    target was trained on and from the three sets that are reported on.
    """

    cut_points: tuple[str, ...]
    activations: Callable[[torch.Tensor, str], torch.Tensor]
    untrained_activations: Callable[[torch.Tensor, str], torch.Tensor]
    attacker: ImageSet
    members: ImageSet
    non_members: ImageSet
    test: ImageSet


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackTarget:
    """A trained target as an attacker meets it.

    `population` is what membership is asked about. `half` (n,), 0 or 1, is how all attacks that are fitted on its
    membership labels are to halve it, so that they can be compared; None leaves it to each. `train_shadow` trains a shadow model by the
    target's own recipe on data disjoint from the target's and gives its outputs; it is None under a
    split that keeps no shadow data. `white_box` is None for outputs that came without a model.
    """

    population: Membership
    half: IntArray | None = None
    train_shadow: Callable[[], Membership] | None = None
    white_box: WhiteBox | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class MembershipScores:
    """One score for each example of the population. **A higher score means more likely a member.**

    An attack that is fitted on the target's own membership labels says two things more. `fold` (n,) is the half
    that each example was in; its score comes from an attacker fitted on the other half. `selection_score` (n,) is
    a score by which to choose between attacks: like `score`, but from labels of the example's own half alone.
    """

    name: str
    example_id: IntArray
    is_member: BoolArray
    score: npt.NDArray[np.float64]
    fold: IntArray | None = None
    selection_score: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ReconstructedExample:
    """One kept pair of images, each (channels, height, width) uint8, and their mean squared error in [0, 1]."""

    example_id: int
    mse: float
    original: npt.NDArray[np.uint8]
    reconstruction: npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerReconstruction:
    """How well inputs are rebuilt from one layer. Every MSE is per pixel, on images in [0, 1]."""

    layer_index: int
    layer: str
    mse_members: float
    mse_non_members: float
    mse_test: float
    mse_constant: float
    mse_untrained: float | None
    n_attacker: int
    n_members: int
    n_non_members: int
    n_test: int
    examples: tuple[ReconstructedExample, ...] = ()


class Attack(ABC):
    """Base of all attacks: a frozen, keyword-only dataclass with one method.

    Class constants: `family` is "membership" or "inversion"; `revision` goes up when the same
    configuration would give other results, so that recorded results are not mistaken for new ones;
    `source` cites where the attack comes from.
    """

    family: ClassVar[str]
    revision: ClassVar[int] = 1
    source: ClassVar[str]
    needs_shadow_data: ClassVar[bool] = False
    uses_target_membership_labels: ClassVar[bool] = False
    min_per_side: ClassVar[int] = 2
    """Members, and non-members, below which the attack refuses to run."""

    def check_population(self, n_members: int, n_non_members: int) -> None:
        """Raise `AttackError` where there are too few members or non-members."""
        for count, what in ((n_members, "members"), (n_non_members, "non-members")):
            if count < self.min_per_side:
                raise AttackError(
                    f"{type(self).__module__.rpartition('.')[2]} needs at least {self.min_per_side} {what}, got {count}. "
                    f"Give it more {what}, or leave this attack out."
                )

    @abstractmethod
    def run(
        self, target: AttackTarget, rng: np.random.Generator
    ) -> Sequence[MembershipScores] | Sequence[LayerReconstruction]:
        """Attack `target`; all randomness comes from `rng`."""

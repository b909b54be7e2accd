"""Rules of the mechanisms: from per-example gradient norms to weights and noise.

Every mechanism is these three lines; only the second differs:

    norms = per-example gradient norms                   (n, groups): one group, or one per layer
    weights, noise_std = rule(norms)
    gradient = Σᵢ weightsᵢ · gᵢ + noise_std · N(0, I)

A rule has no state. `PrivateGradient` keeps the random draws and the clip norm that some rules carry from step to step, and
passes them in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from models.private.noise import standard_normal

NoiseUnit = Literal["clip_norm", "absolute"]
"""The unit of a noise scale: the clip norm, or 1."""

SMALL_DIMENSION = 1000
"""With fewer coordinates, noise before clipping is drawn for each example in full; see `NoiseThenClip`."""


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """Base of all rules: clipping to a norm, and Gaussian noise on the sum.

    `noise_scale` is the standard deviation of the noise, in multiples of the clip norm or absolute, as `noise_unit` says.
    """

    noise_scale: float
    noise_unit: NoiseUnit = "clip_norm"

    per_layer: ClassVar[bool] = False
    """Whether each layer is clipped separately; there are then as many groups as layers."""
    clips_by_batch: ClassVar[bool] = False
    """Whether the clip norm depends on all norms of a batch. All norms must then be known before any weight."""

    @property
    def clipping(self) -> str:
        """How the clip norm is chosen: fixed, quantile, quantile_per_layer or noised_quantile."""
        return "fixed"

    def settings(self) -> dict[str, float | str | None]:
        """Noise and clipping settings by their column names; `max_grad_norm` is None if it changes."""
        return {
            "noise_scale": self.noise_scale,
            "noise_unit": self.noise_unit,
            "clipping": self.clipping,
            "max_grad_norm": self.initial_clip_norm if self.clipping == "fixed" else None,
        }

    @property
    @abstractmethod
    def initial_clip_norm(self) -> float:
        """The clip norm of the first step."""

    def batch_clip_norms(self, norms: Tensor, is_real: Tensor) -> Tensor:
        """The clip norms (groups,) for norms (n, groups), of which only rows `is_real` (n,) count. For `clips_by_batch`."""
        raise NotImplementedError(f"{type(self).__name__} does not clip by the batch")

    def example_noise_std(self, dimension: int) -> float | None:
        """Standard deviation of the noise vector drawn for each example before clipping, for gradients of `dimension`
        coordinates. None if the rule draws no such vector."""
        return None

    def draw(self, count: int, dimension: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Random numbers (count, k) for each example, for gradients of `dimension` coordinates; k may be 0."""
        return torch.empty(count, 0, device=device)

    def weigh(self, norms: Tensor, clip_norms: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Each example's weights (n, groups), and the variance that it adds to the noise (n,)."""
        return clip_factors(norms, clip_norms), torch.zeros_like(norms[:, 0])

    def noise_std(self, clip_norms: Tensor) -> Tensor:
        """Standard deviation of the noise on each coordinate of the sum, 0-d. The unit `clip_norm` is the largest norm
        that one example can add, over all groups together."""
        if self.noise_unit == "absolute":
            return torch.full_like(clip_norms.sum(), self.noise_scale)
        norm: Tensor = torch.linalg.vector_norm(clip_norms)
        return self.noise_scale * norm

    def next_clip_norms(
        self,
        clip_norms: Tensor,
        n_examples: int,
        n_within: Tensor,
        expected_batch_size: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The clip norms of the next step, after a step in which `n_within` (0-d) of `n_examples` norms were within them."""
        return clip_norms


def clip_factors(norms: Tensor, clip_norms: Tensor) -> Tensor:
    """min(1, clip_norm / norm): exactly 1 for norms up to the clip norm; 1 for a norm of 0 with any clip norm."""
    return torch.where(norms <= clip_norms, 1.0, clip_norms / norms)


@dataclass(frozen=True, kw_only=True)
class ClipThenNoise(Rule):
    """Clip each example's gradient to `max_grad_norm`, then add noise to the sum: DP-SGD, "CA" in Lin et al. 2020.

    Source: Abadi et al. 2016, Algorithm 1. No example contributes more than `max_grad_norm` to the sum. With
    `noise_unit: clip_norm`, the noise has standard deviation noise_scale · max_grad_norm; noise_scale is the noise
    multiplier.
    """

    max_grad_norm: float

    @property
    def initial_clip_norm(self) -> float:
        return self.max_grad_norm


@dataclass(frozen=True, kw_only=True)
class NoiseThenClip(Rule):
    """Add noise to each example's gradient, then clip it: the "noisy gradient" or "AC" in Lin et al. 2020.

    The literal form draws a vector zᵢ of standard deviation s for each example and sums cᵢ (gᵢ + zᵢ); cᵢ clips the noised
    gradient to `max_grad_norm`, C. The two-scalar form draws two numbers for each example and one vector for all. The two
    numbers give the norm of the noised gradient, with exactly the literal form's distribution, and the clip factor:

        Nᵢ² = (‖gᵢ‖ + s aᵢ)² + s² χᵢ²,   aᵢ ~ N(0, 1),  χᵢ² chi-squared with P − 1 degrees of freedom
        cᵢ = min(1, C / Nᵢ)

    The sum is then modeled as Σ wᵢ gᵢ plus a Gaussian vector with variance Σ cᵢ² s² (aᵢ² + χᵢ²) / P in each of the P
    coordinates. The weights are wᵢ = cᵢ (1 + κᵢ s aᵢ (‖gᵢ‖ + s aᵢ) / Nᵢ²), where κᵢ is the probability that the example is
    clipped. In the literal form, noise that lengthens a gradient also increases clipping, and the two effects nearly
    cancel; the bracket reproduces this.

    Difference from the literal distribution, for one example: orthogonal to its gradient, and therefore in total, means and
    variances agree to O(1/P). Along the gradient, the mean agrees to O(1/P) of its length. The variance along it is exact
    without clipping. With clipping it is too large by cᵢ² s² (1 − (s² χᵢ² / Nᵢ²)²): almost nothing if noise dominates the
    gradient, cᵢ² s² if the gradient dominates. Parallel gradients in a batch add these errors up in one of P directions. A
    clipped example's contribution has length C only up to a spread of 1/√(2P). With fewer than `SMALL_DIMENSION`
    coordinates, the form `auto` is the literal one.

    A common variant is wrong: adding cᵢ s aᵢ along the gradient as well as a noise vector for all coordinates counts the
    noise along the gradient twice.

    Deviation from the paper: its Algorithm 1 is lost, so whether its noise was relative to the clip norm is unknown.
    """

    max_grad_norm: float
    form: Literal["auto", "two_scalar", "literal"] = "auto"

    @property
    def initial_clip_norm(self) -> float:
        return self.max_grad_norm

    @property
    def _std(self) -> float:
        """Standard deviation of the noise on each coordinate of each example's gradient."""
        return self.noise_scale * (self.max_grad_norm if self.noise_unit == "clip_norm" else 1.0)

    def example_noise_std(self, dimension: int) -> float | None:
        is_literal = self.form == "literal" or (self.form == "auto" and dimension < SMALL_DIMENSION)
        return self._std if is_literal else None

    def draw(self, count: int, dimension: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        along = standard_normal([count], generator, device)
        shape = torch.full((count,), (dimension - 1) / 2, device=device, dtype=torch.float64)
        across = 2 * torch._standard_gamma(shape, generator=generator)
        return torch.stack([along, across.float(), torch.full_like(along, dimension)], dim=1)

    def weigh(self, norms: Tensor, clip_norms: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        norms, (along, across, dimension), variance = norms[:, 0], draws.unbind(1), self._std**2
        radial = norms + self._std * along
        squares = radial.square() + variance * across
        factors = clip_factors(squares.sqrt(), clip_norms)
        # The probability of N² > C²: N² is a sum of many terms, so a normal distribution with its mean and deviation
        above = norms.square() + variance * dimension - clip_norms.square()
        spread = (4 * variance * norms.square() + 2 * variance**2 * dimension).sqrt()
        clipped = torch.special.ndtr(above / spread.clamp(min=torch.finfo(spread.dtype).tiny))
        echo = clipped * self._std * along * radial / squares.clamp(min=torch.finfo(squares.dtype).tiny)
        weights = factors * (1 + echo)
        return weights[:, None], factors.square() * variance * (along.square() + across) / dimension

    def noise_std(self, clip_norms: Tensor) -> Tensor:
        return torch.zeros_like(clip_norms.sum())


@dataclass(frozen=True, kw_only=True)
class QuantileClipping(Rule):
    """Clip to a quantile of the batch's own norms, then add noise to the sum.

    Source: Lin et al. 2020, Algorithm 2. The surviving text gives only its steps: gradients, quantile, clipping flat or per
    layer. The quantile is therefore that of the batch being clipped; Thakkar, Andrew & McMahan 2019 use the last round's.
    The quantile is interpolated linearly; an empty batch keeps the last clip norm. Noise is relative to the joint norm of
    all layers' clip norms.
    """

    quantile: float = 0.5
    layers: Literal["flat", "per_layer"] = "flat"

    clips_by_batch: ClassVar[bool] = True

    @property
    def per_layer(self) -> bool:  # type: ignore[override]
        return self.layers == "per_layer"

    @property
    def clipping(self) -> str:
        return "quantile_per_layer" if self.per_layer else "quantile"

    @property
    def initial_clip_norm(self) -> float:
        return 0.0

    def batch_clip_norms(self, norms: Tensor, is_real: Tensor) -> Tensor:
        # Not torch.quantile: only the device knows how many rows are real.
        ascending = norms.masked_fill(~is_real[:, None], torch.inf).sort(dim=0).values
        position = self.quantile * (is_real.sum() - 1)
        low, high = (end.long().clamp(min=0).expand(1, norms.shape[1]) for end in (position.floor(), position.ceil()))
        return torch.lerp(ascending.gather(0, low), ascending.gather(0, high), position - position.floor())[0]


@dataclass(frozen=True, kw_only=True)
class NoisedQuantile(Rule):
    """Clip to a norm that follows a quantile of the norms, with privacy: the count that updates it gets noise, too.

    After each step with an expected batch size B,

        clip_norm ← clip_norm · exp(−learning_rate · (b − quantile)),   b = ½ + (Σ over examples (within − ½) + noise) / B

    where `within` is 1 if an example's norm is within the clip norm, else 0, and the noise has standard deviation
    `count_noise_std`. One example changes this sum by ½. Gradient sum and count together are therefore one Gaussian
    mechanism of noise multiplier z if the sum's own multiplier is

        (z⁻² − (2 · count_noise_std)⁻²)^(−½).

    `noise_scale` is the multiplier of the sum. The accounting uses z; see `models.defenses.noised_quantile`.

    Source: Andrew, Thakkar, McMahan & Ramaswamy 2021, Algorithm 1 and Theorem 1. Deviation: the count is divided by the
    expected size of a Poisson batch. Opacus's AdaClip (1.6) accounts the same z, but counts without subtracting ½, which
    doubles one example's effect, and divides by the drawn size.
    """

    initial: float
    quantile: float
    learning_rate: float
    count_noise_std: float

    @property
    def clipping(self) -> str:
        return "noised_quantile"

    @property
    def initial_clip_norm(self) -> float:
        return self.initial

    def next_clip_norms(
        self,
        clip_norms: Tensor,
        n_examples: int,
        n_within: Tensor,
        expected_batch_size: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        noise = self.count_noise_std * standard_normal(clip_norms.shape, generator, clip_norms.device)
        fraction = 0.5 + (n_within - 0.5 * n_examples + noise) / expected_batch_size
        return clip_norms * torch.exp(-self.learning_rate * (fraction - self.quantile))

"""The privacy loss of Poisson-subsampled Gaussian steps: its moments, and ε of its composition by FFT.

Source: Gopi, Lee & Wutschitz 2021 (PRV). Mesh, mean-matched discretization and error bound are theirs, so results equal
Opacus's. Ours: the loss is tilted exponentially before composition, as in Chernoff's bound, so rounding errors are relative
to δ instead of 1. Without the tilt, a δ below about 1e-11 is lost in rounding. The window of the composition is a Chernoff
bound on the tilted loss, which also makes it shorter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import erfc, logsumexp

Array = np.ndarray[Any, np.dtype[np.float64]]

LEAST_NOISE_MULTIPLIER = 0.01
"""With less noise, sampling gives almost no protection: one step on all examples spends an ε of 5,000."""

MOST_POINTS = 2**23
"""Maximum number of mesh points in a composition; each array is then 64 MiB. If more were needed, the error included in ε
grows instead."""

_OUTSIDE = 25.0
"""−log of the probability that the tilted loss is outside the window, relative to about δ."""

_PANELS = 2
"""Panels per standard deviation of the noise, for integrals with rotating phases."""

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)


class Steps(NamedTuple):
    """A number of Gaussian steps with one noise multiplier, each on a Poisson sample."""

    noise_multiplier: float
    sample_rate: float
    steps: int


class _Quadrature(NamedTuple):
    """At quadrature nodes of the noised sum, in units of the sensitivity: the privacy loss, and log(weight × density).

    The density is the one without the example, N(0, σ²).
    """

    loss: Array
    log_weight: Array


@lru_cache(maxsize=64)
def _quadrature(
    noise_multiplier: float, sample_rate: float, low: float, high: float, panels_per_std: int = 1
) -> _Quadrature:
    """Gauss–Legendre nodes from 13 standard deviations below `low` to 13 above `high`.

    Panels are as wide as one standard deviation. Where the two parts of the mixture meet, the loss bends within σ², and
    panels are narrower.
    """
    count = math.ceil((high - low) / noise_multiplier) + 26
    edges = low + noise_multiplier * (np.arange(count * panels_per_std + 1) / panels_per_std - 13)
    if sample_rate < 1 and noise_multiplier < 2:
        bend = noise_multiplier**2 * math.log(1 / sample_rate - 1) + 0.5
        widths = noise_multiplier**2 * 2.0 ** np.arange(-1, max(1, math.ceil(-math.log2(noise_multiplier))) + 1)
        near = np.concatenate([bend - widths, [bend], bend + widths])
        edges = np.unique(np.concatenate([edges, near[(near > edges[0]) & (near < edges[-1])]]))
    half = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half * (1 + _NODES)).ravel()
    gaussian = -0.5 * (x / noise_multiplier) ** 2 - math.log(noise_multiplier * math.sqrt(2 * math.pi))
    return _Quadrature(_loss(x, noise_multiplier, sample_rate), gaussian + np.log((half * _NODE_WEIGHTS).ravel()))


def _loss(x: Array, noise_multiplier: float, sample_rate: float) -> Array:
    """log((1 − q) + q exp((2x − 1) / 2σ²)): the log ratio of the densities with and without the example."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-sample_rate), math.log(sample_rate) + (x - 0.5) / noise_multiplier**2)


def log_moments(noise_multiplier: float, sample_rate: float, orders: Sequence[float] | Array) -> Array:
    """log E[exp(α · loss)] without the example, for each order α. It is (α − 1) times the Rényi divergence of order α."""
    orders = np.asarray(orders, dtype=float)
    moments = np.empty(len(orders))
    ranges = [_range(orders[index : index + 1]) for index in range(len(orders))]
    for each in set(ranges):
        chosen = [index for index, other in enumerate(ranges) if other == each]
        nodes = _quadrature(noise_multiplier, sample_rate, *each)
        exponents = np.multiply.outer(orders[chosen], nodes.loss) + nodes.log_weight
        highest = exponents.max(axis=1, keepdims=True)
        moments[chosen] = np.log(np.exp(exponents - highest).sum(axis=1)) + highest[:, 0]
    return moments


def _range(orders: Array) -> tuple[float, float]:
    """Range of the noised sum under tilts of these orders, without the noise; powers of two, so close orders share nodes."""
    high, low = float(max(1.0, orders.max())), float(min(0.0, orders.min()))
    return (-(2.0 ** math.ceil(math.log2(-low))) if low < 0 else 0.0), 2.0 ** math.ceil(math.log2(high))


def epsilon(mechanism: Steps, delta: float, tilt: float, error: float) -> float:
    """ε of all steps together. It is an upper bound that includes the mesh `error`, or a larger one if the mesh would have
    too many points.

    `tilt` approximately minimizes Chernoff's bound. Any value above 0 gives the same result up to rounding. The value used
    is as much smaller as rounding allows, which shortens the window.
    """
    steps = mechanism.steps
    if not steps:
        return 0.0
    delta_error = delta / 1000
    tilt *= max(0.4, 1 - math.sqrt(10 / -math.log(delta)))
    estimate, _, variance = _log_moment_and_derivatives(mechanism, tilt)
    low, high = _window(mechanism, tilt, steps * estimate, math.sqrt(steps * variance))
    chernoff = min((steps * estimate - math.log(delta)) / tilt, high)

    error_per_mesh = math.sqrt(steps / 2 * (math.log(12_000) - math.log(delta)))
    mesh_error = max(error, error_per_mesh * (high - low) / MOST_POINTS)
    mesh = mesh_error / error_per_mesh
    size = 2 * next_fast_len(math.ceil((high - low) / mesh / 2) + 1, real=True)

    first, masses, offset = _discretized(mechanism, mesh, tilt)
    masses = masses * np.exp(np.minimum(tilt * mesh * np.arange(first, first + len(masses)) - estimate, 700))
    mass = float(masses.sum())
    folded = np.zeros(size)
    for begin in range(0, len(masses), size):
        part = masses[begin : begin + size]
        folded[: len(part)] += part
    spectrum = _power(rfft(folded / mass), first, steps)
    shift, log_moment = steps * offset, steps * (estimate + math.log(mass))
    start = math.floor((low - shift) / mesh)
    composed = np.roll(irfft(spectrum, n=size), -(start % size))

    # δ(ε) = Σ over losses above ε of mass · (1 − exp(ε − loss)), here in units of the scale removed by the tilt.
    # The search excludes ε below zero, and ε far below Chernoff's bound, where the tilt magnifies rounding.
    target = math.exp(math.log(delta - delta_error) - (log_moment - tilt * (chernoff - shift)))
    for reach in (10, 600):
        lowest = max(-2 * mesh_error, chernoff - min(reach / tilt, 600.0))
        begin = min(max(0, math.floor((lowest - shift) / mesh) - start), size - 1)
        losses = mesh * np.arange(start + begin, start + size) + (shift - chernoff)
        masses, discounts = (
            np.clip(composed[begin:], 0, None) * np.exp(np.minimum(-tilt * losses, 700)),
            np.exp(-losses),
        )
        above = np.cumsum(masses[::-1])[::-1]
        weighted = np.cumsum((masses * discounts)[::-1])[::-1]
        reached = np.flatnonzero(above - weighted / np.maximum(discounts, 1e-300) >= target)
        if len(reached):
            index = min(int(reached[-1]) + 1, len(losses) - 1)
            return max(0.0, chernoff + math.log((above[index] - target) / weighted[index]) + mesh_error)
        if lowest <= -mesh_error or begin == 0:
            return max(0.0, chernoff + float(losses[0]) + mesh_error)
    raise ArithmeticError("the composition lies below where it was sought")


def log_delta(mechanism: Steps, epsilon: float, tilt: float) -> float | None:
    """log δ of all steps together at `epsilon`, to about six digits, without an error bound; None if it would be slow.

    δ(ε) is a line integral of exp(log_moment(z) − z ε) / (z (z + 1)) over z = tilt + i u, by the two-sided Laplace transform
    of (1 − exp(ε − loss))₊. `tilt` is as for the function `epsilon`; with a much smaller tilt, terms cancel and digits are
    lost.
    """
    moment, _, variance = _log_moment_and_derivatives(mechanism, tilt)
    log_moment = mechanism.steps * moment
    low, high = _window(mechanism, tilt, log_moment, math.sqrt(mechanism.steps * variance))
    spacing = 2 * math.pi / max(high - min(low, epsilon), _OUTSIDE / tilt)
    last = 20 * _PANELS * mechanism.noise_multiplier  # beyond this, the nodes do not resolve the phase
    nodes = _quadrature(mechanism.noise_multiplier, mechanism.sample_rate, *_range(np.array([tilt + 1])), _PANELS)
    exponents = (tilt + 1) * nodes.loss + nodes.log_weight
    density = np.exp(exponents - exponents.max())
    heavy = density > 1e-15
    loss, density = nodes.loss[heavy], density[heavy] / density[heavy].sum()
    total, block = 0.0, 64
    for first in range(0, 1024, block):
        u = spacing * np.arange(first, first + block)
        terms = np.exp(-1j * u * epsilon) / ((tilt + 1j * u) * (tilt + 1j * u + 1))
        terms *= (np.exp(1j * np.multiply.outer(u, loss)) * density).sum(axis=1) ** mechanism.steps
        total += float(terms.real.sum()) - (float(terms[0].real) / 2 if first == 0 else 0.0)
        # Many small terms in a row are required: if steps spend either much or nothing, terms vanish and return.
        if np.abs(terms[16:]).max() < 1e-6 * abs(total):
            return log_moment - tilt * epsilon + math.log(total * spacing / math.pi) if total > 0 else None
        if u[-1] > last:
            return None
    return None


def _log_moment_and_derivatives(mechanism: Steps, tilt: float) -> tuple[float, float, float]:
    """log E[exp(tilt · loss)] with the example, for one step, and its two derivatives: the tilted mean and variance."""
    order = np.array([tilt + 1])
    nodes = _quadrature(mechanism.noise_multiplier, mechanism.sample_rate, *_range(order))
    exponents = (tilt + 1) * nodes.loss + nodes.log_weight
    log_moment = float(logsumexp(exponents))
    density = np.exp(exponents - log_moment)
    mean = float(density @ nodes.loss)
    return log_moment, mean, float(density @ (nodes.loss - mean) ** 2)


def _window(mechanism: Steps, tilt: float, log_moment: float, std: float) -> tuple[float, float]:
    """The range of the tilted, composed loss, except for a probability of exp(−_OUTSIDE), by Chernoff's bound on each side."""
    # With rare sampling, moments grow so fast with the order that the best order is much closer than for a Gaussian.
    further = math.sqrt(2 * _OUTSIDE) / std * 2.0 ** np.arange(-16, 2)

    def bound(direction: int) -> float:
        orders = np.asarray(tilt + 1 + direction * further, dtype=float)
        moments = mechanism.steps * log_moments(mechanism.noise_multiplier, mechanism.sample_rate, orders)
        return float(np.min((moments - log_moment + _OUTSIDE) / further))

    return -bound(-1), bound(+1)


def _discretized(mechanism: Steps, mesh: float, tilt: float) -> tuple[int, Array, float]:
    """The first multiple of the mesh, one step's loss probabilities from there on, and the offset that corrects the mean."""
    noise_multiplier, sample_rate, steps = mechanism
    nodes = _quadrature(noise_multiplier, sample_rate, *_range(np.array([tilt + 1])))
    weights = nodes.loss + nodes.log_weight
    negligible = -_OUTSIDE - math.log(steps) - 5
    plain = np.flatnonzero(weights - logsumexp(weights) > negligible)
    tilted = weights + tilt * nodes.loss
    heavy = np.flatnonzero(tilted - logsumexp(tilted) > negligible)
    first = math.floor(nodes.loss[plain[0]] / mesh) - 1
    last = math.ceil(nodes.loss[max(heavy[-1], plain[-1])] / mesh) + 1
    above = _probability_above(mesh * (np.arange(first, last + 2) - 0.5), noise_multiplier, sample_rate)
    masses = above[:-1] - above[1:]
    offset = float(np.exp(weights) @ nodes.loss - masses @ (mesh * np.arange(first, last + 1)))
    if abs(offset) > mesh / 2:
        raise ArithmeticError("the discrete mean differs from the true one")
    return first, masses, offset


def _probability_above(losses: Array, noise_multiplier: float, sample_rate: float) -> Array:
    """The probability that the loss is above each of `losses`, with the example."""
    with np.errstate(divide="ignore", invalid="ignore"):
        falling = np.exp(-np.abs(losses))
        mixed = np.where(losses > 0, 1 - (1 - sample_rate) * falling, np.maximum(falling - 1 + sample_rate, 0))
        x = noise_multiplier**2 * (np.maximum(losses, 0) + np.log(mixed / sample_rate)) + 0.5
    root = noise_multiplier * math.sqrt(2)
    return np.asarray(0.5 * (sample_rate * erfc((x - 1) / root) + (1 - sample_rate) * erfc(x / root)))


def _power(spectrum: Any, first: int, exponent: int) -> Any:
    """The `exponent`-th power of a spectrum shifted by `first` points; zero where it is below rounding."""
    heard = np.flatnonzero(spectrum.real**2 + spectrum.imag**2 > math.exp(-160 / exponent))
    size = 2 * (len(spectrum) - 1)
    turns = heard * (first * exponent % size) % size / size
    power = np.zeros_like(spectrum)
    power[heard] = spectrum[heard] ** exponent * np.exp(-2j * math.pi * turns)
    return power

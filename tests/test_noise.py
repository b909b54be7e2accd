"""Gaussian noise: its bulk, its tail, and its source."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from models.private import noise
from models.private.noise import standard_normal, uniform

CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("generator", [seeded(), None], ids=["seeded", "system"])
def test_it_is_standard_normal(generator):
    draws = standard_normal([200_000], generator, CPU).double().numpy()
    assert stats.kstest(draws, "norm").pvalue > 1e-4
    halves = draws[:100_000], draws[100_000:]  # the two of a pair are a radius times cosine and sine
    assert abs(np.corrcoef(*halves)[0, 1]) < 0.02
    assert abs(np.corrcoef(halves[0] ** 2, halves[1] ** 2)[0, 1]) < 0.02


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (4, 5), (2, 3, 7)])
def test_it_has_the_shape_that_was_asked_for(shape):
    draws = standard_normal(shape, seeded(), CPU)
    assert draws.shape == shape
    assert draws.dtype == torch.float32
    assert draws.is_contiguous()


def test_the_tail_reaches_eight_standard_deviations(monkeypatch):
    """Uniforms chosen, not drawn: the k-th radius is exceeded with a probability of 2^-k."""
    bits = torch.arange(1, 54, dtype=torch.float64)

    def chosen(size, generator, device, dtype=torch.float64):
        return 1 - 2**-bits if dtype == torch.float64 else torch.zeros(size, dtype=dtype)

    monkeypatch.setattr(noise, "uniform", chosen)
    radii = standard_normal([106], None, CPU)[:53].double()
    np.testing.assert_allclose(radii, np.sqrt(2 * math.log(2) * bits.numpy()), rtol=1e-6)
    assert radii[-1] > 8.5


def test_the_tail_has_its_probability():
    """Beyond 4.5 and 5 standard deviations, of 40 million draws, about 272 and 23."""
    generator, beyond = seeded(1), np.zeros(2)
    for _ in range(10):
        draws = standard_normal([4_000_000], generator, CPU).abs()
        beyond += [float((draws > bound).sum()) for bound in (4.5, 5.0)]
    for count, bound in zip(beyond, (4.5, 5.0), strict=True):
        assert stats.poisson(40_000_000 * 2 * stats.norm.sf(bound)).cdf(count) == pytest.approx(0.5, abs=0.499)


@pytest.mark.parametrize("generator", [seeded(), None], ids=["seeded", "system"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_uniforms_are_uniform_and_below_one(generator, dtype):
    draws = uniform(100_000, generator, CPU, dtype)
    assert draws.dtype == dtype
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert stats.kstest(draws.double().numpy(), "uniform").pvalue > 1e-4
    assert len(uniform(0, generator, CPU, dtype)) == 0


def test_uniforms_have_all_their_bits():
    draws = uniform(10_000, None, CPU).numpy() * 2**53
    whole = draws.astype(np.int64)
    assert (whole == draws).all()
    for bit in range(53):
        assert 0.45 < float(((whole >> bit) & 1).mean()) < 0.55


def test_the_same_seed_gives_the_same_noise_and_the_system_never_does():
    assert torch.equal(standard_normal([9], seeded(3), CPU), standard_normal([9], seeded(3), CPU))
    assert not torch.equal(standard_normal([9], None, CPU), standard_normal([9], None, CPU))

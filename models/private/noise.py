"""Gaussian noise with correct tails, and random numbers from the operating system's generator.

PyTorch draws float32 normal numbers by the Box–Muller transform of uniforms with 24 bits on CPU and 32 bits on CUDA, so no
draw exceeds 5.77 and 6.7 standard deviations. An output that would need a larger draw reveals an example; over a long
training this alone adds more than 1e-5 to δ. Here the radius is computed in float64 from uniforms of 53 bits. It ends at
8.57 standard deviations; the probability of a draw beyond is 1e-17.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor


def standard_normal(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Independent standard normal numbers, float32, on `device`. If `generator` is None, the system's generator is used.

    Still inexact: numbers are rounded to float32, so they lie on a grid that depends on their size (Mironov 2012 breaks
    Laplace noise by such a grid); the angle of each pair has 24 bits.

    Source: Box & Muller 1958.
    """
    size = math.prod(shape)
    pairs = -(-size // 2)
    radius = uniform(pairs, generator, device)
    radius = radius.neg_().log1p_().mul_(-2).sqrt_().float()
    angle = uniform(pairs, generator, device, dtype=torch.float32).mul_(2 * math.pi)
    values = torch.empty(2 * pairs, device=device)
    torch.mul(radius, angle.cos(), out=values[:pairs])
    torch.mul(radius, angle.sin(), out=values[pairs:])
    return values[:size].view(torch.Size(shape))


def uniform(
    size: int, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Independent uniform numbers (size,) in [0, 1) with 53 bits, or 24 in float32; None is the system's generator."""
    if generator is not None:
        return torch.rand(size, dtype=dtype, device=device, generator=generator)
    bits = 53 if dtype == torch.float64 else 24
    words = torch.frombuffer(bytearray(os.urandom(8 * size)), dtype=torch.int64) if size else torch.empty(0)
    whole = words.long().bitwise_and_(2**bits - 1)
    return whole.to(dtype).mul_(2.0**-bits).to(device)

"""Random numbers that follow from a tensor's own values, the same on every device and in every batch."""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def hashed(values: Tensor, n_numbers: int) -> Tensor:
    """For each row of `values` (n, …), uint8 or float, `n_numbers` random int64 that follow from that row alone.

    The numbers are SplitMix64's (Steele, Lea & Flood 2014), seeded by a hash of the row. They are for noise, not for secrets.
    """
    flat = values.flatten(1)
    words = flat.long() if values.dtype == torch.uint8 else flat.float().contiguous().view(torch.int32).long()
    place = torch.arange(1, flat.shape[1] + 1, device=values.device)
    seeds = _mixed(words + _mixed(place * _GOLDEN)).sum(1, keepdim=True)
    return _mixed(seeds + torch.arange(1, n_numbers + 1, device=values.device) * _GOLDEN)


def uniforms(numbers: Tensor) -> Tensor:
    """Random int64 as doubles above 0 and below 1."""
    return ((numbers & (2**31 - 1)).double() + 0.5) / 2**31


def _mixed(numbers: Tensor) -> Tensor:
    """SplitMix64's finalizer, element by element; products wrap around."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """The numbers shifted right as unsigned ones."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)

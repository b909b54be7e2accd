"""Independent random streams of one trial, all derived from its seed.

A trial's initialization must not depend on how many batches were drawn, nor its noise on its split, so
each purpose has a stream of its own.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a random stream is for. The numbers are part of every recorded result: never reuse one."""

    INIT = 0
    SAMPLING = 1
    NOISE = 2
    SPLIT = 3
    DROPOUT = 4
    ATTACK = 5
    UNTRAINED = 6


def numpy_generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """The NumPy generator of a stream; `index` tells several uses of one stream apart."""
    return np.random.default_rng([seed, stream, index])


def torch_seed(seed: int, stream: Stream, index: int = 0) -> int:
    """A 63-bit seed for a PyTorch generator of the stream."""
    return int(numpy_generator(seed, stream, index).integers(2**63 - 1))


def torch_generator(seed: int, stream: Stream, index: int = 0, device: str = "cpu") -> torch.Generator:
    """The PyTorch generator of a stream, on `device`."""
    return torch.Generator(device=device).manual_seed(torch_seed(seed, stream, index))

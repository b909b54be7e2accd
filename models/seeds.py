"""Independent random streams of one trial.

A trial's initialization must not depend on how many batches were drawn, nor its noise on its split, so
each purpose has a stream of its own. Most streams derive from the trial's seed alone, which pairs the arms of a
comparison. Those that a privacy guarantee rests on also derive from the target's identity: two private runs that
shared their noise would, together, give away what the noise hides.
"""

from __future__ import annotations

import hashlib
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


def torch_seed(seed: int, stream: Stream, index: int = 0, target_id: str = "") -> int:
    """A 128-bit seed of the stream for `seed_torch`; with a `target_id`, of that target's own stream."""
    owner = [int.from_bytes(hashlib.sha256(target_id.encode()).digest())] if target_id else []
    words = np.random.SeedSequence([seed, stream, index, *owner]).generate_state(2, np.uint64)
    return int(words[0]) << 64 | int(words[1])


def torch_generator(
    seed: int, stream: Stream, index: int = 0, device: str = "cpu", target_id: str = ""
) -> torch.Generator:
    """The PyTorch generator of a stream, on `device`."""
    generator = torch.Generator(device=device)
    seed_torch(generator, torch_seed(seed, stream, index, target_id))
    return generator


def seed_torch(generator: torch.Generator, seed: int) -> None:
    """Seed a generator from an integer of any size, all bits of which count.

    `manual_seed` reads 32 bits on CPU, so that 100,000 streams would collide. Here the whole state of the CPU's Mersenne
    Twister is filled from a `SeedSequence`. CUDA's Philox has a key of 64 bits, which are drawn from it.
    """
    sequence = np.random.SeedSequence(seed)
    if generator.device.type != "cpu":
        generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        return
    key = np.random.MT19937(sequence).state["state"]["key"].astype(np.uint64)
    # PyTorch's layout: the seed, what is left of the block (4 bytes), whether it was seeded (4), the next word, the words
    state = torch.Generator().manual_seed(0).get_state()
    state[24 : 24 + key.nbytes] = torch.from_numpy(key.view(np.uint8))
    generator.set_state(state)


def seed_global_torch(seed: int, device: torch.device | None = None) -> None:
    """Seed PyTorch's global generator on CPU, and that of a CUDA `device`."""
    seed_torch(torch.default_generator, seed)
    if device is not None and device.type == "cuda":
        seed_torch(torch.cuda.default_generators[device.index or 0], seed)

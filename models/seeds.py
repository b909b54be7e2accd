"""Independent random streams of one trial.

Each purpose has its own stream, so that, for example, initialization does not depend on how many batches were drawn, nor
noise on the split. Most streams derive from the trial's seed alone, which pairs the arms of a comparison. Streams that a
privacy guarantee depends on also derive from the target's identity: two private runs with the same noise would together
reveal what the noise hides.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The purpose of a random stream. Every recorded result depends on these numbers: never reuse one."""

    INIT = 0
    SAMPLING = 1
    NOISE = 2
    SPLIT = 3
    DROPOUT = 4
    ATTACK = 5
    UNTRAINED = 6
    AUGMENTATION = 7
    HELD_OUT = 8
    PARTS = 9
    CANARIES = 10
    REFERENCE = 11
    COMPANION = 12
    VALIDATION = 13
    SEARCH = 14


def numpy_generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """The NumPy generator of a stream; `index` separates several uses of one stream."""
    return np.random.default_rng([seed, stream, index])


def torch_seed(seed: int, stream: Stream, index: int = 0, target_id: str = "") -> int:
    """A 128-bit seed of the stream, for `seed_torch`. With a `target_id`, the stream belongs to that target alone."""
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
    """Seed a generator from all bits of an integer of any size.

    `manual_seed` reads only 32 bits on CPU, so 100,000 streams would collide. Here a `SeedSequence` fills the whole state
    of the CPU's Mersenne Twister. On CUDA it gives the 64-bit key of Philox.
    """
    sequence = np.random.SeedSequence(seed)
    if generator.device.type != "cpu":
        generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        return
    key = np.random.MT19937(sequence).state["state"]["key"].astype(np.uint64)
    # PyTorch's layout: seed, words left in the block (4 bytes), whether seeded (4 bytes), index of the next word, words
    state = torch.Generator().manual_seed(0).get_state()
    state[24 : 24 + key.nbytes] = torch.from_numpy(key.view(np.uint8))
    generator.set_state(state)


def seed_global_torch(seed: int, device: torch.device | None = None) -> None:
    """Seed PyTorch's global CPU generator and, if `device` is a CUDA device, its global generator."""
    seed_torch(torch.default_generator, seed)
    if device is not None and device.type == "cuda":
        seed_torch(torch.cuda.default_generators[device.index or 0], seed)

"""The fixed queries that a trained model answers about each example: the example itself, flipped and shifted."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad

_SHIFT = 4
"""Pixels of a shift."""

QUERY_COUNTS = (1, 2, 18)
"""The numbers of queries to choose from."""


def queried(images: Tensor, query: int) -> Tensor:
    """Images (n, channels, height, width) as the query of this number shows them, from 0 to 17.

    Query 0 is the image itself, and 1 its mirror image. Then follow its shifts by ±4 pixels up, down, left and right, in all
    combinations, each with its mirror image. Pixels from outside the image are 0.

    Source: Aerni, Zhang & Tramèr 2024, whose 18 queries these are.
    """
    down, right = _SHIFTS[query // 2]
    height, width = images.shape[-2:]
    around = pad(images, (_SHIFT, _SHIFT, _SHIFT, _SHIFT))
    shown = around[..., _SHIFT - down : _SHIFT - down + height, _SHIFT - right : _SHIFT - right + width]
    return torch.flip(shown, dims=(-1,)) if query % 2 else shown


_SHIFTS = sorted(product((0, -_SHIFT, _SHIFT), repeat=2), key=lambda shift: shift != (0, 0))

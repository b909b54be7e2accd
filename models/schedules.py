"""Learning-rate schedules: the factor of the learning rate, by the share of the training that is done."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(done: float) -> float:
    return 1.0


def cosine(done: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2017, equation 5, without restarts)."""
    return (1 + math.cos(math.pi * done)) / 2


def steps(done: float) -> float:
    """1, then 0.1 from half of the training on, and 0.01 from three quarters on (He et al. 2016, section 4.2)."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine, "steps": steps}

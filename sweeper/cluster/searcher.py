"""Optuna's proposals, through Ray Tune's searcher."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from ray import tune
from ray.tune.search.optuna import OptunaSearch

if TYPE_CHECKING:
    from sweeper.search.space import Distribution


class Proposer:
    """Proposes settings, and is told how good they were. The same seed and answers give the same proposals."""

    def __init__(self, fields: Mapping[str, Distribution], seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("ray.tune.search.optuna").setLevel(logging.ERROR)
        space = OptunaSearch.convert_search_space({name: _domain(each) for name, each in fields.items()})
        self._options = {name: each.options for name, each in fields.items() if each.kind == "choice"}
        self._search = OptunaSearch(space, metric="score", mode="max", seed=seed)
        self._n_proposed = 0
        self._waiting: list[str] = []

    def propose(self, count: int) -> list[dict[str, Any]]:
        """So many settings, by what it was told until now."""
        self._waiting = [str(self._n_proposed + place) for place in range(count)]
        self._n_proposed += count
        proposed = [self._search.suggest(name) or {} for name in self._waiting]
        return [
            {name: self._options[name][value] if name in self._options else value for name, value in each.items()}
            for each in proposed
        ]

    def tell(self, scores: Sequence[float]) -> None:
        """The scores of the last proposals; a higher one is better, and −∞ is a failure."""
        for name, score in zip(self._waiting, scores, strict=True):
            if math.isfinite(score):
                self._search.on_trial_complete(name, {"score": score})
            else:
                self._search.on_trial_complete(name, None, error=True)


def _domain(field: Distribution) -> Any:
    if field.kind == "choice":  # by index, because options may be lists
        return tune.choice(list(range(len(field.options))))
    if field.kind == "int":
        return tune.randint(int(field.low), int(field.high) + 1)
    return (tune.loguniform if field.kind == "loguniform" else tune.uniform)(field.low, field.high)

"""Shokri: attack models that tell members by their posteriors, learned from the target's references."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, logit

from attacks.base import BoolArray
from attacks.cohort.attack import CohortAttack
from attacks.cohort.cohort import Cohort, Design

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

FloatArray = npt.NDArray[np.float64]

_HIDDEN_UNITS = 64
_LEAST_LOG_POSTERIOR = -50.0
_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Shokri(CohortAttack):
    """Shokri: one attack model per class, which learns from the other seeds how posteriors of members look.

    The target's references are the shadow models. For each class, an attack model learns to tell a reference's members from
    its non-members among the pool's examples of the class, by all classes' log-posteriors on the first query, in float64. It
    is then applied to the target's log-posteriors. The score is its log-odds of membership, in nats, within ±27.6. If the
    rows of a class are all members or all non-members, it is 0. Targets with the same references share their attack models.

    All examples of a class share one attack model, so this attack does not know how hard an example is, unlike `lira` and
    `ratio`: expect it to be weaker.

    All models' log-posteriors on the pool are held in memory, 8 bytes each.

    Random: the rows, their order, and the initial weights of `network`.

    Source: Shokri et al. 2017, section V. Deviations: the shadow models are the cell's other seeds, trained on the target's own
    pool, so that any of its examples may be a member of both (there, shadows and target share no data); features are
    log-posteriors, floored at −50 and standardized (there, posteriors, most of which a confident model rounds to 0 or 1); at
    most `max_examples_per_class` rows, drawn at random, are learned from (there, all); the network is trained by scikit-learn's
    Adam with its defaults for `epochs` epochs, with a logistic output (there, a softmax of two, by unstated settings).
    """

    source: ClassVar[str] = "Shokri et al. 2017"

    attack_model: Literal["network", "logistic"] = "network"
    """`network`: one hidden layer of 64 ReLU units, as in the paper. `logistic`: L2-regularized logistic regression, C = 1."""
    max_examples_per_class: int = 5000
    """Most rows, each an example's posteriors by one reference, that an attack model learns from."""
    epochs: int = 50
    """Passes of `network` over its rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, least in (
            ("max_examples_per_class", self.max_examples_per_class, 2),
            ("epochs", self.epochs, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")

    def score_names(self) -> tuple[str, ...]:
        return ("shokri",)

    def scores(
        self, cohort: Cohort, designs: Sequence[Design], rng: np.random.Generator
    ) -> list[dict[str, FloatArray]]:
        found = [np.zeros((len(design.targets), cohort.n_examples)) for design in designs]
        posteriors = _log_posteriors(cohort)
        for design, score in zip(designs, found, strict=True):
            references = [design.references_of(target) for target in design.targets.tolist()]
            for used in {tuple(each.tolist()): each for each in references}.values():
                rows = np.flatnonzero([np.array_equal(each, used) for each in references])
                for label in np.unique(cohort.label):
                    examples = np.flatnonzero(cohort.label == label)
                    asked = posteriors[np.ix_(design.targets[rows], examples)]
                    score[np.ix_(rows, examples)] = self._log_odds(
                        posteriors[np.ix_(used, examples)], design.member[np.ix_(used, examples)], asked, rng
                    )
        return [{"shokri": score} for score in found]

    def _log_odds(
        self, features: FloatArray, member: BoolArray, asked: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        """Log-odds of `asked` (targets, examples, classes), by a model fitted on features (references, examples, classes)."""
        # Drawn before memberships are looked at, so that no coin, the target's own included, changes a later draw.
        chosen = rng.permutation(member.size)[: self.max_examples_per_class]
        seed = int(rng.integers(2**32))
        x, y = features.reshape(member.size, -1)[chosen], member.ravel()[chosen]
        if y.all() or not y.any():
            return np.zeros(asked.shape[:2])
        from sklearn.exceptions import ConvergenceWarning

        mean, spread = x.mean(axis=0), x.std(axis=0)
        spread[spread == 0] = 1
        model = self._model(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is part of the attack
            model.fit((x - mean) / spread, y)
        probability = model.predict_proba(((asked - mean) / spread).reshape(-1, x.shape[1]))[:, 1]
        clipped = np.clip(probability, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY).reshape(asked.shape[:2])
        log_odds: FloatArray = logit(clipped)
        return log_odds

    def _model(self, seed: int) -> MLPClassifier | LogisticRegression:
        # A plan reads this file too, and importing scikit-learn takes a second.
        from sklearn.linear_model import LogisticRegression
        from sklearn.neural_network import MLPClassifier

        if self.attack_model == "logistic":
            return LogisticRegression(max_iter=1000)
        return MLPClassifier(
            hidden_layer_sizes=(_HIDDEN_UNITS,), max_iter=self.epochs, n_iter_no_change=self.epochs, random_state=seed
        )


def _log_posteriors(cohort: Cohort) -> FloatArray:
    """The log-posteriors of the first query (models, pool, classes), floored."""
    blocks = [
        np.stack([log_softmax(cohort.logits(model, block)[:, 0], axis=1) for model in range(cohort.n_models)])
        for block in cohort.blocks()
    ]
    floored: FloatArray = np.maximum(np.concatenate(blocks, axis=1), _LEAST_LOG_POSTERIOR)
    return floored

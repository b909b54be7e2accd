"""Membership by classifiers trained on the target's own members and non-members. No shadow is trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

from attacks.base import Attack, AttackTarget, BoolArray, MembershipScores, ModelOutputs
from attacks.membership import check_names
from attacks.probabilities import class_probabilities, log_likelihood

_ATTACKERS = ("logistic_regression", "mlp", "random_forest", "knn")
_OUTER_FOLDS = 2
_INNER_FOLDS = 3

# TensorFlow Privacy's grids. All that is not named is scikit-learn's default.
_GRIDS: dict[str, dict[str, list[Any]]] = {
    "logistic_regression": {"C": list(np.logspace(-4, 2, 10))},
    "mlp": {"hidden_layer_sizes": [(64,), (32, 32)], "alpha": [1e-4, 1e-3, 1e-2]},
    "random_forest": {
        "max_depth": [5, 10, 20, None],
        "min_samples_split": [2, 5, 10],
        "min_samples_leaf": [1, 2, 4],
    },
    "knn": {"n_neighbors": [3, 5, 7]},
}
# One point of each grid, chosen for restraint, not for its result on any data: an attacker that fits its
# half by heart scores the other half badly.
_FIXED: dict[str, dict[str, Any]] = {
    "logistic_regression": {"C": 1.0},
    "mlp": {"hidden_layer_sizes": (64,), "alpha": 1e-2},
    "random_forest": {"max_depth": 10, "min_samples_split": 10, "min_samples_leaf": 4},
    "knn": {"n_neighbors": 7},
}
_SEARCHES = ("tensorflow_privacy", "none")


@dataclass(frozen=True, kw_only=True)
class TrainedAttackers(Attack):
    """Classifiers that learn, from examples, how the target answers its members and its non-members.

    **This trains no shadow model.** The attackers are fitted on the target's own membership labels,
    which a real attacker does not have; cross-fitting keeps an example's own label out of its score. It
    is what TensorFlow Privacy's tool does in its trained attacks; `shadow` is the attack that learns from a
    shadow model.

    Features are an example's logits (its probabilities where there are no logits) and its loss,
    −log max(p_y, 1e-8), unscaled. A random balanced subsample, as many members as non-members, is split
    in two stratified halves; an attacker fitted on one scores the other. Examples left over by the
    balancing or by `max_per_side` are scored by the attacker that was fitted last: they are in no
    attacker's training data, so no label leaks into their scores. All examples of the population get
    a score, the predicted probability of being a member, in [0, 1].

    Scores of the two halves come from two fitted models, whose probabilities need not be calibrated
    alike; and each half's scores depend on the other half's labels, so the AUCs of the two halves move
    together. Both are in TensorFlow Privacy's too. An interval over examples takes scores as given and does
    not cover the fitting: on scores that know nothing, at 359 members and non-members, DeLong's 95 %
    interval held 0.5 in 86 to 88 of 100 runs. Taking the best of several
    attackers on the scores that are reported flatters the attack: see `attacks.selection.best_of`.

    Random: the subsample, the halves, and the fits of `mlp` and `random_forest`. An attacker's scores do
    not depend on which other attackers run, nor on `jobs`.

    Source: TensorFlow Privacy's membership inference tool at commit 03035d5, which this repeats but for
    these deviations: the loss is computed in float64 (there, in the logits' dtype); members are the
    class 1 (there, non-members are); every fit of one attacker starts from one seed (there, from
    wherever a global generator is).
    """

    family: ClassVar[str] = "membership"
    source: ClassVar[str] = "TensorFlow Privacy, trained membership inference attacks (commit 03035d5)"
    uses_target_membership_labels: ClassVar[bool] = True
    min_per_side: ClassVar[int] = 12
    """12 a side leave 12 rows in an outer half and 8 in an inner training fold: enough for 7 neighbors."""

    attackers: tuple[str, ...] = _ATTACKERS
    """Which attackers to fit, by name."""

    search: str = "tensorflow_privacy"
    """`tensorflow_privacy` searches its grids by 3-fold accuracy inside each half (minutes for `mlp` and
    `random_forest`); `none` takes one fixed point of each grid, for cheap sweeps."""

    max_per_side: int | None = None
    """At most this many members, and non-members, to fit the attackers on; None for all."""

    jobs: int = field(default=1, metadata={"identity": False})
    """Processes for the grid search; changes the time only."""

    def __post_init__(self) -> None:
        check_names("attacker", self.attackers, _ATTACKERS)
        check_names("search", (self.search,), _SEARCHES)
        if self.max_per_side is not None and self.max_per_side < self.min_per_side:
            raise ValueError(f"max_per_side must be at least {self.min_per_side}, got {self.max_per_side}.")
        if self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}.")

    def run(self, target: AttackTarget, rng: np.random.Generator) -> list[MembershipScores]:
        """One `MembershipScores` for each of `attackers`, in that order.

        Raises:
            AttackError: fewer than `min_per_side` members or non-members, or outputs that cannot be used
                (`class_probabilities` says which).
        """
        population = target.population
        self.check_population(int(population.is_member.sum()), int((~population.is_member).sum()))
        features = _features(population.outputs)
        # A seed for every attacker there is, so that leaving one out does not move the others.
        seeds = dict(zip(_ATTACKERS, rng.integers(2**32, size=len(_ATTACKERS)), strict=True))
        return [
            MembershipScores(
                name=name,
                example_id=population.outputs.example_id,
                is_member=population.is_member,
                score=self._cross_fitted_scores(
                    name, features, population.is_member, np.random.default_rng(seeds[name])
                ),
            )
            for name in self.attackers
        ]

    def _cross_fitted_scores(
        self,
        name: str,
        features: npt.NDArray[np.float64],
        is_member: BoolArray,
        rng: np.random.Generator,
    ) -> npt.NDArray[np.float64]:
        fitted_on = _balanced_subsample(is_member, self.max_per_side, rng)
        attacker = self._attacker(name, seed=int(rng.integers(2**32)))
        score = np.full(len(is_member), np.nan)
        # The subsample is in random order, so unshuffled folds are random too.
        folds = StratifiedKFold(_OUTER_FOLDS).split(features[fitted_on], is_member[fitted_on])
        for train, held_out in folds:
            with warnings.catch_warnings():
                # Default iteration limits are part of the attack; whether they bind is of no use here.
                warnings.simplefilter("ignore", ConvergenceWarning)
                attacker.fit(features[fitted_on[train]], is_member[fitted_on[train]])
            score[fitted_on[held_out]] = attacker.predict_proba(features[fitted_on[held_out]])[:, 1]
        left_over = np.isnan(score)
        if left_over.any():
            score[left_over] = attacker.predict_proba(features[left_over])[:, 1]
        return score

    def _attacker(self, name: str, seed: int) -> Any:
        estimator: Any = {
            "logistic_regression": LogisticRegression(),
            "mlp": MLPClassifier(random_state=seed),
            "random_forest": RandomForestClassifier(random_state=seed),
            "knn": KNeighborsClassifier(),
        }[name]
        if self.search == "none":
            return estimator.set_params(**_FIXED[name])
        return GridSearchCV(estimator, _GRIDS[name], cv=_INNER_FOLDS, n_jobs=self.jobs)


def _features(outputs: ModelOutputs) -> npt.NDArray[np.float64]:
    """(n, classes + 1): what the model answers, and its loss. A logit of −∞ counts as the lowest finite one of all."""
    loss = -log_likelihood(class_probabilities(outputs), outputs.label)
    values = np.maximum(outputs.values, outputs.values[np.isfinite(outputs.values)].min())
    return np.column_stack((values, loss)).astype(np.float64)


def _balanced_subsample(
    is_member: BoolArray, max_per_side: int | None, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Indices, in random order, of as many members as non-members: all of the smaller side if allowed."""
    members, non_members = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    per_side = min(len(members), len(non_members), max_per_side or len(is_member))
    chosen = [rng.permutation(side)[:per_side] for side in (members, non_members)]
    return rng.permutation(np.concatenate(chosen))

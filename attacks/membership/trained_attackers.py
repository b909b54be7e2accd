"""Membership inference by classifiers trained on the target's own members and non-members, without a shadow model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

from attacks.base import Attack, AttackTarget, BoolArray, IntArray, Membership, MembershipScores, ModelOutputs
from attacks.membership import check_names
from attacks.metrics import example_folds
from attacks.probabilities import class_probabilities, log_likelihood

_Floats = npt.NDArray[np.float64]

_ATTACKERS = ("logistic_regression", "mlp", "random_forest", "knn")
_INNER_FOLDS = 3

# TensorFlow Privacy's grids. Other parameters are scikit-learn's defaults.
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
# One point of each grid, chosen for strong regularization and not by its result on any data: an attacker that memorizes
# its half scores the other half badly.
_FIXED: dict[str, dict[str, Any]] = {
    "logistic_regression": {"C": 1.0},
    "mlp": {"hidden_layer_sizes": (64,), "alpha": 1e-2},
    "random_forest": {"max_depth": 10, "min_samples_split": 10, "min_samples_leaf": 4},
    "knn": {"n_neighbors": 7},
}
_SEARCHES = ("tensorflow_privacy", "none")


@dataclass(frozen=True, kw_only=True)
class TrainedAttackers(Attack):
    """Fits classifiers on the target's own membership labels and scores each example out of fold.

    **No shadow model is trained.** A real attacker does not have the target's membership labels. Cross-fitting keeps an
    example's own label out of its score. TensorFlow Privacy's trained attacks work this way; `shadow` is the attack that
    learns from a shadow model.

    Features, unscaled, are an example's logits (or probabilities, if there are no logits) and its loss, −log max(p_y, 1e-8).
    A logit of −inf is replaced by the lowest finite one. The population is split into two stratified halves; all rows of
    one `example_id` are in the same half. An attacker is fitted on a random balanced subsample of one half, with as many
    members as non-members, and scores the other half by the predicted probability of membership, in [0, 1].

    The two halves' scores come from two fitted models whose probabilities may be calibrated differently, as in TensorFlow
    Privacy. Each half's scores depend on the other half's labels, so the AUCs of the two halves are correlated. `fold`
    records the halves, and `attacks.metrics.membership_metrics` widens its intervals accordingly.

    `selection_score` is for choosing between attacks on one half and reporting on the other (`attacks.selection.best_of`).
    It is the same attacker's out-of-fold score, in three folds within the half, with the parameters found on that half. It
    uses no label of the other half.

    Random: the halves if the target does not give them, the subsamples, the inner folds, and the fits of `mlp` and
    `random_forest`. An attacker's scores do not depend on which other attackers run, nor on `jobs`.

    Source: TensorFlow Privacy's membership inference tool at commit 03035d5. Deviations: the loss is computed in float64
    (there, in the logits' dtype); members are class 1 (there, non-members); all fits of one attacker start from one seed
    (there, from the current state of a global generator); the subsample is balanced within each half, and examples left out
    are scored by the other half's attacker (there, by the last one); rows of one example are never in two folds.
    """

    family: ClassVar[str] = "membership"
    source: ClassVar[str] = "TensorFlow Privacy, trained membership inference attacks (commit 03035d5)"
    revision: ClassVar[int] = 2
    uses_target_membership_labels: ClassVar[bool] = True
    min_per_side: ClassVar[int] = 12
    """With 12 per side, a half has 12 examples and an inner training fold has 8, enough for 7 neighbors."""

    attackers: tuple[str, ...] = _ATTACKERS
    """Names of the attackers to fit."""

    search: str = "tensorflow_privacy"
    """`tensorflow_privacy`: search that library's grids by 3-fold accuracy within each half (minutes for `mlp` and
    `random_forest`). `none`: one fixed point of each grid, for cheap sweeps."""

    max_per_side: int | None = None
    """Maximum number of members, and of non-members, to fit the attackers on, half of them in each half; None for all."""

    jobs: int = field(default=1, metadata={"identity": False})
    """Number of processes for the grid search; affects time only."""

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
            AttackError: there are fewer than `min_per_side` members or non-members, or outputs are unusable (see
                `class_probabilities`).
        """
        population = target.population
        outputs, is_member = population.outputs, population.is_member
        self.check_population(
            len(np.unique(outputs.example_id[is_member])), len(np.unique(outputs.example_id[~is_member]))
        )
        half = target.half if target.half is not None else example_folds(outputs.example_id, is_member, 2, rng)
        features = _features(outputs)
        # One seed for each known attacker, so that leaving one out does not change the others.
        seeds = dict(zip(_ATTACKERS, rng.integers(2**32, size=len(_ATTACKERS)), strict=True))
        results = []
        for name in self.attackers:
            score, selection_score = self._cross_fitted_scores(
                name, features, population, half, np.random.default_rng(seeds[name])
            )
            results.append(
                MembershipScores(
                    name=name,
                    example_id=outputs.example_id,
                    is_member=is_member,
                    score=score,
                    fold=half,
                    selection_score=selection_score,
                )
            )
        return results

    def _cross_fitted_scores(
        self, name: str, features: _Floats, population: Membership, half: IntArray, rng: np.random.Generator
    ) -> tuple[_Floats, _Floats]:
        """Each example's score, by the other half's attacker, and its selection score."""
        is_member, example_id = population.is_member, population.outputs.example_id
        seed = int(rng.integers(2**32))
        score, selection_score = (np.empty(len(is_member)) for _ in range(2))
        for own in (0, 1):
            inside, outside = np.flatnonzero(half == own), np.flatnonzero(half != own)
            fitted_on = inside[_balanced_subsample(is_member[inside], self.max_per_side, rng)]
            x, y, ids = features[fitted_on], is_member[fitted_on], example_id[fitted_on]
            attacker = self._attacker(name, seed, example_folds(ids, y, _INNER_FOLDS, rng))
            with warnings.catch_warnings():
                # Default iteration limits are part of the attack, so reaching one is not worth a warning.
                warnings.simplefilter("ignore", ConvergenceWarning)
                attacker.fit(x, y)
                score[outside] = attacker.predict_proba(features[outside])[:, 1]
                selection_score[inside] = attacker.predict_proba(features[inside])[:, 1]
                chosen = attacker.best_estimator_ if self.search == "tensorflow_privacy" else attacker
                fold = example_folds(ids, y, _INNER_FOLDS, rng)
                for each in range(_INNER_FOLDS):
                    refitted = clone(chosen).fit(x[fold != each], y[fold != each])
                    selection_score[fitted_on[fold == each]] = refitted.predict_proba(x[fold == each])[:, 1]
        return score, selection_score

    def _attacker(self, name: str, seed: int, fold: IntArray) -> Any:
        estimator: Any = {
            "logistic_regression": LogisticRegression(),
            "mlp": MLPClassifier(random_state=seed),
            "random_forest": RandomForestClassifier(random_state=seed),
            "knn": KNeighborsClassifier(),
        }[name]
        if self.search == "none":
            return estimator.set_params(**_FIXED[name])
        return GridSearchCV(estimator, _GRIDS[name], cv=PredefinedSplit(fold), n_jobs=self.jobs)


def _features(outputs: ModelOutputs) -> _Floats:
    """The model's outputs and its loss, (n, classes + 1). A logit of −∞ is replaced by the lowest finite one of all."""
    loss = -log_likelihood(class_probabilities(outputs), outputs.label)
    values = outputs.values.astype(np.float64)
    values[values == -np.inf] = values[np.isfinite(values)].min()
    return np.column_stack((values, loss))


def _balanced_subsample(
    is_member: BoolArray, max_per_side: int | None, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Indices, in random order, of equally many members and non-members of one half: the whole smaller side if allowed."""
    members, non_members = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    per_side = min(len(members), len(non_members), len(is_member) if max_per_side is None else max_per_side // 2)
    chosen = [rng.permutation(side)[:per_side] for side in (members, non_members)]
    return rng.permutation(np.concatenate(chosen))

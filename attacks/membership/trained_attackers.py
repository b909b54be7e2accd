"""Membership by classifiers trained on the target's own members and non-members. No shadow is trained."""

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
    −log max(p_y, 1e-8), unscaled; a logit of −inf counts as the lowest finite one. The population is split
    in two stratified halves, all rows of one `example_id` in one of them. An attacker is fitted on a random balanced
    subsample of one half, as many members as non-members, and scores the other half: the predicted probability
    of being a member, in [0, 1].

    Scores of the two halves come from two fitted models, whose probabilities need not be calibrated alike, as in
    TensorFlow Privacy's. Each half's scores depend on the other half's labels, so the AUCs of the two halves move
    together; `fold` says so, and `attacks.metrics.membership_metrics` widens its intervals by it.

    `selection_score` is for choosing between attacks on one half and reporting on the other
    (`attacks.selection.best_of`). It is the out-of-fold score, in three folds, of the same attacker within the
    half alone, with the parameters that were found there: no label of the other half is in it.

    Random: the halves where the target does not give them, the subsamples, the inner folds, and the fits of `mlp`
    and `random_forest`. An attacker's scores do not depend on which other attackers run, nor on `jobs`.

    Source: TensorFlow Privacy's membership inference tool at commit 03035d5, which this repeats but for
    these deviations: the loss is computed in float64 (there, in the logits' dtype); members are the
    class 1 (there, non-members are); every fit of one attacker starts from one seed (there, from
    wherever a global generator is); the subsample is balanced within each half, and what it leaves out is scored
    by the other half's attacker (there, by the last one); rows of one example are never in two folds.
    """

    family: ClassVar[str] = "membership"
    source: ClassVar[str] = "TensorFlow Privacy, trained membership inference attacks (commit 03035d5)"
    revision: ClassVar[int] = 2
    uses_target_membership_labels: ClassVar[bool] = True
    min_per_side: ClassVar[int] = 12
    """12 a side leave 12 examples in a half and 8 in an inner training fold: enough for 7 neighbors."""

    attackers: tuple[str, ...] = _ATTACKERS
    """Which attackers to fit, by name."""

    search: str = "tensorflow_privacy"
    """`tensorflow_privacy` searches its grids by 3-fold accuracy inside each half (minutes for `mlp` and
    `random_forest`); `none` takes one fixed point of each grid, for cheap sweeps."""

    max_per_side: int | None = None
    """At most this many members, and non-members, to fit the attackers on, half of them in each half; None for all."""

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
        outputs, is_member = population.outputs, population.is_member
        self.check_population(
            len(np.unique(outputs.example_id[is_member])), len(np.unique(outputs.example_id[~is_member]))
        )
        half = target.half if target.half is not None else example_folds(outputs.example_id, is_member, 2, rng)
        features = _features(outputs)
        # A seed for every attacker there is, so that leaving one out does not move the others.
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
        """The score of each example by the other half's attacker, and its selection score."""
        is_member, example_id = population.is_member, population.outputs.example_id
        seed = int(rng.integers(2**32))
        score, selection_score = (np.empty(len(is_member)) for _ in range(2))
        for own in (0, 1):
            inside, outside = np.flatnonzero(half == own), np.flatnonzero(half != own)
            fitted_on = inside[_balanced_subsample(is_member[inside], self.max_per_side, rng)]
            x, y, ids = features[fitted_on], is_member[fitted_on], example_id[fitted_on]
            attacker = self._attacker(name, seed, example_folds(ids, y, _INNER_FOLDS, rng))
            with warnings.catch_warnings():
                # Default iteration limits are part of the attack; whether they bind is of no use here.
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
    """(n, classes + 1): what the model answers, and its loss. A logit of −∞ counts as the lowest finite one of all."""
    loss = -log_likelihood(class_probabilities(outputs), outputs.label)
    values = outputs.values.astype(np.float64)
    values[values == -np.inf] = values[np.isfinite(values)].min()
    return np.column_stack((values, loss))


def _balanced_subsample(
    is_member: BoolArray, max_per_side: int | None, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Indices, in random order, of as many members as non-members of one half: all of the smaller side if allowed."""
    members, non_members = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    per_side = min(len(members), len(non_members), len(is_member) if max_per_side is None else max_per_side // 2)
    chosen = [rng.permutation(side)[:per_side] for side in (members, non_members)]
    return rng.permutation(np.concatenate(chosen))

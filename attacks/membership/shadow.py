"""Membership inference learned on a shadow model, which is trained like the target, and transferred to the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from attacks.base import Attack, AttackError, AttackTarget, MembershipScores, ModelOutputs
from attacks.probabilities import class_probabilities

_TOP_POSTERIORS = 3
_L2 = 1e-6


@dataclass(frozen=True, kw_only=True)
class Shadow(Attack):
    """Fits a classifier on the members and non-members of one shadow model and applies it to the target.

    The shadow is trained by the target's own recipe on data disjoint from the target's. The target's membership labels are
    not used. Features are the three largest class probabilities in descending order (both, for two classes), in float64;
    the true label is not used. The score, higher for members, is the classifier's log-odds of membership, in nats. Only
    `train_shadow` is random.

    Source: Salem et al. 2019, "ML-Leaks", adversary 1. Deviations: the attack model is a softmax regression with an L2
    penalty of 1e-6 ‖W‖² on its mean cross-entropy; it is solved to the optimum, while the authors run 50 epochs of Adam
    (rate 0.01, batches of 10). The authors' public code fits on the target and applies to the shadow; this follows the
    paper.
    """

    family: ClassVar[str] = "membership"
    revision: ClassVar[int] = 2
    source: ClassVar[str] = "Salem et al. 2019 (adversary 1)"
    needs_shadow_data: ClassVar[bool] = True

    def run(self, target: AttackTarget, rng: np.random.Generator) -> list[MembershipScores]:
        """One `MembershipScores`, named `shadow`. Calls `target.train_shadow` once.

        Raises:
            AttackError: there is no shadow data; the target or the shadow has too few members or non-members; their
                numbers of classes differ; or outputs are unusable (see `class_probabilities`).
        """
        population = target.population
        self.check_population(int(population.is_member.sum()), int((~population.is_member).sum()))
        if target.train_shadow is None:
            raise AttackError(
                "The shadow attack trains a shadow model, and this target keeps no data for one. "
                "Choose a split with shadow data, or an attack that needs none, such as `threshold`."
            )
        population_features = _top_posteriors(population.outputs)
        shadow = target.train_shadow()
        self.check_population(int(shadow.is_member.sum()), int((~shadow.is_member).sum()))
        n_classes, n_shadow_classes = population.outputs.values.shape[1], shadow.outputs.values.shape[1]
        if n_shadow_classes != n_classes:
            raise AttackError(
                f"The shadow model answers with {n_shadow_classes} classes, the target with {n_classes}: "
                "the shadow must be trained by the target's recipe."
            )
        # Salem's two weight columns are w/2 and −w/2 at the optimum, so _L2 ‖W‖² = _L2 ‖w‖²/2. With the mean of n losses
        # this is scikit-learn's objective, ‖w‖²/2 + C · (sum of losses), for C = 1/(_L2 n).
        classifier = LogisticRegression(C=1 / (_L2 * len(shadow.outputs)), solver="newton-cholesky", max_iter=1000)
        classifier.fit(_top_posteriors(shadow.outputs), shadow.is_member)
        return [
            MembershipScores(
                name="shadow",
                example_id=population.outputs.example_id,
                is_member=population.is_member,
                score=classifier.decision_function(population_features),
            )
        ]


def _top_posteriors(outputs: ModelOutputs) -> npt.NDArray[np.float64]:
    """The largest class probabilities in descending order, (n, min(3, classes))."""
    probabilities = class_probabilities(outputs).astype(np.float64)
    return -np.sort(-probabilities, axis=1)[:, :_TOP_POSTERIORS]

"""Membership learned on a shadow model: train one like the target, see how it answers, transfer that."""

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
    """A classifier fitted on one shadow model's members and non-members, applied to the target's.

    The shadow is trained by the target's own recipe on data disjoint from the target's; the target's
    membership labels are used for nothing. Features are the three largest class probabilities, in
    descending order (both, for two classes), in float64; the true label is not looked at. The score,
    higher for members, is the classifier's log-odds of being a member, in nats. Nothing is random but
    what `train_shadow` does.

    Source: Salem et al. 2019, "ML-Leaks", adversary 1. Deviations: the attack model, a softmax
    regression with an L2 penalty of 1e-6 ‖W‖² on its mean cross-entropy, is solved to its optimum, where
    the authors take 50 epochs of Adam (rate 0.01, batches of 10). The authors' public code fits on the
    target and applies to the shadow; here it is the way the paper says.
    """

    family: ClassVar[str] = "membership"
    revision: ClassVar[int] = 2
    source: ClassVar[str] = "Salem et al. 2019 (adversary 1)"
    needs_shadow_data: ClassVar[bool] = True

    def run(self, target: AttackTarget, rng: np.random.Generator) -> list[MembershipScores]:
        """One `MembershipScores`, named `shadow`. Calls `target.train_shadow` once.

        Raises:
            AttackError: there is no shadow data, too few members or non-members of the target or of the
                shadow, the two differ in their classes, or outputs that cannot be used
                (`class_probabilities` says which).
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
        # Salem's two weight columns are w/2 and −w/2 at the optimum, so _L2 ‖W‖² is _L2 ‖w‖²/2. That
        # over a mean of n losses is scikit-learn's ‖w‖²/2 over C times their sum for C = 1/(_L2 n).
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
    """(n, min(3, classes)): the largest class probabilities, descending."""
    probabilities = class_probabilities(outputs).astype(np.float64)
    return -np.sort(-probabilities, axis=1)[:, :_TOP_POSTERIORS]

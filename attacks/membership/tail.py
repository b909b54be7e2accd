"""An estimate of a target's vulnerability to strong membership attacks, from the tail of its losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attacks.base import Attack, AttackResult, AttackTarget, TailEstimate
from attacks.metrics import membership_metrics
from attacks.probabilities import log_odds


@dataclass(frozen=True, kw_only=True)
class Tail(Attack):
    """Estimates how well a strong attack would do at a low FPR, from the losses of one target. No references are trained.

    Training removes the members' high losses: a non-member may have a loss above almost all members. The estimate is the
    true negative rate of the loss attack at a low false negative rate α: the share of non-members whose loss is higher than
    that of all but a share α of the members. If nothing leaks, it is α on average.

    **This is no attack.** It says of no example whether it is a member, and it needs the membership of all of them; so it has
    no AUC and is never compared with attacks in `best_of`. A high loss only shows that an example is *not* a member.

    The loss is ordered by the log-odds of the true label, as in `threshold`, so it does not saturate. The rate is the TPR at
    FPR α of `attacks.metrics.membership_metrics` with members and non-members swapped and the score negated: the threshold
    has an *expected* false negative rate of α, ties are broken at random, and the rate is None with fewer than 10/α members.
    Nothing is random.

    Source: Dodd, Krčo, Shilov & de Montjoye 2025, "The Tail Tells All" (arXiv 2510.19773). Over many models they find this
    rate to track the TPR of LiRA at a low FPR, by a curve that they fit. Deviations: no such curve is applied, so the rate
    ranks targets and is not itself that TPR; the threshold is set as above.
    """

    family: ClassVar[str] = "membership"
    result: ClassVar[type[AttackResult]] = TailEstimate
    source: ClassVar[str] = "Dodd et al. 2025"

    def run(self, target: AttackTarget, rng: np.random.Generator) -> list[TailEstimate]:
        """One `TailEstimate`.

        Raises:
            AttackError: there are too few members or non-members, or outputs are unusable (see `log_odds`).
        """
        outputs, is_member = target.population.outputs, target.population.is_member
        self.check_population(int(is_member.sum()), int((~is_member).sum()))
        _, label_odds = log_odds(outputs)
        swapped = membership_metrics(~is_member, -label_odds, rng)
        return [
            TailEstimate(
                n_members=swapped.n_non_members,
                n_non_members=swapped.n_members,
                tnr_at_fnr=swapped.tpr_at_fpr,
                tnr_at_fnr_interval=swapped.tpr_at_fpr_interval,
            )
        ]

"""A lower bound on ε from one training run. An upper bound proved by accounting must be at least as large.

An audit includes each canary in one training run by its own fair coin, then guesses from the result which are in. The more
guesses are right, the larger ε must be. This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, expit, logit
from scipy.stats import binom

from attacks.base import BoolArray, FloatArray, MembershipScores
from attacks.metrics import check_scores

DEFAULT_DELTA = 1e-5
"""δ of the audit if the training has no guarantee of its own."""

_TOLERANCE = 1e-7
"""Maximum distance of the returned ε below the true root."""


@dataclass(frozen=True, kw_only=True)
class OneRunAudit:
    """Result of an audit: ε is at least `epsilon_lower_bound`, at this δ and confidence.

    Of `n_guesses` guesses about `n_canaries` canaries, `n_right` were right. A bound of 0 proves neither a leak nor its
    absence.
    """

    epsilon_lower_bound: float
    delta: float
    confidence: float
    n_canaries: int
    n_guesses: int
    n_right: int


def audit_one_run(
    is_member: BoolArray,
    score: FloatArray,
    *,
    n_guesses_per_side: int,
    delta: float,
    confidence: float,
    rng: np.random.Generator,
) -> OneRunAudit:
    """Bound ε from below: guess "in" for the `n_guesses_per_side` highest scores and "out" for equally many lowest ones.

    `is_member` (canaries,) says which canaries were in. `score` (canaries,) is higher for canaries that look in. It may use
    everything that the training released and the canaries themselves, but never `is_member`. Canaries between the two sides
    are not guessed.

    The bound holds with probability `confidence` only if

    - each canary was in or out by its own fair coin. Halves of a fixed size are not coins; neither are a training set and
      a test set;
    - `n_guesses_per_side` was fixed before the scores were seen. There is then a single test and no correction. Choosing
      the best of several numbers on the same scores would need a correction, which is not made here.

    `rng` breaks ties, so the order of rows has no effect; nothing else is random.

    Raises:
        ValueError: the shapes differ, `is_member` is not boolean, a score is NaN (infinities are allowed), there are fewer
            canaries than guesses, or another number is out of range.

    Source: Steinke, Nasr & Jagielski 2023, Algorithm 1, with equal numbers of "in" and "out" guesses; their two numbers may
    differ.
    """
    return audit_runs(
        [(is_member, score)], n_guesses_per_side=n_guesses_per_side, delta=delta, confidence=confidence, rng=rng
    )


def audit_runs(
    runs: Sequence[tuple[BoolArray, FloatArray]],
    *,
    n_guesses_per_side: int,
    delta: float,
    confidence: float,
    rng: np.random.Generator,
) -> OneRunAudit:
    """Bound the ε that several runs of one training have in common: `audit_one_run` on the guesses of all runs together.

    `runs` has `is_member` and `score` of each run, as in `audit_one_run`; `n_guesses_per_side` is the number in each run.

    Take the runs as one: a canary of one run changes no other run, so that if each run is (ε, δ)-private for one canary, all
    of them together are so for one canary of one run. The theorem then holds for all canaries of all runs, with guesses that
    may use the outputs of every run. **It does not hold if a run's scores use the coins of another run in `runs`**, as
    references do. Two runs with the coins S and T, each guessed by the other's, would have all guesses right with probability
    ½, at any ε. So the scores of `runs` may only use references that are not themselves in `runs`, and every run must have
    coins of its own.

    Raises:
        ValueError: as `audit_one_run`.

    Source: Steinke, Nasr & Jagielski 2023, Theorem 5.2, applied to the runs' joint output. Joining the runs is ours.
    """
    n_canaries, n_right = 0, 0
    for is_member, score in runs:
        check_scores(is_member, score)
        if not 1 <= n_guesses_per_side <= len(score) // 2:
            raise ValueError(
                f"n_guesses_per_side is {n_guesses_per_side}; with {len(score)} canaries it must be from 1 to "
                f"{len(score) // 2}."
            )
        ascending = np.lexsort((rng.permutation(len(score)), score))
        guessed_out, guessed_in = ascending[:n_guesses_per_side], ascending[-n_guesses_per_side:]
        n_canaries += len(score)
        n_right += int(is_member[guessed_in].sum() + (~is_member[guessed_out]).sum())
    n_guesses = 2 * n_guesses_per_side * len(runs)
    return OneRunAudit(
        epsilon_lower_bound=one_run_epsilon(
            n_canaries=n_canaries, n_guesses=n_guesses, n_right=n_right, delta=delta, confidence=confidence
        ),
        delta=delta,
        confidence=confidence,
        n_canaries=n_canaries,
        n_guesses=n_guesses,
        n_right=n_right,
    )


def audit_membership(scores: MembershipScores, rng: np.random.Generator, delta: float = DEFAULT_DELTA) -> OneRunAudit:
    """Audit a membership attack's scores with settings fixed in advance; every example is a canary.

    A tenth of the examples is guessed "in" and a tenth "out", at 95 % confidence. Compare the bound with an ε at the same
    `delta`. `audit_one_run` states the conditions and the use of `rng`. The bound of a single score is valid; the largest of
    several bounds is not.

    Raises:
        ValueError: an example appears twice (it is only one canary), the scores were fitted on membership labels, or as
            `audit_one_run`.

    Deviation: a training on such a split computes its sample rate and number of steps from the number of members, as if that
    were public. Neighboring runs therefore also differ in these, by one part in the number of members.
    """
    n_examples = len(np.unique(scores.example_id))
    if n_examples < len(scores.example_id):
        raise ValueError(
            f"{len(scores.example_id)} rows are {n_examples} examples; each needs one score and its own coin."
        )
    if scores.fold is not None:
        raise ValueError(
            f"The score {scores.name!r} was fitted on membership labels; an audited score must not use them."
        )
    return audit_one_run(
        scores.is_member,
        scores.score,
        n_guesses_per_side=max(1, n_examples // 10),
        delta=delta,
        confidence=0.95,
        rng=rng,
    )


def one_run_epsilon(*, n_canaries: int, n_guesses: int, n_right: int, delta: float, confidence: float) -> float:
    """The largest ε that one run refutes at `confidence`, or 0: a lower bound on the training's ε.

    If the training is (ε, δ)-differentially private for adding or removing one canary, the bound exceeds ε with probability
    at most 1 − confidence. It is the largest ε whose `one_run_p_value` is at most 1 − confidence, approximated from below to
    10⁻⁷. At δ = 0 this is the logit of the Clopper–Pearson lower bound on the share of right guesses. O(n_guesses).

    Raises:
        ValueError: not 0 ≤ n_right ≤ n_guesses ≤ n_canaries, no guess, not 0 ≤ delta < 1, or not 0 < confidence < 1.

    Source: Steinke, Nasr & Jagielski 2023, the code of Appendix D. Their bisection widens its bracket step by step. Here its
    upper end is the bound at δ = 0, which the bound at any other δ does not exceed.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be above 0 and below 1.")
    _check(n_canaries, n_guesses, n_right, delta)
    significance = 1 - confidence

    def refuted(epsilon: float) -> bool:
        p_value = one_run_p_value(epsilon, n_canaries=n_canaries, n_guesses=n_guesses, n_right=n_right, delta=delta)
        return p_value <= significance

    if n_right == 0:
        return 0.0
    # P[Bin(r, q) ≥ v] is the incomplete beta function I_q(v, r − v + 1).
    without_delta = max(0.0, float(logit(betaincinv(n_right, n_guesses - n_right + 1, significance))))
    if delta == 0 or without_delta == 0:
        return without_delta
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, without_delta
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def one_run_p_value(epsilon: float, *, n_canaries: int, n_guesses: int, n_right: int, delta: float) -> float:
    """Upper bound on the probability of at least `n_right` right guesses in one run of an (ε, δ)-private training.

    With m canaries, each in by its own fair coin, r guesses of which v are right, and Q ~ Bin(r, e^ε / (1 + e^ε)):

        β = P[Q ≥ v],   A = max over 1 ≤ i ≤ v of P[v > Q ≥ v − i] / i,   p = min(1, β + 2 m δ A)

    Canaries without a guess have no cost at δ = 0; otherwise they count in m. O(n_guesses).

    Raises:
        ValueError: `epsilon` is negative, or as `one_run_epsilon`.

    Source: Steinke, Nasr & Jagielski 2023, section 5 and the code of Appendix D. No deviation.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon is {epsilon}; it must be zero or more.")
    _check(n_canaries, n_guesses, n_right, delta)
    share_right = expit(epsilon)
    p_value = float(binom.sf(n_right - 1, n_guesses, share_right))
    if delta > 0 and n_right > 0:
        just_below = binom.pmf(np.arange(n_right - 1, -1, -1), n_guesses, share_right).cumsum()
        p_value += 2 * n_canaries * delta * float((just_below / np.arange(1, n_right + 1)).max())
    return min(1.0, p_value)


def _check(n_canaries: int, n_guesses: int, n_right: int, delta: float) -> None:
    for name, count in (("n_canaries", n_canaries), ("n_guesses", n_guesses), ("n_right", n_right)):
        if not (math.isfinite(count) and count == int(count)):
            raise ValueError(f"{name} is {count}; it must be a whole number.")
    if not (1 <= n_guesses <= n_canaries and 0 <= n_right <= n_guesses):
        raise ValueError(
            f"{n_right} right of {n_guesses} guesses about {n_canaries} canaries is impossible: there must be at least one guess, "
            "at most one per canary, and at most as many right ones."
        )
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}; it must be from 0 to below 1.")

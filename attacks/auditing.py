"""A lower bound on ε from one training run, which an upper bound proved by accounting must exceed.

An audit puts canaries into one training run, each by its own fair coin, and guesses from the result which are
in. The more guesses are right, the larger ε must be. This module imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, expit, logit
from scipy.stats import binom

from attacks.base import BoolArray, FloatArray, MembershipScores
from attacks.metrics import check_scores

DEFAULT_DELTA = 1e-5
"""δ at which a training without a guarantee of its own is audited."""

_TOLERANCE = 1e-7
"""How far below the true root the returned ε may lie."""


@dataclass(frozen=True, kw_only=True)
class OneRunAudit:
    """What one training run proves about its ε: at least `epsilon_lower_bound`, at this δ and confidence.

    Of `n_guesses` guesses about `n_canaries` canaries `n_right` were right. A bound of 0 proves nothing, neither
    a leak nor its absence.
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
    """Guess the `n_guesses_per_side` highest scores in and as many lowest out, and bound ε from below.

    `is_member` (canaries,) says which canaries were in. `score` (canaries,) is higher for those that look in; it
    may use all that the training released and the canaries themselves, never `is_member`. Canaries between the
    two sides are left unguessed.

    The bound holds with probability `confidence` only if

    - each canary was in or out by its own fair coin: halves of a fixed size, or a training set against a test
      set, are no coins;
    - `n_guesses_per_side` was fixed before the scores were seen. Then there is one test and nothing to correct
      for; taking the best of several numbers on the same scores needs a correction that is not made here.

    `rng` decides between equal scores, so that the order of the rows tells nothing; nothing else is random.

    Raises:
        ValueError: the shapes differ, `is_member` is not boolean, a score is NaN (infinities are fine), there are
            fewer canaries than guesses, or another number is out of its range.

    Source: Steinke, Nasr & Jagielski 2023, Algorithm 1, with as many guesses of "in" as of "out"; there the two
    numbers are free.
    """
    check_scores(is_member, score)
    n_canaries = len(score)
    if not 1 <= n_guesses_per_side <= n_canaries // 2:
        raise ValueError(
            f"n_guesses_per_side is {n_guesses_per_side}; with {n_canaries} canaries it must be from 1 to "
            f"{n_canaries // 2}."
        )
    ascending = np.lexsort((rng.permutation(n_canaries), score))
    guessed_out, guessed_in = ascending[:n_guesses_per_side], ascending[-n_guesses_per_side:]
    n_right = int(is_member[guessed_in].sum() + (~is_member[guessed_out]).sum())
    n_guesses = 2 * n_guesses_per_side
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
    """The audit of a membership attack's scores, every example a canary, with choices made beforehand.

    A tenth of the examples is guessed in and a tenth out, at 95 % confidence; compare the bound with an ε at the same
    `delta`. See `audit_one_run` for what must hold and `rng`. One bound of one score holds; the largest of several
    does not.

    Raises:
        ValueError: an example comes twice, which is one canary and no two, the scores were fitted on membership labels,
            or as `audit_one_run`.

    Deviation: a training on the members of such a split takes its sample rate and number of steps from how many they
    are, as if that were public, so neighboring runs differ by one part in the number of members in these too.
    """
    n_examples = len(np.unique(scores.example_id))
    if n_examples < len(scores.example_id):
        raise ValueError(
            f"{len(scores.example_id)} rows are {n_examples} examples; each needs one score and one coin of its own."
        )
    if scores.fold is not None:
        raise ValueError(f"The score {scores.name!r} was fitted on membership labels; an audit's may not use them.")
    return audit_one_run(
        scores.is_member,
        scores.score,
        n_guesses_per_side=max(1, n_examples // 10),
        delta=delta,
        confidence=0.95,
        rng=rng,
    )


def one_run_epsilon(*, n_canaries: int, n_guesses: int, n_right: int, delta: float, confidence: float) -> float:
    """The largest ε that one run refutes at `confidence`: a lower bound on the ε of the training, 0 if none.

    If the training is (ε, δ)-differentially private for adding or removing one canary, the bound exceeds ε with
    probability at most 1 − confidence. It is the largest ε whose `one_run_p_value` is at most 1 − confidence, to
    10⁻⁷ from below. At δ = 0 that is the logit of the Clopper–Pearson lower bound on the share of right guesses.
    O(n_guesses).

    Raises:
        ValueError: not 0 ≤ n_right ≤ n_guesses ≤ n_canaries with a guess at least, not 0 ≤ delta < 1, or not
            0 < confidence < 1.

    Source: Steinke, Nasr & Jagielski 2023, the code of Appendix D. Their bisection widens its bracket step by
    step; here the bound at δ = 0, which no δ exceeds, is its upper end.
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
    """At most this likely are so many right guesses in one run of an (ε, δ)-differentially private training.

    With m canaries, each in by its own fair coin, r guesses and v of them right, Q ~ Bin(r, e^ε / (1 + e^ε)):

        β = P[Q ≥ v],   A = max over 1 ≤ i ≤ v of P[v > Q ≥ v − i] / i,   p = min(1, β + 2 m δ A)

    Canaries left unguessed cost nothing at δ = 0, and count in m otherwise. O(n_guesses).

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
            f"{n_right} right of {n_guesses} guesses about {n_canaries} canaries cannot be: there must be a guess, "
            "at most one for each canary, and at most all of them right."
        )
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}; it must be from 0 to below 1.")

"""One-run audits of ε: equal to other implementations, valid as proved, and able to catch a broken DP-SGD.

The statistical tests state how often a correct implementation would fail them. Their seeds are fixed, so
they do not flicker.
"""

from __future__ import annotations

import json
import math
import pathlib
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binom
from torch import nn
from torch.nn.functional import cross_entropy

from attacks.auditing import OneRunAudit, audit_one_run, one_run_epsilon, one_run_p_value
from models.private.accounting import epsilon
from models.private.gradients import PrivateGradient
from models.private.rules import ClipThenNoise, Rule

GOLDEN = json.loads((pathlib.Path(__file__).parent / "data" / "golden" / "onerun_audit.json").read_text())
ROWS = [dict(zip(GOLDEN["columns"], row, strict=True)) for row in GOLDEN["rows"]]
RUN = ("n_canaries", "n_guesses", "n_right", "delta")


def rng(seed=0):
    return np.random.default_rng(seed)


# Other implementations


def test_bounds_and_p_values_equal_both_peers_on_every_row():
    """The peers stop their search at a width of 1e-5 (the file says which they are)."""
    assert len(ROWS) == 210
    for row in ROWS:
        run = {key: row[key] for key in RUN}
        ours = one_run_epsilon(**run, confidence=row["confidence"])
        for peer in ("paper", "jax"):
            assert ours == pytest.approx(row[f"epsilon_{peer}"], abs=2e-5), row
            for at in (0, 1, 4):
                expected = row[f"p_value_{peer}_at_epsilon_{at}"]
                assert one_run_p_value(at, **run) == pytest.approx(expected, rel=1e-9, abs=0), row


@pytest.mark.parametrize(
    ("n_canaries", "delta", "expected"), [(100, 0.0, 0.702), (100, 1e-4, 0.699), (1000, 1e-4, 0.673)]
)
def test_the_papers_own_examples(n_canaries, delta, expected):
    """Steinke, Nasr & Jagielski 2023, Appendix D: 75 right of 100 guesses, 95 %, three decimals."""
    bound = one_run_epsilon(n_canaries=n_canaries, n_guesses=100, n_right=75, delta=delta, confidence=0.95)
    assert bound == pytest.approx(expected, abs=1e-3)


# Properties


@st.composite
def runs(draw):
    n_canaries = draw(st.integers(1, 3000))
    n_guesses = draw(st.integers(1, n_canaries))
    return {
        "n_canaries": n_canaries,
        "n_guesses": n_guesses,
        "n_right": draw(st.integers(n_guesses // 2, n_guesses)),
        "delta": draw(st.sampled_from([0.0, 1e-6, 1e-5, 1e-3, 0.1])),
    }


confidences = st.sampled_from([0.9, 0.95, 0.999])


@given(runs(), confidences)
@settings(max_examples=150, deadline=None)
def test_the_bound_is_where_the_p_value_crosses_the_significance(run, confidence):
    bound = one_run_epsilon(**run, confidence=confidence)
    assert bound >= 0
    if bound > 1e-9:
        assert one_run_p_value(bound - 1e-9, **run) <= 1 - confidence
    for further in (1e-6, 0.01, 1, 10):
        assert one_run_p_value(bound + further, **run) > 1 - confidence


@given(runs(), confidences)
@settings(max_examples=100, deadline=None)
def test_more_evidence_raises_the_bound_and_more_doubt_lowers_it(run, confidence):
    bound = one_run_epsilon(**run, confidence=confidence)
    less_evidence = [
        {"n_right": run["n_right"] - 1},
        {"delta": 2 * run["delta"] + 1e-7},
        {"confidence": (1 + confidence) / 2},
        {"n_canaries": 2 * run["n_canaries"]},
    ]
    for change in less_evidence:
        if change.get("n_right", 0) >= 0:
            assert one_run_epsilon(**(run | {"confidence": confidence} | change)) <= bound + 1e-6, change


@given(runs(), confidences)
@settings(max_examples=100, deadline=None)
def test_the_bound_stays_below_the_point_estimate_and_is_zero_for_half_right(run, confidence):
    right, wrong = run["n_right"], run["n_guesses"] - run["n_right"]
    bound = one_run_epsilon(**run, confidence=confidence)
    if wrong:
        assert bound <= max(0, math.log(max(right, 1) / wrong))
    for few in (0, run["n_guesses"] // 4, run["n_guesses"] // 2):
        assert one_run_epsilon(**(run | {"n_right": few}), confidence=confidence) == 0


@pytest.mark.parametrize(("n_guesses", "confidence"), [(1, 0.95), (10, 0.95), (1000, 0.999), (100_000, 0.95)])
def test_all_right_without_delta_has_a_closed_form(n_guesses, confidence):
    """P[Q = r] = (e^ε / (1 + e^ε))^r = 1 − confidence."""
    share = (1 - confidence) ** (1 / n_guesses)
    expected = max(0, math.log(share / (1 - share)))
    bound = one_run_epsilon(
        n_canaries=n_guesses, n_guesses=n_guesses, n_right=n_guesses, delta=0.0, confidence=confidence
    )
    assert bound == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("true_epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 2e-3])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_the_bound_exceeds_the_true_epsilon_no_more_often_than_promised(true_epsilon, delta, confidence):
    """Exact, for an (ε, δ)-DP mechanism whose number of right guesses has a known distribution.

    Randomized response on m canaries, all guessed; with probability mδ/i it tells all about i random ones, so it
    betrays each with probability δ.
    """
    n_canaries = 100
    right = np.arange(n_canaries + 1)
    bounds = np.array(
        [
            one_run_epsilon(
                n_canaries=n_canaries, n_guesses=n_canaries, n_right=int(v), delta=delta, confidence=confidence
            )
            for v in right
        ]
    )
    too_high = bounds > true_epsilon
    assert too_high.any() or delta > 1e-5
    share = expit(true_epsilon)
    for n_told in (1, 2, 5, 10, 20, 50, 100):
        betrayal = n_canaries * delta / n_told
        probability = (1 - betrayal) * binom.pmf(right, n_canaries, share)
        probability += betrayal * binom.pmf(right - n_told, n_canaries - n_told, share)
        assert probability.sum() == pytest.approx(1)
        assert probability[too_high].sum() <= 1 - confidence


# Guessing from scores


def test_the_highest_scores_are_guessed_in_and_the_lowest_out():
    is_member = np.array([True, False, True, True, False, False, True, False])
    score = np.array([9.0, 8.0, 7.0, 4.0, 5.0, 1.0, -np.inf, -2.0])
    audit = audit_one_run(is_member, score, n_guesses_per_side=3, delta=1e-5, confidence=0.9, rng=rng())
    # Guessed in: rows 0, 1, 2, of which two are in; guessed out: rows 5, 6, 7, of which two are out.
    assert audit == OneRunAudit(
        epsilon_lower_bound=0.0, delta=1e-5, confidence=0.9, n_canaries=8, n_guesses=6, n_right=4
    )


def test_the_bound_of_scores_is_the_bound_of_their_right_guesses():
    is_member = rng(1).random(1000) < 0.5
    score = rng(2).normal(size=1000) + 2 * is_member
    audit = audit_one_run(is_member, score, n_guesses_per_side=150, delta=1e-5, confidence=0.95, rng=rng())
    assert 0.8 * 300 < audit.n_right < 300
    expected = one_run_epsilon(n_canaries=1000, n_guesses=300, n_right=audit.n_right, delta=1e-5, confidence=0.95)
    assert audit.epsilon_lower_bound == expected > 1


@pytest.mark.parametrize("members_first", [True, False])
def test_equal_scores_tell_nothing_whatever_the_order_of_the_rows(members_first):
    """Twenty audits at 99.99 %: false alarm 2e-3 in all. Ties kept in order would be right in one of the orders."""
    is_member = (np.arange(2000) < 1000) == members_first
    for seed in range(20):
        audit = audit_one_run(
            is_member, np.zeros(2000), n_guesses_per_side=500, delta=0.0, confidence=0.9999, rng=rng(seed)
        )
        assert audit.epsilon_lower_bound == 0


@pytest.mark.parametrize("true_epsilon", [0.0, 1.0])
def test_audits_of_randomized_response_hold_as_often_as_promised(true_epsilon):
    """Binary scores, 400 runs of 100 canaries at 90 %, against the binomial (false alarm 1e-4)."""
    repeats, too_high = 400, 0
    for repeat in range(repeats):
        generator = rng([7, repeat])
        is_member = generator.random(100) < 0.5
        told = np.where(generator.random(100) < expit(true_epsilon), is_member, ~is_member)
        audit = audit_one_run(
            is_member, told.astype(float), n_guesses_per_side=25, delta=0.0, confidence=0.9, rng=generator
        )
        too_high += audit.epsilon_lower_bound > true_epsilon
    assert 0 < too_high <= binom.ppf(1 - 1e-4, repeats, 0.1)


# What is refused


RIGHT_RUN = {"n_canaries": 100, "n_guesses": 50, "n_right": 40, "delta": 1e-5, "confidence": 0.95}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_guesses": 101}, "40 right of 101 guesses about 100 canaries is impossible"),
        ({"n_guesses": 0, "n_right": 0}, "there must be at least one guess"),
        ({"n_right": 51}, "51 right of 50 guesses"),
        ({"n_right": -1}, "-1 right of 50 guesses"),
        ({"n_right": 40.5}, r"n_right is 40.5; it must be a whole number"),
        ({"n_canaries": math.inf}, "n_canaries is inf; it must be a whole number"),
        ({"delta": -1e-9}, "delta is -1e-09"),
        ({"delta": 1.0}, "delta is 1.0; it must be from 0 to below 1"),
        ({"delta": math.nan}, "delta is nan"),
        ({"confidence": 0.0}, "confidence is 0.0; it must be above 0 and below 1"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"confidence": 95}, "confidence is 95"),
    ],
)
def test_a_run_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        one_run_epsilon(**(RIGHT_RUN | change))
    if "confidence" not in change:
        run = {key: (RIGHT_RUN | change)[key] for key in RUN}
        with pytest.raises(ValueError, match=message):
            one_run_p_value(1.0, **run)


@pytest.mark.parametrize("negative", [-0.1, math.nan])
def test_an_epsilon_below_zero_is_refused(negative):
    with pytest.raises(ValueError, match=r"epsilon is .*; it must be zero or more"):
        one_run_p_value(negative, **{key: RIGHT_RUN[key] for key in RUN})


@pytest.mark.parametrize(
    ("is_member", "score", "n_guesses_per_side", "message"),
    [
        ([True, False], [1.0, 0.0, 0.5], 1, "one shape"),
        ([1, 0, 1], [1.0, 0.0, 0.5], 1, "must be boolean"),
        ([True, False, True], [1.0, np.nan, 0.5], 1, "1 of 3 scores are NaN"),
        ([True, False, True], [1.0, 0.0, 0.5], 2, "with 3 canaries it must be from 1 to 1"),
        ([True, False, True], [1.0, 0.0, 0.5], 0, "n_guesses_per_side is 0"),
    ],
)
def test_scores_that_cannot_be_audited_are_refused(is_member, score, n_guesses_per_side, message):
    with pytest.raises(ValueError, match=message):
        audit_one_run(
            np.array(is_member),
            np.array(score),
            n_guesses_per_side=n_guesses_per_side,
            delta=0.0,
            confidence=0.95,
            rng=rng(),
        )


def test_the_audit_imports_no_torch():
    program = "import sys, attacks.auditing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# DP-SGD: private gradients against their accounting

N_CANARIES, GUESSES_PER_SIDE = 4000, 400
NOISE_MULTIPLIER, SAMPLE_RATE, STEPS = 3.5, 0.25, 30
DELTA, CONFIDENCE = 1e-6, 0.999
CLAIMED_EPSILON = epsilon(NOISE_MULTIPLIER, SAMPLE_RATE, STEPS, DELTA, "prv")


@dataclass(frozen=True, kw_only=True)
class NoiseWithoutClipping(Rule):
    """A broken rule: it adds noise, but does not clip."""

    initial_clip_norm: float = 1.0

    def weigh(
        self, norms: torch.Tensor, clip_norms: torch.Tensor, draws: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(norms), torch.zeros_like(norms[:, 0])


def dp_sgd(noise_multiplier: float) -> Rule:
    return ClipThenNoise(max_grad_norm=1.0, noise_scale=noise_multiplier)


def audited_epsilon(rule: Rule, sample_rate: float = SAMPLE_RATE) -> float:
    """The lower bound on ε of one training, in which each canary was by its own fair coin.

    A linear model; each canary is one input coordinate with a random label, so no other canary's gradient moves
    its loss, and only it and the noise do. Its gradient's norm stays several times the clip norm throughout. The
    score is minus the loss under the final model.
    """
    generator = rng(2023)
    is_member = generator.random(N_CANARIES) < 0.5
    labels = torch.from_numpy(generator.integers(2, size=N_CANARIES))
    scale = 10.0
    images = scale * torch.eye(N_CANARIES)
    model = nn.Linear(N_CANARIES, 2, bias=False)
    nn.init.zeros_(model.weight)
    expected_batch_size = SAMPLE_RATE * N_CANARIES / 2
    private = PrivateGradient(model, rule, expected_batch_size, torch.Generator().manual_seed(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03 * expected_batch_size / (scale * STEPS))
    for _ in range(STEPS):
        batch = torch.from_numpy(is_member & (generator.random(N_CANARIES) < sample_rate))
        private.step(images[batch], labels[batch])
        optimizer.step()
    private.close()
    with torch.no_grad():
        loss = cross_entropy(model(images), labels, reduction="none")
    return audit_one_run(
        is_member,
        -loss.double().numpy(),
        n_guesses_per_side=GUESSES_PER_SIDE,
        delta=DELTA,
        confidence=CONFIDENCE,
        rng=generator,
    ).epsilon_lower_bound


def test_the_audit_of_dp_sgd_is_below_the_accounted_epsilon_and_not_idle():
    """A correct mechanism and accounting fail this test with probability at most 0.1 % (a bound at 99.9 %)."""
    assert 1.8 < CLAIMED_EPSILON < 2
    assert 0.1 < audited_epsilon(dp_sgd(NOISE_MULTIPLIER)) < CLAIMED_EPSILON


def test_the_audit_catches_missing_noise():
    """Without noise, the bound, at 99.9 %, is more than twice the accounting's claim."""
    assert audited_epsilon(dp_sgd(0.0)) > 2 * CLAIMED_EPSILON


@pytest.mark.parametrize(
    ("rule", "sample_rate"),
    [
        pytest.param(dp_sgd(NOISE_MULTIPLIER / 4), SAMPLE_RATE, id="a quarter of the noise"),
        pytest.param(NoiseWithoutClipping(noise_scale=NOISE_MULTIPLIER), SAMPLE_RATE, id="no clipping"),
        pytest.param(dp_sgd(NOISE_MULTIPLIER), 1.0, id="full batches accounted as sampled"),
    ],
)
def test_the_audit_catches_a_mechanism_that_is_not_what_was_accounted(rule, sample_rate):
    """The check above detects it: the bound, at 99.9 %, is above the claimed ε."""
    assert audited_epsilon(rule, sample_rate) > 1.1 * CLAIMED_EPSILON

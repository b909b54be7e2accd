"""What several private runs spend together: Rényi divergences add up over runs that share no randomness."""

from __future__ import annotations

import pandas as pd
import pytest
from opacus.accountants import RDPAccountant

from analysis.measure.composition import joint_epsilon, sharing
from models.private.accounting import PrivacyAccounting


def accounting(noise_multiplier, sample_rate):
    return PrivacyAccounting(
        epsilon_target=None,
        delta=1e-5,
        accountant="rdp",
        noise_multiplier=noise_multiplier,
        max_grad_norm=1.0,
        sample_rate=sample_rate,
    )


RUNS = [(1.1, 0.02, 500), (0.8, 0.02, 400), (2.5, 0.1, 100)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_is_what_the_accountant_gives_for_all_steps_of_all_runs(count):
    curves = [accounting(noise, rate).rdp(steps) for noise, rate, steps in RUNS[:count]]
    reference = RDPAccountant()
    reference.history = RUNS[:count]
    assert joint_epsilon(curves, 1e-5) == pytest.approx(reference.get_epsilon(1e-5), rel=1e-9)


def test_one_run_spends_what_its_guarantee_says_and_several_less_than_their_sum():
    curves = [accounting(noise, rate).rdp(steps) for noise, rate, steps in RUNS]
    alone = [accounting(noise, rate).guarantee(steps).epsilon for noise, rate, steps in RUNS]
    for curve, epsilon in zip(curves, alone, strict=True):
        assert joint_epsilon([curve], 1e-5) == pytest.approx(epsilon, rel=1e-9)
    assert max(alone) < joint_epsilon(curves, 1e-5) < sum(alone)


def test_nothing_in_common_gives_nothing():
    assert joint_epsilon([], 1e-5) is None
    assert joint_epsilon([[{"order": 2.0, "divergence": 1.0}], [{"order": 3.0, "divergence": 1.0}]], 1e-5) is None


def test_no_epsilon_is_negative():
    assert joint_epsilon([[{"order": 64.0, "divergence": 0.0}]], 0.99) == 0


def test_paired_runs_of_one_seed_share_their_batches():
    rows = pd.DataFrame({"seed": [0, 0, 1, 1, 2], "paired_batches": [True, True, True, False, None]})
    assert sharing(rows).tolist() == [True, True, False, False, False]

"""Privacy accounting: equal to Opacus, never below the tight bound, and noise that keeps its promise."""

from __future__ import annotations

import csv
import itertools
import math
import pathlib
from statistics import NormalDist

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr

from models.private import accounting, composition
from models.private.accounting import (
    ACCOUNTANTS,
    PrivacyAccounting,
    epsilon,
    find_noise_multiplier,
)

GOLDEN = pathlib.Path(__file__).parent / "data" / "golden"
DELTA = 1e-5


def golden_rows(name):
    """Rows of numbers; the file's comment names the peers and their versions."""
    with (GOLDEN / name).open() as file:
        lines = itertools.dropwhile(lambda line: line.startswith("#"), file)
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]


GRID = golden_rows("accounting_grid.csv")
NOISE = golden_rows("accounting_noise_multiplier.csv")


def epsilon_of(row, accountant):
    return epsilon(row["sigma"], row["B"] / row["N"], int(row["steps"]), DELTA, accountant)


def named(row):
    return "N{N:g}-B{B:g}-epochs{epochs:g}".format(**row)


def test_rdp_equals_opacus_on_the_whole_grid_and_stays_above_the_tight_bound():
    assert len(GRID) == 480
    for row in GRID:
        ours = epsilon_of(row, "rdp")
        assert ours == pytest.approx(row["opacus_rdp"], rel=1e-8), row
        assert ours > 0.99 * row["dpacc_pld"], row


@pytest.mark.parametrize("row", GRID[11::31], ids=lambda row: f"{named(row)}-sigma{row['sigma']:g}")
def test_prv_equals_opacus_on_a_spread_of_the_grid_and_stays_above_the_tight_bound(row):
    ours = epsilon_of(row, "prv")
    # The meshes have the same width but different starting points.
    assert ours == pytest.approx(row["opacus_prv"], rel=1e-5)
    assert 0.99 * row["dpacc_pld"] < ours < row["opacus_rdp"]


def test_the_spread_covers_every_noise_and_length_of_the_grid():
    chosen = GRID[11::31]
    for column in ("sigma", "epochs"):
        assert {row[column] for row in chosen} == {row[column] for row in GRID}


@pytest.mark.parametrize(("accountant", "steps", "expected"), [("rdp", 2250, 7.32911), ("prv", 2249, 6.77740)])
def test_opacus_own_test_vectors(accountant, steps, expected):
    """Opacus 1.6.0, tests/accountants_test.py: noise 1.5, rate 0.04, 90 epochs, delta 1e-5.

    Its RDP test takes int(90 / 0.04) = 2250 steps, its PRV and Gaussian DP tests int(90 // 0.04) = 2249.
    """
    assert epsilon(1.5, 0.04, steps, DELTA, accountant) == pytest.approx(expected, abs=5e-6)


def test_more_noise_fewer_steps_and_a_smaller_rate_cost_less():
    for accountant in ACCOUNTANTS:
        base = epsilon(1.0, 0.05, 200, DELTA, accountant)
        assert epsilon(1.1, 0.05, 200, DELTA, accountant) < base
        assert epsilon(1.0, 0.05, 199, DELTA, accountant) < base
        assert epsilon(1.0, 0.049, 200, DELTA, accountant) < base
        assert epsilon(1.0, 0.05, 200, 1e-6, accountant) > base
        assert epsilon(1.0, 0.05, 0, DELTA, accountant) == 0


@pytest.mark.parametrize(
    ("noise_multiplier", "sample_rate", "steps", "delta", "expected"),
    [
        (0.909, 1.1e-4, 598, 1.1e-4, 0.017551248),
        (1.0, 1e-4, 600, 1e-4, 0.015551410),
        (2.0, 5e-4, 500, 1e-5, 0.026011819),
    ],
)
def test_rare_sampling_is_accounted_as_by_opacus(noise_multiplier, sample_rate, steps, delta, expected):
    """Opacus 1.6.0's PRV accountant; dp-accounting's PLD gives 0.0072921, 0.0054125 and 0.0160247."""
    assert epsilon(noise_multiplier, sample_rate, steps, delta, "prv") == pytest.approx(expected, abs=1e-6)


# The search for the noise


@pytest.mark.parametrize("row", NOISE[::6], ids=lambda row: f"{named(row)}-epsilon{row['target_epsilon']:g}")
def test_the_noise_found_keeps_epsilon_below_the_target_and_wastes_little(row):
    target, sample_rate, steps = row["target_epsilon"], row["B"] / row["N"], int(row["steps"])
    found = find_noise_multiplier(target, sample_rate, steps, DELTA, "rdp")
    assert 0.999 * target <= epsilon(found, sample_rate, steps, DELTA, "rdp") <= target
    # Opacus stops at 1e-4 of epsilon, on the safe side; ours at 1e-4 of the noise.
    assert found == pytest.approx(row["opacus_rdp_tol1e4"], rel=5e-4)
    assert found > 0.999 * row["dpacc_pld"]
    assert epsilon(found * 0.9998, sample_rate, steps, DELTA, "rdp") > target


@pytest.mark.parametrize(("target", "sample_rate", "steps"), [(8.0, 0.04, 2250), (0.05, 0.1, 20)])
def test_the_noise_found_with_prv_keeps_the_same_promise(target, sample_rate, steps):
    found = find_noise_multiplier(target, sample_rate, steps, DELTA, "prv")
    assert 0.999 * target <= epsilon(found, sample_rate, steps, DELTA, "prv") <= target
    if target == 8:  # Opacus 1.6.0 finds 1.34766 with its tolerance of 0.01 in epsilon
        assert found == pytest.approx(1.34766, rel=2e-3)


def test_the_noises_of_a_whole_sweep_take_one_composition_each(monkeypatch):
    """Compositions are expensive; the search uses the line integral, which takes a hundredth of the time."""
    composed = []

    def watched(*args):
        composed.append(args)
        return whole(*args)

    whole = composition.epsilon
    monkeypatch.setattr(composition, "epsilon", watched)
    epsilon.cache_clear()
    find_noise_multiplier.cache_clear()
    for n_train in (15_000, 50_000):
        for target in (2.0, 4.0, 8.0):
            sample_rate, steps = 200 / n_train, 30 * n_train // 200
            found = find_noise_multiplier(target, sample_rate, steps, DELTA, "prv")
            assert 0.9995 * target <= epsilon(found, sample_rate, steps, DELTA, "prv") <= target
            assert float(f"{found:.6g}") == found
    assert len(composed) == 6


@pytest.mark.slow
@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("target", [300.0, 500.0, 600.0, 1000.0])
@pytest.mark.parametrize(("sample_rate", "steps"), [(1.0, 1), (0.1, 50), (0.01, 1000)])
def test_large_targets_are_reached_or_refused_with_what_can_be(accountant, target, sample_rate, steps):
    if accountant == "prv" and target > 500:
        with pytest.raises(ValueError, match=r"goes up to 500. Ask for less, or use accountant rdp"):
            find_noise_multiplier(target, sample_rate, steps, DELTA, accountant)
        return
    found = find_noise_multiplier(target, sample_rate, steps, DELTA, accountant)
    assert 0.999 * target <= epsilon(found, sample_rate, steps, DELTA, accountant) <= target


def test_a_target_within_the_error_of_prv_is_too_small():
    with pytest.raises(
        ValueError, match=r"epsilon 0.01 cannot be reached .* does not fall below 0.015 .* Ask for more"
    ):
        find_noise_multiplier(0.01, 0.01, 1000, DELTA, "prv")


@pytest.mark.parametrize("delta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_a_large_delta_gives_no_negative_epsilon_and_reaches_small_ones(accountant, delta):
    for noise_multiplier in (0.3, 1.0, 3.0, 100.0):
        assert epsilon(noise_multiplier, 0.1, 100, delta, accountant) >= 0
    assert epsilon(100.0, 0.1, 100, delta, accountant) == 0
    found = find_noise_multiplier(1.0, 0.1, 100, delta, accountant)
    assert 0.99 <= epsilon(found, 0.1, 100, delta, accountant) <= 1


def test_a_target_that_needs_no_noise_is_refused_with_what_can_be_reached():
    with pytest.raises(
        ValueError, match=r"epsilon 100000 .* rdp accountant: over 1 steps .* 5612 needs next to no noise"
    ):
        find_noise_multiplier(1e5, 1.0, 1, DELTA, "rdp")
    with pytest.raises(ValueError, match=r"prv accountant, which goes up to 500. Ask for less, or use accountant rdp"):
        find_noise_multiplier(1e5, 1.0, 1, DELTA, "prv")


# Small δ


def gaussian_epsilon(noise_multiplier, steps, delta):
    """Without sampling: Balle & Wang 2018, Theorem 5, in logarithms."""
    mean = math.sqrt(steps) / noise_multiplier

    def excess(value):
        first, second = log_ndtr(mean / 2 - value / mean), value + log_ndtr(-mean / 2 - value / mean)
        return first + math.log1p(-math.exp(second - first)) - math.log(delta)

    return brentq(excess, 1e-9, 5000)


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-10, 1e-14, 1e-50, 1e-150])
@pytest.mark.parametrize(("noise_multiplier", "steps"), [(5.0, 10), (0.5, 1), (1.0, 20)])
def test_prv_is_the_closed_form_of_gaussian_steps_at_any_delta(noise_multiplier, steps, delta):
    truth = gaussian_epsilon(noise_multiplier, steps, delta)
    # its error of 0.01, and its thousandth of δ
    assert truth + 0.01 <= epsilon(noise_multiplier, 1.0, steps, delta, "prv") <= truth + 0.014


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise_multiplier", "sample_rate", "steps"),
    [(4.0, 0.00033, 10_000), (1.0, 0.01, 1000), (0.8, 1 / 300, 1000), (2.0, 0.1, 50), (0.8, 0.5, 3)],
)
def test_a_smaller_delta_never_has_a_smaller_epsilon(noise_multiplier, sample_rate, steps):
    deltas = [10 ** (-exponent / 3) for exponent in (1, 4, 9, 15, 24, *range(31, 46), 60, 90)]
    spent = [epsilon(noise_multiplier, sample_rate, steps, delta, "prv") for delta in deltas]
    assert all(before <= after + 1e-9 for before, after in itertools.pairwise(spent))
    for delta, prv in list(zip(deltas, spent, strict=True))[2::4]:
        assert prv <= epsilon(noise_multiplier, sample_rate, steps, delta, "rdp") + 0.01
        # the same δ by the line integral, which has no mesh and no error to add
        mechanism = composition.Steps(noise_multiplier, sample_rate, steps)
        log_delta = composition.log_delta(mechanism, prv - 0.01, accounting._tilt(mechanism, delta))
        if log_delta is not None:
            assert log_delta == pytest.approx(math.log(delta), abs=0.01)


def test_what_is_hardly_ever_sampled_spends_nothing():
    for accountant in ACCOUNTANTS:
        for noise_multiplier in (0.03, 1.0, 50.0):
            assert epsilon(noise_multiplier, 0.031, 16, 0.5, accountant) == 0  # in some batch with probability .396


@pytest.mark.parametrize("sample_rate", [0.0011, 0.01])
def test_an_epsilon_near_zero_is_monotone_too(sample_rate):
    for noise_multiplier in (5.1, 40.0):
        spent = [epsilon(noise_multiplier, sample_rate, 1, 10 ** (-exponent / 4), "prv") for exponent in range(1, 40)]
        assert spent == sorted(spent)


def test_a_small_delta_is_reached_like_any_other():
    found = find_noise_multiplier(0.1, 0.1, 30_000, 1e-12, "prv")  # Rényi's answer is far off here
    assert 0.0999 <= epsilon(found, 0.1, 30_000, 1e-12, "prv") <= 0.1
    for delta in (1e-12, 1e-14, 1e-30):
        found = find_noise_multiplier(2.0, 0.01, 1000, delta, "prv")
        assert 1.998 <= epsilon(found, 0.01, 1000, delta, "prv") <= 2
    with pytest.raises(ValueError, match=r"does not fall below 0.437.* a larger delta, or accountant prv"):
        find_noise_multiplier(0.3, 0.01, 1000, 1e-14, "rdp")
    assert find_noise_multiplier(0.3, 0.01, 1000, 1e-14, "prv") > 1
    with pytest.raises(ValueError, match="delta is 1e-250; it must be at least 1e-200"):
        epsilon(1.0, 0.1, 10, 1e-250, "prv")


def test_moments_are_those_of_the_binomial_sum_and_of_a_gaussian():
    """Mironov, Talwar & Zhang 2019, section 3.3, for whole orders."""
    for noise_multiplier, sample_rate in ((0.05, 0.3), (0.5, 0.01), (4.0, 0.001), (30.0, 0.9)):
        for order in (2, 3, 11, 40):
            k = np.arange(order + 1)
            terms = [math.log(math.comb(order, i)) + i * math.log(sample_rate) for i in k]
            terms += (order - k) * math.log1p(-sample_rate) + k * (k - 1) / (2 * noise_multiplier**2)
            ours = composition.log_moments(noise_multiplier, sample_rate, [order])[0]
            assert ours == pytest.approx(np.logaddexp.reduce(terms), rel=1e-9, abs=1e-12)
    for order in (0.5, 1.1, 7.3, 300.0):
        expected = order * (order - 1) / (2 * 1.7**2)
        assert composition.log_moments(1.7, 1.0, [order])[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_an_epsilon_out_of_reach_is_a_clear_error(accountant):
    # PRV adds its own error of 0.01; Rényi orders end at 63, which leaves about 0.1 at this delta.
    with pytest.raises(ValueError, match=f"epsilon 0.005 cannot be reached with the {accountant} accountant"):
        find_noise_multiplier(0.005, 0.04, 100, DELTA, accountant)


# What is refused


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier is 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier is -1"),
        ({"noise_multiplier": math.nan}, "noise_multiplier is nan"),
        ({"noise_multiplier": math.inf}, "noise_multiplier is inf"),
        ({"sample_rate": 0.0}, "sample_rate is 0"),
        ({"sample_rate": 1.5}, "sample_rate is 1.5"),
        ({"steps": -5}, "steps is -5"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"delta": 0.0}, "delta is 0"),
        ({"delta": 1.0}, "delta is 1"),
        ({"delta": 1.5}, "delta is 1.5"),
        ({"delta": math.nan}, "delta is nan"),
    ],
)
def test_arguments_out_of_range_are_named(accountant, changed, message):
    arguments = {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 10, "delta": DELTA} | changed
    with pytest.raises(ValueError, match=message):
        epsilon(**arguments, accountant=accountant)
    if "noise_multiplier" not in changed:
        arguments["epsilon_target"] = 3.0
        del arguments["noise_multiplier"]
        with pytest.raises(ValueError, match=message):
            find_noise_multiplier(**arguments, accountant=accountant)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_noise_beyond_all_use_is_accounted_too(accountant):
    assert 0 <= epsilon(1e38, 0.1, 10, DELTA, accountant) == epsilon(1e6, 0.1, 10, DELTA, accountant) < 0.3


def test_next_to_no_noise_has_a_vacuous_epsilon_by_rdp_and_none_by_prv():
    spent = [epsilon(noise, 0.1, 10, DELTA, "rdp") for noise in (0.02, 0.0101, 0.0099, 0.003125, 1e-7)]
    assert all(math.isfinite(each) for each in spent)
    assert all(before < after for before, after in itertools.pairwise(spent))
    assert spent[2] == pytest.approx(spent[1] * (0.0101 / 0.0099) ** 2, rel=0.01)
    with pytest.raises(
        ValueError, match=r"the prv accountant goes up to an epsilon of 500, and this is near 5.6.e\+05"
    ):
        epsilon(0.003125, 0.1, 10, DELTA, "prv")


@pytest.mark.parametrize("noise_multiplier", [0.00625, 0.003125])
@pytest.mark.parametrize("steps", [12_500, 19_500])
@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_next_to_no_noise_has_a_guarantee_by_rdp_whichever_accountant_was_asked(noise_multiplier, steps, accountant):
    accounting = PrivacyAccounting(
        epsilon_target=None,
        delta=DELTA,
        accountant=accountant,
        noise_multiplier=noise_multiplier,
        max_grad_norm=1.0,
        sample_rate=64 / 25_000,
    )
    spent = accounting.guarantee(steps)
    assert spent.accountant == "rdp"
    # Without sampling, all steps together are one Gaussian mechanism (Dong, Roth & Su 2019), and sampling only lowers its ε
    mu = math.sqrt(steps) / noise_multiplier
    unsampled = mu**2 / 2 + mu * NormalDist().inv_cdf(1 - DELTA)
    assert unsampled <= spent.epsilon < 1.2 * unsampled
    assert accounting.epsilons([steps // 2, steps])[1] == spent.epsilon
    assert len(accounting.rdp(steps)) > 0
    assert accounting.epsilon_gdp(steps) is None


def test_a_guarantee_is_by_prv_as_far_as_that_goes():
    accounting = PrivacyAccounting(
        epsilon_target=None, delta=DELTA, accountant="prv", noise_multiplier=0.5, max_grad_norm=1.0, sample_rate=0.01
    )
    assert accounting.guarantee(100).accountant == "prv"
    assert accounting.guarantee(100).epsilon == epsilon(0.5, 0.01, 100, DELTA, "prv")


# Gaussian DP is shown, but is no guarantee


def test_gaussian_dp_is_no_accountant():
    assert "gdp" not in ACCOUNTANTS
    with pytest.raises(ValueError, match="accountant is 'gdp'; allowed: prv, rdp"):
        epsilon(1.0, 0.1, 10, DELTA, "gdp")
    with pytest.raises(ValueError, match="accountant is 'gdp'; allowed: prv, rdp"):
        find_noise_multiplier(1.0, 0.1, 10, DELTA, "gdp")


def accounting_of(row, accountant="rdp"):
    return PrivacyAccounting(
        epsilon_target=None,
        delta=DELTA,
        accountant=accountant,
        noise_multiplier=row["sigma"],
        max_grad_norm=1.0,
        sample_rate=row["B"] / row["N"],
    )


def test_the_guarantee_is_the_accountants_where_gaussian_dp_falls_below_the_truth():
    below = 0
    for row in GRID[11::31]:
        account, steps = accounting_of(row), int(row["steps"])
        guarantee, approximate = account.guarantee(steps), account.epsilon_gdp(steps)
        assert guarantee.epsilon == epsilon_of(row, "rdp")
        assert (guarantee.accountant, guarantee.sampling) == ("rdp", "poisson")
        assert guarantee.adjacency == "add_or_remove_one"
        below += approximate is not None and approximate < 0.99 * row["dpacc_pld"]
    assert below > 0


def test_gaussian_dp_at_opacus_own_vector_and_where_it_has_no_answer():
    row = {"sigma": 1.5, "B": 4, "N": 100}
    assert 6.59 < accounting_of(row).epsilon_gdp(2249) < 6.6
    assert accounting_of(row).epsilon_gdp(0) == 0
    # The first row of the grid for which Opacus's root finder raises.
    assert accounting_of({"sigma": 0.5, "B": 900, "N": 900}).epsilon_gdp(100) is None

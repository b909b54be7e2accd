"""Privacy accounting: equal to Opacus, never below the tight bound, and noise that keeps its promise."""

from __future__ import annotations

import csv
import functools
import itertools
import math
import pathlib

import opacus.accountants.analysis.rdp as opacus_rdp
import pytest

from models.private import accounting
from models.private.accounting import (
    ACCOUNTANTS,
    PrivacyAccounting,
    epsilon,
    find_noise_multiplier,
    joint_epsilon,
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


def test_rdp_equals_opacus_on_the_whole_grid_and_stays_above_the_tight_bound(monkeypatch):
    # Opacus sums the same series for any number of steps; remembering the sums only makes the test quicker.
    monkeypatch.setattr(opacus_rdp, "_compute_rdp", functools.lru_cache(None)(opacus_rdp._compute_rdp))
    assert len(GRID) == 480
    for row in GRID:
        ours = epsilon_of(row, "rdp")
        assert ours == pytest.approx(row["opacus_rdp"], rel=1e-6), row
        assert ours > 0.99 * row["dpacc_pld"], row


@pytest.mark.parametrize("row", GRID[11::31], ids=lambda row: f"{named(row)}-sigma{row['sigma']:g}")
def test_prv_equals_opacus_on_a_spread_of_the_grid_and_stays_above_the_tight_bound(row):
    ours = epsilon_of(row, "prv")
    assert ours == pytest.approx(row["opacus_prv"], rel=1e-6)
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


# The search for the noise


@pytest.mark.parametrize("row", NOISE[::6], ids=lambda row: f"{named(row)}-epsilon{row['target_epsilon']:g}")
def test_the_noise_found_keeps_epsilon_below_the_target_and_wastes_little(row, monkeypatch):
    monkeypatch.setattr(opacus_rdp, "_compute_rdp", functools.lru_cache(None)(opacus_rdp._compute_rdp))
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


def test_the_search_never_tries_far_too_little_noise(monkeypatch):
    """PRV takes gigabytes and minutes where epsilon is in the thousands, and raises beyond; the search keeps away."""
    tried = []

    class Watched(accounting.PRVAccountant):
        def get_epsilon(self, *args, **kwargs):
            tried.append(self.history[0][0])
            return super().get_epsilon(*args, **kwargs)

    monkeypatch.setattr(accounting, "PRVAccountant", Watched)
    epsilon.cache_clear()
    found = find_noise_multiplier(2.0, 1.0, 200, DELTA, "prv")  # about 28; at 1, epsilon would be about 160
    assert found > 10
    assert tried
    assert min(tried) > 0.5 * found
    assert max(tried) < 3 * found


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


def test_too_little_noise_to_account_is_an_error_and_never_an_infinite_guarantee(monkeypatch):
    monkeypatch.setattr(accounting, "get_privacy_spent", lambda **_: (math.inf, 2.0))
    with pytest.raises(ValueError, match=r"cannot account noise_multiplier 0.123"):
        epsilon(0.123, 0.1, 10, DELTA, "rdp")


# Gaussian DP is shown, never promised


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


# Several runs together


def run_of(noise_multiplier, sample_rate, accountant="prv"):
    return PrivacyAccounting(
        epsilon_target=None,
        delta=DELTA,
        accountant=accountant,
        noise_multiplier=noise_multiplier,
        max_grad_norm=1.0,
        sample_rate=sample_rate,
    )


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_the_joint_epsilon_of_one_run_is_its_own_and_of_equal_runs_that_of_their_steps_together(accountant):
    run = run_of(1.1, 0.02, accountant)
    assert joint_epsilon([(run, 300)], DELTA) == pytest.approx(epsilon(1.1, 0.02, 300, DELTA, accountant), rel=1e-6)
    together = epsilon(1.1, 0.02, 900, DELTA, accountant)
    assert joint_epsilon([(run, 300), (run, 200), (run, 400)], DELTA) == pytest.approx(together, rel=1e-6)
    assert joint_epsilon([(run, 300), (run, 0)], DELTA) == joint_epsilon([(run, 300)], DELTA)
    assert joint_epsilon([], DELTA) == joint_epsilon([(run, 0)], DELTA) == 0


def test_two_runs_hardly_told_apart_compose_as_two_equal_ones():
    run, near = run_of(1.1, 0.02), run_of(1.1 + 1e-6, 0.02)
    equal = joint_epsilon([(run, 300), (run, 300)], DELTA)
    assert joint_epsilon([(run, 300), (near, 300)], DELTA) == pytest.approx(equal, rel=1e-4)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_the_joint_epsilon_is_above_each_runs_own_and_below_basic_composition(accountant):
    runs = [
        (run_of(0.8, 0.02, accountant), 200),
        (run_of(1.5, 0.05, accountant), 300),
        (run_of(3.0, 1.0, accountant), 5),
    ]
    joint = joint_epsilon(runs, DELTA)
    alone = [epsilon(run.noise_multiplier, run.sample_rate, steps, DELTA, accountant) for run, steps in runs]
    assert max(alone) < joint < sum(alone)
    # Basic composition at the same δ in all: each run at a third of it
    thirds = [epsilon(run.noise_multiplier, run.sample_rate, steps, DELTA / 3, accountant) for run, steps in runs]
    assert joint < 0.85 * sum(thirds)
    assert joint_epsilon(runs[::-1], DELTA) == pytest.approx(joint, rel=1e-9)


def test_gaussian_runs_compose_as_one_gaussian_mechanism():
    """Without sampling, k steps of noise σ are one step of noise σ/√k: multipliers add up as inverse squares."""
    runs = [(run_of(20.0, 1.0), 30), (run_of(35.0, 1.0), 80), (run_of(50.0, 1.0), 10)]
    noise = sum(steps / run.noise_multiplier**2 for run, steps in runs) ** -0.5
    # each has the accountant's error of 0.01
    assert joint_epsilon(runs, DELTA) == pytest.approx(epsilon(noise, 1.0, 1, DELTA, "prv"), abs=2e-3)


def test_runs_that_prv_cannot_hold_or_that_are_accounted_by_rdp_are_composed_by_rdp():
    mixed = [(run_of(1.1, 0.02), 300), (run_of(1.1, 0.02, "rdp"), 300)]
    assert joint_epsilon(mixed, DELTA) == epsilon(1.1, 0.02, 600, DELTA, "rdp")
    with pytest.raises(ValueError, match="sample_rate is 2"):
        joint_epsilon([(run_of(1.0, 2.0), 3)], DELTA)
    with pytest.raises(ValueError, match="delta is 0"):
        joint_epsilon([(run_of(1.0, 0.5), 3)], 0.0)

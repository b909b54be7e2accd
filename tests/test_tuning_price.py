"""ε of a search: published values, an exact two-outcome mechanism, and properties over grids."""

import math

import numpy as np
import pytest

from models.private.accounting import ORDERS, epsilon, find_noise_multiplier
from models.private.composition import Steps
from models.private.number_of_runs import LAWS, NumberOfRuns
from models.private.tuning import _given_a_run, divergences_of_a_run, epsilon_of_all_runs, epsilon_of_best_run

DELTA = 1e-5


def run_of(epsilon_of_run):
    return Steps(find_noise_multiplier(epsilon_of_run, 0.01, 2000, DELTA, "rdp"), 0.01, 2000)


@pytest.mark.parametrize(
    ("of_run", "logarithmic", "geometric", "of_100", "composed"),
    [(1, 1.98, 2.48, 2.11, 7.2), (2, 3.79, 4.65, 4.03, 15.2), (8, 13.2, 15.1, 14.1, 62.4)],
)
def test_prices_of_known_searches(of_run, logarithmic, geometric, of_100, composed):
    run = run_of(of_run)
    divergences = divergences_of_a_run([run])
    assert epsilon_of_best_run(divergences, NumberOfRuns(law="logarithmic", mean=40), DELTA) == pytest.approx(
        logarithmic, rel=0.005
    )
    assert epsilon_of_best_run(divergences, NumberOfRuns(law="geometric", mean=40), DELTA) == pytest.approx(
        geometric, rel=0.005
    )
    assert epsilon_of_best_run(divergences, NumberOfRuns(law="logarithmic", mean=100), DELTA) == pytest.approx(
        of_100, rel=0.005
    )
    assert epsilon_of_all_runs([run], 40, DELTA, "prv") == pytest.approx(composed, rel=0.005)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("mean", [1.0, 1.5, 10.0, 40.0])
def test_the_drawn_number_has_its_mean(law, mean):
    generator = np.random.default_rng(0)
    drawn = [NumberOfRuns(law=law, mean=mean).draw(generator) for _ in range(20_000)]
    assert abs(np.mean(drawn) - mean) <= 4 * np.std(drawn) / math.sqrt(len(drawn)) + 1e-9
    assert min(drawn) >= (0 if law == "poisson" else 1)


def test_the_logarithmic_law_has_its_probabilities():
    law = NumberOfRuns(law="logarithmic", mean=5)
    generator = np.random.default_rng(1)
    drawn = np.array([law.draw(generator) for _ in range(50_000)])
    # P(k) ∝ (1 − γ)^k / k: from two neighboring probabilities follows γ, and from γ the mean
    first, second = np.mean(drawn == 1), np.mean(drawn == 2)
    gamma = 1 - 2 * second / first
    assert (1 / gamma - 1) / math.log(1 / gamma) == pytest.approx(5, rel=0.15)


@pytest.mark.parametrize("law", ["logarithmic", "geometric"])
def test_the_bound_holds_for_a_mechanism_of_two_outcomes_and_composition_is_looser(law):
    """The mechanism answers 1 with probability p on one dataset, and q on its neighbor; the best run is the one with 1 if any."""
    p, q, runs, draws = 0.02, 0.06, NumberOfRuns(law=law, mean=20), 400_000
    generator = np.random.default_rng(2)
    numbers = np.array([runs.draw(generator) for _ in range(draws)])

    def released(probability):
        return np.mean(generator.random(draws) < 1 - (1 - probability) ** numbers)

    ones, ones_of_neighbor = released(p), released(q)
    seen = max(
        abs(math.log(ones / ones_of_neighbor)), abs(math.log((1 - ones) / (1 - ones_of_neighbor)))
    )  # an ε with δ = 0, which is at least that with DELTA

    def divergence(a, b):
        terms = np.log([a, 1 - a])[:, None] * ORDERS + np.log([b, 1 - b])[:, None] * (1 - ORDERS)
        return np.logaddexp(*terms) / (ORDERS - 1)

    divergences = np.maximum(divergence(p, q), divergence(q, p))
    bound = epsilon_of_best_run(divergences, runs, DELTA)
    composed = min(20 * divergences + np.log1p(-1 / ORDERS) - np.log(DELTA * ORDERS) / (ORDERS - 1))
    assert 0.3 < seen <= bound < composed


def test_the_price_over_a_grid():
    run = run_of(2)
    divergences = divergences_of_a_run([run])
    for law in LAWS:
        prices = [epsilon_of_best_run(divergences, NumberOfRuns(law=law, mean=mean), DELTA) for mean in (1, 2, 8, 64)]
        assert prices == sorted(prices)
        assert prices[0] >= epsilon(*run, DELTA, "rdp")
        anew = epsilon_of_best_run(divergences, NumberOfRuns(law=law, mean=8), DELTA, trained_anew=True)
        assert prices[2] < anew < prices[2] + 2.01


def test_several_settings_cost_at_least_the_worst_of_them():
    worse, better = run_of(4), Steps(4.0, 0.02, 500)
    runs = NumberOfRuns(law="geometric", mean=10)
    both = epsilon_of_best_run(divergences_of_a_run([better, worse]), runs, DELTA)
    alone = [epsilon_of_best_run(divergences_of_a_run([each]), runs, DELTA) for each in (worse, better)]
    assert both >= max(alone)
    assert epsilon_of_all_runs([better, worse], 10, DELTA, "prv") >= 0.999999 * max(
        epsilon_of_all_runs([each], 10, DELTA, "rdp") for each in (worse, better)
    )


@pytest.mark.parametrize(
    ("law", "mean", "problem"), [("binomial", 4, "law"), ("poisson", 0.5, "mean"), ("geometric", 1e9, "mean")]
)
def test_impossible_numbers_of_runs_are_refused(law, mean, problem):
    with pytest.raises(ValueError, match=problem):
        NumberOfRuns(law=law, mean=mean)


@pytest.mark.parametrize("mean", [1.0, 2.0, 6.0])
def test_drawing_again_where_poisson_gives_no_run_has_its_exact_divergence(mean):
    """A mechanism of two outcomes again, with “nothing” as a third: its divergences with and without that outcome are known."""
    p, q, runs = 0.02, 0.06, NumberOfRuns(law="poisson", mean=mean)
    nothing = runs.share_without_runs

    def outcomes(probability):  # nothing, only 0s, some 1
        zeros = math.exp(-mean * probability) - nothing
        return np.array([nothing, zeros, 1 - nothing - zeros])

    def divergence(one, other):
        return np.log(np.sum(one[:, None] ** ORDERS * other[:, None] ** (1 - ORDERS), axis=0)) / (ORDERS - 1)

    whole, given_a_run = (
        divergence(outcomes(p)[start:] / share, outcomes(q)[start:] / share)
        for start, share in ((0, 1), (1, 1 - nothing))
    )
    np.testing.assert_allclose(_given_a_run(whole, runs), given_a_run, rtol=1e-6, atol=1e-12)
    assert (given_a_run > whole).all()
    geometric = NumberOfRuns(law="geometric", mean=mean)
    assert (_given_a_run(whole, geometric) == whole).all()

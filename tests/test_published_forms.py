"""The published forms of cohort attacks: equal to the code they are named after.

The slices were computed with that code: `generate_ours` and `generate_ours_offline` of TensorFlow Privacy's
research/mi_lira_2021/plot.py at 03035d5, and `run_rmia` of ML Privacy Meter's attacks.py at e384af8. The last four models of
LiRA's files are targets; RMIA's models t and t ^ 1 have complementary members.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cohorts import random_cohort

from attacks.cohort.attack import CohortAttack
from attacks.cohort.cohort import Design
from attacks.cohort.medians import leave_out_medians
from attacks.comparisons.label_only import LabelOnly
from attacks.comparisons.lira import Lira
from attacks.comparisons.ratio import Ratio, privacy_meter
from attacks.metrics import auc

SLICES = Path(__file__).parent / "data" / "golden"
WHOLE = Path(__file__).parents[2] / "shared" / "golden"
TFP_FORMS = tuple(Lira(form="tensorflow_privacy", spread=spread) for spread in ("per_example", "pooled"))
FORMS = (*TFP_FORMS, Ratio(form="privacy_meter"))


def load(name: str) -> dict[str, npt.NDArray[np.generic]]:
    path = SLICES / f"{name}.npz" if name.endswith("slice") else WHOLE / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine; its slice is tested")
    with np.load(path) as stored:
        return dict(stored)


class Signals:
    """A cohort of which only one signal is known."""

    def __init__(self, signal: npt.NDArray[np.float64]) -> None:
        self._signal = signal
        self.n_examples, self.n_queries = signal.shape[1:]

    def blocks(self) -> Iterator[slice]:
        for start in range(0, self.n_examples, 30):
            yield slice(start, min(start + 30, self.n_examples))

    def signal(self, kind: str, block: slice) -> npt.NDArray[np.float64]:
        return self._signal[:, block]


@pytest.mark.parametrize("name", ["lira_slice", "lira_balanced", "lira_balanced_aug2"])
@pytest.mark.parametrize(("spread", "ending"), [("per_example", ""), ("pooled", "_fixvar")])
def test_lira_equals_tensorflow_privacy(name: str, spread: Literal["per_example", "pooled"], ending: str) -> None:
    stored = load(name)
    models = np.arange(68)
    design = Design(member=stored["keep"], targets=models[64:], references=models[:64], unit=models)  # type: ignore[arg-type]
    attack = Lira(form="tensorflow_privacy", spread=spread, signals=("log_odds",))
    (found,) = attack.scores(Signals(stored["scores"]), [design], np.random.default_rng(0))  # type: ignore[arg-type]
    assert tuple(found) == ("tfp_online_log_odds", "tfp_offline_log_odds") == attack.score_names()
    for mode in ("online", "offline"):
        expected = stored[f"ours_{mode}{ending}__prediction"]  # lower for members
        np.testing.assert_allclose(found[f"tfp_{mode}_log_odds"], -expected, rtol=0, atol=1e-9)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["rmia_slice", "rmia_pairs32"])
@pytest.mark.parametrize("offline_a", [0.0, 0.3, 0.5, 1.0])
def test_the_ratio_equals_privacy_meter(name: str, offline_a: float) -> None:
    """In float32, as stored: in float64, one pair of ratios in a hundred thousand that rounding makes equal differs."""
    stored = load(name)
    models = np.arange(64)
    targets = np.array([0, 1, 5])
    design = Design(member=stored["memberships"].T, targets=targets, references=models, unit=models // 2 * 2)  # type: ignore[arg-type]
    found = privacy_meter(stored["signals"].T, stored["population_signals"].T, design, offline_a)  # type: ignore[arg-type]
    for target, score in zip(targets, found, strict=True):
        np.testing.assert_allclose(score, stored[f"attacks_t{target}_k31_a{offline_a}"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("pairs", [False, True])
def test_the_ratio_s_score_is_that_of_the_core(pairs: bool) -> None:
    models = random_cohort(6, 200, np.random.default_rng(0), leak=1.0, pairs=pairs, n_queries=2)
    (result,) = Ratio(form="privacy_meter").run(models, np.random.default_rng(0))
    assert result.name == "privacy_meter"
    logits = np.stack([model.known.logits[:] for model in models])[:, :, 0]
    p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[:, np.arange(240), models[0].known.label]
    design = Design(
        member=result.scores.is_member, targets=np.arange(6), references=np.arange(6), unit=np.arange(6) // (1 + pairs)
    )
    expected = privacy_meter(p[:, :200], p[:, 200:], design, 0.3)
    np.testing.assert_allclose(result.scores.score, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("n_models", [4, 7, 8])
def test_leave_out_medians_are_medians_of_the_other_models(n_models: int, pairs: bool) -> None:
    rng = np.random.default_rng(n_models)
    models = random_cohort(n_models, 100, rng, pairs=pairs)
    member = np.stack([model.known.is_member[:100] for model in models])
    signal = rng.integers(0, 4, (n_models, 100, 2)).astype(float)  # with ties
    unit = np.arange(n_models)
    if pairs:
        unit = unit // 2 * 2
    design = Design(member=member, targets=np.arange(n_models), references=np.arange(n_models), unit=unit)
    for target, medians in enumerate(leave_out_medians(signal, member, design)):
        others = design.references_of(target)
        for inside, found in zip((True, False), medians, strict=True):
            for example in range(100):
                values = signal[others][member[others, example] == inside, example]
                expected = np.median(values, axis=0) if len(values) else np.full(2, np.nan)
                np.testing.assert_array_equal(found[example], expected)


@pytest.mark.parametrize("attack", FORMS, ids=["tfp_per_example", "tfp_pooled", "privacy_meter"])
def test_a_published_form_is_a_cohort_attack_as_any_other(attack: CohortAttack) -> None:
    null, found = [], []
    for repetition in range(6):
        models = random_cohort(8, 800, np.random.default_rng(repetition), leak=1.5, pairs=repetition % 2 == 1)
        results = attack.run(models, np.random.default_rng(repetition))
        assert tuple(each.name for each in results) == attack.score_names()
        for result in results[:1]:
            null += [auc(m, s) for m, s in zip(result.null.is_member, result.null.score, strict=True)]
            found += [auc(m, s) for m, s in zip(result.scores.is_member, result.scores.score, strict=True)]
    assert abs(np.mean(null) - 0.5) < 0.01
    assert np.mean(found) > 0.55


def test_what_the_published_code_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="per_example or pooled"):
        Lira(form="tensorflow_privacy")
    with pytest.raises(ValueError, match=r"gamma is 2\.0.*must be 1"):
        Ratio(form="privacy_meter", gamma=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [Lira(), Ratio(), LabelOnly(), *FORMS])
def test_the_number_of_threads_changes_no_score(attack: CohortAttack) -> None:
    models = random_cohort(5, 2500, np.random.default_rng(0), leak=1.0, n_queries=2)
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(attack.run(models, np.random.default_rng(0)))
    finally:
        torch.set_num_threads(1)
    for one, other in zip(*found, strict=True):
        for ours, theirs in zip(
            (one.scores, one.null, *one.audits), (other.scores, other.null, *other.audits), strict=True
        ):
            assert np.array_equal(ours.score, theirs.score)

"""Compares the attacks on cohorts on recorded targets: by the number of seeds, of queries, and with foreign references.

    python benchmarks/attacks_on_cohorts.py RESULTS DEFENSE [--foreign DEFENSE] [--queries N]

RESULTS is the folder of a finished sweep on independent coins, with at least eight seeds of each defense and their answers.
Prints Markdown tables. Rows for n seeds are means over all targets of as many disjoint cohorts as there are, with Student's
95 % interval over the targets. Differences are of two scores on the same targets.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import t as student_t

from attacks.cohort.attack import CohortAttack
from attacks.cohort.cohort import Answers, Cohort, Design
from attacks.comparisons.label_only import LabelOnly
from attacks.comparisons.lira import Lira
from attacks.comparisons.ratio import Ratio
from attacks.metrics import auc, tpr_at_fpr
from sweeper.results import answers
from sweeper.results.store import Store

ATTACKS: dict[str, CohortAttack] = {
    "lira, shrunk": Lira(),
    "lira, per example": Lira(spread="per_example"),
    "lira, pooled": Lira(spread="pooled"),
    "ratio": Ratio(),
    "label_only": LabelOnly(),
}
_ONLINE = ("lira, shrunk", "online_log_odds")
PAIRS = (
    (_ONLINE, ("lira, shrunk", "offline_log_odds")),
    (_ONLINE, ("lira, pooled", "online_log_odds")),
    (_ONLINE, ("lira, per example", "online_log_odds")),
    (_ONLINE, ("ratio", "online")),
    (("ratio", "online"), ("ratio", "offline")),
)
"""Scores that are compared target by target."""
SIZES = (4, 6, 8, 12, 16)
FPR = 0.01


class Rounded:
    """Logits as another type would have recorded them."""

    def __init__(self, logits: answers.ArrayOnDisk, dtype: type) -> None:
        self._logits, self._dtype = logits, dtype
        self.shape = logits.shape

    def __getitem__(self, index: slice, /) -> npt.NDArray[np.floating]:
        rounded: npt.NDArray[np.floating] = self._logits[index].astype(self._dtype)
        return rounded


def read(results: Path, defense: str, queries: int, scratch: Path) -> list[Answers]:
    """The answers of a defense's targets, in the order of their seeds."""
    store = Store(results)
    trials = pd.concat([store.read_part("trials", key).to_pandas() for key in store.keys("trials")])
    chosen = trials[trials["defense"] == defense].sort_values("seed")
    return [answers.read(store, target_id, queries, scratch) for target_id in chosen["target_id"]]


def interval(values: Sequence[float]) -> str:
    array = np.asarray(values)
    half = student_t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return f"{array.mean():.4f} ± {half:.4f}"


def measure(
    attack: CohortAttack, models: Sequence[Answers], references: Sequence[Answers] | None = None
) -> dict[str, tuple[list[float], list[float]]]:
    """AUC and TPR of each score on each model, with the other models, or other seeds of `references`, as references."""
    n = len(models)
    if references is None:
        cohort, unit, targets = Cohort(models), np.arange(n), np.arange(n)
        used = targets
    else:  # a model and the one of its seed among the references have the same coins
        cohort = Cohort([each for pair in zip(models, references, strict=True) for each in pair])
        unit, targets, used = np.repeat(np.arange(n), 2), np.arange(0, 2 * n, 2), np.arange(1, 2 * n, 2)
    design = Design(member=cohort.member, targets=targets, references=used, unit=unit)
    [found] = attack.scores(cohort, [design], np.random.default_rng(0))
    member = cohort.member[targets]
    return {
        name: (
            [auc(m, s) for m, s in zip(member, score, strict=True)],
            [tpr_at_fpr(m, s, FPR) for m, s in zip(member, score, strict=True)],
        )
        for name, score in found.items()
    }


def table(title: str, rows: dict[tuple[str, str], tuple[list[float], list[float]]]) -> None:
    print(f"\n{title}\n\n| attack | score | AUC | TPR at {FPR:.0%} FPR |\n| --- | --- | --- | --- |")
    for (attack, score), (aucs, tprs) in rows.items():
        print(f"| {attack} | {score} | {interval(aucs)} | {interval(tprs)} |")


def differences(rows: dict[tuple[str, str], tuple[list[float], list[float]]]) -> None:
    """Print differences of two scores on the same targets."""
    print(f"\n| difference | AUC | TPR at {FPR:.0%} FPR |\n| --- | --- | --- |")
    for one, other in PAIRS:
        pairs = [[a - b for a, b in zip(*both, strict=True)] for both in zip(rows[one], rows[other], strict=True)]
        print(f"| {', '.join(one)} − {', '.join(other)} | {interval(pairs[0])} | {interval(pairs[1])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("defense")
    parser.add_argument("--foreign", help="a defense whose models are references, too")
    parser.add_argument("--queries", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models = read(options.results, options.defense, options.queries, Path(scratch))
        for size in (size for size in SIZES if size <= len(models)):
            rows: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
            for start in range(0, len(models) - size + 1, size):
                for name, attack in ATTACKS.items():
                    for score, (aucs, tprs) in measure(attack, models[start : start + size]).items():
                        row = rows.setdefault((name, score), ([], []))
                        row[0].extend(aucs)
                        row[1].extend(tprs)
            table(f"{size} seeds, {options.queries} queries", rows)
            differences(rows)
        rounded = [
            Answers(
                example_id=each.example_id,
                label=each.label,
                in_pool=each.in_pool,
                is_member=each.is_member,
                logits=Rounded(each.logits, np.float16),
            )
            for each in models
        ]
        print("\nLargest change of one target's metrics if logits are recorded in float16:")
        for name, attack in ATTACKS.items():
            ours, theirs = measure(attack, models), measure(attack, rounded)
            changes = [
                max(abs(a - b) for a, b in zip(ours[score][which], theirs[score][which], strict=True))
                for which in (0, 1)
                for score in ours
            ]
            half = len(changes) // 2
            print(f"- {name}: AUC {max(changes[:half]):.1e}, TPR {max(changes[half:]):.1e}")
        if options.foreign:
            others = read(options.results, options.foreign, options.queries, Path(scratch))
            n = min(len(models), len(others))
            for kind, references in (("own", None), (f"{options.foreign}'s", others[:n])):
                rows = {
                    (name, score): found
                    for name, attack in ATTACKS.items()
                    for score, found in measure(attack, models[:n], references).items()
                }
                table(f"{n} seeds of {options.defense}, {kind} references", rows)


if __name__ == "__main__":
    main()

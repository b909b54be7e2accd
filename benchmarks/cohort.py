"""The cost of attacks on cohorts: time, memory, and how they grow with models, examples, queries and classes.

    python benchmarks/cohort.py [--quick]

Every attack but shokri runs on random answers of 64 models to 18 queries about 50,000 examples of 10 classes, on two cores,
with all that is recorded: its null and audits, the metrics of each target, of the cohort and of each example. Exits with 1 if
that takes longer than the limit or more memory; a busy machine exceeds the limit on time. `--quick` takes a tenth of the
examples and of the limit on time.

Then each size is doubled in turn, with 16 models, 4,000 examples, 6 queries and 10 classes as the base. A ratio of 2 of the
processor's time is linear growth. The base and its doubles take turns, and medians count. Writes build/bench/cohort.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from attacks.auditing import audit_membership
from attacks.base import MembershipScores
from attacks.cohort.attack import CohortAttack, CohortScores
from attacks.cohort.cohort import Answers
from attacks.cohort.exposure import exposure_rows
from attacks.cohort.summary import summarize
from attacks.cohort.threads import in_order
from attacks.comparisons.label_only import LabelOnly
from attacks.comparisons.lira import Lira
from attacks.comparisons.ratio import Ratio
from attacks.metrics import auc, membership_metrics

OUT = Path("build/bench/cohort.json")
LIMIT_S = 180.0
LIMIT_MIB = 2048
ATTACKS: dict[str, CohortAttack] = {"lira": Lira(), "ratio": Ratio(), "label_only": LabelOnly()}
DELTA = 1e-5
ROWS = 8192
"""Each model's logits repeat after so many examples."""


@dataclass(frozen=True)
class Size:
    models: int
    examples: int
    queries: int
    classes: int


FULL = Size(64, 50_000, 18, 10)
BASE = Size(16, 4_000, 6, 10)


class RandomLogits:
    """Logits (examples, queries, classes) in float32 that repeat the rows of `drawn` (2 · ROWS, queries, classes)."""

    def __init__(self, n_examples: int, drawn: npt.NDArray[np.float32], first: int) -> None:
        self.shape = (n_examples, *drawn.shape[1:])
        self._drawn, self._first = drawn, first

    def __getitem__(self, index: slice, /) -> npt.NDArray[np.floating]:
        start = (self._first + index.start) % ROWS
        return self._drawn[start : start + index.stop - index.start]


@dataclass(frozen=True)
class Model:
    """A target whose answers are random. No attack on a cohort reads parameters."""

    target_id: str
    seed: int
    known: Answers

    def parameters(self) -> Mapping[str, npt.NDArray[np.floating]]:
        raise NotImplementedError

    def answers(self) -> Answers:
        return self.known


def random_models(size: Size) -> list[Model]:
    rng = np.random.default_rng(0)
    n = size.examples * 6 // 5  # a fifth as many outside the pool
    example_id, label = np.arange(n), rng.integers(0, size.classes, n)
    in_pool = example_id < size.examples
    drawn = rng.normal(size=(2 * ROWS, size.queries, size.classes)).astype(np.float32)
    return [
        Model(
            target_id=f"{seed:016x}",
            seed=seed,
            known=Answers(
                example_id=example_id,
                label=label,
                in_pool=in_pool,
                is_member=in_pool & (rng.random(n) < 0.5),
                logits=RandomLogits(n, drawn, int(rng.integers(ROWS))),
            ),
        )
        for seed in range(size.models)
    ]


def measure(results: list[CohortScores]) -> None:
    """Compute all that a cohort records of its scores."""
    n_targets = len(results[0].scores.targets)
    *for_targets, for_summaries = np.random.default_rng(0).spawn(n_targets + 1)

    def one_target(index: int) -> None:
        for result in results:
            found, rng = result.scores, for_targets[index]
            scores = MembershipScores(
                name=result.name,
                example_id=result.example_id,
                is_member=found.is_member[index],
                score=found.score[index],
            )
            audit_membership(scores, rng, DELTA)
            membership_metrics(scores.is_member, scores.score, rng)
            auc(result.null.is_member[index], result.null.score[index])

    list(in_order(one_target, range(n_targets)))
    rngs = for_summaries.spawn(len(results))
    list(in_order(lambda index: summarize(results[index], DELTA, rngs[index]), range(len(results))))
    exposure_rows(results[0])


def seconds(attack: CohortAttack, models: list[Model]) -> tuple[float, float]:
    """Time of the attack, and of measuring its scores."""
    began = time.perf_counter()
    results = attack.run(models, np.random.default_rng(0))
    attacked = time.perf_counter()
    measure(results)
    return attacked - began, time.perf_counter() - attacked


def growth(turns: int) -> dict[str, dict[str, float]]:
    """For each attack and each size that is doubled: its processor time over the base's, without measuring scores."""
    sizes = {"base": BASE} | {name: replace(BASE, **{name: 2 * value}) for name, value in vars(BASE).items()}
    cohorts = {name: random_models(size) for name, size in sizes.items()}
    ratios = {}
    for name, attack in ATTACKS.items():
        took: dict[str, list[float]] = {size: [] for size in sizes}
        for _ in range(turns):
            for size, models in cohorts.items():
                began = time.process_time()
                attack.run(models, np.random.default_rng(0))
                took[size].append(time.process_time() - began)
        base = statistics.median(took["base"])
        ratios[name] = {size: round(statistics.median(each) / base, 2) for size, each in took.items() if size != "base"}
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the examples and of the limit; a minute")
    quick = parser.parse_args().quick
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    torch.set_num_threads(2)
    size, limit_s = (replace(FULL, examples=FULL.examples // 10), LIMIT_S / 10) if quick else (FULL, LIMIT_S)
    models = random_models(size)
    before = time.process_time()
    took = {name: seconds(attack, models) for name, attack in ATTACKS.items()}
    total = sum(map(sum, took.values()))
    processor = time.process_time() - before
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, (attacking, measuring) in took.items():
        print(
            f"{name}: {(attacking + measuring) / total:.2f} of the time, {measuring / total:.2f} to measure its scores"
        )
    print(f"all: {total / limit_s:.2f} of the limit on time, on {processor / total:.1f} of 2 cores")
    print(f"processor time: {processor / (2 * limit_s):.2f} of that of two cores up to the limit")
    print(f"peak memory: {peak_mib:.0f} MiB of {LIMIT_MIB}")
    ratios = growth(3 if quick else 9)
    for name, each in ratios.items():
        print(f"{name}, ratio if doubled: " + ", ".join(f"{size} {ratio:.2f}" for size, ratio in each.items()))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    shares = {"time": total / limit_s, "processor_time": processor / (2 * limit_s), "memory": peak_mib / LIMIT_MIB}
    shares = {name: round(share, 2) for name, share in shares.items()}
    OUT.write_text(json.dumps({"shares_of_limits": shares, "growth": ratios}, indent=1) + "\n")
    print(f"written to {OUT}")
    return int(total > limit_s or peak_mib > LIMIT_MIB)


if __name__ == "__main__":
    sys.exit(main())

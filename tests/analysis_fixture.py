"""A made-up results folder for the tests of `analysis`: the declared tables, with plausible numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sweeper.results.schema import SCHEMA_VERSION, SCHEMAS

Rows = dict[str, list[dict[str, Any]]]

LAYERS = ("conv1", "maxpool1", "conv2", "maxpool2", "conv3", "maxpool3", "dense", "prediction")
DEFENSES = ("baseline", "dp_eps2", "dp_eps4", "dp_eps8", "l2", "dropout", "l2_dropout")
EPSILON = {"dp_eps2": 2.0, "dp_eps4": 4.0, "dp_eps8": 8.0}
ACCURACY = dict(zip(DEFENSES, (0.97, 0.86, 0.89, 0.91, 0.965, 0.972, 0.95), strict=True))
SHIFT = dict(zip(DEFENSES, (0.35, 0.03, 0.05, 0.08, 0.22, 0.25, 0.15), strict=True))
TIME = dict(zip(DEFENSES, (4.1, 30.2, 30.1, 29.9, 4.2, 4.6, 4.7), strict=True))
SCORES = ("max_posterior", "loss", "entropy", "modified_entropy")


def png(image: np.ndarray) -> bytes:
    """`image` (height, width) or (height, width, 3) in [0, 1] as PNG."""
    stream = io.BytesIO()
    Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def area(members: np.ndarray, others: np.ndarray) -> float:
    """AUC by counting, ties as one half."""
    return float((members[:, None] > others).mean() + 0.5 * (members[:, None] == others).mean())


def make_rows(
    *,
    datasets: Sequence[str] = ("digits",),
    defenses: Sequence[str] = DEFENSES,
    seeds: Sequence[int] = (0, 1, 2),
    parts: dict[str, str] | None = None,
    n: int = 30,
    originals: Sequence[np.ndarray] | None = None,
    sweep: str = "demo",
) -> Rows:
    """Rows of every table; `parts` maps part names to splits, `n` is the number of members."""
    rng = np.random.default_rng(0)
    rows: Rows = {name: [] for name in SCHEMAS}
    images = list(originals) if originals is not None else [rng.random((8, 8)) for _ in range(2)]
    for part, split in (parts or {"main": "quarters"}).items():
        for dataset in datasets:
            for defense in defenses:
                for seed in seeds:
                    target = f"{part}-{dataset}-{defense}-{seed}"
                    _add_trial(rows, rng, target, sweep, part, split, dataset, defense, seed, n)
                    _add_membership(rows, rng, target, defense, n)
                    _add_inversion(rows, rng, target, defense, seed, images)
    return rows


def _add_trial(
    rows: Rows,
    rng: np.random.Generator,
    target: str,
    sweep: str,
    part: str,
    split: str,
    dataset: str,
    defense: str,
    seed: int,
    n: int,
) -> None:
    epsilon = EPSILON.get(defense)
    row: dict[str, Any] = dict.fromkeys(SCHEMAS["trials"].names)
    row |= {
        "schema_version": SCHEMA_VERSION,
        "target_id": target,
        "sweep": sweep,
        "part": part,
        "dataset": dataset,
        "split": split,
        "architecture": "paper_cnn",
        "defense": defense,
        "seed": seed,
        "config": "{}",
        "status": "finished",
        "attempts": 1,
        "n_train": n,
        "n_non_members": n,
        "n_test": n,
        "dataset_sha256": "ab" * 32,
        "epochs": 10,
        "batch_size": 20,
        "steps": 30,
        "train_accuracy": 0.99,
        "test_accuracy": ACCURACY.get(defense, 0.9) + 0.005 * rng.standard_normal(),
        "train_time_s": TIME.get(defense, 5.0) * (1 + 0.02 * rng.standard_normal()),
        "epsilon_target": epsilon,
        "epsilon_spent": None if epsilon is None else epsilon - 0.013,
        "delta": None if epsilon is None else 1e-5,
        "accountant": None if epsilon is None else "prv",
        "adjacency": None if epsilon is None else "add or remove one example",
        "sampling": "shuffled" if epsilon is None else "poisson",
        "noise_multiplier": None if epsilon is None else 1.1,
        "rdp": None if epsilon is None else [{"order": float(a), "divergence": 0.05 * a} for a in range(2, 64)],
        "paired_batches": False,
        "no_guarantee_reason": "no noise is added to the gradients" if epsilon is None else None,
        "sweeper_version": "0.1.0",
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
        "python_version": "3.11.7",
        "torch_version": "2.9.0",
        "opacus_version": "1.5.4",
        "device": "cpu",
        "machine": "x86_64",
        "threads": 1,
        "started_at": datetime(2025, 1, 1, 12, seed, tzinfo=UTC),
    }
    rows["trials"].append(row)


def _attack_row(target: str, attack: str, score: str | None, family: str = "membership") -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCHEMAS["attacks"].names)
    return row | {
        "schema_version": SCHEMA_VERSION,
        "target_id": target,
        "attack_id": f"id-{attack}",
        "attack": attack,
        "family": family,
        "score_name": score,
        "config": "{}",
        "status": "finished",
        "uses_target_membership_labels": False,
        "attack_time_s": 0.5,
    }


def _add_membership(rows: Rows, rng: np.random.Generator, target: str, defense: str, n: int) -> None:
    areas: dict[str, float] = {}
    for score in SCORES:
        members, others = rng.standard_normal(n) + SHIFT.get(defense, 0.2), rng.standard_normal(n)
        areas[score] = area(members, others)
        row = _attack_row(target, "threshold", score)
        row |= {"n_members": n, "n_non_members": n, "auc": areas[score], "advantage": 0.1}
        rows["attacks"].append(row)
        for is_member, values in ((True, members), (False, others)):
            rows["scores"] += [
                {
                    "target_id": target,
                    "attack_id": "id-threshold",
                    "score_name": score,
                    "example_id": index + (0 if is_member else n),
                    "is_member": is_member,
                    "score": float(value),
                }
                for index, value in enumerate(values)
            ]
    best = max(areas, key=lambda score: areas[score])
    row = _attack_row(target, "best_of", f"threshold/{best}")
    row |= {
        "n_members": n,
        "n_non_members": n,
        "auc": areas[best] - 0.01,
        "auc_low": areas[best] - 0.05,
        "auc_high": areas[best] + 0.03,
        "advantage": 2 * abs(areas[best] - 0.5) + 0.02,
        "balanced_accuracy": 0.5,
        "tpr_at_fpr_0.1": 0.1 + max(0.0, areas[best] - 0.5),
        "candidates": [f"threshold/{score}" for score in SCORES],
        "paper_protocol_auc": areas[best],
        "paper_protocol_score": f"threshold/{best}",
    }
    rows["attacks"].append(row)


def _add_inversion(
    rows: Rows, rng: np.random.Generator, target: str, defense: str, seed: int, images: Sequence[np.ndarray]
) -> None:
    rows["attacks"].append(_attack_row(target, "layer_decoder", None, family="inversion"))
    for index, layer in enumerate(LAYERS, start=1):
        factor = {"l2": 1.0 + 0.09 * index, "baseline": 1.0}.get(defense, 1.0 - 0.02 * index)
        error = 0.01 * 1.28**index * factor * (1 + 0.02 * rng.standard_normal())
        examples = [
            {
                "example_id": number,
                "mse": error,
                "original_png": png(image),
                "reconstruction_png": png(image * (1 - 0.08 * index) + 0.1 * rng.random(image.shape)),
            }
            for number, image in enumerate(images)
        ]
        rows["reconstructions"].append(
            {
                "target_id": target,
                "attack_id": "id-layer_decoder",
                "layer_index": index,
                "layer": layer,
                "mse_members": error * 0.98,
                "mse_non_members": error,
                "mse_test": error,
                "mse_gap": error * 0.02,
                "mse_constant": 0.075,
                "mse_untrained": error * 1.1,
                "n_attacker": 100,
                "n_members": 50,
                "n_non_members": 50,
                "n_test": 50,
                "examples": examples,
            }
        )


def write_tables(directory: Path, rows: Rows) -> Path:
    """Writes every table, an empty one where there are no rows."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, schema in SCHEMAS.items():
        pq.write_table(pa.Table.from_pylist(rows[name], schema=schema), directory / f"{name}.parquet")
    return directory


def fail_trial(rows: Rows, target: str, error: str = "RuntimeError: out of memory") -> None:
    """Turns one finished trial into a failed one: nulls in every measurement, no attacks."""
    keep = {"schema_version", "target_id", "sweep", "part", "dataset", "split", "architecture", "defense"}
    keep |= {"seed", "config", "attempts", "started_at"}
    for row in rows["trials"]:
        if row["target_id"] == target:
            row.update({name: None for name in row if name not in keep})
            row.update(status="failed", error=error)
    for name in ("attacks", "scores", "reconstructions"):
        rows[name] = [row for row in rows[name] if row["target_id"] != target]

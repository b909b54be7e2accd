"""A made-up results folder of a factor study: both sequences on a grid, a ladder of clip norms, quantile rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from analysis_fixture import Rows, make_rows

from sweeper.results.schema import SCHEMAS

EPOCHS = 4
LADDER = (0.04, 5.0, 20.0)

# What a factor study's tables have, for a schema that lacks some of it.
_COLUMNS: dict[str, list[tuple[str, pa.DataType]]] = {
    "trials": [
        ("optimizer", pa.string()),
        ("learning_rate", pa.float64()),
        ("mechanism", pa.string()),
        ("noise_scale", pa.float64()),
        ("noise_unit", pa.string()),
        ("max_grad_norm", pa.float64()),
        ("clipping", pa.string()),
        ("twin_id", pa.string()),
    ],
    "history": [("clip_norm", pa.float64()), ("clipped_fraction", pa.float64())],
    "attacks": [("epsilon_lower_bound", pa.float64())],
    "tpvd": [
        ("target_id", pa.string()),
        ("twin_id", pa.string()),
        ("tpvd", pa.float64()),
        ("tensors", pa.list_(pa.struct([("parameter", pa.string()), ("value_difference", pa.float64())]))),
        ("displacement_sketch", pa.list_(pa.float32())),
        ("tpvd_other_init", pa.float64()),
    ],
}


def schemas() -> dict[str, pa.Schema]:
    """The declared schemas with the columns of a factor study, each once."""
    found = dict(SCHEMAS)
    for name, columns in _COLUMNS.items():
        schema = found.get(name, pa.schema([]))
        for column, kind in columns:
            schema = schema if column in schema.names else schema.append(pa.field(column, kind))
        found[name] = schema
    return found


def _arms(noises: Sequence[float], clips: Sequence[float], ladder: bool, quantiles: bool) -> list[dict[str, Any]]:
    arms: list[dict[str, Any]] = [{"defense": "none"}]
    pairs = [(noise, clip) for noise in noises for clip in clips]
    pairs += [(max(noises), clip) for clip in LADDER] if ladder else []
    for noise, clip in pairs:
        for label, mechanism, unit in (("ca", "clip_then_noise", "clip_norm"), ("ac", "noise_then_clip", "absolute")):
            arms.append(
                {
                    "defense": f"{label}_{noise:g}_{clip:g}",
                    "mechanism": mechanism,
                    "noise_scale": noise,
                    "noise_unit": unit,
                    "max_grad_norm": clip,
                    "clipping": "fixed",
                }
            )
    if quantiles:
        arms += [
            {"defense": "quantile_flat", "mechanism": "quantile_clipping", "clipping": "quantile"},
            {"defense": "quantile_per_layer", "mechanism": "quantile_clipping", "clipping": "quantile_per_layer"},
            {
                "defense": "noised_quantile",
                "mechanism": "noised_quantile",
                "clipping": "noised_quantile",
                "noise_scale": 0.5,
                "noise_unit": "clip_norm",
            },
        ]
    return arms


def made_up(arm: dict[str, Any], dataset: str, model: str, optimizer: str) -> dict[str, float]:
    """Accuracy, loss, TPVD and AUC that follow the paper: AC above CA, TPVD with the clip norm."""
    base = {"mnist": 0.9, "cifar10": 0.45, "svhn": 0.6}.get(dataset, 0.7)
    base -= 0.05 * (model == "lin_lstm") + 0.02 * (optimizer == "sgd")
    loss = 1.6 * (1 - base)
    mechanism, clip = arm.get("mechanism"), arm.get("max_grad_norm")
    if mechanism is None:
        return {"accuracy": base + 0.05, "loss": 0.5 * loss, "tpvd": 0.0, "auc": 0.62}
    if clip is None:
        noised = mechanism == "noised_quantile"
        return {"accuracy": base - 0.2, "loss": 3 * loss, "tpvd": 1.9 + 0.2 * noised, "auc": 0.58 - 0.05 * noised}
    first = mechanism == "noise_then_clip"
    noise = arm["noise_scale"]
    return {
        "accuracy": base - (0.01 if first else 0.05) - 0.02 * noise - (0.1 if clip > 10 else 0.0),
        "loss": loss * (1 if first else 1.3) * (1 + 0.5 * noise),
        "tpvd": 1.2 + 0.4 * np.log1p(clip) + (0.0 if first else 0.2) + 0.1 * noise,
        "auc": 0.60 - 0.03 * np.log1p(clip) - (0.0 if first else 0.02),
    }


def make_factor_rows(
    *,
    datasets: Sequence[str] = ("mnist", "cifar10", "svhn"),
    models: Sequence[str] = ("lin_cnn", "lin_lstm"),
    optimizers: Sequence[str] = ("sgd", "adam"),
    noises: Sequence[float] = (0.1, 0.5),
    clips: Sequence[float] = (0.8, 1.4),
    seeds: Sequence[int] = (0, 1, 2),
    ladder: bool = True,
    quantiles: bool = True,
    n: int = 12,
) -> Rows:
    """Rows of every table. The ladder is MNIST's alone, with the CNN and Adam; quantile rules are the CNN's."""
    rng = np.random.default_rng(7)
    rows: Rows = {name: [] for name in schemas()}
    for dataset in datasets:
        for model in models:
            for optimizer in optimizers:
                main = (model, optimizer) == (models[0], optimizers[-1])
                arms = _arms(noises, clips, ladder and main and dataset == datasets[0], quantiles and main)
                for arm in arms:
                    for seed in seeds:
                        _add(rows, rng, arm, dataset, model, optimizer, seed, n)
    return rows


def _add(
    rows: Rows,
    rng: np.random.Generator,
    arm: dict[str, Any],
    dataset: str,
    model: str,
    optimizer: str,
    seed: int,
    n: int,
) -> None:
    made = make_rows(
        datasets=(dataset,),
        defenses=(arm["defense"],),
        seeds=(seed,),
        n=n,
        sweep="lin2020",
        parts={"sequence": "coins"},
        originals=(),
    )
    target = f"{dataset}-{model}-{optimizer}-{arm['defense']}-{seed}"
    twin = f"{dataset}-{model}-{optimizer}-none-{seed}"
    private = arm.get("mechanism") is not None
    means = made_up(arm, dataset, model, optimizer)
    wobble = {name: float(rng.normal(0, 0.004)) for name in means}
    accuracy = means["accuracy"] + wobble["accuracy"]
    trial = made["trials"][0]
    trial |= {**dict.fromkeys(name for name, _ in _COLUMNS["trials"]), **arm}
    trial |= {
        "target_id": target,
        "architecture": model,
        "optimizer": optimizer,
        "learning_rate": 0.001 if optimizer == "adam" else 0.1,
        "twin_id": twin if private else None,
        "test_accuracy": accuracy,
        "train_accuracy": accuracy + 0.02,
        "train_loss": means["loss"] * (1 + 5 * wobble["loss"]),
        "test_loss": means["loss"] * 1.1,
        "epochs": EPOCHS,
        "no_guarantee_reason": "noise is added before clipping" if private else "no noise is added to the gradients",
    }
    if arm.get("mechanism") == "clip_then_noise":
        trial |= {"epsilon_spent": 3.0 / arm["noise_scale"], "delta": 1e-5, "accountant": "rdp", "sampling": "poisson"}
        trial |= {"no_guarantee_reason": None, "adjacency": "add or remove one example"}
    rows["trials"].append(trial)
    if private:
        tensors = [{"parameter": "conv.weight", "value_difference": means["tpvd"]}]
        distance = means["tpvd"] + wobble["tpvd"]
        row = {"target_id": target, "twin_id": twin, "tpvd": distance, "tensors": tensors}
        rows["tpvd"].append(row | {"tpvd_other_init": 1.4 + 0.1 * distance})
    for epoch in range(1, EPOCHS + 1):
        left = 0.4 ** (epoch - 1)
        row: dict[str, Any] = dict.fromkeys(schemas()["history"].names)
        row |= {
            "target_id": target,
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": means["loss"] * (1 + wobble["loss"]) + (2.303 - means["loss"]) * left,
            "train_accuracy": accuracy - (accuracy - 0.1) * left,
            "test_loss": None,
            "test_accuracy": None,
            "train_time_s": 1.0,
            "clip_norm": arm.get("max_grad_norm"),
            "clipped_fraction": arm.get("max_grad_norm") and 0.7,
        }
        rows["history"].append(row)
    auc = means["auc"] + wobble["auc"]
    for row in made["attacks"]:
        if row["family"] == "inversion":
            continue
        row |= {"target_id": target, "epsilon_lower_bound": None}
        if row["attack"] == "best_of":
            row |= {"auc": auc, "auc_low": auc - 0.03, "auc_high": auc + 0.03, "paper_protocol_auc": auc + 0.01}
            row |= {"n_members": 800, "n_non_members": 800}
            row |= {"tpr_at_fpr_0.01": max(0.0, 0.01 + (auc - 0.5) / 4 + wobble["loss"])}
        elif row["score_name"] == "loss":
            row["epsilon_lower_bound"] = max(0.0, 6 * (auc - 0.52))
        rows["attacks"].append(row)
    for row in made["scores"]:
        rows["scores"].append(row | {"target_id": target})


def write_factor_tables(directory: Path, rows: Rows) -> Path:
    """Writes every table, an empty one where there are no rows."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        pq.write_table(pa.Table.from_pylist(rows.get(name, []), schema=schema), directory / f"{name}.parquet")
    return directory

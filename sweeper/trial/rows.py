"""Builds the rows of a trial's tables from the measurements."""

from __future__ import annotations

import datetime
import io
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from attacks.base import (
    LayerReconstruction,
    MembershipScores,
    ModelOutputs,
)
from models.answers import loss_and_accuracy
from models.canaries import Canaries
from models.datasets.base import Examples
from models.defenses.base import Mechanism
from models.splits import Split
from models.train import TrainedTarget
from sweeper.results.schema import SCHEMA_VERSION
from sweeper.sweep import components
from sweeper.sweep.identity import canonical_json
from sweeper.sweep.trial import Trial
from sweeper.trial import provenance, sources

# Rows


def trial_row(trial: Trial, started_at: datetime.datetime, attempt: int, device: torch.device) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "target_id": trial.target_id,
        "sweep": trial.sweep,
        "part": trial.part,
        "parts": list(trial.parts),
        "dataset": trial.dataset_label,
        "split": trial.split,
        "split_label": trial.split_label,
        **canary_columns(trial.split_plan.canaries),
        "n_reference": trial.split_plan.reference,
        "n_validation": trial.split_plan.validation,
        "adaptive_attacks": list(dict.fromkeys(name for each in trial.defenses for name in each.adaptive_attacks)),
        "worst_canaries": list(dict.fromkeys(name for each in trial.defenses for name in each.worst_canaries)),
        "architecture": trial.architecture_label,
        "optimizer": trial.optimizer_label,
        "defense": trial.defense_label,
        "mechanism": next(
            (components.name_of("defense", each) for each in trial.defenses if isinstance(each, Mechanism)), None
        ),
        "twin_id": trial.twin_id,
        "seed": trial.seed,
        "search_run": trial.search_run,
        "config": canonical_json(trial.config),
        "epochs": trial.training.epochs,
        "batch_size": trial.training.batch_size,
        "learning_rate": trial.training.learning_rate,
        "paired_batches": trial.training.paired_batches,
        "attempts": attempt,
        "started_at": started_at,
        **provenance.code(sources.of_target(trial)),
        **provenance.machine(device),
    }


def canary_columns(canaries: Canaries | None) -> dict[str, Any]:
    if canaries is None:
        return {"canary_kind": None, "n_canaries": None, "canary_seed": None}
    return {"canary_kind": canaries.kind, "n_canaries": canaries.count, "canary_seed": canaries.seed}


def data_columns(data: Examples, split: Split) -> dict[str, Any]:
    return {
        "n_train": len(split.trained),
        "n_members": len(split.members),
        "n_non_members": len(split.non_members),
        "n_test": len(split.test),
        "dataset_sha256": data.sha256,
        "normalization_mean": list(data.info.mean),
        "normalization_std": list(data.info.std),
    }


def accuracy_columns(outputs: ModelOutputs, split: Split) -> dict[str, Any]:
    """Loss and accuracy on each part of the data, from the target's outputs on every example; none on validation if it is empty."""
    columns = {}
    for part, index in (("train", split.trained), ("test", split.test), ("validation", split.validation)):
        if part == "validation" and not len(index):
            continue
        logits, labels = torch.from_numpy(outputs.values[index]), torch.from_numpy(outputs.label[index])
        columns[f"{part}_loss"], columns[f"{part}_accuracy"] = loss_and_accuracy(logits, labels)
    return columns


def training_columns(target: TrainedTarget) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "steps": target.steps,
        "first_step_time_s": target.first_step_time_s,
        "train_time_s": target.train_time_s,
        "seconds_per_step": target.seconds_per_step,
        "sampling": target.plan.sampling,
        "sample_rate": target.plan.sample_rate if target.plan.sampling == "poisson" else None,
    }
    rule = target.plan.rule
    if rule is not None:
        columns |= rule.settings() | {"noise_source": "system" if target.plan.secure_noise else "seed"}
    accounting, guarantee = target.plan.accounting, target.guarantee
    if accounting is None or guarantee is None:
        return columns | {"no_guarantee_reason": target.plan.no_guarantee_reason}
    return columns | {
        "epsilon_target": accounting.epsilon_target,
        "epsilon_spent": guarantee.epsilon,
        "delta": guarantee.delta,
        "accountant": guarantee.accountant,
        "adjacency": guarantee.adjacency,
        "noise_multiplier": accounting.noise_multiplier,
        "epsilon_gdp": accounting.epsilon_gdp(target.steps),
        "rdp": accounting.rdp(target.steps),
    }


def output_columns(target_id: str, outputs: ModelOutputs, split: Split) -> dict[str, Any]:
    n_rows, num_classes = outputs.values.shape
    offsets = np.arange(0, n_rows * num_classes + 1, num_classes, dtype=np.int32)
    return {
        "target_id": [target_id] * n_rows,
        "example_id": outputs.example_id,
        "role": split.roles(n_rows),
        "label": outputs.label,
        "logits": pa.ListArray.from_arrays(offsets, outputs.values.astype(np.float32).ravel()),
    }


def attack_row(trial: Trial, each: str, name: str, family: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "target_id": trial.target_id,
        "attack_id": each,
        "attack": name,
        "family": family,
        "config": canonical_json(config),
        "component_sha256": sources.of_attack(trial.attack_ids.get(each)).sha256,
    }


def score_columns(target_id: str, each: str, results: Sequence[MembershipScores]) -> dict[str, Any]:
    """The raw scores of one attack on one target."""
    n_each = [len(result.score) for result in results]
    n_rows = sum(n_each)
    return {
        "target_id": [target_id] * n_rows,
        "attack_id": [each] * n_rows,
        "score_name": [result.name for result in results for _ in result.score],
        "example_id": np.concatenate([result.example_id for result in results]),
        "is_member": np.concatenate([result.is_member for result in results]),
        "score": np.concatenate([result.score for result in results]),
        "fold": _concatenated([result.fold for result in results], n_each, pa.int64()),
        "selection_score": _concatenated([result.selection_score for result in results], n_each, pa.float64()),
    }


def _concatenated(values: Sequence[npt.NDArray[Any] | None], n_each: Sequence[int], kind: pa.DataType) -> pa.Array:
    """One column, with nulls for values that an attack does not have."""
    pairs = zip(values, n_each, strict=True)
    return pa.concat_arrays([pa.nulls(n, kind) if value is None else pa.array(value, kind) for value, n in pairs])


def reconstruction_columns(result: LayerReconstruction) -> dict[str, Any]:
    columns = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "examples"}
    columns["mse_gap"] = result.mse_non_members - result.mse_members
    columns["examples"] = [
        {
            "example_id": example.example_id,
            "mse": example.mse,
            "original_png": png(example.original),
            "reconstruction_png": png(example.reconstruction),
        }
        for example in result.examples
    ]
    return columns


def png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """A (channels, height, width) uint8 image as PNG; gray if it has one channel."""
    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image[:3].transpose(1, 2, 0))
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()

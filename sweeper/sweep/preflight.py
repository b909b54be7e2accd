"""Resolves a sweep's trials and finds its errors before anything is trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from attacks.base import AttackError
from models.architectures.base import Architecture
from models.datasets.base import Dataset, DatasetError, DatasetInfo
from models.defenses.base import Defense
from models.plan import TrainingPlan
from models.private.accounting import PrivacyGuarantee
from models.private.probe import check_examples_apart
from models.splits import COIN_SPLITS, SplitPlan
from models.train import build_model, check_reference, make_plan
from sweeper.errors import UserError, reason_of, sentence
from sweeper.results.answers import size_in_bytes
from sweeper.sweep import components
from sweeper.sweep.trial import Trial

# Floating-point operations per second of one CPU thread, and cost factors; for the rough estimate only.
_OPERATIONS_PER_S = 50e9
_PRIVATE_FACTOR = 1.4
_SHADOW_FACTOR = 1.0
_LARGEST_PROBED = 10**8
"""Most parameters of a model that is probed before a launch; a larger model is probed when its training begins."""
_LARGEST_EXAMPLE = 2**24
"""Most values of one example; a batch of larger ones would not fit in memory."""


@dataclass(frozen=True, kw_only=True)
class SplitSize:
    """How many examples a target is trained on, of how many attacks tell members from non-members, and how many test it.

    `n_answered` are those whose answers are recorded for attacks on cohorts.
    """

    n_train: int
    n_members: int
    n_non_members: int
    n_test: int
    n_answered: int


@dataclass(frozen=True, kw_only=True)
class ResolvedTrial:
    """A trial and everything that follows from it: sizes, steps, noise, ε, a rough cost."""

    trial: Trial
    size: SplitSize
    plan: TrainingPlan
    guarantee: PrivacyGuarantee | None
    rough_cpu_seconds: float
    answers_bytes: int
    """Size of the recorded answers to the queries about every example; 0 if no comparison can use them."""

    def as_json(self, status: str) -> dict[str, Any]:
        """Plain values for JSON."""
        trial, plan = self.trial, self.plan
        accounting = plan.accounting
        settings = plan.rule.settings() if plan.rule else {}
        return {
            "target_id": trial.target_id,
            "twin_id": trial.twin_id,
            "part": trial.part,
            "defense": trial.defense_label,
            "dataset": trial.dataset_label,
            "split": trial.split_label,
            "architecture": trial.architecture_label,
            "optimizer": trial.optimizer_label,
            "seed": trial.seed,
            "search_run": trial.search_run,
            "status": status,
            "attacks": [components.name_of("attack", attack) for attack in trial.attacks],
            "n_train": self.size.n_train,
            "n_members": self.size.n_members,
            "n_non_members": self.size.n_non_members,
            "n_test": self.size.n_test,
            "steps": plan.total_steps,
            "sampling": plan.sampling,
            "epsilon_target": accounting.epsilon_target if accounting else None,
            "epsilon": self.guarantee.epsilon if self.guarantee else None,
            "delta": accounting.delta if accounting else None,
            "accountant": self.guarantee.accountant if self.guarantee else None,
            "noise_multiplier": accounting.noise_multiplier if accounting else None,
            "noise_scale": settings.get("noise_scale"),
            "noise_unit": settings.get("noise_unit"),
            "clipping": settings.get("clipping"),
            "max_grad_norm": settings.get("max_grad_norm"),
            "sample_rate": plan.sample_rate if plan.sampling == "poisson" else None,
            "no_guarantee_reason": None if accounting else plan.no_guarantee_reason,
            "rough_cpu_seconds": round(self.rough_cpu_seconds, 1),
            "queries": trial.kept_queries,
            "answers_bytes": self.answers_bytes,
            "config": trial.config,
        }


def resolve_trials(trials: Sequence[Trial], data_dir: Path) -> tuple[list[ResolvedTrial], list[str]]:
    """Resolve every trial. Also returns warnings.

    Raises:
        UserError: a batch is larger than the data, an ε cannot be reached or computed, images are too small for the
            architecture, an attack has too few members or non-members or needs images where the dataset is a table, or an
            unpublished dataset is missing.
    """
    describe = cache(lambda dataset: _describe(dataset, data_dir))
    build = cache(_model_and_cost)
    checked: set[object] = set()
    sizes = cache(_split_sizes)
    known: dict[object, ResolvedTrial] = {}
    resolved, warnings = [], []
    for trial in trials:
        seed = trial.seed if trial.split in COIN_SPLITS or trial.split_plan.validation else 0
        # Most trials differ only by their seed, and a sweep may have very many.
        alike: tuple[object, ...] = (
            trial.dataset,
            trial.split_plan,
            trial.architecture,
            trial.defenses,
            trial.training,
        )
        alike += (trial.attacks, trial.kept_queries, seed)
        if alike in known:
            resolved.append(replace(known[alike], trial=trial))
            continue
        info = describe(trial.dataset)
        warnings += [f"{trial.dataset_label}: {note}." for note in info.notes]
        try:
            size = sizes(trial.split_plan, info, seed)
        except ValueError as error:
            raise UserError(f"{trial.title}: splits: {sentence(error)}") from None
        if not info.is_images:
            _refuse_what_needs_images(trial)
        try:
            # Most settings of most defenses do not change the model.
            editing = tuple(each for each in trial.defenses if type(each).edit_model is not Defense.edit_model)
            model, operations = build(trial.architecture, editing, info)
            check_reference(trial.defenses, trial.split_plan.reference)
            plan = make_plan(trial.training, trial.defenses, model, size.n_train)
            shapes = info.shape, info.num_classes
            inputs = (
                plan.loss,
                plan.epochs,
                plan.augmentation,
                plan.augmentation_multiplicity,
                plan.rule is None,
                shapes,
            )
            if inputs not in checked:  # settings of a search differ in what neither loss nor augmentation depends on
                plan.check_inputs(info)
                checked.add(inputs)
            if plan.rule is not None and sum(each.numel() for each in model.parameters()) <= _LARGEST_PROBED:
                _probe(trial.architecture, editing, *shapes)
            guarantee = plan.accounting.guarantee(plan.steps) if plan.accounting else None
            for attack in trial.attacks:
                attack.check_population(size.n_members, size.n_non_members)
        # RuntimeError and ArithmeticError are what PyTorch and the accountants raise for impossible sizes.
        except (ValueError, AttackError, RuntimeError, ArithmeticError) as error:
            raise UserError(f"{trial.title}: {sentence(error)}") from None
        if plan.accounting is not None and plan.accounting.delta >= 1 / size.n_train:
            warnings.append(
                f"{trial.defense_label} on {trial.dataset_label}: delta {plan.accounting.delta:g} is not below 1/n = "
                f"{1 / size.n_train:.2g} for {size.n_train} training examples; such a guarantee would allow publishing a whole example."
            )
        if guarantee is not None and plan.accounting is not None and guarantee.accountant != plan.accounting.accountant:
            warnings.append(
                f"{trial.defense_label} on {trial.dataset_label}: with noise_multiplier {plan.accounting.noise_multiplier:g}, ε is too "
                f"large for the {plan.accounting.accountant} accountant. It is an upper bound by {guarantee.accountant}, and "
                "guarantees nothing."
            )
        passes = (1 + plan.n_teachers * plan.teacher_share) * trial.training.epochs
        seconds = 3 * operations * plan.n_train * passes / _OPERATIONS_PER_S
        seconds *= trial.training.augmentation_multiplicity
        seconds *= _PRIVATE_FACTOR if plan.rule is not None else 1.0
        seconds *= 1 + _SHADOW_FACTOR * sum(attack.needs_shadow_data for attack in trial.attacks)
        known[alike] = ResolvedTrial(
            trial=trial,
            size=size,
            plan=plan,
            guarantee=guarantee,
            rough_cpu_seconds=seconds,
            answers_bytes=size_in_bytes(size.n_answered, trial.kept_queries, info.num_classes),
        )
        resolved.append(known[alike])
    return resolved, list(dict.fromkeys(warnings))


def twins_left_out(trials: Sequence[Trial], everything: Sequence[Trial]) -> str | None:
    """A warning if TPVD will be missing because `trials` lack twins that the whole sweep has."""
    twins = {trial.twin_id for trial in trials} & {trial.target_id for trial in everything}
    missing = twins - {trial.target_id for trial in trials}
    if not missing:
        return None
    labels = sorted({trial.defense_label for trial in everything if trial.target_id in missing})
    alone = sum(trial.twin_id in missing for trial in trials)
    return (
        f"{alone} of the chosen trials have a twin without their mechanism that --only leaves out ({', '.join(labels)}). They "
        "get no TPVD unless the twin is recorded."
    )


def check_datasets(trials: Sequence[Trial], data_dir: Path, download: bool) -> None:
    """Open every dataset once, and find the images that canaries are made of. If `download`, fetch missing datasets.

    Raises:
        UserError: one is missing or unreadable.
    """
    for dataset in dict.fromkeys(trial.dataset for trial in trials):
        try:
            if download:
                data_dir.mkdir(parents=True, exist_ok=True)
            dataset.open(data_dir, download)
        except DatasetError as error:
            raise UserError(str(error)) from None
        except OSError as error:
            raise UserError(
                f"Dataset '{components.name_of('dataset', dataset)}' could not be fetched into {data_dir}: {reason_of(error)}. "
                "Check the network, or copy the files there yourself and omit --download."
            ) from None

    for dataset, canaries in dict.fromkeys((trial.dataset, trial.split_plan.canaries) for trial in trials):
        if canaries is not None:
            try:
                canaries.check_files(_describe(dataset, data_dir), data_dir)
            except (DatasetError, ValueError) as error:
                raise UserError(sentence(error)) from None


def missing_datasets(trials: Sequence[Trial], data_dir: Path) -> list[str]:
    """For each dataset that cannot be opened, and each folder of outliers without enough images, the reason."""
    problems = []
    for canaries in dict.fromkeys(trial.split_plan.canaries for trial in trials):
        try:
            if canaries is not None:
                canaries.outliers(data_dir)
        except (DatasetError, ValueError) as error:
            problems.append(sentence(error))
    for dataset in dict.fromkeys(trial.dataset for trial in trials):
        try:
            dataset.open(data_dir, download=False)
        except DatasetError as error:
            problems.append(str(error))
    return problems


def _describe(dataset: Dataset, data_dir: Path) -> DatasetInfo:
    try:
        info = dataset.describe(data_dir)
    except (DatasetError, OSError) as error:
        raise UserError(sentence(reason_of(error))) from None
    if math.prod(info.shape) > _LARGEST_EXAMPLE:
        name = components.name_of("dataset", dataset)
        if not info.is_images:
            raise UserError(f"Rows of dataset '{name}' have {info.shape[0]:,} features, which are too many. Drop some.")
        channels, height, width = info.image_shape
        raise UserError(
            f"Images of dataset '{name}' would be {width} x {height} pixels of {channels} channels, which is too large. Set a "
            "smaller `resize`."
        )
    return info


def _refuse_what_needs_images(trial: Trial) -> None:
    """Refuse attacks and queries that only images have."""
    for attack in trial.attacks:
        if attack.needs_images:
            raise UserError(
                f"{trial.title}: attack '{components.name_of('attack', attack)}' needs images, and dataset '{trial.dataset_label}' is "
                "a table. Leave the attack out, or give the table a part of its own without it."
            )
    if trial.kept_queries > 1:
        raise UserError(
            f"{trial.title}: queries is {trial.kept_queries}, which flips and shifts images, and dataset '{trial.dataset_label}' is a "
            "table. Set queries to 1."
        )


def _split_sizes(plan: SplitPlan, info: DatasetInfo, seed: int) -> SplitSize:
    if plan.canaries is not None:
        plan.canaries.check(info)
    split = plan.draw(info.n_train, info.n_test, seed)
    return SplitSize(
        n_train=len(split.trained),
        n_members=len(split.members),
        n_non_members=len(split.non_members),
        n_test=len(split.test),
        n_answered=len(plan.answered(split)),
    )


def _model_and_cost(architecture: Architecture, defenses: tuple[Defense, ...], info: DatasetInfo) -> tuple[Any, int]:
    """The edited model, and the floating-point operations of its forward pass for one example."""
    counter = FlopCounterMode(display=False)
    # On the meta device: nothing is computed, and no memory is used, whatever the sizes
    with warnings.catch_warnings(), torch.device("meta"):
        model = build_model(architecture, defenses, info, init_seed=0)
        warnings.simplefilter("ignore")  # warnings about Intel's GPUs
        # The counter cannot count oneDNN's recurrent layers.
        with torch.backends.mkldnn.flags(enabled=False), counter, torch.no_grad():
            model.eval()(torch.zeros(1, *info.shape))
    return model, int(counter.get_total_flops())


@lru_cache
def _probe(architecture: Architecture, defenses: tuple[Defense, ...], shape: tuple[int, ...], num_classes: int) -> None:
    """Refuse a model that mixes examples, by comparing three random examples with eight; small enough for any CPU.

    The same model is checked once per process, because it takes seconds, and a search asks again for each of its arms.
    """
    scale = (0.5,) * shape[0] if len(shape) == 3 else ()
    info = DatasetInfo(n_train=8, n_test=8, shape=shape, num_classes=num_classes, mean=scale, std=scale)
    model = build_model(architecture, defenses, info, init_seed=0)
    check_examples_apart(model, torch.rand(8, *shape, generator=torch.Generator().manual_seed(0)))

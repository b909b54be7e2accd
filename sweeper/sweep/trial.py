"""A trial: one target to train and the attacks to run on it. Its ids are hashes of configurations."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from attacks.base import Attack
from attacks.comparisons.base import Comparison, TargetLabel
from models.architectures.base import Architecture
from models.datasets.base import Dataset
from models.defenses.base import AccountedMechanism, Defense, Mechanism
from models.defenses.none import NoDefense
from models.splits import REVISIONS, SplitPlan
from models.train import Training
from sweeper.sweep import components
from sweeper.sweep.identity import attack_id, candidate_ids, identity

DEFAULT_ARCHITECTURE = "lomurno_cnn"
"""The architecture of a sweep that specifies none."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One target to train, and the attacks to run on it.

    `target_id` is a hash of everything that makes the target, with defaults spelled out, and of nothing else: no attacks,
    comparisons, queries, labels, resources or paths. Two trials with the same id would train the same weights. `parts` are the names
    of all parts of the sweep that contain it.
    """

    sweep: str
    parts: tuple[str, ...]
    dataset_label: str
    architecture_label: str
    optimizer_label: str
    defense_label: str
    dataset: Dataset
    split_label: str
    split_plan: SplitPlan
    architecture: Architecture
    defenses: tuple[Defense, ...]
    training: Training
    seed: int
    attacks: tuple[Attack, ...]
    comparisons: tuple[Comparison, ...] = ()
    queries: int = 1
    """How many queries about each example are answered, if a comparison can use the answers."""
    search_run: int | None = None
    """Its number in its arm's search; None for a target that is evaluated. Not part of the target."""
    early_stop: str | None = None
    """The id of the early stopping that may end it. A run that was stopped counts for no other search, so this is part of it."""
    repeat: int = 0
    """How many earlier runs of a search have the same settings and seed. Each has noise and batches of its own."""

    @property
    def settings(self) -> tuple[Any, ...]:
        """Everything that makes the target but its seed; equal for the seeds of one cell."""
        return (self.dataset, self.split_plan, self.architecture, self.defenses, self.training)

    @property
    def split(self) -> str:
        """The name of its split."""
        return self.split_plan.name

    @property
    def kept_queries(self) -> int:
        """How many queries' answers are recorded; 0 if no comparison can use them."""
        return (
            self.queries
            if any(each.needs_answers and each.refusal(self.split) is None for each in self.comparisons)
            else 0
        )

    @property
    def config(self) -> dict[str, Any]:
        """Everything that makes the target, as plain JSON values. Not cached, because a sweep may have 100,000 trials."""
        config = {
            "dataset": components.configuration("dataset", self.dataset),
            "split": self._split_config,
            "architecture": components.configuration("architecture", self.architecture),
            "defenses": [components.configuration("defense", defense) for defense in self.defenses],
            "training": self._training_config,
            "seed": self.seed,
        }
        if self.early_stop is not None:
            config["early_stop"] = self.early_stop
        return config | {"repeat": self.repeat} if self.repeat else config

    @property
    def _training_config(self) -> dict[str, Any]:
        """Without an augmentation multiplicity of 1, so that such a training has the identity that it always had."""
        config = {"revision": self.training.revision, **dataclasses.asdict(self.training)}
        if self.training.augmentation_multiplicity == 1:
            del config["augmentation_multiplicity"]
        return config

    @property
    def _split_config(self) -> dict[str, Any]:
        """What is not set is left out, so that a split without canaries has the identity that it always had."""
        config: dict[str, Any] = {"name": self.split, "revision": REVISIONS[self.split]}
        canaries = self.split_plan.canaries
        if canaries is not None:
            config["canaries"] = {"revision": canaries.revision, **dataclasses.asdict(canaries)}
        config |= {name: count for name in ("reference", "validation") if (count := getattr(self.split_plan, name))}
        return config

    @cached_property
    def target_id(self) -> str:
        return identity(self.config)

    @cached_property
    def cell_id(self) -> str:
        """The hash of everything except the seed: trials of one cell differ only by their seed."""
        config = self.config
        del config["seed"]
        return identity(config)

    @property
    def memory_kind(self) -> object:
        """Equal for trials that need the same GPU memory."""
        training = self.training
        return (
            self.dataset,
            self.architecture,
            tuple(type(defense) for defense in self.defenses),
            training.optimizer,
            training.batch_size,
            training.augmentation_multiplicity,
            training.precision,
            self.attacks,
        )

    @property
    def attack_ids(self) -> dict[str, Attack]:
        """The attacks by their ids."""
        return _attack_ids(self.attacks)

    @cached_property
    def twin_id(self) -> str | None:
        """The target id of the same trial without its private mechanisms, which shows their cost; None if it has none.

        The twin draws its batches as this trial does: Poisson samples if the mechanism requires them. An accounted mechanism
        has batches of its own, hence no twin, unless the training asks for paired batches.
        """
        mechanisms = [defense for defense in self.defenses if isinstance(defense, Mechanism)]
        is_accounted = any(isinstance(mechanism, AccountedMechanism) for mechanism in mechanisms)
        if not mechanisms or (is_accounted and not self.training.paired_batches):
            return None
        training = self.training
        if any(mechanism.poisson_sampling for mechanism in mechanisms):
            training = dataclasses.replace(training, sampling="poisson")
        others = tuple(defense for defense in self.defenses if not isinstance(defense, Mechanism))
        return dataclasses.replace(self, defenses=others or (NoDefense(),), training=training).target_id

    @property
    def target_label(self) -> TargetLabel:
        """What a comparison knows about the target."""
        return TargetLabel(
            target_id=self.target_id,
            twin_id=self.twin_id,
            cell_id=self.cell_id,
            seed=self.seed,
            split=self.split,
            queries=self.kept_queries,
            is_private=any(isinstance(defense, Mechanism) for defense in self.defenses),
            candidate_ids=candidate_ids(self.attacks),
        )

    @property
    def part(self) -> str:
        """The first of its parts."""
        return self.parts[0]

    @property
    def labels(self) -> tuple[str, str, str, str]:
        """The sweep's labels for defense, dataset, architecture and optimizer."""
        return self.defense_label, self.dataset_label, self.architecture_label, self.optimizer_label

    @property
    def title(self) -> str:
        """A short readable name: defense, dataset, split and seed; architecture and optimizer if unusual."""
        which = f"seed {self.seed}" if self.search_run is None else f"search run {self.search_run}"
        return " · ".join([*self._names[:3], which, *self._names[3:]])

    @property
    def arm_title(self) -> str:
        """The same for all seeds of one cell together, or for all runs of its search."""
        return " · ".join([*self._names, *([] if self.search_run is None else ["search"])])

    @property
    def kind(self) -> str:
        """Trials of one kind take about as long as each other."""
        return self.arm_title

    @property
    def _names(self) -> list[str]:
        names = [self.defense_label, self.dataset_label, self.split_label]
        if (self.architecture_label, self.optimizer_label) != (DEFAULT_ARCHITECTURE, "sgd"):
            names += [self.architecture_label, self.optimizer_label]
        return names


@cache
def _attack_ids(attacks: tuple[Attack, ...]) -> dict[str, Attack]:
    return {attack_id(attack): attack for attack in attacks}

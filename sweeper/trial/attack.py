"""Runs the attacks on a trial's target one by one, and records them."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from attacks.auditing import DEFAULT_DELTA, audit_membership
from attacks.base import (
    Attack,
    AttackResult,
    AttackTarget,
    BlackBox,
    FloatArray,
    InputSet,
    LayerReconstruction,
    Membership,
    MembershipDecisions,
    MembershipScores,
    ModelOutputs,
    TailEstimate,
    WhiteBox,
)
from attacks.metrics import auc, example_folds, membership_metrics
from models.answers import EVALUATION_BATCH, Answer, answer_of
from models.datasets.base import Examples, IntArray
from models.seeds import Stream, numpy_generator, torch_seed
from models.splits import COIN_SPLITS, Split
from models.train import Recipe, build_model
from sweeper.results.expected import BEST_OF
from sweeper.results.store import DamagedError, Store
from sweeper.storage import StorageError
from sweeper.sweep import components
from sweeper.sweep.trial import Trial
from sweeper.trial.best_of import record_best_of
from sweeper.trial.context import TrialContext
from sweeper.trial.failures import cause_of, describe, record_failed_attack
from sweeper.trial.rows import attack_row, reconstruction_columns, score_columns
from sweeper.trial.target import outputs_of, recorded_model
from sweeper.workers.outcomes import Cause, Progress

logger = logging.getLogger(__name__)


def run_attacks(
    trial: Trial,
    missing: Sequence[str],
    target: AttackTarget | None,
    split: Split,
    context: TrialContext,
) -> tuple[list[str], Cause | None]:
    """Run the missing attacks one by one, then compare the membership attacks. Returns the errors' texts and the first cause."""
    errors: list[str] = []
    first_cause: Cause | None = None
    for number, each in enumerate(missing):
        attack = trial.attack_ids.get(each)
        name = components.name_of("attack", attack) if attack else BEST_OF
        context.on_progress(Progress(what=name, fraction=0.5 + 0.5 * number / len(missing)))
        try:
            if attack is None:
                record_best_of(trial, each, context.store)
                continue
            started = time.perf_counter()
            assert target is not None
            attack.check_population(len(split.members), len(split.non_members))
            results = attack.run(target, numpy_generator(trial.seed, Stream.ATTACK, int(each[:8], 16)))
            _record_attack(trial, each, attack, results, context.store, time.perf_counter() - started)
        except (StorageError, DamagedError):
            raise
        except Exception as error:
            if context.raise_errors:
                raise
            logger.debug("attack %s on %s failed", name, trial.target_id, exc_info=True)
            traceback.print_exc()
            record_failed_attack(trial, each, context.store, describe(error), cause_of(error))
            errors.append(f"{name}: {describe(error)}")
            first_cause = first_cause or cause_of(error)
    return errors, first_cause


def attack_target(trial: Trial, data: Examples, split: Split, context: TrialContext) -> AttackTarget:
    """The recorded target as an attacker sees it. Weights are loaded when an attack first needs them."""
    outputs = context.store.read_part("outputs", trial.target_id)
    by_id = {example: row for row, example in enumerate(outputs.column("example_id").to_pylist())}
    logits = np.asarray(outputs.column("logits").combine_chunks().flatten()).reshape(outputs.num_rows, -1)
    position = np.concatenate([split.members, split.non_members])
    rows = np.asarray([by_id[example] for example in data.example_id[position].tolist()])
    population = Membership(
        outputs=ModelOutputs(
            example_id=data.example_id[position],
            label=outputs.column("label").to_numpy()[rows],
            values=logits[rows],
        ),
        is_member=np.arange(len(position)) < len(split.members),
    )

    def train_shadow() -> Membership:
        shadow = Recipe(
            architecture=trial.architecture,
            defenses=trial.defenses,
            training=trial.training,
            data=data,
            members=split.shadow_in,
            test=split.shadow_out,
            reference=split.reference,
            seed=trial.seed,
            target_id=trial.target_id,
            stream_index=1,
            performance=context.performance,
        ).train()
        index = np.concatenate([split.shadow_in, split.shadow_out])
        return Membership(
            outputs=outputs_of(answer_of(shadow.model, trial.defenses), data, index),
            is_member=np.arange(len(index)) < len(split.shadow_in),
        )

    @lru_cache(maxsize=1)
    def trained() -> Any:
        return recorded_model(trial, data, context)

    @lru_cache(maxsize=1)
    def answer() -> Answer:
        return answer_of(trained(), trial.defenses)

    def query(inputs: torch.Tensor) -> FloatArray:
        return np.concatenate([answer()(part).cpu().numpy() for part in inputs.split(EVALUATION_BATCH)])

    return AttackTarget(
        population=population,
        half=example_folds(
            population.outputs.example_id, population.is_member, 2, numpy_generator(trial.seed, Stream.ATTACK)
        ),
        train_shadow=train_shadow if len(split.shadow_in) else None,
        black_box=BlackBox(
            query=query, test=_inputs(data, split.test), test_label=data.labels.cpu().numpy()[split.test]
        ),
        white_box=_white_box(trial, data, split, context, trained),
    )


def _inputs(data: Examples, index: IntArray) -> InputSet:
    return InputSet(
        example_id=data.example_id[index], inputs=data.inputs[torch.from_numpy(index).to(data.inputs.device)]
    )


def _white_box(
    trial: Trial, data: Examples, split: Split, context: TrialContext, trained: Callable[[], Any]
) -> WhiteBox:
    """Activations of the target and of an untrained twin, and disjoint examples for the attack.

    The attacker's examples are the shadow data if the split keeps some, else a random half of the non-members. The results
    are then for the other half of the non-members (which, under `official`, is also the test set).
    """
    attacker = np.concatenate([split.shadow_in, split.shadow_out])
    non_members, test = split.non_members, split.test
    if len(attacker) == 0:
        shuffled = numpy_generator(trial.seed, Stream.SPLIT, 1).permutation(split.non_members)
        attacker, non_members = np.sort(shuffled[: len(shuffled) // 2]), np.sort(shuffled[len(shuffled) // 2 :])
        if trial.split == "official":
            test = non_members

    def build(stream: Stream) -> torch.nn.Module:
        model = build_model(trial.architecture, trial.defenses, data.info, torch_seed(trial.seed, stream))
        return model.to(context.device).eval()

    @lru_cache(maxsize=1)
    def untrained() -> Any:
        return build(Stream.UNTRAINED)

    return WhiteBox(
        cut_points=build(Stream.INIT).stage_names,  # type: ignore[arg-type]
        activations=lambda batch, cut: trained().activations(batch, cut),
        untrained_activations=lambda batch, cut: untrained().activations(batch, cut),
        attacker=_inputs(data, attacker),
        members=_inputs(data, split.members),
        non_members=_inputs(data, non_members),
        test=_inputs(data, test),
    )


def _record_attack(
    trial: Trial,
    each: str,
    attack: Attack,
    results: Sequence[AttackResult],
    store: Store,
    attack_time_s: float,
) -> None:
    name = components.name_of("attack", attack)
    base = attack_row(trial, each, name, attack.family, components.configuration("attack", attack))
    base |= {"status": "finished", "attack_time_s": attack_time_s}
    base |= {"uses_target_membership_labels": attack.uses_target_membership_labels}
    membership = [result for result in results if isinstance(result, MembershipScores)]
    layers = [result for result in results if isinstance(result, LayerReconstruction)]
    is_audited = trial.split in COIN_SPLITS and not attack.uses_target_membership_labels
    delta = store.read_part("trials", trial.target_id).column("delta")[0].as_py() if is_audited else None
    rows = []
    for index, result in enumerate(membership):
        rng = numpy_generator(trial.seed, Stream.ATTACK, int(each[:8], 16) + 1 + index)
        metrics = membership_metrics(result.is_member, result.score, rng, result.fold)
        rows.append(base | {"score_name": result.name} | metrics.columns())
        if is_audited:
            audit = audit_membership(result, rng, DEFAULT_DELTA if delta is None else delta)
            rows[-1] |= {"epsilon_lower_bound": audit.epsilon_lower_bound, "audit_delta": audit.delta}
            rows[-1] |= {"null_auc": _null_auc(result, rng)}
    rows += [base | result.columns() for result in results if isinstance(result, MembershipDecisions | TailEstimate)]
    scored = membership + [result.as_scores() for result in results if isinstance(result, MembershipDecisions)]
    scores = score_columns(trial.target_id, each, scored) if scored else None
    key = {"target_id": trial.target_id, "attack_id": each}
    reconstructions = [key | reconstruction_columns(result) for result in layers] if layers else None
    store.write_attack(trial.target_id, each, rows or [base], scores, reconstructions)


def _null_auc(result: MembershipScores, rng: np.random.Generator) -> float | None:
    """The AUC of scores that use no membership labels, on a membership tossed anew; None if all coins fall alike.

    The coins come from a generator of their own, so that `rng` draws the same numbers for what is measured after this.
    """
    coins = rng.spawn(1)[0].random(len(result.score)) < 0.5
    return auc(coins, result.score) if 0 < coins.sum() < len(coins) else None

"""`run_trial`: one trial from configuration to records. No Ray; this is also what a debugger calls."""

from __future__ import annotations

import datetime
import io
import logging
import math
import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from PIL import Image
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from attacks.auditing import DEFAULT_DELTA, audit_membership
from attacks.base import (
    Attack,
    AttackError,
    AttackTarget,
    ImageSet,
    LayerReconstruction,
    Membership,
    MembershipScores,
    ModelOutputs,
    WhiteBox,
)
from attacks.metrics import example_folds, membership_metrics
from attacks.selection import best_of
from models.datasets.base import Dataset, ImageData, IntArray
from models.defenses.base import Mechanism
from models.performance import Performance
from models.seeds import Stream, numpy_generator, torch_seed
from models.splits import COIN_SPLITS, SPLITS, Split
from models.train import (
    Checkpoint,
    DivergedError,
    EpochRecord,
    TrainedTarget,
    build_model,
    fit,
    loss_and_accuracy,
    predict,
)
from sweeper.results import checkpoints
from sweeper.results.schema import SCHEMA_VERSION
from sweeper.results.store import BEST_OF, BEST_OF_REVISION, PARAMETERS, DamagedError, Store
from sweeper.storage.storage import StorageError
from sweeper.sweep import components
from sweeper.sweep.trial import Trial, canonical_json
from sweeper.trial import provenance, sources
from sweeper.workers.outcomes import Cause, Progress
from sweeper.workers.staging import load_staged

logger = logging.getLogger(__name__)

NO_CHECKPOINTS = math.inf
_DAMAGED_PARTS = 4
"""How many damaged files of one trial are set aside before the disk is blamed."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended: `finished`, or `failed` with one error text per thing that failed, and the first one's cause."""

    target_id: str
    status: str
    errors: tuple[str, ...] = ()
    cause: Cause | None = None
    trained: bool = False
    attacks_run: int = 0


def run_trial(
    trial: Trial,
    *,
    data_dir: Path,
    store: Store,
    device: torch.device,
    attempt: int = 1,
    staged: Path | None = None,
    checkpoint_every_s: float = NO_CHECKPOINTS,
    performance: Performance | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    raise_errors: bool = False,
) -> TrialResult:
    """Do what is missing of a trial and record each thing as soon as it is whole.

    A target on record is not trained again and a recorded attack is not run again. A training that lasts leaves a
    checkpoint in the store after the first epoch that ends `checkpoint_every_s` seconds after the last one, and goes on
    from the one that is there. An error in training or in one attack is recorded as a failed row (and raised instead
    where `raise_errors` is set); the other attacks go on. `staged` is a folder that may hold the dataset decoded.

    Raises:
        StorageError: the store cannot be read or written, so nothing can be recorded, failures included.
    """
    for _ in range(_DAMAGED_PARTS):
        try:
            return _run_missing(
                trial,
                data_dir,
                store,
                device,
                attempt,
                staged,
                checkpoint_every_s,
                performance,
                on_progress,
                raise_errors,
            )
        except DamagedError as error:
            # It is set aside by now, hence missing, hence made anew.
            logger.warning("%s", error)
    raise StorageError(f"Files of {trial.target_id} in {store.location} are damaged again and again. Check the disk.")


def _run_missing(
    trial: Trial,
    data_dir: Path,
    store: Store,
    device: torch.device,
    attempt: int,
    staged: Path | None,
    checkpoint_every_s: float,
    performance: Performance | None,
    on_progress: Callable[[Progress], None],
    raise_errors: bool,
) -> TrialResult:
    started_at = datetime.datetime.now(datetime.UTC)
    status = store.status(trial)
    if status.done:
        return TrialResult(target_id=trial.target_id, status="finished")
    trained = False
    try:
        on_progress(Progress(what="loading", fraction=0.0))
        started = time.perf_counter()
        data = _load(trial.dataset, data_dir, staged, device)
        load_time_s = time.perf_counter() - started
        split = SPLITS[trial.split](data.info.n_train, data.info.n_test, trial.seed)
        if status.target == "finished":
            _check_same_data(trial, data, store)
        else:
            target = _train(trial, data, split, store, checkpoint_every_s, performance, on_progress)
            outputs = _outputs(target.model, data, np.arange(len(data.labels)))
            row = _trial_row(trial, started_at, attempt, device)
            row |= _data_columns(data, split) | _training_columns(target, data, split) | {"load_time_s": load_time_s}
            status = store.status(trial)
            if status.target != "finished":  # else a process that was taken for lost has recorded it meanwhile
                store.write_target(
                    trial.target_id,
                    row | {"status": "finished"},
                    [{"target_id": trial.target_id, **asdict(record)} for record in target.history],
                    _output_columns(trial.target_id, outputs, split),
                    _weights(target.model),
                )
            trained = True
        missing = status.missing_attacks
        attacked = _attack_target(trial, data, split, store, device, performance) if missing else None
    except (StorageError, DamagedError):
        raise
    except Exception as error:
        if raise_errors:
            raise
        logger.debug("trial %s failed", trial.target_id, exc_info=True)
        traceback.print_exc()
        text, cause = _describe(error), _cause(error)
        _record_failure(trial, store, _trial_row(trial, started_at, attempt, device), text, cause)
        return TrialResult(target_id=trial.target_id, status="failed", errors=(text,), cause=cause)
    errors, first_cause = _run_attacks(trial, missing, attacked, split, store, on_progress, raise_errors)
    return TrialResult(
        target_id=trial.target_id,
        status="failed" if errors else "finished",
        errors=tuple(errors),
        cause=first_cause,
        trained=trained,
        attacks_run=sum(each in trial.attack_ids for each in missing),
    )


def record_failure(trial: Trial, store: Store, attempt: int, error: str, cause: Cause) -> None:
    """Record a trial that ended without saying so: its process was killed, or its node was lost.

    Raises:
        StorageError: the store cannot be written.
    """
    row = _trial_row(trial, datetime.datetime.now(datetime.UTC), attempt, torch.device("cpu"))
    row |= {"device": None, "machine": None, "threads": None}  # those of the process that died are not known
    _record_failure(trial, store, row, error, cause)


def _record_failure(trial: Trial, store: Store, row: dict[str, Any], error: str, cause: Cause) -> None:
    """A failed row for the target, or, where that is finished, for each attack that is missing."""
    status = store.status(trial)
    if status.target != "finished":
        store.write_failed_target(trial.target_id, row | {"status": "failed", "error": error, "cause": cause})
        return
    for each in status.missing_attacks:
        _record_failed_attack(trial, each, store, error, cause)


def _record_failed_attack(trial: Trial, each: str, store: Store, error: str, cause: Cause) -> None:
    attack = trial.attack_ids.get(each)
    if attack is None:
        row = _attack_row(trial, each, BEST_OF, "membership", _best_of_config(trial))
    else:
        name = components.name_of("attack", attack)
        row = _attack_row(trial, each, name, attack.family, components.configuration("attack", attack))
    store.write_failed_attack(trial.target_id, each, row | {"status": "failed", "error": error, "cause": cause})


def _check_same_data(trial: Trial, data: ImageData, store: Store) -> None:
    """Refuse to attack a recorded target with other data than it was trained on."""
    recorded = store.read_part("trials", trial.target_id).column("dataset_sha256")[0].as_py()
    if recorded != data.sha256:
        raise ValueError(
            f"the data of '{trial.dataset_label}' have changed since the target was trained (SHA-256 {recorded[:12]}…, now "
            f"{data.sha256[:12]}…). Put the former data back, or name another results folder with --out"
        )


def _load(dataset: Dataset, data_dir: Path, staged: Path | None, device: torch.device) -> ImageData:
    """The dataset on the device."""
    data = load_staged(dataset, staged) if staged is not None else None
    return (data or dataset.load(data_dir)).to(device)


def _train(
    trial: Trial,
    data: ImageData,
    split: Split,
    store: Store,
    checkpoint_every_s: float,
    performance: Performance | None,
    on_progress: Callable[[Progress], None],
) -> TrainedTarget:
    """Train the target, from its checkpoint where there is one."""
    # What a checkpoint must agree in beside the target's identity, for the rest of the training to give the same.
    code = provenance.training_code(sources.of_target(trial))
    owner = {"target_id": trial.target_id, "dataset_sha256": data.sha256, "code": code}
    owner["device"] = data.images.device.type
    last_checkpoint = time.monotonic()

    def checkpoint(taken: Checkpoint) -> None:
        nonlocal last_checkpoint
        store.write_checkpoint(trial.target_id, checkpoints.to_bytes(taken, owner))
        last_checkpoint = time.monotonic()

    resume = None
    content = store.read_checkpoint(trial.target_id)
    if content is not None:
        try:
            resume = checkpoints.from_bytes(content, owner, data.images.device)
            logger.info("going on after epoch %d", len(resume.history))
        except checkpoints.CheckpointError as error:
            logger.warning("the checkpoint is not used: %s", error)

    def report(record: EpochRecord, epochs: int) -> None:
        measured = {name: value for name, value in asdict(record).items() if isinstance(value, float)}
        what = f"epoch {record.epoch}/{epochs}"
        on_progress(Progress(what=what, fraction=0.5 * record.epoch / epochs, metrics=measured))

    return fit(
        architecture=trial.architecture,
        defenses=trial.defenses,
        training=trial.training,
        data=data,
        members=split.members,
        test=split.test,
        seed=trial.seed,
        target_id=trial.target_id,
        performance=performance,
        on_epoch=report,
        on_checkpoint=checkpoint,
        is_checkpoint_due=lambda: time.monotonic() - last_checkpoint >= checkpoint_every_s,
        resume=resume,
    )


def _outputs(model: torch.nn.Module, data: ImageData, index: IntArray) -> ModelOutputs:
    logits, labels = predict(model, data, index)
    return ModelOutputs(example_id=data.example_id[index], label=labels.numpy(), values=logits.numpy())


def _weights(model: torch.nn.Module) -> bytes:
    """All that the model holds, and which of it are parameters: TPVD is over these alone."""
    names = [name for name, _ in model.named_parameters()]
    return save_weights(model.state_dict(), metadata={PARAMETERS: canonical_json(names)})


# Attacks


def _run_attacks(
    trial: Trial,
    missing: Sequence[str],
    target: AttackTarget | None,
    split: Split,
    store: Store,
    on_progress: Callable[[Progress], None],
    raise_errors: bool,
) -> tuple[list[str], Cause | None]:
    """Run the missing attacks one by one, then compare the membership ones; gives the errors' texts and the first cause."""
    errors: list[str] = []
    first_cause: Cause | None = None
    for number, each in enumerate(missing):
        attack = trial.attack_ids.get(each)
        name = components.name_of("attack", attack) if attack else BEST_OF
        on_progress(Progress(what=name, fraction=0.5 + 0.5 * number / len(missing)))
        try:
            if attack is None:
                _record_best_of(trial, each, store)
                continue
            started = time.perf_counter()
            assert target is not None
            attack.check_population(len(split.members), len(split.non_members))
            results = attack.run(target, numpy_generator(trial.seed, Stream.ATTACK, int(each[:8], 16)))
            _record_attack(trial, each, attack, results, store, time.perf_counter() - started)
        except (StorageError, DamagedError):
            raise
        except Exception as error:
            if raise_errors:
                raise
            logger.debug("attack %s on %s failed", name, trial.target_id, exc_info=True)
            traceback.print_exc()
            _record_failed_attack(trial, each, store, _describe(error), _cause(error))
            errors.append(f"{name}: {_describe(error)}")
            first_cause = first_cause or _cause(error)
    return errors, first_cause


def _attack_target(
    trial: Trial, data: ImageData, split: Split, store: Store, device: torch.device, performance: Performance | None
) -> AttackTarget:
    """The recorded target as an attacker meets it; weights are loaded when an attack first asks for them."""
    outputs = store.read_part("outputs", trial.target_id)
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
        shadow = fit(
            architecture=trial.architecture,
            defenses=trial.defenses,
            training=trial.training,
            data=data,
            members=split.shadow_in,
            test=split.shadow_out,
            seed=trial.seed,
            target_id=trial.target_id,
            stream_index=1,
            performance=performance,
        )
        index = np.concatenate([split.shadow_in, split.shadow_out])
        return Membership(
            outputs=_outputs(shadow.model, data, index), is_member=np.arange(len(index)) < len(split.shadow_in)
        )

    return AttackTarget(
        population=population,
        half=example_folds(
            population.outputs.example_id, population.is_member, 2, numpy_generator(trial.seed, Stream.ATTACK)
        ),
        train_shadow=train_shadow if len(split.shadow_in) else None,
        white_box=_white_box(trial, data, split, store, device),
    )


def _white_box(trial: Trial, data: ImageData, split: Split, store: Store, device: torch.device) -> WhiteBox:
    """Activations of the target and of an untrained twin, and disjoint images to attack with.

    The attacker's images are the shadow data where the split keeps some, else a random half of the
    non-members; the other half is then what is reported on as non-members (and, under `official`, as test).
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
        return model.to(device).eval()

    @lru_cache(maxsize=1)
    def trained() -> Any:
        model = build(Stream.INIT)
        model.load_state_dict(load_weights(store.read_weights(trial.target_id)))
        return model

    @lru_cache(maxsize=1)
    def untrained() -> Any:
        return build(Stream.UNTRAINED)

    def images(index: IntArray) -> ImageSet:
        return ImageSet(
            example_id=data.example_id[index], images=data.images[torch.from_numpy(index).to(data.images.device)]
        )

    return WhiteBox(
        cut_points=build(Stream.INIT).stage_names,  # type: ignore[arg-type]
        activations=lambda batch, cut: trained().activations(batch, cut),
        untrained_activations=lambda batch, cut: untrained().activations(batch, cut),
        attacker=images(attacker),
        members=images(split.members),
        non_members=images(non_members),
        test=images(test),
    )


def _record_attack(
    trial: Trial,
    each: str,
    attack: Attack,
    results: Sequence[MembershipScores] | Sequence[LayerReconstruction],
    store: Store,
    attack_time_s: float,
) -> None:
    name = components.name_of("attack", attack)
    base = _attack_row(trial, each, name, attack.family, components.configuration("attack", attack))
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
    scores = None
    if membership:
        n_each = [len(result.score) for result in membership]
        n_rows = sum(n_each)
        scores = {
            "target_id": [trial.target_id] * n_rows,
            "attack_id": [each] * n_rows,
            "score_name": [result.name for result in membership for _ in result.score],
            "example_id": np.concatenate([result.example_id for result in membership]),
            "is_member": np.concatenate([result.is_member for result in membership]),
            "score": np.concatenate([result.score for result in membership]),
            "fold": _concatenated([result.fold for result in membership], n_each, pa.int64()),
            "selection_score": _concatenated([result.selection_score for result in membership], n_each, pa.float64()),
        }
    key = {"target_id": trial.target_id, "attack_id": each}
    reconstructions = [key | _reconstruction_columns(result) for result in layers] if layers else None
    store.write_attack(trial.target_id, each, rows or [base], scores, reconstructions)


def _concatenated(values: Sequence[npt.NDArray[Any] | None], n_each: Sequence[int], kind: pa.DataType) -> pa.Array:
    """One column; nulls in place of what an attack does not have."""
    pairs = zip(values, n_each, strict=True)
    return pa.concat_arrays([pa.nulls(n, kind) if value is None else pa.array(value, kind) for value, n in pairs])


def _membership_ids(trial: Trial) -> list[str]:
    return [each for each, attack in trial.attack_ids.items() if attack.family == "membership"]


def _best_of_config(trial: Trial) -> dict[str, Any]:
    return {"name": BEST_OF, "revision": BEST_OF_REVISION, "candidates": sorted(_membership_ids(trial))}


def _record_best_of(trial: Trial, own_id: str, store: Store) -> None:
    """Compare all membership scores of the target: the papers' maximum, and the honest selection beside it.

    Raises:
        AttackError: one of the attacks it compares failed.
    """
    membership = _membership_ids(trial)
    if not all(store.has_attack(trial.target_id, each) for each in membership):
        raise AttackError("an attack that it compares has failed")
    candidates: dict[str, MembershipScores] = {}
    uses_labels: dict[str, bool] = {}
    for each in membership:
        frame = store.read_part("scores", f"{trial.target_id}.{each}").to_pandas()
        attack = trial.attack_ids[each]
        for score_name, rows in frame.groupby("score_name", sort=False):
            key = f"{components.name_of('attack', attack)}/{score_name}"
            key = key if key not in candidates else f"{key}@{each[:6]}"
            uses_labels[key] = attack.uses_target_membership_labels
            candidates[key] = MembershipScores(
                name=str(score_name),
                example_id=rows["example_id"].to_numpy(),
                is_member=rows["is_member"].to_numpy(),
                score=rows["score"].to_numpy(),
                fold=_known(rows["fold"], np.int64),
                selection_score=_known(rows["selection_score"], np.float64),
            )
    started = time.perf_counter()
    best = best_of(candidates, numpy_generator(trial.seed, Stream.ATTACK, int(own_id[:8], 16)))
    row = _attack_row(trial, own_id, BEST_OF, "membership", _best_of_config(trial))
    row |= {
        "status": "finished",
        "score_name": best.selected[0],
        "selected_scores": list(best.selected),
        "uses_target_membership_labels": any(uses_labels[selected] for selected in best.selected),
        "candidates": list(candidates),
        "paper_protocol_auc": best.paper_protocol_auc,
        "paper_protocol_score": best.paper_protocol_score,
        "attack_time_s": time.perf_counter() - started,
    }
    store.write_attack(trial.target_id, own_id, [row | best.metrics.columns()], None, None)


def _known(column: pd.Series, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
    """A column of scores; None where the attack has none."""
    return None if column.isna().all() else column.to_numpy(dtype)


# Rows


def _trial_row(trial: Trial, started_at: datetime.datetime, attempt: int, device: torch.device) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "target_id": trial.target_id,
        "sweep": trial.sweep,
        "part": trial.part,
        "parts": list(trial.parts),
        "dataset": trial.dataset_label,
        "split": trial.split,
        "architecture": trial.architecture_label,
        "optimizer": trial.optimizer_label,
        "defense": trial.defense_label,
        "mechanism": next(
            (components.name_of("defense", each) for each in trial.defenses if isinstance(each, Mechanism)), None
        ),
        "twin_id": trial.twin_id,
        "seed": trial.seed,
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


def _data_columns(data: ImageData, split: Split) -> dict[str, Any]:
    return {
        "n_train": len(split.members),
        "n_non_members": len(split.non_members),
        "n_test": len(split.test),
        "dataset_sha256": data.sha256,
        "normalization_mean": list(data.info.mean),
        "normalization_std": list(data.info.std),
    }


def _training_columns(target: TrainedTarget, data: ImageData, split: Split) -> dict[str, Any]:
    train_loss, train_accuracy = loss_and_accuracy(*predict(target.model, data, split.members))
    test_loss, test_accuracy = loss_and_accuracy(*predict(target.model, data, split.test))
    columns: dict[str, Any] = {
        "steps": target.steps,
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
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


def _output_columns(target_id: str, outputs: ModelOutputs, split: Split) -> dict[str, Any]:
    n_rows, num_classes = outputs.values.shape
    offsets = np.arange(0, n_rows * num_classes + 1, num_classes, dtype=np.int32)
    return {
        "target_id": [target_id] * n_rows,
        "example_id": outputs.example_id,
        "role": split.roles(n_rows),
        "label": outputs.label,
        "logits": pa.ListArray.from_arrays(offsets, outputs.values.astype(np.float32).ravel()),
    }


def _attack_row(trial: Trial, each: str, name: str, family: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "target_id": trial.target_id,
        "attack_id": each,
        "attack": name,
        "family": family,
        "config": canonical_json(config),
        "component_sha256": sources.of_attack(trial.attack_ids.get(each)).sha256,
    }


def _reconstruction_columns(result: LayerReconstruction) -> dict[str, Any]:
    columns = {name: getattr(result, name) for name in result.__dataclass_fields__ if name != "examples"}
    columns["mse_gap"] = result.mse_non_members - result.mse_members
    columns["examples"] = [
        {
            "example_id": example.example_id,
            "mse": example.mse,
            "original_png": _png(example.original),
            "reconstruction_png": _png(example.reconstruction),
        }
        for example in result.examples
    ]
    return columns


def _png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """(channels, height, width) uint8 as PNG; gray for one channel."""
    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image[:3].transpose(1, 2, 0))
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


# What CUDA's libraries say where PyTorch's own allocator was not the one to fail.
_LIBRARY_OUT_OF_MEMORY = re.compile(r"CUDA error: out of memory|CU(BLAS|DNN|SOLVER)_STATUS_ALLOC_FAILED")


def _cause(error: Exception) -> Cause:
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, torch.OutOfMemoryError) or _LIBRARY_OUT_OF_MEMORY.search(str(error)):
        return "gpu_memory"
    return "error"


def _describe(error: Exception) -> str:
    """The error's kind and text, and where in our code it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"

"""A trial's target: its data, its training, and its outputs on every example."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from attacks.base import (
    ModelOutputs,
)
from models.answers import Answer, answer_of, predict
from models.datasets.base import Examples, IntArray
from models.queries import queried
from models.seeds import Stream, torch_seed
from models.splits import Split
from models.train import (
    Checkpoint,
    DivergedError,
    EpochRecord,
    Recipe,
    TrainedTarget,
    build_model,
)
from sweeper.results import answers, checkpoints
from sweeper.results.store import PARAMETERS
from sweeper.search.early_stopping import EPOCH
from sweeper.sweep.identity import canonical_json
from sweeper.sweep.trial import Trial
from sweeper.trial import provenance, sources
from sweeper.trial.context import TrialContext
from sweeper.workers.outcomes import Progress
from sweeper.workers.staging import load_staged

logger = logging.getLogger(__name__)


def load_data(trial: Trial, context: TrialContext) -> Examples:
    """The trial's dataset, with its canaries in their places, on the device."""
    data = load_staged(trial.dataset, context.staged) if context.staged is not None else None
    data = (data or trial.dataset.load(context.data_dir)).to(context.device)
    canaries = trial.split_plan.canaries
    return data if canaries is None else canaries.planted(data, context.data_dir)


def train_target(trial: Trial, data: Examples, split: Split, context: TrialContext) -> TrainedTarget:
    """Train the target, resuming from its checkpoint if there is one."""
    # Besides the target's identity, a checkpoint must match these, or the rest of the training would give another result.
    code = provenance.training_code(sources.of_target(trial))
    owner = {"target_id": trial.target_id, "dataset_sha256": data.sha256, "code": code}
    owner["device"] = data.inputs.device.type
    last_checkpoint = time.monotonic()

    def checkpoint(taken: Checkpoint) -> None:
        nonlocal last_checkpoint
        context.store.write_checkpoint(trial.target_id, checkpoints.to_bytes(taken, owner))
        last_checkpoint = time.monotonic()

    resume = None
    content = context.store.read_checkpoint(trial.target_id)
    if content is not None:
        try:
            resume = checkpoints.from_bytes(content, owner, data.inputs.device)
            logger.info("resuming after epoch %d", len(resume.history))
        except checkpoints.CheckpointError as error:
            logger.warning("the checkpoint is not used: %s", error)

    def report(record: EpochRecord, epochs: int) -> None:
        measured = {name: value for name, value in asdict(record).items() if isinstance(value, float)}
        measured[EPOCH] = record.epoch
        what = f"epoch {record.epoch}/{epochs}"
        context.on_progress(Progress(what=what, fraction=0.5 * record.epoch / epochs, metrics=measured))

    if resume is not None and trial.early_stop is not None:
        for record in resume.history:  # early stopping compares runs epoch by epoch
            report(record, trial.training.epochs)
    return Recipe(
        architecture=trial.architecture,
        defenses=trial.defenses,
        training=trial.training,
        data=data,
        members=split.trained,
        test=split.test,
        reference=split.reference,
        validation=split.validation,
        may_stop=trial.early_stop is not None,
        seed=trial.seed,
        target_id=trial.target_id,
        performance=context.performance,
        on_epoch=report,
        on_checkpoint=checkpoint,
        is_checkpoint_due=lambda: time.monotonic() - last_checkpoint >= context.checkpoint_every_s,
        resume=resume,
    ).train()


def outputs_of(answer: Answer, data: Examples, index: IntArray) -> ModelOutputs:
    """What a model answers about the examples at `index`.

    Raises:
        DivergedError: answers are not finite.
        ValueError: answers have another shape than logits.
    """
    logits, labels = predict(answer, data, index)
    if logits.shape != (len(index), data.info.num_classes):
        raise ValueError(
            f"the answers have shape {tuple(logits.shape)}, but there are {len(index)} examples and {data.info.num_classes} classes; a "
            "defense that edits answers must return logits"
        )
    if not torch.isfinite(logits).all():
        raise DivergedError(
            "some answers are not finite numbers: the training diverged, so lower training.learning_rate; or a defense edits "
            "answers to such, and must return finite logits"
        )
    return ModelOutputs(example_id=data.example_id[index], label=labels.numpy(), values=logits.numpy())


def recorded_model(trial: Trial, data: Examples, context: TrialContext) -> torch.nn.Module:
    """The recorded target, in eval mode.

    Raises:
        DamagedError: its weights are missing or damaged.
    """
    model = build_model(trial.architecture, trial.defenses, data.info, torch_seed(trial.seed, Stream.INIT))
    model.load_state_dict(load_weights(context.store.read_weights(trial.target_id)))
    return model.to(context.device).eval()


def record_answers(trial: Trial, model: torch.nn.Module, data: Examples, split: Split, context: TrialContext) -> None:
    """Record the target's answers to every query about each example that attacks on cohorts ask of."""
    answer = answer_of(model, trial.defenses)
    index, n_queries = trial.split_plan.answered(split), trial.kept_queries
    logits = np.empty((len(index), n_queries, data.info.num_classes), dtype=answers.DTYPE)
    for query in range(n_queries):
        context.on_progress(Progress(what=f"query {query + 1}/{n_queries}", fraction=0.5))
        asked, _ = predict(answer, data, index, partial(queried, query=query))
        logits[:, query] = asked.numpy()
    content = answers.to_bytes(
        example_id=data.example_id[index],
        label=data.labels.cpu().numpy()[index],
        in_pool=index < data.info.n_train,
        is_member=np.isin(index, split.members),
        logits=logits,
    )
    context.store.write_answers(trial.target_id, n_queries, content)


def weights_of(model: torch.nn.Module) -> bytes:
    """All tensors of the model, and which of them are parameters, because TPVD uses only these."""
    names = [name for name, _ in model.named_parameters()]
    return save_weights(model.state_dict(), metadata={PARAMETERS: canonical_json(names)})

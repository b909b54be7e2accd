"""Small trainings, for tests of the training loop and of what plans and defenses change."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from models.architectures.base import Architecture, Normalize, StagedModel
from models.architectures.lomurno_cnn import LomurnoCnn
from models.datasets.base import DatasetInfo, Examples
from models.train import Recipe, Training

CNN = LomurnoCnn(filters=(4, 4, 4), dense_units=8)


@dataclass(frozen=True, kw_only=True)
class Linear(Architecture):
    """One linear layer, for tests that take many steps."""

    source: ClassVar[str] = "logistic regression"

    def build(self, info):
        stage = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(info.image_shape), info.num_classes))
        return StagedModel(Normalize(info.mean, info.std), OrderedDict(prediction=stage))


def numbered(count):
    """A dataset whose images encode their position, so that a batch shows which examples are in it."""
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(count) // 256, torch.arange(count) % 256
    info = DatasetInfo(n_train=count, n_test=0, shape=(1, 8, 8), num_classes=3, mean=(0.5,), std=(0.5,))
    return Examples(inputs=images, labels=torch.arange(count) % 3, example_id=np.arange(count), info=info, sha256="")


def spelled(images):
    return (images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()).tolist()


def fit_on(
    data,
    *defenses,
    architecture=CNN,
    members=None,
    test=None,
    reference=(),
    validation=(),
    may_stop=False,
    seed=3,
    target_id="a target",
    stream_index=0,
    performance=None,
    on_epoch=None,
    on_checkpoint=None,
    resume=None,
    **training,
):
    return Recipe(
        architecture=architecture,
        defenses=defenses,
        training=Training(**{"epochs": 2, "batch_size": 32} | training),
        data=data,
        members=np.arange(data.info.n_train) if members is None else members,
        test=np.arange(data.info.n_train, len(data.labels)) if test is None else test,
        reference=np.asarray(reference, dtype=np.int64),
        validation=np.asarray(validation, dtype=np.int64),
        may_stop=may_stop,
        seed=seed,
        target_id=target_id,
        stream_index=stream_index,
        performance=performance,
        on_epoch=on_epoch,
        on_checkpoint=on_checkpoint,
        resume=resume,
    ).train()


def weights(target):
    return torch.cat([value.flatten() for value in target.model.state_dict().values()])

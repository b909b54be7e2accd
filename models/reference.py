"""What defenses learn from reference examples, which no target is trained on, and how they mask answers by it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.answers import answer_of, predict
from models.architectures.base import StagedModel
from models.seeds import Stream, seed_global_torch, torch_generator, torch_seed

if TYPE_CHECKING:
    from models.train import Recipe, TrainedTarget


class Mask(nn.Module):
    """Base of the last stage of a model that masks its logits in eval mode: takes and returns logits (n, classes).

    On the meta device, where a plan counts a network's operations, nothing is masked.
    """

    def forward(self, logits: Tensor) -> Tensor:
        return logits if self.training or logits.is_meta else self.masked(logits)

    def masked(self, logits: Tensor) -> Tensor:
        """The logits to answer instead. Each row depends on itself alone."""
        raise NotImplementedError


def with_mask(model: StagedModel, name: str, mask: nn.Module) -> StagedModel:
    """The model with one more stage."""
    stages = OrderedDict(model.stages.named_children())
    return StagedModel(model.normalize, OrderedDict({**stages, name: mask}))


def train_with_mask(
    recipe: Recipe,
    name: str,
    make: Callable[[int], Mask],
    learn: Callable[[Mask, Tensor, Tensor, torch.Generator], None],
) -> TrainedTarget:
    """Train the target as usual, then its mask by `learn(mask, member logits, reference logits, generator)`.

    `make` builds a mask for a number of classes. Its initialization, and the generator, come from the recipe's seed.
    """
    target = recipe.fit()
    started = time.perf_counter()
    answer = answer_of(target.model)
    of_members, of_reference = (predict(answer, recipe.data, index)[0] for index in (recipe.members, recipe.reference))
    with torch.random.fork_rng(devices=[]):
        seed_global_torch(torch_seed(recipe.seed, Stream.REFERENCE, recipe.stream_index))
        mask = make(recipe.data.info.num_classes)
    generator = torch_generator(recipe.seed, Stream.REFERENCE, recipe.stream_index + 1)
    learn(mask, of_members, of_reference, generator)
    model = with_mask(target.model, name, mask.to(recipe.data.inputs.device)).eval()
    return replace(target, model=model, train_time_s=target.train_time_s + time.perf_counter() - started)


def shuffled_batches(
    tensors: tuple[Tensor, ...], batch_size: int, epochs: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, ...]]:
    """Batches of equally long tensors, shuffled anew in each epoch."""
    for _ in range(epochs):
        for index in torch.randperm(len(tensors[0]), generator=generator).split(batch_size):
            yield tuple(each[index] for each in tensors)


def relu_network(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them."""
    layers: list[nn.Module] = []
    for first, second in pairwise(sizes):
        layers += [nn.Linear(first, second), nn.ReLU()]
    return nn.Sequential(*layers[:-1])

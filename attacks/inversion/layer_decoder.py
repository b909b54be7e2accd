"""Model inversion from each layer of the target, by a trained decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, mse_loss, softmax

from attacks.base import (
    Attack,
    AttackError,
    AttackResult,
    AttackTarget,
    InputSet,
    LayerReconstruction,
    ReconstructedExample,
    WhiteBox,
)

PREDICTION_INPUTS = ("posterior", "log_posterior")


@dataclass(frozen=True, kw_only=True)
class LayerDecoder(Attack):
    """Trains a decoder from each layer's activations back to the image and reports the reconstruction error.

    The target is frozen up to the cut point, in eval mode; its activations are computed once. The decoder minimizes the
    mean squared error with Adam on attacker data disjoint from the target's. Hidden layers use SiLU; the output layer is a
    convolution and a sigmoid. Errors are per pixel on images in [0, 1], for members, non-members and test examples. Two
    controls show how much of the result is inversion: the attacker's mean image, and the same attack on a newly initialized
    target.

    `prediction_input` is what the attacker sees of the last layer: the posterior, or its logarithm, which stays informative
    if the softmax saturates.

    Source: Lomurno & Matteucci 2022, section 4. Deviations: the paper's decoder (its Figure 3) and attacker data are lost,
    so the decoder is our choice. A first layer maps to `width` channels (a dense layer to a small map if the cut is flat);
    then nearest-neighbor doubling and a 3×3 convolution repeat until the image's size is reached.

    Randomness: subsets, the decoder's initialization and its batches come from `rng`. A control decoder has the same
    initialization and batches as its counterpart.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    width: int = 32
    max_attacker_examples: int = 5000
    max_evaluated_examples: int = 1000
    kept_examples: int = 3
    prediction_input: str = "posterior"
    untrained_control: bool = True

    family: ClassVar[str] = "inversion"
    result: ClassVar[type[AttackResult]] = LayerReconstruction
    source: ClassVar[str] = "Lomurno & Matteucci 2022"
    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "width", "max_attacker_examples", "max_evaluated_examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.kept_examples < 0:
            raise ValueError(f"kept_examples is {self.kept_examples}; it must be at least 0")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 and finite")
        if self.prediction_input not in PREDICTION_INPUTS:
            raise ValueError(f"prediction_input is '{self.prediction_input}'; allowed: {', '.join(PREDICTION_INPUTS)}")

    def run(self, target: AttackTarget, rng: np.random.Generator) -> list[LayerReconstruction]:
        white_box = target.white_box
        if white_box is None:
            raise AttackError("layer_decoder needs the target's activations; stored outputs alone are not enough")
        attacker = _sample(white_box.attacker, self.max_attacker_examples, rng)
        members = _sample(white_box.members, self.max_evaluated_examples, rng)
        non_members = _sample(white_box.non_members, self.max_evaluated_examples, rng)
        test = _sample(white_box.test, self.max_evaluated_examples, rng)
        if min(len(part.example_id) for part in (attacker, members, non_members, test)) == 0:
            raise AttackError(
                "layer_decoder needs attacker data, members, non-members and test examples; one of them is empty"
            )
        mean_image = _unit(attacker.inputs).mean(0, keepdim=True)
        mse_constant = float(mse_loss(mean_image.expand_as(_unit(test.inputs)), _unit(test.inputs)))
        results = []
        for number, cut in enumerate(white_box.cut_points, start=1):
            decoder_seed = int(rng.integers(2**63 - 1))
            decode = self._train(white_box, cut, attacker, decoder_seed, untrained=False)
            errors, kept = {}, decode(test.inputs[: self.kept_examples])
            for name, part in (("members", members), ("non_members", non_members), ("test", test)):
                errors[name] = _mean_squared_error(decode, part.inputs)
            mse_untrained = None
            if self.untrained_control:
                control = self._train(white_box, cut, attacker, decoder_seed, untrained=True)
                mse_untrained = _mean_squared_error(control, test.inputs)
            results.append(
                LayerReconstruction(
                    layer_index=number,
                    layer=cut,
                    mse_members=errors["members"],
                    mse_non_members=errors["non_members"],
                    mse_test=errors["test"],
                    mse_constant=mse_constant,
                    mse_untrained=mse_untrained,
                    n_attacker=len(attacker.example_id),
                    n_members=len(members.example_id),
                    n_non_members=len(non_members.example_id),
                    n_test=len(test.example_id),
                    examples=_kept_examples(test, kept),
                )
            )
        return results

    def _train(self, white_box: WhiteBox, cut: str, attacker: InputSet, seed: int, *, untrained: bool) -> Decode:
        read = white_box.untrained_activations if untrained else white_box.activations
        is_last = cut == white_box.cut_points[-1]

        def features(images: Tensor) -> Tensor:
            with torch.no_grad():
                parts = [read(part, cut) for part in images.split(1000)]
                values = torch.cat(parts)
                if is_last:
                    values = softmax(values, 1) if self.prediction_input == "posterior" else log_softmax(values, 1)
                return values

        inputs, targets = features(attacker.inputs), _unit(attacker.inputs)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            decoder = build_decoder(tuple(inputs.shape[1:]), tuple(targets.shape[1:]), self.width)
        decoder.to(targets.device).to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=self.learning_rate)
        for _ in range(self.epochs):
            for batch in torch.randperm(len(inputs), generator=generator).split(self.batch_size):
                index = batch.to(targets.device)
                loss = mse_loss(decoder(inputs[index]), targets[index])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        decoder.eval()
        return Decode(features, decoder)


class Decode:
    """Maps images to their reconstructions, both (n, channels, height, width); the output is float in [0, 1]."""

    def __init__(self, features: Callable[[Tensor], Tensor], decoder: nn.Module) -> None:
        self._features = features
        self._decoder = decoder

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [self._decoder(self._features(part)) for part in images.split(500)]
        return torch.cat(parts) if parts else torch.empty(images.shape)


def build_decoder(activation_shape: tuple[int, ...], image_shape: tuple[int, ...], width: int) -> nn.Sequential:
    """A decoder from an activation, flat or (channels, height, width), to an image; `LayerDecoder` describes it."""
    channels, height, width_px = image_shape
    layers: list[nn.Module] = []
    if len(activation_shape) == 1:
        rows, columns = height, width_px
        while max(rows, columns) > 8 or rows == height > 1:
            rows, columns = -(-rows // 2), -(-columns // 2)
        layers += [
            nn.Linear(activation_shape[0], width * rows * columns),
            nn.SiLU(),
            nn.Unflatten(1, (width, rows, columns)),
        ]
    else:
        rows, columns = activation_shape[1:]
        layers += [nn.Conv2d(activation_shape[0], width, 3, padding=1), nn.SiLU()]
    while rows < height or columns < width_px:
        rows, columns = min(2 * rows, height), min(2 * columns, width_px)
        layers += [nn.Upsample(size=(rows, columns)), nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
    layers += [nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid()]
    return nn.Sequential(*layers)


def _sample(images: InputSet, limit: int, rng: np.random.Generator) -> InputSet:
    chosen = np.sort(rng.permutation(len(images.example_id))[:limit])
    return InputSet(
        example_id=images.example_id[chosen], inputs=images.inputs[torch.from_numpy(chosen).to(images.inputs.device)]
    )


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255


def _mean_squared_error(decode: Decode, images: Tensor) -> float:
    squares = [(decode(part) - _unit(part)).double().pow(2).sum() for part in images.split(500)]
    return float(torch.stack(squares).sum()) / images.numel()


def _kept_examples(originals: InputSet, reconstructions: Tensor) -> tuple[ReconstructedExample, ...]:
    return tuple(
        ReconstructedExample(
            example_id=int(example_id),
            mse=float((reconstruction - _unit(original)).double().pow(2).mean()),
            original=original.cpu().numpy(),
            reconstruction=(reconstruction.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy(),
        )
        for example_id, original, reconstruction in zip(
            originals.example_id.tolist(), originals.inputs, reconstructions, strict=False
        )
    )

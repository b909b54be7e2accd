"""Per-example gradients turned into one private gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.performance import Performance, Precision, Replay, forward
from models.private.rules import Rule
from models.private.tap import Tap

_FIRST_ROWS = 8
"""Examples that are tried out before the first step."""


class PrivateGradient:
    """Computes Σᵢ weightᵢ · gᵢ + noise, over the expected batch size, into the parameters' `.grad`.

    One forward and one backward pass give every layer's inputs and output gradients, from these come the norms, and
    after the rule has turned norms into weights, the weighted sum; see `models.private.layers` for how. A batch is
    worked through in chunks, so that memory does not grow with it; noise is drawn once per step, whatever the chunks,
    from `noise_generator` alone. An empty batch is a step of noise only.

    Norms, sums and noise are float32 also where activations are bf16.

    Raises:
        ValueError: a layer mixes examples, such as BatchNorm, or no per-example gradients of it are known.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        expected_batch_size: float,
        noise_generator: torch.Generator,
        *,
        precision: Precision = "fp32",
        performance: Performance | None = None,
    ) -> None:
        self._model = model
        self._tap = Tap(model)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._rule = rule
        self._expected_batch_size = expected_batch_size
        self._noise_generator = noise_generator
        self._precision = precision
        self._device = self._parameters[0].device
        self._performance = performance or Performance()
        self._chunk_size = self._performance.chunk_size
        self._tried = False
        self._rows_multiple = self._performance.rows_multiple_on(self._device)
        self._run_chunk = Replay(self._chunk) if self._performance.replays_on(self._device) else self._chunk

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Set every `.grad` from a batch; gives the summed loss and the number right, both 0-d tensors."""
        totals: list[Tensor] | None = None
        done, count = 0, len(labels)
        if count and not self._tried:
            self._try_out(images, labels)
        while done < count:
            # Chunks of nearly the same size, none above the limit
            assert self._chunk_size is not None
            left = count - done
            rows = -(-left // -(-left // self._chunk_size))
            chunk = slice(done, done + rows)
            results = self._run_chunk(*self._padded(images[chunk], labels[chunk]))
            totals = list(results) if totals is None else [a.add_(b) for a, b in zip(totals, results, strict=True)]
            done += rows
            if done < count and totals[0] is results[0]:
                totals = [total.clone() for total in totals]  # two may be one tensor, and a replay writes over them
        if totals is None:
            totals = [torch.zeros((), device=self._device), torch.zeros((), device=self._device)]
            totals += [torch.zeros_like(parameter) for parameter in self._parameters]
        loss_sum, n_right, *sums = totals
        scale = 1 / self._expected_batch_size
        for parameter, weighted_sum in zip(self._parameters, sums, strict=True):
            noise = torch.empty_like(parameter, memory_format=torch.contiguous_format)
            noise.normal_(0, self._rule.noise_std * scale, generator=self._noise_generator)
            parameter.grad = noise.add_(weighted_sum, alpha=scale)
        return loss_sum.clone(), n_right.clone()  # a replayed step writes over its own

    def close(self) -> None:
        """Leave an ordinary model."""
        self._tap.close()

    def _try_out(self, images: Tensor, labels: Tensor) -> None:
        """Choose the size of the chunks by what a few examples take, leaving the global generators as they were.

        Their number is not the batch's: a layer that takes a sequence's steps for examples does not pass both.
        """
        rows = slice(0, _FIRST_ROWS if len(labels) > _FIRST_ROWS else max(1, len(labels) - 1))
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            self._chunk(images[rows], labels[rows], torch.ones_like(labels[rows], dtype=torch.bool))
        self._tried = True
        if self._chunk_size is None:
            per_example = max(1, self._tap.bytes_recorded // len(labels[rows]))
            affordable = max(1, self._performance.chunk_bytes_on(self._device) // per_example)
            self._chunk_size = affordable - affordable % 32 if affordable > 32 else affordable

    def _padded(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A chunk filled up with repetitions of its last example, and which rows are real."""
        count = len(labels)
        rows = -(-count // self._rows_multiple) * self._rows_multiple
        position = torch.arange(rows, device=self._device)
        is_real = position < count
        if rows > count:
            position = position.clamp(max=count - 1)
            images, labels = images[position], labels[position]
        return images, labels, is_real

    def _chunk(self, images: Tensor, labels: Tensor, is_real: Tensor) -> tuple[Tensor, ...]:
        """Summed loss, number right, and each parameter's weighted sum. Rows that are not real weigh exactly nothing."""
        for parameter in self._parameters:
            parameter.grad = None
        with self._tap.recording(len(labels)) as recording:
            logits = forward(self._model, images, self._precision)
            loss = torch.where(is_real, cross_entropy(logits, labels, reduction="none"), 0).sum()
            loss.backward()
        with torch.no_grad():
            norms = recording.squares(len(labels), self._device).sqrt()
            weights = torch.where(is_real, self._rule.weights(norms), 0)
            sums = recording.weighted_sums(weights)
            n_right = ((logits.argmax(1) == labels) & is_real).sum().float()
            ordered = [sums[p] if p in sums else torch.zeros_like(p) for p in self._parameters]
        return loss.detach(), n_right, *ordered

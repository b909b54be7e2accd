"""Computes a batch's private gradient from its per-example gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.losses import CrossEntropy, Loss, as_rows, check_loss, for_each_view, mean_of_views
from models.performance import Performance, Precision, Replay, forward
from models.private.noise import standard_normal
from models.private.probe import check_examples_apart
from models.private.rules import Rule, clip_factors
from models.private.tap import Recording, Tap, full_precision

Chunk = Callable[..., tuple[Tensor, ...]]

_FIRST_ROWS = 8
"""Number of examples in the trial run before the first step."""


class PrivateGradient:
    """Sets each parameter's `.grad` to (Σᵢ weightᵢ · gᵢ + noise) / expected batch size.

    `expected_batch_size` is for Poisson batches; None divides by each batch's own size, as an ordinary mean does.

    One forward and one backward pass give every layer's inputs and output gradients. From these the norms are computed; the
    rule turns norms into weights; then the weighted sum is computed (see `models.private.layers`). A batch is processed in
    chunks, so that memory does not grow with it. If a rule clips by the batch's own norms and the batch has more than one
    chunk, a second pass is needed. All noise comes from `noise_generator` (None: the operating system's generator). It is
    drawn once per step, or once per example if the rule requires it; the numbers do not depend on the chunks. For an empty
    batch the gradient is only the rule's noise on the sum.

    With several `views`, inputs are (n, views, ...): augmentations of the same example. An example's loss is the mean over its
    views, and its gradient is that of this mean, so views are averaged before clipping, and together they are one example to
    the rule, the noise and all counts. Source: De, Berrada, Hayes, Smith & Balle 2022, section 3.2.

    `clip_norms` (groups,) are those of the next step, or of the last step if the rule clips by the batch. They are the only
    state, and part of a checkpoint. Norms, sums and noise are float32 even if activations are bf16.

    Raises:
        ValueError: a layer mixes examples, such as BatchNorm, or has no known per-example gradients; or the loss mixes examples.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        expected_batch_size: float | None,
        noise_generator: torch.Generator | None,
        *,
        loss: Loss | None = None,
        views: int = 1,
        precision: Precision = "fp32",
        performance: Performance | None = None,
    ) -> None:
        self._model = model
        self._tap = Tap(model)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._dimension = sum(parameter.numel() for parameter in self._parameters)
        self._rule = rule
        self._expected_batch_size = expected_batch_size
        self._noise_generator = noise_generator
        self._loss = loss or CrossEntropy()
        self._views = views
        self._epoch = 1
        self._num_classes: int | None = None
        self._precision = precision
        self._device = self._parameters[0].device
        self._performance = performance or Performance()
        self._chunk_size = self._performance.chunk_size
        self._tried = False
        self._rows_multiple = self._performance.rows_multiple_on(self._device)
        self._example_noise_std = rule.example_noise_std(self._dimension)
        self._replays = self._performance.replays_on(self._device)
        self._prepare()
        n_groups = self._tap.n_layers if rule.per_layer else 1
        self.n_within = torch.zeros((), device=self._device)
        """Number of gradients within the clip norm, over all steps since this was last set to zero."""
        self.clip_norms = torch.full((n_groups,), float(rule.initial_clip_norm), device=self._device)

    def _prepare(self) -> None:
        """The functions of a step, to be captured when they first run."""
        self._run_chunk: Chunk = Replay(self._chunk) if self._replays else self._chunk
        self._run_whole: Chunk = Replay(self._whole_batch) if self._replays else self._whole_batch
        self._run_norms: Chunk = Replay(self._norms_alone) if self._replays else self._norms_alone
        if self._example_noise_std is not None:  # a replay would repeat noise drawn during the step
            self._run_chunk = self._literal_chunk

    def start_epoch(self, epoch: int) -> None:
        """The loss of the next steps is that of this epoch, from 1.

        Raises:
            ValueError: the loss mixes examples in this epoch.
        """
        if self._loss.uses_epoch and epoch != self._epoch:
            if self._num_classes is not None:
                check_loss(self._loss, self._num_classes, epoch)
            if self._replays:
                self._prepare()
        self._epoch = epoch

    def step(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Set every `.grad` from a batch. Returns the summed loss and the number of right answers, both 0-d tensors."""
        count = len(labels)
        if count and not self._tried:
            self._try_out(inputs, labels)
        draws = torch.empty(count, 0, device=self._device)
        if self._example_noise_std is None:
            draws = self._rule.draw(count, self._dimension, self._noise_generator, self._device)
        chunks = list(self._chunks(count))
        run = self._run_chunk
        if self._rule.clips_by_batch and len(chunks) == 1:
            run = self._run_whole
        elif self._rule.clips_by_batch and chunks:
            self.clip_norms = self._batch_clip_norms(inputs, labels, chunks)
        totals: list[Tensor] | None = None
        for chunk in chunks:
            results = run(*self._padded(inputs[chunk], labels[chunk], draws[chunk]), self.clip_norms)
            totals = list(results) if totals is None else [a.add_(b) for a, b in zip(totals, results, strict=True)]
            if len(chunks) > 1 and totals[0] is results[0]:
                totals = [total.clone() for total in totals]  # two may be the same tensor, and a replay overwrites them
        if totals is None:
            totals = [torch.zeros((), device=self._device) for _ in range(4)]
            totals += [torch.zeros_like(parameter) for parameter in self._parameters]
        if run is self._run_whole:
            self.clip_norms = totals.pop().clone()
        loss_sum, n_right, n_within, variance, *sums = totals
        self.n_within += n_within
        batch_size = self._expected_batch_size or max(1, count)
        scale = 1 / batch_size
        std = (variance + self._rule.noise_std(self.clip_norms).square()).sqrt()
        for parameter, weighted_sum in zip(self._parameters, sums, strict=True):
            noise = standard_normal(parameter.shape, self._noise_generator, self._device)
            parameter.grad = noise.mul_(std * scale).add_(weighted_sum, alpha=scale)
        self.clip_norms = self._rule.next_clip_norms(
            self.clip_norms, count, n_within, batch_size, self._noise_generator
        )
        return loss_sum.clone(), n_right.clone()  # a replayed step overwrites its results

    def close(self) -> None:
        """Restore the model to an ordinary one."""
        self._tap.close()

    def _chunks(self, count: int) -> Iterator[slice]:
        """Slices of nearly equal size, none larger than the chunk size."""
        done = 0
        while done < count:
            assert self._chunk_size is not None
            left = count - done
            rows = -(-left // -(-left // self._chunk_size))
            yield slice(done, done + rows)
            done += rows

    def _try_out(self, inputs: Tensor, labels: Tensor) -> None:
        """Refuse a model or a loss that mixes examples, and set the chunk size from the memory of a few. Generators are unchanged.

        The number of examples differs from the batch's, so a layer that mistakes a sequence's steps for examples fails.
        """
        tried = inputs if self._views == 1 else inputs[:, 0]
        check_examples_apart(
            self._model, tried[:_FIRST_ROWS] if len(labels) > 1 else torch.cat([tried, tried.flip(-1)])
        )
        rows = slice(0, _FIRST_ROWS if len(labels) > _FIRST_ROWS else max(1, len(labels) - 1))
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            with torch.no_grad():
                self._num_classes = forward(self._model, tried[rows], self._precision).shape[1]
            check_loss(self._loss, self._num_classes, self._epoch)
            self._norms_alone(inputs[rows], labels[rows], torch.ones_like(labels[rows], dtype=torch.bool))
        self._tried = True
        if self._chunk_size is None:
            per_example = max(1, self._tap.bytes_recorded // len(labels[rows]))
            if self._example_noise_std is not None:
                per_example += 8 * self._dimension  # the gradient and its noise
            affordable = max(1, self._performance.chunk_bytes_on(self._device) // per_example)
            self._chunk_size = affordable - affordable % 32 if affordable > 32 else affordable

    def _padded(self, inputs: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A chunk padded with copies of its last example, and a mask of the real rows."""
        count = len(labels)
        rows = -(-count // self._rows_multiple) * self._rows_multiple
        position = torch.arange(rows, device=self._device)
        is_real = position < count
        if rows > count:
            position = position.clamp(max=count - 1)
            inputs, labels, draws = inputs[position], labels[position], draws[position]
        return inputs, labels, is_real, draws

    def _batch_clip_norms(self, inputs: Tensor, labels: Tensor, chunks: Sequence[slice]) -> Tensor:
        """The rule's clip norms for the norms of all chunks. The next pass draws the same dropout masks again."""
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            norms, no_draws = [], torch.empty(len(labels), 0, device=self._device)
            for chunk in chunks:
                inputs_, labels_, is_real, _ = self._padded(inputs[chunk], labels[chunk], no_draws[chunk])
                norms.append(self._run_norms(inputs_, labels_, is_real)[0][: len(labels[chunk])].clone())
        all_norms = torch.cat(norms)
        return self._rule.batch_clip_norms(all_norms, torch.ones_like(all_norms[:, 0], dtype=torch.bool))

    @contextmanager
    def _backward(self, inputs: Tensor, labels: Tensor, is_real: Tensor) -> Iterator[tuple[Recording, Tensor, Tensor]]:
        """The recording of a forward and backward pass, the summed loss, and the number of right answers."""
        for parameter in self._parameters:
            parameter.grad = None
        repeated = for_each_view(labels, self._views)
        with self._tap.recording(len(labels), self._views) as recording:
            logits = forward(self._model, as_rows(inputs, self._views), self._precision)
            losses = mean_of_views(self._loss(logits, repeated, self._epoch), self._views)
            loss = torch.where(is_real, losses, 0).sum()
            loss.backward()
        with torch.no_grad():
            right = mean_of_views((logits.argmax(1) == repeated).float(), self._views)
            yield recording, loss.detach(), torch.where(is_real, right, 0).sum()

    def _norms(self, recording: Recording, count: int) -> Tensor:
        if self._rule.per_layer:
            return recording.layer_squares(count, self._device).sqrt()
        return recording.squares(count, self._device).sqrt()[:, None]

    def _norms_alone(self, inputs: Tensor, labels: Tensor, is_real: Tensor) -> tuple[Tensor, ...]:
        with self._backward(inputs, labels, is_real) as (recording, _, _):
            return (self._norms(recording, len(labels)),)

    def _chunk(
        self, inputs: Tensor, labels: Tensor, is_real: Tensor, draws: Tensor, clip_norms: Tensor
    ) -> tuple[Tensor, ...]:
        """Summed loss, number of right answers, number of norms within the clip norm, variance that the examples add to
        the noise, and each parameter's weighted sum. Padding rows have weight exactly 0."""
        with self._backward(inputs, labels, is_real) as (recording, loss_sum, n_right):
            norms = self._norms(recording, len(labels))
            return (loss_sum, n_right, *self._weighted(recording, norms, is_real, draws, clip_norms))

    def _whole_batch(
        self, inputs: Tensor, labels: Tensor, is_real: Tensor, draws: Tensor, clip_norms: Tensor
    ) -> tuple[Tensor, ...]:
        """As `_chunk`, for a whole batch. Clip norms come from the batch's own norms, not from the argument, and are
        returned last."""
        with self._backward(inputs, labels, is_real) as (recording, loss_sum, n_right):
            norms = self._norms(recording, len(labels))
            clip_norms = self._rule.batch_clip_norms(norms, is_real)
            return (loss_sum, n_right, *self._weighted(recording, norms, is_real, draws, clip_norms), clip_norms)

    def _weighted(
        self, recording: Recording, norms: Tensor, is_real: Tensor, draws: Tensor, clip_norms: Tensor
    ) -> tuple[Tensor, ...]:
        weights, variances = self._rule.weigh(norms, clip_norms, draws)
        sums = recording.weighted_sums(torch.where(is_real[:, None], weights, 0).squeeze(1))
        n_within = ((norms <= clip_norms).all(1) & is_real).sum().float()
        ordered = [sums[p] if p in sums else torch.zeros_like(p) for p in self._parameters]
        return n_within, torch.where(is_real, variances, 0).sum(), *ordered

    def _literal_chunk(
        self, inputs: Tensor, labels: Tensor, is_real: Tensor, draws: Tensor, clip_norms: Tensor
    ) -> tuple[Tensor, ...]:
        """As `_chunk`, with a noise vector added to each example's gradient before clipping."""
        assert self._example_noise_std is not None
        noises = []
        for _ in range(int(is_real.sum())):  # one by one, so the numbers do not depend on the chunk size
            noise = standard_normal([self._dimension], self._noise_generator, self._device)
            noises.append(noise.mul_(self._example_noise_std))
        noised = torch.stack(noises)
        with self._backward(inputs, labels, is_real) as (recording, loss_sum, n_right):
            samples = recording.samples()
            sizes = [parameter.numel() for parameter in self._parameters]
            parts = noised.split(sizes, dim=1)
            for parameter, part in zip(self._parameters, parts, strict=True):
                if parameter in samples:
                    part.add_(samples[parameter][: len(noised)].flatten(1))
            norms = torch.linalg.vector_norm(noised, dim=1, keepdim=True)
            with full_precision(self._device):
                total = clip_factors(norms, clip_norms)[:, 0] @ noised
            n_within = (norms <= clip_norms).sum().float()
            sums = [part.view_as(p) for part, p in zip(total.split(sizes), self._parameters, strict=True)]
            return loss_sum, n_right, n_within, torch.zeros_like(loss_sum), *sums

"""Options for speed and memory. None can change what is clipped or how much noise is added."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Performance:
    """How one training uses the machine. Results change by rounding only, except that dropout masks may differ.

    Args:
        chunk_size: the largest number of examples that private gradients process at once; it bounds memory. None: as many
            as fit in `chunk_bytes`, measured on the first examples. `pad_to` may enlarge a chunk beyond it. Ordinary
            gradients always use whole batches.
        chunk_bytes: memory of a chunk. None: 1.25 GiB on CPU, 5 GiB on CUDA.
        channels_last: store images with channels innermost, which is faster for convolutions.
        replay: capture a step as a CUDA graph once for each number of rows, then replay it. This saves kernel launch time
            in small models. None: true on CUDA. Other devices cannot replay.
        pad_to: pad a batch to a multiple of this many rows with examples of weight zero, so that random batch sizes give few
            shapes. None: 32 if steps are replayed, else 1, because nothing is compiled.
    """

    chunk_size: int | None = None
    chunk_bytes: int | None = None
    channels_last: bool = True
    replay: bool | None = None
    pad_to: int | None = None

    def __post_init__(self) -> None:
        for name in ("chunk_size", "chunk_bytes", "pad_to"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1, or left out")

    def replays_on(self, device: torch.device) -> bool:
        """Whether steps are replayed on this device."""
        if self.replay and device.type != "cuda":
            raise ValueError(f"replay captures CUDA graphs, and this is {device.type}; leave it out")
        return device.type == "cuda" if self.replay is None else self.replay

    def rows_multiple_on(self, device: torch.device) -> int:
        """The number of rows is padded to a multiple of this."""
        return self.pad_to or (32 if self.replays_on(device) else 1)

    def chunk_bytes_on(self, device: torch.device) -> int:
        """The memory that a chunk may use, in bytes."""
        return self.chunk_bytes or (5 * 2**30 if device.type == "cuda" else 5 * 2**28)


def forward(model: nn.Module, images: Tensor, precision: Precision) -> Tensor:
    """Logits in float32. Activations are in `precision` wherever PyTorch's autocast allows it."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = model(images)
    return logits.float()


def check_precision(precision: Precision, device: torch.device) -> None:
    """Check that the device computes in `precision` without emulation.

    Raises:
        ValueError: `precision` is bf16 and this CPU or GPU does not compute in bfloat16.
    """
    if precision == "fp32":
        return
    supported = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
    if not supported:
        raise ValueError(f"precision is bf16, but this {device.type.upper()} does not compute in bfloat16; use fp32")


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bfloat16."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


# Replaying steps

Outputs = tuple[Tensor, ...]
Capture = Callable[[Callable[..., Outputs], Sequence[Tensor]], tuple[Outputs, Callable[[], None]]]
"""Takes a function and its input tensors; returns its output tensors and a function that runs it again."""


class Replay:
    """A function of tensors that is captured once for each shape of its arguments, then replayed.

    The next call overwrites the returned tensors. The function must do the same work for all values and must not copy a
    value to the host; a function that does cannot be captured and is called directly, with one warning in the log. State
    other than the arguments, such as a model's mode, stays as it was at the capture. Random numbers are drawn as without a
    capture.
    """

    def __init__(self, function: Callable[..., Outputs], capture: Capture | None = None) -> None:
        self._function = function
        self._capture = capture or CudaGraphs()
        self._is_capturable = True
        self._captured: dict[tuple[object, ...], tuple[list[Tensor], Outputs, Callable[[], None]]] = {}

    def __call__(self, *arguments: Tensor) -> Outputs:
        key = tuple((argument.shape, argument.dtype, argument.stride()) for argument in arguments)
        if self._is_capturable and key not in self._captured:
            inputs = [argument.clone() for argument in arguments]
            try:
                self._captured[key] = (inputs, *self._capture(self._function, inputs))
            except RuntimeError as error:
                self._is_capturable = False
                logger.warning("steps are not replayed, which is slower for small models: %s", error)
        if key not in self._captured:
            return self._function(*arguments)
        inputs, outputs, run = self._captured[key]
        for kept, argument in zip(inputs, arguments, strict=True):
            kept.copy_(argument)
        run()
        return outputs


class CudaGraphs:
    """Captures functions as CUDA graphs, after the warm-up runs on a side stream that PyTorch requires.

    All graphs share one memory pool, so running one also overwrites the results of the others.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(
        self, function: Callable[..., Outputs], inputs: Sequence[Tensor]
    ) -> tuple[Outputs, Callable[[], None]]:
        device = inputs[0].device
        random_state = torch.cuda.get_rng_state(device)
        try:
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(3):
                    function(*inputs)
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = function(*inputs)
            self._pool = graph.pool()
        finally:
            torch.cuda.set_rng_state(random_state, device)
        return outputs, graph.replay

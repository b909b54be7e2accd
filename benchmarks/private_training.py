"""The cost of a step of private training, as a multiple of a step of SGD: our implementation and Opacus's, side by side.

    python benchmarks/private_training.py [--quick | --profile MODEL]

Every implementation takes the same batch, model and optimizer. All take turns in one process, so that their ratios hold
on a noisy machine; milliseconds do not. Each one's memory is measured in its own process, as the peak of a few steps
above what it held before the first. Rows go to build/bench/private_training.json, with the same as a Markdown table
beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleExpandedWeights
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.layers import DPLSTM
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from models.architectures.base import Architecture
from models.architectures.lin_cnn import LinCnn
from models.architectures.lin_lstm import LinLstm
from models.architectures.lomurno_cnn import LomurnoCnn
from models.architectures.resnet18 import ResNet18
from models.datasets.base import DatasetInfo
from models.gradient import PlainGradient
from models.performance import Performance
from models.private.gradients import PrivateGradient
from models.private.rules import ClipThenNoise
from sweeper.workers.allocator import ALLOCATOR_ENVIRONMENT

warnings.filterwarnings("ignore", message="Full backward hook is firing")  # from Opacus, about a model's first layer

OUT = Path("build/bench/private_training.json")
CASES: list[tuple[str, Architecture, tuple[int, int, int], int]] = [
    ("lomurno_cnn", LomurnoCnn(), (1, 28, 28), 200),
    ("lomurno_cnn", LomurnoCnn(), (3, 32, 32), 200),
    ("lin_lstm", LinLstm(), (1, 28, 28), 128),
    ("lin_cnn", LinCnn(), (1, 28, 28), 128),
    ("resnet18", ResNet18(), (3, 32, 32), 64),
]
QUICK_CASES = 3
VIEWS = 4
CLIP_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 1.0, 1.0, 1e-3

Step = Callable[[], object]


def sgd(model: nn.Module, images: Tensor, labels: Tensor, *, channels_last: bool = True) -> Step:
    """A step of `fit` without a private mechanism; `channels_last=False` keeps PyTorch's default memory layout."""
    if channels_last:
        model.to(memory_format=torch.channels_last)
    gradient = PlainGradient(model)
    optimizer = _sgd(model)
    return lambda: (gradient.step(images, labels), optimizer.step())


def sgd_contiguous(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    return sgd(model, images, labels, channels_last=False)


def ours(model: nn.Module, images: Tensor, labels: Tensor, *, views: int = 1) -> Step:
    """A step of `fit` with DP-SGD, of images (n, views, ...) if there are several views."""
    model.to(memory_format=torch.channels_last)
    rule = ClipThenNoise(max_grad_norm=CLIP_NORM, noise_scale=NOISE_MULTIPLIER)
    generator = torch.Generator().manual_seed(0)
    gradient = PrivateGradient(model, rule, len(labels), generator, views=views, performance=Performance())
    optimizer = _sgd(model)
    return lambda: (gradient.step(images, labels), optimizer.step())


def ours_of_views(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """The same with an augmentation multiplicity of `VIEWS`."""
    return ours(model, torch.stack([images.roll(view, -1) for view in range(VIEWS)], 1), labels, views=VIEWS)


def opacus_hooks(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    return _opacus(GradSampleModule(_with_dp_lstm(model)), images, labels)


def opacus_ew(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    if any(isinstance(module, nn.LSTM) for module in model.modules()):
        raise NotImplementedError("ExpandedWeights have no recurrent layers")
    return _opacus(GradSampleModuleExpandedWeights(model), images, labels)


def opacus_ghost(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    wrapped = GradSampleModuleFastGradientClipping(
        _with_dp_lstm(model), max_grad_norm=CLIP_NORM, use_ghost_clipping=True, loss_reduction="mean"
    )
    optimizer = DPOptimizerFastGradientClipping(
        _sgd(wrapped),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(labels),
    )
    criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss())

    def step() -> None:
        optimizer.zero_grad()
        criterion(wrapped(images), labels).backward()
        optimizer.step()

    return step


IMPLEMENTATIONS: dict[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    "sgd": sgd,
    "sgd_contiguous": sgd_contiguous,
    "ours": ours,
    "ours_of_views": ours_of_views,
    "opacus_hooks": opacus_hooks,
    "opacus_ew": opacus_ew,
    "opacus_ghost": opacus_ghost,
}


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def _opacus(wrapped: nn.Module, images: Tensor, labels: Tensor) -> Step:
    optimizer = DPOptimizer(
        _sgd(wrapped),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(labels),
    )
    criterion = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        criterion(wrapped(images), labels).backward()
        optimizer.step()

    return step


def _with_dp_lstm(model: nn.Module) -> nn.Module:
    """The model with Opacus's LSTM in place of PyTorch's, which Opacus cannot hook."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LSTM):
                replacement = DPLSTM(child.input_size, child.hidden_size, batch_first=child.batch_first)
                replacement.load_state_dict(child.state_dict())
                setattr(module, name, replacement)
    return model


# Measuring


def model_and_batch(case: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A case's model in train mode, images and labels; always the same."""
    _, architecture, shape, batch_size = CASES[case]
    torch.manual_seed(0)
    info = DatasetInfo(n_train=1, n_test=1, shape=shape, num_classes=10, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    model = deepcopy(architecture.build(info)).train()
    return model, torch.rand(batch_size, *shape), torch.randint(10, (batch_size,))


def build(case: int, implementation: str) -> Step:
    return IMPLEMENTATIONS[implementation](*model_and_batch(case))


def time_case(case: int, threads: int, seconds: float) -> dict[str, float]:
    """Median milliseconds per step by implementation; all take turns for about `seconds`."""
    torch.set_num_threads(threads)
    steps = {}
    for name in IMPLEMENTATIONS:
        try:
            steps[name] = build(case, name)
            steps[name]()
        except NotImplementedError:
            steps.pop(name, None)
    # SGD and ours run more often, because their ratio matters most and they take the least time.
    return medians(steps, ("sgd", "ours", "sgd", "ours", *steps), seconds)


def medians(steps: Mapping[str, Step], turns: Sequence[str], seconds: float) -> dict[str, float]:
    """Median milliseconds of each step; all take `turns` for about `seconds`."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(times[turns[0]]) < 5:
        for name in turns:
            before = time.perf_counter()
            steps[name]()
            times[name].append((time.perf_counter() - before) * 1e3)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def peak_of(case: int, threads: int, implementation: str) -> float | None:
    """Peak MiB of a few steps, above what was held before the first; None if it cannot be measured."""
    torch.set_num_threads(threads)
    try:
        step = build(case, implementation)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _status_mib("VmRSS")
        for _ in range(3):
            step()
    except (NotImplementedError, OSError):
        return None
    return _status_mib("VmHWM") - before


def _status_mib(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def apart(function: Callable[..., Any], *arguments: object) -> Any:
    """The function's result, computed in a process that starts like this one."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=lambda: send.send(function(*arguments)))
    process.start()
    send.close()
    try:
        return receive.recv()
    finally:
        process.join()


def measure(allocator: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of all cases with this process's allocator."""
    for case, (model, _, shape, batch_size) in enumerate(CASES[:QUICK_CASES] if quick else CASES):
        for threads in (1,) if quick else (1, 2):
            times = apart(time_case, case, threads, 14.0 if quick else 12.0)
            for name, milliseconds in times.items():
                peak = apart(peak_of, case, threads, name)
                yield {
                    "model": model,
                    "input": "x".join(map(str, shape)),
                    "batch_size": batch_size,
                    "threads": threads,
                    "allocator": allocator,
                    "implementation": name,
                    "ms_median": round(milliseconds, 2),
                    "ratio_to_sgd": round(milliseconds / times["sgd"], 3),
                    "ratio_to_ours_of_each_view": round(milliseconds / (VIEWS * times["ours"]), 3)
                    if name == "ours_of_views"
                    else None,
                    "peak_mib": None if peak is None else round(peak, 1),
                }


def profile(case: int) -> None:
    """Print how the time of a step is spent, for SGD and ours, on one thread."""
    torch.set_num_threads(1)
    for name in ("sgd", "ours"):
        step = build(case, name)
        step()
        with torch.profiler.profile() as profiler:
            for _ in range(5):
                step()
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=44)
        sys.stdout.write(f"{name}, five steps\n{table}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="lomurno_cnn and lin_lstm on one thread, tuned allocator")
    parser.add_argument("--worker", choices=["tuned", "default"], help=argparse.SUPPRESS)
    parser.add_argument("--profile", choices=[case[0] for case in CASES], help="operations of a step, SGD's and ours")
    arguments = parser.parse_args()
    if arguments.profile:
        profile([case[0] for case in CASES].index(arguments.profile))
        return
    if arguments.worker:
        for row in measure(arguments.worker, arguments.quick):
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
        return
    rows: list[dict[str, Any]] = []
    console = Console()
    console.width = max(console.width, 104)
    for allocator in ["tuned"] if arguments.quick else ["tuned", "default"]:
        environment = {key: value for key, value in os.environ.items() if key not in ALLOCATOR_ENVIRONMENT}
        environment |= ALLOCATOR_ENVIRONMENT if allocator == "tuned" else {}
        command = [sys.executable, __file__, "--worker", allocator, *(["--quick"] if arguments.quick else [])]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                rows.append(json.loads(line))
                row = rows[-1]
                console.print(
                    f"{row['model']} {row['input']}, {row['threads']} thread(s), allocator {row['allocator']}: "
                    f"{row['implementation']} {row['ratio_to_sgd']:.2f} x SGD",
                    style="dim",
                    highlight=False,
                )
        if worker.returncode:
            sys.exit(f"the measurement ended with exit code {worker.returncode}")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")
    shown = [("Time of a step over SGD's", "ratio_to_sgd", 2), ("Peak memory, MiB above the start", "peak_mib", 0)]
    OUT.with_suffix(".md").write_text("\n".join(markdown(rows, *each) for each in shown))
    for each in shown:
        console.print(table(rows, *each))
    for row in rows:
        if row["ratio_to_ours_of_each_view"] is not None:
            console.print(
                f"{row['model']} {row['input']}, {row['threads']} thread(s): a step with {VIEWS} views of each example takes "
                f"{row['ratio_to_ours_of_each_view']:.2f} times {VIEWS} steps without",
                highlight=False,
            )
    console.print("hooks, ew and ghost are Opacus's; SGD nchw keeps PyTorch's default memory layout.", highlight=False)
    console.print(f"written to {OUT}", highlight=False)


# Tables

TITLES = {
    "sgd": "SGD",
    "sgd_contiguous": "SGD nchw",
    "ours": "ours",
    "ours_of_views": f"ours, {VIEWS} views",
    "opacus_hooks": "hooks",
    "opacus_ew": "ew",
    "opacus_ghost": "ghost",
}
HEADER = ["model, input, batch", "threads", "malloc", *TITLES.values()]


def grid(rows: list[dict[str, Any]], value: str, digits: int) -> Iterator[list[str]]:
    """One line per case, threads and allocator, with one value of each implementation."""
    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "input", "batch_size", "threads", "allocator"))
        cases.setdefault(key, {})[row["implementation"]] = row
    for (model, shape, batch_size, threads, allocator), by_name in cases.items():
        values = [by_name[name][value] if name in by_name else None for name in TITLES]
        cells = ["-" if each is None else f"{each:.{digits}f}" for each in values]
        yield [f"{model} {shape}, {batch_size}", str(threads), allocator, *cells]


def table(rows: list[dict[str, Any]], title: str, value: str, digits: int) -> Table:
    result = Table(title=title, box=SIMPLE, title_justify="left")
    for number, header in enumerate(HEADER):
        result.add_column(header, justify="left" if number in (0, 2) else "right", no_wrap=True)
    for line in grid(rows, value, digits):
        result.add_row(*line)
    return result


def markdown(rows: list[dict[str, Any]], title: str, value: str, digits: int) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *grid(rows, value, digits)]
    return f"{title}:\n\n" + "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    main()

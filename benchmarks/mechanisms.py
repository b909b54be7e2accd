"""The cost of a step of each mechanism, as a multiple of a step of DP-SGD, which clips and then adds noise.

    python benchmarks/mechanisms.py [--quick]

Noise before clipping should cost no more in its two-scalar form; its literal form draws a vector for each example. All
mechanisms take turns in one process, so that their ratios hold on a noisy machine. Writes build/bench/mechanisms.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from private_training import CASES, Step, medians, model_and_batch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from models.performance import Performance
from models.private.gradients import PrivateGradient
from models.private.rules import ClipThenNoise, NoisedQuantile, NoiseThenClip, QuantileClipping, Rule
from sweeper.workers.allocator import restart_with_allocator_environment

OUT = Path("build/bench/mechanisms.json")
RULES: dict[str, tuple[Rule, Performance]] = {
    "clip, then noise": (ClipThenNoise(max_grad_norm=1.0, noise_scale=0.5), Performance()),
    "noise, then clip": (NoiseThenClip(max_grad_norm=1.0, noise_scale=0.5), Performance()),
    "literally": (NoiseThenClip(max_grad_norm=1.0, noise_scale=0.5, form="literal"), Performance()),
    "quantile": (QuantileClipping(noise_scale=0.5), Performance()),
    "of each layer": (QuantileClipping(noise_scale=0.5, layers="per_layer"), Performance()),
    "in two chunks": (QuantileClipping(noise_scale=0.5), Performance(chunk_size=64)),
    "noised quantile": (
        NoisedQuantile(noise_scale=0.5, initial=0.1, quantile=0.5, learning_rate=0.2, count_noise_std=6.4),
        Performance(),
    ),
}


def step_of(case: int, rule: Rule, performance: Performance) -> Step:
    model, images, labels = model_and_batch(case)
    model.to(memory_format=torch.channels_last)
    private = PrivateGradient(model, rule, len(labels), torch.Generator().manual_seed(0), performance=performance)
    return lambda: private.step(images, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ten seconds for each model")
    seconds = 10.0 if parser.parse_args().quick else 60.0
    restart_with_allocator_environment()
    torch.set_num_threads(1)
    table = Table(title="Time of a step over DP-SGD's, one thread", box=SIMPLE, title_justify="left")
    for header in ("model, batch", *RULES):
        table.add_column(header, justify="left" if header == "model, batch" else "right")
    rows = []
    for case, (model, _, _, batch_size) in enumerate(CASES):
        if not model.startswith("lin_"):
            continue
        steps = {name: step_of(case, *each) for name, each in RULES.items()}
        for step in steps.values():
            step()
        turns = ("clip, then noise", "noise, then clip", *steps)
        milliseconds = medians(steps, turns, seconds)
        ratios = {name: each / milliseconds["clip, then noise"] for name, each in milliseconds.items()}
        rows += [
            {"model": model, "batch_size": batch_size, "mechanism": name, "ratio_to_dp_sgd": round(ratio, 3)}
            for name, ratio in ratios.items()
        ]
        table.add_row(f"{model}, {batch_size}", *(f"{ratio:.2f}" for ratio in ratios.values()))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")
    console = Console()
    console.width = max(console.width, 104)
    console.print(table)
    console.print(f"written to {OUT}", highlight=False)


if __name__ == "__main__":
    main()

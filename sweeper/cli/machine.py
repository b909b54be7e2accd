"""What is available: `sweeper ls` lists components, `sweeper doctor` describes this machine."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from sweeper import __version__
from sweeper.cli.console import out, user_errors
from sweeper.cli.options import DataDir


@user_errors
def list_components() -> None:
    """List the available defenses, attacks, datasets, architectures and sweeps, each with its source."""
    from sweeper.sweep import components
    from sweeper.sweep.packaged import packaged_sweeps
    from sweeper.sweep.yaml_file import parse_yaml

    for kind in components.KINDS:
        rows = [(name, *components.description(kind, name)) for name in sorted(components.names(kind))]
        _print_list(f"{kind}s", rows)
    sweeps = {name: parse_yaml(path.read_text(encoding="utf-8"), str(path)) for name, path in packaged_sweeps().items()}
    _print_list("sweeps", [(name, sweep.get("summary", ""), sweep.get("paper", "")) for name, sweep in sweeps.items()])


@user_errors
def doctor(data: DataDir = Path("data")) -> None:
    """Show this machine's Python, PyTorch, CUDA, Ray, GPUs, datasets and disk space, and how to get what is missing."""
    from importlib.metadata import version

    import torch

    from models.datasets.base import DatasetError
    from sweeper.sweep import components
    from sweeper.trial import provenance

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    good, missing, note = Text("ok", style="green"), Text("missing", style="yellow"), Text("note", style="cyan")
    table.add_row(good, "sweeper", __version__)
    table.add_row(good, "Python", sys.version.split()[0])
    table.add_row(good, "PyTorch", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")
    table.add_row(good, "Ray", version("ray"))
    table.add_row(good, "Opacus", version("opacus"))
    table.add_row(good, "processor", f"{provenance.processor()}, {provenance.cpu_count()} CPUs")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            table.add_row(good, f"GPU {index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    else:
        table.add_row(
            note, "GPU", "none found; trials run on CPUs. For a GPU, install its driver, then check `nvidia-smi`."
        )
    for name in sorted(components.names("dataset")):
        cls = components.component_class("dataset", name)
        try:
            dataset = cls()
        except TypeError:
            table.add_row(note, name, "needs a `folder` in the sweep file; see `sweeper ls`")
            continue
        try:
            dataset.open(data, download=False)
            table.add_row(good, name, f"found ({cls.source})")
        except DatasetError as error:
            table.add_row(missing, name, str(error))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    table.add_row(
        good if free > 5 else missing,
        "free disk",
        f"{free:.0f} GiB here" + ("" if free > 5 else "; free at least 5 GiB"),
    )
    out.print(table)


def _print_list(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """Print each name with its description and source, one per line."""
    from sweeper.cli.display import Column, Rows

    out.print(Text(title, "bold"))
    out.print(Rows([Column(), Column(least=30), Column(least=20, style="dim")], rows, indent=2))

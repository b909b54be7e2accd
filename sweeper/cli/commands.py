"""The commands."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sweeper import __version__
from sweeper.cli.streams import mend_streams
from sweeper.errors import UserError, printable, reason_of, sentence
from sweeper.workers.allocator import restart_with_allocator_environment

if TYPE_CHECKING:
    from sweeper.cluster import run as cluster
    from sweeper.results.launches import Launch
    from sweeper.results.store import Gathered, Status, Store
    from sweeper.sweep.expand import Sweep
    from sweeper.sweep.preflight import ResolvedTrial
    from sweeper.sweep.trial import Trial
    from sweeper.workers.scheduling import Resources, Retries

app = typer.Typer(
    name="sweeper",
    help="Which defense gives the most privacy for the least accuracy and time?",
    epilog="Begin with `sweeper launch`: the demo trains, attacks and reports on data that needs no download.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
mend_streams()
# Where nobody looks at a screen, lines are long rather than cut.
out = Console(width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, width=None if sys.stderr.isatty() else 200)
F = TypeVar("F", bound=Callable[..., Any])
_OLDEST_MLFLOW = 3
_ROUNDS = 3
"""How often a launch makes anew what was found damaged, before it leaves that to the next."""


def main() -> None:
    """Entry point of the `sweeper` command."""
    if sys.argv[1:2] == ["trial"]:  # the only one that trains in this process
        restart_with_allocator_environment()
    app()


def _user_errors(command: F) -> F:
    """Turn an error that the user can mend into one paragraph on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            _fail(str(error))
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read the output has enough
                raise
            name = error.filename or "A file"
            _fail(printable(f"{name} cannot be used: {error.strerror or error}."))
        except KeyboardInterrupt:
            err.print("Interrupted. Everything that was finished is kept; the same command goes on from there.")
            raise typer.Exit(1) from None

    return wrapper  # type: ignore[return-value]


def _fail(text: str) -> None:
    err.print(Text.assemble(("Error: ", "bold red"), text), soft_wrap=not err.is_terminal)
    raise typer.Exit(2) from None


def _warn(text: str) -> None:
    err.print(Text.assemble(("Warning: ", "bold yellow"), text), soft_wrap=not err.is_terminal)


def _complete_sweep(incomplete: str) -> list[str]:
    folder = Path(__file__).parents[1] / "sweep" / "sweeps"
    names = [path.stem for path in sorted(folder.glob("*.yaml"))] + [
        str(path) for path in sorted(Path().glob("*.yaml"))
    ]
    return [name for name in names if name.startswith(incomplete)]


def _complete_attack(incomplete: str) -> list[str]:
    from sweeper.audit.attack import ATTACK_NAMES

    return [name for name in ATTACK_NAMES if name.startswith(incomplete)]


SweepName = Annotated[
    str, typer.Argument(help="A packaged sweep's name, or the path of a YAML file.", autocompletion=_complete_sweep)
]
DataDir = Annotated[
    Path,
    typer.Option("--data", envvar="SWEEPER_DATA", help="Folder that holds the datasets, laid out as torchvision does."),
]
OutDir = Annotated[
    str | None,
    typer.Option("--out", help="Results: a folder, s3://… or gs://… \\[default: results/NAME]", show_default=False),
]
Results = Annotated[str, typer.Argument(metavar="RESULTS", help="Results of a sweep: a folder, s3://… or gs://…")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the sweep, dotted: training.epochs=3. Repeatable."
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="[PART:]DEFENSE[/DATASET[/SPLIT]]",
        help="Run just the trials of these labels, or of a part of the sweep; * and ? match. Repeatable.",
    ),
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if sys.flags.optimize > 1:
        _fail(
            "Python runs with -OO (PYTHONOPTIMIZE=2), which drops the docstrings that Ray and this program need. Run it without, "
            "or with -O (PYTHONOPTIMIZE=1)."
        )
    if version:
        out.print(__version__)
        raise typer.Exit()


@app.command(epilog="Example: `sweeper launch lomurno2022 --data data --set training.epochs=5 --only 'dp_*/mnist'`")
@_user_errors
def launch(
    sweep: SweepName = "demo",
    data: DataDir = Path("data"),
    out_dir: OutDir = None,
    overrides: Overrides = None,
    only: Only = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Join the running Ray cluster at HOST:PORT (or `auto`), of which this machine is a node.",
            envvar="SWEEPER_RAY_ADDRESS",
        ),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Use this machine alone, whatever else is set (the default).")
    ] = False,
    gpus_per_trial: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|auto|ARCH=N",
            help="GPUs of each trial; 0.25 packs four on one, auto measures one trial and packs by it, resnet18=0.5 is for "
            "one architecture. Repeatable. \\[default: 1 where there are any]",
            show_default=False,
        ),
    ] = None,
    cpus_per_trial: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|ARCH=N",
            help="CPUs of each trial. Repeatable. \\[default: 1, or a GPU's share]",
            show_default=False,
        ),
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time. \\[default: as many as fit]")
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Examples private gradients work on at once; less takes less memory. \\[default: what fits]"
        ),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a trial that failed is tried again.")] = 1,
    worker_retries: Annotated[
        int, typer.Option(min=0, help="How often a trial is started again whose worker or node was lost.")
    ] = 10,
    time_limit: Annotated[
        str, typer.Option(metavar="TIME|none", help="An attempt that takes longer is killed: 90s, 30m, 24h.")
    ] = "24h",
    checkpoint_every: Annotated[
        str, typer.Option(metavar="TIME|none", help="A long training leaves a checkpoint so often, to go on from.")
    ] = "60s",
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write TensorBoard events into this folder. Needs tensorboardX.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Also log to this MLflow tracking URI. Needs mlflow-skinny.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing public datasets into --data.")] = False,
    redo_changed: Annotated[
        bool,
        typer.Option(
            "--redo-changed",
            help="Delete, and make anew, what was recorded by other code of its components than today's.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what Ray says.")] = False,
) -> None:
    """Run a sweep: train every target, attack it, record it, report on it.

    What is recorded already is not done again: the same command finishes what is missing, and adding an attack to the
    file trains nothing anew. Exit code 0: all finished; 1: some failed or are left, or there is no report; 2: wrong input.
    """
    if local or address == "local":
        address = None
    time_limit_s = _seconds(time_limit, "--time-limit")
    checkpoint_every_s = _seconds(checkpoint_every, "--checkpoint-every")
    cpus = _amounts(cpus_per_trial, "--cpus-per-trial", lowest=0.1)
    gpus = _amounts(gpus_per_trial, "--gpus-per-trial", lowest=0.0)
    _check_trackers(tensorboard, mlflow)
    from sweeper.results.store import Store
    from sweeper.storage import StorageError
    from sweeper.sweep.preflight import check_datasets

    def check_first(trials: list[Trial]) -> None:
        if address is None and not download:  # each node is asked for its own, and what is missing is fetched last
            check_datasets(trials, data, download)

    loaded, everything, trials, resolved = _load(sweep, overrides, only, data, check_first)
    _check_architectures([*cpus, *gpus], trials)
    if download:
        check_datasets(trials, data, download)
    store = Store(out_dir or f"results/{loaded.name}")
    _tell_of_other_code(trials, store, redo=redo_changed, only_tell=dry_run)
    statuses = store.statuses(trials)
    pending = [trial for trial in trials if not statuses[trial.target_id].done]
    _tell(
        f"[bold]{loaded.name}[/bold]: {len(trials)} trials, {len(trials) - len(pending)} done, {len(pending)} to run; "
        f"results in {escape(store.location)}",
        highlight=False,
        soft_wrap=True,
    )
    if loaded.expected:
        _tell(f"Expected: {escape(loaded.expected)}", highlight=False, soft_wrap=True)
    if dry_run:
        _print_plan(resolved, {key: status.word for key, status in statuses.items()})
        return
    del resolved
    store.prepare()
    if tensorboard is not None:
        try:
            tensorboard.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--tensorboard {tensorboard}: {sentence(reason_of(error))} Name another folder.") from None
    store.write_sweep(loaded, everything)
    from sweeper.workers.scheduling import Resources, Retries

    options = _Options(
        address=address,
        data=data,
        resources=Resources(cpus=cpus, gpus=gpus, max_concurrent=max_concurrent, chunk_size=chunk_size),
        retries=Retries(failures=retries, losses=worker_retries),
        time_limit_s=time_limit_s,
        checkpoint_every_s=checkpoint_every_s,
        tensorboard=tensorboard,
        mlflow=mlflow,
        verbose=verbose,
    )
    copy = _copy_folder(loaded.name)
    failed: list[str] = []
    _take_sigterm_as_interrupt()
    with contextlib.ExitStack() as stack:
        runner = _Runner(stack, store, options)
        for _ in range(_ROUNDS):
            is_over = True
            if pending:
                new_failed, is_over = runner.run(pending, len(trials))
                failed += new_failed
            try:
                with _working("gathering the results"):
                    gathered = store.gather(copy)
                    statuses = store.statuses(trials)
            except (StorageError, OSError) as error:
                _print_failed(failed)
                err.print(
                    f"The results cannot be gathered: {sentence(reason_of(error))} What was recorded is kept; the same command goes on "
                    "from there.",
                    soft_wrap=True,
                    highlight=False,
                )
                raise typer.Exit(1) from None
            _print_damaged(gathered.damaged)
            if not gathered.damaged or not is_over:
                break
            # What the damaged files held is missing now
            pending = [trial for trial in trials if not statuses[trial.target_id].done]
            if not pending:
                break
    _print_failed(failed)
    _conclude(trials, statuses, gathered, store)


@app.command(epilog="Example: `sweeper plan lomurno2022 --json | jq '.[0]'`")
@_user_errors
def plan(
    sweep: SweepName = "demo",
    data: DataDir = Path("data"),
    out_dir: OutDir = None,
    overrides: Overrides = None,
    only: Only = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout, and nothing else.")] = False,
) -> None:
    """List the trials of a sweep: what each resolves to, which are done, a rough cost. Nothing runs."""
    from sweeper.results.store import Store
    from sweeper.sweep.preflight import missing_datasets

    def say_what_is_missing(trials: list[Trial]) -> None:
        for problem in [] if as_json else missing_datasets(trials, data):
            err.print(Text.assemble(("Missing: ", "bold yellow"), problem), soft_wrap=True)

    loaded, _, trials, resolved = _load(sweep, overrides, only, data, say_what_is_missing)

    words = {key: status.word for key, status in Store(out_dir or f"results/{loaded.name}").statuses(trials).items()}
    if as_json:
        _print_json([each.as_json(words[each.trial.target_id]) for each in resolved])
        return
    out.print(f"[bold]{loaded.name}[/bold]{': ' if loaded.summary else ''}{escape(loaded.summary)}", highlight=False)
    for name in ("paper", "cost", "expected"):
        if getattr(loaded, name):
            out.print(f"[dim]{name}:[/dim] {escape(getattr(loaded, name))}", highlight=False)
    _print_plan(resolved, words)


@app.command(epilog="Example: `sweeper trial demo 7f3399` (ids are those of `sweeper plan`; a beginning is enough)")
@_user_errors
def trial(
    sweep: SweepName,
    target_id: Annotated[str, typer.Argument(metavar="ID", help="Target id, or the beginning of one.")],
    data: DataDir = Path("data"),
    out_dir: OutDir = None,
    overrides: Overrides = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Run one trial in this process, without Ray and with full tracebacks: for debugging."""
    loaded, _, trials, _ = _load(sweep, overrides, None, data)
    from sweeper.results.store import Store
    from sweeper.sweep.preflight import check_datasets

    found = [each for each in trials if each.target_id.startswith(target_id)]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} trials of '{loaded.name}' have an id that begins with '{target_id}'. `sweeper plan {sweep}` lists them."
        )
    import torch

    from sweeper.trial.context import TrialContext
    from sweeper.trial.run import run_trial

    check_datasets(found, data, download=False)
    store = Store(out_dir or f"results/{loaded.name}")
    store.prepare()
    torch.set_num_threads(threads)
    out.print(f"{found[0].target_id} {found[0].title}", highlight=False)
    result = run_trial(
        found[0],
        TrialContext(
            data_dir=data,
            store=store,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            on_progress=lambda progress: out.print(f"{progress.fraction:4.0%} {progress.what}", highlight=False),
            raise_errors=True,
        ),
    )
    did = "trained" if result.trained else "was trained before"
    out.print(
        f"{result.status}: {did}, {result.attacks_run} attacks run; recorded in {store.location}", highlight=False
    )


@app.command(epilog="Example: `sweeper audit outputs.parquet --attack loss --attack entropy --json`")
@_user_errors
def audit(
    outputs: Annotated[
        Path, typer.Argument(help="Parquet, a file or a folder: example_id, is_member, label, logits or probabilities.")
    ],
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Which attack; repeatable. \\[default: all]", autocompletion=_complete_attack, show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout, and nothing else.")] = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the metrics as Parquet too.")] = None,
    form: Annotated[
        str,
        typer.Option(
            help="log_odds or tensorflow_privacy: how the threshold scores are computed; the latter's ties where "
            "answers are sure."
        ),
    ] = "log_odds",
    dtype: Annotated[
        str, typer.Option(help="float64 or float32: the arithmetic of --form tensorflow_privacy; float32 ties more.")
    ] = "float64",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the trained attackers' folds.")] = 0,
) -> None:
    """Membership attacks on any model's outputs, from this program or not. A higher AUC is a worse leak.

    The threshold attacks (`max_posterior`, `loss`, `entropy`, `modified_entropy`) take a moment. The trained ones
    (`logistic_regression`, `mlp`, `random_forest`, `knn`) search the grids of TensorFlow Privacy's tool, on the very
    membership labels they are judged by, out of fold: minutes for thousands of rows.
    """
    from sweeper.audit import attack as auditing
    from sweeper.audit.outputs import read_outputs
    from sweeper.errors import unknown_name
    from sweeper.trial import provenance

    for option, value, allowed in (
        ("form", form, ("log_odds", "tensorflow_privacy")),
        ("dtype", dtype, ("float64", "float32")),
    ):
        if value not in allowed:
            raise unknown_name(option, value, allowed)
    if dtype == "float32" and form == "log_odds":
        raise UserError(
            "--dtype float32: --form log_odds computes in float64. Add --form tensorflow_privacy, or leave --dtype out."
        )
    for name in attack or ():
        if name not in auditing.ATTACK_NAMES:
            raise unknown_name("attack", name, auditing.ATTACK_NAMES)
    if out_file is not None and not out_file.absolute().parent.is_dir():
        raise UserError(f"--out {out_file}: the folder {out_file.absolute().parent} does not exist. Create it first.")
    stored = read_outputs(outputs)
    rows, _ = auditing.audit(
        stored,
        attack or auditing.ATTACK_NAMES,
        form=form,
        dtype=dtype,
        seed=seed,
        jobs=provenance.cpu_count(),
        on_attack=lambda name: err.print(f"attack {name}", style="dim", highlight=False),
    )
    if out_file is not None:
        auditing.write_metrics(rows, out_file)
    if as_json:
        _print_json(rows)
        return
    from sweeper.cli.display import Column, Rows

    columns = [Column(heading="attack")]
    for heading in ("AUC", "95 % interval", "advantage", "of guessing", "TPR at FPR 0.1 %", "1 %", "10 %"):
        columns.append(Column(heading=heading, justify="right"))
    table = []
    for row in rows:
        cells = [f"{row['auc']:.4f}", f"{row['auc_low']:.4f}–{row['auc_high']:.4f}"]
        cells += [f"{row[name]:.4f}" for name in ("advantage", "advantage_null")]
        for name in ("tpr_at_fpr_0.001", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            cells.append("—" if row[name] is None else f"{row[name]:.4f} ({low:.4f}–{high:.4f})")
        table.append([row["attack"], *cells])
    out.print(Text(f"Membership inference on {outputs}, threshold scores in the form {form}, {dtype}", "bold"))
    out.print(Rows(columns, table))
    first = rows[0]
    n_examples = first["n_members"] + first["n_non_members"]
    notes = [
        *(f"Input: {change}." for change in stored.changes),
        f"{first['n_members']} members, {first['n_non_members']} non-members. — : too few non-members to say (10/FPR are "
        "needed). Intervals are 95 %. The advantage is the best over all thresholds, chosen on the data it is measured "
        "on; beside it, what guessing gets that way on average.",
    ]
    if n_examples < first["n_rows"]:
        notes.append(
            f"example_id repeats: {first['n_rows']} rows are {n_examples} examples. Each counts once, with the mean of "
            "its rows' scores, and its rows are never in two folds."
        )
    tied = [f"{row['attack']} {row['n_tied']} (at most {row['largest_tie']} alike)" for row in rows if row["n_tied"]]
    if tied:
        notes.append(
            f"Examples whose score equals another's, of {n_examples}: {'; '.join(tied)}. A tie counts half in an AUC and "
            "is broken at random in a TPR."
        )
    for note in notes:
        out.print(note, style="dim", highlight=False, markup=False)


@app.command(epilog="Example: `sweeper report results/demo`")
@_user_errors
def report(
    results: Results,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the report. \\[default: RESULTS/report]")] = None,
) -> None:
    """Gather results, finished or not; make tables, figures and one self-contained report.html.

    Those of an object store are gathered there and copied to results/NAME, and so is the report.
    """
    from sweeper.results.store import Store

    store = Store(results)
    folder = store.storage.root if store.storage.is_local else _copy_folder(_last_name(results))
    damaged: tuple[str, ...] = ()
    # Without parts only the gathered tables were passed on, and they will do.
    if store.storage.is_local and (folder / "parts").is_dir() and not os.access(folder, os.W_OK):
        _warn(f"{folder} cannot be written, so this is of the tables as they were last gathered.")
    elif not store.storage.is_local or (folder / "parts").is_dir():
        gathered = store.gather(folder)
        damaged = gathered.damaged
        _print_damaged(damaged)
        _print_left_out(gathered.left_out, store)
    _report(folder, to, store)
    if damaged:
        err.print("Launch the sweep again to make anew what the damaged files held.", highlight=False)
        raise typer.Exit(1)


@app.command(epilog="Example: `sweeper status s3://bucket/results/lomurno2022`")
@_user_errors
def status(
    results: Results,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout, and nothing else.")] = False,
) -> None:
    """How a sweep stands, from its results alone: counts, what runs where, rate, time left, failures by cause."""
    from sweeper.results.status import read_status
    from sweeper.results.store import Store

    store = Store(results)
    found = read_status(store)
    if as_json:
        _print_json(found.as_json())
        return
    from sweeper.cli.display import status_view

    out.print(status_view(found, store.location))


@app.command(
    epilog="Example: `sweeper logs results/demo 7f3399` (ids are those of `sweeper plan`; a beginning is enough)"
)
@_user_errors
def logs(
    results: Results,
    target_id: Annotated[str, typer.Argument(metavar="ID", help="Target id, or the beginning of one.")],
) -> None:
    """Print what a trial printed, all its attempts one after the other: epochs, warnings, tracebacks of failures."""
    from sweeper.results import attempts
    from sweeper.storage import Storage

    storage = Storage(results)
    found = [name for name in storage.entries(attempts.LOGS) if name.startswith(target_id)]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} of the trials with a log in {storage.location} have an id that begins with '{target_id}'. `sweeper plan` "
            "lists the ids; a trial has a log when it was started."
        )
    sys.stdout.write(storage.read(f"{attempts.LOGS}/{found[0]}").decode(errors="replace"))


@app.command("ls", epilog="Example: `sweeper ls`")
@_user_errors
def list_components() -> None:
    """List the defenses, attacks, datasets, architectures and sweeps there are, each with its source."""
    from sweeper.sweep import components
    from sweeper.sweep.load import load_sweep, packaged_sweeps

    for kind in components.KINDS:
        rows = []
        for name in sorted(components.names(kind)):
            cls = components.component_class(kind, name)
            rows.append((name, (cls.__doc__ or "").strip().splitlines()[0], cls.source))
        _print_list(f"{kind}s", rows)
    _print_list("sweeps", [(name, (sweep := load_sweep(name)).summary, sweep.paper) for name in packaged_sweeps()])


@app.command(epilog="Example: `sweeper doctor --data ../datasets`")
@_user_errors
def doctor(data: DataDir = Path("data")) -> None:
    """Say what this machine has: Python, PyTorch and CUDA, Ray, GPUs, datasets, disk; and how to get what is missing."""
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
            note, "GPU", "none seen; trials run on CPUs. With a GPU: install its driver, then check `nvidia-smi`."
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
        f"{free:.0f} GiB here" + ("" if free > 5 else "; make room, 5 GiB at least"),
    )
    out.print(table)


# Helpers of the commands


def _tell(*what: RenderableType, **how: Any) -> None:
    """Print; where a full disk has no room for it, it is lost, and ends no sweep."""
    try:
        out.print(*what, **how)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        out._buffer.clear()


def _working(what: str) -> contextlib.AbstractContextManager[object]:
    """A spinner with `what` for as long as it takes, where somebody looks at a screen."""
    return err.status(what) if err.is_terminal else contextlib.nullcontext()


def _last_name(uri: str) -> str:
    """What the local copy of an object store's results is called."""
    return PurePosixPath(urlsplit(uri).path).name or urlsplit(uri).netloc.rpartition("@")[2]


def _seconds(text: str, option: str) -> float | None:
    """A duration such as 90, 90s, 30m or 24h, in seconds; None for none."""
    if text == "none":
        return None
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    seconds = float(match[1]) * units[match[2]] if match else 0.0
    if seconds <= 0:
        raise UserError(f"{option}: got '{text}'; give a time such as 90s, 30m or 24h, or none.")
    return seconds


def _amounts(given: Sequence[str] | None, option: str, lowest: float) -> dict[str | None, Any]:
    """Amounts per architecture label; None is the label of all others."""
    amounts: dict[str | None, Any] = {}
    for text in given or ():
        label, equals, value = text.rpartition("=")
        key = label if equals else None
        if key in amounts:
            raise UserError(f"{option}: got '{text}', but that amount was given before; keep one.")
        if value == "auto" and option == "--gpus-per-trial":
            amounts[key] = "auto"
            continue
        try:
            amounts[key] = float(value)
        except ValueError:
            amounts[key] = math.nan
        if not lowest <= amounts[key] < math.inf:
            also = ", auto," if option == "--gpus-per-trial" else ""
            raise UserError(
                f"{option}: got '{text}'; give a number of at least {lowest:g}{also} or ARCHITECTURE=NUMBER."
            )
        if option == "--gpus-per-trial" and amounts[key] > 1 and amounts[key] % 1:
            raise UserError(f"{option}: got '{text}'; above 1 only whole GPUs can be given.")
    return amounts


def _check_architectures(labels: Sequence[str | None], trials: Sequence[Trial]) -> None:
    known = {trial.architecture_label for trial in trials}
    for label in labels:
        if label is not None and label not in known:
            from sweeper.errors import unknown_name

            raise unknown_name("architecture of this sweep", label, known)


def _check_trackers(tensorboard: Path | None, mlflow: str | None) -> None:
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    for asked, package, option, install in (
        (tensorboard, "tensorboardX", "--tensorboard", "tensorboardX"),
        (mlflow, "mlflow", "--mlflow", "mlflow-skinny"),
    ):
        if asked is not None and find_spec(package) is None:
            raise UserError(f"{option} needs the package {package}, which is not installed: pip install {install}.")
    if mlflow is not None:
        for name in ("mlflow", "mlflow-skinny"):
            with contextlib.suppress(PackageNotFoundError):
                if int(version(name).partition(".")[0]) < _OLDEST_MLFLOW:
                    raise UserError(
                        f"--mlflow: {name} {version(name)} is too old for the other libraries here: pip uninstall {name}, then pip "
                        "install mlflow-skinny, which has what is needed to log to a server."
                    )
    try:
        urlsplit(mlflow or "")
    except ValueError as error:
        raise UserError(f"--mlflow: the tracking URI cannot be parsed: {sentence(error)}") from None


def _copy_folder(name: str) -> Path:
    """Where an object store's tables are gathered to, to report from: never where a sweep's own results are."""
    folder = Path("results") / name
    return folder.with_name(f"{name}-copy") if (folder / "parts").exists() else folder


def _take_sigterm_as_interrupt() -> None:
    """Take SIGTERM as Ctrl-C: what is finished is kept, and what is left is said."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def _load(
    sweep: str,
    overrides: Sequence[str] | None,
    only: Sequence[str] | None,
    data: Path,
    check_first: Callable[[list[Trial]], None] = lambda trials: None,
) -> tuple[Sweep, list[Trial], list[Trial], list[ResolvedTrial]]:
    """The checked sweep, all its trials, the chosen ones, and what these resolve to; warnings are printed.

    `check_first` is given the chosen trials before they are resolved, which takes longer than to look for their data.
    """
    with _working("reading the sweep"):
        from sweeper.sweep.expand import expand, select
        from sweeper.sweep.load import load_sweep

        loaded = load_sweep(sweep, overrides or ())
        everything = expand(loaded)
        trials = select(everything, only or ())
    check_first(trials)
    with _working("checking the sweep"):
        from sweeper.sweep.preflight import resolve_trials, twins_left_out

        resolved, warnings = resolve_trials(trials, data)
        if warning := twins_left_out(trials, everything):
            warnings.append(warning)
    for warning in warnings:
        _warn(warning)
    return loaded, everything, trials, resolved


@dataclass(frozen=True, kw_only=True)
class _Options:
    """How `launch` is to run trials."""

    address: str | None
    data: Path
    resources: Resources
    retries: Retries
    time_limit_s: float | None
    checkpoint_every_s: float | None
    tensorboard: Path | None
    mlflow: str | None
    verbose: bool


class _Runner:
    """Ray, and this process as one that works on the results: both begun when a trial is to run, and kept until the end."""

    def __init__(self, stack: contextlib.ExitStack, store: Store, options: _Options) -> None:
        self._stack, self._store, self._options = stack, store, options
        self._launch: Launch | None = None

    def run(self, pending: list[Trial], n_trials: int) -> tuple[list[str], bool]:
        """Run trials under a live table, or a line per trial where the output is no terminal.

        Gives the failures, and whether all came to an end; where they did not, the reason is printed, if there is one.
        """
        options = self._options
        with _working("starting Ray"):
            from sweeper.cluster import run as cluster
            from sweeper.results.launches import Launch
            from sweeper.trial.context import NO_CHECKPOINTS
            from sweeper.workers.worker import Settings

            if self._launch is None:
                self._launch = self._stack.enter_context(Launch(self._store.storage))
                self._stack.enter_context(cluster.connect(options.address, options.verbose))
                _take_sigterm_as_interrupt()  # again, for Ray takes it
                self._stack.callback(cluster.clear_staged, self._launch.id, is_cluster=options.address is not None)
            asked = options.resources
            if options.address is None and not asked.gpus:
                try:
                    cluster.check_own_gpus()
                except OSError as error:
                    _warn(f"{error} Now they do.")
                    asked = replace(asked, gpus={None: 0.0})
            resources = cluster.resolve(asked, pending, _warn)
        settings = Settings(
            launch_id=self._launch.id,
            store=self._store.storage.uri,
            data_dir=options.data.absolute(),
            chunk_size=resources.chunk_size,
            time_limit_s=options.time_limit_s,
            checkpoint_every_s=options.checkpoint_every_s or NO_CHECKPOINTS,
            is_tracked=options.tensorboard is not None or options.mlflow is not None,
        )
        with _working("decoding the datasets, once on each node"):
            shipped = cluster.stage_datasets(
                pending,
                settings,
                is_cluster=options.address is not None,
                uses_gpus=any(resources.gpus_of(trial) for trial in pending),
                warn=_warn,
            )
        for other in self._launch.others:
            _tell(f"Also at work on these results: {escape(other.name)}; trials are shared.", highlight=False)
        from sweeper.cli.display import STOPPING, SweepDisplay

        by_id = {trial.target_id: trial for trial in pending}
        display = SweepDisplay(by_id, n_trials - len(pending))
        failed: list[str] = []
        shown = out.is_terminal and not options.verbose
        live = Live(display, console=out, refresh_per_second=4, transient=True) if shown else None

        def on_event(event: cluster.Event) -> None:
            line = display.update(event)
            if event.kind == "stopping" and live is None:
                os.write(2, f"{STOPPING}.\n".encode())  # no other output may be begun where another is interrupted
            if event.kind == "failed" and line is not None:
                failed.append(f"{event.target_id} {by_id[event.target_id].title}: {event.what}")
            if line is not None and live is None:
                _tell(f"{time.strftime('%H:%M:%S')} {line}", highlight=False, soft_wrap=True, markup=False)

        with live or contextlib.nullcontext():
            ended = cluster.run_trials(
                pending,
                store=self._store,
                launch=self._launch,
                settings=settings,
                resources=resources,
                retries=options.retries,
                on_event=on_event,
                shipped=shipped,
                loggers=cluster.Loggers(tensorboard=options.tensorboard, mlflow=options.mlflow),
                warn=_warn,
                verbose=options.verbose,
            )
        elsewhere = f", {display.elsewhere} by others" if display.elsewhere else ""
        _tell(f"{display.finished} finished, {display.failed} failed{elsewhere}", highlight=False)
        if ended.stopped is not None:
            err.print(Text.assemble(("Stopped: ", "bold red"), ended.stopped), soft_wrap=True, highlight=False)
        return failed, ended.is_over


def _tell_of_other_code(trials: Sequence[Trial], store: Store, *, redo: bool, only_tell: bool) -> None:
    """Say which records were made by other code of their components than there is now, and delete them if asked to."""
    from sweeper.trial.sources import made_otherwise

    keys = made_otherwise(trials, store.recorded_sources())
    if not keys:
        return
    counts = Counter("attacks" if "." in key else "targets" for key in keys)
    what = " and ".join(f"{counts[kind]} {kind}" for kind in ("targets", "attacks") if counts[kind])
    by_id = {trial.target_id: trial for trial in trials}
    trial = by_id[keys[0].partition(".")[0]]
    if not redo:
        _warn(
            f"{what} on record were made by other code than there is now, the first of them {keys[0]} ({trial.title}). They are kept, "
            "and tables will mix both codes. To make them anew launch with --redo-changed, which deletes them; or raise the `revision` "
            "of what you have edited, or name another folder with --out, and they stay beside the new ones."
        )
        return
    if not only_tell:
        store.forget(keys)
    _tell(f"{what} of other code {'would be' if only_tell else 'are'} made anew.", highlight=False)


def _conclude(trials: Sequence[Trial], statuses: Mapping[str, Status], gathered: Gathered, store: Store) -> None:
    """Report on what a launch has left, say what that is, and exit with 1 unless it is all."""
    from sweeper.storage import StorageError

    with contextlib.suppress(StorageError):  # it only tidies up
        store.clear_done({target_id for target_id, status in statuses.items() if status.done})
    words = Counter(statuses[trial.target_id].word for trial in trials)
    left = words["to do"] + words["partial"]
    _print_left_out(gathered.left_out, store)
    is_whole = words["done"] == len(trials) and not gathered.damaged
    if left < len(trials):
        try:
            _report(gathered.folder, None, store)
        except UserError as error:
            is_whole = False
            err.print(Text.assemble(("No report: ", "bold red"), str(error)), soft_wrap=True, highlight=False)
    if words["done"] < len(trials):
        err.print(
            f"{words['done']} of {len(trials)} trials are finished, {words['failed']} failed, {left} are left. The same command "
            f"{'goes on from here' if left else 'tries the failed ones again'}.",
            soft_wrap=True,
            highlight=False,
        )
    if not is_whole:
        raise typer.Exit(1)


def _report(results: Path, to: Path | None, store: Store) -> None:
    from analysis.load import ResultsError
    from analysis.report.write import write_report

    def copy(name: str, path: Path) -> None:
        if not store.storage.is_local:
            store.storage.write(f"report/{name}", path)

    try:
        with _working("writing the report"):
            path = write_report(results, to, copy)
    except ResultsError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(
            f"The report cannot be written: {reason_of(error)}. Name another folder with `sweeper report --to`."
        ) from None
    _tell(Text.assemble("Report: ", (str(path.absolute()), "bold")), soft_wrap=True)
    if not store.storage.is_local:
        _tell(f"Copied to report/ in {store.location}", highlight=False, soft_wrap=True)


def _print_failed(lines: Sequence[str]) -> None:
    for line in lines:
        err.print(Text.assemble(("failed ", "red"), line), soft_wrap=True)


def _print_left_out(count: int, store: Store) -> None:
    if count:
        _tell(
            f"{count} recorded targets of other versions of this sweep are kept in {escape(store.location)}, but not gathered.",
            style="dim",
        )


def _print_damaged(problems: Sequence[str]) -> None:
    for problem in problems:
        err.print(Text.assemble(("Damaged: ", "bold yellow"), problem), soft_wrap=True, highlight=False)


def _print_plan(resolved: Sequence[ResolvedTrial], words: dict[str, str]) -> None:
    from sweeper.cli.display import LEAST_TITLE, Column, Rows, Title, duration
    from sweeper.sweep import components

    rows: list[list[str | Title]] = []
    for each in resolved:
        accounting = each.plan.accounting
        guarantee = "none"
        if accounting is not None and each.guarantee is not None:
            guarantee = (
                f"ε {each.guarantee.epsilon:.4g}, δ {accounting.delta:g}, noise {accounting.noise_multiplier:.3g}"
            )
        attacks = ", ".join(components.name_of("attack", attack) for attack in each.trial.attacks)
        members, steps, word = str(each.n_train), str(each.plan.steps), words[each.trial.target_id]
        rows.append([each.trial.target_id, Title(each.trial.title), members, steps, guarantee, attacks, word])
    columns = [Column(heading="id"), Column(heading="trial", least=LEAST_TITLE)]
    columns += [Column(heading=name, justify="right") for name in ("members", "steps")]
    columns += [Column(heading="guarantee"), Column(heading="attacks", least=18), Column(heading="status")]
    out.print(Rows(columns, rows))
    left = [each.rough_cpu_seconds for each in resolved if words[each.trial.target_id] in ("to do", "failed")]
    out.print(
        f"{len(resolved)} trials, {sum(word == 'done' for word in words.values())} done. Rough cost of the trainings left on one "
        f"CPU thread: {duration(sum(left))}; attacks come on top, and a GPU takes a small part of it.",
        highlight=False,
    )


def _print_list(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """Names with what they are and where they come from, one line each."""
    from sweeper.cli.display import Column, Rows

    out.print(Text(title, "bold"))
    out.print(Rows([Column(), Column(least=30), Column(least=20, style="dim")], rows, indent=2))


def _print_json(rows: Sequence[dict[str, Any]] | dict[str, Any]) -> None:
    is_utf = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=not is_utf) + "\n")

"""The command line: its output, its exit codes, and its messages about wrong input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from s3_server import KEY, SECRET, S3Server, start_s3_server
from typer.testing import CliRunner

from sweeper.cli import app
from sweeper.errors import UserError
from sweeper.results.gather import gather
from sweeper.results.store import Store
from sweeper.storage import Storage, StorageError
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.trial import Trial
from sweeper.trial.context import TrialContext
from sweeper.trial.failures import record_failure
from sweeper.trial.run import run_trial

__all__ = ["start_s3_server"]  # a fixture
COMMANDS = ["launch", "plan", "trial", "audit", "report", "gather", "ls", "doctor"]


def sweeper(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete_and_has_an_example(command: str) -> None:
    result = sweeper(command, "--help")
    assert result.exit_code == 0
    assert "Example: sweeper " + command in " ".join(result.stdout.split())


def test_help_starts_quickly_because_it_imports_little() -> None:
    code = (
        "import sys, sweeper.cli; heavy = {'torch', 'ray', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules);"
        "sys.exit(bool(heavy))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


@pytest.mark.slow
def test_commands_that_only_read_import_no_pytorch(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    store.prepare()
    store.storage.write("sweep.json", b'{"targets": {}, "name": "none"}')
    store.storage.write("logs/0123456789abcdef.log", b"printed")
    for command in (["ls"], ["--help"], ["status", str(tmp_path / "out")], ["logs", str(tmp_path / "out"), "0123"]):
        code = (
            f"import sys; sys.argv = ['sweeper', *{command!r}]\nfrom sweeper.cli import main\ntry: main()\n"
            "except SystemExit as end: assert not end.code\n"
            "heavy = {'torch', 'ray', 'pandas', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)


def test_shell_completion_offers_sweeps_and_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeper.cli.options import complete_attack, complete_sweep

    assert complete_sweep("lo") == ["lomurno2022", "lomurno2022_tuned"]
    assert complete_attack("mod") == ["modified_entropy"]
    environment = {"_SWEEPER_COMPLETE": "complete_bash", "COMP_WORDS": "sweeper launch lo", "COMP_CWORD": "2"}
    result = CliRunner().invoke(app, [], prog_name="sweeper", env=environment)
    assert "lomurno2022" in result.stdout


@pytest.mark.slow
def test_plan_for_machines_is_json_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    result = sweeper("plan", tiny, "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["defense"] for row in rows] == ["baseline", "dp"]
    private = rows[1]
    assert (private["n_train"], private["steps"], private["sample_rate"]) == (100, 8, 0.25)
    assert private["epsilon"] > 0
    assert rows[0]["epsilon"] is None
    assert {row["status"] for row in rows} == {"to do"}
    assert not (tmp_path / "out").exists(), "a plan writes nothing"


def test_plan_for_people_shows_every_id(tiny: Path) -> None:
    result = sweeper("plan", tiny)
    for trial in expand(load_sweep(str(tiny))):
        assert trial.target_id in result.stdout
    assert "Rough cost" in result.stdout


def test_square_brackets_are_not_taken_for_styles(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(tiny.read_text() + "paper: '[/bold] [link=x]y'\n")
    out = tmp_path / "[/red]"
    assert sweeper("plan", tiny, "--set", "summary='[/dim]'").exit_code == 0
    assert "[/red]" in sweeper("launch", tiny, "--dry-run", "--out", out).stdout


def test_plan_says_which_datasets_are_missing(tmp_path: Path) -> None:
    result = sweeper("plan", "lomurno2022", "--data", tmp_path, "--only", "baseline/mnist/official")
    assert result.exit_code == 0
    assert f"searched {tmp_path / 'MNIST' / 'raw'}" in result.stderr
    assert "--download" in result.stderr


def test_dry_run_writes_nothing(tiny: Path, tmp_path: Path) -> None:
    result = sweeper("launch", tiny, "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    assert "2 trials, 0 done, 2 to run" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_trial_runs_here_and_the_report_is_made_from_it(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    baseline = expand(load_sweep(str(tiny)))[0].target_id
    result = sweeper("trial", tiny, baseline[:6], "--out", out)
    assert result.exit_code == 0, result.output
    assert "finished: trained, 4 attacks run" in result.stdout
    assert json.loads(sweeper("plan", tiny, "--out", out, "--json").stdout)[0]["status"] == "done"
    result = sweeper("report", out)
    assert result.exit_code == 0, result.output
    assert str(out / "report" / "report.html") in result.stdout.replace("\n", "")
    assert "<html" in (out / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_launch_does_nothing_where_all_is_done(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    for trial in expand(load_sweep(str(tiny), ["attacks=[threshold]"])):
        sweeper("trial", tiny, trial.target_id, "--set", "attacks=[threshold]", "--out", out)
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it would fail
    result = sweeper("launch", tiny, "--set", "attacks=[threshold]", "--out", out)
    assert result.exit_code == 0, result.output
    assert "2 trials, 2 done, 0 to run" in result.stdout


@pytest.mark.slow
def test_the_gathered_tables_alone_are_enough_for_a_report(tiny: Path, tmp_path: Path) -> None:
    out, passed_on = tmp_path / "out", tmp_path / "passed_on"
    trial = expand(load_sweep(str(tiny)))[0]
    sweeper("trial", tiny, trial.target_id, "--set", "attacks=[threshold]", "--out", out)
    gather(Store(out))
    passed_on.mkdir()
    for path in out.glob("*.parquet"):
        path.rename(passed_on / path.name)
    assert sweeper("report", passed_on).exit_code == 0
    assert (passed_on / "report" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["not json", "[]", '{"targets": {"../../etc": []}}', '{"targets": {"0123456789abcdef": ["x"]}}']
)
def test_a_broken_list_of_targets_is_explained(text: str, tiny: Path, tmp_path: Path) -> None:
    trial = expand(load_sweep(str(tiny)))[0]
    sweeper("trial", tiny, trial.target_id, "--set", "attacks=[]", "--out", tmp_path)
    (tmp_path / "sweep.json").write_text(text)
    for command in ("report", "gather"):
        result = sweeper(command, tmp_path)
        assert result.exit_code == 2
        assert "sweep.json in " in result.stderr and "cannot be read" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("table", "trained"), [("outputs", True), ("scores", False), ("reconstructions", False)])
def test_a_part_that_was_deleted_is_made_anew(table: str, trained: bool, tiny: Path, tmp_path: Path) -> None:
    trial = expand(load_sweep(str(tiny)))[0]
    sweeper("trial", tiny, trial.target_id, "--out", tmp_path)
    part = next((tmp_path / "parts" / table).glob("*.parquet"))
    part.unlink()
    result = sweeper("trial", tiny, trial.target_id, "--out", tmp_path)
    assert result.exit_code == 0
    assert ("was trained before" not in result.stdout) == trained
    assert part.exists()


def test_a_report_that_cannot_be_written_is_explained(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweeper("trial", tiny, expand(load_sweep(str(tiny)))[0].target_id, "--set", "attacks=[]", "--out", out)
    result = sweeper("report", out, "--to", unwritable(tmp_path))
    assert result.exit_code == 2
    assert "The report cannot be written" in result.stderr


@pytest.mark.parametrize("width", [40, 60, 80])
def test_names_are_whole_on_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from sweeper.cli import machine
    from sweeper.sweep import components

    narrow = Console(width=width, record=True, file=io.StringIO())
    monkeypatch.setattr(machine, "out", narrow)
    assert sweeper("ls").exit_code == 0
    lines = narrow.export_text().splitlines()
    for kind in components.KINDS:
        for name in components.names(kind):
            assert sum(line.startswith(f"  {name} ") or line == f"  {name}" for line in lines) == 1, name


def test_doctor_and_ls_say_what_there_is(tmp_path: Path) -> None:
    doctor = sweeper("doctor", "--data", tmp_path).stdout
    for word in ("Python", "PyTorch", "Ray", "digits", "MNIST", "free disk", "--download"):
        assert word in doctor
    listed = sweeper("ls").stdout
    for word in ("dp_sgd", "layer_decoder", "parquet_images", "lomurno_cnn", "demo", "Abadi"):
        assert word in listed


def unwritable(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("not a folder")
    return tmp_path / "file" / "out"


PRV = ("--set", "defenses.dp_eps2.accountant=prv")
TRAINED = ("--set", "attacks=[trained_attackers]")
WRONG: dict[str, tuple[list[Any], str]] = {
    "unknown sweep": (["launch", "dmeo"], "Unknown sweep 'dmeo'. Did you mean 'demo'?"),
    "unknown defense": (["launch", "demo", "--set", "defenses=[dropuot]"], "Did you mean 'dropout'?"),
    "batch larger than data": (
        ["launch", "demo", "--set", "training.batch_size=5000"],
        "batch_size is 5000 but the target has only",
    ),
    "unreachable epsilon": (["launch", "demo", "--set", "defenses.dp_eps2.epsilon=0.001"], "cannot be reached"),
    "epsilon beyond the prv accountant": (
        ["plan", "demo", "--only", "dp_eps2", "--set", "defenses.dp_eps2.epsilon=1.0e+9", *PRV],
        "cannot be reached with the prv accountant, which goes up to 500",
    ),
    "a grid of what is no field": (
        ["plan", "demo", "--set", "parts.plain.defenses.l2={name: noise_then_clip, grid: {noise: [0.1]}}"],
        "Unknown field 'noise'",
    ),
    "momentum of adam": (
        ["plan", "demo", "--set", "training={optimizer: adam, momentum: 0.9}"],
        "only sgd takes one, and the optimizer is adam",
    ),
    "a part that is not there": (["plan", "lin2020", "--only", "sequense"], "Did you mean 'sequence'?"),
    "missing dataset": (
        ["launch", "lomurno2022", "--data", "nowhere", "--only", "l2/mnist/official"],
        "was not found: searched",
    ),
    "unknown only": (["plan", "demo", "--only", "l3"], "--only"),
    "unknown id": (["trial", "demo", "zzz"], "0 trials of 'demo' have an id that begins with 'zzz'"),
    "no results": (["report", "nowhere"], "nowhere"),
    "nothing to gather": (["gather", "nowhere"], "nowhere holds no parts to gather"),
    "too few for an attack": (
        ["launch", "demo", "--set", "max_train_examples=20", "--set", "training.batch_size=5", *TRAINED],
        "at least 12",
    ),
    "no cluster": (["launch", "demo", "--address", "127.0.0.1:1"], "Ray could not be reached at 127.0.0.1:1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_input_is_one_paragraph_and_exit_code_two(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = WRONG[case]
    result = sweeper(*arguments)
    assert result.exit_code == 2, result.output
    assert expected in result.stderr
    errors = [line for line in result.stderr.splitlines() if "Error:" in line]
    assert len(errors) == 1
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_choosing_trials_without_their_twin_is_warned_of(tmp_path: Path) -> None:
    chosen = ["plan", "lin2020", "--data", tmp_path, "--only", "clip_ladder:ac_*", "--set", "seeds=[0]"]
    assert (
        "9 of the chosen trials have a twin without their mechanism that --only leaves out (none)"
        in sweeper(*chosen).stderr
    )
    assert "twin" not in sweeper(*chosen, "--only", "clip_ladder:none").stderr
    assert "twin" not in sweeper("plan", "lomurno2022", "--only", "dp_eps8/mnist/official", "--data", tmp_path).stderr


@pytest.mark.slow
def test_noise_that_prv_cannot_account_is_warned_of_and_planned(tmp_path: Path) -> None:
    loud = "parts.plain.defenses.loud={name: clip_then_noise, noise_scale: 0.1}"
    result = sweeper("plan", "demo", "--data", tmp_path, "--only", "loud", "--set", loud)
    assert result.exit_code == 0, result.output
    warning = " ".join(result.stderr.split())
    assert "with noise_multiplier 0.1, ε is too large for the prv accountant" in warning
    assert "an upper bound by rdp, and guarantees nothing" in warning


def test_an_unwritable_results_folder_is_explained(tiny: Path, tmp_path: Path) -> None:
    result = sweeper("launch", tiny, "--out", unwritable(tmp_path))
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert "--out" in result.stderr


def test_an_unusable_folder_for_tensorboard_is_explained(tiny: Path, tmp_path: Path) -> None:
    result = sweeper("launch", tiny, "--out", tmp_path / "out", "--tensorboard", unwritable(tmp_path))
    assert result.exit_code == 2
    assert "--tensorboard" in result.stderr and "Errno" not in result.stderr


def test_a_delta_above_one_over_n_is_warned_of(tiny: Path) -> None:
    result = sweeper("plan", tiny, "--set", "defenses.dp.delta=0.02")
    assert result.exit_code == 0
    assert "delta 0.02 is not below 1/n = 0.01 for 100 training examples" in result.stderr


def test_a_table_of_results_is_written_even_where_there_is_nothing_in_it(tiny: Path, tmp_path: Path) -> None:
    trial = expand(load_sweep(str(tiny)))[0]
    sweeper("trial", tiny, trial.target_id, "--set", "attacks=[]", "--out", tmp_path / "out")
    gather(Store(tmp_path / "out"))
    assert (tmp_path / "out" / "scores.parquet").exists()
    assert sweeper("report", tmp_path / "out").exit_code == 0


def test_a_process_that_trains_starts_anew_with_the_allocators_settings():
    code = (
        "import os, sys; from sweeper.workers.allocator import restart_with_allocator_environment as restart; restart();"
        "print(sys.argv[1:], os.environ['MALLOC_MMAP_MAX_'], os.environ['MALLOC_TRIM_THRESHOLD_'])"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    for given, kept in (({}, "0"), ({"MALLOC_MMAP_MAX_": "7"}, "7")):
        command = [sys.executable, "-c", code, "a b", "--c"]
        result = subprocess.run(command, env=environment | given, capture_output=True, text=True, timeout=60)
        assert result.stdout.strip() == f"['a b', '--c'] {kept} 100000000000", result.stderr


def test_the_status_of_an_object_store_shows_no_credentials(s3_server: S3Server, tiny: Path) -> None:
    store = Store(s3_server.uri("out"))
    sweep = load_sweep(str(tiny))
    trials = expand(sweep)
    store.prepare()
    store.write_sweep(sweep, trials)
    row = {"schema_version": 3, "target_id": trials[0].target_id, "status": "failed", "cause": "error", "error": "no"}
    store.write_failed_target(trials[0].target_id, row)
    result = sweeper("status", store.storage.uri)
    assert result.exit_code == 0, result.output
    assert "sweeper logs s3://***@" in "".join(result.output.split("\n"))
    assert KEY not in result.output and SECRET not in result.output


@pytest.fixture
def here(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A launch whose trials run in this process: its command, its results, what it ran."""
    command = ["launch", tiny, "--set", "attacks=[threshold]", "--out", tmp_path / "out"]
    store, ran = Store(tmp_path / "out"), []

    def run(self: Any, pending: list[Trial], prepared: Any) -> tuple[list[str], bool, str | None, Any]:
        for trial in pending:
            ran.append(trial.target_id)
            run_trial(trial, TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu")))
        return [], True, None, prepared

    monkeypatch.setattr("sweeper.launch._Runner.run", run)
    assert sweeper(*command).exit_code == 0
    ran.clear()
    return SimpleNamespace(command=command, store=store, ran=ran)


@pytest.mark.slow
@pytest.mark.parametrize("again_and_again", [False, True])
def test_a_launch_makes_anew_what_is_damaged_but_not_without_end(
    again_and_again: bool, here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = min((here.store.storage.root / "parts" / "history").iterdir())
    whole = part.read_bytes()
    part.write_bytes(whole[:-9])

    def gather_damaged(self: Store, copy: Path | None = None) -> Any:
        part.write_bytes(whole[:-9])
        return gather(self, copy)

    if again_and_again:
        monkeypatch.setattr("sweeper.results.gather.gather", gather_damaged)
    result = sweeper(*here.command)
    assert "is damaged and was set aside" in result.stderr
    if again_and_again:
        assert (result.exit_code, len(here.ran)) == (1, 2)
        assert "1 of 2 trials are finished" in result.stderr
    else:
        assert (result.exit_code, len(here.ran)) == (0, 1), result.output
    assert set(here.ran) == {part.stem}


def test_a_comparison_whose_target_failed_starts_no_further_round(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rounds = Store(tmp_path / "out"), []

    def run(self: Any, pending: list[Trial], prepared: Any) -> tuple[list[str], bool, str | None, Any]:
        rounds.append([trial.defense_label for trial in pending])
        for trial in pending:
            if trial.twin_id is None:
                run_trial(trial, TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu")))
            else:
                record_failure(trial, store, 1, "it died", "process_died")
        return [], True, None, prepared

    monkeypatch.setattr("sweeper.launch._Runner.run", run)
    defenses = "defenses={none: none, ac: {name: noise_then_clip, noise_scale: 0.01}}"
    result = sweeper("launch", tiny, "--set", "attacks=[]", "--set", defenses, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert rounds == [["none", "ac"]]


def test_results_that_cannot_be_gathered_are_no_wrong_input(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Store, copy: Path | None = None) -> Any:
        raise StorageError("No space left on device. Make room there.")

    monkeypatch.setattr("sweeper.results.gather.gather", full)
    result = sweeper(*here.command)
    assert result.exit_code == 1
    assert "The results cannot be gathered: No space left on device." in result.stderr
    assert "the same command goes on from there" in result.stderr


def test_a_report_that_cannot_be_written_makes_no_wrong_input_of_a_launch(here: Any) -> None:
    folder = here.store.storage.root / "report"
    shutil.rmtree(folder)
    folder.write_text("in the way")
    result = sweeper(*here.command)
    assert result.exit_code == 1
    assert "No report: The report cannot be written" in result.stderr
    assert "Errno" not in result.stderr


@pytest.mark.slow
def test_damage_that_cannot_be_set_aside_is_no_success(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(self: Any, name: str, to: str) -> None:
        raise StorageError("Permission denied.")

    part = min((here.store.storage.root / "parts" / "history").iterdir())
    part.write_bytes(part.read_bytes()[:-9])
    monkeypatch.setattr(Storage, "move", stuck)
    result = sweeper(*here.command)
    assert result.exit_code == 1
    assert result.stderr.count("is damaged and cannot be set aside") == 1
    assert not here.ran


@pytest.mark.slow
def test_a_full_disk_under_what_is_printed_ends_no_launch(here: Any, tiny: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "sweeper.cli", *map(str, here.command)]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr


def test_a_tracking_uri_that_is_none_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    sys.modules["mlflow"].__spec__ = ModuleSpec("mlflow", None)
    result = sweeper("launch", tiny, "--mlflow", "http://[host")
    assert result.exit_code == 2
    assert "--mlflow: the tracking URI cannot be parsed" in result.stderr


def test_gpus_that_cannot_be_used_and_were_not_asked_for_are_left_alone(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def unusable() -> None:
        raise OSError("PyTorch cannot use the GPUs of this. With --gpus-per-trial 0 trials run on CPUs.")

    asked: list[Any] = []

    def resolve(resources: Any, trials: Any, warn: Any) -> None:
        asked.append(resources.gpus)
        raise UserError("far enough")

    monkeypatch.setattr("sweeper.cluster.resources.check_own_gpus", unusable)
    monkeypatch.setattr("sweeper.cluster.connection.connect", lambda address, verbose: contextlib.nullcontext())
    monkeypatch.setattr("sweeper.cluster.resources.resolve", resolve)
    result = sweeper("launch", tiny, "--out", tmp_path / "out")
    assert "trials run on CPUs. Now they do." in result.stderr
    sweeper("launch", tiny, "--out", tmp_path / "out", "--gpus-per-trial", "1")
    assert asked == [{None: 0.0}, {None: 1.0}]

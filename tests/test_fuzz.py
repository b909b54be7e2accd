"""Malformed sweep files, stores and command lines: a clear error each time, and no finished trial is lost.

SWEEPER_FUZZ=20 tries twenty times as many cases, other ones each time.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import io
import json
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from analysis_fixture import make_rows, write_tables
from comparing import run_comparisons
from conftest import TINY
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from typer.testing import CliRunner

from models.splits import SPLITS
from models.train import Checkpoint, Training
from sweeper.cli import app
from sweeper.cli.display import status_view
from sweeper.errors import UserError, printable
from sweeper.results import attempts, checkpoints, launches, layout
from sweeper.results.gather import gather
from sweeper.results.schema import SCHEMAS
from sweeper.results.status import SweepStatus, read_status
from sweeper.results.store import Store
from sweeper.storage import Storage
from sweeper.sweep import components, yaml_file
from sweeper.sweep.expand import Sweep, expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.packaged import packaged_sweeps
from sweeper.sweep.preflight import resolve_trials
from sweeper.sweep.trial import Trial
from sweeper.sweep.yaml_file import parse_yaml
from sweeper.trial.context import TrialContext
from sweeper.trial.run import TrialResult, run_trial

pytestmark = pytest.mark.slow

FUZZ = int(os.environ.get("SWEEPER_FUZZ", "1"))


def fuzz(examples: int) -> settings:
    """This many cases, the same each time; with SWEEPER_FUZZ many more, different each time."""
    return settings(
        max_examples=examples * FUZZ,
        derandomize=FUZZ == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate] if FUZZ > 1 else list(Phase),
    )


def is_clear(text: str) -> None:
    """One finite paragraph that any terminal can show."""
    assert 10 < len(text) < 2000, text
    assert text.isprintable(), repr(text)


# Sweep files


HOSTILE: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    10**30,
    10**400,
    -(10**400),
    0.5,
    -0.0,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
    "3",
    "1e5",
    "",
    " ",
    "none",
    "dp_sgd",
    "x" * 5000,
    "\ud800",
    "\x1b[31mred\x07\r",
    "two\nlines",
    "\u202eright to left",
    "😀",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "\0",
    ".",
    [],
    {},
    [[]],
    [None],
    {"name": None},
    {"name": "dp_sgd", "epsilon": 10**400},
    {None: None},
    {1: 2, "a": 3},
    {"grid": {"epsilon": [1, 2]}},
    list(range(2000)),
]
RAW = [
    "!!python/object/apply:os.system ['touch executed']",
    "!!python/name:os.system",
    "!!binary AAAA",
    "!!binary é",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "!!int ''",
    "!!int x",
    "!!float ''",
    "!!bool maybe",
    "!!timestamp x",
    "!!null [x]",
    "!!map x",
    "!!str [x]",
    "!unknown x",
    "2020-01-01",
    "2020-99-99",
    "0001-01-01 00:00:00 +23:59",
    "190:20:30",
    "0o17",
    "0x" + "f" * 5000,
    "9" * 5000,
    "1e999",
    "&self [*self]",
    "&self {a: *self}",
    "!!pairs &self [a: *self]",
    "*nothing",
    "{<<: 3}",
    "{<<: [1]}",
    "{<<: {a: 1}, <<: {a: 2}}",
    "&self {<<: *self, a: 1}",
    "{? [a] : b}",
    "{? {a: b} : c}",
    "{.nan: 1, .nan: 2}",
    "{=: 3}",
    "=",
    "[" * 25 + "]" * 25,
    "[" * 2000 + "]" * 2000,
    "{a: " * 2000 + "}" * 2000,
    "'unclosed",
    "[unclosed",
    "|\n  block",
    "%TAG",
    "\t- x",
]
PLACEHOLDER = "raw-{}-raw"


def mutated(draw: Any, tree: Any) -> Any:
    """The tree after some hostile changes."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(containers(tree))
        place = draw(st.sampled_from(places))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            continue
        key = draw(st.sampled_from(keys))
        value = draw(
            st.one_of(
                st.sampled_from(HOSTILE).map(copy.deepcopy),
                st.integers(0, len(RAW) - 1).map(PLACEHOLDER.format),
                st.integers(),
                st.floats(),
                st.text(max_size=20),
            )
        )
        match draw(st.sampled_from(["replace", "delete", "rename", "nest", "list", "copy", "loop", "add"])):
            case "replace":
                place[key] = value
            case "delete":
                del place[key]
            case "rename" if isinstance(place, dict) and not isinstance(value, dict | list):
                place[value] = place.pop(key)
            case "nest":
                place[key] = {"name": place[key]}
            case "list":
                place[key] = [place[key], value]
            case "copy":
                place[key] = draw(st.sampled_from(places))
            case "loop":
                place[key] = place
            case "add" if isinstance(place, dict):
                place[draw(st.sampled_from(["parts", "seeds", "grid", "name", "epochs", "folder", "crop"]))] = value
    return tree


def containers(tree: Any, depth: int = 0) -> Any:
    if isinstance(tree, dict | list) and depth < 8:
        yield tree
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(child, depth + 1)


BASES = [parse_yaml(text, "") for text in (TINY, *(path.read_text() for path in packaged_sweeps().values()))]


def yaml_of(tree: Any) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_unicode, yaml.sort_base_mapping_type_on_output = False, False
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()


@st.composite
def mutants(draw: Any) -> str:
    """A valid sweep file after damage."""
    tree = mutated(draw, draw(st.sampled_from(BASES)))
    text = yaml_of(tree)
    for number, raw in enumerate(RAW):
        text = text.replace(PLACEHOLDER.format(number), raw)
    return text


TOKENS = [
    *RAW,
    "datasets",
    "defenses",
    "attacks",
    "seeds",
    "training",
    ": ",
    ":",
    "- ",
    "\n",
    "\n  ",
    " ",
    ", ",
    "[",
    "]",
]
TOKENS += [
    "{",
    "}",
    "&a ",
    "*a",
    "<<: ",
    "? ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "%",
    "@",
    "`",
    "\t",
    "---\n",
    "...\n",
    "\ufeff",
]
TOKENS += [
    "digits",
    "none",
    "1",
    "1e5",
    ".nan",
    "!!str ",
    "!!int ",
    "!!seq ",
    "!!map ",
    "\x85",
    "\u2028",
    "é",
    "\U0001f600",
]
YAMLISH = st.lists(st.sampled_from(TOKENS), max_size=30).map("".join)


def attempt(path: Path, folder: Path, *overrides: str) -> str | None:
    """The error about a sweep file; None if it is valid."""
    started = time.process_time()
    try:
        trials = expand(load_sweep(str(path), overrides))
        resolve_trials(trials[:3], folder)
        return None
    except UserError as error:
        is_clear(str(error))
        return str(error)
    finally:
        assert time.process_time() - started < 20


def attempt_content(tmp_path_factory: Any, content: bytes) -> None:
    """Take these bytes for a sweep file; nothing that they name may be executed."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzz.yaml"
    path.write_bytes(content)
    attempt(path, folder)
    assert not Path("executed").exists()


@fuzz(150)
@given(st.one_of(YAMLISH.map(str.encode), st.text().map(lambda text: text.encode(errors="replace")), st.binary()))
def test_any_bytes_as_a_sweep_file(tmp_path_factory: Any, content: bytes) -> None:
    attempt_content(tmp_path_factory, content)


@fuzz(150)
@given(mutants())
def test_any_change_to_a_sweep_file(tmp_path_factory: Any, text: str) -> None:
    attempt_content(tmp_path_factory, text.encode())


def laughs(levels: int, form: str) -> str:
    """Ten times as many values on each level as on the one above."""
    lines = [f"  - &a{i} {form.format(', '.join([f'*a{i - 1}'] * 10)) if i else '{a: 1}'}\n" for i in range(levels)]
    return "seeds:\n" + "".join(lines)


SMALLEST = "datasets: [digits]\nattacks: []\ndefenses: "
TOO_MUCH = {
    "a number of no digits": (b"seeds: [!!int '']", "is not valid YAML"),
    "a truth that is none": (b"name: !!bool maybe", "is not valid YAML"),
    "an endless number": (b"seeds: [0x" + b"f" * 5000 + b"]", "a whole number is not within"),
    "half a character": (b'name: "\\ud800"', "cannot be read as str"),
    "bytes, which no sweep has": (b"name: !!binary AAAA", "could not determine a constructor"),
    "keys of two kinds": (SMALLEST.encode() + b"{a: {1: 2, b: 3}}", "does not name a defense"),
    "an unknown key among keys of two kinds": (b"1: 2\na: 3", "Unknown key '1'"),
    "a part twice": (SMALLEST.encode() + b"[none]\nparts: {1: , '1': }", "is given twice"),
    "a billion laughs": (laughs(18, "[{}]").encode(), "more than 300,000 characters"),
    "a billion merged laughs": (laughs(12, "{{<<: [{}], b: 1, c: 2}}").encode(), "more than 300,000 characters"),
    "a long chain of merged mappings": (
        b"a0: &a0 {k: 1}\n" + b"".join(b"a%d: &a%d {<<: *a%d, k%d: 1}\n" % (i, i, i - 1, i) for i in range(1, 3000)),
        "more than 300,000 characters",
    ),
    "a merged loop": (b"&self {<<: *self, a: 1}", "an anchor refers to itself"),
    "a number that is none": (b"seeds: [!!int 1:30]", "line 1, column 9: '1:30' cannot be read as int"),
    "a deep nesting": (b"[" * 100_000, "nests more than 20 levels"),
    "a large file": (b" " * 300_001, "more than 300,000 characters"),
    "a huge grid": (
        (SMALLEST + "{a: {name: dp_sgd, grid: {" + ", ".join(f"f{i}: [1, 2, 3]" for i in range(19)) + "}}}").encode(),
        "1,162,261,467 trials; at most 1,000,000",
    ),
    "many seeds and architectures": (
        SMALLEST.encode()
        + b"[none]\nseeds: [" + b",".join(b"%d" % i for i in range(10_001)) + b"]\narchitectures: {"
        + b",".join(b"a%d: {name: lomurno_cnn, dense_units: %d}" % (i, i) for i in range(1, 101)) + b"}",
        "1,000,100 trials; at most 1,000,000",
    ),
    "many parts": (SMALLEST.encode() + b"[none]\nparts: {" + b",".join(b"p%d: " % i for i in range(1001)) + b"}", "at most 1,000"),
    "a long label": (SMALLEST.encode() + b"[" + b"x" * 101 + b"]", "at most 100"),
    "a layer as large as the world": (
        SMALLEST.encode() + b"[none]\narchitectures: [{name: lomurno_cnn, filters: [1000000000, 1000000000, 1]}]",
        "Storage size calculation overflowed",
    ),
    "an image as large as the world": (
        b"datasets: [{name: digits, resize: 1000000}]\nattacks: []\ndefenses: [none]\narchitectures: [lin_lstm]",
        "which is too large",
    ),
    "epochs without end": (
        SMALLEST.encode() + b"[{name: dp_sgd, noise_multiplier: 1, accountant: rdp}]\ntraining: {epochs: 9223372036854775807}",
        "",
    ),
    "a folder that no disk has": (
        b"datasets: [{name: image_folder, folder: " + b"x" * 5000 + b"}]\nattacks: []\ndefenses: [none]",
        "File name too long",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(TOO_MUCH))
def test_what_no_sweep_has_is_refused_soon(case: str, tmp_path: Path) -> None:
    content, expected = TOO_MUCH[case]
    (tmp_path / "fuzz.yaml").write_bytes(content)
    assert expected in (attempt(tmp_path / "fuzz.yaml", tmp_path) or "")


def test_a_date_is_text_and_what_an_anchor_repeats_is_not_shared(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_text("name: 2020-01-01\n" + SMALLEST + "[none]\nparts: {a: &a {seeds: [0]}, b: *a}\n")
    sweep = load_sweep(str(path), ["parts.a.seeds=[1]"])
    assert sweep.name == "2020-01-01"
    assert [part.seeds for part in sweep.parts] == [(1,), (0,)]
    assert "at most 20 levels" in (attempt(path, tmp_path, f"defenses.x{'.name' * 500}=y") or "")


def test_a_model_is_planned_without_memory_for_it(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_text(SMALLEST + "[none]\narchitectures: [{name: lomurno_cnn, filters: [30000, 30000, 30000]}]")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert attempt(path, tmp_path) is None  # 65 GB of weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


NUMBERS = [0, 1, 2, 3, -1, 10**6, 2**31, 2**62, 0.5, 1.0, 1e-9, 1e9, 1e300, 5e-324, -1.0, math.nan, math.inf]
OTHERS: list[Any] = [
    None,
    True,
    False,
    "rdp",
    "prv",
    "x",
    "\x1b[2J",
    "é",
    "",
    [],
    [1],
    [2, 2, 2],
    [2**62] * 3,
    {},
    "../x",
    "a/b",
]


@st.composite
def components_with_any_fields(draw: Any) -> str:
    """A small sweep with invalid fields of each component and of the training."""

    def fields(cls: Any) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(cls)]
        values = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(OTHERS), st.integers(), st.floats())
        return draw(st.dictionaries(st.sampled_from(names or ["x"]), values, max_size=2))

    def component(kind: str) -> dict[str, Any]:
        name = draw(st.sampled_from(sorted(components.names(kind))))
        return {"name": name} | fields(components.component_class(kind, name))

    sweep = {
        "datasets": [component("dataset")],
        "splits": [draw(st.sampled_from(sorted(SPLITS)))],
        "architectures": [component("architecture")],
        "defenses": {"a": [component("defense") for _ in range(draw(st.integers(1, 2)))]},
        "training": fields(Training),
        "attacks": [component("attack")],
    }
    return yaml_of(sweep)


@fuzz(150)
@given(components_with_any_fields())
def test_any_field_of_any_component(tmp_path_factory: Any, text: str) -> None:
    attempt_content(tmp_path_factory, text.encode())


# The command line


WORDS = [
    "",
    " ",
    ".",
    "..",
    "../..",
    "/",
    "-",
    "--",
    "*",
    "[",
    "[!",
    "**/*",
    ":",
    "a:b:c",
    "/x",
    "a/b/c/d",
    "=",
    "a=",
    "=1",
    "a=b=c",
]
WORDS += [
    "x" * 300,
    "x" * 5000,
    "😀",
    "é",
    "\x1b[31mred",
    "[/red]",
    "[bold]",
    "two\nlines",
    "\x85",
    "\u202ex",
    "\udcff",
    "\ud800",
    "\0",
    "a\0b",
]
WORDS += [
    "0",
    "-1",
    "1",
    "0.25",
    "1.5",
    "2.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e308",
    "9" * 400,
    "9" * 5000,
    "٣",
    "0x10",
    "1_0",
    "auto",
    "none",
]
WORDS += [
    "90s",
    "0s",
    "1.5h",
    "1e3s",
    "9" * 400 + "d",
    "10 m",
    "lomurno_cnn=1",
    "lomurno_cnn=auto",
    "resnet=1",
    "=auto",
    "none=none",
]
WORDS += [
    "seeds=[",
    "seeds=[1",
    "seeds=1",
    "training.epochs=0",
    "training.x.y=1",
    "training=",
    "name=x y",
    "a.b.c.d=1",
    "defenses=*x",
]
WORDS += [
    "defenses.baseline" + ".name" * 500 + "=x",
    "parts.x.y=1",
    "parts=1",
    "parts.a=",
    "seeds.0=1",
    "attacks.threshold.scores.x=1",
    ".=1",
    "..=1",
]
WORDS += [
    "seeds=!!python/object/apply:os.system ['touch executed']",
    "datasets.digits.resize=[1",
    "defenses.dp={grid: {x: [1]}}",
    "name=../x",
]
WORDS += [
    "s3://",
    "s3:///x",
    "s3://[",
    "s3://[::1",
    "s3://a b",
    "s3://b?x=1",
    "s3://b?%",
    "s3://b/../c",
    "s3://b#x",
    "s3:/b",
    "S3://b",
    "gs://",
]
WORDS += [
    "s3://k:s@",
    "s3://\u2100/x",
    "s3://b/\0",
    "http://x",
    "https://x/y",
    "ftp://x",
    "file://",
    "file:///",
    "file://host/x",
    "file://[",
    "hdfs://x",
    "C:/x",
]
ANY = st.one_of(st.sampled_from(WORDS), st.text(max_size=12))
OPTIONS = {
    "plan": ["--set", "--only", "--out", "--data"],
    "launch": [
        "--set",
        "--only",
        "--out",
        "--data",
        "--gpus-per-trial",
        "--cpus-per-trial",
        "--time-limit",
        "--checkpoint-every",
        "--max-concurrent",
        "--chunk-size",
        "--retries",
        "--worker-retries",
        "--tensorboard",
        "--mlflow",
    ],
    "trial": ["ID", "--set", "--out", "--data", "--threads"],
    "report": ["RESULTS", "--to"],
    "gather": ["RESULTS"],
    "status": ["RESULTS"],
    "logs": ["RESULTS", "ID"],
    "audit": ["OUTPUTS", "--attack", "--form", "--dtype", "--seed", "--out"],
}


def sweeper(*arguments: object) -> Any:
    """A command in this process; it ended as every command must, with its last words."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (0, 1, 2), result.output
    assert "Traceback" not in result.output
    assert len(result.stderr) < 6000
    return result


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of all cases, with a sweep and a model's outputs; nothing trains."""
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    rows = [
        {"example_id": i, "is_member": i % 2 == 0, "label": i % 3, "logits": [0.1 * i, 1.0, 2.0]} for i in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "outputs.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            "sweeper.trial.run.run_trial", lambda trial, **_: TrialResult(target_id=trial.target_id, status="finished")
        )
        patch.setattr("sweeper.results.store.Store.prepare", lambda store: None)
        yield folder


@st.composite
def command_lines(draw: Any) -> tuple[list[str], dict[str, str]]:
    """A command, and some of its options with any values."""
    command = draw(st.sampled_from(sorted(OPTIONS)))
    given_values = draw(st.dictionaries(st.sampled_from(OPTIONS[command]), ANY, min_size=1, max_size=2))
    line = [command]
    if command in ("plan", "launch", "trial"):
        line += ["tiny.yaml", *(["--dry-run"] if command == "launch" else [])]
    if command == "audit" and "--out" in given_values:
        given_values["--out"] = given_values["--out"].lstrip("/")
    defaults = {"RESULTS": "nowhere", "ID": "zz", "OUTPUTS": "outputs.parquet"}
    for option in OPTIONS[command]:
        if option.startswith("--"):
            line += [f"{option}={given_values[option]}"] if option in given_values else []
    line += ["--"] + [given_values.get(name, defaults[name]) for name in OPTIONS[command] if name in defaults]
    if command == "audit" and "--attack" not in given_values:
        line.insert(1, "--attack=loss")
    return line, given_values


def squeezed(text: str) -> str:
    """Without blanks, frames and slashes, which may differ between what was given and what is repeated."""
    return "".join(text.translate(dict.fromkeys(map(ord, "│/"), " ")).split())


@fuzz(150)
@given(command_lines())
def test_any_command_line(sandbox: Path, line_and_values: tuple[list[str], dict[str, str]]) -> None:
    line, values = line_and_values
    result = sweeper(*line)
    if result.exit_code == 2:
        said = squeezed(result.stderr)
        named = [option for option in values if option.lower() in said.lower()]
        pieces = [
            piece for value in (*values.values(), *line[1:]) for piece in value.removeprefix("file://").split("=")
        ]
        quoted = [piece for piece in pieces if squeezed(printable(piece, 60))[:20] in said]
        # What is wrong in a URI may be a secret, so it is not repeated
        uris = [value for value in values.values() if ":/" in value and value.partition(":/")[0] in said]
        assert named or quoted or uris, result.stderr
    assert not (sandbox / "executed").exists()


# Stores


SMALL = """
name: small
datasets: [{name: digits, max_train_examples: 80, max_test_examples: 20}]
splits: [half]
architectures: [{name: lomurno_cnn, filters: [2, 2, 2], dense_units: 4}]
defenses: {plain: none, clipped: {name: quantile_clipping, noise_scale: 0.1}}
training: {epochs: 1, batch_size: 10}
attacks: [{name: threshold, scores: [loss, entropy]}]
"""
TIMES = [
    "compare_time_s",
    "load_time_s",
    "first_step_time_s",
    "train_time_s",
    "seconds_per_step",
    "started_at",
    "attack_time_s",
]
LAUNCH = {"launch_id": "fedcba9876543210", "process": "elsewhere:1:1:1", "host": "far", "pid": 1}
LAUNCH |= {"started_at": "2020-01-01T00:00:00+00:00"}
LAUNCH |= {"running": [{"target_id": "0123456789abcdef", "title": "a", "stage": "b", "fraction": 0.5, "seconds": 1.0}]}
UGLY = "\x1b[2J\x1b]0;title\x07[/red][link=x]<script>alert(1)</script>&amp;'\"\r\n\u202e\\ $x$ %s {x}"


@dataclasses.dataclass(frozen=True, repr=False)
class Finished:
    """A store in which all is done, and what its tables say."""

    folder: Path
    sweep: Sweep
    trials: list[Trial]
    tables: dict[str, Any]


def run(trials: list[Trial], store: Store) -> list[TrialResult]:
    return [
        run_trial(trial, TrialContext(data_dir=Path("nowhere"), store=store, device=torch.device("cpu")))
        for trial in trials
    ]


def tables(store: Store) -> dict[str, Any]:
    """All gathered tables, without times."""
    read = {name: pq.read_table(store.storage.root / f"{name}.parquet") for name in SCHEMAS}
    return {
        name: rows.drop_columns([each for each in TIMES if each in rows.column_names]) for name, rows in read.items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    sweep = load_sweep(str(folder / "small.yaml"))
    trials = expand(sweep)
    store = Store(folder / "store")
    store.prepare()
    store.write_sweep(sweep, trials)
    assert [result.status for result in run(trials, store)] == ["finished"] * 2
    assert [result.status for result in run_comparisons(store, trials)] == ["finished"]
    gather(store)
    assert tables(store)["tpvd"].num_rows == 1
    one = trials[0].target_id
    store.storage.write(f"logs/{one}.log", b"it began\n")
    store.storage.write(f"attempts/{one}.json", b'{"attempts": 1}')
    store.storage.write(f"claims/{one}", b"fedcba9876543210")
    store.storage.write("launches/fedcba9876543210.json", json.dumps(LAUNCH).encode())
    store.write_checkpoint(one, b"nothing")
    return Finished(folder / "store", sweep, trials, tables(store))


HOSTILE_JSON = [
    b"",
    b"null",
    b"[]",
    b"0",
    b'"x"',
    b"{",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5000,
    b"1e999",
    b"\xff\xfe",
    b'{"targets": null}',
    b'{"targets": {"../../x": []}}',
    b'{"targets": {"0123456789abcdef": 3}}',
    b'{"targets": {"0123456789abcdef": ["0123456789abcdef"]}}',
    b'{"targets": {}}',
    b'{"attempts": 1e999}',
    b'{"attempts": NaN}',
    b'{"attempts": -5}',
    b'{"attempts": ' + b"9" * 400 + b"}",
    b'{"attempts": [1]}',
    *(
        json.dumps(LAUNCH | changes).encode()
        for changes in (
            {"pid": math.inf},
            {"pid": "x"},
            {"pid": 10**400},
            {"host": UGLY, "started_at": UGLY},
            {"host": "x" * 10**6},
            {"launch_id": "../../x"},
            {"running": None},
            {"running": "abc"},
            {"running": [LAUNCH["running"][0] | {"title": UGLY, "stage": UGLY, "target_id": UGLY}]},
            {"running": [LAUNCH["running"][0] | {"fraction": math.nan}]},
            {"running": [LAUNCH["running"][0] | {"seconds": math.inf}]},
            {"running": [LAUNCH["running"][0] | {"seconds": 1e300, "fraction": -1e300}]},
            {"running": LAUNCH["running"] * 1000},
        )
    ),
]
NAMES = [
    "a\\b",
    "..\\..\\x",
    "\udcff",
    "\n",
    "\x1b[2J",
    "[red]",
    "x" * 240,
    ".failed",
    "0123456789abcdef",
    "😀",
    " ",
    "-rf",
    "%00",
]
NAMES += ["0123456789abcdef.0123456789abcdef"]
NAMES += ["0123456789abcdef.failed", "0123456789ABCDEF", "a.b.c", ".x.tmp", ".a\\b.tmp", "~", "$HOME"]
PARTS = ["history", "outputs", "trials", "scores", "attacks", "tpvd", "reconstructions"]


@st.composite
def damages(draw: Any) -> list[tuple[Any, ...]]:
    """What happens to a store: each the number of a file, a kind, and its details."""
    kinds = [
        "truncate",
        "flip",
        "write",
        "other",
        "json",
        "folder",
        "loop",
        "dangling",
        "outside",
        "delete",
        "rename",
        "time",
    ]
    return [
        (
            draw(st.integers(0, 10**6)),
            draw(st.sampled_from([*kinds, "new", "new json"])),
            draw(st.integers(0, 10**9)),
            draw(st.sampled_from(["", ".parquet", ".failed.parquet", ".json", ".log", ".safetensors"])),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]


def damage(root: Path, what: list[tuple[Any, ...]]) -> None:
    """Apply the damage. The numbers select from the files that exist then."""
    for which, kind, how, suffix in what:
        files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        file = files[which % len(files)]
        content = file.read_bytes()
        folders = sorted(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())
        new = folders[which % len(folders)] / (NAMES[how % len(NAMES)] + suffix)
        match kind:
            case "truncate":
                file.write_bytes(content[: how % (len(content) + 1)])
            case "flip" if content:
                flipped = bytearray(content)
                for number in range(1 + how % 3):
                    flipped[how * (number + 1) % len(content)] ^= 1 << (how >> 8) % 8
                file.write_bytes(flipped)
            case "write":
                file.write_bytes([b"", b"PAR1", b"x" * 1000, content + b"x", b"\0" * len(content)][how % 5])
            case "other":
                file.write_bytes(files[how % len(files)].read_bytes())
            case "json":
                file.write_bytes(HOSTILE_JSON[how % len(HOSTILE_JSON)])
            case "folder" | "loop" | "dangling" | "outside":
                file.unlink()
                if kind == "folder":
                    file.mkdir()
                    if how % 2:
                        (file / "x").write_bytes(b"")
                else:
                    outside = {"loop": file, "dangling": root / "nowhere", "outside": root.parent / "canary" / "file"}
                    file.symlink_to(outside[kind])
            case "delete":
                file.unlink()
            case "rename":
                file.rename(file.with_name(NAMES[how % len(NAMES)] + suffix))
            case "time":
                os.utime(
                    file, [(0, 0), (2**40, 2**40), (-(2**40), -(2**40)), (2**62 // 10**9, 2**62 // 10**9)][how % 4]
                )
            case "new":
                new.write_bytes(content if how % 2 else b"x")
            case "new json":
                new.write_bytes(HOSTILE_JSON[how % len(HOSTILE_JSON)])


def rewritten(file: Path, how: int) -> None:
    """A complete file, but with no rows, other rows or other columns."""
    try:
        rows = pq.read_table(file)
    except (OSError, ValueError):
        return
    column = pa.array(["0123456789abcdef"] * rows.num_rows)
    match how % 4:
        case 0:
            rows = rows.slice(0, 0)
        case 1:
            rows = rows.set_column(rows.column_names.index("target_id"), "target_id", column)
        case 2:
            rows = rows.drop_columns(["target_id"])
        case 3:
            rows = rows.set_column(0, rows.column_names[0], column)
    pq.write_table(rows, file)


def refused(work: Callable[[], Any]) -> Any:
    """The result of `work`, or None if it raises a clear error."""
    try:
        return work()
    except UserError as error:
        is_clear(str(error))
        return None


@fuzz(40)
@given(damages())
@example([(8, "truncate", 0, "")])
@example([(8, "other", 0, "")])
@example([(517, "truncate", 0, ""), (2, "folder", 0, "")])
def test_any_damage_to_a_store(finished: Finished, tmp_path_factory: Any, what: list[tuple[Any, ...]]) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "canary").mkdir()
    (folder / "canary" / "file").write_bytes(b"untouched")
    store = Store(folder / "store")
    root = store.storage.root
    shutil.copytree(finished.folder, root)
    damage(root, what)
    after = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    before = {
        path.relative_to(finished.folder): path.read_bytes() for path in finished.folder.rglob("*") if path.is_file()
    }
    changed = {str(path) for path in before if after.get(path) != before[path]}

    # Looking at it
    refused(lambda: store.statuses(finished.trials))
    refused(lambda: [store.status(trial) for trial in finished.trials])
    if (status := refused(lambda: read_status(store))) is not None:
        console = Console(file=io.StringIO(), width=100)
        console.print(status_view(status, str(root)))
        assert "\x1b" not in console.file.getvalue()
        json.dumps(status.as_json(), allow_nan=False)
    for arguments in (["status", root], ["status", root, "--json"], ["logs", root, finished.trials[0].target_id]):
        sweeper(*arguments)
    for trial in finished.trials:
        attempts.count(store.storage, trial.target_id)

    # Mending it, as a launch does
    store.prepare()
    store.write_sweep(finished.sweep, finished.trials)
    trained, attacked = set(), set()
    for _ in range(6):
        for result in run(
            [trial for trial in finished.trials if not store.statuses([trial])[trial.target_id].done], store
        ):
            assert result.status == "finished", result.errors
            trained |= {result.target_id} if result.trained else set()
            attacked |= {result.target_id} if result.attacks_run else set()
        compared = {result.status for result in run_comparisons(store, finished.trials)}
        gathered = gather(store)
        if (
            not gathered.damaged
            and "failed" not in compared
            and all(each.done for each in store.statuses(finished.trials).values())
        ):
            break
    else:
        raise AssertionError("it is not mended")
    assert {status.word for status in store.statuses(finished.trials).values()} == {"done"}
    made = tables(store)
    for name, rows in finished.tables.items():
        assert made[name].equals(rows), name
    for trial in finished.trials:
        own = {name for name in changed if trial.target_id in name}
        of_target = ("weights/", *(f"parts/{table}/" for table in ("history", "outputs", "trials")))
        assert trial.target_id not in trained or any(name.startswith(of_target) for name in own), "trained for nothing"
        assert trial.target_id not in attacked or own, "attacked for nothing"
    assert (folder / "canary" / "file").read_bytes() == b"untouched"
    assert {path.name for path in folder.iterdir()} == {"canary", "store"}
    shutil.rmtree(folder)


def test_what_is_no_file_is_not_listed_and_gives_way(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(b"kept")
    for name in ("a\\b", "\udcff", ".a\\b.tmp"):
        (tmp_path / name).write_bytes(b"x")
    for age in (2**40, -(2**40)):
        (tmp_path / f"of {age}").write_bytes(b"x")
        os.utime(tmp_path / f"of {age}", (age, age))
    storage.prepare([])
    assert set(storage.entries()) == {f"of {2**40}", f"of {-(2**40)}"}
    for name in ("loop", "folder"):
        assert not storage.exists(name)
        with pytest.raises(FileNotFoundError):
            storage.read(name)
        storage.delete("folder")
        storage.write(name, b"new")
        assert storage.read(name) == b"new"
    assert [path.read_bytes() for path in tmp_path.glob("folder.folder-*/x")] == [b"kept"]


@pytest.mark.parametrize("content", [each for each in HOSTILE_JSON if b"attempts" in each or b"launch_id" in each])
def test_hostile_notes_of_launches_and_attempts_count_for_nothing(content: bytes, tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("attempts/0123456789abcdef.json", content)
    storage.write(f"{layout.LAUNCHES}/fedcba9876543210.json", content)
    assert attempts.count(storage, "0123456789abcdef") == 0
    for launch in launches.living(storage):
        assert (launch.host + launch.started_at).isprintable()
        assert len(launch.host) <= 300
        assert all(math.isfinite(each.seconds) and each.title.isprintable() for each in launch.running)
        status = SweepStatus(
            trials=1, done=0, failed=0, comparisons=0, compared=0, launches=(launch,), per_hour=None, left_s=None,
            failures=(), quarantined=0,
        )  # fmt: skip
        Console(file=io.StringIO()).print(status_view(status, "x"))


def test_a_bit_that_flipped_in_a_checkpoint_is_noticed() -> None:
    checkpoint = Checkpoint(
        model={"w": torch.ones(3)},
        optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []},
        generators={"noise": torch.Generator().get_state()},
        clip_norms=None,
        history=(),
        first_step_time_s=1.0,
    )
    content = checkpoints.to_bytes(checkpoint, {"a": "b"})
    checkpoints.from_bytes(content, {"a": "b"}, torch.device("cpu"))
    for position in range(8, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1
        with pytest.raises(checkpoints.CheckpointError):
            checkpoints.from_bytes(bytes(damaged), {"a": "b"}, torch.device("cpu"))


COLUMNS: list[Any] = [
    pa.array([None] * 4),
    pa.array([0, 1, 0, 1]),
    pa.array([0, 1, 0, 2**64 - 1], pa.uint64()),
    pa.array([-1, 1, 0, 1], pa.int8()),
    pa.array([0.5, 1.0, math.nan, 2.0]),
    pa.array([True, False, None, True]),
    pa.array(["a", UGLY, "", "é"]),
    pa.array(["0", "1", "0", "1"]).dictionary_encode(),
    pa.array([b"\xff"] * 4),
    pa.array([[1.0, 2.0]] * 4),
    pa.array([[1, 2]] * 4, pa.list_(pa.int64(), 2)),
    pa.array([[1.0, math.inf]] * 4),
    pa.array([[1.0, None]] * 4),
    pa.array([[1.0], [1.0, 2.0], [], None]),
    pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], None], pa.list_(pa.float32(), 2)),
    pa.array([["a", "b"]] * 4),
    pa.array([[[1.0]]] * 4),
    pa.array([{"a": 1}] * 4),
    pa.array([Decimal("1.5")] * 4),
    pa.array([1, 2, 3, 4], pa.timestamp("us")),
    pa.array([[1e308, -1e308]] * 4),
    pa.array([[0.0, 0.0]] * 4),
]


@fuzz(60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["example_id", "is_member", "label", "logits", "probabilities"]), st.sampled_from(COLUMNS)
        ),
        max_size=6,
    ),
    st.tuples(st.booleans(), st.integers(0, 10**9)),
)
def test_any_table_as_a_models_outputs(sandbox: Path, columns: list[tuple[str, Any]], flip: tuple[bool, int]) -> None:
    given_names = {name for name, _ in columns}
    right = {"example_id": COLUMNS[1], "is_member": COLUMNS[1], "label": COLUMNS[1], "logits": COLUMNS[9]}
    columns = columns + [(name, column) for name, column in right.items() if name not in given_names]
    pq.write_table(
        pa.Table.from_arrays([column for _, column in columns], [name for name, _ in columns]), "any.parquet"
    )
    if flip[0]:
        content = bytearray((sandbox / "any.parquet").read_bytes())
        content[flip[1] % len(content)] ^= 1 << flip[1] % 8
        (sandbox / "any.parquet").write_bytes(content)
    result = sweeper("audit", "any.parquet", "--attack", "loss", "--json")
    if result.exit_code == 2:
        assert "any.parquet" in result.stderr or "Attack 'loss'" in result.stderr


# Tables that were passed on, and the report


@st.composite
def table_changes(draw: Any) -> list[tuple[str, str, Any, bool]]:
    """Table, column, what to put there, and whether into every row."""
    changes = []
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(SCHEMAS)))
        field = SCHEMAS[name].field(draw(st.sampled_from(SCHEMAS[name].names)))
        values: list[Any] = [None]
        if pa.types.is_string(field.type):
            values = [UGLY, "", "x" * 3000, "finished", "failed", "baseline", "best_of", None]
        elif pa.types.is_floating(field.type):
            values = [math.nan, math.inf, -math.inf, 1e308, -1.0, 0.0, None]
        elif pa.types.is_integer(field.type):
            values = [0, -1, 2**31 - 1, None]
        elif pa.types.is_boolean(field.type):
            values = [True, False, None]
        elif pa.types.is_list(field.type):
            values = [[], None]
        changes.append((name, field.name, draw(st.sampled_from(values)), draw(st.booleans())))
    return changes


@fuzz(2)
@given(table_changes())
@example([("trials", name, UGLY, False) for name in ("dataset", "defense", "sweep", "device", "machine")])
@example(
    [("trials", "status", "failed", False), ("trials", "error", UGLY, False)]
    + [("attacks", each, UGLY, True) for each in ("attack", "error", "status")]
)
@example([("reconstructions", "attack_id", None, True)])
def test_any_values_in_tables_that_were_passed_on(
    tmp_path_factory: Any, changes: list[tuple[str, str, Any, bool]]
) -> None:
    rows = make_rows(defenses=("baseline", "dp_eps2"), seeds=(0, 1), n=8)
    for name, column, value, everywhere in changes:
        for row in rows[name] if everywhere else rows[name][:1]:
            row[column] = value
    folder = tmp_path_factory.mktemp("passed-on")
    write_tables(folder, rows)
    result = sweeper("report", folder)
    assert result.exit_code in (0, 2)
    if result.exit_code == 0:
        page = (folder / "report" / "report.html").read_text(encoding="utf-8")
        assert "<script" not in page
        assert "\x1b" not in page
    shutil.rmtree(folder)


# Code


def test_nothing_that_a_store_holds_is_unpickled() -> None:
    root = Path(__file__).parents[1]
    calls = {}
    for path in [*(root / "sweeper").rglob("*.py"), *(root / "analysis").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"marshal", "shelve", "dill", "joblib", "cloudpickle"}, path
                assert "pickle" not in names or path.name == "worker.py", path
            if isinstance(node, ast.Call):
                calls.setdefault(ast.unparse(node.func), []).append((path.name, node))
    assert {name for name, _ in calls["pickle.loads"]} == {"worker.py"}
    forbidden = (
        "pickle.load",
        "pickle.Unpickler",
        "torch.load",
        "pd.read_pickle",
        "yaml.load_all",
    )
    assert not set(forbidden) & set(calls)
    assert not {"eval", "exec", "compile", "__import__", "os.system"} & set(calls)
    for name, node in calls["YAML"]:
        assert ast.literal_eval(node.keywords[0].value) == "safe", name
    assert issubclass(yaml_file._Constructor, SafeConstructor)
    for name, node in calls.get("np.load", []):
        assert not any(each.arg == "allow_pickle" for each in node.keywords), name

"""Terminal output at every width: names are cut first, numbers and seeds never."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from sweeper.cli.display import LEAST_TITLE, Column, Rows, SweepDisplay, Title, cut_title, status_view
from sweeper.results.launches import LaunchInfo, Running
from sweeper.results.status import SweepStatus
from sweeper.results.store import Failure

TITLES = [
    f"{defense} · {dataset} · {split} · seed {seed}{rest}"
    for defense in ("dp_eps2", "noise_then_clip_0.1_1.4")
    for dataset, split in (("digits", "quarters"), ("fashion_mnist", "official"))
    for seed in (0, 1, 12345)
    for rest in ("", " · lin_cnn · adadelta")
]
WIDTHS = (40, 60, 80, 120, 200)


def shown(what: Any, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(cell_len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("title", TITLES)
def test_a_title_is_cut_to_any_width_that_has_room_for_its_seed(title: str) -> None:
    seed = re.search(r"seed \d+", title)[0]  # type: ignore[index]
    for width in range(LEAST_TITLE, len(title) + 2):
        cut = cut_title(title, width)
        assert len(cut) <= width
        assert seed in cut.split(" · ")
        assert (cut == title) == (len(title) <= width)


def test_what_is_cut_of_a_name_is_its_middle() -> None:
    assert cut_title("noise_then_clip_0.1_1.4 · digits · seed 0", 33) == "noise_t…0.1_1.4 · digits · seed 0"
    assert cut_title("noise_then_clip_0.1_1.4 · digits · seed 0", 16) == "noi…1.4 · seed 0"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_live_table_tells_seeds_apart_and_cuts_no_time(width: int) -> None:
    trials = {f"{number:016x}": SimpleNamespace(title=title) for number, title in enumerate(TITLES)}
    units = [SimpleNamespace(target_id=key, title=each.title, kind="a", memory_kind=1) for key, each in trials.items()]
    display = SweepDisplay(units, 3)  # type: ignore[arg-type]
    times = {}
    for number, target_id in enumerate(trials):
        kind = ("finished", "failed", "progress")[min(number, 2)]
        for each in ("started", kind):
            what = "ValueError: of a long story" if kind == "failed" else "epoch 119 of 120"
            display.update(SimpleNamespace(kind=each, target_id=target_id, what=what, fraction=0.99))  # type: ignore[arg-type]
        if kind == "progress":
            took = 3723 * number
            started, *rest = display._running[target_id]
            display._running[target_id] = (started - took, *rest)  # type: ignore[assignment]
            times[target_id] = f"{took // 3600} h {took % 3600 // 60:02d} min"
    lines = shown(display, width)
    rows = [line for line in lines if "seed" in line]
    assert len(rows) == len(TITLES)
    for row, title in zip(rows, TITLES, strict=True):
        assert re.search(r"seed \d+", title)[0] + " " in row  # type: ignore[index]
    for row, time in zip(rows[2:], times.values(), strict=True):
        assert row.endswith(time)
        assert "99%" in row
    assert f"2/{len(TITLES)} trials" in lines[0]


PLAN = [
    Column(heading="id"),
    Column(heading="trial", least=LEAST_TITLE),
    Column(heading="members", justify="right"),
    Column(heading="guarantee"),
    Column(heading="attacks", least=18),
]


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_hold_every_number_at_every_width(width: int) -> None:
    rows: list[list[str | Title]] = [
        [
            f"{number:016x}",
            Title(title),
            str(60000 + number),
            f"ε 2.{number:03d}, δ 1e-05",
            "threshold, shadow, layer_decoder",
        ]
        for number, title in enumerate(TITLES)
    ]
    text = "\n".join(shown(Rows(PLAN, rows), width))
    for number in range(len(TITLES)):
        for value in (f"{number:016x}", f"{60000 + number}", f"ε 2.{number:03d}, δ 1e-05"):
            assert text.count(value) == 1
    assert all(text.count(name) == len(TITLES) for name in ("threshold", "shadow", "layer_decoder"))
    assert text.count("\n") > len(TITLES) if width < 80 else True


@pytest.mark.parametrize("width", WIDTHS)
def test_the_status_cuts_no_id_and_no_number(width: int) -> None:
    running = [
        Running(
            target_id=f"{number:016x}", title=title, stage="epoch 119 of 120", fraction=0.99, seconds=3723.0 * number
        )
        for number, title in enumerate(TITLES)
    ]
    launch = LaunchInfo(launch_id="x", process="y", host="node", pid=12345, started_at="12:00", running=tuple(running))
    failures = [
        Failure(target_id=f"f{number:015x}", attack_id=None, attack="layer_decoder", cause="error", error="no 12345678")
        for number in range(3)
    ]
    counts = {"trials": 12345, "done": 678, "failed": 3, "comparisons": 56, "compared": 7, "quarantined": 0}
    status = SweepStatus(**counts, launches=(launch,), per_hour=123.4, left_s=3723.0, failures=tuple(failures))
    text = "\n".join(shown(status_view(status, "results/x"), width))
    for each in (*running, *failures):
        assert each.target_id in text
    assert text.count("99%") == len(running)
    assert text.count("12345678") == 3
    for each in running[1:]:
        assert f"{int(each.seconds) // 3600} h {int(each.seconds) % 3600 // 60:02d} min" in text

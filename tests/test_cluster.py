"""What becomes of a sweep when Ray itself gives up, without starting Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeper import cluster
from sweeper.records import Store
from sweeper.spec import expand, load_sweep


def run(tiny: Path, out: Path, fit: Any, monkeypatch: pytest.MonkeyPatch, retries: int) -> tuple[list[Any], list[Any]]:
    monkeypatch.setattr(cluster, "_fit", fit)
    trials, events = expand(load_sweep(str(tiny))), []
    Store(out).prepare()
    cluster.run_trials(
        trials,
        data_dir=out,
        out_dir=out,
        resources=cluster.Resources(cpus_per_trial=1.0, gpus_per_trial=0.0),
        retries=retries,
        on_event=events.append,
        verbose=False,
    )
    return trials, events


def test_a_run_that_ray_gives_up_is_begun_again_without_the_trial_that_brings_it_down(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def fit(function: Any, target_ids: list[str], resources: Any, retries: int, watcher: Any, verbose: bool) -> None:
        calls.append(list(target_ids))
        if len(calls) <= 2:
            watcher.running.add(target_ids[0])
            raise RuntimeError("Caught unexpected exception: 1 worker(s) were killed\nmore")

    trials, events = run(tiny, tmp_path / "out", fit, monkeypatch, retries=1)
    both = [trial.target_id for trial in trials]
    assert calls == [both, both, both[1:]]
    assert [(event.kind, event.target_id) for event in events] == [("failed", both[0])]
    status = Store(tmp_path / "out").statuses(trials)
    assert [status[target_id].word for target_id in both] == ["failed", "to do"]


def test_an_error_of_ours_is_not_taken_for_rays(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*args: Any) -> None:
        raise RuntimeError("nothing was running")

    with pytest.raises(RuntimeError, match="nothing was running"):
        run(tiny, tmp_path / "out", fit, monkeypatch, retries=1)


@pytest.mark.parametrize("address", ["nowhere", "host:port", "127.0.0.1"])
def test_an_address_that_is_none_is_explained(address: str) -> None:
    from sweeper.errors import UserError

    with pytest.raises(UserError, match="HOST:PORT"), cluster.connect(address, verbose=False):
        pass

"""The results folder: what is recorded, written whole or not at all, and gathered into one file per table.

    RESULTS/
      sweep.json                 which targets and attacks the sweep has now
      parts/TABLE/KEY.parquet    one file per target (KEY is its id) or per attack (KEY is target.attack);
                                 those of tpvd are made when tables are gathered
      weights/TARGET_ID.safetensors
      TABLE.parquet              gathered from the parts that sweep.json names

A target is done when its row in `parts/trials` is there, which is written after everything else of it; an
attack likewise in `parts/attacks`. A failure is a row too, in a file whose name says so.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from attacks.tpvd import tpvd, value_differences
from sweeper.errors import UserError
from sweeper.schema import SCHEMAS
from sweeper.spec import Sweep, Trial, expand, identity

_TARGET_TABLES = ("history", "outputs", "trials")
_ATTACK_TABLES = ("scores", "reconstructions", "attacks")
_FAILED = ".failed"
PARAMETERS = "parameters"
"""Key in the weights' metadata of the JSON list of those tensors that are parameters."""
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the store says of one trial."""

    target: str
    """`finished`, `failed` or `missing`."""
    missing_attacks: tuple[str, ...]
    """Ids of the attacks, and of their comparison, that are not recorded as finished."""
    failed_attacks: tuple[str, ...]

    @property
    def done(self) -> bool:
        return self.target == "finished" and not self.missing_attacks

    @property
    def word(self) -> str:
        """One word for a person: done, failed, partial or to do."""
        if self.done:
            return "done"
        if self.target == "failed" or self.failed_attacks:
            return "failed"
        return "partial" if self.target == "finished" else "to do"


class Store:
    """Reads and writes one results folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Create the folders and try to write.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            for table in SCHEMAS:
                (self.root / "parts" / table).mkdir(parents=True, exist_ok=True)
            (self.root / "weights").mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise UserError(
                f"The results folder {self.root} cannot be written: {error.strerror}. Name another with --out DIR."
            ) from None

    # What is there

    def recorded(self) -> tuple[set[str], set[str]]:
        """Keys of all targets and all attacks on record; a failed one's key ends in `.failed`."""
        return self._keys("trials"), self._keys("attacks")

    def _keys(self, table: str) -> set[str]:
        return {path.name.removesuffix(".parquet") for path in (self.root / "parts" / table).glob("*.parquet")}

    def statuses(self, trials: Iterable[Trial]) -> dict[str, Status]:
        """The status of each trial, by target id; one listing of the folder for all of them."""
        targets, attacks = self.recorded()
        # A row says that all the rest of its record is there; a part that was deleted since is made anew.
        whole = targets & self._keys("outputs") & self._keys("history")
        whole &= {path.stem for path in (self.root / "weights").glob("*.safetensors")}
        kept = {"membership": self._keys("scores"), "inversion": self._keys("reconstructions")}
        statuses = {}
        for trial in trials:
            keys = {each: f"{trial.target_id}.{each}" for each in recorded_attacks(trial)}
            target = "finished" if trial.target_id in whole else "missing"
            if target == "missing" and trial.target_id + _FAILED in targets:
                target = "failed"
            missing = []
            for each, key in keys.items():
                attack = trial.attack_ids.get(each)
                if key not in attacks or (attack is not None and key not in kept[attack.family]):
                    missing.append(each)
            statuses[trial.target_id] = Status(
                target=target,
                missing_attacks=tuple(missing),
                failed_attacks=tuple(each for each in missing if keys[each] + _FAILED in attacks),
            )
        return statuses

    def has_target(self, target_id: str) -> bool:
        """Whether the target is on record as finished."""
        return self._part("trials", target_id).exists()

    def has_attack(self, target_id: str, attack: str) -> bool:
        """Whether the attack is on record as finished."""
        return self._part("attacks", f"{target_id}.{attack}").exists()

    def weights_path(self, target_id: str) -> Path:
        return self.root / "weights" / f"{target_id}.safetensors"

    def read_part(self, table: str, key: str) -> pa.Table:
        """One target's or attack's rows.

        Raises:
            UserError: the file is missing or unreadable.
        """
        path = self._part(table, key)
        try:
            return pq.read_table(path, schema=SCHEMAS[table])
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{path} cannot be read: {_first_line(error)}. Delete it and launch again; what it held is then done anew."
            ) from None

    # Writing

    def write_target(
        self,
        target_id: str,
        trial: Mapping[str, Any],
        history: list[dict[str, Any]],
        outputs: Mapping[str, Any],
        weights: bytes,
    ) -> None:
        """Record a finished target. Its row in `trials` comes last: it says that all the rest is there."""
        _write_whole(self.weights_path(target_id), lambda path: path.write_bytes(weights))
        self._write("history", target_id, pa.Table.from_pylist(history, schema=SCHEMAS["history"]))
        self._write("outputs", target_id, pa.table(dict(outputs), schema=SCHEMAS["outputs"]))
        self._write("trials", target_id, pa.Table.from_pylist([dict(trial)], schema=SCHEMAS["trials"]))
        self._part("trials", target_id + _FAILED).unlink(missing_ok=True)

    def write_failed_target(self, target_id: str, trial: Mapping[str, Any]) -> None:
        """Record that a target failed; it does not count as done."""
        self._write("trials", target_id + _FAILED, pa.Table.from_pylist([dict(trial)], schema=SCHEMAS["trials"]))

    def write_attack(
        self,
        target_id: str,
        attack: str,
        attacks: list[dict[str, Any]],
        scores: Mapping[str, Any] | None,
        reconstructions: list[dict[str, Any]] | None,
    ) -> None:
        """Record a finished attack. Its rows in `attacks` come last."""
        key = f"{target_id}.{attack}"
        if scores is not None:
            self._write("scores", key, pa.table(dict(scores), schema=SCHEMAS["scores"]))
        if reconstructions is not None:
            table = pa.Table.from_pylist(reconstructions, schema=SCHEMAS["reconstructions"])
            self._write("reconstructions", key, table)
        self._write("attacks", key, pa.Table.from_pylist(attacks, schema=SCHEMAS["attacks"]))
        self._part("attacks", key + _FAILED).unlink(missing_ok=True)

    def write_failed_attack(self, target_id: str, attack: str, row: Mapping[str, Any]) -> None:
        """Record that an attack failed; it does not count as done."""
        self._write(
            "attacks", f"{target_id}.{attack}{_FAILED}", pa.Table.from_pylist([dict(row)], schema=SCHEMAS["attacks"])
        )

    def write_sweep(self, sweep: Sweep) -> None:
        """Record which targets and attacks the whole sweep has; `gather` follows it."""
        content = {
            "name": sweep.name,
            "summary": sweep.summary,
            "paper": sweep.paper,
            "expected": sweep.expected,
            "targets": {trial.target_id: recorded_attacks(trial) for trial in expand(sweep)},
        }
        text = json.dumps(content, indent=1)
        _write_whole(self.root / "sweep.json", lambda path: path.write_text(text, encoding="utf-8"))

    def gather(self) -> int:
        """Write each table as one file, from the parts that the sweep has now; gives the number of targets left out.

        Rows stand in the order of the sweep. Parts are copied one by one, so memory stays flat.

        Raises:
            UserError: the folder holds no results, or a part is unreadable.
        """
        targets, attacks = self.recorded()
        planned = self._planned(targets, attacks)
        self._compare_with_twins([target_id for target_id in planned if target_id in targets])
        for table in (*_TARGET_TABLES, "tpvd", *_ATTACK_TABLES):
            keys = []
            for target_id, attack_ids in planned.items():
                found = [target_id] if table not in _ATTACK_TABLES else [f"{target_id}.{each}" for each in attack_ids]
                for key in found:
                    keys += [each for each in (key, key + _FAILED) if self._part(table, each).exists()][:1]
            self._gather_table(table, keys)
        left_out = {key.removesuffix(_FAILED) for key in targets} - set(planned)
        return len(left_out)

    def _planned(self, targets: set[str], attacks: set[str]) -> dict[str, list[str]]:
        """Target ids to attack ids, from sweep.json; without one, everything on record."""
        path = self.root / "sweep.json"
        if not targets and not path.exists():
            raise UserError(f"{self.root} holds no results of a sweep. Name the folder that `sweeper launch` wrote to.")
        try:
            planned: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))["targets"]
            if not all(_ID.fullmatch(each) for target, ids in planned.items() for each in (target, *ids)):
                raise ValueError("it names something that is no id")
            return planned
        except FileNotFoundError:
            everything: dict[str, list[str]] = {key.removesuffix(_FAILED): [] for key in sorted(targets)}
            for key in sorted(attacks):
                target, _, attack = key.removesuffix(_FAILED).partition(".")
                everything.setdefault(target, []).append(attack)
            return everything
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as error:
            raise UserError(
                f"{path} cannot be read: {_first_line(error)}. Launch the sweep again to write it anew; nothing is lost."
            ) from None

    def _compare_with_twins(self, target_ids: Iterable[str]) -> None:
        """Record the TPVD of each target whose twin is on record too, unless that was done with the same weights.

        Only here, where all are looked at: of a target and its twin either may be finished first.
        """
        for target_id in target_ids:
            twin_id = self.read_part("trials", target_id).column("twin_id")[0].as_py()
            if twin_id is None or not _ID.fullmatch(twin_id) or not self.has_target(twin_id):
                continue
            paths = [self.weights_path(each) for each in (target_id, twin_id)]
            part = self._part("tpvd", target_id)
            if not all(path.exists() for path in paths):
                continue
            if part.exists() and part.stat().st_mtime >= max(path.stat().st_mtime for path in paths):
                continue
            try:
                differences = value_differences(*(_read_parameters(path) for path in paths))
            except ValueError as error:
                raise UserError(
                    f"{paths[0]} and {paths[1]}, its twin's weights, are not of one model: {error}. They were made by different "
                    "versions of the code; delete them and launch again."
                ) from None
            tensors = [{"parameter": name, "value_difference": value} for name, value in differences.items()]
            row = {"target_id": target_id, "twin_id": twin_id, "tpvd": tpvd(differences), "tensors": tensors}
            self._write("tpvd", target_id, pa.Table.from_pylist([row], schema=SCHEMAS["tpvd"]))

    def _gather_table(self, table: str, keys: list[str]) -> None:
        def write(path: Path) -> None:
            with pq.ParquetWriter(path, SCHEMAS[table], compression="zstd") as writer:
                for key in keys:
                    writer.write_table(self.read_part(table, key))

        _write_whole(self.root / f"{table}.parquet", write)

    def _part(self, table: str, key: str) -> Path:
        return self.root / "parts" / table / f"{key}.parquet"

    def _write(self, table: str, key: str, rows: pa.Table) -> None:
        _write_whole(self._part(table, key), lambda path: pq.write_table(rows, path, compression="zstd"))


BEST_OF = "best_of"


def best_of_id(candidate_ids: Iterable[str]) -> str:
    """The id of the comparison of these membership attacks."""
    return identity({"name": BEST_OF, "candidates": sorted(candidate_ids)})


def recorded_attacks(trial: Trial) -> list[str]:
    """Ids of all records under a trial's attacks: the attacks themselves, and the comparison of the membership ones."""
    ids = list(trial.attack_ids)
    membership = [each for each, attack in trial.attack_ids.items() if attack.family == "membership"]
    return [*ids, best_of_id(membership)] if membership else ids


def _read_parameters(path: Path) -> dict[str, Any]:
    """The parameters among a file's tensors.

    Raises:
        UserError: the file is unreadable.
    """
    try:
        with safe_open(path, framework="numpy") as weights:
            return {name: weights.get_tensor(name) for name in json.loads(weights.metadata()[PARAMETERS])}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {_first_line(error)}. Delete it and launch again; the target is then trained anew."
        ) from None


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name, then rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

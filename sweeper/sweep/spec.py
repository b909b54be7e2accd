"""What a sweep is: an untrusted YAML file, checked, and expanded into trials.

Nothing here reads anything but that file.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import Any

from attacks.base import Attack
from models.architectures.base import Architecture
from models.datasets.base import Dataset
from models.defenses.base import AccountedMechanism, Defense, Mechanism
from models.defenses.none import NoDefense
from models.splits import SPLITS, SPLITS_WITH_SHADOW_DATA
from models.train import LEARNING_RATES, Training
from sweeper.errors import UserError, printable, shown, unknown_name
from sweeper.sweep import components
from sweeper.sweep.yaml_file import MOST_CHARACTERS, MOST_LEVELS, parse_yaml

_TEXT_KEYS = ("name", "summary", "paper", "cost", "expected")
_PART_KEYS = (
    "datasets",
    "splits",
    "architectures",
    "defenses",
    "training",
    "optimizers",
    "seeds",
    "attacks",
    "max_train_examples",
    "max_test_examples",
)
_ARCHITECTURE = "lomurno_cnn"
"""The architecture of a sweep that names none."""
_OPTIMIZER_FIELDS = ("learning_rate", "momentum")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
MOST_TRIALS = 1_000_000
"""Trials of one sweep; more are refused before they are listed."""
_MOST_PARTS = 1000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One target to train, and the attacks to run on it.

    `target_id` is a hash of everything that makes the target, defaults spelled out, and of nothing else:
    not the attacks, not labels, resources or paths. Two trials with one id would train the same weights.
    `parts` are the names of all parts of the sweep that have it.
    """

    sweep: str
    parts: tuple[str, ...]
    dataset_label: str
    architecture_label: str
    optimizer_label: str
    defense_label: str
    dataset: Dataset
    split: str
    architecture: Architecture
    defenses: tuple[Defense, ...]
    training: Training
    seed: int
    attacks: tuple[Attack, ...]

    @property
    def config(self) -> dict[str, Any]:
        """Everything that makes the target, as plain JSON values; not kept, for a sweep may have 100,000 trials."""
        return {
            "dataset": components.configuration("dataset", self.dataset),
            "split": self.split,
            "architecture": components.configuration("architecture", self.architecture),
            "defenses": [components.configuration("defense", defense) for defense in self.defenses],
            "training": {"revision": self.training.revision, **dataclasses.asdict(self.training)},
            "seed": self.seed,
        }

    @cached_property
    def target_id(self) -> str:
        return identity(self.config)

    @property
    def attack_ids(self) -> dict[str, Attack]:
        """The attacks by their ids."""
        return _attack_ids(self.attacks)

    @cached_property
    def twin_id(self) -> str | None:
        """The target id of the same trial without its private mechanisms, which says what these cost; None without any.

        The twin draws its batches as this trial does: Poisson samples where a mechanism brought them along. An accounted
        mechanism has batches of its own, hence no twin, unless the training asks for paired ones.
        """
        mechanisms = [defense for defense in self.defenses if isinstance(defense, Mechanism)]
        is_accounted = any(isinstance(mechanism, AccountedMechanism) for mechanism in mechanisms)
        if not mechanisms or (is_accounted and not self.training.paired_batches):
            return None
        training = self.training
        if any(mechanism.poisson_sampling for mechanism in mechanisms):
            training = dataclasses.replace(training, sampling="poisson")
        others = tuple(defense for defense in self.defenses if not isinstance(defense, Mechanism))
        return dataclasses.replace(self, defenses=others or (NoDefense(),), training=training).target_id

    @property
    def part(self) -> str:
        """The first of its parts."""
        return self.parts[0]

    @property
    def labels(self) -> tuple[str, str, str, str]:
        """The sweep's names for defense, dataset, architecture and optimizer."""
        return self.defense_label, self.dataset_label, self.architecture_label, self.optimizer_label

    @property
    def title(self) -> str:
        """A short name for people: defense, dataset, split and seed; architecture and optimizer where unusual."""
        title = f"{self.defense_label} · {self.dataset_label} · {self.split} · seed {self.seed}"
        if (self.architecture_label, self.optimizer_label) != (_ARCHITECTURE, "sgd"):
            title += f" · {self.architecture_label} · {self.optimizer_label}"
        return title


def canonical_json(config: object) -> str:
    """One spelling for equal configurations: sorted keys, no blanks."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def identity(config: object) -> str:
    """16 hexadecimal digits of the SHA-256 of a configuration's canonical JSON."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]


def attack_id(attack: Attack) -> str:
    """The id of an attack's configuration."""
    return identity(components.configuration("attack", attack))


@cache
def _attack_ids(attacks: tuple[Attack, ...]) -> dict[str, Attack]:
    return {attack_id(attack): attack for attack in attacks}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One grid of a sweep; every combination of its axes is a trial. Keys are the labels of tables and figures.

    `trainings` is the axis of optimizers: one training for each of their labels.
    """

    name: str
    datasets: dict[str, Dataset]
    splits: tuple[str, ...]
    architectures: dict[str, Architecture]
    defenses: dict[str, tuple[Defense, ...]]
    trainings: dict[str, Training]
    seeds: tuple[int, ...]
    attacks: tuple[Attack, ...]

    @property
    def size(self) -> int:
        """How many trials it has."""
        axes = (self.datasets, self.splits, self.architectures, self.trainings, self.defenses, self.seeds)
        return math.prod(map(len, axes))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep."""

    name: str
    summary: str
    paper: str
    cost: str
    expected: str
    parts: tuple[Part, ...]


def packaged_sweeps() -> dict[str, Path]:
    """The sweeps that come with the package, by name."""
    folder = Path(str(resources.files("sweeper.sweep") / "sweeps"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_sweep(reference: str, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep called `reference` (a packaged name or a YAML path), with `key=value` overrides applied.

    An override's dotted key is a key of every part, or of one as `parts.NAME.key`; a name or label finds its
    element in a list: `training.epochs=3`, `defenses.dp_eps2.epsilon=1`, `attacks.layer_decoder.epochs=2`,
    `optimizers.adam.learning_rate=0.01`, `defenses.dp.grid.max_grad_norm=[0.5, 1]`.

    Raises:
        UserError: anything in the file or the overrides is wrong.
    """
    packaged = packaged_sweeps()
    path = packaged.get(reference, Path(reference))
    if reference not in packaged and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{unknown_name('sweep', reference, packaged)} Or give the path of a .yaml file.")
    raw = _read_yaml(path)
    for override in overrides:
        _apply_override(raw, override)
    return _check_sweep(raw, path)


def expand(sweep: Sweep, only: Sequence[str] = ()) -> list[Trial]:
    """Every trial of the sweep, or those that `select` keeps; the first seed's first, trials with one target joined.

    Raises:
        UserError: two labels stand for one configuration or the other way round, or a pattern matches no trial.
    """
    by_id: dict[str, Trial] = {}
    rounds = zip_longest(*(_rounds(sweep.name, part) for part in sweep.parts), fillvalue=())
    for one_round in rounds:
        for trial in chain.from_iterable(one_round):
            known = by_id.get(trial.target_id)
            if known is not None:
                if known.labels != trial.labels:
                    raise UserError(
                        f"{' · '.join(known.labels)} and {' · '.join(trial.labels)} are the same configuration under "
                        "two labels; keep one."
                    )
                trial = dataclasses.replace(
                    known,
                    parts=tuple(dict.fromkeys(known.parts + trial.parts)),
                    attacks=tuple(dict.fromkeys(known.attacks + trial.attacks)),
                )
            by_id[trial.target_id] = trial
    trials = list(by_id.values())
    seen: dict[tuple[object, ...], str] = {}
    for trial in trials:
        where = (*trial.labels, trial.split, trial.seed)
        if where in seen:
            raise UserError(
                f"Parts '{seen[where]}' and '{trial.part}' give '{trial.title}' two configurations under one set of labels; "
                "tables could not tell them apart. Label one of them differently."
            )
        seen[where] = trial.part
    return select(trials, only)


def select(trials: Sequence[Trial], only: Sequence[str]) -> list[Trial]:
    """Those of a sweep's trials that match one of the patterns `[PART:][DEFENSE[/DATASET[/SPLIT]]]`, with `*` and `?`.

    The name of a part alone, where no defense is called so, keeps that part. A trial that several parts have is in each
    of them. No pattern keeps all.

    Raises:
        UserError: a pattern matches no trial.
    """
    if not only:
        return list(trials)
    chosen = {trial.target_id for pattern in only for trial in _matching(pattern, trials)}
    return [trial for trial in trials if trial.target_id in chosen]


def _matching(pattern: str, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that one pattern of `--only` picks."""
    part, colon, labels = pattern.rpartition(":")
    part_names = {name for trial in trials for name in trial.parts}
    if colon:
        trials = _in_part(part, trials)
        if not trials:
            raise UserError(f"--only {pattern}: {unknown_name('part', part, part_names)}")
        if not labels:
            return list(trials)
    globs = labels.split("/")
    matching = [
        trial
        for trial in trials
        if len(globs) <= 3
        and all(
            fnmatch.fnmatchcase(label, glob)
            for label, glob in zip((trial.defense_label, trial.dataset_label, trial.split), globs, strict=False)
        )
    ]
    alone = not colon and len(globs) == 1
    if not matching and alone:
        matching = _in_part(labels, trials)
    if not matching:
        if len(globs) == 1:
            known = {trial.defense_label for trial in trials} | (part_names if alone else set())
        else:
            known = {f"{trial.defense_label}/{trial.dataset_label}" for trial in trials}
        kind = "defense or part" if alone else "defense" if len(globs) == 1 else "DEFENSE/DATASET"
        where = f" in part '{part}'" if colon else ""
        raise UserError(f"--only {pattern}{where}: {unknown_name(kind, labels, known)}")
    return matching


def _in_part(glob: str, trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if any(fnmatch.fnmatchcase(name, glob) for name in trial.parts)]


def _rounds(sweep_name: str, part: Part) -> Iterator[list[Trial]]:
    """The part's trials, one list per seed: a sweep that is cut short then has whole comparisons."""
    for seed in part.seeds:
        yield list(_grid(sweep_name, part, seed))


def _grid(sweep_name: str, part: Part, seed: int) -> Iterator[Trial]:
    for dataset_label, dataset in part.datasets.items():
        for split in part.splits:
            for architecture_label, architecture in part.architectures.items():
                for optimizer_label, training in part.trainings.items():
                    for defense_label, defenses in part.defenses.items():
                        yield Trial(
                            sweep=sweep_name,
                            parts=(part.name,),
                            dataset_label=dataset_label,
                            architecture_label=architecture_label,
                            optimizer_label=optimizer_label,
                            defense_label=defense_label,
                            dataset=dataset,
                            split=split,
                            architecture=architecture,
                            defenses=defenses,
                            training=training,
                            seed=seed,
                            attacks=part.attacks,
                        )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text, or its name is no path"
        raise UserError(
            f"The sweep file {path} cannot be read: {reason}. Packaged sweeps: {', '.join(packaged_sweeps())}."
        ) from None
    raw = parse_yaml(text, f"The sweep file {path}")
    if not isinstance(raw, dict):
        raise UserError(f"The sweep file {path} must hold a mapping with keys such as datasets and defenses.")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    segments = key.strip().split(".")
    if not equals or not all(segments):
        raise UserError(f"--set '{override}' must be key=value, such as training.epochs=3.")
    if len(segments) > MOST_LEVELS:
        raise UserError(f"--set '{override}': a key has at most {MOST_LEVELS} levels.")
    value = parse_yaml(text, f"The value of --set {key}")
    if segments[0] in _TEXT_KEYS or segments[0] == "parts":
        _assign(raw, segments, value, override)
        return
    if segments[0] not in _PART_KEYS:
        raise UserError(f"--set {override}: {unknown_name('key', segments[0], (*_PART_KEYS, *_TEXT_KEYS, 'parts'))}")
    parts = raw.get("parts")
    holders = [part for part in parts.values() if isinstance(part, dict)] if isinstance(parts, dict) else []
    holders = [part for part in holders if segments[0] in part]
    if segments[0] in raw or not holders:
        holders.append(raw)
    assigned, problem = 0, None
    for holder in holders:
        try:
            _assign(holder, segments, value, override)
            assigned += 1
        except UserError as error:  # a part that lacks the named element is left as it is
            problem = error
    if not assigned and problem is not None:
        raise problem


def _assign(container: Any, segments: list[str], value: Any, override: str, nested: bool = False) -> None:
    """Set the value at a dotted key; an element of a list is found by its name, a bare name becomes a mapping."""
    head, rest = segments[0], segments[1:]
    if isinstance(container, list):
        names = [
            item if isinstance(item, str) else item.get("name") if isinstance(item, dict) else None
            for item in container
        ]
        if head not in names:
            raise UserError(f"--set {override}: {unknown_name('element', head, [str(name) for name in names])}")
        key: Any = names.index(head)
    else:
        key = head
        if rest and nested and key not in container:
            raise UserError(f"--set {override}: {unknown_name('label', key, container)}")
        container.setdefault(key, None)
    if not rest:
        container[key] = value
        return
    child = container[key]
    if child is None:
        child = {}
    elif isinstance(child, str):
        child = {"name": child}
    elif not isinstance(child, dict | list):
        raise UserError(f"--set {override}: '{head}' is {shown(child)} and has no '{rest[0]}' inside.")
    container[key] = child
    _assign(child, rest, value, override, nested=True)


def _check_sweep(raw: dict[str, Any], path: Path) -> Sweep:
    for key in raw:
        if key not in (*_TEXT_KEYS, *_PART_KEYS, "parts"):
            raise UserError(f"{path}: {unknown_name('key', key, (*_TEXT_KEYS, *_PART_KEYS, 'parts'))}")
    texts = {key: raw.get(key, "") for key in _TEXT_KEYS}
    texts["name"] = raw.get("name", path.stem)
    for key, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{key}: got {shown(text)}; it must be text.")
    if not _NAME.fullmatch(texts["name"]):
        raise UserError(f"name: got {shown(texts['name'])}; use at most 100 letters, digits, '_', '-', '+' and '.'.")
    parts = raw.get("parts", {"main": {}})
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"parts: got {shown(parts)}; it must map the name of each part to its keys.")
    if len(parts) > _MOST_PARTS:
        raise UserError(f"parts: got {len(parts):,}; at most {_MOST_PARTS:,} are possible.")
    checked: dict[str, Part] = {}
    n_trials = 0
    for name, own in parts.items():
        _check_label(str(name), "parts")
        if str(name) in checked:
            raise UserError(f"parts: the name '{name}' is given twice, as text and as a number.")
        part = checked[str(name)] = _check_part(str(name), own, raw)
        n_trials += part.size
        _check_size(n_trials, f"parts.{name}")
    return Sweep(**{key: printable(text) for key, text in texts.items()}, parts=tuple(checked.values()))


def _check_size(n_trials: int, path: str) -> None:
    if n_trials > MOST_TRIALS:
        raise UserError(
            f"{path}: with it the sweep has {n_trials:,} trials; at most {MOST_TRIALS:,} are possible. Take shorter lists, or "
            "write several sweeps."
        )


def _check_part(name: str, own: object, raw: Mapping[str, Any]) -> Part:
    path = f"parts.{name}"
    if own is None:
        own = {}
    if not isinstance(own, dict):
        raise UserError(f"{path}: got {shown(own)}; it must be a mapping.")
    for key in own:
        if key not in _PART_KEYS:
            raise UserError(f"{path}: {unknown_name('key', key, _PART_KEYS)}")
    merged = {key: own.get(key, raw.get(key)) for key in _PART_KEYS}
    if isinstance(raw.get("training"), dict) and isinstance(own.get("training"), dict):
        merged["training"] = {**raw["training"], **own["training"]}
    for key in ("datasets", "defenses", "attacks"):
        if merged[key] is None:
            raise UserError(f"{path}.{key}: this key is required, here or at the top of the file.")
    limits = {key: merged[key] for key in ("max_train_examples", "max_test_examples") if merged[key] is not None}
    splits = _list(merged["splits"], ["quarters"], f"{path}.splits")
    if len(splits) != len({str(split) for split in splits}):
        raise UserError(f"{path}.splits: got {shown(splits)}; a split is given twice.")
    for split in splits:
        if not isinstance(split, str) or split not in SPLITS:
            raise UserError(f"{path}.splits: {unknown_name('split', split, SPLITS)}")
    attacks = tuple(_build_all("attack", merged["attacks"], f"{path}.attacks").values())
    for split in splits:
        for attack in attacks:
            if attack.needs_shadow_data and split not in SPLITS_WITH_SHADOW_DATA:
                raise UserError(
                    f"{path}: attack '{components.name_of('attack', attack)}' needs shadow data, which split '{split}' does "
                    f"not keep. Use split {', '.join(sorted(SPLITS_WITH_SHADOW_DATA))}, or leave the attack out."
                )
    return Part(
        name=name,
        datasets=_build_all("dataset", merged["datasets"], f"{path}.datasets", limits),
        splits=tuple(splits),
        architectures=_build_all(
            "architecture", _default(merged["architectures"], [_ARCHITECTURE]), f"{path}.architectures"
        ),
        defenses=_build_defenses(merged["defenses"], f"{path}.defenses"),
        trainings=_build_trainings(_default(merged["training"], {}), merged["optimizers"], path),
        seeds=_seeds(merged["seeds"], f"{path}.seeds"),
        attacks=attacks,
    )


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _list(value: Any, default: list[Any], path: str) -> list[Any]:
    if value is None:
        return default
    if not isinstance(value, list) or not value:
        raise UserError(f"{path}: got {shown(value)}; it must be a list with at least one element.")
    return value


def _seeds(value: Any, path: str) -> tuple[int, ...]:
    seeds = _list(value, [0], path)
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise UserError(f"{path}: got {shown(seed)}; a seed is a whole number from 0 to {2**32 - 1}.")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"{path}: got {shown(seeds)}; a seed is given twice.")
    return tuple(seeds)


def _labelled(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Label and reference of each element; a list's elements are labelled by what they name."""
    if isinstance(value, dict) and value:
        pairs = [(str(label), reference) for label, reference in value.items()]
    else:
        pairs = [(_default_label(item), item) for item in _list(value, [], path)]
    seen = set()
    for label, reference in pairs:
        _check_label(label, path)
        if label in seen:
            raise UserError(
                f"{path}: label '{label}' is used twice. Write a mapping of a label of your own to each element."
            )
        seen.add(label)
        yield label, reference


def _check_label(label: str, path: str) -> None:
    if not _NAME.fullmatch(label):
        raise UserError(
            f"{path}: label {shown(label)} may hold letters, digits, '_', '-', '+' and '.' only, at most 100, the first a "
            "letter or digit."
        )


def _default_label(item: Any) -> str:
    if isinstance(item, list):
        return "+".join(_default_label(element) for element in item)
    return str(item.get("name")) if isinstance(item, dict) else str(item)


def _build_all(kind: str, value: Any, path: str, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    if value == [] and kind == "attack":
        return {}
    built = {}
    for label, reference in _labelled(value, path):
        if defaults and isinstance(reference, str):
            reference = {"name": reference}
        if defaults and isinstance(reference, dict):
            reference = {**defaults, **reference}
        built[label] = components.build(kind, reference, f"{path}.{label}")
    return built


def _build_defenses(value: Any, path: str) -> dict[str, tuple[Defense, ...]]:
    built: dict[str, tuple[Defense, ...]] = {}
    for own_label, own_reference in _labelled(value, path):
        for label, reference in _grid_points(own_label, own_reference, f"{path}.{own_label}"):
            references = reference if isinstance(reference, list) else [reference]
            if not references:
                raise UserError(f"{path}.{label}: an empty list; write none for no defense.")
            if label in built:
                raise UserError(f"{path}: label '{label}' is used twice, by the grid of '{own_label}' or with it.")
            built[label] = tuple(components.build("defense", item, f"{path}.{label}") for item in references)
    return built


def _grid_points(label: str, reference: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Label and reference of each point of a defense's `grid`, its first field slowest; without one, what was given."""
    if isinstance(reference, list) and any(isinstance(item, dict) and "grid" in item for item in reference):
        raise UserError(f"{path}: a grid inside a list of defenses. Only a defense by itself takes a grid.")
    if not isinstance(reference, dict) or "grid" not in reference:
        yield label, reference
        return
    grid = reference["grid"]
    fixed = {field: value for field, value in reference.items() if field != "grid"}
    if not isinstance(grid, dict) or not grid:
        raise UserError(f"{path}.grid: got {shown(grid)}; it must map fields to lists of values.")
    for field, values in grid.items():
        if field in fixed:
            raise UserError(f"{path}: '{field}' is given twice, by itself and in the grid; keep one.")
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}.grid.{field}: got {shown(values)}; it must be a list with at least one element.")
    _check_size(math.prod(map(len, grid.values())), f"{path}.grid")
    for values in product(*grid.values()):
        point = "_".join([label, *(f"{value:g}" if isinstance(value, float) else str(value) for value in values)])
        _check_label(point, f"{path}.grid")
        yield point, {**fixed, **dict(zip(grid, values, strict=True))}


def _build_trainings(training: Any, optimizers: Any, path: str) -> dict[str, Training]:
    """One training for each optimizer of the axis; without the axis the training itself, under its optimizer's name."""
    whole = components.validate(Training, training, f"{path}.training")
    if optimizers is None:
        return {whole.optimizer: whole}
    for key in ("optimizer", *_OPTIMIZER_FIELDS):
        if training.get(key) is not None:
            value = training[key]
            example = f"[{value}]" if key == "optimizer" else f"{{sgd: {{name: sgd, {key}: {value}}}}}"
            raise UserError(
                f"{path}.training.{key}: got {shown(value)}, but the sweep has `optimizers`, and each has its own. Leave it "
                f"out here and put it there: optimizers: {example}."
            )
    built = {}
    for label, reference in _labelled(optimizers, f"{path}.optimizers"):
        where = f"{path}.optimizers.{label}"
        values = {"name": reference} if isinstance(reference, str) else reference
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            raise UserError(
                f"{where}: {shown(reference)} does not name an optimizer. Write a name, or a mapping with `name` and "
                f"{' and '.join(_OPTIMIZER_FIELDS)}. Available: {', '.join(sorted(LEARNING_RATES))}."
            )
        name = values["name"]
        if name not in LEARNING_RATES:
            raise UserError(f"{where}: {unknown_name('optimizer', name, LEARNING_RATES)}")
        own = {key: value for key, value in values.items() if key != "name"}
        for key in own:
            if key not in _OPTIMIZER_FIELDS:
                raise UserError(f"{where}: {unknown_name('field', key, _OPTIMIZER_FIELDS)}")
        built[label] = components.validate(Training, {**training, **own, "optimizer": name}, f"{where} ({name})")
    return built

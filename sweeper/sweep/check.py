"""Checks a sweep file's content, and builds the sweep from it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from attacks.comparisons.base import Comparison
from models.canaries import Canaries
from models.defenses.base import Defense
from models.queries import QUERY_COUNTS
from models.splits import SPLITS, SPLITS_WITH_SHADOW_DATA, SplitPlan
from models.train import LEARNING_RATES, Training
from sweeper.errors import UserError, printable, shown, unknown_name
from sweeper.search.spec import SearchPlan, check_search
from sweeper.sweep import components
from sweeper.sweep.expand import Part, Sweep
from sweeper.sweep.trial import DEFAULT_ARCHITECTURE

TEXT_KEYS = ("name", "summary", "paper", "cost", "expected")


PART_KEYS = (
    "datasets",
    "splits",
    "architectures",
    "defenses",
    "training",
    "optimizers",
    "seeds",
    "attacks",
    "comparisons",
    "queries",
    "search",
    "max_train_examples",
    "max_test_examples",
)


_COMPARISONS = ["tpvd", "lira", "ratio", "label_only", "strongest"]
"""The comparisons of a sweep that specifies none. Each compares the targets that it can."""
_OPTIMIZER_FIELDS = ("learning_rate", "momentum", "nesterov")


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


MOST_TRIALS = 1_000_000
"""Most trials of one sweep; more are refused before they are expanded."""


_MOST_PARTS = 1000


def check_sweep(raw: dict[str, Any], path: Path) -> Sweep:
    for key in raw:
        if key not in (*TEXT_KEYS, *PART_KEYS, "parts"):
            raise UserError(f"{path}: {unknown_name('key', key, (*TEXT_KEYS, *PART_KEYS, 'parts'))}")
    texts = {key: raw.get(key, "") for key in TEXT_KEYS}
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
    _check_budgets(checked, raw)
    return Sweep(**{key: printable(text) for key, text in texts.items()}, parts=tuple(checked.values()))


def _check_budgets(parts: Mapping[str, Part], raw: Mapping[str, Any]) -> None:
    """Refuse searches that favor the arms of one part, and a space for an arm that no part has."""
    plans = {name: part.search for name, part in parts.items() if part.search is not None}
    for name, plan in plans.items():
        first = next(iter(plans))
        if (plan.settings, plan.leak) != (plans[first].settings, plans[first].leak):
            raise UserError(
                f"parts.{name}.search: its settings are not those of part '{first}'. An arm that is searched for longer or by other "
                "results looks better for it. Give all parts the same settings and objective; only `space` may differ."
            )
    space = raw["search"].get("space") if isinstance(raw.get("search"), dict) else None
    if plans and isinstance(space, dict) and isinstance(space.get("defenses"), dict):
        labels = {label for part in parts.values() for label in part.defenses}
        for label in space["defenses"]:
            if str(label) not in labels:
                raise UserError(f"search.space.defenses: {unknown_name('label', label, labels)}")


def _search_of(
    own: object, top: object, labels: Mapping[str, object], seeds: Sequence[int], path: str
) -> SearchPlan | None:
    """The search of a part from its own keys and those at the top of the file, which it extends."""
    if own is None and top is None:
        return None
    merged: Any = _default(own, top)
    if isinstance(top, dict) and isinstance(own, dict | None):
        merged = {**top, **(own or {})}
        shared, space = top.get("space"), (own or {}).get("space", {})
        if isinstance(shared, dict) and isinstance(space, dict):
            merged["space"] = {**shared, **space}
            for key, each in shared.items():
                if isinstance(each, dict) and isinstance(space.get(key, {}), dict):
                    kept = {name: one for name, one in each.items() if key != "defenses" or str(name) in labels}
                    merged["space"][key] = {**kept, **space.get(key, {})}
    plan = check_search(merged, labels, path)
    if plan.settings.seed in seeds:
        raise UserError(
            f"{path}.seed: got {plan.settings.seed}, which is among the seeds of the part: a target that chose its own settings "
            "would be evaluated. Take another."
        )
    if plan.n_runs == 0:
        raise UserError(
            f"{path}: the Poisson law drew no run at all, so the search would choose nothing. Plan with a larger mean, or another law."
        )
    return plan


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
        if key not in PART_KEYS:
            raise UserError(f"{path}: {unknown_name('key', key, PART_KEYS)}")
    merged = {key: own.get(key, raw.get(key)) for key in PART_KEYS}
    if isinstance(raw.get("training"), dict) and isinstance(own.get("training"), dict):
        merged["training"] = {**raw["training"], **own["training"]}
    for key in ("datasets", "defenses", "attacks"):
        if merged[key] is None:
            raise UserError(f"{path}.{key}: this key is required, here or at the top of the file.")
    limits = {key: merged[key] for key in ("max_train_examples", "max_test_examples") if merged[key] is not None}
    split_plans = _build_splits(_default(merged["splits"], ["quarters"]), f"{path}.splits")
    splits = [plan.name for plan in split_plans.values()]
    attacks = tuple(_build_all("attack", merged["attacks"], f"{path}.attacks").values())
    for split in splits:
        for attack in attacks:
            if attack.needs_shadow_data and split not in SPLITS_WITH_SHADOW_DATA:
                raise UserError(
                    f"{path}: attack '{components.name_of('attack', attack)}' needs shadow data, which split '{split}' does "
                    f"not keep. Use split {', '.join(sorted(SPLITS_WITH_SHADOW_DATA))}, or leave the attack out."
                )
    comparisons = _build_all("comparison", _default(merged["comparisons"], _COMPARISONS), f"{path}.comparisons")
    seeds = _seeds(merged["seeds"], f"{path}.seeds")
    if merged["comparisons"] is not None:
        _check_comparisons(comparisons.values(), splits, len(seeds), path)
    # Without being asked, answers are kept only where there are seeds enough to use them.
    is_used = any(each.needs_answers and len(seeds) >= each.least_seeds() for each in comparisons.values())
    queries = _default(merged["queries"], int(is_used))
    if merged["queries"] is not None and (isinstance(queries, bool) or queries not in QUERY_COUNTS):
        raise UserError(f"{path}.queries: got {shown(queries)}; it must be {', '.join(map(str, QUERY_COUNTS))}.")
    defenses = _build_defenses(merged["defenses"], f"{path}.defenses")
    search = None
    if "search" not in own or own["search"] is not None:  # a part may say that it has none
        search = _search_of(own.get("search"), raw.get("search"), defenses, seeds, f"{path}.search")
    if search is not None:
        split_plans = _with_validation(split_plans, search.settings.validation, path)
    return Part(
        name=name,
        datasets=_build_all("dataset", merged["datasets"], f"{path}.datasets", limits),
        splits=split_plans,
        architectures=_build_all(
            "architecture", _default(merged["architectures"], [DEFAULT_ARCHITECTURE]), f"{path}.architectures"
        ),
        defenses=defenses,
        trainings=_build_trainings(_default(merged["training"], {}), merged["optimizers"], path),
        seeds=seeds,
        attacks=attacks,
        comparisons=tuple(comparisons.values()),
        queries=queries,
        search=search,
    )


def _with_validation(plans: Mapping[str, SplitPlan], count: int, path: str) -> dict[str, SplitPlan]:
    """The splits with the search's validation examples."""
    for label, plan in plans.items():
        if plan.validation not in (0, count):
            raise UserError(
                f"{path}.splits.{label}: validation is {plan.validation}, and the search's is {count}. Remove it here."
            )
    return {label: dataclasses.replace(plan, validation=count) for label, plan in plans.items()}


def _check_comparisons(comparisons: Iterable[Comparison], splits: Sequence[str], n_seeds: int, path: str) -> None:
    """Refuse comparisons that were asked for but have no group in this part."""
    for comparison in comparisons:
        name = components.name_of("comparison", comparison)
        for split in splits:
            if refusal := comparison.refusal(split):
                raise UserError(f"{path}: comparison '{name}' {refusal}, or leave it out.")
        if n_seeds < comparison.least_seeds():
            raise UserError(
                f"{path}: comparison '{name}' needs at least {comparison.least_seeds()} seeds, and the part has {n_seeds}. Give it "
                "more seeds, or leave the comparison out."
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
    """Label and reference of each element; in a list, the label is the element's name."""
    if isinstance(value, dict) and value:
        pairs = [(str(label), reference) for label, reference in value.items()]
    else:
        pairs = [(_default_label(item), item) for item in _list(value, [], path)]
    seen = set()
    for label, reference in pairs:
        _check_label(label, path)
        if label in seen:
            raise UserError(
                f"{path}: label '{label}' is used twice. Write a mapping that gives each element its own label."
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
    if value == [] and kind in ("attack", "comparison"):
        return {}
    built = {}
    for label, reference in _labelled(value, path):
        if defaults and isinstance(reference, str):
            reference = {"name": reference}
        if defaults and isinstance(reference, dict):
            reference = {**defaults, **reference}
        built[label] = components.build(kind, reference, f"{path}.{label}")
    return built


def _build_splits(value: Any, path: str) -> dict[str, SplitPlan]:
    """Each split by its label: a name, or a mapping with `name` and `canaries` or `reference`."""
    built: dict[str, SplitPlan] = {}
    own_labels = isinstance(value, dict)
    references = value.items() if isinstance(value, dict) and value else [("", item) for item in _list(value, [], path)]
    for own_label, reference in references:
        where = f"{path}.{own_label}" if own_labels else path
        values = {"name": reference} if isinstance(reference, str) else reference
        if not isinstance(values, dict):
            raise UserError(f"{where}: {unknown_name('split', reference, SPLITS)}")
        if values.get("name") not in SPLITS:
            raise UserError(f"{where}: {unknown_name('split', values.get('name'), SPLITS)}")
        if values.get("canaries") is not None:
            components.validate(Canaries, values["canaries"], f"{where}.canaries")  # names an unknown field
        plan = components.validate(SplitPlan, values, where)
        label = str(own_label) if own_labels else plan.label
        _check_label(label, path)
        if label in built:
            raise UserError(
                f"{path}: label '{label}' is used twice. Write a mapping that gives each split its own label."
            )
        built[label] = plan
    return built


def _build_defenses(value: Any, path: str) -> dict[str, tuple[Defense, ...]]:
    built: dict[str, tuple[Defense, ...]] = {}
    for own_label, own_reference in _labelled(value, path):
        for label, reference in _grid_points(own_label, own_reference, f"{path}.{own_label}"):
            references = reference if isinstance(reference, list) else [reference]
            if not references:
                raise UserError(f"{path}.{label}: an empty list; write none for no defense.")
            if label in built:
                raise UserError(f"{path}: label '{label}' is used twice: by the grid of '{own_label}', or beside it.")
            built[label] = tuple(components.build("defense", item, f"{path}.{label}") for item in references)
    return built


def _grid_points(label: str, reference: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Label and reference of each point of a defense's `grid`, its first field varying slowest; without one, the input itself."""
    if isinstance(reference, list) and any(isinstance(item, dict) and "grid" in item for item in reference):
        raise UserError(f"{path}: a grid is inside a list of defenses. Only a single defense takes a grid.")
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
    """One training per optimizer of the axis; without the axis the training itself, labelled by its optimizer's name."""
    whole = components.validate(Training, training, f"{path}.training")
    if optimizers is None:
        return {whole.optimizer: whole}
    for key in ("optimizer", *_OPTIMIZER_FIELDS):
        if training.get(key) is not None:
            value = training[key]
            example = f"[{value}]" if key == "optimizer" else f"{{sgd: {{name: sgd, {key}: {value}}}}}"
            raise UserError(
                f"{path}.training.{key}: got {shown(value)}, but the sweep has `optimizers`, each with its own. Remove it "
                f"here and put it there: optimizers: {example}."
            )
    built = {}
    for label, reference in _labelled(optimizers, f"{path}.optimizers"):
        where = f"{path}.optimizers.{label}"
        values = {"name": reference} if isinstance(reference, str) else reference
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            raise UserError(
                f"{where}: {shown(reference)} does not name an optimizer. Write a name, or a mapping with `name` and "
                f"some of {', '.join(_OPTIMIZER_FIELDS)}. Available: {', '.join(sorted(LEARNING_RATES))}."
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

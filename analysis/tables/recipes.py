"""The table of recipes: how each defense was trained."""

from __future__ import annotations

from collections.abc import Iterable

from analysis import naming
from analysis.measure.recipes import OFF, SHOWN_FIRST, key_words, searched_alike, with_recipes
from analysis.measure.targets import Measurements
from analysis.tables.model import Column, Table


def recipe_table(measured: Measurements) -> Table:
    """One row per recipe, with the defenses, datasets and settings that it was used for."""
    frame = with_recipes(measured)
    used = {pair for one in frame["recipe"] for pair in one.training}
    keys = {key for key, value in used if OFF.get(key) != value} - {"revision"}
    ordered = [key for key in SHOWN_FIRST if key in keys] + sorted(keys - set(SHOWN_FIRST))
    rows = []
    for defense in measured.defenses:
        for one, cell in frame[frame["defense"] == defense].groupby("recipe", sort=False):
            values = dict(one.training)
            datasets = [naming.display(dataset) for dataset in measured.datasets if dataset in set(cell["dataset"])]
            where = naming.listing(datasets) + _settings(measured, cell["setting"])
            rows.append((naming.display(defense), where, *(values.get(key) for key in ordered), one.own))
    return Table(
        name="recipes",
        title="Recipes: how each defense was trained",
        columns=(
            Column(key="defense", name="Defense", kind="label"),
            Column(key="where", name="Datasets", kind="label"),
            *(Column(key=key, name=key_words(key).capitalize()) for key in ordered),
            Column(key="own", name="The defense's own options", kind="label"),
        ),
        rows=tuple(rows),
        notes=(
            "Each defense’s recipe was chosen by a search of its own, all with the same number of runs."
            if searched_alike(measured.frame)
            else "A shared recipe is not the best one for each defense. A defense that needs another learning rate, batch size or "
            "number of epochs looks worse here than it is.",
        ),
        missing="" if rows else "No trial finished.",
    )


def _settings(measured: Measurements, keys: Iterable[str]) -> str:
    present = set(keys)
    labels = [setting.label for setting in measured.settings if setting.key in present and setting.label]
    return f" ({'; '.join(labels)})" if labels else ""

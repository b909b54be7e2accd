"""The card of one defense: one page for whoever answers for a release, with the source of each number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis import naming
from analysis.load import Results, read_exposed
from analysis.measure.recipes import OFF, recipe
from analysis.measure.targets import Measurements
from analysis.release.facts import Fact, Place, Seen, rows_in_trials
from analysis.report.runs import provenance
from analysis.statistics.estimates import Estimate, of_spreads
from analysis.tables.text import interval_text, number

MOST_EXPOSED = 5

THREAT_MODEL = (
    "The attacker has a record and wants to know whether the model was trained on it.",
    "The attacker asks the model about the record, and about shifted and mirrored copies of it where answers to these were recorded, "
    "and sees all class scores, not only the label.",
    "The attacker knows the training recipe and the defense, and has models of the same kind, trained on other draws of the same "
    "pool. Few real attackers have as much; the numbers are meant to be high.",
    "The attacker cannot change the training data, and does not see the model's weights or its training.",
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One statement of the card: what, the number in words, and where it stands."""

    what: str
    value: str
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with its lines, or with sentences."""

    heading: str
    lines: tuple[Line, ...] = ()
    sentences: tuple[str, ...] = ()
    source: str = ""
    """Where all its lines stand; theirs are then columns."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The whole card. `places` has for each dataset and setting its heading and sections."""

    title: str
    summary: tuple[str, ...]
    threat_model: tuple[str, ...]
    places: tuple[tuple[str, tuple[Section, ...]], ...]
    made_with: tuple[Line, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "summary": list(self.summary),
            "threat_model": list(self.threat_model),
            "places": [
                {"place": heading, "sections": [asdict(section) for section in sections]}
                for heading, sections in self.places
            ],
            "made_with": [asdict(line) for line in self.made_with],
        }

    def as_html(self) -> str:
        return _environment(is_html=True).get_template("card.html.jinja").render(card=self)

    def as_markdown(self) -> str:
        return _environment(is_html=False).get_template("card.md.jinja").render(card=self)


def card_of(results: Results, measured: Measurements, defense: str, places: Sequence[Place]) -> Card:
    """The card of a defense at all its places."""
    sweeps = naming.listing([str(name) for name in results.trials["sweep"].dropna().unique()])
    targets = results.trials[results.trials["defense"] == defense]
    return Card(
        title=f"Privacy of {naming.display(defense)}",
        summary=(
            f"What the sweep {sweeps} measured of models trained with {naming.display(defense)}.",
            *(_headline(place) for place in places),
        ),
        threat_model=THREAT_MODEL,
        places=tuple((place.label, _sections(results, place)) for place in places),
        made_with=tuple(Line(what=name, value=value) for name, value in provenance(targets)),
    )


def _headline(place: Place) -> str:
    """The strongest attack and the guarantee in one sentence."""
    strongest = max(place.seen, key=lambda seen: (seen.is_sound, _high(seen, "auc")), default=None)
    if strongest is None or "auc" not in strongest.facts:
        seen = "no attack on the cohort ran, so nothing is known of the leak"
    elif not strongest.is_sound:
        seen = f"the null of {naming.attack(strongest.attack)} does not stand, so its results say nothing"
    else:
        seen = (
            f"the strongest attack, {naming.attack(strongest.attack)}, has an AUC of {_shown(strongest.facts['auc'])}"
        )
    epsilon = place.facts.get("epsilon")
    proved = "nothing is proved" if epsilon is None else f"ε = {naming.epsilon(epsilon.value)} is proved for one run"
    return f"{place.label}, {place.n_seeds} seeds: {seen}; {proved}."


def _high(seen: Seen, name: str) -> float:
    fact = seen.facts.get(name)
    return -1.0 if fact is None else fact.value


def _sections(results: Results, place: Place) -> tuple[Section, ...]:
    return (
        Section(
            heading="What was trained, on what",
            lines=tuple(_training(place)),
            source=rows_in_trials(place.targets),
        ),
        Section(
            heading="Accuracy",
            lines=tuple(_line(place.facts[name]) for name in ("test_accuracy",) if name in place.facts),
        ),
        Section(heading="What is proved", lines=tuple(_guarantee(place)), sentences=tuple(_no_guarantee(place))),
        *(_attack(seen, place) for seen in place.seen),
        Section(heading="Most exposed records", sentences=tuple(_exposed(results, place))),
        Section(heading="What was not tried", sentences=tuple(_not_tried(place))),
    )


def _training(place: Place) -> list[Line]:
    rows, first = place.targets, place.targets.iloc[0]
    found = recipe(first)
    options = [
        (name, value)
        for name, value in found.training
        if OFF.get(name) != value and name not in ("revision", "sampling")
    ]
    canaries = "none: all examples of the pool are attacked"
    if pd.notna(first["canary_kind"]):
        canaries = f"{first['canary_kind']}, {first['n_canaries']:.0f} of them; all other examples are always members"
    examples = f"{_range(rows['n_train'])} examples of {naming.display(place.dataset)}, split {first['split']}"
    return [
        Line(what="Models", value=f"{place.n_seeds}, one per seed", source="seed"),
        Line(what="Trained on", value=examples, source="n_train"),
        Line(what="Data", value=f"SHA-256 {first['dataset_sha256']}", source="dataset_sha256"),
        Line(what="Canaries", value=canaries, source="canary_kind, n_canaries"),
        Line(what="Architecture", value=str(first["architecture"]), source="architecture"),
        Line(what="Defense", value=found.own, source="config"),
        Line(
            what="Training",
            value=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options)
            + f", {first['sampling']} batches",
            source="config, sampling",
        ),
        Line(what="Settings chosen by", value=_chosen_by(first), source="search_runs, search_law, search_objective"),
    ]


def _chosen_by(first: pd.Series) -> str:
    if pd.isna(first["search_runs"]):
        return "hand, in a way that is not recorded"
    # A random number of runs is part of the price: whoever knows it is not covered
    runs = (
        f"{first['search_runs']:.0f} runs"
        if first["search_law"] == "fixed"
        else f"a random number of runs ({first['search_law']})"
    )
    objective = "" if pd.isna(first["search_objective"]) else f" by {first['search_objective']}"
    return f"a search of {runs}{objective}, on {first['n_validation']:.0f} validation examples"


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _guarantee(place: Place) -> list[Line]:
    names = ("epsilon", "epsilon_with_search", "epsilon_trained_anew")
    lines = [_line(place.facts[name]) for name in names if name in place.facts]
    if "epsilon" in place.facts:
        worst = place.targets.loc[place.targets["epsilon_spent"].idxmax()]
        how = f"δ = {naming.scientific(float(worst['delta']))}, {worst['accountant']} accountant, {worst['sampling']} batches, "
        how += str(worst["adjacency"]).replace("_", " ")
        lines.append(
            Line(what="That ε holds for", value=how, source=f"trials.parquet: target_id = {worst['target_id']}")
        )
    return lines


def _no_guarantee(place: Place) -> list[str]:
    if "epsilon" not in place.facts:
        reasons = sorted({str(reason) for reason in place.targets["no_guarantee_reason"].dropna()})
        why = "; ".join(reason.rstrip(". ") for reason in reasons) or "no reason is recorded"
        return [f"Nothing: {why}. An attack that was not tried may find more than those below."]
    first = place.targets.iloc[0]
    if not place.was_searched:
        return [
            "How the settings were chosen is not recorded. If these data chose them, the ε above does not cover that."
        ]
    basis = "" if pd.isna(first["search_basis"]) else f": {first['search_basis']}"
    if "epsilon_trained_anew" not in place.facts:
        return [f"Nothing covers the search that chose the settings{basis}. The ε above is that of one run."]
    return [f"The ε with the search is computed by{basis.removeprefix(':')}."] if basis else []


def _attack(seen: Seen, place: Place) -> Section:
    lines = [_line(fact) for fact in seen.facts.values()]
    if seen.null is not None:
        stands = "stands" if seen.is_sound else "does not stand: the attack is broken here"
        lines.append(
            Line(
                what="Null, the AUC on a membership by which no model was trained",
                value=f"{interval_text(seen.null, 3)}; it should be 0.5, and {stands}",
                source=seen.facts["auc"].source.replace(", auc", ", null_auc") if "auc" in seen.facts else "",
            )
        )
    why = {"primary": "fixed beforehand as the strongest for so many seeds", "adaptive": "adapted to this defense"}
    heading = f"Attack: {naming.attack(seen.attack)} ({naming.score(seen.score_name)})"
    return Section(
        heading=f"{heading}, {why.get(seen.why, seen.why)}, on {seen.n_models} models, each with the others as references",
        lines=tuple(lines),
    )


def _exposed(results: Results, place: Place) -> list[str]:
    primary = next((seen for seen in place.seen if "auc" in seen.facts), None)
    if primary is None:
        return ["Not known: no attack on the cohort ran."]
    comparison = primary.facts["auc"].source.partition("comparison_id = ")[2].partition(",")[0]
    found = read_exposed(results, [comparison], MOST_EXPOSED).get(comparison, [])
    if not found:
        return ["Not recorded."]
    said = [
        "Exposure is how far a record's score is higher in models that were trained on it, in spreads. These are the highest of all "
        "records, so their true values are likely lower."
    ]
    for each in found:
        value, n_in, n_out = each["exposure"], each["n_in"], each["n_out"]
        interval = ""
        if n_in and n_out:
            low, high = of_spreads(value, n_in, n_out)
            interval = f" [{number(low, 1)}, {number(high, 1)}], {n_in} models with it and {n_out} without"
        said.append(
            f"Example {each['example_id']} of class {each['label']}: exposure {number(value, 1)}{interval} "
            f"(exposure.parquet: comparison_id = {comparison}, example_id = {each['example_id']})"
        )
    return said


def _not_tried(place: Place) -> list[str]:
    first = place.targets.iloc[0]
    sentences = [f"{each[:1].upper()}{each[1:]}." for each in place.missing]
    ran = {seen.attack for seen in place.seen}
    if "lira" not in ran:
        sentences.append("LiRA, the strongest attack where there are seeds enough (8).")
    if pd.isna(first["canary_kind"]):
        sentences.append(
            "Canaries: unusual or mislabeled records, which leak more than the average record. A person with unusual data is at more "
            "risk than these numbers say."
        )
    elif str(first["canary_kind"]) not in _names(first["worst_canaries"]):
        sentences.append("Here, the kind of canary that exposes this defense most.")
    if place.n_seeds < 64:
        sentences.append(
            f"A cohort of 64 models or more, as in publications; there are {place.n_seeds}, so attacks are weaker."
        )
    sentences += [
        "Attackers who see weights or gradients, or who change the training data.",
        "Any other model than these: another architecture, recipe or dataset may leak more.",
    ]
    return sentences


def _names(values: Any) -> set[str]:
    return set() if values is None else {str(each) for each in values}


def _line(fact: Fact) -> Line:
    return Line(what=f"{fact.words[:1].upper()}{fact.words[1:]}", value=_shown(fact), source=fact.source)


def _shown(fact: Fact) -> str:
    if fact.low is None or fact.high is None:
        return f"{fact.value:.4g} (no interval)"
    if fact.low == fact.high:
        return f"{fact.value:.4g}"
    return interval_text(
        Estimate(
            mean=fact.value, low=fact.low, high=fact.high, n=2, over="resamples", bounds=(-float("inf"), float("inf"))
        ),
        3,
    )


def _environment(*, is_html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("analysis.release"),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    return environment


def _cell(text: str) -> str:
    """Text for Markdown: on one line, and with nothing that Markdown or a browser would take as a command."""
    line = " ".join(text.split())
    for character in ("\\", "`", "*", "_", "[", "]", "|", "#"):
        line = line.replace(character, f"\\{character}")
    return line.replace("<", "&lt;").replace(">", "&gt;")

"""The paper's table with ours beside it, and the nulls of every cell."""

from __future__ import annotations

from collections.abc import Iterator

from analysis import naming
from analysis.measure.primary import MOST_FALSE_ALARMS
from analysis.measure.targets import FRACTION
from analysis.statistics.estimates import Estimate, Ratio, estimate
from analysis.studies.aerni2024 import numbers
from analysis.studies.aerni2024.cells import EQUAL, LIRA, NEAR, Arm, Cell, Leak, Protocol
from analysis.tables.model import Column, Entry, Label, Mean, Number, Table
from analysis.tables.text import interval_text, number


def tables(found: Protocol) -> tuple[Table, ...]:
    return _leaks(found), _audits(found), _null_means(found), _nulls(found)


def attack_name(attack: str) -> str:
    """“LiRA (margin, references with and without the example)”."""
    name, _, score = attack.partition("/")
    return f"{naming.attack(name)} ({naming.score(score)})"


def kind_name(kind: str) -> str:
    """“mislabeled near-duplicates”."""
    return {
        "duplicate_mislabeled": "mislabeled near-duplicates",
        "outlier_folder": "outliers",
        "blank": "blank images",
        "extreme": "extreme rows",
    }.get(kind, kind)


def percent(fpr: float) -> str:
    return f"{100 * fpr:g}\u00a0%"


def epsilon_text(epsilon: float | None) -> str:
    """“8”, or “2.1 × 10⁸” for an ε that says nothing; — without a guarantee."""
    if epsilon is None:
        return "—"
    if epsilon < 1000:
        return f"{epsilon:.3g}"
    mantissa, _, exponent = f"{epsilon:.1e}".partition("e")
    return f"{mantissa} × 10" + str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _leaks(found: Protocol) -> Table:
    at = f"TPR at {percent(found.fpr)} FPR"
    rows = [_row(found, arm) for dataset in found.datasets for arm in found.all_of(dataset)]
    return Table(
        name="aerni_table",
        title="What each defense leaks, as evaluated before and as evaluated here",
        caption=(
            f"{at}, over all targets of a cell together. “Before”: the highest of LiRA’s four forms (either score, with and without "
            "augmented queries) among clean canaries, which adapts to nothing. “Here”: the highest of these and the attacks that adapt "
            "to the defense, on the kinds of canaries that expose it most; all were fixed before any result. Test accuracies are with "
            "the same canaries."
        ),
        columns=(
            Column(key="dataset", name="Dataset", kind="label"),
            Column(key="defense", name="Defense", kind="label"),
            Column(key="epsilon", name="ε"),
            Column(key="base_tpr", name="Before", kind="mean"),
            Column(key="worst_tpr", name="Here", kind="mean"),
            Column(key="attack", name="By", kind="text"),
            Column(key="understated", name="Here / before"),
            Column(key="base_accuracy", name="Accuracy before", kind="mean"),
            Column(key="worst_accuracy", name="Accuracy here", kind="mean"),
            Column(key="factor", name="Leak over DP’s"),
            Column(key="nearest", name="DP arm, its accuracy less this one’s", kind="text"),
            Column(key="adaptive_clean_tpr", kind="mean", csv_only=True),
            Column(key="kind", kind="label", csv_only=True),
            Column(key="tried", csv_only=True),
        ),
        rows=tuple(rows),
        notes=(
            "A TPR’s interval resamples targets and canaries; it does not count that the highest of some attacks is taken. Factors "
            "count a TPR below the FPR as the FPR; their intervals take both rates as independent.",
            "ε is the largest proved one of the arm’s targets. A large ε guarantees nothing; it is printed as what it is.",
            "A defense is compared with the least accurate arm on the DP frontier that is as accurate as the defense; "
            f"{number(EQUAL, 3)} counts as equal. If there is none, it is compared with the most accurate one, if that is at most "
            f"{number(NEAR, 2)} below. Otherwise there is no factor.",
            *_notes(found),
        ),
        missing="" if rows else "No arm has an attack on its worst canaries yet.",
    )


def _notes(found: Protocol) -> list[str]:
    """What is missing, and what other attacks found."""
    notes = []
    for dataset in found.datasets:
        kinds: dict[tuple[str, ...], list[str]] = {}
        for arm in found.of(dataset):
            if arm.missing_kinds:
                kinds.setdefault(arm.missing_kinds, []).append(naming.display(arm.defense))
            other = arm.not_fixed
            if other is not None:
                notes.append(
                    f"{naming.display(dataset)}, {naming.display(arm.defense)}: {attack_name(other.attack)} was not fixed for it, and "
                    f"finds more: {interval_text(other.tpr, 4)} among {kind_name(other.kind)} canaries."
                )
        for missing, names in kinds.items():
            notes.append(
                f"{naming.display(dataset)}: canaries that were fixed but not measured ({', '.join(map(kind_name, missing))}) for "
                f"{', '.join(names)}; what they leak may be more."
            )
    if found.left_out:
        notes.append(
            f"{', '.join(map(naming.display, found.left_out))}: the table is of the architecture with the most attacked targets; the "
            "others are not in it."
        )
    return notes


def _row(found: Protocol, arm: Arm) -> tuple[Entry, ...]:
    worst, nearest = arm.worst, found.nearest_private(arm)
    beside = "" if arm.is_private or arm.accuracy is None else "none"
    if nearest is not None:
        beside = f"{naming.display(nearest.defense)}, {number(found.gap(arm, nearest), 3, signed=True)}"
    return (
        Label(value=arm.dataset),
        Label(value=arm.defense),
        Number(value=arm.epsilon, text=epsilon_text(arm.epsilon)),
        _tpr(arm.base, _published_tpr(found, arm, "base_tpr")),
        _tpr(worst, _published_tpr(found, arm, "worst_tpr")),
        "not attacked on its worst canaries"
        if worst is None
        else f"{attack_name(worst.attack)}, {kind_name(worst.kind)}; of {arm.n_tried} tried",
        _factor(found.understated(arm)),
        _accuracy(arm.base_accuracy, numbers.published(arm.dataset, arm.defense, "base_accuracy")),
        _accuracy(arm.accuracy, numbers.published(arm.dataset, arm.defense, "worst_accuracy")),
        _factor(found.factor(arm)),
        beside,
        _tpr(arm.adaptive_on_clean, None),
        Label(value="" if worst is None else worst.kind),
        arm.n_tried,
    )


def _published_tpr(found: Protocol, arm: Arm, quantity: str) -> float | None:
    return numbers.published(arm.dataset, arm.defense, quantity) if found.fpr == numbers.FPR else None


def _tpr(leak: Leak | None, published: float | None) -> Mean:
    return Mean(ours=None if leak is None else leak.tpr, decimals=4, paper=published)


def _accuracy(value: Estimate | None, published: float | None) -> Mean:
    return Mean(ours=value, decimals=3, paper=published)


def _factor(value: Ratio | None) -> Number:
    if value is None:
        return Number(value=None)
    return Number(value=value.mean, decimals=1, text=interval_text(value, 1))


def _audits(found: Protocol) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for (dataset, defense), arm in found.arms.items():
        for kind, cell in arm.cells.items():
            bound = cell.audit(LIRA)
            if bound is None:
                continue
            proved = Number(value=cell.epsilon, text=epsilon_text(cell.epsilon))
            # An original and its copy are members together, so a bound on their pair may be up to 2 ε.
            limit = None if cell.epsilon is None else cell.epsilon * (2 if kind == "duplicate_mislabeled" else 1)
            holds = "" if limit is None else "yes" if bound <= limit else "no"
            rows.append(
                (
                    Label(value=dataset),
                    Label(value=defense),
                    Label(value=kind, text=kind_name(kind)),
                    proved,
                    Number(value=bound, decimals=2),
                    holds,
                )
            )
    return Table(
        name="aerni_audits",
        title="Lower bounds on ε from the canaries",
        caption=(
            f"By {attack_name(LIRA)}, at 95 % confidence, from half of the seeds with the other half as references, both ways. "
            "A bound above the proved ε would refute the proof (above twice the ε for near-duplicates, of which two are members "
            "together). For defenses without a proof it says how much privacy they cannot have."
        ),
        columns=(
            Column(key="dataset", name="Dataset", kind="label"),
            Column(key="defense", name="Defense", kind="label"),
            Column(key="kind", name="Canaries", kind="label"),
            Column(key="epsilon", name="Proved ε"),
            Column(key="epsilon_lower_bound", name="ε is at least"),
            Column(key="holds", name="Below the proved ε", kind="text"),
        ),
        rows=tuple(rows),
        missing="" if rows else "No attack on a cohort has finished.",
        folded=True,
    )


def _each_null(found: Protocol) -> Iterator[tuple[Cell, str, Estimate]]:
    """The nulls of the attacks that were fixed for each arm, in all of its cells."""
    for arm in found.arms.values():
        for cell in arm.cells.values():
            for attack in arm.attacks:
                null = cell.null(attack)
                if null is not None:
                    yield cell, attack, null


def _null_means(found: Protocol) -> Table:
    nulls: dict[str, list[float]] = {}
    for _, attack, null in _each_null(found):
        nulls.setdefault(attack, []).append(null.mean)
    rows: list[tuple[Entry, ...]] = []
    for attack, values in nulls.items():
        mean = estimate(values, FRACTION)
        assert mean is not None
        widened = mean.at(1 - MOST_FALSE_ALARMS / len(nulls))
        if widened.low is None or widened.high is None:
            sound = "too few cells to tell"
        else:
            sound = "yes" if widened.low <= 0.5 <= widened.high else "no"
        rows.append((attack_name(attack), len(values), Mean(ours=mean), sound))
    return Table(
        name="aerni_null_means",
        title="The null of each attack over all cells",
        caption=(
            "The mean, over the cells, of the AUC of each attack on a membership that coins toss anew: one half, unless the attack is "
            "wrong. Each cell tosses its own coins. “At one half”: t-tests over cells, all together at 1 %."
        ),
        columns=(
            Column(key="attack", name="Attack", kind="text"),
            Column(key="cells", name="Cells"),
            Column(key="null_auc", name="Mean AUC of the nulls", kind="mean"),
            Column(key="sound", name="At one half", kind="text"),
        ),
        rows=tuple(rows),
        missing="" if rows else "No attack on a cohort has finished.",
    )


def _nulls(found: Protocol) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for cell, attack, null in _each_null(found):
        sound = "not shown to differ" if cell.is_sound(attack) else "no"
        kind = Label(value=cell.kind, text=kind_name(cell.kind))
        rows.append((Label(value=cell.dataset), Label(value=cell.defense), kind, attack, Mean(ours=null), sound))
    off = sum(row[-1] == "no" for row in rows)
    return Table(
        name="aerni_nulls",
        title="The null of every cell",
        caption=(
            "The AUC of each attack on a membership that coins toss anew, by which no model was trained: one half, unless the attack "
            f"is wrong. {len(rows)} nulls, of which {off} {'is' if off == 1 else 'are'} shown to differ from it (t-tests, all together "
            "at 1 %); an attack is not used where its null differs."
        ),
        columns=(
            Column(key="dataset", name="Dataset", kind="label"),
            Column(key="defense", name="Defense", kind="label"),
            Column(key="kind", name="Canaries", kind="label"),
            Column(key="attack", name="Attack", kind="text"),
            Column(key="null_auc", name="AUC of the null", kind="mean"),
            Column(key="sound", name="At one half", kind="text"),
        ),
        rows=tuple(rows),
        missing="" if rows else "No attack on a cohort has finished.",
        folded=True,
    )

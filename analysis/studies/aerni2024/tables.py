"""The paper's table with ours beside it, and the nulls of every cell."""

from __future__ import annotations

from analysis import naming
from analysis.statistics.estimates import Estimate, Ratio
from analysis.studies.aerni2024 import numbers
from analysis.studies.aerni2024.cells import NON_ADAPTIVE, Arm, Leak, Protocol
from analysis.tables.model import Column, Entry, Label, Mean, Number, Table
from analysis.tables.text import interval_text


def tables(found: Protocol) -> tuple[Table, ...]:
    return _leaks(found), _audits(found), _nulls(found)


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
    rows = [_row(found, arm) for dataset in found.datasets for arm in found.of(dataset)]
    return Table(
        name="aerni_table",
        title="What each defense leaks, as evaluated before and as evaluated here",
        caption=(
            f"{at}, over all targets of a cell together. “Before”: {attack_name(NON_ADAPTIVE)} among clean canaries, which "
            "adapts to nothing. “Here”: the highest of the attacks and kinds of canaries that were fixed for the defense before any "
            "result. Test accuracies are with the same canaries."
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
            Column(key="nearest", name="DP arm of at least its accuracy", kind="text"),
            Column(key="adaptive_clean_tpr", kind="mean", csv_only=True),
            Column(key="kind", kind="label", csv_only=True),
            Column(key="tried", csv_only=True),
        ),
        rows=tuple(rows),
        notes=(
            "A TPR’s interval resamples targets and canaries. Factors count a TPR below the FPR as the FPR; their intervals take both "
            "rates as independent.",
            "ε is the largest proved one of the arm’s targets. A large ε guarantees nothing; it is printed as what it is.",
            "The DP arm beside which a defense stands is the least accurate of those with at least its mean accuracy. Without such "
            "an arm there is no factor.",
        ),
        missing="" if rows else "No arm has an attack on its worst canaries yet.",
    )


def _row(found: Protocol, arm: Arm) -> tuple[Entry, ...]:
    worst, nearest = arm.worst, found.nearest_private(arm)
    assert worst is not None
    return (
        Label(value=arm.dataset),
        Label(value=arm.defense),
        Number(value=arm.epsilon, text=epsilon_text(arm.epsilon)),
        _tpr(arm.base, numbers.published(arm.dataset, arm.defense, "base_tpr")),
        _tpr(worst, numbers.published(arm.dataset, arm.defense, "worst_tpr")),
        f"{attack_name(worst.attack)}, {kind_name(worst.kind)}; of {arm.n_tried} tried",
        _factor(found.understated(arm)),
        _accuracy(arm.base_accuracy, numbers.published(arm.dataset, arm.defense, "base_accuracy")),
        _accuracy(arm.accuracy, numbers.published(arm.dataset, arm.defense, "worst_accuracy")),
        _factor(found.factor(arm)),
        "none" if nearest is None else naming.display(nearest.defense),
        _tpr(arm.adaptive_on_clean, None),
        Label(value=worst.kind),
        arm.n_tried,
    )


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
            bound = cell.audit(NON_ADAPTIVE)
            if bound is None:
                continue
            proved = Number(value=cell.epsilon, text=epsilon_text(cell.epsilon))
            holds = "" if cell.epsilon is None else "yes" if bound <= cell.epsilon else "no"
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
            f"By {attack_name(NON_ADAPTIVE)}, at 95 % confidence, from half of the seeds with the other half as references, both ways. "
            "A bound above the proved ε would refute the proof. For defenses without a proof it says how much privacy they cannot have."
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


def _nulls(found: Protocol) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for (dataset, defense), arm in found.arms.items():
        for kind, cell in arm.cells.items():
            for attack in arm.attacks:
                null = cell.null(attack)
                if null is not None:
                    sound = "yes" if cell.is_sound(attack) else "no"
                    label = Label(value=kind, text=kind_name(kind))
                    rows.append((Label(value=dataset), Label(value=defense), label, attack, Mean(ours=null), sound))
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

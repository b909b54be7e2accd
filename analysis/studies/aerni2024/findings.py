"""The study's findings, in plain words."""

from __future__ import annotations

from analysis import naming
from analysis.report.findings import Finding
from analysis.studies.aerni2024.cells import Arm, Protocol
from analysis.studies.aerni2024.tables import attack_name, epsilon_text, kind_name, percent
from analysis.tables.text import interval_text, number


def findings(found: Protocol) -> tuple[Finding, ...]:
    return tuple(
        Finding(heading=f"Canaries, {naming.display(dataset)}", sentences=tuple(_sentences(found, dataset)))
        for dataset in found.datasets
    )


def _sentences(found: Protocol, dataset: str) -> list[str]:
    arms = found.of(dataset)
    if not arms:
        return ["No arm has an attack on its worst canaries yet."]
    sentences = [
        f"The TPR at {percent(found.fpr)} FPR among the canaries that expose a defense most, by the strongest of the attacks that were "
        "fixed for it:"
    ]
    sentences += [_of_arm(found, arm) for arm in sorted(arms, key=_leak)]
    missing = [naming.display(arm.defense) for arm in found.all_of(dataset) if arm.worst is None]
    if missing:
        sentences.append(f"Not attacked on their worst canaries: {', '.join(missing)}.")
    return sentences


def _leak(arm: Arm) -> float:
    return arm.worst.tpr.mean if arm.worst is not None else 0.0


def _of_arm(found: Protocol, arm: Arm) -> str:
    worst, accuracy = arm.worst, arm.accuracy
    assert worst is not None
    name = naming.display(arm.defense)
    if arm.epsilon is not None:
        name += f" (ε = {epsilon_text(arm.epsilon)})"
    text = (
        f"{name}: {interval_text(worst.tpr, 3)} among {kind_name(worst.kind)} canaries, by {attack_name(worst.attack)}"
    )
    if arm.base is not None:
        text += f"; LiRA among clean ones, {number(arm.base.tpr.mean, 3)}"
    if accuracy is not None:
        text += f"; test accuracy {number(accuracy.mean, 3)}"
    factor, nearest = found.factor(arm), found.nearest_private(arm)
    if factor is not None and nearest is not None:
        gap = number(found.gap(arm, nearest), 3, signed=True)
        text += f"; {interval_text(factor, 1)} times the leak of {naming.display(nearest.defense)} (accuracy {gap})"
    return f"{text}."

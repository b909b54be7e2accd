"""The study's findings, in plain words."""

from __future__ import annotations

from analysis import naming
from analysis.report.findings import Finding
from analysis.studies.aerni2024.cells import Arm, Protocol
from analysis.studies.aerni2024.tables import epsilon_text, kind_name, percent
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
        f"The TPR at {percent(found.fpr)} FPR among the canaries that expose a defense most, by attacks that adapt to it:"
    ]
    sentences += [_of_arm(found, arm) for arm in sorted(arms, key=_leak)]
    return sentences


def _leak(arm: Arm) -> float:
    return arm.worst.tpr.mean if arm.worst is not None else 0.0


def _of_arm(found: Protocol, arm: Arm) -> str:
    worst, accuracy = arm.worst, arm.accuracy
    assert worst is not None
    name = naming.display(arm.defense)
    if arm.epsilon is not None:
        name += f" (ε = {epsilon_text(arm.epsilon)})"
    text = f"{name}: {interval_text(worst.tpr, 3)} among {kind_name(worst.kind)} canaries"
    if arm.base is not None:
        text += f", where the usual attack on clean ones finds {number(arm.base.tpr.mean, 3)}"
    if accuracy is not None:
        text += f"; test accuracy {number(accuracy.mean, 3)}"
    factor, nearest = found.factor(arm), found.nearest_private(arm)
    if not arm.is_private and factor is not None and nearest is not None:
        text += f"; {interval_text(factor, 1)} times the leak of {naming.display(nearest.defense)}, which is at least as accurate"
    return f"{text}."

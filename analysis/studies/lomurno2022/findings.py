"""The finding on inversion, in plain words."""

from __future__ import annotations

from analysis import naming
from analysis.measure.inversion import inversion_settings, judged_changes, layers, why_no_decoder
from analysis.measure.targets import PERCENT_CHANGE, Measurements, average_over_datasets
from analysis.measure.verdicts import ERROR_RATE, told
from analysis.report.findings import Finding
from analysis.studies.lomurno2022 import numbers as paper
from analysis.tables.text import interval_text, number


def summarize_inversion(measured: Measurements) -> Finding:
    """How differential privacy changes the error of inversion at the last cut point where a decoder works."""
    return Finding(heading="Inversion under differential privacy", sentences=tuple(_inversion(measured)))


def _inversion(measured: Measurements) -> list[str]:
    settings = inversion_settings(measured)
    if not settings:
        return ["No reconstructions were recorded, so this was not measured."]
    if not measured.guaranteed:
        return ["No finished target has a privacy guarantee, so this was not measured."]
    changes = judged_changes(measured, settings[0])
    if changes is None:
        return ["No baseline finished, so there is nothing to compare with."]
    names = layers(measured, settings[0])
    private = [defense for defense in measured.defenses if defense in measured.guaranteed]
    judged = changes[changes["defense"].isin(private)]
    supported = [layer for layer in names if layer in set(judged["layer"])]
    if not supported:
        why = why_no_decoder(measured, settings[0])
        return [f"{why[0].upper()}{why[1:]} at any cut point, so there is no verdict."]
    last = supported[-1]
    found = {
        defense: change
        for defense in private
        if (change := average_over_datasets(
            judged[(judged["layer"] == last) & (judged["defense"] == defense)], "value", PERCENT_CHANGE
        )[0]) is not None
    }  # fmt: skip
    sentences = []
    for defense, change in found.items():
        together = change.at(1 - ERROR_RATE / len(found))
        words = told(together, "harder to invert than the baseline", "easier to invert than the baseline")
        published = paper.number(4, last, defense)
        beside = "" if published is None else f"; the paper has {number(published, 1, signed=True)}\u00a0%"
        size = number(change.mean, 1, signed=True) if change.n == 1 else interval_text(together, 1, signed=True)
        sentences.append(f"{naming.display(defense)} changes it by {size}\u00a0%: {words}{beside}.")
    where = f"At {naming.display(last)}, the last cut point"
    if last != names[-1]:
        where += f" at which a decoder is shown to beat both controls (none is at {naming.display(names[-1])}: no verdict there)"
    return [f"{where}, against the baseline’s reconstruction MSE on test images:", *sentences]

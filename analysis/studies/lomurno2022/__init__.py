"""Lomurno & Matteucci (2022): differential privacy against classic regularization."""

from __future__ import annotations

from analysis.load import Results
from analysis.measure.targets import Measurements
from analysis.studies.base import Chapter, Study
from analysis.studies.lomurno2022 import numbers
from analysis.studies.lomurno2022.claims import judge
from analysis.studies.lomurno2022.figures import paper_figures
from analysis.studies.lomurno2022.findings import summarize_inversion
from analysis.studies.lomurno2022.tables import paper_tables

_GLOSSARY = (
    (
        "AUC by the paper’s protocol",
        "The largest AUC over all scores, on the very data that it is reported on. A maximum over noise lies above 0.5, so "
        "it overstates the attack. On the official split, members are training examples and non-members are test "
        "examples, which may differ in more than membership.",
    ),
    (
        "Reconstruction MSE",
        "The error per pixel, on images in [0, 1], of a decoder trained to rebuild inputs from a layer’s activations. On "
        "test images it measures how invertible the target is, not what it memorized. It is compared with two controls: a "
        "constant image, and a target that was never trained. If neither the defense’s decoder nor the baseline’s is shown to beat "
        "both, over seeds and for all decoders together, no verdict rests on it. An error above the constant image’s counts as "
        "equal to it.",
    ),
)


def _chapter(results: Results, measured: Measurements) -> Chapter:
    """The chapter for any results; most sweeps measure what the paper's tables show: accuracy, time, AUC, inversion.

    The paper's attacks have no references, so its claims are judged by attacks on single targets.
    """
    measured = measured.on_single_targets
    return Chapter(
        findings=(summarize_inversion(measured),),
        claims=tuple(judge(measured)),
        tables=paper_tables(measured),
        draw=lambda directory: paper_figures(results, measured, directory),
        glossary=_GLOSSARY,
    )


STUDY = Study(
    title="Lomurno & Matteucci (2022)",
    citation=numbers.CITATION,
    sweep=numbers.SWEEP,
    chapter=_chapter,
    reading="The paper’s number is shown if the row’s and column’s labels are the paper’s.",
    display_names={
        "dp_eps2": "DP ε=2",
        "dp_eps4": "DP ε=4",
        "dp_eps8": "DP ε=8",
        "l2_dropout": "L2+Dropout",
        "conv1": "Conv1",
        "maxpool1": "MaxPool1",
        "conv2": "Conv2",
        "maxpool2": "MaxPool2",
        "conv3": "Conv3",
        "maxpool3": "MaxPool3",
        "dense": "Dense",
        "prediction": "Prediction",
    },
    datasets=numbers.DATASETS,
    defenses=numbers.DEFENSES,
    figure_names=("figure4", "figure5", "figure6"),
)

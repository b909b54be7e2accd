"""Aerni, Zhang & Tramèr (2024): defenses evaluated on their worst canaries, with attacks that adapt to them."""

from __future__ import annotations

from analysis.load import Results
from analysis.measure.targets import Measurements
from analysis.studies.aerni2024 import numbers
from analysis.studies.aerni2024.cells import protocol
from analysis.studies.aerni2024.claims import judge
from analysis.studies.aerni2024.figures import NAME, figures
from analysis.studies.aerni2024.findings import findings
from analysis.studies.aerni2024.tables import tables
from analysis.studies.base import Chapter, Study

_GLOSSARY = (
    (
        "Canary",
        "An example whose membership a coin decides; all others are members of every target. Most kinds are made so that a model can "
        "only answer them rightly by memorizing them, as a few unusual people’s data are.",
    ),
    (
        "Adaptive attack",
        "An attack that was chosen for a defense before any result: by labels alone against defenses that mask answers, for example. "
        "Defenses that only train in another way are attacked by LiRA, whose references are trained in the same way.",
    ),
    (
        "DP frontier",
        "What differential privacy reaches: its arms that no other such arm beats in accuracy and leak. An arm with a huge ε is on "
        "it, too: its noise protects against these attacks without a guarantee that says anything.",
    ),
)


def _chapter(results: Results, measured: Measurements) -> Chapter | None:
    """The chapter for results with canaries."""
    found = protocol(results, measured)
    if found is None:
        return None
    return Chapter(
        findings=findings(found),
        claims=tuple(judge(found)),
        tables=tables(found),
        draw=lambda directory: figures(found, measured, directory),
        glossary=_GLOSSARY,
        covers_all=bool(measured.frame["canary_kind"].notna().all()) and not found.left_out,
    )


STUDY = Study(
    title="Aerni, Zhang & Tramèr (2024)",
    citation=numbers.CITATION,
    sweep=numbers.SWEEPS[0],
    smaller_sweeps=numbers.SWEEPS[1:],
    chapter=_chapter,
    reading="The paper’s number is shown for CIFAR-10 if the row’s label is the paper’s.",
    display_names={
        "undefended": "Undefended",
        "weight_decay": "Weight decay",
        "label_smoothing": "Label smoothing",
        "early_stopping": "Early stopping",
        "relaxloss": "RelaxLoss",
        "hamp": "HAMP",
        "selena": "SELENA",
        "memguard": "MemGuard",
        "adversarial_regularization": "Adversarial regularization",
        "prediction_purification": "Purification",
        "mixup": "Mixup",
        "augmentation": "Augmentation",
        "dp_paper_eps2": "DP ε=2, plain recipe",
        "dp_paper_eps4": "DP ε=4, plain recipe",
        "dp_paper_eps8": "DP ε=8, plain recipe",
        "dp_medium": "DP medium",
        "dp_high": "DP high",
        "dp_very_high": "DP very high",
        "mislabeled": "mislabeled",
        "duplicate_mislabeled": "near-duplicate",
        "clean": "clean",
        "blank": "blank",
    },
    defenses=numbers.OWN_LABELS,
    figure_names=(NAME,),
)

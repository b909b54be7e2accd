"""Lin et al. (2020): which factors of noisy, clipped training matter, and whether noise or clipping comes first."""

from __future__ import annotations

from analysis.load import Results
from analysis.measure.targets import Measurements
from analysis.studies.base import Chapter, Study
from analysis.studies.lin2020 import numbers
from analysis.studies.lin2020.claims import judge_factors
from analysis.studies.lin2020.factors.frame import factor_study
from analysis.studies.lin2020.figures import factor_figures
from analysis.studies.lin2020.findings import summarize_factors
from analysis.studies.lin2020.tables import factor_tables

_GLOSSARY = (
    (
        "TPVD",
        "Total parameters value difference: how far the weights lie from those of the same training without a mechanism "
        "(same seed, initialization and batches), relative to their size, averaged over the parameter tensors. The paper "
        "uses it as a metric of privacy. It bounds nothing: noise that moves the weights far need not hide any single "
        "example, and training longer or with another optimizer changes it too.",
    ),
    (
        "Audited ε",
        "A lower bound on ε, at 95 % confidence and δ = 1e-5, from one training run in which independent coins decided who "
        "is a member. It uses only the loss, a score fixed beforehand. The true ε may be much larger. "
        "Zero means that this audit found nothing.",
    ),
    (
        "Tests",
        "Shapiro–Wilk asks whether values are normally distributed. Mann–Whitney (two levels) and Kruskal–Wallis (any "
        "number) ask whether levels of a factor differ. A small p says that chance alone seldom gives such a difference, not "
        "that the difference is large. The effect sizes are Cliff’s δ (from −1 to 1; 0 if neither level tends to be "
        "larger) and ε² (the share of the ranks’ variance that the factor explains). Holm’s p allows for the number of tests. "
        "A test that finds no difference does not show that there is none.",
    ),
)


def _chapter(results: Results, measured: Measurements) -> Chapter | None:
    """None unless the results compare the paper's mechanisms. The chapter covers all results without inversion attacks.

    The paper's claims are judged by attacks on single targets, the finding on guessing by the primary attack.
    """
    study = factor_study(results, measured.on_single_targets)
    judged = study if measured.single is None else factor_study(results, measured)
    if study is None or judged is None:
        return None
    return Chapter(
        findings=tuple(summarize_factors(study, judged)),
        claims=tuple(judge_factors(study)),
        tables=tuple(factor_tables(study)),
        draw=lambda directory: factor_figures(study, directory),
        glossary=_GLOSSARY,
        covers_all=results.reconstructions.empty,
    )


STUDY = Study(
    title="Lin et al. (2020)",
    citation=numbers.CITATION,
    sweep=numbers.SWEEP,
    chapter=_chapter,
    judging=(
        "Comparisons are between AC (noise first) and CA (clipping first), or between clipping rules. The paper’s "
        "tests are repeated, at 0.05 and with Holm’s adjustment over factors."
    ),
    reading="Only the numbers in the paper’s running text are available, so most cells have none.",
    display_names={"lin_cnn": "CNN", "lin_lstm": "LSTM"},
    figure_names=("lin_",),
)

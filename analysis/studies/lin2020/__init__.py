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
        "takes it for a metric of privacy. It bounds nothing: noise that moves the weights far need not hide any one "
        "example, and training longer or with another optimizer changes it as well.",
    ),
    (
        "Audited ε",
        "A lower bound on ε, at 95 % confidence and δ = 1e-5, from one training run in which independent coins decided who "
        "is a member. It uses the loss alone, a score fixed beforehand. The true ε is larger; how much larger is not known. "
        "Zero means that this audit found nothing.",
    ),
    (
        "Tests",
        "Shapiro–Wilk asks whether values are normally distributed. Mann–Whitney (two levels) and Kruskal–Wallis (any "
        "number) ask whether levels of a factor differ. A small p says that chance alone seldom gives such a difference, not "
        "that the difference is large. Its size is given by Cliff’s δ (from −1 to 1, 0 where neither level tends to be "
        "larger) and by ε² (the share of the ranks’ variance that the factor explains). Holm’s p allows for how many tests "
        "were made. No test that finds nothing shows that there is nothing.",
    ),
)


def _chapter(results: Results, measured: Measurements) -> Chapter | None:
    """None unless the results compare the paper's mechanisms. The chapter covers all results without inversion attacks."""
    study = factor_study(results, measured)
    if study is None:
        return None
    return Chapter(
        findings=tuple(summarize_factors(study)),
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
        "The comparisons are of AC (noise first) with CA (clipping first), or of one clipping rule with another. Where the "
        "paper tests, the test is repeated, at 0.05 and with Holm’s adjustment over factors."
    ),
    reading="Only the numbers that the paper’s running text repeats are at hand, so most cells have none.",
    display_names={"lin_cnn": "CNN", "lin_lstm": "LSTM"},
    figure_names=("lin_",),
)

"""Tables 3–12 with our numbers, and what the paper concluded from its own.

Source: Lin et al. 2020, Tables 3–12. Deviations: every number is a mean over seeds with its 95 % t-interval; the paper
has one run. Accuracy is a fraction, on test examples and on training examples. The tests have effect sizes and adjusted
p-values. Epochs to a stated loss and the averages of the abstract have their own tables.
"""

from __future__ import annotations

from analysis.studies.lin2020.factors.frame import FactorStudy
from analysis.studies.lin2020.influences import analyze
from analysis.studies.lin2020.tables.clipping import ladder_table, quantiles_table
from analysis.studies.lin2020.tables.significance import influences_table, leakage_table, normality_table
from analysis.studies.lin2020.tables.training import convergence_table, distortion_table, gains_table, training_tables
from analysis.tables.model import Table


def factor_tables(study: FactorStudy) -> list[Table]:
    """Every table, in the paper's order."""
    accuracy, training, loss = (analyze(study, dependent) for dependent in ("accuracy", "train_accuracy", "loss"))
    return [
        *training_tables(study),
        gains_table(study),
        distortion_table(study),
        quantiles_table(study),
        normality_table(study, accuracy, "lin_table8", "Table 8. Shapiro–Wilk test of test accuracy"),
        normality_table(study, training, "lin_table8_train", "Table 8. Shapiro–Wilk test of training accuracy"),
        normality_table(study, loss, "lin_table9", "Table 9. Shapiro–Wilk test of convergence (final training loss)"),
        influences_table(accuracy, "lin_table10", "Table 10. Which factors matter for test accuracy"),
        influences_table(training, "lin_table10_train", "Table 10. Which factors matter for training accuracy"),
        influences_table(loss, "lin_table11", "Table 11. Which factors matter for convergence (final training loss)"),
        ladder_table(study),
        convergence_table(study),
        leakage_table(study),
    ]

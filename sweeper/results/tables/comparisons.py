"""Tables of comparisons of several targets."""

from __future__ import annotations

import pyarrow as pa

from sweeper.results.tables.columns import CAUSES, COMPARISON_KEY, KEY, Tables, interval_columns

TABLES: Tables = {
    "comparisons": (
        "One row per comparison of a group of targets: its kind, its targets, and whether it finished.",
        [
            ("schema_version", pa.int32(), "Version of these tables"),
            COMPARISON_KEY,
            ("comparison", pa.string(), "Name of the comparison, such as tpvd"),
            ("config", pa.string(), "The comparison's configuration as JSON, defaults spelled out"),
            (
                "members",
                pa.list_(pa.string()),
                "target_id of each target of the group; the group is named after the first",
            ),
            ("status", pa.string(), "finished or failed"),
            ("error", pa.string(), "What went wrong; null if finished"),
            ("cause", pa.string(), CAUSES),
            ("compare_time_s", pa.float64(), "Seconds that the comparison took; null if failed"),
            (
                "component_sha256",
                pa.string(),
                "SHA-256 over the source files of the comparison and all they import of ours",
            ),
        ],
    ),
    "cohorts": (
        "One row per attack on a cohort and score: what it measured over all seeds of a cell. Intervals are of 95 %. "
        "strongest has one row, with AUCs and tpr_at_fpr only.",
        [
            COMPARISON_KEY,
            ("attack", pa.string(), "Name of the attack, as in attacks"),
            ("score_name", pa.string(), "Which of the attack's scores; for strongest, selected"),
            ("is_first", pa.bool_(), "Whether it is the score that stands for the attack"),
            ("n_targets", pa.int64(), "Seeds that were attacked; each is a reference against the others"),
            ("n_units", pa.int64(), "Independent units of the intervals: seeds, or pairs of complements"),
            ("n_examples", pa.int64(), "Examples of the pool, or canaries, whose membership coins decide"),
            *interval_columns(
                "auc", "Mean AUC over the targets, with Student's interval over seeds (coin_pairs: over pairs)"
            ),
            *interval_columns(
                "null_auc",
                "The same of the null, as null_auc in attacks, on at most 4,096 examples: .5 for a sound attack. Its interval is over "
                "units, or over eight groups of them if there are more",
            ),
            *(
                column
                for fpr, percent in (("0.001", "0.1 %"), ("0.01", "1 %"), ("0.1", "10 %"))
                for column in interval_columns(
                    f"tpr_at_fpr_{fpr}",
                    f"Mean over the targets of the TPR at an FPR of {percent}, with Student's interval; null where a target has too "
                    "few non-members",
                )
            ),
            *(
                column
                for fpr, percent in (("0.0001", "0.01 %"), ("0.001", "0.1 %"), ("0.01", "1 %"))
                for column in (
                    *interval_columns(
                        f"pooled_tpr_at_fpr_{fpr}",
                        f"TPR at an FPR of {percent} over all targets together, not calibrated per example; its interval resamples "
                        "targets and examples. Null with fewer than 4/FPR non-members",
                    ),
                    *interval_columns(
                        f"calibrated_tpr_at_fpr_{fpr}",
                        "The same after each example's scores were standardized by those of other targets without it. Half of the "
                        "seeds are references for the other half, both ways; null with too few seeds for that",
                    ),
                )
            ),
            (
                "top_share",
                pa.float64(),
                "Share of the pooled true positives that the most exposed 1 % of the examples make, at the lowest FPR that can be "
                "told. Examples are ranked by one half of the targets and counted in the other. As seeds are each other's references, "
                "it is above .01 without a leak",
            ),
            (
                "epsilon_lower_bound",
                pa.float64(),
                "Lower bound on the seeds' common ε at 95 % confidence, for this score alone, from the guesses on half of the seeds "
                "with the other half as references, both ways",
            ),
            ("audit_delta", pa.float64(), "δ of epsilon_lower_bound: that of the targets' guarantee, or 1e-5"),
            ("audit_canaries", pa.int64(), "Examples times seeds that were guessed about"),
            ("audit_guesses", pa.int64(), "Guesses that epsilon_lower_bound rests on"),
            ("audit_right", pa.int64(), "How many of them were right"),
        ],
    ),
    "exposure": (
        "One row per attack on a cohort and example of the pool: how exposed it is to the attack's first score.",
        [
            COMPARISON_KEY,
            ("score_name", pa.string(), "The attack's first score"),
            ("example_id", pa.int64(), "Index in the dataset, as in outputs"),
            ("label", pa.int64(), "True class"),
            ("n_in", pa.int64(), "Targets that were trained on it"),
            ("n_out", pa.int64(), "Targets that were not"),
            (
                "exposure",
                pa.float64(),
                "Its mean score in targets with it − in targets without it, in units of its score's spread "
                "(shrunk toward the median one)",
            ),
            *interval_columns(
                "found_at_fpr_0.001",
                "Share of the targets with it that score it above the threshold of an FPR of 0.1 % over all targets, with its "
                "Clopper-Pearson interval; null where that FPR cannot be told",
            ),
            *interval_columns("found_at_fpr_0.01", "The same at an FPR of 1 %"),
            ("image_png", pa.binary(), "The image of the most exposed examples, as PNG; else null"),
        ],
    ),
    "tpvd": (
        "One row per target with a mechanism whose twin is finished too: how far the mechanism moved the weights.",
        [
            COMPARISON_KEY,
            KEY,
            ("twin_id", pa.string(), "target_id of the twin, as in trials"),
            (
                "tpvd",
                pa.float64(),
                "Total parameters value difference: mean of value_difference over the tensors that have one. No guarantee",
            ),
            (
                "tensors",
                pa.list_(pa.struct([("parameter", pa.string()), ("value_difference", pa.float64())])),
                "Per parameter tensor ‖W − W̄‖ / ‖W‖ (Frobenius), W the twin's; null if W is zero or not finite",
            ),
            (
                "displacement_sketch",
                pa.list_(pa.float32()),
                "Count sketch of (W − W̄) / ‖W‖ over all tensors. For two targets with the same twin, the sketches' distance is near "
                "that of their weights",
            ),
            (
                "other_init_twin_id",
                pa.string(),
                "target_id of the undefended target of the next seed (the first seed follows the last): the twin's training "
                "with another initialization, other members and batches; null if there is one seed",
            ),
            (
                "tpvd_other_init",
                pa.float64(),
                "Like tpvd, with that target in the twin's place: about 1.41 for weights that share only their size",
            ),
        ],
    ),
}

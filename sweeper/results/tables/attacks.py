"""Tables of attacks: their metrics, scores per example, and reconstructions."""

from __future__ import annotations

import pyarrow as pa

from sweeper.results.tables.columns import ATTACK_KEY, CAUSES, KEY, Tables, interval_columns, tnr_columns, tpr_columns

TABLES: Tables = {
    "attacks": (
        "One row per target, attack and score; best_of rows compare the scores of attacks on one target alone, strongest rows those of "
        "attacks on its cohort too.",
        [
            ("schema_version", pa.int32(), "Version of these tables"),
            KEY,
            ATTACK_KEY,
            ("attack", pa.string(), "Name of the attack; best_of or strongest"),
            ("family", pa.string(), "membership or inversion"),
            (
                "score_name",
                pa.string(),
                "Which of the attack's scores; for best_of and strongest, the one chosen on the first half",
            ),
            ("config", pa.string(), "Resolved configuration as canonical JSON"),
            (
                "component_sha256",
                pa.string(),
                "SHA-256 of the source of the attack, the metrics, and what these import of ours or of the attack's own package",
            ),
            ("status", pa.string(), "finished or failed"),
            ("error", pa.string(), "Text of the error of a failed attack, else null"),
            ("cause", pa.string(), CAUSES),
            (
                "uses_target_membership_labels",
                pa.bool_(),
                "Whether the attacker had true membership labels; best_of, strongest: whether a chosen score used them (choosing "
                "always does)",
            ),
            (
                "n_references",
                pa.int64(),
                "Models of other seeds that an attack on a cohort used against this target; null for other attacks",
            ),
            ("n_members", pa.int64(), "Members that the metrics cover"),
            ("n_non_members", pa.int64(), "Non-members that the metrics cover"),
            (
                "auc",
                pa.float64(),
                "Area under the ROC curve; best_of, strongest: chosen on each half, measured on the other. Null for decisions and tail",
            ),
            (
                "auc_low",
                pa.float64(),
                "Lower end of the 95 % interval of auc, over examples. If labels were used, it also covers fitting and choosing on a "
                "half: as wide as if the halves' errors had a correlation of 1 (best_of, strongest: .36, unless both choices were "
                "fitted)",
            ),
            ("auc_high", pa.float64(), "Upper end of the 95 % interval of auc, as for auc_low"),
            (
                "null_auc",
                pa.float64(),
                "AUC of the same attack on a membership that fair coins tossed anew, and by which no model was trained; about .5. For "
                "an attack on one target: of its scores, which do not change, for they use no membership labels. Null unless the split "
                "is coins or coin_pairs; null too for scores that were fitted on labels, since they would have to be fitted again. "
                "strongest: of the selection among the candidates that were not fitted on labels; null if there is none",
            ),
            ("advantage", pa.float64(), "Attacker advantage, the maximum of |TPR − FPR| over thresholds (optimistic)"),
            (
                "advantage_null",
                pa.float64(),
                "Mean advantage of random guessing with the same counts and ties",
            ),
            (
                "balanced_accuracy",
                pa.float64(),
                "Mean of TPR and TNR, threshold chosen on one half and measured on the other, both ways; of decisions, their own",
            ),
            *interval_columns(
                "decided_tpr",
                "Share of the members that an attack without a ranking (blind_mi) decided to be members, with its 95 % Clopper-Pearson "
                "interval. Such an attack has no AUC; null for all others",
            ),
            *interval_columns("decided_fpr", "Share of the non-members that it decided to be members, likewise"),
            *tpr_columns("0.001", "0.1 %", "10,000"),
            *tpr_columns("0.01", "1 %", "1,000"),
            *tpr_columns("0.1", "10 %", "100"),
            *tnr_columns("0.001", "0.1 %", "10,000"),
            *tnr_columns("0.01", "1 %", "1,000"),
            *tnr_columns("0.1", "10 %", "100"),
            ("n_tied", pa.int64(), "Examples that share their score with another example"),
            ("largest_tie", pa.int64(), "The most examples that share one score; 1 where none do"),
            (
                "epsilon_lower_bound",
                pa.float64(),
                "Lower bound on ε from this one run at 95 % confidence, for this score alone: the largest of several is not a bound. "
                "Null unless the split is coins or coin_pairs and the attacker has no membership labels of this target",
            ),
            ("audit_delta", pa.float64(), "δ of epsilon_lower_bound: that of the target's guarantee, or 1e-5"),
            ("candidates", pa.list_(pa.string()), "best_of, strongest: the scores compared, as attack/score"),
            (
                "selected_scores",
                pa.list_(pa.string()),
                "best_of, strongest: the score chosen on the first half and measured on the second, and the other way round",
            ),
            (
                "paper_protocol_auc",
                pa.float64(),
                "best_of, strongest: the largest AUC over the candidates, on the same data that it is reported on (optimistic, as in "
                "the papers)",
            ),
            ("paper_protocol_score", pa.string(), "best_of, strongest: the candidate with paper_protocol_auc"),
            ("attack_time_s", pa.float64(), "Seconds that the attack took, including shadow training"),
        ],
    ),
    "scores": (
        "The raw score of every example, so that a new metric needs no new training.",
        [
            KEY,
            ATTACK_KEY,
            ("score_name", pa.string(), "Which of the attack's scores"),
            ("example_id", pa.int64(), "Index in the dataset, as in outputs"),
            ("is_member", pa.bool_(), "Whether the target was trained on it"),
            ("score", pa.float64(), "Higher means more likely a member; of decisions (diff_w), 1 for a member, else 0"),
            (
                "fold",
                pa.int64(),
                "The example's half; score is from an attacker fitted on the other half. Null if not fitted on labels",
            ),
            (
                "selection_score",
                pa.float64(),
                "For choosing between attacks: like score, but out of fold from labels of the example's half only. Null if fold is",
            ),
        ],
    ),
    "reconstructions": (
        "One row per target, inversion attack and layer. Errors are per pixel on images in [0, 1].",
        [
            KEY,
            ATTACK_KEY,
            ("layer_index", pa.int32(), "Position of the cut point, from 1 at the input"),
            ("layer", pa.string(), "Name of the cut point"),
            ("mse_members", pa.float64(), "Mean squared error on training examples of the target"),
            (
                "mse_non_members",
                pa.float64(),
                "Mean squared error on non-members; under official these are test examples",
            ),
            ("mse_test", pa.float64(), "Mean squared error on test examples"),
            (
                "mse_gap",
                pa.float64(),
                "mse_non_members − mse_members: above zero, members are reconstructed better (or, under official, the sets differ)",
            ),
            ("mse_constant", pa.float64(), "Control: error on the test examples of the attacker's mean image"),
            (
                "mse_untrained",
                pa.float64(),
                "Control: error on the test examples with a freshly initialized target; null if not requested",
            ),
            ("n_attacker", pa.int64(), "Examples that the decoder was trained on"),
            ("n_members", pa.int64(), "Members it was measured on"),
            ("n_non_members", pa.int64(), "Non-members it was measured on"),
            ("n_test", pa.int64(), "Test examples it was measured on"),
            (
                "examples",
                pa.list_(
                    pa.struct(
                        [
                            ("example_id", pa.int64()),
                            ("mse", pa.float64()),
                            ("original_png", pa.binary()),
                            ("reconstruction_png", pa.binary()),
                        ]
                    )
                ),
                "A few test examples with their reconstructions, as PNG; the same ones for every defense",
            ),
        ],
    ),
}

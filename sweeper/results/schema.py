"""The declared Parquet tables: every column with its type and meaning.

`docs/schema.md` is generated from this file, and a test keeps the two equal. If you change a column, increase
`SCHEMA_VERSION`.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 6

_KEY = ("target_id", pa.string(), "Hash of everything that makes the target; joins all tables")
_ATTACK_KEY = (
    "attack_id",
    pa.string(),
    "Hash of the attack's configuration; with target_id it identifies one attack run. For attacks on a cohort and strongest: "
    "comparison_id",
)
_COMPARISON_KEY = (
    "comparison_id",
    pa.string(),
    "Hash of the comparison's configuration, its targets, and the records that it reads",
)

_CAUSES = (
    "Why it failed: error (an exception), diverged (the loss is not a number), gpu_memory (out of memory on the GPU), "
    "time_limit, process_died (a crash, or killed for memory), worker_lost (its worker or node was lost); null if finished"
)


def _tpr_columns(fpr: str, percent: str, needed: str) -> list[tuple[str, pa.DataType, str]]:
    name = f"tpr_at_fpr_{fpr}"
    return [
        (
            name,
            pa.float64(),
            f"TPR at an expected FPR of {percent}, ties broken at random; null with fewer than {needed} non-members",
        ),
        (f"{name}_low", pa.float64(), f"Lower end of the 95 % interval of {name}, over members and the threshold"),
        (f"{name}_high", pa.float64(), f"Upper end of the 95 % interval of {name}"),
    ]


def _interval_columns(name: str, text: str) -> list[tuple[str, pa.DataType, str]]:
    return [
        (name, pa.float64(), text),
        (f"{name}_low", pa.float64(), f"Lower end of the interval of {name}"),
        (f"{name}_high", pa.float64(), f"Upper end of the interval of {name}"),
    ]


def _tnr_columns(fnr: str, percent: str, needed: str) -> list[tuple[str, pa.DataType, str]]:
    name = f"tnr_at_fnr_{fnr}"
    return _interval_columns(
        name,
        f"tail: share of the non-members whose loss exceeds that of all but {percent} of the members. Over models it tracks the TPR of "
        "LiRA at a low FPR, by a fitted curve that is not applied here; it says of no example whether it is a member. Null with "
        f"fewer than {needed} members",
    )


_TABLES: dict[str, tuple[str, list[tuple[str, pa.DataType, str]]]] = {
    "trials": (
        "One row per target: its configuration, whether it finished, its accuracy, its guarantee.",
        [
            ("schema_version", pa.int32(), "Version of these tables"),
            _KEY,
            ("sweep", pa.string(), "Name of the sweep that trained it"),
            ("part", pa.string(), "First part of the sweep that has it"),
            ("parts", pa.list_(pa.string()), "All parts of the sweep that have it"),
            ("dataset", pa.string(), "Dataset, by the label that the sweep gives it"),
            (
                "split",
                pa.string(),
                "official, half, quarters, coins or coin_pairs: where members and non-members come from",
            ),
            ("architecture", pa.string(), "Architecture, by the label that the sweep gives it"),
            ("optimizer", pa.string(), "Optimizer, by the label that the sweep gives it"),
            ("defense", pa.string(), "Defense, by the label that the sweep gives it"),
            ("mechanism", pa.string(), "Name of the private mechanism among the defenses; null if there is none"),
            (
                "twin_id",
                pa.string(),
                "target_id of the same training without its mechanism: same seed, initialization and batches; not every sweep has one. "
                "Null without a mechanism, or if an accounted one has its own batches (paired_batches)",
            ),
            (
                "seed",
                pa.int64(),
                "Seed of the trial; random streams derive from it (noise also from target_id); keep it secret if you release the model",
            ),
            ("config", pa.string(), "Resolved configuration as canonical JSON, defaults spelled out"),
            ("status", pa.string(), "finished or failed"),
            ("error", pa.string(), "Text of the error of a failed trial, else null"),
            ("cause", pa.string(), _CAUSES),
            ("attempts", pa.int32(), "Number of starts up to this row, by any launch, including lost workers"),
            ("n_train", pa.int64(), "Examples the target was trained on (its members)"),
            ("n_non_members", pa.int64(), "Examples that membership attacks are given as non-members"),
            ("n_test", pa.int64(), "Examples that test accuracy is measured on"),
            ("dataset_sha256", pa.string(), "SHA-256 of the images and labels that were used"),
            ("normalization_mean", pa.list_(pa.float64()), "Subtracted from inputs in [0, 1], per channel"),
            ("normalization_std", pa.list_(pa.float64()), "Divisor after the subtraction, per channel"),
            ("epochs", pa.int32(), "Passes over the training data that were requested"),
            ("batch_size", pa.int32(), "Batch size; the expected one under Poisson sampling"),
            ("learning_rate", pa.float64(), "Learning rate of the optimizer"),
            ("steps", pa.int64(), "Optimizer steps actually taken"),
            (
                "train_accuracy",
                pa.float64(),
                "Fraction of training examples classified correctly, in eval mode, at the end",
            ),
            ("train_loss", pa.float64(), "Mean cross-entropy in nats on the training examples, eval mode"),
            ("test_accuracy", pa.float64(), "Fraction of test examples classified correctly"),
            ("test_loss", pa.float64(), "Mean cross-entropy in nats on the test examples"),
            ("weights_sha256", pa.string(), "SHA-256 of the target's weights file"),
            ("load_time_s", pa.float64(), "Seconds to load the dataset; not part of other times"),
            (
                "first_step_time_s",
                pa.float64(),
                "Seconds of the first step (lazy set-up, compilation); not part of other times",
            ),
            ("train_time_s", pa.float64(), "Seconds of all other steps; evaluation is excluded"),
            ("seconds_per_step", pa.float64(), "train_time_s over the steps it covers; null for a single step"),
            ("epsilon_target", pa.float64(), "ε that was requested; null if none was"),
            ("epsilon_spent", pa.float64(), "ε proved for the steps actually taken; null if there is no guarantee"),
            ("delta", pa.float64(), "δ of the guarantee; null if there is none"),
            ("accountant", pa.string(), "prv or rdp: the accountant that computed epsilon_spent"),
            ("adjacency", pa.string(), "Neighboring relation of the guarantee"),
            ("sampling", pa.string(), "How batches were drawn: poisson or shuffled"),
            (
                "noise_multiplier",
                pa.float64(),
                "The accounted noise over max_grad_norm; for noised_quantile, that of sum and count together; null without accounting",
            ),
            (
                "rdp",
                pa.list_(pa.struct([("order", pa.float64()), ("divergence", pa.float64())])),
                "Rényi divergence of the whole training at each order (Mironov 2017). For runs that share neither "
                "noise nor batches, the sums at each order convert to the ε of releasing all of them. Null without a guarantee",
            ),
            (
                "noise_source",
                pa.string(),
                "seed: noise derives from seed and target_id, no two targets share it; system: it comes from the operating system's "
                "cryptographic generator (secure_noise), and the target cannot be reproduced; null without a mechanism",
            ),
            (
                "paired_batches",
                pa.bool_(),
                "Whether accounted mechanisms drew batches and dropout masks from the seed alone: targets of one seed then share "
                "them, and no guarantee covers releasing two of them",
            ),
            ("noise_scale", pa.float64(), "Standard deviation of the mechanism's noise, in noise_unit"),
            (
                "noise_unit",
                pa.string(),
                "clip_norm or absolute; noise is on each gradient for noise_then_clip, else on the sum over a batch",
            ),
            ("clipping", pa.string(), "fixed, quantile, quantile_per_layer or noised_quantile; null without mechanism"),
            (
                "max_grad_norm",
                pa.float64(),
                "L2 norm that each example's gradient is clipped to; null if it changes",
            ),
            ("sample_rate", pa.float64(), "Probability that an example is in a Poisson batch; null if shuffled"),
            (
                "epsilon_gdp",
                pa.float64(),
                "ε by the Gaussian-DP central limit: an approximation that falls below the true ε, never a guarantee",
            ),
            ("no_guarantee_reason", pa.string(), "Why epsilon_spent is null, in words"),
            ("sweeper_version", pa.string(), "Version of sweeper"),
            (
                "git_commit",
                pa.string(),
                "Commit of the checkout that the trial's process ran from, null if there was none",
            ),
            (
                "git_dirty",
                pa.bool_(),
                "Whether tracked files differed from that commit, or the commit lacks a file behind component_sha256",
            ),
            (
                "component_sha256",
                pa.string(),
                "SHA-256 of the source that made the target: its dataset, architecture, defenses, the training, and what these import "
                "of ours or of their own package",
            ),
            ("python_version", pa.string(), "Version of Python"),
            ("torch_version", pa.string(), "Version of PyTorch"),
            ("opacus_version", pa.string(), "Version of Opacus"),
            ("device", pa.string(), "Name of the GPU, or cpu"),
            ("machine", pa.string(), "Processor architecture and model"),
            ("threads", pa.int32(), "CPU threads that PyTorch used"),
            ("started_at", pa.timestamp("us", tz="UTC"), "When the trial was started"),
        ],
    ),
    "history": (
        "One row per target and epoch.",
        [
            _KEY,
            ("epoch", pa.int32(), "Epoch, from 1"),
            ("step", pa.int64(), "Steps taken at the end of the epoch"),
            (
                "train_loss",
                pa.float64(),
                "Mean cross-entropy over the epoch's batches, in train mode, each at its own step",
            ),
            ("train_accuracy", pa.float64(), "Fraction classified correctly over the epoch's batches, in train mode"),
            ("test_loss", pa.float64(), "Mean cross-entropy on the test examples; null if it was not evaluated"),
            (
                "test_accuracy",
                pa.float64(),
                "Fraction of test examples classified correctly; null if it was not evaluated",
            ),
            ("epsilon_spent", pa.float64(), "ε of the steps so far; null if there is no guarantee"),
            (
                "clip_norm",
                pa.float64(),
                "Clip norm at the end of the epoch (of all layers together if each has its own); null without a mechanism",
            ),
            (
                "clipped_fraction",
                pa.float64(),
                "Fraction of the epoch's gradients (noised, if noise comes first) above the clip norm; null without a mechanism. "
                "It is computed from private data, and no guarantee covers it",
            ),
            ("train_time_s", pa.float64(), "Seconds of training in this epoch, evaluation not counted"),
        ],
    ),
    "outputs": (
        "The target's output on every pool and test example, in eval mode.",
        [
            _KEY,
            ("example_id", pa.int64(), "Index in the dataset; test examples follow the training examples"),
            ("role", pa.string(), "member, non_member, shadow_in, shadow_out, test or unused"),
            ("label", pa.int64(), "True class"),
            ("logits", pa.list_(pa.float32()), "The model's logits, one per class"),
        ],
    ),
    "attacks": (
        "One row per target, attack and score; best_of rows compare the scores of attacks on one target alone, strongest rows those of "
        "attacks on its cohort too.",
        [
            ("schema_version", pa.int32(), "Version of these tables"),
            _KEY,
            _ATTACK_KEY,
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
            ("cause", pa.string(), _CAUSES),
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
            *_interval_columns(
                "decided_tpr",
                "Share of the members that an attack without a ranking (blind_mi) decided to be members, with its 95 % Clopper-Pearson "
                "interval. Such an attack has no AUC; null for all others",
            ),
            *_interval_columns("decided_fpr", "Share of the non-members that it decided to be members, likewise"),
            *_tpr_columns("0.001", "0.1 %", "10,000"),
            *_tpr_columns("0.01", "1 %", "1,000"),
            *_tpr_columns("0.1", "10 %", "100"),
            *_tnr_columns("0.001", "0.1 %", "10,000"),
            *_tnr_columns("0.01", "1 %", "1,000"),
            *_tnr_columns("0.1", "10 %", "100"),
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
            _KEY,
            _ATTACK_KEY,
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
    "comparisons": (
        "One row per comparison of a group of targets: its kind, its targets, and whether it finished.",
        [
            ("schema_version", pa.int32(), "Version of these tables"),
            _COMPARISON_KEY,
            ("comparison", pa.string(), "Name of the comparison, such as tpvd"),
            ("config", pa.string(), "The comparison's configuration as JSON, defaults spelled out"),
            (
                "members",
                pa.list_(pa.string()),
                "target_id of each target of the group; the group is named after the first",
            ),
            ("status", pa.string(), "finished or failed"),
            ("error", pa.string(), "What went wrong; null if finished"),
            ("cause", pa.string(), _CAUSES),
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
            _COMPARISON_KEY,
            ("attack", pa.string(), "Name of the attack, as in attacks"),
            ("score_name", pa.string(), "Which of the attack's scores; for strongest, selected"),
            ("is_first", pa.bool_(), "Whether it is the score that stands for the attack"),
            ("n_targets", pa.int64(), "Seeds that were attacked; each is a reference against the others"),
            ("n_units", pa.int64(), "Independent units of the intervals: seeds, or pairs of complements"),
            ("n_examples", pa.int64(), "Examples of the pool"),
            *_interval_columns(
                "auc", "Mean AUC over the targets, with Student's interval over seeds (coin_pairs: over pairs)"
            ),
            *_interval_columns("null_auc", "The same of the null, as null_auc in attacks: .5 for a sound attack"),
            *(
                column
                for fpr, percent in (("0.001", "0.1 %"), ("0.01", "1 %"), ("0.1", "10 %"))
                for column in _interval_columns(
                    f"tpr_at_fpr_{fpr}",
                    f"Mean over the targets of the TPR at an FPR of {percent}, with Student's interval; null where a target has too "
                    "few non-members",
                )
            ),
            *(
                column
                for fpr, percent in (("0.0001", "0.01 %"), ("0.001", "0.1 %"), ("0.01", "1 %"))
                for column in (
                    *_interval_columns(
                        f"pooled_tpr_at_fpr_{fpr}",
                        f"TPR at an FPR of {percent} over all targets together, not calibrated per example; its interval resamples "
                        "targets and examples. Null with too few non-members",
                    ),
                    *_interval_columns(
                        f"calibrated_tpr_at_fpr_{fpr}",
                        "The same after each example's scores were standardized by those of other targets without it",
                    ),
                )
            ),
            (
                "top_share",
                pa.float64(),
                "Share of the pooled true positives that the most exposed 1 % of the examples make, at the lowest FPR that can be "
                "told; .01 without a leak. Examples are ranked by one half of the targets and counted in the other",
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
            _COMPARISON_KEY,
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
            *_interval_columns(
                "found_at_fpr_0.001",
                "Share of the targets with it that score it above the threshold of an FPR of 0.1 % over all targets, with its "
                "Clopper-Pearson interval; null where that FPR cannot be told",
            ),
            *_interval_columns("found_at_fpr_0.01", "The same at an FPR of 1 %"),
            ("image_png", pa.binary(), "The image of the most exposed examples, as PNG; else null"),
        ],
    ),
    "tpvd": (
        "One row per target with a mechanism whose twin is finished too: how far the mechanism moved the weights.",
        [
            _COMPARISON_KEY,
            _KEY,
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
    "reconstructions": (
        "One row per target, inversion attack and layer. Errors are per pixel on images in [0, 1].",
        [
            _KEY,
            _ATTACK_KEY,
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


def _schema(name: str) -> pa.Schema:
    purpose, columns = _TABLES[name]
    fields = [pa.field(column, kind, metadata={"description": text}) for column, kind, text in columns]
    return pa.schema(
        fields, metadata={"sweeper_table": name, "schema_version": str(SCHEMA_VERSION), "purpose": purpose}
    )


SCHEMAS: dict[str, pa.Schema] = {name: _schema(name) for name in _TABLES}
"""The schema of each table, by table name."""


def markdown() -> str:
    """The text of `docs/schema.md`."""
    lines = [
        "# The Parquet tables",
        "",
        f"Schema version {SCHEMA_VERSION}. Generated from `sweeper/results/schema.py`; a test keeps them equal.",
        "Every table is one file, `RESULTS/NAME.parquet`, gathered when a launch ends and by `sweeper gather`.",
        "While a sweep runs, the same rows are in `RESULTS/parts/NAME/`, one file per target, attack or comparison.",
        "Weights are `RESULTS/weights/TARGET_ID.safetensors`. Null means: not measured or not defined.",
    ]
    for name, (purpose, columns) in _TABLES.items():
        lines += ["", f"## {name}", "", purpose, "", "| column | type | meaning |", "| --- | --- | --- |"]
        lines += [
            f"| `{column}` | {str(kind).replace('|', chr(92) + '|')} | {text.replace('|', chr(92) + '|')} |"
            for column, kind, text in columns
        ]
    return "\n".join(lines) + "\n"

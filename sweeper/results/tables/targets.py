"""Tables of trained targets."""

from __future__ import annotations

import pyarrow as pa

from sweeper.results.tables.columns import CAUSES, KEY, Tables

TABLES: Tables = {
    "trials": (
        "One row per target: its configuration, whether it finished, its accuracy, its guarantee.",
        [
            ("schema_version", pa.int32(), "Version of these tables"),
            KEY,
            ("sweep", pa.string(), "Name of the sweep that trained it"),
            ("part", pa.string(), "First part of the sweep that has it"),
            ("parts", pa.list_(pa.string()), "All parts of the sweep that have it"),
            ("dataset", pa.string(), "Dataset, by the label that the sweep gives it"),
            (
                "split",
                pa.string(),
                "official, half, quarters, coins or coin_pairs: where members and non-members come from",
            ),
            (
                "split_label",
                pa.string(),
                "The split with its canaries, by the label that the sweep gives it; without canaries, its name",
            ),
            (
                "canary_kind",
                pa.string(),
                "What the canaries are: clean, mislabeled, blank, outlier_folder, duplicate_mislabeled or extreme. Attacks tell which "
                "of these were members, and all other examples of the pool were. Null without canaries: all examples of the pool are "
                "attacked",
            ),
            ("n_canaries", pa.int64(), "Canaries, copies and their originals together; null without"),
            ("canary_seed", pa.int64(), "Seed that chose the canaries, the same for every target; null without"),
            (
                "n_reference",
                pa.int64(),
                "Examples of the pool that no target is trained on and no attack asks of, for defenses that need such",
            ),
            (
                "n_validation",
                pa.int64(),
                "Examples of the pool that only choose among settings: nothing else is done with them",
            ),
            (
                "adaptive_attacks",
                pa.list_(pa.string()),
                "Scores of cohort attacks, as attack/score_name, that adapt to the defense; fixed before any result",
            ),
            (
                "worst_canaries",
                pa.list_(pa.string()),
                "Kinds of canaries, as in canary_kind, that expose the defense most; fixed before any result",
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
            (
                "search_run",
                pa.int64(),
                "Number of the run in its arm's search for settings: it chose them and is not evaluated. Null for all other targets",
            ),
            ("config", pa.string(), "Resolved configuration as canonical JSON, defaults spelled out"),
            ("status", pa.string(), "finished, failed, or stopped: a run of a search that was stopped early"),
            ("error", pa.string(), "Text of the error of a failed trial, else null"),
            ("cause", pa.string(), CAUSES),
            ("attempts", pa.int32(), "Number of starts up to this row, by any launch, including lost workers"),
            ("n_train", pa.int64(), "Examples that it was given to train on"),
            ("n_members", pa.int64(), "Members that attacks are to find: all of these, or the canaries among them"),
            ("n_non_members", pa.int64(), "Examples that membership attacks are given as non-members"),
            ("n_test", pa.int64(), "Examples that test accuracy is measured on"),
            ("dataset_sha256", pa.string(), "SHA-256 of the inputs and labels that were used"),
            (
                "normalization_mean",
                pa.list_(pa.float64()),
                "Subtracted from images in [0, 1], per channel; empty for tables",
            ),
            (
                "normalization_std",
                pa.list_(pa.float64()),
                "Divisor after the subtraction, per channel; empty for tables",
            ),
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
            (
                "validation_accuracy",
                pa.float64(),
                "Fraction of validation examples classified correctly; null without such",
            ),
            ("validation_loss", pa.float64(), "Mean cross-entropy in nats on the validation examples"),
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
            (
                "search_id",
                pa.string(),
                "Identity of the search that chose the settings; null if they were given. Settings that were chosen by hand "
                "have no price here",
            ),
            ("search_runs", pa.int64(), "Runs of that search; every arm of a sweep has the same number"),
            (
                "search_law",
                pa.string(),
                "How that number came about: fixed, or the random law and its mean of a private search",
            ),
            ("search_objective", pa.string(), "What that search maximized; null without one"),
            (
                "search_basis",
                pa.string(),
                "How the ε of that search was computed, or why it has none",
            ),
            ("epsilon_shown", pa.string(), "Which ε the sweep asks to report first: run or search; both are reported"),
            ("epsilon_run", pa.float64(), "ε of one run of that search; null if its runs have no guarantee"),
            (
                "epsilon_with_search",
                pa.float64(),
                "ε, at the same δ, of that search if its best run is released: by Papernot & Steinke 2022 for a private search, else "
                "by composition of all runs. It counts the examples that runs are trained on, not those that choose among "
                "them. Null if nothing covers the choice, for one by an attack's results",
            ),
            (
                "epsilon_trained_anew",
                pa.float64(),
                "The same if the best settings then train one more model on the same examples, which is released as well",
            ),
            (
                "accountant",
                pa.string(),
                "prv or rdp: the accountant that computed epsilon_spent; rdp where ε is too large for prv",
            ),
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
            KEY,
            ("epoch", pa.int32(), "Epoch, from 1"),
            ("step", pa.int64(), "Steps taken at the end of the epoch"),
            (
                "train_loss",
                pa.float64(),
                "Mean training loss over the epoch's batches, in train mode, each at its own step: cross-entropy, unless a defense "
                "changes it",
            ),
            ("train_accuracy", pa.float64(), "Fraction classified correctly over the epoch's batches, in train mode"),
            (
                "test_loss",
                pa.float64(),
                "Mean cross-entropy of the model's own answers on the test examples, before a defense edits them; null if it was "
                "not evaluated",
            ),
            (
                "test_accuracy",
                pa.float64(),
                "Fraction of test examples that the model's own answers classify correctly; null if it was not evaluated",
            ),
            (
                "held_out_loss",
                pa.float64(),
                "Mean cross-entropy on the members that early stopping holds out; null without it",
            ),
            (
                "validation_accuracy",
                pa.float64(),
                "Fraction of validation examples classified correctly; null without such, or if it was not evaluated",
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
            KEY,
            ("example_id", pa.int64(), "Index in the dataset; test examples follow the training examples"),
            (
                "role",
                pa.string(),
                "member, non_member, shadow_in, shadow_out, test, background (trained on, but not attacked), reference, validation, or "
                "unused",
            ),
            ("label", pa.int64(), "True class"),
            ("logits", pa.list_(pa.float32()), "The model's logits, one per class"),
        ],
    ),
}

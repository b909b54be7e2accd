"""Audits models that sweeper did not train: a random forest of scikit-learn and boosted trees of XGBoost, on a table.

    python examples/audit/tree_models.py

Sixteen models of each kind are trained on halves of the table that coins draw, so that they can attack each other. Which records an
attacker finds, and the metrics for `sweeper gate`, are written beside the working directory's other files, into `audit/`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from xgboost import XGBClassifier

import sweeper

N_MODELS = 16
MODELS: dict[str, Callable[[int], RandomForestClassifier | XGBClassifier]] = {
    "random_forest": lambda seed: RandomForestClassifier(n_estimators=50, random_state=seed, n_jobs=1),
    "xgboost": lambda seed: XGBClassifier(n_estimators=50, max_depth=4, random_state=seed, n_jobs=1),
}


def main(folder: Path = Path("audit")) -> None:
    """Train and audit both kinds of models, and print what the strongest attack sees of each."""
    folder.mkdir(exist_ok=True)
    inputs, label = load_breast_cancer(return_X_y=True)
    # One coin for each model and record: exact halves would tell an attacker who counts
    is_member = np.random.default_rng(0).random((N_MODELS, len(label))) < 0.5
    for name, make in MODELS.items():
        fitted = [make(seed).fit(inputs[own], label[own]) for seed, own in enumerate(is_member)]
        probabilities = np.stack([model.predict_proba(inputs) for model in fitted])
        accuracy = np.mean(
            [(each[~own].argmax(1) == label[~own]).mean() for each, own in zip(probabilities, is_member, strict=True)]
        )
        alone = sweeper.audit(is_member=is_member[0], label=label, probabilities=probabilities[0]).metrics
        together = sweeper.audit(is_member=is_member, label=label, probabilities=probabilities)
        together.save(folder / f"{name}.parquet")
        together.records.to_parquet(folder / f"{name}_records.parquet")
        lira = together.metrics.set_index("score_name").loc["online_log_odds"]
        print(f"{name}: accuracy on other records {accuracy:.3f}")
        print(f"  best threshold on one model: AUC {alone['auc'].max():.3f}")
        print(f"  LiRA with {N_MODELS} models: AUC {lira['auc']:.3f} [{lira['auc_low']:.3f}, {lira['auc_high']:.3f}]")
        print(f"  the same on a null: AUC {lira['null_auc']:.3f}")


if __name__ == "__main__":
    main()

"""`sweeper audit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sweeper.cli.console import err, out, print_json, user_errors
from sweeper.cli.options import complete_attack
from sweeper.errors import UserError

if TYPE_CHECKING:
    from sweeper.auditing.outputs import StoredCohort


@user_errors
def audit(
    outputs: Annotated[
        Path,
        typer.Argument(
            help="Parquet file or folder: is_member, example_id, label, and logits or probabilities; or score, loss, or prediction "
            "and target. With a column model, or as arrays in .npz: several models that attack each other."
        ),
    ],
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Attack to run; repeatable. \\[default: all]", autocompletion=complete_attack, show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout, and nothing else.")] = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the metrics as Parquet too.")] = None,
    per_record: Annotated[
        Path | None,
        typer.Option(
            help="Write each record's scores as Parquet: which ones an attacker would find.", show_default=False
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            help="log_odds or tensorflow_privacy: the form of the threshold scores. In the latter, confident outputs tie, and scores "
            "of equal outputs can differ by rounding."
        ),
    ] = "log_odds",
    dtype: Annotated[
        str, typer.Option(help="float64 or float32: the arithmetic of --form tensorflow_privacy; float32 ties more.")
    ] = "float64",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the trained attackers' folds.")] = 0,
) -> None:
    """Run membership attacks on the outputs of any model, trained by sweeper or not. A higher AUC is a worse leak.

    The threshold attacks (`max_posterior`, `loss`, `entropy`, `modified_entropy`) take seconds. The trained attacks
    (`logistic_regression`, `mlp`, `random_forest`, `knn`) search the grids of TensorFlow Privacy's tool and score
    out of fold, on the same membership labels: minutes for thousands of rows. Several models attack each other by `lira`, `ratio` and
    `label_only`, which see most.
    """
    from sweeper.auditing.attack import write_metrics, write_rows
    from sweeper.auditing.forms import read_stored
    from sweeper.auditing.function import audit_stored
    from sweeper.auditing.outputs import StoredCohort, StoredScores
    from sweeper.errors import unknown_name
    from sweeper.trial import provenance

    for option, value, allowed in (
        ("form", form, ("log_odds", "tensorflow_privacy")),
        ("dtype", dtype, ("float64", "float32")),
    ):
        if value not in allowed:
            raise unknown_name(option, value, allowed)
    if dtype == "float32" and form == "log_odds":
        raise UserError(
            "--dtype float32: --form log_odds computes in float64. Add --form tensorflow_privacy, or leave --dtype out."
        )
    for option, path in (("--out", out_file), ("--per-record", per_record)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"{option} {path}: the folder {path.absolute().parent} does not exist. Create it first.")
    stored = read_stored(outputs)

    def on_attack(name: str) -> None:
        err.print(f"attack {name}", style="dim", highlight=False)

    rows, records = audit_stored(
        stored, attack, seed=seed, form=form, dtype=dtype, jobs=provenance.cpu_count(), on_attack=on_attack
    )
    if out_file is not None:
        write_metrics(rows, out_file)
    if per_record is not None:
        write_rows(records, per_record)
    if as_json:
        print_json(rows)
        return
    if isinstance(stored, StoredCohort):
        _print_cohort(outputs, stored, rows)
        return
    exact = isinstance(stored, StoredScores)
    title = f"Membership inference on {outputs}"
    _print(title if exact else f"{title}, threshold scores in the form {form}, {dtype}", stored.changes, rows)


def _print(title: str, changes: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Print the metrics of one model."""
    from sweeper.cli.display import Column, Rows

    columns = [Column(heading="attack")]
    for heading in ("AUC", "95 % interval", "advantage", "of guessing", "TPR at FPR 0.1 %", "1 %", "10 %"):
        columns.append(Column(heading=heading, justify="right"))
    table = []
    for row in rows:
        cells = [f"{row['auc']:.4f}", f"{row['auc_low']:.4f}–{row['auc_high']:.4f}"]
        cells += [f"{row[name]:.4f}" for name in ("advantage", "advantage_null")]
        for name in ("tpr_at_fpr_0.001", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            cells.append("—" if row[name] is None else f"{row[name]:.4f} ({low:.4f}–{high:.4f})")
        table.append([row["attack"], *cells])
    out.print(Text(title, "bold"))
    out.print(Rows(columns, table))
    first = rows[0]
    n_examples = first["n_members"] + first["n_non_members"]
    notes = [
        *(f"Input: {change}." for change in changes),
        f"{first['n_members']} members, {first['n_non_members']} non-members. — means too few non-members (10/FPR are "
        "needed). Intervals are 95 %. The advantage is the maximum over all thresholds, on the same data it is "
        "measured on; beside it is the average for random guessing.",
    ]
    if n_examples < first["n_rows"]:
        notes.append(
            f"example_id repeats: {first['n_rows']} rows are {n_examples} examples. Each counts once, with the mean of "
            "its rows' scores, and all its rows are in the same fold."
        )
    tied = [f"{row['attack']} {row['n_tied']} (at most {row['largest_tie']} alike)" for row in rows if row["n_tied"]]
    if tied:
        notes.append(
            f"Examples whose score equals another's, of {n_examples}: {'; '.join(tied)}. A tie counts half in an AUC and "
            "is broken at random in a TPR."
        )
    for note in notes:
        out.print(note, style="dim", highlight=False, markup=False)


def _print_cohort(outputs: Path, stored: StoredCohort, rows: Sequence[dict[str, Any]]) -> None:
    """Print the metrics of models that attack each other."""
    from sweeper.cli.display import Column, Rows

    columns = [Column(heading="attack"), Column(heading="score", least=16)]
    for heading in ("AUC", "95 % interval", "null", "TPR at FPR 0.1 %", "1 %", "ε shown"):
        columns.append(Column(heading=heading, justify="right"))

    def shown(row: dict[str, Any], name: str) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        if row[name] is None:
            return "—"
        return f"{row[name]:.4f}" + ("" if low is None else f" ({low:.4f}–{high:.4f})")

    table = []
    for row in rows:
        interval = "—" if row["auc_low"] is None else f"{row['auc_low']:.4f}–{row['auc_high']:.4f}"
        rates = [shown(row, f"pooled_tpr_at_fpr_{fpr}") for fpr in ("0.001", "0.01")]
        bound = "—" if row["epsilon_lower_bound"] is None else f"{row['epsilon_lower_bound']:.2f}"
        table.append(
            [row["attack"], row["score_name"], f"{row['auc']:.4f}", interval, shown(row, "null_auc"), *rates, bound]
        )
    out.print(Text(f"Membership inference on {outputs}: {len(stored.models)} models that attack each other", "bold"))
    out.print(Rows(columns, table))
    for note in (
        *(f"Input: {change}." for change in stored.changes),
        f"{len(stored.models)} models, {len(stored.example_id)} records, each a member of some models and not of others. AUCs are "
        "means over models, TPRs of all models together, — if there are too few non-members (4/FPR are needed). The null is the attack "
        "on a membership by which no model was trained: it should be 0.5. ε shown: the models' ε is at least that, at 95 % confidence.",
    ):
        out.print(note, style="dim", highlight=False, markup=False)

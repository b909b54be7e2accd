"""`sweeper audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sweeper.cli.console import err, out, print_json, user_errors
from sweeper.cli.options import complete_attack
from sweeper.errors import UserError


@user_errors
def audit(
    outputs: Annotated[
        Path, typer.Argument(help="Parquet file or folder: example_id, is_member, label, logits or probabilities.")
    ],
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Attack to run; repeatable. \\[default: all]", autocompletion=complete_attack, show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout, and nothing else.")] = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the metrics as Parquet too.")] = None,
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
    out of fold, on the same membership labels: minutes for thousands of rows.
    """
    from sweeper.audit import attack as auditing
    from sweeper.audit.outputs import read_outputs
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
    for name in attack or ():
        if name not in auditing.ATTACK_NAMES:
            raise unknown_name("attack", name, auditing.ATTACK_NAMES)
    if out_file is not None and not out_file.absolute().parent.is_dir():
        raise UserError(f"--out {out_file}: the folder {out_file.absolute().parent} does not exist. Create it first.")
    stored = read_outputs(outputs)
    rows, _ = auditing.audit(
        stored,
        attack or auditing.ATTACK_NAMES,
        form=form,
        dtype=dtype,
        seed=seed,
        jobs=provenance.cpu_count(),
        on_attack=lambda name: err.print(f"attack {name}", style="dim", highlight=False),
    )
    if out_file is not None:
        auditing.write_metrics(rows, out_file)
    if as_json:
        print_json(rows)
        return
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
    out.print(Text(f"Membership inference on {outputs}, threshold scores in the form {form}, {dtype}", "bold"))
    out.print(Rows(columns, table))
    first = rows[0]
    n_examples = first["n_members"] + first["n_non_members"]
    notes = [
        *(f"Input: {change}." for change in stored.changes),
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

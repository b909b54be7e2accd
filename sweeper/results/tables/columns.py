"""Columns that several tables have, or that repeat in one."""

from __future__ import annotations

import pyarrow as pa

Column = tuple[str, pa.DataType, str]
"""Name, type and meaning."""
Tables = dict[str, tuple[str, list[Column]]]
"""For each table its purpose and its columns."""

KEY = ("target_id", pa.string(), "Hash of everything that makes the target; joins all tables")
ATTACK_KEY = (
    "attack_id",
    pa.string(),
    "Hash of the attack's configuration; with target_id it identifies one attack run. For attacks on a cohort and strongest: "
    "comparison_id",
)
COMPARISON_KEY = (
    "comparison_id",
    pa.string(),
    "Hash of the comparison's configuration, its targets, and the records that it reads",
)

CAUSES = (
    "Why it failed: error (an exception), diverged (the loss is not a number), gpu_memory (out of memory on the GPU), "
    "time_limit, process_died (a crash, or killed for memory), worker_lost (its worker or node was lost); null if finished"
)


def tpr_columns(fpr: str, percent: str, needed: str) -> list[Column]:
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


def interval_columns(name: str, text: str) -> list[Column]:
    return [
        (name, pa.float64(), text),
        (f"{name}_low", pa.float64(), f"Lower end of the interval of {name}"),
        (f"{name}_high", pa.float64(), f"Upper end of the interval of {name}"),
    ]


def tnr_columns(fnr: str, percent: str, needed: str) -> list[Column]:
    name = f"tnr_at_fnr_{fnr}"
    return interval_columns(
        name,
        f"tail: share of the non-members whose loss exceeds that of all but {percent} of the members. Over models it tracks the TPR of "
        "LiRA at a low FPR, by a fitted curve that is not applied here; it says of no example whether it is a member. Null with "
        f"fewer than {needed} members",
    )

"""A training in progress as one safetensors file: weights, optimizer, generators, history. Never a pickle."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.train import Checkpoint, EpochRecord, FinishedPart

_FORMAT = 3


class CheckpointError(ValueError):
    """The file is not a checkpoint of this training; the text says why."""


def to_bytes(checkpoint: Checkpoint, owner: dict[str, str]) -> bytes:
    """The checkpoint as safetensors. `owner` says what it belongs to; `from_bytes` checks it.

    ε needs no state of its own: it is computed from the number of steps, which the history holds.
    """
    tensors: dict[str, Tensor] = {}
    parts = {
        "model": checkpoint.model,
        "generators": checkpoint.generators,
        "average": checkpoint.average,
        "best": checkpoint.best,
        "companion": checkpoint.companion,
    }
    parts |= {f"finished{number}": each.model for number, each in enumerate(checkpoint.finished)}
    for part, values in parts.items():
        tensors |= {f"{part}/{name}": value for name, value in (values or {}).items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, state in checkpoint.optimizer["state"].items():
        plain[str(index)] = {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                plain[str(index)][name] = value
    if checkpoint.clip_norms is not None:
        tensors["clip_norms"] = checkpoint.clip_norms
    described = {
        "optimizer": {"state": plain, "param_groups": checkpoint.optimizer["param_groups"]},
        "history": _plain(checkpoint.history),
        "first_step_time_s": checkpoint.first_step_time_s,
        "part": checkpoint.part,
        "finished": [
            {"part": each.part, "history": _plain(each.history), "first_step_time_s": each.first_step_time_s}
            for each in checkpoint.finished
        ],
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    training = json.dumps(described)
    metadata = {"format": str(_FORMAT), "owner": _canonical(owner), "training": training}
    return save(tensors, metadata=metadata | {"sha256": _digest(tensors, training)})


def from_bytes(content: bytes, owner: dict[str, str], device: torch.device) -> Checkpoint:
    """The checkpoint in `content`, with its tensors on `device`, except for the generators' states.

    Raises:
        CheckpointError: it is damaged, has another format, or does not belong to `owner`.
    """
    try:
        metadata = metadata_of(content)
        if metadata.get("format") != str(_FORMAT) or metadata.get("owner") != _canonical(owner):
            raise CheckpointError("it was made by another version of the code, or from other data")
        tensors = load(content)
        if metadata["sha256"] != _digest(tensors, metadata["training"]):
            raise CheckpointError("it is damaged: its SHA-256 is not the recorded one")
        described = json.loads(metadata["training"])
        parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        states: dict[int, dict[str, Any]] = {
            int(index): dict(values) for index, values in described["optimizer"]["state"].items()
        }
        clip_norms = None
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            if part == "optimizer":
                index, _, key = rest.partition("/")
                states[int(index)][key] = value
            elif part == "clip_norms":
                clip_norms = value.to(device)
            else:
                parts[part][rest] = value if part == "generators" else value.to(device)
        return Checkpoint(
            model=parts["model"],
            optimizer={"state": states, "param_groups": described["optimizer"]["param_groups"]},
            generators=parts["generators"],
            clip_norms=clip_norms,
            history=_records(described["history"]),
            first_step_time_s=described["first_step_time_s"],
            average=parts["average"] or None,
            best=parts["best"] or None,
            companion=parts["companion"] or None,
            part=described["part"],
            finished=tuple(
                FinishedPart(
                    part=each["part"],
                    model=parts[f"finished{number}"],
                    history=_records(each["history"]),
                    first_step_time_s=each["first_step_time_s"],
                )
                for number, each in enumerate(described["finished"])
            ),
        )
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"it is damaged: {str(error)[:200]}") from None


def _plain(history: Sequence[EpochRecord]) -> list[dict[str, Any]]:
    return [asdict(record) for record in history]


def _records(history: list[dict[str, Any]]) -> tuple[EpochRecord, ...]:
    return tuple(EpochRecord(**record) for record in history)


def _digest(tensors: dict[str, Tensor], training: str) -> str:
    """SHA-256 of everything that a training resumes from. safetensors itself does not detect flipped bits in a tensor."""
    digest = hashlib.sha256(training.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _canonical(owner: dict[str, str]) -> str:
    return json.dumps(owner, sort_keys=True)


def metadata_of(content: bytes) -> dict[str, str]:
    """The texts in the header of safetensors, which is eight bytes for its length, then JSON.

    Raises:
        ValueError, KeyError, TypeError: there is no such header.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata: dict[str, str] = header["__metadata__"]
    return metadata

"""A target's answers to the queries about every example, as a safetensors file that is read in slices."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from attacks.base import BoolArray, IntArray
from attacks.cohort.cohort import Answers
from sweeper.results import layout
from sweeper.results.store import DamagedError, Store

DTYPE = np.float32
"""Type of the recorded logits."""
_SHA256 = "logits_sha256"
_ROWS_AT_ONCE = 4096


def size_in_bytes(n_examples: int, queries: int, n_classes: int) -> int:
    """Size of a target's answers."""
    return n_examples * queries * n_classes * np.dtype(DTYPE).itemsize


def to_bytes(
    *, example_id: IntArray, label: IntArray, in_pool: BoolArray, is_member: BoolArray, logits: npt.NDArray[np.floating]
) -> bytes:
    """The file's content; the arguments are as in `Answers`."""
    values = np.ascontiguousarray(logits, dtype=DTYPE)
    arrays = {"example_id": example_id, "label": label, "in_pool": in_pool, "is_member": is_member, "logits": values}
    return save(arrays, metadata={_SHA256: hashlib.sha256(values.tobytes()).hexdigest()})


def read(store: Store, target_id: str, queries: int, scratch: Path) -> Answers:
    """A target's recorded answers. Logits are read from disk as they are used; `scratch` holds copies from an object store.

    Raises:
        DamagedError: the file is missing or damaged.
        StorageError: the store cannot be read.
    """
    name = layout.answers(target_id, queries)
    path = store.storage.root / name if store.storage.is_local else scratch / Path(name).name
    if not store.storage.is_local:
        path.write_bytes(store.read_file(name))
    try:
        return _open(path)
    except FileNotFoundError:
        raise DamagedError(f"{name} in {store.location} is missing.") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise store.set_aside(name, error) from None


def _open(path: Path) -> Answers:
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in ("example_id", "label", "in_pool", "is_member")}
        expected = file.metadata()[_SHA256]
    logits = _LogitsOnDisk(path)
    digest = hashlib.sha256()
    for start in range(0, logits.shape[0], _ROWS_AT_ONCE):
        digest.update(logits[start : start + _ROWS_AT_ONCE].tobytes())
    if digest.hexdigest() != expected:
        raise ValueError("the SHA-256 of its logits is not the recorded one")
    return Answers(logits=logits, **arrays)


class _LogitsOnDisk:
    """The logits of one file."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="numpy").__enter__()  # type: ignore[no-untyped-call]
        self._logits = self._file.get_slice("logits")
        self.shape = tuple(self._logits.get_shape())

    def __getitem__(self, index: slice, /) -> npt.NDArray[np.floating]:
        start, stop, _ = index.indices(self.shape[0])  # unlike NumPy's, slices of these files must end inside them
        values: npt.NDArray[np.floating] = self._logits[start:stop]
        return values

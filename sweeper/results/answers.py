"""A target's answers to the queries about every example, as a safetensors file that is read in slices."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from attacks.base import BoolArray, IntArray
from attacks.cohort.cohort import Answers, ArrayOnDisk
from sweeper.results import layout
from sweeper.results.store import DamagedError, Store

DTYPE = np.float32
"""Type of the recorded logits."""
_SHA256 = "arrays_sha256"
_SMALL = ("example_id", "label", "in_pool", "is_member")
_ROWS_AT_ONCE = 4096


def size_in_bytes(n_examples: int, queries: int, n_classes: int) -> int:
    """Size of a target's answers."""
    return n_examples * queries * n_classes * np.dtype(DTYPE).itemsize


def to_bytes(
    *, example_id: IntArray, label: IntArray, in_pool: BoolArray, is_member: BoolArray, logits: npt.NDArray[np.floating]
) -> bytes:
    """The file's content; the arguments are as in `Answers`."""
    values = np.ascontiguousarray(logits, dtype=DTYPE)
    small = dict(zip(_SMALL, (example_id, label, in_pool, is_member), strict=True))
    return save({**small, "logits": values}, metadata={_SHA256: _sha256(small, values)})


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
        small = {name: file.get_tensor(name) for name in _SMALL}
        expected = file.metadata()[_SHA256]
    logits = _LogitsOnDisk(path)
    if _sha256(small, logits) != expected:
        raise ValueError("the SHA-256 of its arrays is not the recorded one")
    return Answers(logits=logits, **small)


def _sha256(small: dict[str, npt.NDArray[Any]], logits: ArrayOnDisk) -> str:
    digest = hashlib.sha256()
    for name in _SMALL:
        digest.update(np.ascontiguousarray(small[name]).tobytes())
    for start in range(0, logits.shape[0], _ROWS_AT_ONCE):
        digest.update(logits[start : start + _ROWS_AT_ONCE].tobytes())
    return digest.hexdigest()


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

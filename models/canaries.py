"""Canaries: a few examples of the pool, most often made unusual, whose membership alone is tossed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from models.datasets._files import EncodedImage, on_white, open_image
from models.datasets.base import DatasetError, DatasetInfo, Examples, inside
from models.seeds import Stream, numpy_generator

IntArray = npt.NDArray[np.int64]
Planted = tuple[IntArray, npt.NDArray[np.generic], IntArray]
"""Positions of examples, their new inputs, and their new labels."""

_SHADES = 256


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """`count` examples of the training pool whose membership is tossed; all others are members of every target.

    They are the first of a permutation of the pool that `seed` alone draws, so that all defenses, seeds and kinds have the same
    ones. What they become depends on `kind`:

    - `clean`: they stay as they are.
    - `mislabeled`: each gets one wrong label, uniform over the others.
    - `blank`: an image of one uniform color, and a uniform label. Gray images get shades that differ, so at most 256.
    - `outlier_folder`: one of the images in `folder` (a path below the data folder), scaled to the dataset's size, and a
      uniform label. Transparent images are composed on white, and no two may be equal.
    - `duplicate_mislabeled`: half of them stay as they are; each of the others becomes a copy of one of these with a wrong label. A
      copy is a member if and only if its original is. Only copies are attacked.
    - `extreme`, for tables: each feature gets its least or greatest value in the pool, by a fair coin, and a uniform label. No two
      rows are equal.

    A canary's label is one that only the canary itself explains, so that a model which answers it has memorized the canary.

    Source: Aerni, Zhang & Tramèr 2024, whose first 500 of a permutation these are. Deviations: `extreme` is ours; their copies
    of SELENA's canaries are of other examples than their label noise.
    """

    count: int
    kind: Literal["clean", "mislabeled", "blank", "outlier_folder", "duplicate_mislabeled", "extreme"] = "mislabeled"
    seed: int = 0
    folder: str | None = None

    revision: ClassVar[int] = 1
    """Raised when the same fields would give other canaries."""

    def __post_init__(self) -> None:
        if not self.count >= 4 or self.count != int(self.count):
            raise ValueError(
                f"count is {self.count}; it must be a whole number of at least 4, so that some are members and some are not"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0")
        if self.kind == "duplicate_mislabeled" and self.count % 2:
            raise ValueError(f"count is {self.count}; with duplicate_mislabeled it must be even, for half are copies")
        if (self.folder is not None) != (self.kind == "outlier_folder"):
            raise ValueError(
                "folder is missing; outlier_folder takes its images from there"
                if self.folder is None
                else f"folder is {self.folder!r}, but only outlier_folder reads one; the kind is {self.kind}"
            )
        if self.folder == "":
            raise ValueError("folder is empty; it must name a folder below the data folder")

    def positions(self, n_train: int) -> IntArray:
        """Their positions in the pool of `n_train` examples, in the order of the permutation.

        Raises:
            ValueError: there are more canaries than examples, or no other example is left.
        """
        if self.count >= n_train:
            raise ValueError(
                f"canaries.count is {self.count}, and the pool has {n_train} examples; at least one other must be left to train on"
            )
        order = numpy_generator(self.seed, Stream.CANARIES).permutation(n_train)
        return order[: self.count].astype(np.int64)

    def pairs(self, n_train: int) -> tuple[IntArray, IntArray]:
        """Positions of originals and of their copies; empty for other kinds than duplicates."""
        found = self.positions(n_train)
        if self.kind != "duplicate_mislabeled":
            return found[:0], found[:0]
        return found[: self.count // 2], found[self.count // 2 :]

    def check(self, info: DatasetInfo) -> None:
        """Refuse a kind that these examples cannot have.

        Raises:
            ValueError: they are images and the kind is for tables, or the reverse; or there are too few shades or examples.
        """
        self.positions(info.n_train)
        if info.is_images and self.kind == "extreme":
            raise ValueError("canaries.kind is extreme, which is for tables; for images use mislabeled or blank")
        if self.kind == "extreme" and info.shape[0] < math.log2(self.count):
            raise ValueError(
                f"canaries.count is {self.count}, but {info.shape[0]} features give only {2 ** info.shape[0]} extreme rows; "
                "take so many canaries or fewer"
            )
        if not info.is_images and self.kind in ("blank", "outlier_folder"):
            raise ValueError(f"canaries.kind is {self.kind}, which is for images; for tables use mislabeled or extreme")
        if self.kind == "blank" and info.shape[0] == 1 and self.count > _SHADES:
            raise ValueError(
                f"canaries.count is {self.count}, but gray images have only {_SHADES} shades; take so many blank canaries or fewer"
            )

    def outliers(self, data_dir: Path) -> list[Path]:
        """The images in the folder of outliers, in the order of their names; none for other kinds.

        Raises:
            DatasetError: the folder is missing, or has fewer images than there are canaries.
        """
        if self.folder is None:
            return []
        from torchvision.datasets.folder import IMG_EXTENSIONS  # slow to import

        folder = inside(data_dir, self.folder, "canaries.folder")
        paths = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in IMG_EXTENSIONS
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.is_file()
        )
        if len(paths) < self.count:
            raise DatasetError(
                f"{folder.absolute()} has {len(paths)} images, but canaries.count is {self.count}. Put as many images there, or take "
                "fewer canaries."
            )
        return paths

    def check_files(self, info: DatasetInfo, data_dir: Path) -> None:
        """Read the images that are taken from the folder of outliers, if the kind takes any.

        Raises:
            DatasetError: the folder is missing, has too few images, or one of them cannot be read or is equal to another.
        """
        if self.kind == "outlier_folder":
            self._outliers(info, data_dir, numpy_generator(self.seed, Stream.CANARIES, 1))

    def _outliers(self, info: DatasetInfo, data_dir: Path, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        paths = self.outliers(data_dir)
        chosen = [paths[index] for index in rng.permutation(len(paths))[: self.count]]
        seen: dict[bytes, Path] = {}
        images = []
        for path, image in zip(chosen, _images(chosen, info), strict=True):
            other = seen.setdefault(image.tobytes(), path)
            if other is not path:
                raise DatasetError(
                    f"{path} and {other} are equal at {info.shape[2]}x{info.shape[1]}, so their labels would contradict each other. "
                    "Remove one of them from the folder."
                )
            images.append(image)
        return np.stack(images)

    def planted(self, data: Examples, data_dir: Path) -> Examples:
        """The data with the canaries in their places. Their `example_id` stays, and the hash covers them.

        Raises:
            DatasetError: see `check_files`.
            ValueError: see `check`; or too few features of a table vary for so many different extreme rows.
        """
        self.check(data.info)
        if self.kind == "clean":
            return data
        rng = numpy_generator(self.seed, Stream.CANARIES, 1)
        at, new_inputs, new_labels = _KINDS[self.kind](self, data, data_dir, rng)
        digest = hashlib.sha256(data.sha256.encode())
        for array in (at, new_inputs, new_labels):
            digest.update(np.ascontiguousarray(array).data)
        where = torch.from_numpy(at).to(data.inputs.device)
        inputs, labels = data.inputs.clone(), data.labels.clone()
        inputs[where] = torch.from_numpy(new_inputs).to(inputs)
        labels[where] = torch.from_numpy(new_labels).to(labels)
        return replace(data, inputs=inputs, labels=labels, sha256=digest.hexdigest())


def _mislabeled(canaries: Canaries, data: Examples, data_dir: Path, rng: np.random.Generator) -> Planted:
    at = canaries.positions(data.info.n_train)
    return at, _inputs(data, at), _wrong_labels(data, at, rng)


def _blank(canaries: Canaries, data: Examples, data_dir: Path, rng: np.random.Generator) -> Planted:
    at = canaries.positions(data.info.n_train)
    size = len(at), data.info.shape[0]
    colors = rng.permutation(_SHADES)[: size[0], None] if size[1] == 1 else rng.integers(_SHADES, size=size)
    images = np.broadcast_to(colors[:, :, None, None], (len(at), *data.info.shape)).astype(np.uint8)
    return at, images, _any_labels(data, at, rng)


def _outliers(canaries: Canaries, data: Examples, data_dir: Path, rng: np.random.Generator) -> Planted:
    at = canaries.positions(data.info.n_train)
    return at, canaries._outliers(data.info, data_dir, rng), _any_labels(data, at, rng)


def _duplicates(canaries: Canaries, data: Examples, data_dir: Path, rng: np.random.Generator) -> Planted:
    originals, copies = canaries.pairs(data.info.n_train)
    return copies, _inputs(data, originals), _wrong_labels(data, originals, rng)


def _extreme(canaries: Canaries, data: Examples, data_dir: Path, rng: np.random.Generator) -> Planted:
    at = canaries.positions(data.info.n_train)
    pool = data.inputs[: data.info.n_train]
    low, high = pool.amin(0).cpu().numpy(), pool.amax(0).cpu().numpy()
    varying = int((low < high).sum())
    if varying < math.log2(len(at)):
        raise ValueError(
            f"canaries.count is {len(at)}, but {varying} features of the table vary, so there are only {2**varying} extreme rows; "
            "take so many canaries or fewer"
        )
    rows: dict[bytes, npt.NDArray[np.float32]] = {}
    while len(rows) < len(at):
        row = np.where(rng.random(len(low)) < 0.5, low, high).astype(np.float32)
        rows.setdefault(row.tobytes(), row)
    return at, np.stack(list(rows.values())), _any_labels(data, at, rng)


_KINDS: dict[str, Callable[[Canaries, Examples, Path, np.random.Generator], Planted]] = {
    "mislabeled": _mislabeled,
    "blank": _blank,
    "outlier_folder": _outliers,
    "duplicate_mislabeled": _duplicates,
    "extreme": _extreme,
}


def _inputs(data: Examples, at: IntArray) -> npt.NDArray[np.generic]:
    inputs: npt.NDArray[np.generic] = data.inputs[torch.from_numpy(at).to(data.inputs.device)].cpu().numpy()
    return inputs


def _wrong_labels(data: Examples, at: IntArray, rng: np.random.Generator) -> IntArray:
    """For each example, one of the other classes."""
    own = data.labels[torch.from_numpy(at).to(data.labels.device)].cpu().numpy()
    wrong: IntArray = (own + rng.integers(1, data.info.num_classes, size=len(at))) % data.info.num_classes
    return wrong


def _any_labels(data: Examples, at: IntArray, rng: np.random.Generator) -> IntArray:
    return rng.integers(data.info.num_classes, size=len(at))


def _images(paths: list[Path], info: DatasetInfo) -> Iterator[npt.NDArray[np.uint8]]:
    """Images of the dataset's shape, scaled by Pillow's bilinear filter."""
    channels, height, width = info.image_shape
    if channels not in (1, 3):
        raise DatasetError(
            f"Images of {channels} channels cannot be made of the outliers' files; use mislabeled or blank canaries."
        )
    for path in paths:
        with open_image(EncodedImage(name=str(path), content=path), "outliers") as file:
            image = (
                on_white(file)
                .convert("L" if channels == 1 else "RGB")
                .resize((width, height), Image.Resampling.BILINEAR)
            )
        yield np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)

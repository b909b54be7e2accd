"""A user's own image files: reading their headers, decoding their pixels."""

from __future__ import annotations

import io
import struct
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from models.datasets._images import ImageArray, ImageDataset
from models.datasets.base import (
    DatasetError,
    DatasetInfo,
    IntArray,
    RawPart,
    inside,
    kept,
    refuse_one_class,
)

_GRAY = ("1", "L", "LA", "La")
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
"""Exceptions that Pillow raises on a damaged file or one that is not an image."""
_MOST_LABELS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImage:
    """One image before decoding: `content` is the path of its file, or its bytes; `name` is its name in messages."""

    name: str
    content: Path | bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPart:
    """The part `name`, train or test. `images` yields the images at an ascending index one by one and reads no others."""

    name: str
    labels: IntArray
    images: Callable[[IntArray], Iterator[EncodedImage]]


@dataclass(frozen=True, kw_only=True)
class FolderDataset(ImageDataset):
    """A user's own images in `folder`, a path below the data folder.

    If all kept images are gray, the dataset is gray; otherwise all are read in color (RGB). Transparent images
    are composed on white. Classes are the labels that occur, numbered from 0 in ascending order. `size` resizes each image
    to a square when it is read, so files may have different sizes; `grayscale`, `crop` and `resize` are applied later and
    need images of one size.
    """

    folder: str
    size: int | None = None

    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        inside(Path(), self.folder)
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1, or null to keep the images' own size")

    @abstractmethod
    def find(self, data_dir: Path) -> tuple[EncodedPart, EncodedPart]:
        """The training and the test part under `data_dir`, with labels as stored.

        Raises:
            DatasetError: no usable data were found.
        """

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        parts = self.find(data_dir)
        classes = _classes(parts)
        return self.raw_part(parts[0], classes), self.raw_part(parts[1], classes)

    def raw_part(self, part: EncodedPart, classes: IntArray) -> RawPart:
        """The part with each label replaced by its position in `classes`, which are in ascending order."""
        return RawPart(labels=np.searchsorted(classes, part.labels), read=partial(self._decode, part))

    def raw_info(self, data_dir: Path) -> DatasetInfo:
        """Read from the headers of the kept images; no image is decoded."""
        parts = self.find(data_dir)
        classes = _classes(parts)
        train, test = (np.searchsorted(classes, part.labels) for part in parts)
        limits = self.max_train_examples, self.max_test_examples
        indexes = [kept(len(part.labels), limit, self.subset_seed) for part, limit in zip(parts, limits, strict=True)]
        refuse_one_class(train[indexes[0]], len(train), self.folder)
        shape: tuple[int, int] | None = None
        n_gray = n_transparent = 0
        for part, index in zip(parts, indexes, strict=True):
            for each in part.images(index):
                with open_image(each, part.name) as image:
                    n_gray += image.mode in _GRAY
                    n_transparent += image.has_transparency_data
                    size = image.size if self.size is None else (self.size, self.size)
                shape = shape or size
                _check_size(each, part.name, size, shape)
        assert shape is not None  # no part is empty
        total = sum(map(len, indexes))
        notes = []
        if len(classes) <= classes[-1]:
            shown = ", ".join(map(str, classes[:_MOST_LABELS])) + (", …" if len(classes) > _MOST_LABELS else "")
            notes.append(f"{len(classes)} classes occur, labeled {shown}; they are numbered 0 to {len(classes) - 1}")
        if n_transparent:
            notes.append(f"{n_transparent} of {total} images can be transparent; they are composed on white")
        if 0 < n_gray < total:
            notes.append(f"{n_gray} of {total} images are gray, the others in color; all are read in color")
        channels = 1 if n_gray == total else 3
        info = self._info(len(train), len(test), (channels, *shape[::-1]), train, test)
        return replace(info, notes=tuple(notes))

    def _decode(self, part: EncodedPart, index: IntArray) -> ImageArray:
        """The images at an ascending index, (n, channels, height, width): gray if all of them are gray, else RGB.

        Raises:
            DatasetError: an image cannot be read or has more than 8 bits, or sizes differ and `size` is not set.
        """
        images: ImageArray | None = None
        for position, each in enumerate(part.images(index)):
            with open_image(each, part.name) as image:
                pixels = _pixels(image, self.size)
            if images is None:
                images = np.empty((len(index), *pixels.shape), dtype=np.uint8)
            _check_size(each, part.name, pixels.shape[:0:-1], images.shape[:1:-1])
            if len(pixels) > images.shape[1]:
                in_gray = images
                images = np.empty((len(index), *pixels.shape), dtype=np.uint8)
                images[:position] = in_gray[:position]
            images[position] = pixels
        assert images is not None  # no part is empty
        return images


def _classes(parts: Sequence[EncodedPart]) -> IntArray:
    """The labels that occur, in ascending order."""
    return np.unique(np.concatenate([part.labels for part in parts]))


@contextmanager
def open_image(each: EncodedImage, part: str) -> Iterator[Image.Image]:
    """The open image. Its pixels are decoded on first use.

    Raises:
        DatasetError: the image cannot be read, here or in the body of the `with`.
    """
    try:
        with Image.open(each.content if isinstance(each.content, Path) else io.BytesIO(each.content)) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these at 255, not scale them
                raise ValueError(f"its mode is {image.mode}, and only images of 8 bits per channel are read")
            yield image
    except UnidentifiedImageError:
        raise DatasetError(f"{each.name} ({part}) is not an image of a known format. Replace or remove it.") from None
    except _DAMAGE as error:
        raise DatasetError(
            f"{each.name} ({part}) cannot be read as an image: {str(error).rstrip('.')}. Replace or remove it."
        ) from error


def on_white(image: Image.Image) -> Image.Image:
    """The image in gray (mode L) if it is gray, else in RGB; transparent parts are composed on white."""
    mode = "L" if image.mode in _GRAY else "RGB"
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert(mode)


def _pixels(image: Image.Image, size: int | None) -> ImageArray:
    """Pixels, gray (1, height, width) or RGB (3, height, width), composed on white; resized to a square if `size` is set."""
    image = on_white(image)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if image.mode == "L" else pixels.transpose(2, 0, 1)


def _check_size(each: EncodedImage, part: str, size: Sequence[int], first: Sequence[int]) -> None:
    if tuple(size) != tuple(first):
        raise DatasetError(
            f"{each.name} ({part}) is {size[0]}x{size[1]}, but the first image is {first[0]}x{first[1]}. Set `size` in the "
            "dataset to resize all."
        )

"""Any image dataset as folders of files, one folder per class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from models.datasets._files import EncodedImage, EncodedPart, FolderDataset
from models.datasets.base import DatasetError, IntArray, inside, not_found


@dataclass(frozen=True, kw_only=True)
class ImageFolder(FolderDataset):
    """Images in `folder/train/CLASS/*` and `folder/test/CLASS/*`; `folder` is a path below the data folder.

    Classes are numbered in alphabetical order. Hidden files and folders are skipped (`._x.png`, `.ipynb_checkpoints`,
    `__MACOSX`). `size` resizes all images to a square.
    """

    source: ClassVar[str] = "torchvision's ImageFolder layout"

    def find(self, data_dir: Path) -> tuple[EncodedPart, EncodedPart]:
        folder = inside(data_dir, self.folder)
        train, test = self._find(folder / "train"), self._find(folder / "test")
        if train.classes != test.classes:
            raise DatasetError(
                f"{folder.absolute()} has classes {', '.join(train.classes)} in train but {', '.join(test.classes)} in test."
            )
        return _part("train", train), _part("test", test)

    @staticmethod
    def _find(folder: Path) -> datasets.ImageFolder:
        try:
            return _Visible(
                str(folder),
                is_valid_file=lambda path: (
                    has_file_allowed_extension(path, IMG_EXTENSIONS)
                    and not any(map(_is_hidden, Path(path).relative_to(folder).parts))
                ),
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise not_found("image_folder", folder, f"It needs folders of images, one per class ({error}).") from error


class _Visible(datasets.ImageFolder):  # type: ignore[misc]
    """torchvision's reader, without hidden folders as classes."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = [name for name in super().find_classes(directory)[0] if not _is_hidden(name)]
        if not names:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return names, {name: number for number, name in enumerate(names)}


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _part(name: str, found: datasets.ImageFolder) -> EncodedPart:
    paths = [Path(path).absolute() for path, _ in found.samples]

    def images(index: IntArray) -> Iterator[EncodedImage]:
        for i in index.tolist():
            yield EncodedImage(name=str(paths[i]), content=paths[i])

    return EncodedPart(name=name, labels=np.asarray(found.targets, dtype=np.int64), images=images)

"""Any image dataset as folders of files, one folder per class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision import datasets

from models.datasets.base import DatasetError, FolderDataset, IntArray, RawPart, decode_images, inside, not_found


@dataclass(frozen=True, kw_only=True)
class ImageFolder(FolderDataset):
    """Images in `folder/train/CLASS/*` and `folder/test/CLASS/*`, a path below the data folder.

    Classes are numbered in alphabetical order. `size` resizes all images to a square.
    """

    source: ClassVar[str] = "torchvision's ImageFolder layout"

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        folder = inside(data_dir, self.folder)
        train, test = self._find(folder / "train"), self._find(folder / "test")
        if train.classes != test.classes:
            raise DatasetError(
                f"{folder.absolute()} has classes {', '.join(train.classes)} in train but {', '.join(test.classes)} in test."
            )
        return self._part(train), self._part(test)

    @staticmethod
    def _find(folder: Path) -> datasets.ImageFolder:
        try:
            return datasets.ImageFolder(str(folder))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise not_found("image_folder", folder, f"It needs folders of images, one per class ({error}).") from error

    def _part(self, found: datasets.ImageFolder) -> RawPart:
        paths = [path for path, _ in found.samples]

        def read(index: IntArray) -> npt.NDArray[np.uint8]:
            return decode_images(lambda i: Image.open(paths[i]), index, self.size, self.folder)

        return RawPart(labels=np.asarray(found.targets, dtype=np.int64), read=read)

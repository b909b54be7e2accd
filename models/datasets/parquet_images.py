"""Any image dataset in Parquet, in Hugging Face's layout."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from models.datasets.base import (
    DatasetError,
    FolderDataset,
    IntArray,
    RawPart,
    class_labels,
    decode_images,
    inside,
    not_found,
)


@dataclass(frozen=True, kw_only=True)
class ParquetImages(FolderDataset):
    """Parquet files `train-*.parquet` and `test-*.parquet` in `folder`, a path below the data folder.

    `image_column` holds a struct of `bytes` (an encoded image) and `path`, `label_column` whole numbers
    from 0; null finds the only column of that kind. `size` resizes all images to a square.
    """

    image_column: str | None = None
    label_column: str | None = None

    source: ClassVar[str] = "Hugging Face datasets, image layout"

    def open(self, data_dir: Path, download: bool) -> tuple[RawPart, RawPart]:
        folder = inside(data_dir, self.folder)
        return self._read(folder, "train"), self._read(folder, "test")

    def _read(self, folder: Path, part: str) -> RawPart:
        paths = sorted(folder.glob(f"{part}*.parquet"))
        if not paths:
            raise not_found("parquet_images", folder / f"{part}*.parquet", "Name the folder above it with --data DIR.")
        try:
            table = pa.concat_tables([pq.read_table(path) for path in paths])
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                f"The Parquet files in {folder.absolute()} cannot be read: {error}. Replace them."
            ) from error
        images = table.column(
            self._column(table, self.image_column, pa.types.is_struct, "image", folder)
        ).combine_chunks()
        labels = table.column(self._column(table, self.label_column, pa.types.is_integer, "label", folder))
        if "bytes" not in {images.type.field(i).name for i in range(images.type.num_fields)}:
            raise DatasetError(f"The image column in {folder.absolute()} has no field `bytes`, but {images.type}.")
        encoded = images.field("bytes")

        def read(index: IntArray) -> npt.NDArray[np.uint8]:
            return decode_images(
                lambda i: Image.open(io.BytesIO(encoded[i].as_py())), index, self.size, str(folder.absolute())
            )

        return RawPart(labels=class_labels(labels.to_numpy(), self.folder), read=read)

    @staticmethod
    def _column(table: pa.Table, wanted: str | None, is_kind: object, what: str, folder: Path) -> str:
        if wanted is not None:
            if wanted not in table.column_names:
                raise DatasetError(
                    f"{folder.absolute()} has no column '{wanted}'; it has {', '.join(table.column_names)}."
                )
            return wanted
        assert callable(is_kind)
        found = [field.name for field in table.schema if is_kind(field.type)]
        if len(found) != 1:
            raise DatasetError(
                f"{folder.absolute()} has {len(found)} columns that could be the {what}: {', '.join(found) or 'none'} of "
                f"{', '.join(table.column_names)}. Set `{what}_column`."
            )
        return str(found[0])

"""Any image dataset in Parquet, in Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.datasets._files import EncodedImage, EncodedPart, FolderDataset
from models.datasets.base import DatasetError, IntArray, class_labels, inside, not_found

_BATCH = 16
"""Number of rows read at a time; an Arrow array holds at most 2 GiB of encoded images."""
_BUFFER = 2**20
"""Bytes of a column read at a time, instead of a whole row group."""


@dataclass(frozen=True, kw_only=True)
class ParquetImages(FolderDataset):
    """Images in `train-*.parquet` and `test-*.parquet` in `folder`, a path below the data folder.

    `image_column` holds a struct of `bytes` (an encoded image) and `path`; `label_column` holds whole numbers from 0. If one
    is null, the only column of that kind is taken. `size` resizes all images to a square. Files are read in pieces; images
    are read only from row groups with at least one image to keep.
    """

    image_column: str | None = None
    label_column: str | None = None

    source: ClassVar[str] = "Hugging Face datasets, image layout"

    def find(self, data_dir: Path) -> tuple[EncodedPart, EncodedPart]:
        folder = inside(data_dir, self.folder)
        return self._find(folder, "train"), self._find(folder, "test")

    def _find(self, folder: Path, part: str) -> EncodedPart:
        paths = [path.absolute() for path in sorted(folder.glob(f"{part}*.parquet"))]
        if not paths:
            raise not_found("parquet_images", folder / f"{part}*.parquet", "Name the folder above it with --data DIR.")
        labels, image_columns = [], []
        for path in paths:
            with _opened(path) as file:
                schema = file.schema_arrow
                image = self._column(schema, self.image_column, pa.types.is_struct, "image", folder)
                label = self._column(schema, self.label_column, pa.types.is_integer, "label", folder)
                kind = schema.field(image).type
                if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
                    raise DatasetError(f"The image column in {folder.absolute()} has no field `bytes`, but {kind}.")
                image_columns.append(image)
                labels.append(file.read(columns=[label], use_threads=False).column(label).to_numpy())
        ends = np.cumsum([len(each) for each in labels])

        def images(index: IntArray) -> Iterator[EncodedImage]:
            for path, column, rows, end in zip(paths, image_columns, map(len, labels), ends.tolist(), strict=True):
                yield from _images(path, column, index[(index >= end - rows) & (index < end)] - (end - rows), part)

        return EncodedPart(name=part, labels=class_labels(np.concatenate(labels), self.folder), images=images)

    @staticmethod
    def _column(
        schema: pa.Schema, wanted: str | None, is_kind: Callable[[pa.DataType], bool], what: str, folder: Path
    ) -> str:
        if wanted is not None:
            if wanted not in schema.names:
                raise DatasetError(f"{folder.absolute()} has no column '{wanted}'; it has {', '.join(schema.names)}.")
            return wanted
        found = [field.name for field in schema if is_kind(field.type)]
        if len(found) != 1:
            raise DatasetError(
                f"{folder.absolute()} has {len(found)} columns that could be the {what}: {', '.join(found) or 'none'} of "
                f"{', '.join(schema.names)}. Set `{what}_column`."
            )
        return str(found[0])


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The open file.

    Raises:
        DatasetError: the file cannot be read, here or in the body of the `with`.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {str(error).rstrip('.')}. Replace the file.") from error


def _images(path: Path, column: str, rows: IntArray, part: str) -> Iterator[EncodedImage]:
    """The images at the given rows of a file, which are ascending."""
    with _opened(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if ((rows >= first) & (rows < end)).any():
                batches = file.iter_batches(_BATCH, row_groups=[group], columns=[f"{column}.bytes"], use_threads=False)
                for batch in batches:
                    encoded = batch.column(0).flatten()[0]  # null if the struct is null
                    for row in rows[(rows >= first) & (rows < first + len(batch))].tolist():
                        content = encoded[row - first].as_py()
                        if content is None:
                            raise DatasetError(
                                f"There is no image in row {row} of {path} ({part}): its bytes are null. Drop the row."
                            )
                        yield EncodedImage(name=f"Row {row} of {path}", content=content)
                    first += len(batch)
            first = end

"""Images as users store them: transparent, gray among color, hidden, null, broken, of one class, in very large files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from models.datasets import _files
from models.datasets.base import DatasetError
from models.datasets.cifar10 import Cifar10
from models.datasets.digits import Digits
from models.datasets.image_folder import ImageFolder
from models.datasets.parquet_images import ParquetImages
from sweeper.cli import app

APPLE_DOUBLE = bytes.fromhex("00051607 00020000 4d6163204f532058") + bytes(66)
"""The header of the files that macOS puts beside others where a disk cannot hold its metadata."""
KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def random_pixels(seed: int, channels: int, height: int = 9, width: int = 9) -> Pixels:
    """(height, width) for one channel, else (height, width, channels)."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: Pixels | Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


Part = Sequence[tuple[int, bytes | None]]


def write_folders(root: Path, train: Part, test: Part) -> ImageFolder:
    for name, part in (("train", train), ("test", test)):
        for number, (label, content) in enumerate(part):
            path = root / "p" / name / f"class{label}" / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content or b"")
    return ImageFolder(folder="p")


def write_parquet(root: Path, train: Part, test: Part) -> ParquetImages:
    (root / "p").mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("test", test)):
        images = pa.array([{"bytes": content, "path": "x.png"} for _, content in part], KIND)
        pq.write_table(
            pa.table({"image": images, "label": pa.array([label for label, _ in part])}), root / "p" / f"{name}.parquet"
        )
    return ParquetImages(folder="p")


WRITERS = pytest.mark.parametrize("write", [write_folders, write_parquet])


def labeled(contents: Sequence[bytes | None], labels: Sequence[int] = (0, 1)) -> Part:
    """In ascending order of labels, which is that of folders."""
    return sorted(((labels[i % len(labels)], content) for i, content in enumerate(contents)), key=lambda each: each[0])


# Transparency


def on_white(rgb: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[..., None] / 255.0
    return np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)


def transparent_images() -> dict[str, tuple[bytes, Pixels]]:
    """Each kind of transparency: the file, and its pixels (height, width) or (height, width, 3) on white."""
    rgb, gray, alpha = random_pixels(1, 3), random_pixels(2, 1), random_pixels(3, 1)
    black = np.zeros((9, 9, 3), dtype=np.uint8)
    keyed = rgb.copy()
    keyed[2:4, 3:5] = (1, 2, 3)
    of_palette = Image.fromarray(rgb).quantize(8)
    indices = np.asarray(of_palette)
    colors = np.array(of_palette.getpalette()[:24], dtype=np.uint8).reshape(8, 3)
    gray_keyed = np.where(gray < 128, 7, gray).astype(np.uint8)
    return {
        "all in alpha": (png(np.dstack([black, alpha])), on_white(black, alpha)),
        "color with alpha": (png(np.dstack([rgb, alpha])), on_white(rgb, alpha)),
        "nothing to see": (png(np.dstack([rgb, alpha * 0])), np.full((9, 9, 3), 255, dtype=np.uint8)),
        "opaque": (png(np.dstack([rgb, alpha * 0 + 255])), rgb),
        "gray with alpha": (
            png(Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)])),
            on_white(gray[..., None], alpha)[..., 0],
        ),
        "one transparent color": (
            png(keyed, transparency=(1, 2, 3)),
            np.where((keyed == (1, 2, 3)).all(axis=2, keepdims=True), 255, keyed).astype(np.uint8),
        ),
        "one transparent gray": (
            png(gray_keyed, transparency=7),
            np.where(gray < 128, 255, gray_keyed).astype(np.uint8),
        ),
        "one transparent color of a palette": (
            png(of_palette, transparency=3),
            np.where(indices[..., None] == 3, 255, colors[indices]).astype(np.uint8),
        ),
    }


@WRITERS
@pytest.mark.parametrize("case", transparent_images())
def test_transparent_images_are_composed_on_white_and_it_is_said(case: str, write: Any, tmp_path: Path) -> None:
    content, expected = transparent_images()[case]
    plain = png(random_pixels(9, 1 if expected.ndim == 2 else 3))
    dataset = write(tmp_path, [(0, content), (1, plain)], [(0, plain), (1, plain)])
    data = dataset.load(tmp_path)
    pixels = data.inputs[0].numpy()
    found = pixels[0] if expected.ndim == 2 else pixels.transpose(1, 2, 0)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert dataset.describe(tmp_path) == data.info
    assert dataset.describe(tmp_path).notes == ("1 of 4 images can be transparent; they are composed on white",)


# Gray among color


@WRITERS
@pytest.mark.parametrize("where", ["first", "last", "all of train", "all of test", "middle"])
def test_a_folder_is_in_color_where_any_image_is(where: str, write: Any, tmp_path: Path) -> None:
    gray_at = {"first": [0], "last": [3], "middle": [1, 2], "all of train": [0, 1, 2, 3], "all of test": [4, 5]}[where]
    pixels = [random_pixels(i, 1 if i in gray_at else 3) for i in range(6)]
    contents = [png(each) for each in pixels]
    dataset = write(
        tmp_path, list(zip([0, 0, 1, 1], contents[:4], strict=True)), list(zip([0, 1], contents[4:], strict=True))
    )
    data = dataset.load(tmp_path)
    expected = [np.broadcast_to(each, (3, 9, 9)) if each.ndim == 2 else each.transpose(2, 0, 1) for each in pixels]
    np.testing.assert_array_equal(data.inputs.numpy(), np.stack(expected))
    described = dataset.describe(tmp_path)
    assert described == data.info
    assert described.image_shape == (3, 9, 9)
    assert described.notes == (f"{len(gray_at)} of 6 images are gray, the others in color; all are read in color",)


@WRITERS
def test_a_folder_of_gray_images_stays_gray_and_nothing_is_said(write: Any, tmp_path: Path) -> None:
    contents = [png(random_pixels(0, 1)), png(Image.fromarray(random_pixels(1, 1)).convert("1"))]
    dataset = write(tmp_path, labeled(contents), labeled(contents))
    data = dataset.load(tmp_path)
    assert data.info.image_shape == (1, 9, 9)
    assert dataset.describe(tmp_path) == data.info
    assert dataset.describe(tmp_path).notes == ()


# Hidden files


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    contents = [png(random_pixels(i, 3)) for i in range(4)]
    dataset = write_folders(tmp_path, labeled(contents), labeled(contents))
    before = dataset.load(tmp_path)
    for name in (".ipynb_checkpoints", "__MACOSX", ".Trash"):
        for place in (tmp_path / "p" / "train" / name, tmp_path / "p" / "train" / "class0" / name):
            place.mkdir()
            (place / "000-checkpoint.png").write_bytes(contents[0])
    for part in ("train", "test"):
        (tmp_path / "p" / part / "class1" / "._001.png").write_bytes(APPLE_DOUBLE)
        (tmp_path / "p" / part / "class1" / ".DS_Store").write_bytes(b"x")
    after = dataset.load(tmp_path)
    assert after.sha256 == before.sha256
    assert after.info == before.info == dataset.describe(tmp_path)


def test_a_dataset_below_a_hidden_folder_is_not_hidden(tmp_path: Path) -> None:
    contents = [png(random_pixels(i, 3)) for i in range(4)]
    write_folders(tmp_path / ".cache", labeled(contents), labeled(contents))
    assert ImageFolder(folder=".cache/p").load(tmp_path).info.n_train == 4


# Classes


@WRITERS
def test_one_class_is_refused_before_training(write: Any, tmp_path: Path) -> None:
    contents = [png(random_pixels(i, 3)) for i in range(4)]
    dataset = write(tmp_path, labeled(contents, [0]), labeled(contents, [0]))
    for use in (dataset.describe, dataset.load):
        with pytest.raises(DatasetError, match=r"the 4 training examples are all of one class.*two classes or more"):
            use(tmp_path)


@WRITERS
def test_a_limit_that_keeps_one_class_is_refused_with_its_own_remedy(write: Any, tmp_path: Path) -> None:
    contents = [png(random_pixels(i, 3)) for i in range(40)]
    kind = type(write(tmp_path, [(int(i == 39), content) for i, content in enumerate(contents)], labeled(contents[:2])))
    limited = kind(folder="p", max_train_examples=3)
    for use in (limited.describe, limited.load):
        with pytest.raises(
            DatasetError, match=r"the 3 training examples are all of one class.*Raise max_train_examples"
        ):
            use(tmp_path)
    assert kind(folder="p").load(tmp_path).info.num_classes == 2


def test_a_limit_that_keeps_one_class_is_refused_for_public_datasets_too(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="'digits': the 2 training examples are all of one class"):
        for seed in range(100):  # two draws from ten classes are equal with a probability of one tenth
            Digits(max_train_examples=2, max_test_examples=2, subset_seed=seed).load(tmp_path)


@pytest.mark.parametrize("labels", [[0, 20_000_001], [0, 1, 3], [5, 7, 2**62], [1, 2, 3]])
def test_classes_are_the_labels_that_occur(labels: list[int], tmp_path: Path) -> None:
    contents = [png(random_pixels(i, 3)) for i in range(6)]
    train, test = labeled(contents, labels), labeled(contents, labels[1:])
    dataset = write_parquet(tmp_path, train, test)
    data = dataset.load(tmp_path)
    assert data.info.num_classes == len(labels)
    np.testing.assert_array_equal(np.array(labels)[data.labels.numpy()], [label for label, _ in [*train, *test]])
    described = dataset.describe(tmp_path)
    assert described == data.info
    shown = ", ".join(map(str, labels))
    last = len(labels) - 1
    assert described.notes == (f"{len(labels)} classes occur, labeled {shown}; they are numbered 0 to {last}",)


def test_labels_without_gaps_stay_and_nothing_is_said(tmp_path: Path) -> None:
    """Though each part lacks one of them."""
    contents = [png(random_pixels(i, 3)) for i in range(6)]
    dataset = write_parquet(tmp_path, labeled(contents, [0, 1]), labeled(contents, [1, 2]))
    assert dataset.load(tmp_path).labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]
    assert dataset.describe(tmp_path).notes == ()


def test_labels_of_a_copy_of_cifar_10_are_not_numbered_anew(tmp_path: Path) -> None:
    contents = [png(random_pixels(i, 3, 32, 32)) for i in range(4)]
    write_parquet(tmp_path, labeled(contents, [3, 9]), labeled(contents, [3, 9]))
    (tmp_path / "p").rename(tmp_path / "cifar10")
    assert Cifar10().load(tmp_path).labels.tolist() == [3, 3, 9, 9] * 2
    write_parquet(tmp_path, labeled(contents, [3, 10]), labeled(contents, [3, 9]))
    for path in (tmp_path / "p").iterdir():
        path.rename(tmp_path / "cifar10" / path.name)
    with pytest.raises(DatasetError, match="has the label 10; CIFAR-10's are 0 to 9"):
        Cifar10().load(tmp_path)


def test_plan_says_what_reading_changes(tmp_path: Path) -> None:
    """Once, by the label that the sweep gives the dataset."""
    content = transparent_images()["color with alpha"][0]
    plain = png(random_pixels(0, 1))
    write_parquet(tmp_path, [(i % 2 * 7, content if i % 2 else plain) for i in range(60)], [(0, plain), (7, plain)])
    sweep = tmp_path / "s.yaml"
    sweep.write_text(
        "datasets: {scans: {name: parquet_images, folder: p, size: 28}}\ndefenses: {baseline: none}\n"
        "attacks: [threshold]\nseeds: [0, 1]\ntraining: {epochs: 1, batch_size: 8, learning_rate: 0.1}\n"
    )
    result = CliRunner().invoke(app, ["plan", str(sweep), "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    for words in (
        "scans: 2 classes occur, labeled 0, 7; they are numbered 0 to 1.",
        "scans: 30 of 62 images can be transparent; they are composed on white.",
        "scans: 32 of 62 images are gray, the others in color; all are read in color.",
    ):
        assert said.count(words) == 1


# Images that are not there or cannot be read


@pytest.mark.parametrize("part", ["train", "test"])
def test_null_images_are_named_by_row_and_file(part: str, tmp_path: Path) -> None:
    contents: list[bytes | None] = [png(random_pixels(i, 3)) for i in range(40)]
    with_null = [*contents[:33], None, *contents[34:]]
    numbers = [i % 2 for i in range(40)]
    parts = {
        name: list(zip(numbers, with_null if name == part else contents, strict=True)) for name in ("train", "test")
    }
    dataset = write_parquet(tmp_path, parts["train"], parts["test"])
    for use in (dataset.describe, dataset.load):
        with pytest.raises(DatasetError, match=rf"no image in row 33 of {tmp_path}/p/{part}.parquet \({part}\)"):
            use(tmp_path)
    null_structs = pa.table({"image": pa.array([{"bytes": contents[0]}, None], KIND), "label": [0, 1]})
    pq.write_table(null_structs, tmp_path / "p" / f"{part}.parquet")
    with pytest.raises(DatasetError, match=rf"no image in row 1 of {tmp_path}/p/{part}.parquet"):
        dataset.load(tmp_path)


@WRITERS
@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("damage", ["text", "cut short", "sixteen bits", "another size"])
def test_an_image_that_cannot_be_read_is_named_with_its_part(
    damage: str, part: str, write: Any, tmp_path: Path
) -> None:
    contents: list[bytes] = [png(random_pixels(i, 3, 40, 40)) for i in range(6)]
    bad = {
        "text": b"not an image",
        "cut short": contents[2][:2000],
        "sixteen bits": png(random_pixels(1, 1, 40, 40).astype(np.uint16)),  # type: ignore[arg-type]
        "another size": png(random_pixels(2, 3, 40, 41)),
    }[damage]
    good, with_bad = (
        [(i // 3, c) for i, c in enumerate(each)] for each in (contents, [*contents[:4], bad, contents[5]])
    )
    dataset = write(tmp_path, with_bad if part == "train" else good, with_bad if part == "test" else good)
    with pytest.raises(DatasetError) as caught:
        dataset.load(tmp_path)
    place = f"{part}/class1/004.png" if write is write_folders else f"Row 4 of {tmp_path}/p/{part}.parquet"
    message = str(caught.value)
    assert place in message
    assert str(tmp_path) in message
    assert f"({part})" in message
    assert "<" not in message


# Limits and large files


@WRITERS
def test_a_limit_reads_no_image_that_it_does_not_keep(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image that is not kept is broken."""
    contents = [png(random_pixels(i, 3)) for i in range(50)]
    kind = type(write(tmp_path, [(i // 25, c) for i, c in enumerate(contents)], labeled(contents)))
    limited = kind(folder="p", max_train_examples=10, max_test_examples=5)
    data = limited.load(tmp_path)
    kept_train = set(data.example_id[:10].tolist())
    broken = [(i // 25, c if i in kept_train else b"broken") for i, c in enumerate(contents)]
    write(tmp_path, broken, labeled(contents))
    opened = []
    image = _files.open_image
    monkeypatch.setattr(_files, "open_image", lambda each, part: (opened.append(each.name), image(each, part))[1])
    assert limited.load(tmp_path).sha256 == data.sha256
    assert len(opened) == 15
    assert limited.describe(tmp_path) == data.info
    assert len(opened) == 30


def test_a_limit_skips_row_groups_without_kept_rows(tmp_path: Path) -> None:
    """The bytes of all others are overwritten in the file."""
    contents = [png(random_pixels(i, 3, 30, 30)) for i in range(40)]
    write_parquet(tmp_path, labeled(contents[:4]), labeled(contents[:4]))
    path = tmp_path / "p" / "train.parquet"
    images = pa.array([{"bytes": content, "path": None} for content in contents], KIND)
    labels = pa.array([i % 2 for i in range(40)])
    pq.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=2, compression="none")
    dataset = ParquetImages(folder="p", max_train_examples=5, subset_seed=1)
    data = dataset.load(tmp_path)
    groups = set((data.example_id[:5] // 2).tolist())
    content, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
    for group in set(range(20)) - groups:
        column = metadata.row_group(group).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    assert dataset.load(tmp_path).sha256 == data.sha256
    with pytest.raises(DatasetError, match=r"p/train.parquet cannot be read"):
        ParquetImages(folder="p").load(tmp_path)


def write_large(path: Path, image_bytes: int, n_rows: int) -> None:
    """A small file of one row group whose images, all alike, take image_bytes · n_rows when they are read."""
    content = png(random_pixels(0, 3)) + bytes(image_bytes)  # data after a PNG's end is ignored
    alike = pa.DictionaryArray.from_arrays(pa.array([0] * n_rows, pa.int32()), pa.array([content]))
    images = pa.StructArray.from_arrays([alike, pa.nulls(n_rows, pa.string())], ["bytes", "path"])
    table = pa.table({"image": images, "label": [i % 2 for i in range(n_rows)]})
    pq.write_table(table, path, dictionary_pagesize_limit=2 * image_bytes, store_schema=False)


@pytest.mark.slow
def test_more_than_two_gib_of_images_in_one_column_are_read_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    write_large(tmp_path / "p" / "train.parquet", 2**23, 270)
    write_large(tmp_path / "p" / "test.parquet", 2**10, 2)
    file = pq.ParquetFile(tmp_path / "p" / "train.parquet")
    assert file.num_row_groups == 1
    assert file.schema_arrow.field("image").type.field("bytes").type == pa.binary()
    before = pa.total_allocated_bytes()
    data = ParquetImages(folder="p", max_train_examples=5).load(tmp_path)
    np.testing.assert_array_equal(data.inputs[0].numpy(), random_pixels(0, 3).transpose(2, 0, 1))
    assert data.info.n_train == 5
    assert pa.total_allocated_bytes() <= before + 2**20

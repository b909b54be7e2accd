"""Datasets: they return what the files hold, in any layout; errors are explained in words."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import random
import threading
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as torchvision_datasets

from models.datasets import _images
from models.datasets._images import ImageDataset
from models.datasets.base import DatasetError, RawPart
from models.datasets.cifar10 import Cifar10
from models.datasets.digits import Digits
from models.datasets.fashion_mnist import FashionMnist
from models.datasets.image_folder import ImageFolder
from models.datasets.mnist import Mnist
from models.datasets.parquet_images import ParquetImages
from models.datasets.svhn import Svhn

N_TRAIN, N_TEST = 14, 10
MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


# Writers of each layout. Images are (n, channels, height, width) uint8.


def idx_bytes(array):
    """The IDX format of yann.lecun.com: a magic number, big-endian sizes, then bytes."""
    header = [0, 0, 8, array.ndim] + [byte for size in array.shape for byte in size.to_bytes(4, "big")]
    return bytes(header) + array.astype(np.uint8).tobytes()


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def write_idx(root, train, test, _, name="MNIST"):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    arrays = (train[0][:, 0], train[1], test[0][:, 0], test[1])
    for file_name, array in zip(MNIST_FILES, arrays, strict=True):
        (folder / file_name).write_bytes(idx_bytes(array))


def write_table(path, images, labels, image="image", label="label", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": each if isinstance(each, bytes | None) else encoded(each), "path": None} for each in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({image: pa.array(cells, kind), label: pa.array(labels), **more}), path)


def write_parquet(root, train, test, _, folder="pictures", label="label"):
    half = len(train[1]) // 2  # two files, as the hub splits larger datasets
    write_table(root / folder / "train-00000-of-00002.parquet", train[0][:half], train[1][:half], label=label)
    write_table(root / folder / "train-00001-of-00002.parquet", train[0][half:], train[1][half:], label=label)
    write_table(root / folder / "test-00000-of-00001.parquet", *test, label=label)


def write_batches(root, train, test, monkeypatch):
    """The pickles of Krizhevsky's page; torchvision is told the checksums of these instead of the real ones."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name, part, chosen):
        images = part[0][chosen]
        return write(name, {"data": images.reshape(len(images), -1), "labels": part[1][chosen].tolist()})

    reader = torchvision_datasets.CIFAR10
    parts = np.array_split(np.arange(len(train[1])), 5)
    train_list = [batch(f"data_batch_{i}", train, chosen) for i, chosen in enumerate(parts, start=1)]
    monkeypatch.setattr(reader, "train_list", train_list)
    monkeypatch.setattr(reader, "test_list", [batch("test_batch", test, np.arange(len(test[1])))])
    name, checksum = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(reader, "meta", {"filename": name, "key": "label_names", "md5": checksum})


def write_mat(root, train, test, _):
    root.mkdir(exist_ok=True)
    for name, (images, labels) in (("train", train), ("test", test)):
        called = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        content = {"X": images.transpose(2, 3, 1, 0), "y": called}
        scipy.io.savemat(root / f"{name}_32x32.mat", content, do_compression=True)


def write_folders(root, train, test, _):
    for name, (images, labels) in (("train", train), ("test", test)):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / "pictures" / name / f"class{label}" / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image))


LAYOUTS = {
    "mnist": (Mnist, {}, write_idx, (1, 28, 28)),
    "fashion_mnist": (FashionMnist, {}, partial(write_idx, name="FashionMNIST"), (1, 28, 28)),
    "cifar10_batches": (Cifar10, {}, write_batches, (3, 32, 32)),
    "cifar10_parquet": (Cifar10, {}, partial(write_parquet, folder="cifar10"), (3, 32, 32)),
    "svhn": (Svhn, {}, write_mat, (3, 32, 32)),
    "parquet_rgb": (ParquetImages, {"folder": "pictures"}, write_parquet, (3, 9, 13)),
    "parquet_gray": (ParquetImages, {"folder": "pictures"}, partial(write_parquet, label="fine"), (1, 12, 8)),
    "image_folder": (ImageFolder, {"folder": "pictures"}, write_folders, (3, 10, 11)),
}


def random_part(count, shape, seed):
    labels = np.arange(count) % 10
    if count == N_TRAIN:
        labels = np.sort(labels)  # ImageFolder's own order, so that one expectation serves every layout
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8), labels


@pytest.fixture(params=LAYOUTS)
def stored(request, tmp_path, monkeypatch):
    """A dataset on disk, as (the class with its arguments bound, a writer, train, test, folder)."""
    kind, arguments, write, shape = LAYOUTS[request.param]
    train, test = random_part(N_TRAIN, shape, 1), random_part(N_TEST, shape, 2)
    root = tmp_path / "data"
    write(root, train, test, monkeypatch)
    return (
        partial(kind, **arguments),
        partial(write, _=None) if write is not write_batches else write,
        train,
        test,
        root,
    )


def test_images_and_labels_are_those_of_the_files(stored):
    dataset, _, train, test, root = stored
    data = dataset().load(root)
    assert data.inputs.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    np.testing.assert_array_equal(data.inputs.numpy(), np.concatenate([train[0], test[0]]))
    np.testing.assert_array_equal(data.labels.numpy(), np.concatenate([train[1], test[1]]))
    np.testing.assert_array_equal(data.example_id, np.arange(N_TRAIN + N_TEST))
    assert (data.info.n_train, data.info.n_test) == (N_TRAIN, N_TEST)
    assert data.info.image_shape == train[0].shape[1:]
    assert data.info.num_classes == 10
    assert len(data.info.mean) == len(data.info.std) == train[0].shape[1]


@pytest.mark.parametrize("limits", [(7, 5), (13, 10), (4, 2)])
def test_a_limit_keeps_a_fixed_subset_and_its_ids(stored, limits):
    dataset, _, _, _, root = stored
    whole, limited = dataset().load(root), dataset(max_train_examples=limits[0], max_test_examples=limits[1])
    data, again = limited.load(root), limited.load(root)
    np.testing.assert_array_equal(data.example_id, again.example_id)
    assert data.sha256 == again.sha256 != whole.sha256
    ids = data.example_id
    assert (np.diff(ids) > 0).all()
    assert ((ids < N_TRAIN).sum(), (ids >= N_TRAIN).sum()) == limits
    assert (ids[: data.info.n_train] < N_TRAIN).all()
    assert torch.equal(data.inputs, whole.inputs[ids])
    assert torch.equal(data.labels, whole.labels[ids])
    # A published dataset is described without its files; with limits that both keep, the two must agree.
    assert limited.describe(root) == data.info


def test_a_dataset_that_is_not_published_is_described_from_its_files(stored):
    dataset, _, _, _, root = stored
    if dataset().published is None:
        assert dataset().describe(root) == dataset().load(root).info
    else:
        assert dataset().describe(root / "nowhere") == dataset().published


def test_the_fingerprint_changes_with_one_pixel_and_one_label_only(stored, tmp_path, monkeypatch):
    dataset, write, train, test, root = stored
    first = dataset().load(root).sha256
    assert dataset().load(root).sha256 == first
    pixel = (train[0].copy(), train[1])
    pixel[0][3, 0, 4, 5] ^= 1
    relabeled = (test[0], test[1].copy())
    relabeled[1][-1], relabeled[1][-2] = test[1][-2], test[1][-1]
    seen = {first}
    for name, parts in (("same", (train, test)), ("pixel", (pixel, test)), ("label", (train, relabeled))):
        write(tmp_path / name, *parts, monkeypatch) if write is write_batches else write(tmp_path / name, *parts)
        digest = dataset().load(tmp_path / name).sha256
        assert (digest == first) == (name == "same")
        seen.add(digest)
    assert len(seen) == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_dataset_names_the_folder_and_the_remedy(layout, tmp_path):
    kind, arguments, _, _ = LAYOUTS[layout]
    with pytest.raises(DatasetError) as caught:
        kind(**arguments).load(tmp_path / "nowhere")
    text = str(caught.value)
    assert str((tmp_path / "nowhere").absolute()) in text
    if arguments:
        assert "--data" in text or "one per class" in text
    else:
        assert "--data" in text
        assert "--download" in text or layout == "cifar10_parquet"
        assert f"'{layout.split('_b')[0].split('_p')[0]}'" in text  # the name that users type


# digits


def test_digits_are_all_of_scikit_learns_once_each():
    data, bunch = Digits().load(None), load_digits()
    assert tuple(data.inputs.shape) == (1797, 1, 8, 8)
    assert (data.info.n_train, data.info.n_test) == (1437, 360)
    assert Digits().describe(None) == data.info
    # 16 levels survive the scaling to 0–255, so rounding back gives scikit-learn's own numbers.
    back = np.rint(data.inputs.numpy().reshape(1797, 64) * (16 / 255)).astype(int)
    ours = np.column_stack([back, data.labels.numpy()])
    theirs = np.column_stack([bunch.data.astype(int), bunch.target])
    assert data.inputs.max() == 255

    def ordered(rows):
        return rows[np.lexsort(rows.T)]

    # The same multiset as the 1,797 originals: train and test are disjoint, and each row kept its label.
    np.testing.assert_array_equal(ordered(ours), ordered(theirs))


def test_digits_parts_have_the_same_share_of_each_class_and_the_stated_normalization():
    data = Digits().load(None)
    labels, n_train = data.labels.numpy(), data.info.n_train
    expected = np.bincount(labels) * 360 / 1797
    assert np.abs(np.bincount(labels[n_train:]) - expected).max() < 1
    pixels = data.inputs[:n_train].double() / 255
    assert data.info.mean[0] == pytest.approx(float(pixels.mean()), abs=2e-3)
    assert data.info.std[0] == pytest.approx(float(pixels.std()), abs=2e-3)


def test_limits_on_digits_are_not_just_the_first_ones():
    data, whole = Digits(max_train_examples=200).load(None), Digits().load(None)
    assert data.info.n_train == 200
    assert data.info.n_test == 360
    assert data.example_id[:200].max() > 1000
    np.testing.assert_array_equal(data.example_id[200:], np.arange(1437, 1797))
    assert torch.equal(data.inputs, whole.inputs[data.example_id])
    assert torch.equal(data.labels, whole.labels[data.example_id])


def test_a_subsets_seed_draws_another_subset_and_0_is_the_first_one():
    def ids(**fields):
        return Digits(**fields).load(None).example_id

    first = ids(max_train_examples=200, max_test_examples=50)
    train = np.sort(
        np.random.default_rng([1437, 200]).permutation(1437)[:200]
    )  # the subset drawn before `subset_seed` existed
    test = np.sort(np.random.default_rng([360, 50]).permutation(360)[:50])
    np.testing.assert_array_equal(first, np.concatenate([train, 1437 + test]))
    np.testing.assert_array_equal(ids(max_train_examples=200, max_test_examples=50, subset_seed=0), first)
    drawn = [ids(max_train_examples=200, max_test_examples=50, subset_seed=seed) for seed in (1, 2, 1, 2**40)]
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert len({tuple(chosen[:200]) for chosen in (first, *drawn)}) == 4
    assert len({tuple(chosen[200:]) for chosen in (first, *drawn)}) == 4
    for chosen in drawn:
        assert (len(set(chosen)), (chosen < 1437).sum()) == (250, 200)


def test_a_limit_that_is_not_reached_keeps_all_whatever_the_subsets_seed():
    data = Digits(max_train_examples=1437, max_test_examples=5000, subset_seed=3).load(None)
    np.testing.assert_array_equal(data.example_id, np.arange(1797))


def test_a_subsets_seed_below_zero_is_refused():
    with pytest.raises(ValueError, match="subset_seed is -1; it must be at least 0"):
        Digits(subset_seed=-1)


@pytest.mark.parametrize("limit", [1, 0, -3])
def test_a_limit_below_two_is_refused(limit):
    with pytest.raises(ValueError, match=f"max_train_examples is {limit}; it must be at least 2"):
        Digits(max_train_examples=limit)


# Transforms


def by_pillow(image, grayscale, crop, resize):
    """One image (channels, height, width), transformed by Pillow alone."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    if grayscale:
        picture = picture.convert("L")
    if crop:
        left, top = (picture.width - crop) // 2, (picture.height - crop) // 2
        picture = picture.crop((left, top, left + crop, top + crop))
    if resize:
        picture = picture.resize((resize, resize), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("grayscale", "crop", "resize"),
    [(True, None, None), (False, 7, None), (False, None, 6), (False, None, 40), (True, 7, None), (True, 8, 5)],
)
def test_images_are_transformed_as_pillow_does_in_the_stated_order(stored, grayscale, crop, resize):
    dataset, _, train, test, root = stored
    transformed = dataset(grayscale=grayscale, crop=crop, resize=resize)
    data, whole = transformed.load(root), dataset().load(root)
    expected = [by_pillow(image, grayscale, crop, resize) for image in np.concatenate([train[0], test[0]])]
    np.testing.assert_array_equal(data.inputs.numpy(), np.stack(expected))
    assert data.inputs.dtype == torch.uint8
    assert torch.equal(data.labels, whole.labels)
    np.testing.assert_array_equal(data.example_id, whole.example_id)
    assert data.info.image_shape == tuple(data.inputs.shape[1:])
    assert len(data.info.mean) == len(data.info.std) == data.inputs.shape[1]
    assert data.info.num_classes == whole.info.num_classes
    # The description, made without files for a published dataset, matches the loaded data.
    described = transformed.describe(root / "nowhere" if transformed.published else root)
    for name in ("image_shape", "mean", "std", "num_classes"):
        assert getattr(described, name) == getattr(data.info, name), name
    changed = data.inputs.shape != whole.inputs.shape
    assert (data.sha256 != whole.sha256) == changed
    assert data.sha256 == hashlib.sha256(data.inputs.numpy().tobytes() + data.labels.numpy().tobytes()).hexdigest()


def test_gray_values_are_pillows_for_every_kind_of_color(tmp_path):
    corners = np.stack(np.meshgrid(*[[0, 1, 2, 127, 128, 253, 254, 255]] * 3)).reshape(3, 16, 32).astype(np.uint8)
    images = np.concatenate([corners[None], np.random.default_rng(0).integers(0, 256, (200, 3, 16, 32), np.uint8)])
    write_pair(tmp_path, images, images[:2])
    gray = ParquetImages(folder="p", grayscale=True).load(tmp_path).inputs[: len(images)].numpy()
    expected = [np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in images]
    np.testing.assert_array_equal(gray[:, 0], np.stack(expected))


def test_transforming_in_blocks_changes_nothing(tmp_path, monkeypatch):
    write_mat(tmp_path, random_part(N_TRAIN, (3, 32, 32), 1), random_part(N_TEST, (3, 32, 32), 2), None)
    dataset = Svhn(grayscale=True, crop=30, resize=28)
    whole, sizes, transform = dataset.load(tmp_path), [], ImageDataset._transform
    monkeypatch.setattr(_images, "_BLOCK", 4)
    monkeypatch.setattr(
        ImageDataset, "_transform", lambda self, images: (sizes.append(len(images)), transform(self, images))[1]
    )
    assert dataset.load(tmp_path).sha256 == whole.sha256
    assert sizes == [4, 4, 4, 2, 4, 4, 2]


def test_the_constants_of_a_gray_version_follow_from_the_channels():
    info = Cifar10(grayscale=True, resize=28).describe(None)
    assert info.image_shape == (1, 28, 28)
    assert info.mean[0] == pytest.approx(0.299 * 0.4914 + 0.587 * 0.4822 + 0.114 * 0.4465, abs=1e-5)
    assert info.std[0] == pytest.approx((0.2470 + 0.2435 + 0.2616) / 3)
    assert (info.n_train, info.n_test) == (50_000, 10_000)
    # Constants of one channel for all: the weights add up to one.
    assert Mnist(grayscale=True).describe(None) == Mnist.published
    assert sum(_images.LUMA) == 2**16


def test_the_gray_mean_is_the_mean_of_the_gray_images():
    images = (
        np.random.default_rng(0).integers(0, 256, (50, 3, 9, 9), dtype=np.uint8) // np.array([1, 2, 4])[:, None, None]
    )
    images = images.astype(np.uint8)
    means = images.mean(axis=(0, 2, 3)) / 255

    @dataclass(frozen=True, kw_only=True)
    class Colors(ImageDataset):
        source: ClassVar[str] = "a test"
        mean: ClassVar[tuple[float, ...]] = tuple(means)
        std: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.6)

        def open(self, data_dir, download):
            part = RawPart(labels=np.arange(50) % 10, read=lambda index: images[index])
            return part, part

    data = Colors(grayscale=True).load(None)
    assert data.info.mean[0] == pytest.approx(float(data.inputs.double().mean()) / 255, abs=1e-4)  # but for rounding
    assert data.info.std == pytest.approx((0.3,))
    assert Colors().load(None).info.mean == tuple(means)


def test_gray_is_made_of_one_or_three_channels_only():
    @dataclass(frozen=True, kw_only=True)
    class Pairs(ImageDataset):
        source: ClassVar[str] = "a test"

        def open(self, data_dir, download):
            part = RawPart(labels=np.arange(4) % 2, read=lambda index: np.zeros((len(index), 2, 5, 5), dtype=np.uint8))
            return part, part

    assert Pairs(resize=3).load(None).inputs.shape == (8, 2, 3, 3)
    for use in (Pairs(grayscale=True).load, Pairs(grayscale=True).describe):
        with pytest.raises(DatasetError, match=r"grayscale needs images of 3 channels.*these have 2"):
            use(None)


def test_a_crop_larger_than_the_images_is_refused_before_training(stored):
    dataset, _, train, _, root = stored
    height, width = train[0].shape[2:]
    side = min(height, width)
    assert dataset(crop=side).load(root).info.image_shape[1:] == (side, side)
    too_large = dataset(crop=side + 1, resize=5)
    for use in (too_large.describe, too_large.load):
        with pytest.raises(
            DatasetError, match=rf"crop is {side + 1}, but .* {height} pixels high and {width} wide.*{side} or less"
        ):
            use(root)


@pytest.mark.parametrize("name", ["crop", "resize"])
@pytest.mark.parametrize("value", [0, -28])
def test_a_crop_or_a_resize_below_one_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least 1 pixel"):
        Cifar10(**{name: value})


def test_size_comes_before_the_other_transforms(tmp_path):
    small, large = random_part(2, (3, 9, 9), 1)[0], random_part(2, (3, 14, 20), 2)[0]
    write_pair(tmp_path, [*small, *large], large)
    data = ParquetImages(folder="p", size=12, grayscale=True, crop=8, resize=5).load(tmp_path)
    sized = ParquetImages(folder="p", size=12).load(tmp_path)
    expected = [by_pillow(image, True, 8, 5) for image in sized.inputs.numpy()]
    np.testing.assert_array_equal(data.inputs.numpy(), np.stack(expected))
    with pytest.raises(DatasetError, match="Set `size`"):  # the other transforms do not unify sizes
        ParquetImages(folder="p", resize=5).load(tmp_path)


# SVHN's extra training examples


def write_svhn(root, n_extra=6, shape=(3, 32, 32)):
    """Train, test and extra files in `root`; gives the three parts."""
    train, test = random_part(N_TRAIN, (3, 32, 32), 1), random_part(N_TEST, (3, 32, 32), 2)
    extra = np.random.default_rng(3).integers(0, 256, (n_extra, *shape), dtype=np.uint8), 9 - np.arange(n_extra) % 10
    write_mat(root, train, test, None)
    called = np.where(extra[1] == 0, 10, extra[1]).astype(np.uint8)[:, None]
    scipy.io.savemat(root / "extra_32x32.mat", {"X": extra[0].transpose(2, 3, 1, 0), "y": called})
    return train, test, extra


def test_extra_joins_svhns_extra_examples_to_the_training_part(tmp_path):
    train, test, extra = write_svhn(tmp_path)
    data = Svhn(extra=True).load(tmp_path)
    np.testing.assert_array_equal(data.inputs.numpy(), np.concatenate([train[0], extra[0], test[0]]))
    np.testing.assert_array_equal(data.labels.numpy(), np.concatenate([train[1], extra[1], test[1]]))
    assert (data.info.n_train, data.info.n_test) == (N_TRAIN + 6, N_TEST)
    assert Svhn(extra=True).describe(tmp_path) == data.info
    assert Svhn().load(tmp_path).info.n_train == N_TRAIN


def test_svhn_is_described_as_published_until_its_files_are_there(tmp_path):
    assert Svhn().describe(tmp_path).n_train == 73_257
    described = Svhn(extra=True, grayscale=True, crop=28, max_train_examples=100_000).describe(tmp_path)
    assert (described.n_train, described.n_test, described.image_shape) == (100_000, 26_032, (1, 28, 28))
    assert Svhn(extra=True).describe(tmp_path).n_train == 604_388
    write_svhn(tmp_path)
    assert Svhn().describe(tmp_path).n_train == N_TRAIN


def test_a_limit_draws_from_svhns_train_and_extra_alike(tmp_path):
    write_svhn(tmp_path, n_extra=30)
    whole = Svhn(extra=True).load(tmp_path)
    data = Svhn(extra=True, max_train_examples=20, subset_seed=5).load(tmp_path)
    chosen = data.example_id[:20]
    assert (chosen < N_TRAIN).any()
    assert ((chosen >= N_TRAIN) & (chosen < N_TRAIN + 30)).any()
    np.testing.assert_array_equal(data.example_id[20:], np.arange(N_TRAIN + 30, N_TRAIN + 30 + N_TEST))
    assert torch.equal(data.inputs, whole.inputs[data.example_id])
    assert torch.equal(data.labels, whole.labels[data.example_id])


def test_a_missing_or_wrong_extra_file_is_named(tmp_path):
    write_svhn(tmp_path)
    path = tmp_path / "extra_32x32.mat"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"extra_32x32.mat is not an SVHN file"):
        Svhn(extra=True).load(tmp_path)
    path.unlink()
    with pytest.raises(DatasetError, match=r"extra_32x32.mat.*--download.*set extra to false"):
        Svhn(extra=True).load(tmp_path)
    Svhn().load(tmp_path)


def test_svhn_files_of_another_image_size_are_refused(tmp_path):
    write_svhn(tmp_path, shape=(3, 16, 16))
    with pytest.raises(DatasetError, match=r"extra_32x32.mat is not an SVHN file.*\(3, 16, 16\)"):
        Svhn(extra=True).load(tmp_path)


# Downloads, by torchvision's own code, from a server of ours


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder served over HTTP on loopback, its address, and the paths that were asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path.rpartition("/")[2])
            super().do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True)
    thread.start()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield folder, f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()
    thread.join()


def serve_mnist(folder, address, monkeypatch, reader=torchvision_datasets.MNIST):
    train, test = random_part(N_TRAIN, (1, 28, 28), 1), random_part(N_TEST, (1, 28, 28), 2)
    resources = []
    for name, array in zip(MNIST_FILES, (train[0][:, 0], train[1], test[0][:, 0], test[1]), strict=True):
        packed = gzip.compress(idx_bytes(array))
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(reader, "mirrors", [address])
    monkeypatch.setattr(reader, "resources", resources)
    return train, test


@pytest.mark.parametrize("dataset", [Mnist(), FashionMnist()])
def test_download_fetches_once_and_reads_what_came(dataset, served, tmp_path, monkeypatch):
    folder, address, asked = served
    train, test = serve_mnist(folder, address, monkeypatch, dataset.reader)
    root = tmp_path / "data"
    with pytest.raises(DatasetError, match="--download"):
        dataset.load(root)
    assert asked == []
    data = dataset.load(root, download=True)
    assert set(asked) == {f"{name}.gz" for name in MNIST_FILES}
    first_time = len(asked)
    np.testing.assert_array_equal(data.inputs.numpy(), np.concatenate([train[0], test[0]]))
    np.testing.assert_array_equal(data.labels.numpy(), np.concatenate([train[1], test[1]]))
    assert dataset.load(root, download=True).sha256 == dataset.load(root).sha256 == data.sha256
    assert len(asked) == first_time


def test_a_download_whose_checksum_is_wrong_is_refused(served, tmp_path, monkeypatch):
    folder, address, asked = served
    serve_mnist(folder, address, monkeypatch)
    damaged = bytearray((folder / f"{MNIST_FILES[0]}.gz").read_bytes())
    damaged[-20] ^= 1
    (folder / f"{MNIST_FILES[0]}.gz").write_bytes(damaged)
    with pytest.raises(DatasetError, match="corrupted"):
        Mnist().load(tmp_path / "data", download=True)
    assert asked


@pytest.mark.parametrize("extra", [False, True])
def test_download_fetches_svhns_extra_file_only_where_it_is_asked_for(extra, served, tmp_path, monkeypatch):
    folder, address, asked = served
    write_svhn(folder)
    names = {part: f"{part}_32x32.mat" for part in ("train", "test", "extra")}
    sums = {part: hashlib.md5((folder / name).read_bytes()).hexdigest() for part, name in names.items()}
    split_list = {part: [address + name, name, sums[part]] for part, name in names.items()}
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", split_list)
    root = tmp_path / "data"
    data = Svhn(extra=extra).load(root, download=True)
    assert set(asked) == set(names.values()) - (set() if extra else {"extra_32x32.mat"})
    assert data.info.n_train == N_TRAIN + 6 * extra
    assert Svhn(extra=extra).load(root).sha256 == data.sha256


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "svhn"])
def test_a_download_that_fails_is_a_dataset_error_that_says_why(name, tmp_path, monkeypatch):
    nowhere = "http://127.0.0.1:9/"  # the discard port: refused at once
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    for reader in (torchvision_datasets.MNIST, torchvision_datasets.FashionMNIST):
        monkeypatch.setattr(reader, "mirrors", [nowhere])
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "url", nowhere + "cifar.tar.gz")
    split_list = {part: [nowhere + part, f"{part}_32x32.mat", "0" * 32] for part in ("train", "test", "extra")}
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", split_list)
    dataset = {"mnist": Mnist, "fashion_mnist": FashionMnist, "cifar10": Cifar10, "svhn": Svhn}[name]()
    with pytest.raises(DatasetError, match=r"(?i)refused") as caught:
        dataset.load(tmp_path, download=True)
    assert str(tmp_path) in str(caught.value)
    assert f"'{name}'" in str(caught.value)


# Files that exist but are wrong


def test_mnist_files_that_are_cut_short_are_called_unreadable_and_not_missing(tmp_path):
    write_idx(tmp_path, random_part(N_TRAIN, (1, 28, 28), 1), random_part(N_TEST, (1, 28, 28), 2), None)
    for name in MNIST_FILES:
        path = tmp_path / "MNIST" / "raw" / name
        whole = path.read_bytes()
        for length in (0, 3, 8, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(DatasetError, match="cannot be read") as caught:
                Mnist().load(tmp_path)
            assert str(path.parent) in str(caught.value)
        path.write_bytes(whole)
    Mnist().load(tmp_path)


def test_mnist_images_and_labels_of_different_number_are_refused(tmp_path):
    train, test = random_part(N_TRAIN, (1, 28, 28), 1), random_part(N_TEST, (1, 28, 28), 2)
    for number, kept in enumerate((N_TRAIN - 1, N_TRAIN + 1)):
        images, labels = random_part(N_TRAIN + 1, (1, 28, 28), 1)[0], np.arange(N_TRAIN + 1) % 10
        write_idx(tmp_path / str(number), (images[:N_TRAIN], labels[:kept]), test, None)
        with pytest.raises(DatasetError, match=f"{N_TRAIN} images .*{kept} labels"):
            Mnist().load(tmp_path / str(number))
    write_idx(tmp_path, train, test, None)
    Mnist().load(tmp_path)


def test_cifar_batches_that_are_not_the_real_ones_are_refused_before_they_are_unpickled(tmp_path, monkeypatch):
    write_batches(tmp_path, random_part(N_TRAIN, (3, 32, 32), 1), random_part(N_TEST, (3, 32, 32), 2), monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle that fails its checksum was opened",))

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DatasetError, match="not CIFAR-10's") as caught:
        Cifar10().load(tmp_path)
    assert str(path.parent) in str(caught.value)


def test_svhn_files_that_are_damaged_are_dataset_errors(tmp_path):
    write_mat(tmp_path, random_part(N_TRAIN, (3, 32, 32), 1), random_part(N_TEST, (3, 32, 32), 2), None)
    path = tmp_path / "train_32x32.mat"
    whole, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for trial in range(40):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if trial % 2 else whole)
        for _ in range(3 * (1 - trial % 2)):
            damaged[rng.randrange(400)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            Svhn().load(tmp_path)
        except DatasetError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_damaged_images_are_dataset_errors_and_nothing_else(kind, tmp_path):
    rng = random.Random(0)
    image = random_part(1, (3, 9, 9), 3)[0][0]
    whole = encoded(image, kind)
    # Sizes that Pillow refuses as a decompression bomb are among the damages.
    damages = [b"", whole[:5], bytes(10)]
    if kind == "BMP":
        damages.append(whole[:18] + (2**20).to_bytes(4, "little") * 2 + whole[26:])
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        damages.append(bytes(damaged[: rng.randrange(len(whole))] if rng.random() < 0.3 else damaged))
    write_table(tmp_path / "p" / "test.parquet", [image], [0])
    refused = 0
    for damaged in damages:
        write_table(tmp_path / "p" / "train.parquet", [damaged, image], [0, 1])
        try:
            ParquetImages(folder="p", size=9).load(tmp_path)
        except DatasetError as error:
            assert f"Row 0 of {tmp_path}/p/train.parquet (train)" in str(error)
            assert "<" not in str(error)  # no Python object stands for the file
            refused += 1
    assert refused >= 3 + (kind == "BMP")


def test_sixteen_bit_images_are_refused_rather_than_clipped_to_white(tmp_path):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    for part in ("train", "test"):
        write_table(tmp_path / "p" / f"{part}.parquet", [buffer.getvalue()] * 2, [0, 1])
    with pytest.raises(DatasetError, match="8 bits"):
        ParquetImages(folder="p").load(tmp_path)


def write_pair(root, train_images, test_images, **train_columns):
    write_table(root / "p" / "train.parquet", train_images, np.arange(len(train_images)) % 2, **train_columns)
    write_table(root / "p" / "test.parquet", test_images, np.arange(len(test_images)) % 2)


@pytest.mark.parametrize("parts", ["train", "between"])
def test_differing_sizes_are_refused_unless_a_size_is_given(parts, tmp_path):
    small, large = random_part(2, (3, 9, 9), 1)[0], random_part(2, (3, 9, 12), 1)[0]
    train = [*small, *large] if parts == "train" else small
    write_pair(tmp_path, train, large)
    with pytest.raises(DatasetError, match="Set `size`"):
        ParquetImages(folder="p").load(tmp_path)
    data = ParquetImages(folder="p", size=10).load(tmp_path)
    assert data.info.image_shape == (3, 10, 10)
    assert ParquetImages(folder="p", size=10).describe(tmp_path) == data.info


def test_a_size_resizes_and_leaves_images_of_that_size_alone(tmp_path):
    images = random_part(3, (1, 9, 9), 1)[0]
    constant = np.full((1, 5, 5), 77, dtype=np.uint8)
    write_pair(tmp_path, [*images, constant], images)
    data = ParquetImages(folder="p", size=9).load(tmp_path)
    np.testing.assert_array_equal(data.inputs[:3].numpy(), images)
    assert (data.inputs[3] == 77).all()


def test_columns_are_found_when_there_is_one_of_the_kind_and_asked_for_otherwise(tmp_path):
    images, _ = random_part(4, (3, 9, 9), 1)
    for part in ("train", "test"):
        write_table(
            tmp_path / "p" / f"{part}.parquet", images, [0, 1, 2, 0], "img", "fine_label", coarse_label=[1, 1, 0, 0]
        )
    with pytest.raises(
        DatasetError, match=r"2 columns that could be the label: fine_label, coarse_label.*Set `label_column`"
    ):
        ParquetImages(folder="p").load(tmp_path)
    assert ParquetImages(folder="p", label_column="fine_label").load(tmp_path).info.num_classes == 3
    assert ParquetImages(folder="p", label_column="coarse_label").load(tmp_path).info.num_classes == 2
    with pytest.raises(DatasetError, match="no column 'lable'; it has img, fine_label, coarse_label"):
        ParquetImages(folder="p", label_column="lable").load(tmp_path)
    with pytest.raises(DatasetError, match="no field `bytes`"):
        ParquetImages(folder="p", label_column="fine_label", image_column="coarse_label").load(tmp_path)
    with pytest.raises(DatasetError, match="whole numbers"):
        ParquetImages(folder="p", label_column="img").load(tmp_path)


@pytest.mark.parametrize("labels", [[0, None, 1], [-1, 0, 1], [0.5, 1.0, 2.0], ["a", "b", "c"], [True, False, True]])
def test_labels_that_are_not_classes_are_refused(labels, tmp_path):
    images, _ = random_part(3, (1, 9, 9), 1)
    for part in ("train", "test"):
        write_table(tmp_path / "p" / f"{part}.parquet", images, labels)
    with pytest.raises(DatasetError, match="whole numbers from 0, without nulls"):
        ParquetImages(folder="p", label_column="label").load(tmp_path)


def test_files_that_are_not_parquet_are_dataset_errors(tmp_path):
    images = list(random_part(3, (1, 9, 9), 1)[0])
    write_pair(tmp_path, images, images)
    (tmp_path / "p" / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DatasetError, match=r"p/train.parquet cannot be read"):
        ParquetImages(folder="p").load(tmp_path)


@pytest.mark.parametrize("kind", [ParquetImages, ImageFolder])
@pytest.mark.parametrize("folder", ["../elsewhere", "a/../../b", "/etc", ".."])
def test_a_folder_that_leaves_the_data_folder_is_refused(kind, folder):
    with pytest.raises(ValueError, match="must be a path below the folder given by --data"):
        kind(folder=folder)


@pytest.mark.parametrize("kind", [ParquetImages, ImageFolder])
@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused(kind, size):
    with pytest.raises(ValueError, match=f"size is {size}; it must be at least 1"):
        kind(folder="p", size=size)


def test_image_folder_refuses_other_classes_in_test_and_unreadable_files(tmp_path):
    train, test = random_part(N_TRAIN, (3, 9, 9), 1), random_part(N_TEST, (3, 9, 9), 2)
    write_folders(tmp_path, train, test, None)
    dataset = ImageFolder(folder="pictures")
    broken = tmp_path / "pictures" / "train" / "class3" / "zzz.png"
    broken.write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"class3/zzz.png \(train\) is not an image of a known format"):
        dataset.load(tmp_path)
    broken.unlink()
    dataset.load(tmp_path)
    (tmp_path / "pictures" / "train" / "class3").rename(tmp_path / "pictures" / "train" / "other")
    with pytest.raises(DatasetError, match=r"other in train but .*class3"):
        dataset.load(tmp_path)

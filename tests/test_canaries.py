"""Canaries: only they are tossed, they are the same everywhere, and each kind is what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from comparing import run_comparisons
from PIL import Image

from models.canaries import Canaries
from models.datasets.base import DatasetError, DatasetInfo, Examples
from models.datasets.breast_cancer import BreastCancer
from models.datasets.digits import Digits
from models.splits import SPLITS, SplitPlan
from sweeper.errors import UserError
from sweeper.results.gather import gather
from sweeper.results.store import Store
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.preflight import check_datasets, missing_datasets, resolve_trials
from sweeper.trial.context import TrialContext
from sweeper.trial.run import run_trial

POOL, TEST = 400, 30
KINDS = ("clean", "mislabeled", "blank", "outlier_folder", "duplicate_mislabeled", "extreme")


def plan(kind="mislabeled", count=40, seed=0, reference=0, name="coins", **more):
    return SplitPlan(name=name, canaries=Canaries(kind=kind, count=count, seed=seed, **more), reference=reference)


def colored(n_train=60, shape=(3, 8, 8), classes=5):
    generator = torch.Generator().manual_seed(0)
    info = DatasetInfo(n_train=n_train, n_test=10, shape=shape, num_classes=classes, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Examples(
        inputs=torch.randint(256, (n_train + 10, *shape), generator=generator, dtype=torch.uint8),
        labels=torch.randint(classes, (n_train + 10,), generator=generator),
        example_id=np.arange(n_train + 10),
        info=info,
        sha256="of the data",
    )


def changed(before, after):
    """Positions whose input or label differs."""
    same_input = (before.inputs == after.inputs).flatten(1).all(1)
    return set(torch.nonzero(~same_input | (before.labels != after.labels)).flatten().tolist())


@pytest.mark.parametrize("name", ["coins", "coin_pairs"])
@pytest.mark.parametrize("kind", ["clean", "mislabeled", "duplicate_mislabeled"])
def test_coins_decide_over_canaries_alone_and_all_others_are_trained_on(name: str, kind: str) -> None:
    chosen = plan(kind, name=name)
    canaries = set(chosen.canaries.positions(POOL).tolist())
    originals, copies = chosen.canaries.pairs(POOL)
    attacked = set(copies.tolist()) or canaries
    without = SPLITS[name](POOL, TEST, 5)
    split = chosen.draw(POOL, TEST, 5)
    assert set(split.members.tolist()) | set(split.non_members.tolist()) == attacked
    assert not set(split.members.tolist()) & set(split.non_members.tolist())
    assert set(split.members.tolist()) == attacked & set(without.members.tolist())
    trained = set(split.trained.tolist())
    assert set(range(POOL)) - canaries <= trained
    assert not set(split.non_members.tolist()) & trained
    assert split.trained.tolist() == sorted(trained)
    # An original is trained on exactly if its copy is
    assert [each in trained for each in originals.tolist()] == [each in trained for each in copies.tolist()]
    np.testing.assert_array_equal(split.test, without.test)


def test_each_canary_has_a_fair_coin_of_its_own() -> None:
    chosen = plan(count=30)
    heads = np.array(
        [np.isin(chosen.canaries.positions(POOL), chosen.draw(POOL, TEST, seed).members) for seed in range(600)]
    )
    assert np.abs(heads.mean(axis=0) - 0.5).max() < 0.5 * 4 / np.sqrt(600)
    correlation = np.corrcoef(heads.T) - np.eye(30)
    assert np.abs(correlation).max() < 5 / np.sqrt(600)


def test_odd_seeds_of_pairs_toss_the_complement() -> None:
    even, odd = (plan(name="coin_pairs").draw(POOL, TEST, seed) for seed in (6, 7))
    np.testing.assert_array_equal(even.members, odd.non_members)
    np.testing.assert_array_equal(even.non_members, odd.members)


def test_canaries_are_the_same_for_all_kinds_and_seeds_and_others_with_another_seed() -> None:
    first = plan("clean").canaries.positions(POOL)
    for kind in ("mislabeled", "blank"):
        np.testing.assert_array_equal(plan(kind).canaries.positions(POOL), first)
    np.testing.assert_array_equal(plan(count=10).canaries.positions(POOL), first[:10])
    assert set(plan(seed=1).canaries.positions(POOL).tolist()) != set(first.tolist())


def test_reference_examples_are_neither_trained_on_nor_attacked_nor_canaries() -> None:
    for chosen in (plan(reference=50), SplitPlan(name="coins", reference=50)):
        splits = [chosen.draw(POOL, TEST, seed) for seed in range(3)]
        for split in splits:
            assert len(split.reference) == 50
            np.testing.assert_array_equal(split.reference, splits[0].reference)
            for other in (split.trained, split.members, split.non_members, split.test):
                assert not set(split.reference.tolist()) & set(other.tolist())
            roles = split.roles(POOL + TEST)
            assert {roles[position] for position in split.reference.tolist()} == {"reference"}
            assert {roles[position] for position in split.background.tolist()} <= {"background"}


def test_wrong_labels_are_wrong_and_uniform_and_images_stay(tmp_path: Path) -> None:
    data = colored(n_train=3000)
    canaries = Canaries(count=2000)
    planted = canaries.planted(data, tmp_path)
    at = canaries.positions(3000)
    assert torch.equal(planted.inputs, data.inputs)
    assert changed(data, planted) == set(at.tolist())
    step = ((planted.labels - data.labels) % 5)[torch.from_numpy(at)]
    counts = torch.bincount(step, minlength=5)
    assert counts[0] == 0
    assert (counts[1:] - 500).abs().max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_planting_changes_the_hash_but_not_the_loaded_data(tmp_path: Path) -> None:
    data = colored()
    hashes = {
        kind: Canaries(count=20, kind=kind).planted(data, tmp_path).sha256 for kind in ("clean", "mislabeled", "blank")
    }
    assert hashes["clean"] == data.sha256
    assert len(set(hashes.values())) == 3
    assert changed(data, colored()) == set()
    assert Canaries(count=20).planted(data, tmp_path).sha256 == hashes["mislabeled"]


def test_blank_images_have_one_color_and_gray_ones_all_differ(tmp_path: Path) -> None:
    data = colored()
    canaries = Canaries(count=20, kind="blank")
    images = canaries.planted(data, tmp_path).inputs[torch.from_numpy(canaries.positions(60))]
    assert (images == images[:, :, :1, :1]).all()
    assert len(set(map(tuple, images[:, :, 0, 0].tolist()))) == 20
    gray = Digits().load(tmp_path)
    canaries = Canaries(count=256, kind="blank")
    shades = canaries.planted(gray, tmp_path).inputs[torch.from_numpy(canaries.positions(gray.info.n_train))]
    assert set(shades[:, 0, 0, 0].tolist()) == set(range(256))
    with pytest.raises(ValueError, match="only 256 shades"):
        Canaries(count=257, kind="blank").planted(gray, tmp_path)


def test_a_duplicate_has_its_originals_image_and_another_label(tmp_path: Path) -> None:
    data = colored()
    canaries = Canaries(count=20, kind="duplicate_mislabeled")
    planted = canaries.planted(data, tmp_path)
    originals, copies = map(torch.from_numpy, canaries.pairs(60))
    assert torch.equal(planted.inputs[copies], data.inputs[originals])
    assert (planted.labels[copies] != data.labels[originals]).all()
    assert changed(data, planted) <= set(copies.tolist())


def test_outliers_are_the_folders_images_at_the_datasets_size(tmp_path: Path) -> None:
    data = colored()
    folder = tmp_path / "strangers"
    (folder / "deeper").mkdir(parents=True)
    for shade in range(12):
        Image.new("RGB", (16, 24), (shade * 20, 0, 7)).save(folder / ("deeper" if shade % 2 else "") / f"{shade}.png")
    canaries = Canaries(count=10, kind="outlier_folder", folder="strangers")
    planted = canaries.planted(data, tmp_path)
    images = planted.inputs[torch.from_numpy(canaries.positions(60))]
    assert (images[:, 2] == 7).all()
    assert len(set(images[:, 0, 0, 0].tolist())) == 10
    (folder / "0.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"0\.png \(outliers\) is not an image of a known format"):
        Canaries(count=12, kind="outlier_folder", folder="strangers").planted(data, tmp_path)
    with pytest.raises(DatasetError, match=r"has 12 images, but canaries\.count is 13"):
        Canaries(count=13, kind="outlier_folder", folder="strangers").planted(data, tmp_path)


def outliers_of(folder: Path, *images: Image.Image) -> Canaries:
    folder.mkdir()
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    return Canaries(count=len(images), kind="outlier_folder", folder=folder.name)


def test_outliers_are_read_as_a_users_other_images_are(tmp_path: Path) -> None:
    data = colored()
    plain = [Image.new("RGB", (8, 8), (shade, 1, 1)) for shade in range(4)]
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    planted = outliers_of(tmp_path / "clear", *plain, clear).planted(data, tmp_path)
    assert (planted.inputs == 255).flatten(1).all(1).any()  # composed on white
    deep = Image.fromarray(np.full((8, 8), 30_000, dtype=np.uint16))
    with pytest.raises(DatasetError, match=r"4\.png .*8 bits per channel"):
        outliers_of(tmp_path / "deep", *plain, deep).planted(data, tmp_path)
    with pytest.raises(DatasetError, match=r"\d\.png and .*\d\.png are equal at 8x8"):
        outliers_of(tmp_path / "equal", *plain, plain[2]).planted(data, tmp_path)


def test_only_visible_files_count_as_outliers_and_damaged_ones_are_found_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    canaries = outliers_of(tmp_path / "odd", *(Image.new("RGB", (8, 8), (shade, 1, 1)) for shade in range(6)))
    (tmp_path / "odd" / "._0.png").write_bytes(b"of another system")
    (tmp_path / "odd" / "folder.png").mkdir()
    assert len(canaries.outliers(tmp_path)) == 6
    whole = (tmp_path / "odd" / "3.png").read_bytes()
    (tmp_path / "odd" / "3.png").write_bytes(whole[:20] + b"\xff" * 30 + whole[50:])
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "datasets: [digits]\ndefenses: [none]\nattacks: []\n"
        "splits: [{name: coins, canaries: {count: 6, kind: outlier_folder, folder: odd}}]\n"
    )
    with pytest.raises(UserError, match=r"3\.png \(outliers\)"):
        check_datasets(expand(load_sweep(str(path))), tmp_path, download=False)


def test_a_missing_folder_of_outliers_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "datasets: [digits]\ndefenses: [none]\nattacks: []\n"
        "splits: [{name: coins, canaries: {count: 20, kind: outlier_folder, folder: strangers}}]\n"
    )
    trials = expand(load_sweep(str(path)))
    with pytest.raises(UserError, match=r"strangers has 0 images, but canaries\.count is 20"):
        check_datasets(trials, tmp_path, download=False)
    assert "strangers has 0 images" in missing_datasets(trials, tmp_path)[0]


def test_extreme_rows_are_at_the_ends_of_every_feature(tmp_path: Path) -> None:
    data = BreastCancer().load(tmp_path)
    canaries = Canaries(count=50, kind="extreme")
    pool = data.inputs[: data.info.n_train]
    rows = canaries.planted(data, tmp_path).inputs[torch.from_numpy(canaries.positions(data.info.n_train))]
    at_ends = (rows == pool.amin(0)) | (rows == pool.amax(0))
    assert at_ends.all()
    assert len(rows.unique(dim=0)) == 50
    with pytest.raises(ValueError, match="which is for images; for tables use"):
        Canaries(count=50, kind="blank").planted(data, tmp_path)


def test_extreme_rows_all_differ_and_too_many_are_refused(tmp_path: Path) -> None:
    info = DatasetInfo(n_train=60, n_test=10, shape=(4,), num_classes=3)
    inputs = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
    data = Examples(
        inputs=inputs, labels=torch.arange(70) % 3, example_id=np.arange(70), info=info, sha256="of the data"
    )
    canaries = Canaries(count=16, kind="extreme")
    rows = canaries.planted(data, tmp_path).inputs[torch.from_numpy(canaries.positions(60))]
    assert len(rows.unique(dim=0)) == 16
    with pytest.raises(ValueError, match="4 features give only 16 extreme rows"):
        Canaries(count=17, kind="extreme").check(info)
    inputs[:, 3] = 1.0
    with pytest.raises(ValueError, match="3 features of the table vary, so there are only 8 extreme rows"):
        canaries.planted(data, tmp_path)


def test_the_test_examples_beside_canaries_are_drawn_from_all() -> None:
    chosen = plan()
    split = chosen.draw(POOL, 10_000, 0)
    answered = chosen.answered(split)
    beside = answered[answered >= POOL] - POOL
    assert len(beside) == 2000
    assert abs(beside.mean() - 5000) < 5 * 10_000 / np.sqrt(12 * 2000)
    np.testing.assert_array_equal(answered[answered >= POOL], chosen.answered(chosen.draw(POOL, 10_000, 7))[-2000:])


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ("{name: half, canaries: {count: 20}}", "canaries need coins, so it must be coin_pairs or coins"),
        ("{name: quarters, reference: 20}", "reference examples need a pool of coins"),
        ("{name: coins, canaries: {count: 20, kind: mislabelled}}", "Input should be 'clean', 'mislabeled'"),
        ("{name: coins, canaries: {count: 2}}", "count is 2; it must be a whole number of at least 4"),
        ("{name: coins, canaries: {count: 20, kind: outlier_folder, folder: ''}}", "folder is empty"),
        ("{name: coins, canaries: {count: 21, kind: duplicate_mislabeled}}", "it must be even"),
        ("{name: coins, canaries: {count: 20, kind: outlier_folder}}", "folder is missing"),
        ("{name: coins, canaries: {count: 20, folder: x}}", "only outlier_folder reads one"),
        ("{name: coins, canaries: {count: 20, size: 3}}", "size"),
        ("{name: coin, canaries: {count: 20}}", "Did you mean 'coins'?"),
        ("{name: coins, canaries: {count: 200}}", "canaries.count is 200, and the pool has 200 examples"),
        (
            "{name: coins, canaries: {count: 100}, reference: 100}",
            "too few for 100 canaries and 100 reference examples",
        ),
        ("{name: coins, canaries: {count: 20, kind: extreme}}", "which is for tables; for images use"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(tmp_path: Path, split: str, text: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"datasets: [{{name: digits, max_train_examples: 200}}]\ndefenses: [none]\nattacks: [threshold]\nsplits: [{split}]\n"
        "training: {batch_size: 20}\n"
    )
    with pytest.raises(UserError) as error:
        resolve_trials(expand(load_sweep(str(path))), tmp_path)
    assert text in str(error.value)


def test_a_split_without_canaries_has_the_identity_that_it_always_had(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "datasets: [digits]\ndefenses: [none]\nattacks: []\nsplits: [coins, {name: coins, canaries: {count: 20}}]\n"
    )
    plain, with_canaries = expand(load_sweep(str(path)))
    assert plain.config["split"] == {"name": "coins", "revision": 1}
    assert with_canaries.config["split"] == {
        "name": "coins",
        "revision": 1,
        "canaries": {"revision": 1, "count": 20, "kind": "mislabeled", "seed": 0, "folder": None},
    }
    assert (plain.split_label, with_canaries.split_label) == ("coins", "mislabeled")
    assert plain.cell_id != with_canaries.cell_id


@pytest.mark.slow
def test_mislabeled_canaries_are_found_and_clean_ones_hardly(tmp_path: Path) -> None:
    """A sweep from its file to its tables: attacks, nulls and audits are of the canaries alone."""
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "datasets: [{name: digits, max_train_examples: 600, max_test_examples: 100}]\ndefenses: [none]\nattacks: [threshold]\n"
        "splits:\n"
        "  clean: {name: coin_pairs, canaries: {count: 100, kind: clean}, reference: 30}\n"
        "  wrong: {name: coin_pairs, canaries: {count: 100}, reference: 30}\n"
        "architectures: [{name: lomurno_cnn, filters: [8, 8, 8]}]\nseeds: [0, 1, 2, 3]\n"
        "training: {epochs: 30, batch_size: 50, optimizer: adam, learning_rate: 0.005}\ncomparisons: [ratio, label_only]\n"
    )
    out = tmp_path / "out"
    store, planned = Store(out), expand(load_sweep(str(path)))
    store.prepare()
    context = TrialContext(data_dir=tmp_path, store=store, device=torch.device("cpu"), raise_errors=True)
    for trial in planned:
        run_trial(trial, context)
    assert not any(each.errors for each in run_comparisons(store, planned))
    gather(store)
    trials = pq.read_table(out / "trials.parquet").to_pandas().set_index("target_id")
    assert (trials["n_train"] == 600 - 30 - trials["n_non_members"]).all()
    assert (trials["n_members"] + trials["n_non_members"] == 100).all()
    assert set(trials["canary_kind"]) == {"clean", "mislabeled"}
    outputs = pq.read_table(out / "outputs.parquet", columns=["target_id", "role"]).to_pandas()
    counts = outputs.groupby("target_id")["role"].value_counts().unstack(fill_value=0)
    assert (counts["reference"] == 30).all()
    assert (counts["member"] + counts["non_member"] == 100).all()
    assert (counts["background"] == 470).all()
    scores = pq.read_table(out / "scores.parquet").to_pandas()
    assert (scores.groupby(["target_id", "attack_id", "score_name"]).size() == 100).all()
    comparisons = pq.read_table(out / "comparisons.parquet").to_pandas()
    comparisons["split"] = [trials.loc[members[0], "split_label"] for members in comparisons["members"]]
    cohorts = pq.read_table(out / "cohorts.parquet").to_pandas().merge(comparisons[["comparison_id", "split"]])
    assert (cohorts["n_examples"] == 100).all()
    first = cohorts[cohorts["is_first"]].set_index(["attack", "split"])
    assert first.loc[("ratio", "wrong"), "auc"] > 0.85
    assert first.loc[("ratio", "clean"), "auc"] < 0.75
    assert first.loc[("ratio", "wrong"), "epsilon_lower_bound"] > 1
    assert (first["null_auc"] - 0.5).abs().max() < 0.1
    # What was asked is a canary with its wrong label
    ids = set(scores["example_id"])
    assert ids == set(scores[scores["target_id"] == scores["target_id"].iloc[0]]["example_id"])

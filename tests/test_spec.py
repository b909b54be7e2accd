"""Sweep files: what they expand to, how overrides reach into them, and what is said of wrong ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sweeper import components
from sweeper.errors import UserError
from sweeper.spec import expand, load_sweep, packaged_sweeps


@pytest.mark.parametrize("name", sorted(packaged_sweeps()))
def test_packaged_sweeps_are_right_and_say_what_they_are(name: str) -> None:
    sweep = load_sweep(name)
    assert sweep.name == name
    assert all((sweep.summary, sweep.paper, sweep.cost, sweep.expected))
    assert str(len(expand(sweep))) in sweep.cost


def test_lomurno2022_is_the_papers_study() -> None:
    sweep = load_sweep("lomurno2022")
    parts = {part.name: part for part in sweep.parts}
    assert list(parts["tables"].datasets) == ["mnist", "fashion_mnist", "cifar10"]
    assert parts["tables"].splits == ("official",)
    assert parts["quarters"].splits == ("quarters",)
    assert list(parts["tables"].defenses) == [
        "baseline",
        "dp_eps2",
        "dp_eps4",
        "dp_eps8",
        "l2",
        "dropout",
        "l2_dropout",
    ]
    training = parts["tables"].training
    assert (training.learning_rate, training.batch_size, training.momentum) == (0.1, 200, 0.0)
    assert [parts["tables"].defenses[f"dp_eps{epsilon}"][0].epsilon for epsilon in (2, 4, 8)] == [2, 4, 8]
    assert parts["tables"].defenses["dp_eps2"][0].delta == 1e-5


def test_the_grid_is_every_combination(tiny: Path) -> None:
    sweep = load_sweep(str(tiny), ["seeds=[0, 1, 2]", "splits=[quarters]"])
    trials = expand(sweep)
    assert len(trials) == 6
    assert len({trial.target_id for trial in trials}) == 6
    assert [trial.seed for trial in trials] == [0, 0, 1, 1, 2, 2]


def test_the_first_seed_of_every_part_comes_first() -> None:
    trials = expand(load_sweep("lomurno2022"))
    assert [trial.seed for trial in trials] == [0] * 42 + [1] * 42 + [2] * 42
    assert {trial.part for trial in trials[:42]} == {"tables", "quarters"}


def test_identity_is_of_what_makes_the_target_and_nothing_else(tiny: Path) -> None:
    def ids(*overrides: str) -> list[str]:
        return [trial.target_id for trial in expand(load_sweep(str(tiny), overrides))]

    base = ids()
    assert ids("attacks=[threshold]") == base
    assert ids("name=other") == base
    assert ids("defenses={a: none, b: {name: dp_sgd, noise_multiplier: 1.0, accountant: rdp, delta: 1.0e-5}}") == base
    for change in ("training.epochs=3", "training.learning_rate=0.2", "seeds=[1]", "splits=[quarters, half]"):
        overrides = [change] if "half" not in change else [change, "attacks=[threshold]"]
        assert set(ids(*overrides)) != set(base), change
    assert ids("max_test_examples=50") == base  # the dataset's own value wins over the sweep's
    assert ids("datasets.digits.max_test_examples=50") != base


def test_a_components_revision_changes_identities(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.defenses.dp_sgd import DpSgd

    before = [trial.target_id for trial in expand(load_sweep(str(tiny)))]
    monkeypatch.setattr(DpSgd, "revision", 99)
    after = [trial.target_id for trial in expand(load_sweep(str(tiny)))]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_fields_that_change_no_result_are_not_in_an_identity() -> None:
    from attacks.membership.trained_attackers import TrainedAttackers

    one, two = (components.configuration("attack", TrainedAttackers(jobs=jobs)) for jobs in (1, 2))
    assert one == two


def test_overrides_reach_every_part_or_one() -> None:
    sweep = load_sweep(
        "lomurno2022",
        [
            "max_train_examples=1000",
            "parts.quarters.max_train_examples=4000",
            "training.epochs=3",
            "attacks.layer_decoder.epochs=2",
            "defenses.dp_eps2.epsilon=1.5",
            "training.learning_rate=1e-2",
        ],
    )
    tables, quarters = sweep.parts
    assert {dataset.max_train_examples for dataset in tables.datasets.values()} == {1000}
    assert {dataset.max_train_examples for dataset in quarters.datasets.values()} == {4000}
    assert tables.training == quarters.training
    assert (tables.training.epochs, tables.training.learning_rate) == (3, 0.01)
    assert next(attack for attack in tables.attacks if attack.family == "inversion").epochs == 2
    assert tables.defenses["dp_eps2"][0].epsilon == 1.5


def test_only_keeps_what_matches() -> None:
    sweep = load_sweep("lomurno2022")
    labels = {(trial.defense_label, trial.dataset_label) for trial in expand(sweep, ["dp_*/mnist", "l2/cifar10"])}
    assert labels == {("dp_eps2", "mnist"), ("dp_eps4", "mnist"), ("dp_eps8", "mnist"), ("l2", "cifar10")}
    assert {trial.split for trial in expand(sweep, ["l2/mnist/quarters"])} == {"quarters"}
    with pytest.raises(UserError, match=r"Did you mean 'dropout/mnist'"):
        expand(sweep, ["dropot/mnist"])


def test_one_target_in_two_parts_is_one_trial_with_both_parts_attacks(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "datasets: [digits]\ndefenses: [none]\nparts: {a: {attacks: [threshold]}, b: {attacks: [shadow, threshold]}}"
    )
    (trial,) = expand(load_sweep(str(path)))
    assert {components.name_of("attack", attack) for attack in trial.attacks} == {"threshold", "shadow"}


def test_architectures_are_told_apart_by_their_labels(tiny: Path) -> None:
    override = "architectures={small: {name: lomurno_cnn, filters: [4, 4, 4]}, big: lomurno_cnn}"
    assert [trial.architecture_label for trial in expand(load_sweep(str(tiny), [override]))] == [
        "small",
        "small",
        "big",
        "big",
    ]


def test_two_configurations_under_one_set_of_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(
        "datasets: [digits]\ndefenses: [none]\nattacks: []\n"
        "parts: {a: {training: {epochs: 1}}, b: {training: {epochs: 2}}}"
    )
    with pytest.raises(UserError, match="two configurations under one set of labels"):
        expand(load_sweep(str(path)))


def test_one_configuration_under_two_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("datasets: [digits]\nattacks: []\ndefenses: {a: none, b: none}")
    with pytest.raises(UserError, match="under two labels"):
        expand(load_sweep(str(path)))


WRONG = {
    "unknown defense": ("defenses=[dp_sdg]", "Unknown defense 'dp_sdg'. Did you mean 'dp_sgd'?"),
    "unknown attack": ("attacks=[lirra]", "Unknown attack 'lirra'."),
    "unknown dataset": ("datasets=[mnits]", "Did you mean 'mnist'?"),
    "unknown architecture": ("architectures=[resnet]", "Available: lin_cnn, lin_lstm, lomurno_cnn, resnet18"),
    "unknown split": ("splits=[quarter]", "Did you mean 'quarters'?"),
    "unknown key": ("trainin.epochs=3", "Did you mean 'training'?"),
    "unknown field": ("training.epoch=3", "Did you mean 'epochs'?"),
    "wrong type": ("training.epochs=ten", "got 'ten'. Input should be a valid integer"),
    "text for a number": ("training.epochs='3'", "got '3'. Input should be a valid integer"),
    "truth for a number": ("training.epochs=true", "got True"),
    "epsilon of zero": ("defenses=[{name: dp_sgd, epsilon: 0}]", "epsilon is 0.0; it must be above 0"),
    "negative epsilon": ("defenses=[{name: dp_sgd, epsilon: -2}]", "epsilon is -2.0"),
    "epsilon not a number": ("defenses=[{name: dp_sgd, epsilon: .nan}]", "epsilon is nan"),
    "infinite epsilon": ("defenses=[{name: dp_sgd, epsilon: .inf}]", "epsilon is inf"),
    "epsilon for l2": ("defenses=[{name: l2, epsilon: 3}]", "Unknown field 'epsilon'"),
    "no epsilon": ("defenses=[dp_sgd]", "exactly one of epsilon and noise_multiplier"),
    "shadow without its data": ("splits=[half]", "needs shadow data, which split 'half' does not keep"),
    "empty list": ("seeds=[]", "at least one element"),
    "negative seed": ("seeds=[-1]", "a seed is a whole number"),
    "seed twice": ("seeds=[1, 1]", "given twice"),
    "label twice": ("datasets=[digits, digits]", "label 'digits' is used twice"),
    "label with a slash": ("defenses={a/b: none}", "label 'a/b'"),
    "no assignment": ("training.epochs", "must be key=value"),
    "bad YAML": ("seeds=[1", "is not valid YAML"),
    "no such element": ("attacks.lira.epochs=3", "Unknown element 'lira'"),
    "inside a number": ("training.epochs.x=3", "has no 'x' inside"),
    "path that climbs out": ("datasets=[{name: image_folder, folder: ../x}]", "folder is '../x'"),
    "unknown part": ("parts.nope.seeds=[1]", "Unknown label 'nope'"),
    "unknown label": ("defenses.dpp.epsilon=3", "Unknown label 'dpp'. Did you mean 'dp'?"),
    "no file": ("name: empty", "datasets: this key is required"),
    "split that is no name": ("splits=[[1]]", "Unknown split '[1]'"),
    "split twice": ("splits=[quarters, quarters]", "a split is given twice"),
    "anchor in itself": ("training.epochs=&a [*a]", "an anchor refers to itself"),
    "too deep": ("seeds=" + "[" * 30 + "]" * 30, "nests more than 20 levels"),
    "no architecture": ("architectures=[]", "at least one element"),
    "null byte": ('datasets=[{name: image_folder, folder: "a\\0b"}]', "it must be a path below"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_input_is_explained(case: str, tiny: Path) -> None:
    override, expected = WRONG[case]
    with pytest.raises(UserError) as raised:
        if case == "no file":
            tiny.write_text(override)
        expand(load_sweep(str(tiny), [] if case == "no file" else [override]))
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("datasets: [digits\n", "is not valid YAML"),
        ("[1, 2]", "must hold a mapping"),
        ("seeds: [1]\nseeds: [2]", "key 'seeds' is given twice"),
        ("defenses: [none]\nattacks: []", "datasets: this key is required"),
        ("name: a/b", "name: got 'a/b'"),
        ("parts: []", "parts: got []"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("datasets: &a [*a]", "an anchor refers to itself"),
    ],
)
def test_wrong_files_are_explained(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_sweep(str(path))
    assert expected in str(raised.value)


def test_merge_keys_of_yaml_work(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(
        "datasets: [digits]\nattacks: []\ndefenses:\n  a: &a {name: l2, weight: 0.1}\n  b: {<<: *a, weight: 0.2}\n"
    )
    assert [trial.defenses[0].weight for trial in expand(load_sweep(str(path)))] == [0.1, 0.2]


def test_a_missing_file_and_an_unknown_name_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_sweep(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="Did you mean 'lomurno2022'"):
        load_sweep("lomurno2021")


@pytest.mark.parametrize("kind", sorted(components.KINDS))
def test_every_component_found_is_a_frozen_dataclass_with_a_source(kind: str) -> None:
    assert components.names(kind)
    for name in components.names(kind):
        cls = components.component_class(kind, name)
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen, name
        assert cls.source
        assert cls.__doc__
        assert not (cls.__doc__ or "").startswith(f"{cls.__name__}("), f"{name} has no docstring of its own"


def test_installed_packages_can_add_components(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_package.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom models.defenses.base import Defense\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(Defense):\n    strength: int = 1\n    source: ClassVar[str] = 'me'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from importlib.metadata import EntryPoint

    point = EntryPoint(name="mine", value="my_package:Mine", group="sweeper.defenses")
    monkeypatch.setattr(components, "entry_points", lambda group: [point] if group == point.group else [])
    for cached in (components.names, components.component_class, components._name_of_class):
        cached.cache_clear()
    try:
        defense = components.build("defense", {"name": "mine", "strength": 3}, "here")
        assert components.configuration("defense", defense) == {"name": "mine", "revision": 1, "strength": 3}
    finally:
        monkeypatch.undo()
        for cached in (components.names, components.component_class, components._name_of_class):
            cached.cache_clear()

"""Sweep files: their trials, overrides of their keys, and messages about wrong files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from models.datasets.svhn import Svhn
from models.defenses.base import Mechanism
from models.splits import SPLITS, SplitPlan
from models.train import LEARNING_RATES, Recipe
from sweeper.errors import UserError
from sweeper.sweep import components
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.packaged import packaged_sweeps
from sweeper.sweep.preflight import resolve_trials
from sweeper.sweep.trial import Trial


def written(tmp_path: Path, text: str, *overrides: str, only: tuple[str, ...] = ()) -> list[Trial]:
    """The trials of a sweep file with `text`."""
    path = tmp_path / "written.yaml"
    path.write_text(text, encoding="utf-8")
    return expand(load_sweep(str(path), overrides), only)


@pytest.mark.parametrize("kind", sorted(components.KINDS))
def test_what_is_read_from_a_components_file_is_what_its_class_says(kind: str) -> None:
    for name in components.names(kind):
        cls = components.component_class(kind, name)
        assert components.description(kind, name) == ((cls.__doc__ or "").strip().splitlines()[0], cls.source)


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
    assert parts["tables"].splits == {"official": SplitPlan(name="official")}
    assert parts["quarters"].splits == {"quarters": SplitPlan(name="quarters")}
    assert list(parts["tables"].defenses) == [
        "baseline",
        "dp_eps2",
        "dp_eps4",
        "dp_eps8",
        "l2",
        "dropout",
        "l2_dropout",
    ]
    (training,) = parts["tables"].trainings.values()
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
    each = [63, 63, 63, 21, 21, 21, 21, 21]  # only the part of cohorts has more than three seeds
    assert [trial.seed for trial in trials] == [seed for seed, count in enumerate(each) for _ in range(count)]
    assert {trial.part for trial in trials[:63]} == {"tables", "quarters", "cohorts"}


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
    tables, quarters, _ = sweep.parts
    assert {dataset.max_train_examples for dataset in tables.datasets.values()} == {1000}
    assert {dataset.max_train_examples for dataset in quarters.datasets.values()} == {4000}
    assert tables.trainings == quarters.trainings
    assert list(tables.trainings) == ["sgd"]
    assert (tables.trainings["sgd"].epochs, tables.trainings["sgd"].learning_rate) == (3, 0.01)
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


BASE = "datasets: [digits]\nattacks: []\n"


def test_without_optimizers_a_trials_label_is_that_of_its_training(tmp_path: Path) -> None:
    (trial,) = written(tmp_path, BASE + "defenses: [none]")
    assert (trial.optimizer_label, trial.training.learning_rate) == ("sgd", LEARNING_RATES["sgd"])
    (trial,) = written(tmp_path, BASE + "defenses: [none]\ntraining: {optimizer: adam}")
    assert (trial.optimizer_label, trial.training.optimizer) == ("adam", "adam")
    assert trial.training.learning_rate == LEARNING_RATES["adam"]


def test_optimizers_are_an_axis(tmp_path: Path) -> None:
    text = (
        BASE + "defenses: {base: none, l2: l2}\nseeds: [0, 1]\ntraining: {epochs: 7}\noptimizers: [sgd, adam, adagrad]"
    )
    trials = written(tmp_path, text)
    assert len({trial.target_id for trial in trials}) == len(trials) == 12
    for name in ("sgd", "adam", "adagrad"):
        mine = [trial for trial in trials if trial.optimizer_label == name]
        assert [(trial.defense_label, trial.seed) for trial in mine] == [("base", 0), ("l2", 0), ("base", 1), ("l2", 1)]
        for trial in mine:
            training = trial.training
            assert (training.optimizer, training.learning_rate, training.epochs) == (name, LEARNING_RATES[name], 7)
            assert trial.labels == (trial.defense_label, "digits", "lomurno_cnn", name)
            assert trial.config["training"]["optimizer"] == name


def test_an_optimizer_may_have_a_label_and_settings_of_its_own(tmp_path: Path) -> None:
    text = BASE + (
        "defenses: [none]\noptimizers: {plain: sgd, heavy: {name: sgd, learning_rate: 0.05, momentum: 0.9}, "
        "slow: {name: adam, learning_rate: 0.0005}}"
    )

    def settings(*overrides: str) -> dict[str, tuple[object, ...]]:
        return {
            trial.optimizer_label: (trial.training.optimizer, trial.training.learning_rate, trial.training.momentum)
            for trial in written(tmp_path, text, *overrides)
        }

    assert settings() == {
        "plain": ("sgd", 0.1, 0.0),
        "heavy": ("sgd", 0.05, 0.9),
        "slow": ("adam", 0.0005, 0.0),
    }
    assert settings("optimizers.slow.learning_rate=0.002")["slow"] == ("adam", 0.002, 0.0)
    assert settings("optimizers.plain.learning_rate=0.2")["plain"] == ("sgd", 0.2, 0.0)
    assert settings("optimizers=[adadelta]") == {"adadelta": ("adadelta", 1.0, 0.0)}


def test_a_part_has_optimizers_of_its_own_or_those_of_the_file(tmp_path: Path) -> None:
    text = BASE + (
        "optimizers: [sgd, adam]\nparts:\n  a: {defenses: [none]}\n  b: {defenses: [l2], optimizers: [adagrad]}\n"
        "  c: {defenses: [dropout], optimizers: null, training: {learning_rate: 0.3}}"
    )
    found = [(trial.part, trial.optimizer_label, trial.training.learning_rate) for trial in written(tmp_path, text)]
    assert sorted(found) == [("a", "adam", 0.001), ("a", "sgd", 0.1), ("b", "adagrad", 0.01), ("c", "sgd", 0.3)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "training: {learning_rate: 0.2}\noptimizers: [sgd]",
            "parts.main.training.learning_rate: got 0.2, but the sweep has `optimizers`, each with its own. Remove it "
            "here and put it there: optimizers: {sgd: {name: sgd, learning_rate: 0.2}}.",
        ),
        ("training: {momentum: 0.0}\noptimizers: [sgd]", "training.momentum: got 0.0"),
        ("training: {optimizer: adam}\noptimizers: [sgd]", "put it there: optimizers: [adam]."),
        ("training: {learning_rate: 0.2}\nparts: {a: {optimizers: [sgd]}}", "parts.a.training.learning_rate: got 0.2"),
        ("optimizers: [sgd]\nparts: {a: {training: {learning_rate: 0.2}}}", "parts.a.training.learning_rate: got 0.2"),
        ("optimizers: [adm]", "optimizers.adm: Unknown optimizer 'adm'. Did you mean 'adam'?"),
        ("optimizers: {a: {name: adam, rate: 1}}", "optimizers.a: Unknown field 'rate'."),
        ("optimizers: {a: {name: adam, epochs: 1}}", "optimizers.a: Unknown field 'epochs'."),
        ("optimizers: {a: {learning_rate: 1}}", "optimizers.a: {'learning_rate': 1} does not name an optimizer."),
        (
            "optimizers: {a: {name: adam, momentum: 0.9}}",
            "optimizers.a (adam): momentum is 0.9, but only sgd takes one",
        ),
        ("optimizers: {a: {name: adam, learning_rate: -1}}", "optimizers.a (adam): learning_rate is -1"),
        ("optimizers: [sgd, sgd]", "optimizers: label 'sgd' is used twice"),
        ("optimizers: {a/b: sgd}", "optimizers: label 'a/b'"),
        ("optimizers: {a: sgd, b: {name: sgd, learning_rate: 0.1}}", "are the same configuration under two labels"),
        ("optimizers: []", "optimizers: got []; it must be a list with at least one element"),
        ("training: 3\noptimizers: [sgd]", "parts.main.training: got 3"),
        ("training: {epoch: 3}\noptimizers: [sgd]", "parts.main.training: Unknown field 'epoch'"),
    ],
)
def test_wrong_optimizers_are_explained(lines: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        written(tmp_path, BASE + "defenses: [none]\n" + lines)
    assert expected in str(raised.value)


def test_two_parts_may_differ_by_their_optimizers_only(tmp_path: Path) -> None:
    text = BASE + "defenses: [none]\nparts: {a: {optimizers: [sgd]}, b: {optimizers: [adam]}}"
    assert [trial.labels[-1] for trial in written(tmp_path, text)] == ["sgd", "adam"]


def test_a_title_says_architecture_and_optimizer_only_where_they_are_unusual(tmp_path: Path) -> None:
    def title(lines: str) -> str:
        (trial,) = written(tmp_path, BASE + "defenses: {base: none}\nsplits: [half]\n" + lines)
        return trial.title

    assert title("") == "base · digits · half · seed 0"
    assert title("architectures: [lin_cnn]") == "base · digits · half · seed 0 · lin_cnn · sgd"
    assert title("optimizers: [adam]") == "base · digits · half · seed 0 · lomurno_cnn · adam"


def test_a_grid_is_every_combination_of_its_values_first_field_slowest(tmp_path: Path) -> None:
    text = BASE + (
        "defenses:\n  base: none\n  ca: {name: dp_sgd, accountant: rdp, "
        "grid: {noise_multiplier: [0.1, 0.5], max_grad_norm: [0.8, 1, 1.0e-5]}}"
    )

    def points(*overrides: str) -> dict[str, tuple[float, ...]]:
        return {
            trial.defense_label: (trial.defenses[0].noise_multiplier, trial.defenses[0].max_grad_norm)
            for trial in written(tmp_path, text, *overrides)
            if trial.defense_label != "base"
        }

    assert list(points().items()) == [
        ("ca_0.1_0.8", (0.1, 0.8)),
        ("ca_0.1_1", (0.1, 1.0)),
        ("ca_0.1_1e-05", (0.1, 1e-5)),
        ("ca_0.5_0.8", (0.5, 0.8)),
        ("ca_0.5_1", (0.5, 1.0)),
        ("ca_0.5_1e-05", (0.5, 1e-5)),
    ]
    assert {trial.defenses[0].accountant for trial in written(tmp_path, text) if "ca" in trial.defense_label} == {"rdp"}
    overrides = ("defenses.ca.grid.noise_multiplier=[0.2]", "defenses.ca.grid.max_grad_norm=[3]")
    assert points(*overrides) == {"ca_0.2_3": (0.2, 3.0)}


def test_a_grid_may_be_of_text_and_in_a_list(tmp_path: Path) -> None:
    text = BASE + "defenses: [none, {name: dp_sgd, noise_multiplier: 1, grid: {accountant: [rdp, prv]}}, l2]"
    labels = [trial.defense_label for trial in written(tmp_path, text)]
    assert labels == ["none", "dp_sgd_rdp", "dp_sgd_prv", "l2"]


@pytest.mark.parametrize(
    ("defenses", "expected"),
    [
        ("{a: {name: l2, grid: [0.1]}}", "defenses.a.grid: got [0.1]; it must map fields to lists of values"),
        ("{a: {name: l2, grid: {}}}", "defenses.a.grid: got {}; it must map"),
        ("{a: {name: l2, grid: {weight: 0.1}}}", "defenses.a.grid.weight: got 0.1; it must be a list"),
        (
            "{a: {name: l2, grid: {weight: null}}}",
            "defenses.a.grid.weight: got None; it must be a list with at least one",
        ),
        ("{a: {name: l2, grid: {weight: []}}}", "defenses.a.grid.weight: got []; it must be a list with at least one"),
        ("{a: {name: l2, weight: 1, grid: {weight: [2]}}}", "defenses.a: 'weight' is given twice"),
        ("{a: {name: l2, grid: {name: [none]}}}", "defenses.a: 'name' is given twice"),
        ("{a: {name: l2, grid: {wieght: [2]}}}", "Unknown field 'wieght'. Did you mean 'weight'?"),
        ("{a: {name: l2, grid: {weight: [2, x]}}}", "defenses.a_x (l2).weight: got 'x'"),
        ("{a: {name: l2, grid: {weight: [2, -1]}}}", "defenses.a_-1 (l2): weight is -1"),
        ("{a: {grid: {weight: [2]}}}", "defenses.a_2: {'weight': 2} does not name a defense"),
        ("{a: [{name: l2, grid: {weight: [2]}}, dropout]}", "defenses.a: a grid is inside a list of defenses"),
        ("{a: {name: l2, grid: {weight: [2, 2.0]}}}", "defenses: label 'a_2' is used twice: by the grid of 'a'"),
        ("{a: {name: l2, grid: {weight: [2]}}, a_2: none}", "defenses: label 'a_2' is used twice"),
        ("{a_2: none, a: {name: l2, grid: {weight: [2]}}}", "defenses: label 'a_2' is used twice"),
        ("{a: {name: l2, grid: {weight: [[2]]}}}", "defenses.a.grid: label 'a_[2]' may hold letters"),
    ],
)
def test_wrong_grids_are_explained(defenses: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        written(tmp_path, BASE + f"defenses: {defenses}")
    assert expected in str(raised.value)


PARTS = (
    "datasets: [digits, mnist]\nattacks: []\nsplits: [half]\nparts:\n"
    "  sequence: {defenses: {base: none, ca_1: {name: l2, weight: 0.1}, ca_2: {name: l2, weight: 0.2}}}\n"
    "  sizes: {defenses: {base: none, ca_3: {name: l2, weight: 0.3}, sizes_l2: l2}}\n"
    "  base: {defenses: {base: none, other: dropout}}\n"
)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (("sequence:",), {"base/digits", "base/mnist", "ca_1/digits", "ca_1/mnist", "ca_2/digits", "ca_2/mnist"}),
        (("sequence",), {"base/digits", "base/mnist", "ca_1/digits", "ca_1/mnist", "ca_2/digits", "ca_2/mnist"}),
        (("sequence:ca_*",), {"ca_1/digits", "ca_1/mnist", "ca_2/digits", "ca_2/mnist"}),
        (("sequence:ca_*/mnist",), {"ca_1/mnist", "ca_2/mnist"}),
        (("sequence:ca_2/*/half",), {"ca_2/digits", "ca_2/mnist"}),
        (("s*s:ca_*/mnist", "sequence:ca_1/digits"), {"ca_3/mnist", "ca_1/digits"}),
        (("ca_*/mnist",), {"ca_1/mnist", "ca_2/mnist", "ca_3/mnist"}),
        (("base",), {"base/digits", "base/mnist"}),  # a defense before a part of its name
        (("base:",), {"base/digits", "base/mnist", "other/digits", "other/mnist"}),
        (("base:base/mnist",), {"base/mnist"}),
        (("sizes:*/digits",), {"base/digits", "ca_3/digits", "sizes_l2/digits"}),
    ],
)
def test_only_picks_parts_and_within_parts(only: tuple[str, ...], expected: set[str], tmp_path: Path) -> None:
    trials = written(tmp_path, PARTS, only=only)
    assert {f"{trial.defense_label}/{trial.dataset_label}" for trial in trials} == expected
    assert len(trials) == len(expected)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("sequense", "Unknown defense or part 'sequense'. Did you mean 'sequence'?"),
        ("ohter", "Unknown defense or part 'ohter'. Did you mean 'other'?"),
        ("sequense:ca_1", "Unknown part 'sequense'. Did you mean 'sequence'?"),
        (
            "sequence:ca1",
            "in part 'sequence': Unknown defense 'ca1'. Did you mean 'ca_1'? Available: base, ca_1, ca_2.",
        ),
        ("sequence:ca_1/mnits", "in part 'sequence': Unknown DEFENSE/DATASET 'ca_1/mnits'. Did you mean 'ca_1/mnist'?"),
        ("sequence:other", "in part 'sequence': Unknown defense 'other'."),
        ("sequence/mnist", "Unknown DEFENSE/DATASET 'sequence/mnist'"),
        ("base/mnist/half/0", "Unknown DEFENSE/DATASET 'base/mnist/half/0'"),
        (":", "Unknown part ''"),
        ("", "Unknown defense or part ''"),
    ],
)
def test_patterns_of_only_that_match_nothing_are_explained(pattern: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        written(tmp_path, PARTS, only=(pattern,))
    assert f"--only {pattern}" in str(raised.value)
    assert expected in str(raised.value)


def test_a_trial_names_all_the_parts_that_have_it(tmp_path: Path) -> None:
    parts = {trial.defense_label: (trial.part, trial.parts) for trial in written(tmp_path, PARTS)}
    assert parts == {
        "base": ("sequence", ("sequence", "sizes", "base")),
        "ca_1": ("sequence", ("sequence",)),
        "ca_2": ("sequence", ("sequence",)),
        "ca_3": ("sizes", ("sizes",)),
        "sizes_l2": ("sizes", ("sizes",)),
        "other": ("base", ("base",)),
    }


def test_a_part_whose_name_only_could_not_tell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="parts: label 'a:b' may hold letters"):
        written(tmp_path, BASE + "defenses: [none]\nparts: {'a:b': {}}")


TWINS = BASE + (
    "splits: [half]\ntraining: {paired_batches: true}\nparts:\n"
    "  shuffled: {defenses: {base: none, l2: l2, dropout: dropout, l2_dropout: [l2, dropout]}}\n"
    "  poisson: {training: {sampling: poisson}, defenses: {base_poisson: none, l2_poisson: l2}}\n"
    "  private: {defenses: {dp: {name: dp_sgd, noise_multiplier: 1}, dp_l2: [{name: dp_sgd, noise_multiplier: 1}, l2],"
    " none_dp: [none, {name: dp_sgd, noise_multiplier: 1}],"
    " l2_dp: [l2, {name: dp_sgd, noise_multiplier: 2}]}}\n"
)


def test_a_mechanisms_twin_is_the_trial_without_it_under_its_own_batches(tmp_path: Path) -> None:
    trials = written(tmp_path, TWINS, "seeds=[0, 1]")
    ids = {(trial.defense_label, trial.seed): trial.target_id for trial in trials}
    twins = {(trial.defense_label, trial.seed): trial.twin_id for trial in trials}
    for seed in (0, 1):
        assert twins["dp", seed] == twins["none_dp", seed] == ids["base_poisson", seed]
        assert twins["dp_l2", seed] == twins["l2_dp", seed] == ids["l2_poisson", seed]
        for name in ("base", "l2", "dropout", "l2_dropout", "base_poisson", "l2_poisson"):
            assert twins[name, seed] is None


def test_a_mechanism_that_brings_no_poisson_batches_keeps_those_of_the_training(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Shuffled(Mechanism):
        source = "a test"

    for sampling in ("shuffled", "poisson"):
        (base,) = written(tmp_path, BASE + f"defenses: [none]\ntraining: {{sampling: {sampling}}}")
        assert dataclasses.replace(base, defenses=(Shuffled(),)).twin_id == base.target_id


def test_an_accounted_mechanism_with_batches_of_its_own_has_no_twin(tmp_path: Path) -> None:
    text = (
        BASE
        + "training: {sampling: poisson}\ndefenses: {none: none, ac: noise_then_clip, dp: {name: dp_sgd, epsilon: 2}}"
    )
    none, ac, private = written(tmp_path, text)
    assert ac.twin_id == none.target_id
    assert private.twin_id is None


def test_every_mechanism_there_is_has_a_twin_where_batches_are_paired(tmp_path: Path) -> None:
    (base,) = written(tmp_path, BASE + "defenses: [none]\ntraining: {paired_batches: true}")
    (poisson,) = written(tmp_path, BASE + "defenses: [none]\ntraining: {sampling: poisson, paired_batches: true}")
    classes = [components.component_class("defense", name) for name in components.names("defense")]
    mechanisms = [cls for cls in classes if issubclass(cls, Mechanism)]
    assert mechanisms
    for cls in mechanisms:
        trial = dataclasses.replace(base, defenses=(object.__new__(cls),))  # its fields are in no twin
        assert trial.twin_id == (poisson if cls.poisson_sampling else base).target_id, cls


def test_coins_are_planned_with_the_members_that_each_seed_gives(tmp_path: Path) -> None:
    text = (
        "datasets: [{name: digits, max_train_examples: 200, max_test_examples: 20}]\nattacks: []\nsplits: [coins, half]\n"
        "architectures: [{name: lomurno_cnn, filters: [2, 2, 2]}]\ntraining: {epochs: 1, batch_size: 50}\n"
        "defenses: {dp: {name: dp_sgd, noise_multiplier: 1, accountant: rdp}}\nseeds: [0, 1, 2, 3]"
    )
    resolved, _ = resolve_trials(written(tmp_path, text), tmp_path)
    planned = {}
    for each in resolved:
        trial = each.trial
        data = trial.dataset.load(tmp_path)
        split = SPLITS[trial.split](data.info.n_train, data.info.n_test, trial.seed)
        target = Recipe(
            architecture=trial.architecture,
            defenses=trial.defenses,
            training=trial.training,
            data=data,
            members=split.members,
            test=split.test,
            seed=trial.seed,
            target_id=trial.target_id,
        ).train()
        size = each.size
        assert (size.n_train, size.n_non_members, size.n_test) == (len(split.members), len(split.non_members), 20)
        assert each.plan == target.plan
        assert each.plan.accounting.sample_rate == 50 / size.n_train
        planned[trial.split, trial.seed] = size.n_train
    assert len({n_train for (split, _), n_train in planned.items() if split == "coins"}) > 1
    assert {n_train for (split, _), n_train in planned.items() if split == "half"} == {100}


def test_transforms_are_settings_of_a_dataset_and_part_of_an_identity(tmp_path: Path) -> None:
    text = "attacks: []\ndefenses: [none]\nsplits: [half]\ndatasets:\n  plain: svhn\n"
    text += "  gray: {name: svhn, extra: true, grayscale: true, crop: 30, resize: 28, max_train_examples: 100, subset_seed: 4}"
    plain, gray = written(tmp_path, text)
    assert gray.dataset == Svhn(extra=True, grayscale=True, crop=30, resize=28, max_train_examples=100, subset_seed=4)
    assert plain.target_id != gray.target_id
    expected = {
        "name": "svhn",
        "revision": 1,
        "extra": True,
        "grayscale": True,
        "crop": 30,
        "resize": 28,
        "subset_seed": 4,
    }
    assert gray.config["dataset"] == expected | {"max_train_examples": 100, "max_test_examples": None}
    for change in ("grayscale=false", "crop=29", "resize=27", "subset_seed=5", "extra=false"):
        assert written(tmp_path, text, f"datasets.gray.{change}")[1].target_id != gray.target_id, change


def test_a_crop_that_is_too_large_is_refused_before_training(tmp_path: Path) -> None:
    trials = written(tmp_path, "attacks: []\ndefenses: [none]\ndatasets: [{name: cifar10, crop: 33}]")
    with pytest.raises(UserError, match="crop is 33, but its images are 32 pixels high and 32 wide"):
        resolve_trials(trials, tmp_path / "nowhere")


def test_two_configurations_under_one_set_of_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(
        "datasets: [digits]\ndefenses: [none]\nattacks: []\n"
        "parts: {a: {training: {epochs: 1}}, b: {training: {epochs: 2}}}"
    )
    with pytest.raises(UserError, match="two configurations under the same labels"):
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
    "unknown architecture": (
        "architectures=[resnet]",
        "Available: lin_cnn, lin_lstm, logistic_regression, lomurno_cnn, mlp, resnet18, resnet20, small_wrn, wrn",
    ),
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
    "split twice": ("splits=[quarters, quarters]", "label 'quarters' is used twice"),
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


def test_long_scalars_take_no_long_time(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    for scalar in ("1" * 200_000 + "x", "1:" + "59:" * 60_000 + "59", "+" + "1" * 200_000 + "e"):
        path.write_text(f"name: {scalar}\ndefenses: [none]\n", encoding="utf-8")
        with pytest.raises(UserError):
            load_sweep(str(path))

"""The training loop: reproducible, each random stream on its own, steps and privacy counted as taken."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import cross_entropy
from training_fixture import CNN, Linear, fit_on, numbered, spelled, weights

from models import answers, train
from models.answers import answer_of, loss_and_accuracy, predict
from models.architectures.lin_lstm import LinLstm
from models.architectures.lomurno_cnn import LomurnoCnn
from models.datasets.digits import Digits
from models.defenses.clip_then_noise import ClipThenNoiseDefense
from models.defenses.dp_sgd import DpSgd
from models.defenses.dropout import Dropout
from models.defenses.l2 import L2
from models.defenses.noise_then_clip import NoiseThenClipDefense
from models.gradient import PlainGradient
from models.performance import Performance, cpu_has_bf16
from models.private.accounting import epsilon
from models.private.gradients import PrivateGradient
from models.seeds import Stream, numpy_generator, seed_torch, torch_generator, torch_seed
from models.train import DivergedError, Training, build_model

DP = DpSgd(noise_multiplier=1.0, accountant="rdp")


@pytest.fixture(scope="module")
def digits():
    return Digits(max_train_examples=240, max_test_examples=60).load(None)


@pytest.fixture
def recorded(monkeypatch):
    """The batches of every step and the weights before the first, of the last training that was run."""
    record = {"batches": [], "initial": None}
    for kind in (PlainGradient, PrivateGradient):
        start, step = kind.__init__, kind.step

        def init(self, model, *arguments, start=start, **more):
            record["batches"] = []
            record["initial"] = torch.cat([value.detach().flatten().clone() for value in model.parameters()])
            start(self, model, *arguments, **more)

        def observed(self, images, labels, step=step):
            record["batches"].append(spelled(images))
            return step(self, images, labels)

        monkeypatch.setattr(kind, "__init__", init)
        monkeypatch.setattr(kind, "step", observed)
    return record


# Reproducible, and on streams of their own


@pytest.mark.slow
@pytest.mark.parametrize(
    "defenses", [(), (Dropout(rate=0.3), L2(weight=0.1)), (Dropout(rate=0.3), DP)], ids=["none", "both", "dp"]
)
def test_the_same_trial_gives_the_same_weights_bit_for_bit(digits, defenses):
    first = fit_on(digits, *defenses)
    torch.manual_seed(12345)  # the surroundings do not matter
    np.random.seed(6)
    again = fit_on(digits, *defenses)
    assert torch.equal(weights(first), weights(again))
    assert [record.train_loss for record in first.history] == [record.train_loss for record in again.history]
    other = fit_on(digits, *defenses, seed=4)
    assert not torch.equal(weights(first), weights(other))


def test_fit_leaves_every_global_generator_as_it_was(digits):
    torch.manual_seed(7)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    fit_on(digits, Dropout(rate=0.5), DP, evaluate_every=1)
    after = torch.random.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2] == after[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "same_start", "same_batches"),
    [
        (Stream.INIT, False, True),
        (Stream.SAMPLING, True, False),
        (Stream.NOISE, True, True),
        (Stream.DROPOUT, True, True),
    ],
)
def test_a_stream_changes_its_own_randomness_and_no_other(changed, same_start, same_batches, recorded, monkeypatch):
    data, defenses = numbered(80), (Dropout(rate=0.5), DP)
    base = fit_on(data, *defenses)
    start, batches = recorded["initial"], recorded["batches"]
    monkeypatch.setattr(
        train,
        "torch_generator",
        lambda seed, stream, *rest, **more: torch_generator(seed + (stream == changed), stream, *rest, **more),
    )
    monkeypatch.setattr(
        train, "torch_seed", lambda seed, stream, *rest: torch_seed(seed + (stream == changed), stream, *rest)
    )
    other = fit_on(data, *defenses)
    assert torch.equal(start, recorded["initial"]) == same_start
    assert (batches == recorded["batches"]) == same_batches
    assert not torch.equal(weights(base), weights(other))


@pytest.mark.parametrize("defenses", [(), (DP,)], ids=["none", "dp"])
def test_a_shadow_shares_neither_start_nor_batches_with_its_target(defenses, recorded):
    data = numbered(80)
    fit_on(data, *defenses)
    target = dict(recorded)
    fit_on(data, *defenses, stream_index=1)
    assert not torch.equal(target["initial"], recorded["initial"])
    assert target["batches"] != recorded["batches"]


def test_streams_of_all_seeds_and_indices_are_different():
    keys = [(seed, stream, index) for seed in range(5) for stream in Stream for index in range(4)]
    draws = {key: numpy_generator(*key).random(200) for key in keys}
    assert len({torch_seed(*key) for key in keys}) == len(keys)
    # The largest correlation of 12,720 independent pairs of 200: above 0.5 with a probability below 1e-7.
    assert max(abs(np.corrcoef(draws[one], draws[two])[0, 1]) for one, two in combinations(keys[::3], 2)) < 0.5


def test_every_bit_of_a_seed_counts():
    """PyTorch's `manual_seed` reads 32 bits on CPU."""
    seeds = [5, *(5 + 2**bit for bit in (3, 31, 32, 33, 63, 64, 127))]
    starts = set()
    for seed in seeds:
        generator = torch.Generator()
        seed_torch(generator, seed)
        starts.add(tuple(torch.rand(4, generator=generator).tolist()))
    assert len(starts) == len(seeds)


@pytest.mark.slow
def test_a_hundred_thousand_trials_have_streams_of_their_own():
    seeds = {torch_seed(0, Stream.NOISE, target_id=f"{trial:016x}") for trial in range(100_000)}
    assert len(seeds) == 100_000


def test_the_whole_state_of_the_generator_is_filled():
    """NumPy's Mersenne Twister from the same words gives the same 24 bits."""
    generator = torch.Generator()
    seed_torch(generator, 2**100 + 7)
    twister = np.random.MT19937(np.random.SeedSequence(2**100 + 7))
    words = twister.random_raw(2001)[1:] & (2**24 - 1)  # NumPy begins with the last word of the block before
    assert torch.rand(2000, generator=generator).tolist() == (words / 2**24).tolist()


# What private runs share


def displacement(data, *defenses, **more):
    """How far one full-batch step moved the weights from the seed's start."""
    target = fit_on(data, *defenses, architecture=LomurnoCnn(), epochs=1, batch_size=240, **more)
    start = build_model(LomurnoCnn(), defenses, data.info, torch_seed(3, Stream.INIT))
    moved = zip(target.model.parameters(), start.parameters(), strict=True)
    return torch.cat([(after - before).detach().flatten() for after, before in moved])


def cosine(one, other):
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def private(noise_multiplier, **fields):
    return DpSgd(noise_multiplier=noise_multiplier, accountant="rdp", **fields)


@pytest.mark.parametrize("paired_batches", [False, True])
def test_two_private_runs_of_one_seed_share_no_noise(digits, paired_batches):
    """If both had the same noise, the difference of two releases would reveal the clipped sum."""
    more = {"paired_batches": paired_batches}
    little = displacement(digits, private(20.0), target_id="one", **more)
    much = displacement(digits, private(40.0), target_id="other", **more)
    assert abs(cosine(little, much)) < 0.05  # of some 30,000 coordinates
    assert torch.equal(little, displacement(digits, private(20.0), target_id="one", **more))


def test_accounted_mechanisms_draw_batches_of_their_own_unless_paired(recorded):
    data = numbered(80)
    batches = {}
    for name, defenses, paired in (
        ("none", (), False),
        ("one", (DP,), False),
        ("other", (DP,), False),
        ("paired", (DP,), True),
        ("unaccounted", (NoiseThenClipDefense(),), False),
    ):
        fit_on(data, *defenses, target_id=name, sampling="poisson", paired_batches=paired)
        batches[name] = recorded["batches"]
    assert batches["none"] == batches["paired"] == batches["unaccounted"]
    assert batches["one"] != batches["other"]
    assert batches["none"] not in (batches["one"], batches["other"])


def test_secure_noise_cannot_be_repeated(digits, recorded):
    one, other = (displacement(digits, private(20.0, secure_noise=True)) for _ in range(2))
    assert abs(cosine(one, other)) < 0.05
    assert 0.8 < float(one.norm() / displacement(digits, private(20.0)).norm()) < 1.25
    data, drawn = numbered(80), []
    for _ in range(2):
        fit_on(data, private(1.0, secure_noise=True))
        drawn.append(recorded["batches"])
    assert drawn[0] != drawn[1]


# Batches


@pytest.mark.parametrize(("count", "batch_size"), [(100, 10), (101, 10), (64, 64), (37, 5), (5, 1)])
def test_shuffled_epochs_use_every_example_once_the_last_partial_batch_included(count, batch_size, recorded):
    data = numbered(300)
    members = np.sort(np.random.default_rng(0).permutation(300)[:count])
    target = fit_on(data, architecture=Linear(), members=members, epochs=3, batch_size=batch_size)
    per_epoch = math.ceil(count / batch_size)
    assert target.steps == len(recorded["batches"]) == 3 * per_epoch
    epochs = [recorded["batches"][i * per_epoch : (i + 1) * per_epoch] for i in range(3)]
    for batches in epochs:
        sizes = [len(batch) for batch in batches]
        assert sizes == [batch_size] * (count // batch_size) + ([count % batch_size] if count % batch_size else [])
        assert sorted(chain.from_iterable(batches)) == members.tolist()
    if count > 5:
        assert epochs[0] != epochs[1] != epochs[2]


def test_poisson_batches_take_each_member_independently_at_the_sample_rate(recorded):
    """Sizes are Binomial(n, q): mean, variance and each member's count, every check with a false-alarm rate of 1e-6."""
    data, batch_size, epochs = numbered(400), 12, 30
    members = np.arange(0, 400, 2)
    target = fit_on(data, DP, architecture=Linear(), members=members, batch_size=batch_size, epochs=epochs)
    batches, rate = recorded["batches"], batch_size / len(members)
    steps = epochs * len(members) // batch_size
    assert target.steps == len(batches) == steps == 500
    sizes = np.array([len(batch) for batch in batches])
    spread = len(members) * rate * (1 - rate)
    assert abs(sizes.mean() - batch_size) / math.sqrt(spread / steps) < stats.norm.isf(5e-7)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], steps)
    assert low < ((sizes - batch_size) ** 2).sum() / spread < high
    assert all(len(set(batch)) == len(batch) for batch in batches)
    counts = Counter(chain.from_iterable(batches))
    assert set(counts) <= set(members.tolist())
    each = np.array([counts[member] for member in members.tolist()])
    chi2 = ((each - steps * rate) ** 2).sum() / (steps * rate * (1 - rate))
    assert chi2 < stats.chi2.isf(1e-6, len(members))


def test_an_empty_poisson_batch_is_a_step_of_noise_and_not_an_error(recorded):
    target = fit_on(numbered(40), DP, architecture=Linear(), batch_size=1, epochs=2)
    assert target.steps == 80
    assert [] in recorded["batches"]
    assert torch.isfinite(weights(target)).all()
    assert all(math.isfinite(record.train_loss) for record in target.history)


@pytest.mark.parametrize("defenses", [(), (DP,)], ids=["none", "dp"])
def test_a_batch_larger_than_the_data_is_refused(digits, defenses):
    with pytest.raises(ValueError, match="batch_size is 33 but the target has only 32 training examples"):
        fit_on(digits, *defenses, members=np.arange(32), batch_size=33)
    assert fit_on(digits, members=np.arange(32), batch_size=32, epochs=1).steps == 1


# Interrupted and resumed


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3])
@pytest.mark.parametrize("architecture", [CNN, LinLstm(units=8)], ids=["cnn", "lstm"])
@pytest.mark.parametrize(
    "defenses",
    [(), (Dropout(rate=0.3), L2(weight=0.1)), (Dropout(rate=0.3), DpSgd(noise_multiplier=1.0))],
    ids=["none", "both", "dp"],
)
def test_an_interrupted_and_resumed_training_equals_an_undisturbed_one(digits, defenses, architecture, stop_after):
    settings = {"architecture": architecture, "epochs": 4, "momentum": 0.5}
    undisturbed = fit_on(digits, *defenses, **settings)
    checkpoints = []

    def interrupt(record, epochs):
        if record.epoch == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_on(digits, *defenses, **settings, on_epoch=interrupt, on_checkpoint=checkpoints.append)
    torch.manual_seed(99)  # whatever else the process does meanwhile
    resumed = fit_on(digits, *defenses, **settings, resume=checkpoints[-1])
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert (resumed.guarantee, resumed.steps) == (undisturbed.guarantee, undisturbed.steps)
    assert [replace(record, train_time_s=0) for record in resumed.history] == [
        replace(record, train_time_s=0) for record in undisturbed.history
    ]
    # The checkpoint shares no memory: using it has not changed it.
    again = fit_on(digits, *defenses, **settings, resume=checkpoints[-1])
    assert torch.equal(weights(again), weights(undisturbed))


def test_taking_checkpoints_changes_nothing(digits):
    taken = []
    with_them = fit_on(digits, DP, on_checkpoint=taken.append)
    assert torch.equal(weights(with_them), weights(fit_on(digits, DP)))
    assert [checkpoint.history[-1].epoch for checkpoint in taken] == [1, 2]


# Precision and speed

BF16 = pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU does not compute in bfloat16")


@pytest.mark.slow
@BF16
@pytest.mark.parametrize("defenses", [(), (DpSgd(noise_multiplier=0.3, accountant="rdp"),)], ids=["none", "dp"])
def test_bf16_is_for_activations_in_training_and_for_nothing_else(digits, defenses):
    exact = fit_on(digits, *defenses, epochs=10)
    rounded = fit_on(digits, *defenses, epochs=10, precision="bf16")
    assert {value.dtype for value in rounded.model.state_dict().values()} == {torch.float32}
    assert not torch.equal(weights(exact), weights(rounded))
    apart = (weights(exact) - weights(rounded)).norm() / weights(exact).norm()
    assert apart < 0.05
    assert rounded.history[-1].train_loss == pytest.approx(exact.history[-1].train_loss, rel=0.05)
    assert rounded.guarantee == exact.guarantee


def test_bf16_is_refused_where_it_would_be_emulated(digits, monkeypatch):
    monkeypatch.setattr("models.performance.cpu_has_bf16", lambda: False)
    with pytest.raises(ValueError, match="precision is bf16, but this CPU does not compute in bfloat16; use fp32"):
        fit_on(digits, precision="bf16")
    fit_on(digits, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("defenses", [(), (L2(weight=0.1), DP)], ids=["none", "dp"])
@pytest.mark.parametrize(
    "performance",
    [Performance(channels_last=False), Performance(chunk_size=7), Performance(pad_to=8), Performance(chunk_bytes=1)],
    ids=["contiguous", "chunks", "padded", "one_by_one"],
)
def test_performance_switches_change_rounding_only(digits, defenses, performance):
    settings = {"epochs": 1, "learning_rate": 0.01}
    usual, switched = (
        fit_on(digits, *defenses, **settings),
        fit_on(digits, *defenses, **settings, performance=performance),
    )
    torch.testing.assert_close(weights(switched), weights(usual), rtol=1e-4, atol=1e-5)
    assert switched.guarantee == usual.guarantee


@pytest.mark.parametrize("name", ["chunk_size", "chunk_bytes", "pad_to"])
def test_performance_settings_out_of_range_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        Performance(**{name: 0})


# Steps, history, privacy


@pytest.mark.parametrize(("max_grad_norm", "fraction"), [(1e-4, 1.0), (1e4, 0.0)])
def test_the_fraction_of_gradients_that_were_clipped_is_recorded(max_grad_norm, fraction):
    defense = ClipThenNoiseDefense(max_grad_norm=max_grad_norm, noise_scale=0.0)
    target = fit_on(numbered(40), defense, architecture=Linear(), batch_size=8, epochs=2)
    assert [record.clipped_fraction for record in target.history] == [fraction, fraction]
    plain = fit_on(numbered(40), architecture=Linear(), batch_size=8, epochs=1)
    assert plain.history[0].clipped_fraction is None


@pytest.mark.parametrize(
    ("count", "batch_size", "epochs"), [(100, 32, 3), (90, 7, 2), (64, 64, 5), (99, 50, 1), (60, 40, 4)]
)
def test_steps_and_epsilon_are_those_really_taken(count, batch_size, epochs, recorded):
    target = fit_on(numbered(count), DP, architecture=Linear(), batch_size=batch_size, epochs=epochs)
    assert isinstance(target.steps, int)
    assert target.steps == len(recorded["batches"]) == epochs * count // batch_size == target.history[-1].step
    rate = batch_size / count
    assert target.guarantee.epsilon == epsilon(1.0, rate, target.steps, DP.delta, "rdp")
    assert [record.epsilon_spent for record in target.history] == [
        epsilon(1.0, rate, epoch * count // batch_size, DP.delta, "rdp") for epoch in range(1, epochs + 1)
    ]
    assert (target.guarantee.sampling, target.guarantee.adjacency) == ("poisson", "add_or_remove_one")


@pytest.mark.parametrize("target_epsilon", [1.0, 8.0])
def test_a_wanted_epsilon_is_kept_by_the_steps_that_were_taken(target_epsilon):
    defense = DpSgd(epsilon=target_epsilon, accountant="rdp")
    target = fit_on(numbered(90), defense, architecture=Linear(), batch_size=20, epochs=3)
    assert 0.999 * target_epsilon <= target.guarantee.epsilon <= target_epsilon


def test_without_a_private_mechanism_nothing_is_promised(digits):
    target = fit_on(digits, L2(), Dropout())
    assert target.guarantee is None
    assert {record.epsilon_spent for record in target.history} == {None}


def test_history_has_one_row_per_epoch_with_what_happened_in_it(recorded):
    data, told = numbered(50), []
    target = fit_on(
        data, members=np.arange(40), test=np.arange(40, 50), epochs=5, batch_size=16, evaluate_every=2,
        on_epoch=lambda record, epochs: told.append((record, epochs)),
    )  # fmt: skip
    assert [record.epoch for record in target.history] == [1, 2, 3, 4, 5]
    assert [record.step for record in target.history] == [3, 6, 9, 12, 15]
    assert told == [(record, 5) for record in target.history]
    assert [record.test_loss is not None for record in target.history] == [False, True, False, True, True]
    loss, accuracy = loss_and_accuracy(*predict(answer_of(target.model), data, np.arange(40, 50)))
    assert target.history[-1].test_loss == pytest.approx(loss, rel=1e-5)
    assert target.history[-1].test_accuracy == pytest.approx(accuracy)
    assert all(0 <= record.train_accuracy <= 1 for record in target.history)
    assert target.train_time_s == pytest.approx(sum(record.train_time_s for record in target.history))
    assert target.first_step_time_s > 0
    assert target.seconds_per_step == pytest.approx(target.train_time_s / 14)


@pytest.mark.parametrize(("may_stop", "epochs"), [(False, [2, 4, 5]), (True, [1, 2, 3, 4, 5])])
def test_validation_is_measured_with_the_test_and_each_epoch_where_a_run_may_stop(recorded, may_stop, epochs):
    data = numbered(50)
    target = fit_on(
        data, members=np.arange(30), test=np.arange(40, 50), validation=np.arange(30, 40), epochs=5, batch_size=16,
        evaluate_every=2, may_stop=may_stop,
    )  # fmt: skip
    assert [record.epoch for record in target.history if record.validation_accuracy is not None] == epochs
    _, accuracy = loss_and_accuracy(*predict(answer_of(target.model), data, np.arange(30, 40)))
    assert target.history[-1].validation_accuracy == pytest.approx(accuracy)


def test_measuring_on_the_way_changes_nothing(digits):
    defenses = (Dropout(rate=0.4), DP)
    never, always = fit_on(digits, *defenses), fit_on(digits, *defenses, evaluate_every=1)
    assert torch.equal(weights(never), weights(always))
    assert all(record.test_loss is None for record in never.history)


def test_the_first_epoch_of_one_full_batch_reports_the_loss_at_the_start(digits):
    target = fit_on(digits, epochs=1, batch_size=240)
    start = build_model(CNN, (), digits.info, torch_seed(3, Stream.INIT))
    loss, accuracy = loss_and_accuracy(*predict(answer_of(start), digits, np.arange(240)))
    assert target.history[0].train_loss == pytest.approx(loss, rel=1e-4)
    assert target.history[0].train_accuracy == pytest.approx(accuracy, abs=1e-6)


# What a step does


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight", [0.0, 0.02, 0.5])
def test_l2_is_the_gradient_of_kerass_penalty_on_the_prediction_weights(digits, weight, momentum):
    """Three full-batch steps against autograd of loss + weight·‖w‖², as Keras's kernel_regularizer adds it."""
    target = fit_on(digits, L2(weight=weight), epochs=3, batch_size=240, learning_rate=0.2, momentum=momentum)
    model = build_model(CNN, (), digits.info, torch_seed(3, Stream.INIT))
    velocity = [torch.zeros_like(value) for value in model.parameters()]
    for _ in range(3):
        loss = cross_entropy(model(digits.inputs[:240]), digits.labels[:240])
        loss = loss + weight * model.stages.prediction[0].weight.pow(2).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for value, speed, gradient in zip(model.parameters(), velocity, gradients, strict=True):
                speed.mul_(momentum).add_(gradient)
                value.sub_(0.2 * speed)
    for (name, ours), reference in zip(target.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_a_private_step_is_plain_sgd_on_the_private_gradient(digits):
    """q = 1 and next to no noise: the clipped mean gradient, divided by the expected batch, is what SGD follows."""
    defense = DpSgd(noise_multiplier=1e-7, max_grad_norm=1e4, accountant="rdp")
    private, plain = (fit_on(digits, *each, epochs=1, batch_size=240) for each in ((defense,), ()))
    torch.testing.assert_close(weights(private), weights(plain), rtol=1e-3, atol=1e-4)


def test_a_small_network_learns_real_digits(digits):
    target = fit_on(
        digits, architecture=LomurnoCnn(filters=(8, 8, 8), dense_units=32), epochs=12, batch_size=20, evaluate_every=12
    )
    assert target.history[-1].train_loss < 0.5 * target.history[0].train_loss
    assert target.history[-1].test_accuracy > 0.6
    assert not target.model.training


def test_a_loss_that_is_not_finite_ends_the_training_with_advice(digits):
    with pytest.raises(DivergedError, match=r"in epoch \d+; lower training.learning_rate"):
        fit_on(digits, learning_rate=1e20, epochs=5)


# Predictions


@pytest.mark.parametrize("training", [True, False])
def test_predictions_are_in_the_order_asked_for_in_eval_mode_and_by_parts(digits, training, monkeypatch):
    model = build_model(CNN, (Dropout(rate=0.5),), digits.info, 1).train(training)
    index = np.random.default_rng(0).permutation(len(digits.labels))[:50]
    monkeypatch.setattr(answers, "EVALUATION_BATCH", 7)
    logits, labels = predict(answer_of(model), digits, index)
    assert model.training == training
    with torch.no_grad():
        torch.testing.assert_close(logits, model.eval()(digits.inputs[index]))
    assert torch.equal(labels, digits.labels[index])
    empty, none = predict(answer_of(model), digits, index[:0])
    assert tuple(empty.shape) == (0, 10)
    assert len(none) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"evaluate_every": -1}, "evaluate_every is -1; it must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be at least 0 and below 1"),
        ({"momentum": -0.1}, "momentum is -0.1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(Training(), **changed)

"""Private steps of small models: bounded in sensitivity, whatever the form, the chunks, the padding, the precision."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from private_reference import (
    FORMS,
    SMALL,
    Calls,
    batch,
    distance,
    forced,
    generator,
    made,
    normal,
    private_gradient,
    rerun,
)
from torch import nn
from torch.nn.functional import cross_entropy

from models.architectures.lin_cnn import LinCnn
from models.architectures.lin_lstm import LinLstm
from models.architectures.resnet18 import ResNet18
from models.architectures.resnet20 import ResNet20
from models.architectures.wrn import Wrn
from models.datasets.base import DatasetInfo
from models.performance import Performance, Replay
from models.private.gradients import PrivateGradient
from models.private.rules import Rule

NO_DRAWS = torch.empty(16, 0)


def by_hand(model, images, labels):
    """Gradients of the cross-entropy, (examples, all parameters)."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        loss = cross_entropy(model(image[None]), label[None])
        each = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        rows.append(torch.cat([value.flatten() for value in each]))
    return torch.stack(rows)


def flat_gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def stepped(model, images, labels, **more):
    private = private_gradient(model, **more)
    loss, right = private.step(images, labels)
    private.close()
    return flat_gradient(model), float(loss), float(right)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_step_is_the_sum_of_gradients_clipped_by_hand(name):
    model = SMALL[name]()
    for count in (1, 2, 30):
        images, labels = batch(count)
        samples = by_hand(deepcopy(model).double(), images.double(), labels)
        norms = samples.norm(dim=1)
        clip = float(norms.median())
        expected = (samples * (clip / norms).clamp(max=1)[:, None]).sum(0)
        for form in FORMS.values():
            with forced(**form):
                ours, _, _ = stepped(model, images, labels, clip=clip, chunk_size=13)
            assert distance(ours.double(), expected) < 1e-5


NETWORKS = {
    "lin_cnn": LinCnn(filters=(4, 6), dense_units=8),
    "lin_lstm": LinLstm(units=8),
    "resnet18": ResNet18(width=8, groups=4),
    "resnet20": ResNet20(),
    "wrn": Wrn(depth=10, width=1, groups=4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_the_papers_networks_is_that_sum_too(name):
    info = DatasetInfo(n_train=1, n_test=1, shape=(3, 17, 16), num_classes=3, mean=(0.4,) * 3, std=(0.3,) * 3)
    model = made(lambda: NETWORKS[name].build(info)).eval()  # in eval mode dropout is off
    images, labels = torch.rand(6, 3, 17, 16, generator=generator()), torch.arange(6) % 3
    samples = by_hand(deepcopy(model).double(), images.double(), labels)
    norms = samples.norm(dim=1)
    clip = float(norms.median())
    expected = (samples * (clip / norms).clamp(max=1)[:, None]).sum(0)
    for layout in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=layout)
        ours, _, _ = stepped(model, images.to(memory_format=layout), labels, clip=clip)
        assert distance(ours.double(), expected) < 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_an_empty_batch_is_noise_alone(name):
    model = SMALL[name]()
    images, labels = batch(0)
    ours, loss, right = stepped(model, images, labels, noise=2.0, seed=3)
    count = len(ours)
    assert (loss, right) == (0, 0)
    assert abs(float(ours.double().std()) / 2 - 1) < 5 / (2 * count) ** 0.5  # five standard deviations
    bare, _, _ = stepped(model, images, labels)
    assert not bare.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 5),
    clip=st.floats(-4, 1).map(lambda power: 10**power),
    scale=st.sampled_from([0.1, 1, 30]),
    form=st.sampled_from(sorted(FORMS)),
    pad_to=st.sampled_from([1, 4]),
    contrast=st.sampled_from([1, 1e-4]),
)
def test_no_example_moves_the_sum_by_more_than_the_clip_norm(name, seed, count, clip, scale, form, pad_to, contrast):
    model = made(SMALL[name], seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    images, labels = batch(count, seed)
    images = contrast * images + 1
    with forced(**FORMS[form]):
        whole, _, _ = stepped(model, images, labels, clip=clip, pad_to=pad_to)
        for i in range(count):
            alone, _, _ = stepped(model, images[i : i + 1], labels[i : i + 1], clip=clip, pad_to=pad_to)
            assert float(alone.double().norm()) <= clip * (1 + 1e-5)
            others = torch.arange(count) != i
            rest, _, _ = stepped(model, images[others], labels[others], clip=clip, pad_to=pad_to)
            assert float((whole - rest).double().norm()) <= clip * (1 + 1e-5 * count)


# Padding and chunks


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_padding_changes_nothing(name):
    model = SMALL[name]()
    for count in range(1, 18):
        images, labels = batch(count)
        for more in ({}, {"chunk_size": 8}):
            bare, loss, right = stepped(model, images, labels, clip=0.3, noise=0.1)
            padded, padded_loss, padded_right = stepped(model, images, labels, clip=0.3, noise=0.1, pad_to=8, **more)
            assert distance(padded, bare) < 1e-6
            assert padded_loss == pytest.approx(loss, rel=1e-6)
            assert padded_right == right


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("form", FORMS)
def test_padded_rows_weigh_exactly_nothing(name, form):
    private = private_gradient(SMALL[name](), clip=0.3)
    images, labels = batch(16)
    is_real = torch.arange(16) < 11
    with forced(**FORMS[form]):
        results = private._chunk(images, labels, is_real, NO_DRAWS, private.clip_norms)
        for other, seed in ((1e4 * images, 8), (torch.zeros_like(images), 9)):
            filled = torch.where(is_real[:, None, None, None], images, other)
            relabeled = torch.where(is_real, labels, batch(16, seed)[1])
            for one, another in zip(
                private._chunk(filled, relabeled, is_real, NO_DRAWS, private.clip_norms), results, strict=True
            ):
                assert torch.equal(one, another)
    private.close()


@dataclass(frozen=True, kw_only=True)
class Normalize(Rule):
    """A rule that scales every gradient to the clip norm; undefined for a zero gradient."""

    noise_scale: float = 0.0
    initial_clip_norm: float = 1.0

    def weigh(self, norms, clip_norms, draws):
        return clip_norms / norms, torch.zeros_like(norms[:, 0])


def test_padded_rows_weigh_nothing_under_a_rule_that_divides_by_their_norm():
    model = SMALL["cnn"]()
    images, labels = batch(5)
    private = PrivateGradient(model, Normalize(), 1.0, generator(), performance=Performance(pad_to=8))
    private.step(images, labels)
    samples = by_hand(model, images, labels)
    expected = (samples / samples.norm(dim=1, keepdim=True)).sum(0)
    private.step(images, labels)
    assert distance(flat_gradient(model), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_size_of_the_chunks_changes_nothing_whatever_chooses_it(name):
    model = SMALL[name]()
    images, labels = batch(37)
    whole, loss, right = stepped(model, images, labels, clip=0.3, noise=0.5, chunk_size=100)
    for more in (
        {"chunk_size": 1},
        {"chunk_size": 5},
        {"chunk_size": 36},
        {"chunk_size": 37},
        {"chunk_size": 10, "pad_to": 4},
        {},
        {"chunk_bytes": 1},
        {"chunk_bytes": 60_000},
        {"chunk_bytes": 60_000, "pad_to": 4},
    ):
        ours, our_loss, our_right = stepped(model, images, labels, clip=0.3, noise=0.5, **more)
        assert distance(ours, whole) < 1e-5
        assert our_loss == pytest.approx(loss, rel=1e-5)
        assert our_right == right


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("form", ["gram", "kept", "discarded"])
def test_a_large_batch_records_no_more_than_chunk_bytes_at_once(name, form):
    limit = 500_000
    private = private_gradient(SMALL[name](), chunk_bytes=limit)
    recorded, run = [], private._chunk

    def spy(*args):
        results = run(*args)
        recorded.append(private._tap.bytes_recorded)
        return results

    private._chunk = private._run_chunk = spy
    with forced(**FORMS[form]):
        for _ in range(2):
            private.step(*batch(300))
    private.close()
    assert max(recorded) <= limit * 1.01
    if len(recorded) > 3:  # else everything fits at once
        assert min(recorded[1:]) > limit / 3  # and no more chunks than that needs
    assert sum(recorded[len(recorded) // 2 :]) > 0


def test_steps_are_not_taken_for_examples_even_where_there_are_as_many_in_the_first_batch():
    """The trial run uses a number of examples other than the batch's, however the chunk size is chosen."""
    model = Calls(
        lambda m, v: m.out((v + m.where(torch.arange(4))).flatten(1)), where=nn.Embedding(4, 3), out=nn.Linear(12, 4)
    )
    for chunk_size in (None, 4):
        with pytest.raises(ValueError, match="first dimension is 4, not the 3 examples"):
            private_gradient(model, chunk_size=chunk_size).step(normal(4, 4, 3), torch.arange(4))


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize("name", SMALL)
def test_what_is_allowed_around_a_step_rounds_neither_norms_nor_sums(name):
    """Neither a caller's autocast nor a lower precision of matrix products makes a contribution larger than the clip norm."""
    model = SMALL[name]()
    images, labels = batch(6)
    expected = private_gradient(model, clip=0.01)
    expected.step(images, labels)
    before = [p.grad.clone() for p in expected._parameters]
    lowered = private_gradient(model, clip=0.01)
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for i in range(6):
                lowered.step(images[i : i + 1], labels[i : i + 1])
                norm = torch.cat([p.grad.flatten() for p in lowered._parameters]).norm()
                assert float(norm) <= 0.01 * (1 + 1e-5)
            lowered.step(images, labels)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(allowed)
    for ours, theirs in zip(lowered._parameters, before, strict=True):
        assert distance(ours.grad, theirs) < 0.05


# Replay


@pytest.mark.parametrize("name", SMALL)
def test_replayed_steps_equal_eager_ones_over_random_batch_sizes(name):
    model, captured = SMALL[name](), []

    def capture(function, inputs):
        captured.append(tuple(value.shape for value in inputs))
        return rerun(function, inputs)

    more = {"clip": 0.3, "noise": 0.2, "chunk_size": 24, "pad_to": 8}
    eager = private_gradient(model, **more)
    replayed = private_gradient(deepcopy(model), **more)
    replayed._run_chunk = Replay(replayed._chunk, capture=capture)
    sizes = [*torch.poisson(torch.full((12,), 18.0), generator=generator(4)).int().tolist(), 0, 1, 24, 60]
    rows, made_before = set(), []
    for number, size in enumerate(sizes):
        images, labels = batch(size, seed=number)
        expected = eager.step(images, labels)
        found = replayed.step(images, labels)
        made_before.append(
            (found, [p.grad for p in replayed._parameters], expected, [p.grad for p in eager._parameters])
        )
        chunks = -(-size // 24)
        rows |= {-(-len(part) // 8) * 8 for part in torch.arange(size).chunk(chunks)} if chunks else set()
    # Compared at the end, so that overwriting by a later step would show
    for (loss, right), gradients, (expected_loss, expected_right), expected in made_before:
        assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
        assert float(right) == float(expected_right)
        for ours, theirs in zip(gradients, expected, strict=True):
            assert distance(ours, theirs) < 1e-6
    assert len(captured) == len(set(captured)) == len(rows)
    assert {shapes[0][0] for shapes in captured} == rows


def test_replay_captures_once_for_each_shape_type_and_layout():
    captured, given = [], []

    def capture(function, inputs):
        captured.append(1)
        return rerun(function, inputs)

    replay = Replay(lambda a, b: (a @ b, a.sum()), capture=capture)
    for seed in range(3):
        for rows in (2, 3):
            for a in (normal(rows, 4, seed=seed), normal(4, rows, seed=seed).t(), normal(rows, 4, seed=seed).double()):
                b = normal(4, 5, seed=seed + 1).to(a.dtype)
                given.append((a, a.clone(), b, b.clone()))
                product, total = replay(a, b)
                assert torch.equal(product, a @ b)
                assert torch.equal(total, a.sum())
    assert len(captured) == 6
    assert all(torch.equal(a, a_before) and torch.equal(b, b_before) for a, a_before, b, b_before in given)


def test_what_cannot_be_captured_is_called_as_it_is_with_one_warning(caplog):
    def capture(function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    replay = Replay(lambda a: (a * 2,), capture=capture)
    for rows in (3, 3, 4):
        assert torch.equal(replay(torch.ones(rows))[0], torch.full((rows,), 2.0))
    assert [record.message for record in caplog.records] == [
        "steps are not replayed, which is slower for small models: operation not permitted when stream is capturing"
    ]


def test_replay_is_refused_where_there_are_no_cuda_graphs():
    with pytest.raises(ValueError, match="replay captures CUDA graphs, and this is cpu"):
        private_gradient(SMALL["cnn"](), replay=True)


# bf16

needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU does not compute in bfloat16"
)


@pytest.mark.slow
@needs_bf16
@pytest.mark.parametrize("name", SMALL)
def test_bf16_is_near_fp32_and_clipped_alike(name):
    model = SMALL[name]()
    images, labels = batch(20)
    for clip in (0.3, 1e6):
        full, loss, _ = stepped(model, images, labels, clip=clip)
        half, half_loss, _ = stepped(model, images, labels, clip=clip, precision="bf16")
        assert 0 < distance(half, full) < 0.05
        assert half_loss == pytest.approx(loss, rel=0.02)
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    for form in FORMS.values():
        for i in range(4):
            with forced(**form):
                alone, _, _ = stepped(model, images[i : i + 1], labels[i : i + 1], clip=0.05, precision="bf16")
            assert float(alone.double().norm()) == pytest.approx(0.05, rel=1e-5)


@needs_bf16
@pytest.mark.parametrize("name", SMALL)
def test_bf16_leaves_the_noise_alone(name):
    model = SMALL[name]()
    noises = []
    for precision in ("fp32", "bf16"):
        only, _, _ = stepped(model, *batch(0), noise=1.5, seed=4, precision=precision)
        bare, _, _ = stepped(model, *batch(6), precision=precision)
        noised, _, _ = stepped(model, *batch(6), noise=1.5, seed=4, precision=precision)
        noises.append(only)
        torch.testing.assert_close(noised - bare, only, rtol=0, atol=1e-5)
    assert torch.equal(*noises)

"""GRU, plain RNN and multi-head attention: per-example gradients against one backward pass for each example."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.private.tap import Tap
from tests.private_reference import (
    Calls,
    check,
    frozen,
    made,
    normal,
    one_by_one,
    private_gradient,
    record,
)

RECURRENT = [
    {},
    {"bias": False},
    {"batch_first": False},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "batch_first": False},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]
KINDS = {"GRU": (nn.GRU, {}), "tanh": (nn.RNN, {}), "relu": (nn.RNN, {"nonlinearity": "relu"})}


def recurrent(kind, read="all", *, batch_first=True, starts=False, **more):
    cls, extra = KINDS[kind]
    count = more.get("num_layers", 1) * (2 if more.get("bidirectional") else 1)

    def function(model, value):
        steps = value if batch_first else value.transpose(0, 1)
        state = model.start(value[:, 0]).view(len(value), count, 3).transpose(0, 1).contiguous() if starts else None
        outputs, last = model.layer(steps, state)
        outputs = outputs if batch_first else outputs.transpose(0, 1)
        every = {"all": outputs, "first": outputs[:, :1], "state": last.transpose(0, 1)}
        return torch.cat([every[name].flatten(1) for name in ([read] if read in every else every)], 1)

    starting = {"start": nn.Linear(4, count * 3)} if starts else {}
    return made(lambda: Calls(function, layer=cls(4, 3, batch_first=batch_first, **more, **extra), **starting))


@pytest.mark.slow
@pytest.mark.parametrize("more", RECURRENT, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_with_every_use_of_what_they_give(kind, more):
    for read in ("all", "first", "state", "everything"):
        check(recurrent(kind, read, **more), normal(3, 5, 4), each=one_by_one, opacus=False)
    check(recurrent(kind, starts=True, **more), normal(3, 5, 4), each=one_by_one, opacus=False)


@pytest.mark.parametrize("steps", [1, 30])
def test_grus_on_short_and_long_sequences(steps):
    model = recurrent("GRU", num_layers=2)
    check(model, normal(4, steps, 4), each=one_by_one, opacus=False)
    check(model, normal(1, steps, 4), each=one_by_one, opacus=False)


def attention(kind="self", *, batch_first=True, heads=2, mask=None, weights=False, **more):
    def function(model, value):
        query = model.first(value)
        inputs = (query, query, query) if kind == "self" else (query, value[:, :3, : more.get("kdim", 4)], value[:, :3])
        if not batch_first:
            inputs = tuple(each.transpose(0, 1) for each in inputs)
        arguments = {"need_weights": weights}
        sources = 5 if kind == "self" else 3
        if mask == "causal":
            arguments["attn_mask"] = torch.ones(5, sources, dtype=torch.bool).triu(1)
        if mask == "float":
            arguments["attn_mask"] = normal(5, sources).to(value.dtype)
        if mask == "padding":
            arguments["key_padding_mask"] = torch.arange(sources).expand(len(value), -1) >= sources - 1
        result, shown = model.attention(*inputs, **arguments)
        result = result if batch_first else result.transpose(0, 1)
        return torch.cat([result.flatten(1), shown.flatten(1)], 1) if weights else result.flatten(1)

    layer = nn.MultiheadAttention
    return made(
        lambda: Calls(function, first=nn.Linear(4, 4), attention=layer(4, heads, batch_first=batch_first, **more))
    )


ATTENTIONS = [
    {},
    {"bias": False},
    {"batch_first": False},
    {"heads": 4},
    {"mask": "causal"},
    {"mask": "float"},
    {"mask": "padding"},
    {"weights": True},
    {"kind": "cross"},
    {"kind": "cross", "batch_first": False, "mask": "padding", "weights": True},
    {"kind": "cross", "kdim": 3, "vdim": 4},
    {"kind": "cross", "kdim": 3, "vdim": 4, "bias": False},
]


@pytest.mark.parametrize("more", ATTENTIONS, ids=str)
def test_attention_with_every_option(more):
    check(attention(**more), normal(3, 5, 4), each=one_by_one, opacus=False)


@pytest.mark.parametrize(
    "names",
    [
        ["in_proj_weight"],
        ["in_proj_bias"],
        ["out_proj.weight"],
        ["out_proj.bias", "in_proj_weight"],
        ["in_proj_weight", "in_proj_bias"],
    ],
    ids=str,
)
def test_attention_with_frozen_parameters(names):
    model = frozen(attention(), *(f"attention.{name}" for name in names))
    check(model, normal(3, 5, 4), each=one_by_one, opacus=False)


def test_layers_called_twice_count_once():
    def twice(model, value):
        return model.attention(*[model.attention(value, value, value)[0]] * 3)[0].flatten(1)

    model = made(lambda: Calls(twice, attention=nn.MultiheadAttention(4, 2, batch_first=True)))
    check(model, normal(3, 5, 4), each=one_by_one, opacus=False)
    model = made(lambda: Calls(lambda m, v: m.layer(m.layer(v)[0])[0].flatten(1), layer=nn.GRU(4, 4, batch_first=True)))
    check(model, normal(3, 5, 4), each=one_by_one, opacus=False)


def test_weights_alone_leave_the_values_without_a_gradient():
    def function(model, value):
        return model.attention(value, value, value)[1].flatten(1)

    model = made(lambda: Calls(function, attention=nn.MultiheadAttention(4, 2, batch_first=True)))
    check(model, normal(3, 5, 4), each=one_by_one, opacus=False)


def transformer(dropout):
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout, batch_first=True)
    return made(lambda: Calls(lambda m, v: m.layer(v).flatten(1), layer=layer)).train()


def test_a_transformer_layer_in_training():
    check(transformer(0.0), normal(3, 5, 4), each=one_by_one, opacus=False)


@pytest.mark.parametrize(
    "build", [lambda: recurrent("GRU", num_layers=2, dropout=0.4).train(), lambda: transformer(0.4)]
)
def test_dropout_drops(build):
    model, value = build(), normal(3, 5, 4)
    recordings = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        recordings.append(record(model, value, torch.ones(())).squares(3, value.device))
    assert torch.equal(recordings[0], recordings[1])
    assert not torch.allclose(recordings[0], recordings[2])


@pytest.mark.parametrize("kind", ["GRU", "tanh", "attention"])
def test_outputs_are_those_of_pytorch(kind):
    model = (
        attention(weights=True, mask="float")
        if kind == "attention"
        else recurrent(kind, "everything", num_layers=2, bidirectional=True)
    )
    value = normal(3, 5, 4)
    tap = Tap(model)
    with tap.recording(3):
        ours = model(value)
        ours.sum().backward()
    assert torch.allclose(ours, model(value), atol=1e-6)
    tap.close()


def head(width, module, reads):
    return made(
        lambda: Calls(lambda m, v: m.out(reads(m.unknown, v).flatten(1)), unknown=module, out=nn.Linear(width, 3))
    )


REFUSED = {
    "EmbeddingBag": (
        lambda: head(3, nn.EmbeddingBag(7, 3), lambda m, v: m(v[..., 0].abs().long() % 7)),
        r"'unknown' \(EmbeddingBag\) has no per-example gradients. Use nn.Embedding",
    ),
    "spectral norm": (
        lambda: head(12, nn.utils.spectral_norm(nn.Linear(4, 3)), lambda m, v: m(v)),
        r"'unknown' \(Linear\) .* Remove the parametrization",
    ),
    "parametrized spectral norm": (
        lambda: head(12, nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), lambda m, v: m(v)),
        r"'unknown' \(ParametrizedLinear\) .* Remove the parametrization",
    ),
    "weight norm": (
        lambda: head(12, nn.utils.weight_norm(nn.Linear(4, 3, bias=False)), lambda m, v: m(v)),
        r"'unknown' \(Linear\) .* Remove the parametrization",
    ),
    "GRUCell": (lambda: head(3, nn.GRUCell(4, 3), lambda m, v: m(v[:, 0])), r"\(GRUCell\) .* Use nn.GRU"),
    "bias for keys": (
        lambda: head(16, nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True), lambda m, v: m(v, v, v)[0]),
        "'unknown' .* has add_bias_kv or add_zero_attn",
    ),
    "steps first": (lambda: head(12, nn.GRU(4, 3), lambda m, v: m(v)[0]), "first dimension is 4, not the"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:.*(spectral|weight)_norm.*")
def test_other_layers_are_refused_with_a_remedy(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        private_gradient(build()).step(normal(5, 4, 4), torch.arange(5) % 3)

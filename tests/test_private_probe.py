"""Models that mix examples are refused before the first private step, whatever does the mixing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from models.defenses.base import Defense
from models.private.probe import check_examples_apart
from sweeper.errors import UserError
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.preflight import resolve_trials
from tests.private_reference import Calls, made, private_gradient, small_cnn


class BackwardMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad - grad.mean(0)


class Remembers(nn.Module):
    """Subtracts its last input, kept in a buffer or in a hidden attribute."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        if buffer:
            self.register_buffer("last", torch.zeros(()))
        else:
            self.last = torch.zeros(())

    def forward(self, value: Tensor) -> Tensor:
        result = value - self.last
        self.last = value.detach().mean()
        return result


def calls(function: Any) -> Calls:
    return made(lambda: Calls(function, first=nn.Linear(6, 5), last=nn.Linear(5, 3)))


MIXING = {
    "mean": lambda m, x: m.last((h := m.first(x)) - h.mean(0)),
    "small share of the mean": lambda m, x: m.last((h := m.first(x)) - 0.05 * h.mean(0)),
    "a ten-thousandth of the mean": lambda m, x: m.last((h := m.first(x)) - 1e-4 * h.mean(0)),
    "the mean, beyond a large value": lambda m, x: m.last((h := m.first(x)) - (h.mean(0) if h.max() > 20 else 0)),
    "softmax over examples": lambda m, x: m.last(m.first(x).softmax(0)),
    "attention over examples": lambda m, x: m.last((h := m.first(x)) + (h @ h.T).softmax(1) @ h),
    "rolled": lambda m, x: m.last(m.first(x).roll(1, 0)),
    "sorted": lambda m, x: m.last(m.first(x).sort(0).values),
    "largest of the batch": lambda m, x: m.last((h := m.first(x)) / h.detach().abs().max()),
    "functional batch norm": lambda m, x: m.last(nn.functional.batch_norm(m.first(x), None, None, training=True)),
    "dropout, then the mean": lambda m, x: m.last((h := nn.functional.dropout(m.first(x), 0.5)) - h.mean(0)),
    "the batch's size": lambda m, x: m.last(m.first(x) * len(x)),
    "the place in the batch": lambda m, x: m.last(m.first(x) * torch.arange(1, len(x) + 1)[:, None]),
    "gradients alone": lambda m, x: m.last(BackwardMean.apply(m.first(x))),
}


@pytest.mark.parametrize("name", MIXING)
def test_plain_operations_that_mix_examples_are_refused(name: str) -> None:
    model = calls(MIXING[name]).train()
    with pytest.raises(
        ValueError, match=r"the model mixes examples: .*Private gradients need an output for each example"
    ):
        check_examples_apart(model, torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))


def test_a_model_that_mixes_larger_batches_alone_is_refused() -> None:
    model = calls(lambda m, x: m.last((h := m.first(x)) - (h.mean(0) if len(h) > 3 else 0))).train()
    with pytest.raises(ValueError, match="the model mixes examples"):
        check_examples_apart(model, torch.randn(8, 6, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("buffer", [True, False])
def test_what_is_kept_of_a_batch_is_refused(buffer: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 4), Remembers(buffer), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="the model keeps its input"):
        check_examples_apart(model, torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))


def test_the_layer_is_named() -> None:
    class Centered(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value - value.mean(0)

    model = nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.ReLU(), Centered()), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"first that differs is the output of layer '1.1' \(Centered\)"):
        check_examples_apart(model, torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))


APART = {
    "per example": (lambda: calls(lambda m, x: m.last((h := m.first(x)) - h.mean(1, keepdim=True))), (6,)),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 3)), (6,)),
    "own noise": (lambda: calls(lambda m, x: m.last((h := m.first(x)) + torch.randn_like(h))), (6,)),
    "cnn": (small_cnn, (2, 8, 8)),
    "norms": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 3)),
        (1, 8, 8),
    ),
}


@pytest.mark.parametrize("name", APART)
def test_models_that_keep_examples_apart_pass_and_stay_as_they_were(name: str) -> None:
    build, shape = APART[name]
    model = build().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check_examples_apart(model, torch.rand(3, *shape))
    torch.set_rng_state(state)
    state = torch.get_rng_state()
    check_examples_apart(model, torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_first_private_step_is_not_taken() -> None:
    model = nn.Sequential(nn.Flatten(), calls(MIXING["mean"]))
    gradient = private_gradient(model)
    with pytest.raises(ValueError, match="the model mixes examples"):
        gradient.step(torch.rand(4, 1, 2, 3), torch.tensor([0, 1, 2, 0]))
    assert all(parameter.grad is None for parameter in model.parameters())


@dataclass(frozen=True, kw_only=True)
class Centers(Defense):
    """Puts a module without parameters in front, which takes the batch's mean away."""

    source: ClassVar[str] = "a test"

    def edit_model(self, model: Any) -> Any:
        class Centered(nn.Module):
            def forward(self, value: Tensor) -> Tensor:
                return value - value.mean(0)

        first = next(iter(model.stages._modules))
        model.stages._modules[first] = nn.Sequential(Centered(), model.stages._modules[first])
        return model


@pytest.mark.slow
def test_a_defense_that_mixes_examples_is_refused_by_the_check_before_a_launch(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "datasets: [digits]\nattacks: []\narchitectures: [{name: lomurno_cnn, filters: [2, 2, 2]}]\n"
        "training: {epochs: 1}\ndefenses: {dp: {name: dp_sgd, noise_multiplier: 1}, none: none}\nseeds: [0]"
    )
    private, plain = expand(load_sweep(str(path), ()))
    assert len(resolve_trials([private, plain], tmp_path)[0]) == 2
    with pytest.raises(UserError, match=r"the model mixes examples: .*\(Centered\)"):
        resolve_trials([dataclasses.replace(private, defenses=(Centers(), *private.defenses))], tmp_path)
    # Without private gradients there is nothing to refuse
    resolve_trials([dataclasses.replace(plain, defenses=(Centers(), *plain.defenses))], tmp_path)

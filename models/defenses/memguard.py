"""MemGuard: noise on the answers that misleads a network that infers membership."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from models.architectures.base import StagedModel
from models.defenses.base import Defense
from models.hashing import hashed, uniforms
from models.reference import Mask, relu_network, shuffled_batches, train_with_mask, with_mask

if TYPE_CHECKING:
    from models.train import Recipe, TrainedTarget

_STEP = 0.1
_KEEP_LABEL = 10.0
_DISTORTION_WEIGHTS = tuple(10.0**power for power in range(-1, 6))
_BATCH = 64
_LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Memguard(Defense):
    """MemGuard: changes the answers so that a surrogate attack network cannot tell members; decisions stay the same.

    The surrogate, a network of `hidden` ReLU layers on sorted probabilities, learns in `epochs` to tell the target's answers to its
    members from those to reference examples, equally many of each. With h its log-odds, z the logits of a query and l the decision,
    noise e minimizes |h| + 10·ReLU(max_{j≠l} z_j − z_l) + c·‖softmax(z + e) − softmax(z)‖₁. It takes at most `steps` steps of .1 along
    the gradient's direction, until h changes its sign and l is the decision. c is .1, 1, … 10⁵, as long as that succeeds; the noise
    is that of the last success. If the surrogate's probability is then nearer to one half than before, the noise is used with
    probability min(1, `budget` / its L1 distortion), by a coin that follows from the answer alone, so that asking again gives the
    same. All answers are log-probabilities, noised or not. An attack by labels alone is untouched. The answers of a model are all that
    changes. No guarantee.

    The split must set `reference` examples aside. Answers take hundreds of passes through the surrogate.

    Source: Jia et al. 2019, sections 4.2 and 4.3, with the constants of the authors' code. Deviations: the surrogate is trained by
    Adam and reads sorted probabilities; the noise with the same query is the same because its coin is hashed, not stored.
    """

    budget: float = 1.0
    hidden: tuple[int, ...] = (256, 128, 64)
    epochs: int = 100
    steps: int = 300

    source: ClassVar[str] = "Jia, Salem, Backes, Zhang & Gong 2019"
    adaptive_attacks: ClassVar[tuple[str, ...]] = ("label_only/label_only_ratio",)
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.budget) and self.budget >= 0):
            raise ValueError(f"budget is {self.budget}; it must be zero or more, and finite")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {list(self.hidden)}; it must have at least one layer, each of at least 1 unit")
        for name in ("epochs", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def edit_model(self, model: StagedModel) -> StagedModel:
        return with_mask(model, self.name, self._mask(model.num_classes))

    def train(self, recipe: Recipe) -> TrainedTarget:
        return train_with_mask(recipe, self.name, self._mask, self._learn)

    def _mask(self, n_classes: int) -> _Misleading:
        return _Misleading(n_classes, self)

    def _learn(self, mask: Mask, members: Tensor, reference: Tensor, generator: torch.Generator) -> None:
        assert isinstance(mask, _Misleading)
        n = min(len(members), len(reference))
        chosen = [each[torch.randperm(len(each), generator=generator)[:n]] for each in (members, reference)]
        answers = torch.cat(chosen).softmax(1)
        is_member = torch.cat([torch.ones(n), torch.zeros(n)])
        optimizer = torch.optim.Adam(mask.parameters(), lr=_LEARNING_RATE)
        for own, inside in shuffled_batches((answers, is_member), _BATCH, self.epochs, generator):
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(mask.log_odds(own), inside).backward()
            optimizer.step()


class _Misleading(Mask):
    """The surrogate, and the noise that it is misled by."""

    def __init__(self, n_classes: int, defense: Memguard) -> None:
        super().__init__()
        self.surrogate = relu_network(n_classes, *defense.hidden, 1)
        self._budget, self._steps = defense.budget, defense.steps

    def log_odds(self, probabilities: Tensor) -> Tensor:
        """Of membership (n,), by the surrogate."""
        odds: Tensor = self.surrogate(probabilities.sort(dim=1, descending=True).values)[:, 0]
        return odds

    def masked(self, logits: Tensor) -> Tensor:
        with torch.enable_grad():
            noise = self._noise(logits.detach().float())
        own, noised = logits.log_softmax(1), (logits + noise).log_softmax(1)
        distortion = (noised.exp() - own.exp()).abs().sum(1)
        # Noise that leaves the surrogate as sure as before is of no use.
        certainty = [(self.log_odds(answers.exp()).sigmoid() - 0.5).abs() for answers in (own, noised)]
        # Rounded, because a logit's last digits differ between batches.
        coin = uniforms(hashed(torch.round(logits.float(), decimals=2), 1))[:, 0]
        used = (distortion > 0) & (coin * distortion <= self._budget) & (certainty[1] < certainty[0])
        used &= noised.argmax(1) == own.argmax(1)
        return torch.where(used[:, None], noised, own)

    def _noise(self, logits: Tensor) -> Tensor:
        """Noise (n, classes) on each row, 0 where none was found."""
        own = logits.softmax(1)
        found = torch.zeros_like(logits)
        left = torch.arange(len(logits), device=logits.device)
        for weight in _DISTORTION_WEIGHTS:
            noise, misled = self._at(logits[left], own[left], weight)
            left, noise = left[misled], noise[misled]
            if not len(left):
                break
            found[left] = noise
        return found

    def _at(self, logits: Tensor, own: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """The noise (n, classes) by one weight of the distortion, and where it succeeded (n,)."""
        label = logits.argmax(1, keepdim=True)
        begun = self.log_odds(own).detach() > 0
        noise, misled = torch.zeros_like(logits), torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        running = torch.arange(len(logits), device=logits.device)
        for step in range(self._steps + 1):
            current = noise[running].requires_grad_()
            noised = logits[running] + current
            answers = noised.softmax(1)
            odds = self.log_odds(answers)
            done = ((odds > 0) != begun[running]) & (noised.argmax(1) == label[running, 0])
            misled[running[done]] = True
            if step == self._steps or done.all():
                break
            top = noised.gather(1, label[running])[:, 0]
            rival = noised.scatter(1, label[running], -torch.inf).amax(1)
            distortion = (answers - own[running]).abs().sum(1)
            loss = odds.abs() + _KEEP_LABEL * relu(rival - top) + weight * distortion
            (gradient,) = torch.autograd.grad(loss.sum(), current)
            direction = gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
            running, moved = running[~done], (current - _STEP * direction).detach()[~done]
            noise[running] = moved
        return noise, misled

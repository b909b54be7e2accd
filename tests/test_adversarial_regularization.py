"""Adversarial regularization: what the attack network learns from, what it adds to the loss, and what resumes."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from test_plans import initial
from torch.nn import functional
from training_fixture import CNN, Linear, fit_on, numbered, spelled, weights

from models.answers import answer_of, loss_and_accuracy, predict
from models.companion import Surroundings
from models.datasets.digits import Digits
from models.defenses import adversarial_regularization
from models.defenses.adversarial_regularization import AdversarialRegularization, Attack, AttackPlan
from models.defenses.base import Defense
from models.defenses.dp_sgd import DpSgd
from models.defenses.dropout import Dropout
from models.defenses.early_stopping import EarlyStopping
from models.defenses.majority_of import MajorityOf
from models.defenses.mixup import Mixup
from models.defenses.selena import Selena
from models.gradient import PlainGradient
from models.seeds import Stream, torch_generator
from models.train import Training, make_plan
from sweeper.errors import UserError
from sweeper.results import checkpoints
from sweeper.sweep.expand import expand
from sweeper.sweep.load import load_sweep
from sweeper.sweep.preflight import resolve_trials

MEMBERS, REFERENCE = np.arange(160), np.arange(160, 240)


@pytest.fixture(scope="module")
def digits():
    return Digits(max_train_examples=240, max_test_examples=60).load(None)


@pytest.fixture
def attacks(monkeypatch):
    """Every attack network that is started."""
    started, start = [], Attack.__init__
    monkeypatch.setattr(Attack, "__init__", lambda self, *each: (started.append(self), start(self, *each))[1])
    return started


@pytest.fixture
def lively(monkeypatch):
    """Attack networks whose first gradients are not as small as rounding errors."""
    monkeypatch.setattr(adversarial_regularization, "_INITIAL_STD", 0.1)


def fitted(data, *defenses, **settings):
    return fit_on(data, *defenses, **{"members": MEMBERS, "reference": REFERENCE, "batch_size": 40} | settings)


def attack_on(data, architecture=CNN, batch_size=40, seed=3, **settings):
    plan = AttackPlan(**{"alpha": 2.0, "learning_rate": 0.001, "steps": 1} | settings)
    return plan.start(
        Surroundings(
            model=initial(data, architecture),
            data=data,
            members=MEMBERS,
            reference=REFERENCE,
            batch_size=batch_size,
            generator=torch_generator(seed, Stream.COMPANION),
        )
    )


def flat(network):
    return torch.cat([value.detach().flatten() for value in network.state_dict().values()])


def test_a_step_of_the_attack_is_adams_up_the_papers_gain(digits, lively):
    attack = attack_on(digits)
    network, model = deepcopy(attack.network), initial(digits)
    generator = torch_generator(3, Stream.COMPANION)
    generator.set_state(attack._around.generator.get_state())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    for _ in range(3):
        attack.step()
        drawn = [each[torch.randint(len(each), (40,), generator=generator)] for each in (MEMBERS, REFERENCE)]
        member, other = (
            network(
                model(digits.inputs[each]).softmax(1), functional.one_hot(digits.labels[each], 10).float()
            ).sigmoid()
            for each in map(torch.from_numpy, drawn)
        )
        gain = member.log().sum() / 80 + (1 - other).log().sum() / 80
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
    torch.testing.assert_close(flat(attack.network), flat(network), rtol=1e-3, atol=1e-5)


def test_the_network_is_the_papers(digits):
    attack = attack_on(digits)
    shapes = [tuple(each.shape) for each in attack.network.parameters() if each.ndim == 2]
    inner = [(1024, 10), (512, 1024), (64, 512), (128, 10), (64, 128), (256, 128), (128, 256), (64, 128), (1, 64)]
    assert shapes == inner
    for parameter in attack.network.parameters():
        if parameter.ndim == 1:
            assert not parameter.any()
        elif parameter.numel() > 1000:
            assert float(parameter.detach().std()) == pytest.approx(0.01, rel=0.1)
    other = attack_on(digits, seed=4)
    assert not torch.equal(flat(attack.network), flat(other.network))


def test_the_model_descends_its_loss_plus_alpha_times_the_log_gain_on_its_members(digits, lively):
    ours = fitted(digits, AdversarialRegularization(alpha=50.0), batch_size=160, epochs=1, learning_rate=0.5)
    attack = attack_on(digits, batch_size=160, alpha=50.0)
    attack.step()
    model = initial(digits)
    logits, labels = model(digits.inputs[:160]), digits.labels[:160]
    member = attack.network(logits.softmax(1), functional.one_hot(labels, 10).float()).sigmoid()
    loss = functional.cross_entropy(logits, labels) + 50.0 * member.log().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for value, gradient in zip(model.parameters(), gradients, strict=True):
            value -= 0.5 * gradient
    torch.testing.assert_close(weights(ours), flat(model), rtol=1e-4, atol=1e-6)
    assert ours.history[0].train_loss == pytest.approx(loss.item(), rel=1e-4)


def test_the_attack_sees_members_and_reference_examples_alone_and_the_model_no_reference(monkeypatch):
    data, asked, trained = numbered(100), [], []
    step, own = PlainGradient.step, answer_of

    def watched(model, *rest):
        answer = own(model, *rest)
        return lambda inputs: (asked.append(spelled(inputs)), answer(inputs))[1]

    monkeypatch.setattr(adversarial_regularization, "answer_of", watched)
    monkeypatch.setattr(
        PlainGradient,
        "step",
        lambda self, inputs, *rest: (trained.extend(spelled(inputs)), step(self, inputs, *rest))[1],
    )
    settings = {"members": np.arange(40), "reference": np.arange(60, 70), "architecture": Linear(), "batch_size": 8}
    stopping = EarlyStopping(held_out=0.2)
    fit_on(data, AdversarialRegularization(attack_steps=3), stopping, epochs=2, **settings)
    assert len(asked) == 3 * 2 * 4
    members = {position for each in asked for position in each[:8]}
    assert members == set(trained)  # none that is held out
    assert len(members) == 32
    assert {position for each in asked for position in each[8:]} == set(range(60, 70))


def test_all_else_is_drawn_as_without_the_attack(digits, lively):
    hardly = AdversarialRegularization(alpha=1e-12)
    plain, beside = fitted(digits, Dropout(rate=0.4), epochs=3), fitted(digits, Dropout(rate=0.4), hardly, epochs=3)
    torch.testing.assert_close(weights(plain), weights(beside), rtol=1e-4, atol=1e-6)
    strong = fitted(digits, Dropout(rate=0.4), AdversarialRegularization(alpha=30.0), epochs=3)
    assert not torch.allclose(weights(plain), weights(strong), atol=1e-4)


def test_a_killed_training_resumes_with_its_attack(digits, attacks, lively):
    settings = {"epochs": 3, "batch_size": 80, "ema_decay": 0.9, "momentum": 0.9, "learning_rate": 0.3}
    taken, defenses = [], (AdversarialRegularization(alpha=30.0, attack_steps=2), Dropout(rate=0.2))
    whole = fitted(
        digits, *defenses, on_checkpoint=lambda each: taken.append(checkpoints.to_bytes(each, {})), **settings
    )
    for content in taken[:2]:
        resumed = fitted(digits, *defenses, resume=checkpoints.from_bytes(content, {}, torch.device("cpu")), **settings)
        assert torch.equal(weights(whole), weights(resumed))
        assert torch.equal(flat(attacks[0].network), flat(attacks[-1].network))
        assert [each.train_loss for each in whole.history] == [each.train_loss for each in resumed.history]


def test_each_model_of_an_ensemble_has_an_attack_of_its_own(digits, attacks):
    target = fitted(digits, MajorityOf(models=2), AdversarialRegularization(), Mixup(), epochs=1)
    assert np.isfinite(target.history[-1].train_loss)
    first, second = attacks
    assert not np.intersect1d(first._around.members, second._around.members).size
    assert not torch.equal(flat(first.network), flat(second.network))


@pytest.mark.parametrize(
    ("defenses", "message"),
    [
        (
            (AdversarialRegularization(), DpSgd(noise_multiplier=1.0)),
            "trained in turn with the model reads the members",
        ),
        (
            (DpSgd(noise_multiplier=1.0), AdversarialRegularization()),
            "trained in turn with the model reads the members",
        ),
        ((AdversarialRegularization(), AdversarialRegularization(alpha=1.0)), "two defenses train a network in turn"),
        ((AdversarialRegularization(), Selena(models=2, left_out=1)), "needs the members' labels"),
    ],
)
def test_what_cannot_be_combined_with_an_attack_is_refused(digits, defenses, message):
    with pytest.raises(ValueError, match=message):
        make_plan(Training(batch_size=20), defenses, initial(digits), 160)


def test_soft_labels_beside_an_attack_are_refused(digits):
    class Softened(Defense):
        def train(self, recipe):
            return recipe.fit(soft_labels=torch.full((160, 10), 0.1))

    with pytest.raises(ValueError, match="needs labels, and these are soft"):
        fitted(digits, Softened(), AdversarialRegularization())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0; it must be above 0"),
        ({"attack_learning_rate": -1.0}, "attack_learning_rate is -1.0; it must be above 0"),
        ({"attack_steps": 0}, "attack_steps is 0; it must be at least 1"),
    ],
)
def test_impossible_settings_of_the_attack_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AdversarialRegularization(**fields)


def test_a_training_without_reference_examples_is_refused_before_a_launch_too(digits, tmp_path):
    with pytest.raises(
        ValueError, match=r"adversarial_regularization needs reference examples.* set `reference` in the split"
    ):
        fit_on(digits, AdversarialRegularization())
    path = tmp_path / "referred.yaml"
    path.write_text(
        "datasets: [{name: digits, max_train_examples: 200, max_test_examples: 20}]\nattacks: []\nseeds: [0]\n"
        "splits: [coins]\ntraining: {epochs: 1, batch_size: 20}\ndefenses: [adversarial_regularization]\n"
    )
    with pytest.raises(UserError, match="set `reference` in the split"):
        resolve_trials(expand(load_sweep(str(path), [])), tmp_path)
    resolve_trials(expand(load_sweep(str(path), ["splits=[{name: coins, reference: 30}]"])), tmp_path)


@pytest.mark.slow
def test_the_attack_learns_membership_and_the_model_learns_to_hide_it(attacks, lively):
    data = Digits(max_train_examples=900, max_test_examples=60).load(None)
    data.labels[::3] = torch.from_numpy(np.random.default_rng(1).integers(10, size=len(data.labels[::3])))
    members, others, reference = np.split(np.random.default_rng(0).permutation(900), 3)
    gaps = []
    for alpha in (1e-9, 10.0):
        target = fit_on(
            data,
            AdversarialRegularization(alpha=alpha),
            architecture=Linear(),
            members=np.sort(members),
            reference=reference,
            epochs=40,
            batch_size=30,
            learning_rate=0.3,
        )
        answer = answer_of(target.model)
        losses = [loss_and_accuracy(*predict(answer, data, each))[0] for each in (members, others)]
        gaps.append(losses[1] - losses[0])
        if alpha < 1:
            with torch.no_grad():
                logits = [
                    attacks[-1]._logits(answer(data.inputs[each]), data.labels[each]) for each in (members, others)
                ]
            assert float(logits[0].mean()) > float(logits[1].mean()) + 0.1
    plain, defended = gaps
    assert defended < 0.9 * plain

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from fastbadge.errors import RunError
from fastbadge.lab.models import build_model, mlp
from fastbadge.lab.protocol import Config
from fastbadge.lab.training import evaluate, train


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def blobs():
    """60 points of three classes, not quite separable: float64 [60, 5]."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    return torch.tensor(rng.normal(size=(60, 5)) + y[:, None]), torch.tensor(y)


def test_weights_are_those_of_torch_but_from_the_generator():
    before = torch.random.get_rng_state()
    model = mlp(20, (8, 6), 3, generator=generator(7))
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(7)  # nn.Linear draws its default weights from here
        expected = nn.Sequential(
            nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
        )
    assert str(model) == str(expected)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.requires_grad


def train_by_hand(weights, x_LF, y_L, config, shuffler):
    """Adam (Kingma & Ba 2015, Algorithm 1) on a clipped gradient, in NumPy, derivative by hand.

    Gives the weights after each epoch and the accuracy of each epoch's batches.
    """
    weights = [w.detach().numpy().copy() for w in weights]
    moment1, moment2 = ([np.zeros_like(w) for w in weights] for _ in range(2))
    step, history = 0, []
    for _ in range(config.max_epochs):
        order = torch.randperm(len(y_L), generator=shuffler).numpy()
        correct = 0
        for begin in range(0, len(order), config.train_batch):
            rows = order[begin : begin + config.train_batch]
            x, y = x_LF.numpy()[rows], y_L.numpy()[rows]
            w1, b1, w2, b2 = weights
            before = x @ w1.T + b1
            hidden = np.maximum(before, 0)
            logits = hidden @ w2.T + b2
            correct += (logits.argmax(axis=1) == y).sum()
            error = np.exp(logits - logits.max(axis=1, keepdims=True))
            error /= error.sum(axis=1, keepdims=True)
            error[np.arange(len(y)), y] -= 1
            error /= len(y)
            back = (error @ w2) * (before > 0)
            gradients = [back.T @ x, back.sum(axis=0), error.T @ hidden, error.sum(axis=0)]
            norm = math.sqrt(sum((g**2).sum() for g in gradients))
            scale = min(1.0, config.clip_norm / (norm + 1e-6)) if config.clip_norm else 1.0
            step += 1
            for i, g in enumerate(gradients):
                moment1[i] = 0.9 * moment1[i] + 0.1 * g * scale
                moment2[i] = 0.999 * moment2[i] + 0.001 * (g * scale) ** 2
                mean = moment1[i] / (1 - 0.9**step)
                root = np.sqrt(moment2[i] / (1 - 0.999**step)) + 1e-8
                weights[i] = weights[i] - config.learning_rate * mean / root
        history.append(([w.copy() for w in weights], correct / len(order)))
    return history


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1e6, 0.0])
def test_training_follows_adam_on_clipped_gradients(blobs, clip_norm):
    config = Config(
        learning_rate=0.01, train_batch=25, max_epochs=6, stop_accuracy=1.0, clip_norm=clip_norm
    )
    model = mlp(5, (7,), 3, generator=generator()).double()
    history = train_by_hand(list(model.parameters()), *blobs, config, generator(1))
    epochs = train(model, *blobs, config, generator=generator(1))
    assert epochs == 6
    for ours, theirs in zip(model.parameters(), history[-1][0], strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_training_stops_after_the_first_epoch_that_reaches_the_goal(blobs):
    config = Config(learning_rate=0.02, train_batch=25, max_epochs=40, stop_accuracy=0.75)
    model = mlp(5, (7,), 3, generator=generator()).double()
    history = train_by_hand(list(model.parameters()), *blobs, config, generator(1))
    reached = [accuracy >= 0.75 for _, accuracy in history].index(True) + 1
    assert 1 < reached < 40
    assert train(model, *blobs, config, generator=generator(1)) == reached
    for ours, theirs in zip(model.parameters(), history[reached - 1][0], strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_training_draws_from_its_generator_alone(blobs):
    config = Config(train_batch=10, max_epochs=3, stop_accuracy=1.0)
    before = torch.random.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        model = mlp(5, (7,), 3, generator=generator()).double()
        train(model, *blobs, config, generator=generator(seed))
        weights.append(model[0].weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_divergence_is_said_in_one_line(blobs):
    model = mlp(5, (7,), 3, generator=generator()).double()
    with pytest.raises(RunError, match=r"diverged in epoch \d+ on 60 examples; lower learning"):
        train(model, *blobs, Config(learning_rate=1e200), generator=generator())


def test_evaluation_against_scikit_learn(blobs):
    model = mlp(5, (7,), 3, generator=generator()).double()
    x, y = blobs
    accuracy, loss = evaluate(model, x, y)
    probabilities = model(x).softmax(dim=1).detach().numpy()
    assert accuracy == accuracy_score(y, probabilities.argmax(axis=1))
    assert loss == pytest.approx(log_loss(y, probabilities), rel=1e-12)


def test_evaluation_in_parts_is_that_of_the_whole():
    y = torch.arange(1203) % 3
    x = torch.randn(1203, 5, generator=generator(), dtype=torch.float64) + y[:, None]
    model = mlp(5, (7,), 3, generator=generator()).double()
    sizes = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    accuracy, loss = evaluate(model, x, y)
    assert sum(sizes) == 1203 and max(sizes) <= 500
    with torch.no_grad():
        logits = model(x)
    assert accuracy == accuracy_score(y, logits.argmax(dim=1))
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-12)


class Remembering(nn.Dropout):
    """A dropout that keeps what it dropped."""

    def forward(self, x):
        y = super().forward(x)
        self.masks = [*getattr(self, "masks", []), y == 0]
        return y


def test_dropout_draws_from_the_generator_of_training(blobs):
    """As one process trains one model after the other, whatever was drawn between."""
    config = Config(train_batch=25, max_epochs=3, stop_accuracy=1.0)
    seen = []
    for seed, between in ((1, 0), (1, 5), (2, 0)):
        torch.rand(between)
        model = nn.Sequential(
            *mlp(5, (40,), 3, generator=generator()).double()[:1],
            Remembering(0.3),
            nn.Linear(40, 3, dtype=torch.float64, device="meta").to_empty(device="cpu"),
        )
        nn.init.constant_(model[2].weight, 0.1)
        nn.init.zeros_(model[2].bias)
        before = torch.random.get_rng_state()
        train(model, *blobs, config, generator=generator(seed))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not model.training or len(model[1].masks) == 9
        seen.append((torch.cat(model[1].masks), model[0].weight.detach()))
    (masks, weights), again, other = seen
    assert torch.equal(masks, again[0]) and torch.equal(weights, again[1])
    assert not torch.equal(masks, other[0])
    assert not torch.equal(masks[:60], masks[60:120])  # anew each epoch
    share = float(masks.double().mean())
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / masks.numel())


def test_dropout_of_zero_changes_no_shuffle(blobs):
    config = Config(train_batch=25, max_epochs=3, stop_accuracy=1.0)
    shuffler = generator(4)
    model = mlp(5, (7,), 3, generator=generator()).double()
    history = train_by_hand(list(model.parameters()), *blobs, config, generator(4))
    train(model, *blobs, config, generator=shuffler)
    np.testing.assert_allclose(model[0].weight.detach().numpy(), history[-1][0][0], rtol=1e-9)
    drawn = generator(4)
    for _ in range(3):
        torch.randperm(60, generator=drawn)
    assert torch.equal(shuffler.get_state(), drawn.get_state())


def test_images_are_trained_on_as_rows():
    """A small ResNet learns which half of an image is bright; BatchNorm's state moves with it."""
    y = torch.arange(121) % 2
    x = torch.randn(121, 1, 9, 9, generator=generator()) * 0.1
    x[:, :, :4] += y[:, None, None, None]
    model = build_model("resnet18", (1, 9, 9), 2, generator=generator())
    config = Config(model="resnet18", train_batch=10, max_epochs=10)
    epochs = train(model, x.reshape(121, -1), y, config, generator=generator(1))
    assert epochs < 10
    assert int(model[2].num_batches_tracked) == 12 * epochs  # one left over joins the last
    assert evaluate(model, x.reshape(121, -1), y)[0] > 0.9


def test_one_example_left_over_is_no_batch_of_its_own():
    x, y = torch.randn(101, 5, generator=generator()), torch.arange(101) % 2
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 2))
    config = Config(train_batch=50, max_epochs=2, stop_accuracy=1.0)
    train(model, x, y, config, generator=generator(1))
    assert int(model[0].num_batches_tracked) == 4  # 50 and 51, twice


def test_a_loss_beyond_float32_is_told_and_the_run_goes_on():
    logit_MC = torch.tensor([[3e38, -3e38], [3e38, -3e38]])
    accuracy, loss = evaluate(nn.Identity(), logit_MC, torch.tensor([0, 1]))
    assert (accuracy, loss) == (0.5, pytest.approx(3e38))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_have_no_loss(bad):
    with pytest.raises(RunError, match="outputs on the test set are not finite; lower learning"):
        evaluate(nn.Identity(), torch.tensor([[0.0, bad]]), torch.tensor([0]))

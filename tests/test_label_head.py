"""The head against torch's own optimiser, and what its factors are."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastbadge.label import head
from fastbadge.label.head import _AdamW, _batches, feature_scale, train_head
from fastbadge.label.rounds import one_thread

DRAW = np.random.default_rng(0)
CENTRE_CD = DRAW.normal(size=(3, 12)).astype(np.float32)
LABEL_L = DRAW.integers(3, size=150)
FEATURE_LD = CENTRE_CD[LABEL_L] + DRAW.normal(size=(150, 12)).astype(np.float32)
X, Y = torch.from_numpy(FEATURE_LD), torch.from_numpy(LABEL_L)


@pytest.fixture(autouse=True)
def as_in_a_round():
    with one_thread():
        yield


def trained(hidden, **changes):
    arguments = {"scale": feature_scale(FEATURE_LD), "hidden": hidden, "seed": 0} | changes
    return train_head(X, Y, 3, **arguments)


def test_steps_are_those_of_torch():
    ours = [torch.randn(4, 3), torch.randn(4)]
    theirs = [layer.clone().requires_grad_() for layer in ours]
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=head._WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, head._STEPS)
    optimizer = _AdamW(ours, 0.01)
    for _ in range(50):
        gradients = tuple(torch.randn_like(layer) for layer in ours)
        for layer, gradient in zip(theirs, gradients, strict=True):
            layer.grad = gradient
        reference.step()
        schedule.step()
        optimizer.step(gradients)
    for layer, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(layer, other.detach(), rtol=1e-4, atol=1e-6)


def test_it_learns_the_same_from_the_same_seed_and_in_any_scale():
    for hidden in (0, 16):
        one, again = trained(hidden), trained(hidden)
        logit_LC, _ = one.outputs(FEATURE_LD, np.arange(150))
        assert torch.equal(logit_LC, again.outputs(FEATURE_LD, np.arange(150))[0])
        assert (logit_LC.argmax(dim=1) == Y).double().mean() > 0.9
        other = train_head(
            100 * X + 7, Y, 3, scale=feature_scale(100 * FEATURE_LD + 7), hidden=hidden, seed=0
        )
        far_LC, _ = other.outputs(100 * FEATURE_LD + 7, np.arange(150))
        torch.testing.assert_close(far_LC, logit_LC, rtol=1e-2, atol=1e-2)


def test_what_the_last_layer_reads_gives_the_logits_and_the_weights_are_kept():
    for hidden, width in ((0, 12), (16, 16)):
        made = trained(hidden)
        rows = np.array([140, 3, 77])
        logit_MC, hidden_MH = made.outputs(FEATURE_LD, rows)
        assert hidden_MH.shape == (3, width)
        arrays = {name: torch.from_numpy(array) for name, array in made.arrays().items()}
        z_MD = (X[rows] - arrays["mean"]) / arrays["scale"]
        h_MH = functional.linear(z_MD, arrays["weight_1"], arrays["bias_1"])
        if hidden:
            h_MH = functional.linear(h_MH.relu(), arrays["weight_2"], arrays["bias_2"])
        torch.testing.assert_close(h_MH, logit_MC)
        assert made.outputs(FEATURE_LD, rows[:0])[0].shape == (0, 3)


def test_every_label_is_seen_equally_often():
    draw = torch.Generator().manual_seed(0)
    for L in (3, 100, 128, 300):
        batches = list(_batches(L, draw))
        times_L = torch.bincount(torch.cat(batches), minlength=L)
        assert len(batches) == head._STEPS and times_L.max() - times_L.min() <= 2
        assert {len(batch) for batch in batches} <= set(range(min(L, 128), 129))


def test_a_column_that_hardly_varies_stays_small():
    feature_ND = np.zeros((6000, 3), dtype=np.float32)
    feature_ND[:, 0] = np.arange(6000) % 2
    feature_ND[3, 1] = 1
    feature_ND[4, 2] = np.nan  # an item whose features are not known
    mean_D, scale_D = feature_scale(feature_ND)
    assert torch.allclose(mean_D, torch.tensor([0.5, 0, 0]), atol=2e-2)
    assert scale_D.min() > 0.25 and scale_D.isfinite().all()
    _, ones_D = feature_scale(np.ones((5, 2), dtype=np.float32))
    assert torch.equal(ones_D, torch.ones(2))

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastbadge.errors import RunError
from fastbadge.lab import batched, experiment
from fastbadge.lab.batched import train_together
from fastbadge.lab.experiment import run_experiment
from fastbadge.lab.models import mlp
from fastbadge.lab.protocol import Config
from fastbadge.lab.training import train

T, L, F, C = 5, 60, 8, 3
# 60 in batches of 25: the last one is short.
CONFIG = Config(learning_rate=0.01, train_batch=25, max_epochs=20, stop_accuracy=0.9)


@pytest.fixture(autouse=True)
def one_thread():
    """As in an experiment; two for products so small only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generators(first=100):
    return [torch.Generator().manual_seed(first + trial) for trial in range(T)]


def models(hidden=(16, 16)):
    return [mlp(F, hidden, C, generator=generator).double() for generator in generators(0)]


@pytest.fixture(scope="module")
def data():
    """Trials of rising difficulty, so that each stops at an epoch of its own."""
    generator = torch.Generator().manual_seed(0)
    y_TL = torch.randint(C, (T, L), generator=generator)
    noise_TLF = torch.randn(T, L, F, generator=generator, dtype=torch.float64)
    spread_T11 = torch.linspace(0.3, 1.1, T, dtype=torch.float64)[:, None, None]
    return nn.functional.one_hot(y_TL, F) + spread_T11 * noise_TLF, y_TL


def apart(made, data, config, seeds=None):
    return [
        train(model, x_LF, y_L, config, generator=generator)
        for model, x_LF, y_L, generator in zip(made, *data, seeds or generators(), strict=True)
    ]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1e6])
@pytest.mark.parametrize("hidden", [(16, 16), (7,)])
def test_a_stack_trains_as_each_would_alone(data, clip_norm, hidden):
    # Batches of 25, 25 and 10; without clipping of 59, which leaves one over.
    config = replace(CONFIG, clip_norm=clip_norm, train_batch=25 if clip_norm else 59)
    together, alone = models(hidden), models(hidden)
    epochs = train_together(together, *data, config, generators=generators())
    assert epochs == apart(alone, data, config)
    assert_same(together, alone)


def test_each_trial_stops_in_its_own_epoch_and_stays_as_it_is(data):
    stopped = train_together(models(), *data, CONFIG, generators=generators())
    # The first, some between, and one that the end of the epochs stops.
    assert len(set(stopped)) >= 4 and min(stopped) < 10 and max(stopped) == 20
    # Training on, the others' steps do not reach those that have left.
    for epochs in sorted(set(stopped)):
        until = replace(CONFIG, max_epochs=epochs)
        early, late = models(), models()
        train_together(early, *data, until, generators=generators())
        train_together(late, *data, CONFIG, generators=generators())
        done = [trial for trial in range(T) if stopped[trial] <= epochs]
        assert done
        assert_same([early[t] for t in done], [late[t] for t in done])


def test_a_trial_does_not_depend_on_its_company(data):
    x_TLF, y_TL = data
    whole = models()
    train_together(whole, *data, CONFIG, generators=generators())
    for some in ([0, 4], [4, 2, 1]):
        part = [models()[t] for t in some]
        shufflers = [generators()[t] for t in some]
        train_together(part, x_TLF[some], y_TL[some], CONFIG, generators=shufflers)
        assert_same(part, [whole[t] for t in some])


def test_a_gradient_is_clipped_by_its_own_norm_only(data):
    """One trial with huge gradients does not slow the others down."""
    x_TLF, y_TL = data
    wild_TLF = x_TLF.clone()
    wild_TLF[0] *= 1000
    config = replace(CONFIG, max_epochs=3)
    calm, beside_wild = models(), models()
    train_together(calm, x_TLF, y_TL, config, generators=generators())
    train_together(beside_wild, wild_TLF, y_TL, config, generators=generators())
    assert_same(calm[1:], beside_wild[1:])
    assert not torch.allclose(calm[0][0].weight, beside_wild[0][0].weight)


def test_shuffling_is_each_trial_s_own(data):
    ours, theirs = generators(), generators()
    train_together(models(), *data, CONFIG, generators=ours)
    apart(models(), data, CONFIG, theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.get_state(), b.get_state())


def test_divergence_of_one_is_said(data):
    x_TLF, y_TL = data
    broken_TLF = x_TLF.clone()
    broken_TLF[2, 0, 0] = torch.inf
    with pytest.raises(RunError, match=r"diverged in epoch 1 on 60 examples; lower learning"):
        train_together(models(), broken_TLF, y_TL, CONFIG, generators=generators())


def test_other_models_train_one_after_the_other(data, monkeypatch):
    monkeypatch.setattr(batched, "_train_stack", lambda *_: pytest.fail("stacked"))

    def with_norm():
        return [nn.Sequential(nn.BatchNorm1d(F).double(), *model) for model in models()]

    together, alone = with_norm(), with_norm()
    config = replace(CONFIG, max_epochs=3)
    epochs = train_together(together, *data, config, generators=generators())
    assert epochs == apart(alone, data, config)
    for ours, theirs in zip(together, alone, strict=True):
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("model", "plain"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), True),
        (nn.Sequential(nn.Linear(2, 2)), True),
        (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), False),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Dropout(), nn.Linear(3, 2)), False),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU()), False),
        (nn.Sequential(nn.Linear(2, 3, bias=False)), False),
        (nn.Sequential(nn.Linear(2, 3).requires_grad_(False)), False),
        (nn.Linear(2, 3), False),
    ],
)
def test_what_counts_as_a_plain_mlp(model, plain):
    assert batched._is_plain_mlp(model) is plain


def test_an_experiment_whose_trials_train_together(tmp_path, monkeypatch):
    config = Config(trials=3, rounds=2, max_epochs=8, strategies=("badge", "margin", "random"))
    apart = run_experiment(config, tmp_path / "apart", jobs=1)
    stacks = []

    def spy(models, *args):
        stacks.append(len(models))
        return stacked(models, *args)

    stacked = batched._train_stack
    monkeypatch.setattr(batched, "_train_stack", spy)
    monkeypatch.setattr(experiment, "_trains_together", lambda config: True)
    together = run_experiment(config, tmp_path / "together", jobs=1)
    assert stacks == [3] * 9  # strategies x points
    for ours, theirs in zip(together.rows, apart.rows, strict=True):
        assert ours.picks == theirs.picks and ours.accuracy == theirs.accuracy
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    # More trials join later: they form a stack of their own.
    stacks.clear()
    more = run_experiment(replace(config, trials=5), tmp_path / "together", jobs=1)
    assert stacks == [2] * 9 and more.finished
    assert set(together.rows) <= set(more.rows)


def test_a_task_is_a_round_of_trials_at_the_same_round():
    config = Config(trials=3, rounds=2, strategies=("badge", "random"))
    row = experiment.RoundRow("badge", 1, 0, 20, 0.5, 1.0, 1.0, 1.0, 1.0, tuple(range(20)))
    rows = [[row], [row, replace(row, round=1)]]
    for together, recorded in itertools.product((False, True), rows):
        found = cohorts(config, recorded, together)
        if together:
            assert found == [("badge", [0, 2]), ("random", [0, 1, 2]), ("badge", [1])]
        else:
            assert found == [(s, [t]) for t in range(3) for s in ("badge", "random")]


def cohorts(config, recorded, together):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "_trains_together", lambda config: together)
        waiting = experiment._unfinished(config, "out", recorded, 1297)
    return [(cohort.strategy, list(cohort.rows_of)) for cohort in waiting]

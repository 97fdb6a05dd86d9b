"""select(): positions that mean what they say, for every kind of pool."""

import itertools
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fastbadge as fb

N = 60
STRATEGIES = ["badge", "badge_proxy", "entropy", "least_confidence", "margin", "random"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).double()


X = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


class Rows(Dataset):
    """Gives (x, label, id), and keeps a list of the positions it was asked for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return N

    def __getitem__(self, position):
        self.asked.append(position)
        return X[position], position % 3, f"id{position}"


def collate_negated(rows):
    return {"input": -torch.stack(rows)}


def pools(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    return {
        "tensor": X,
        "tensor that is trained": X.clone().requires_grad_(),
        "array": X.numpy(),
        "array on disk": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "array of another order": np.asfortranarray(X.numpy()),
        "array of other bytes": X.numpy().astype(">f8"),
        "tensor dataset": TensorDataset(X, torch.zeros(N)),
        "list": list(X),
        "dataset": Rows(),
        "loader": DataLoader(Rows(), batch_size=7),
        "loader of dicts": DataLoader(list(-X), batch_size=7, collate_fn=collate_negated),
        "loader with workers": DataLoader(TensorDataset(X), batch_size=32, num_workers=1),
    }


@pytest.mark.parametrize("labeled", [None, [3, 59, 0, 17]])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_picks_from_every_kind_of_pool_and_batch_size(model, tmp_path, strategy, labeled):
    free = [i for i in range(N) if i not in (labeled or [])]
    reference = fb.select(model, X[free], 20, strategy=strategy, seed=3)
    expected = torch.tensor(free)[reference]
    for kind, pool in pools(tmp_path).items():
        if kind == "loader with workers" and strategy != "badge":
            continue  # a process each time
        for batch_size in (1, 7, 512):
            picked = fb.select(
                model, pool, 20, strategy=strategy, labeled=labeled, batch_size=batch_size, seed=3
            )
            assert picked.dtype == torch.int64
            assert picked.tolist() == expected.tolist(), (kind, batch_size)


def test_a_float64_array_runs_through_a_float32_model(model):
    single = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    single.load_state_dict(model.state_dict())
    assert fb.select(single, X.numpy(), 20, seed=3).equal(fb.select(model, X, 20, seed=3))


def test_integers_are_left_integers_in_an_array():
    torch.manual_seed(0)
    bag = nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 3))
    tokens = torch.randint(10, (N, 6))
    assert fb.select(bag, tokens.numpy(), 5, seed=0).equal(fb.select(bag, tokens, 5, seed=0))


@pytest.mark.parametrize(
    "labeled",
    [
        [0, 5],
        (5, 0),
        np.array([0, 5], dtype=np.int32),
        torch.tensor([5, 0]),
        torch.tensor([i in (0, 5) for i in range(N)]),
        np.array([i in (0, 5) for i in range(N)]),
        [i in (0, 5) for i in range(N)],
    ],
)
def test_labelled_examples_are_neither_run_nor_chosen(model, labeled):
    pool = Rows()
    picked = fb.select(model, pool, N - 2, labeled=labeled, seed=0)
    free = [i for i in range(N) if i not in (0, 5)]
    assert pool.asked == free
    assert sorted(picked.tolist()) == free


def test_no_labels_yet(model):
    expected = fb.select(model, X, 5, seed=0)
    for labeled in ([], np.zeros(N, dtype=bool), range(0)):
        assert fb.select(model, X, 5, labeled=labeled, seed=0).equal(expected)


@pytest.mark.parametrize(
    ("labeled", "message"),
    [
        ([3, 60], "labeled has position 60; the pool has 0 to 59"),
        ([-1], "labeled has position -1; the pool has 0 to 59"),
        ([4, 7, 4], "labeled has position 4 2 times"),
        ([True, False], "a mask of length 2; the pool has 60"),
        ([0.5], "dtype float64; expected a list of positions"),
        ([[1, 2]], r"shape \(1, 2\)"),
        (range(N), "every example of the pool is in labeled"),
    ],
)
def test_labels_that_cannot_be(model, labeled, message):
    with pytest.raises(fb.InputError, match=message):
        fb.select(model, X, 5, labeled=labeled)
    probs = np.full((N, 2), 0.5)
    with pytest.raises(fb.InputError, match=message):
        fb.select_from_arrays(probs, probs, 5, labeled=labeled)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("k", [0, -1, 51, 2.0, None, True])
def test_k_that_cannot_be(model, strategy, k):
    message = r"k is .*; expected a whole number from 1 to 50, the examples that are not yet"
    with pytest.raises(fb.InputError, match=message):
        fb.select(model, X, k, strategy=strategy, labeled=range(10))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_that_is_left(model, strategy):
    picked = fb.select(model, X, 50, strategy=strategy, labeled=range(10))
    assert sorted(picked.tolist()) == list(range(10, N))


def test_seeds_and_generators(model):
    for strategy in ("badge", "random"):
        with_seed = fb.select(model, X, 10, strategy=strategy, seed=4)
        generator = torch.Generator().manual_seed(4)
        with_generator = fb.select(model, X, 10, strategy=strategy, generator=generator)
        assert with_seed.equal(with_generator)
        assert not with_seed.equal(fb.select(model, X, 10, strategy=strategy, seed=5))
        assert not with_seed.equal(
            fb.select(model, X, 10, strategy=strategy, generator=generator)
        ), "a generator goes on"
    with pytest.raises(fb.InputError, match="both seed"):
        fb.select(model, X, 10, seed=4, generator=torch.Generator())


def test_random_never_runs_the_model():
    class Unusable(nn.Module):
        def forward(self, x):
            raise AssertionError

    pool = Rows()
    picked = fb.select(Unusable(), pool, 10, strategy="random", labeled=[1], seed=0)
    assert len(set(picked.tolist()) - {1}) == 10
    assert pool.asked == []
    with pytest.raises(fb.InputError, match="shuffles"):
        fb.select(Unusable(), DataLoader(pool, shuffle=True), 10, strategy="random")


def test_uncertainty_needs_no_linear_head():
    convolution = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 4), nn.Flatten()).double()
    assert len(fb.select(convolution, X, 5, strategy="margin")) == 5
    with pytest.raises(fb.InputError, match=r"found no nn.Linear"):
        fb.select(convolution, X, 5)


def test_badge_is_kmeans_pp_on_the_gradients(model):
    free = torch.arange(10, N)
    for bias in (False, True):
        emb = fb.compute_gradient_embedding(model, X, include_bias=bias)
        rest = fb.GradientEmbedding(emb.error_NC[free], emb.feature_ND[free])
        expected = free[fb.kmeans_pp(rest, 8, seed=1)]
        picked = fb.select(model, X, 8, labeled=range(10), include_bias=bias, seed=1)
        assert picked.equal(expected)


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("labeled", [None, [2, 11]])
def test_arrays_give_what_the_model_gives(task, strategy, labeled):
    torch.manual_seed(2)
    C = 1 if task == "binary" else 3
    head = nn.Linear(4, C).double()
    logits = head(X).detach()
    probs = (logits.softmax(dim=1) if task == "multiclass" else logits.sigmoid()).numpy()
    expected = fb.select(head, X, 15, strategy=strategy, task=task, labeled=labeled, seed=6)
    features = X.numpy() if strategy.startswith("badge") else None
    if C == 1:
        probs = probs[:, 0]
    picked = fb.select_from_arrays(
        probs, features, 15, strategy=strategy, task=task, labeled=labeled, seed=6
    )
    assert picked.equal(expected)


def test_arrays_are_only_read(tmp_path):
    probs = np.random.default_rng(0).dirichlet([1, 1, 1], N)
    np.save(tmp_path / "p.npy", probs)
    on_disk = np.load(tmp_path / "p.npy", mmap_mode="r")
    expected = fb.select_from_arrays(probs, X, 5, seed=0)
    assert fb.select_from_arrays(on_disk, X, 5, seed=0).equal(expected)


@pytest.mark.parametrize(
    ("probabilities", "features", "message"),
    [
        (np.full((5, 2), 0.5), None, "strategy 'badge' needs features"),
        (np.full((5, 2), 0.5), np.ones((4, 3)), "5 rows but features has 4"),
        (np.full((5, 2), 5.0), np.ones((5, 3)), "expected \\[0, 1\\]"),
        (np.array([[0.5, 0.5], [np.nan, 0.5]]), np.ones((2, 3)), "NaN or inf in row 1"),
        (np.array([["a"]]), np.ones((1, 3)), "dtype <U1; expected real numbers"),
    ],
)
def test_arrays_that_cannot_be(probabilities, features, message):
    with pytest.raises(fb.InputError, match=message):
        fb.select_from_arrays(probabilities, features, 1)


def test_an_object_array_is_no_pool(model):
    with pytest.raises(fb.InputError, match="dtype object; expected real numbers"):
        fb.select(model, np.array([[None] * 4] * 3, dtype=object), 2)


def test_a_task_that_does_not_fit(model):
    for strategy in ("badge", "margin"):
        with pytest.raises(fb.InputError, match="task is binary but there are 3 outputs"):
            fb.select(model, X, 5, strategy=strategy, task="binary")


def test_a_warning_names_the_line_of_the_user():
    zero, x = nn.Linear(4, 3), torch.zeros(9, 4)
    emb = fb.compute_gradient_embedding(zero, x)
    probs = np.full((9, 3), 1 / 3)
    with pytest.warns(fb.MassExhaustedWarning) as caught:
        fb.select(zero, x, 3)
        fb.select(zero, x, 3, strategy="badge_subset:candidates=5")
        fb.select_from_arrays(probs, x.numpy(), 3)
        fb.kmeans_pp(emb, 3)
    assert [warning.filename for warning in caught] == [__file__] * 4
    lines = [warning.lineno for warning in caught]
    assert lines == list(range(lines[0], lines[0] + 4))


def test_progress_is_lines_where_there_is_no_terminal(model, capsys, monkeypatch):
    progress = sys.modules["fastbadge.progress"]
    seconds = itertools.count(step=3)
    monkeypatch.setattr(progress, "monotonic", lambda: next(seconds))
    probs = np.full((N, 3), 1 / 3)
    fb.select_from_arrays(probs, X.numpy(), 20, seed=0, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "checking probabilities: 60 of 60 rows",
        "checking features: 60 of 60 rows",
    ]
    assert lines[2].startswith("k-means++: 1 of 20 picks")
    for progress_wanted in (False, None):
        fb.select_from_arrays(probs, X.numpy(), 20, seed=0, progress=progress_wanted)
        fb.select(model, X, 20, seed=0, progress=progress_wanted)
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with sys.modules["fastbadge.progress"].progress_bar(
        5, "doing", "things", show=None, delay_seconds=0.0
    ) as advance:
        advance(5)
    assert "doing:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1.5}, "batch_size is 1.5; expected a whole number"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"labeled": np.ma.masked_less(np.arange(3), 1)}, "labeled is a masked array"),
        ({"device": "foo"}, "device is 'foo', which torch cannot use"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(fb.InputError, match=message):
        fb.select(torch.nn.Linear(2, 3), torch.ones(4, 2), 2, **options)


def test_numbers_may_be_those_of_numpy(model):
    numbers = {"k": np.int8(3), "batch_size": np.int64(7), "seed": np.uint64(3)}
    for pool in (X, list(X)):
        assert fb.select(model, pool, **numbers).equal(fb.select(model, X, 3, seed=3))


def test_labeled_may_be_a_set():
    model, x = torch.nn.Linear(2, 3), torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    assert set(fb.select(model, x, 3, labeled={0, 2, 4}, seed=0).tolist()) == {1, 3, 5}


def test_long_doubles_are_refused():
    with pytest.raises(fb.InputError, match="at most 64 bits"):
        fb.select_from_arrays(np.full((4, 2), 0.5, dtype=np.longdouble), np.ones((4, 2)), 1)


@pytest.mark.parametrize("strategy", ["badge", "margin", "random"])
def test_the_default_device_changes_no_pick(model, strategy):
    # "meta" stands for "cuda": nothing can be computed with what is made there by default.
    options = {"strategy": strategy, "seed": 3}
    expected = fb.select(model, X, 20, **options)
    zeros = fb.GradientEmbedding(torch.zeros(9, 2), torch.ones(9, 2))
    with torch.device("meta"):
        for pool in (X, X.numpy()):
            picked = fb.select(model, pool, 20, **options)
            assert picked.device.type == "cpu" and picked.equal(expected)
        with pytest.warns(fb.MassExhaustedWarning):
            assert len(set(fb.kmeans_pp(zeros, 9, first="uniform", seed=0).tolist())) == 9


def test_arrays_that_a_strategy_does_not_read_may_be_left_out():
    features_ND = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    probs_NC = torch.rand(40, 2, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    for strategy in ("coreset", "random"):
        whole = fb.select_from_arrays(probs_NC, features_ND, 9, strategy=strategy, seed=3)
        alone = fb.select_from_arrays(None, features_ND, 9, strategy=strategy, seed=3)
        assert torch.equal(alone, whole)
    with pytest.raises(
        fb.InputError, match="strategy 'badge' needs probabilities; pass the model's"
    ):
        fb.select_from_arrays(None, features_ND, 9)
    with pytest.raises(
        fb.InputError, match="no rows to choose from; pass probabilities or features"
    ):
        fb.select_from_arrays(None, None, 9, strategy="random")

"""Pools and batches of every kind: what the model is given, in which order."""

import multiprocessing
import weakref
from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
)

import fastbadge as fb
from fastbadge.batches import model_arguments, moved, rows_of
from fastbadge.inference import infer

N = 30
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
IDS = [f"id{i}" for i in range(N)]


class Net(nn.Module):
    """Keeps what it is called with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.seen = nn.Linear(4, 3), []

    def forward(self, x):
        self.seen.append(x)
        return self.head(x)


class Pair(Net):
    def forward(self, left, right, *, scale=1.0):
        return super().forward(left * scale - right)


class Named(Net):
    def forward(self, input_ids, attention_mask=None, labels=None):
        assert labels is None
        return super().forward(input_ids if attention_mask is None else input_ids * attention_mask)


class Anything(Net):
    def forward(self, **batch):
        assert "labels" not in batch
        return super().forward(batch["input_ids"])


class Whole(Net):
    """Takes the batch itself, as Lightning modules often do."""

    def forward(self, batch):
        return super().forward(batch["values"])


class Supervised(Net):
    def forward(self, input_ids, labels):
        assert labels.dtype == torch.int64
        return super().forward(input_ids)


Row = namedtuple("Row", ["x", "label"])


def rows_with(**more):
    return [{"input_ids": x, **{n: v[i] for n, v in more.items()}} for i, x in enumerate(X)]


def collated(rows):
    return UserDict(input_ids=torch.stack([x for x, _ in rows]), text=[text for _, text in rows])


LABELS = torch.arange(N) % 3


@pytest.mark.parametrize(
    ("model", "pool"),
    [
        (Net(), [(x, 0, name) for x, name in zip(X, IDS, strict=True)]),
        (Net(), [[x] for x in X]),
        (Net(), [((x,), 0) for x in X]),
        (Net(), [Row(x, 1) for x in X]),
        (Net(), TensorDataset(X, LABELS, LABELS)),
        (Pair(), [(2 * x, x, 0) for x in X]),
        (Pair(), [((2 * x, x), 0) for x in X]),
        (Pair(), TensorDataset(2 * X, X, LABELS)),
        (Pair(), [{"right": x, "left": 2 * x, "id": 0} for x in X]),
        (Pair(), [{"right": 2 * x, "left": 1.5 * x, "scale": torch.full((4,), 2.0)} for x in X]),
        (Named(), rows_with()),
        (Named(), rows_with(labels=-torch.ones(N, dtype=torch.int64), id=IDS)),
        (Named(), [(row, 5) for row in rows_with(attention_mask=torch.ones(N, 4))]),
        (Named(), {"input_ids": X, "attention_mask": np.ones((N, 4)), "labels": LABELS}),
        (Named(), UserDict(input_ids=X.numpy(), text=np.array(range(N)))),
        (Named(), DataLoader(list(zip(X, IDS, strict=True)), batch_size=7, collate_fn=collated)),
        (Anything(), rows_with(labels=LABELS)),
        (Supervised(), rows_with(labels=LABELS, id=IDS)),
        (Supervised(), TensorDataset(X, LABELS)),
        (Whole(), [{"values": x, "id": 0} for x in X]),
        (nn.DataParallel(Named()), rows_with(id=IDS)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("labeled", [None, [0, 4, 29]])
def test_what_a_model_is_given(model, pool, labeled):
    picked = fb.select(model, pool, 8, seed=0, labeled=labeled, batch_size=7)
    assert picked.equal(fb.select(Net(), X, 8, seed=0, labeled=labeled))


def test_what_cannot_be_guessed_is_told_by_forward():
    class Graph:
        """A batch of no kind that is known."""

        def __init__(self, rows):
            self.nodes = torch.stack(rows)

    model = Net()
    loader = DataLoader(list(X), batch_size=7, collate_fn=Graph)
    with pytest.raises(fb.InputError, match=r"input would be a Graph.*pass forward="):
        fb.select(model, loader, 8)
    with pytest.raises(fb.InputError, match=r"takes left, right but a batch is a list of 1; pass"):
        fb.select(Pair(), [(x,) for x in X], 8)
    picked = fb.select(model, loader, 8, seed=0, forward=lambda m, batch: m(batch.nodes))
    assert picked.equal(fb.select(model, X, 8, seed=0))
    assert picked.equal(
        fb.select(model, TensorDataset(LABELS, X), 8, seed=0, forward=lambda m, batch: m(batch[1]))
    )


def test_arguments_of_forwards_that_say_nothing_or_take_sequences():
    assert model_arguments([X, X], max) == ((X,), {})  # a builtin has no signature
    assert model_arguments({"a": 1, "labels": 2}, lambda **kw: 0) == ((), {"a": 1})
    both = (X, X)
    assert model_arguments([both, LABELS], lambda pair: 0) == ((both,), {})
    with pytest.raises(fb.InputError, match="would be a str"):
        model_arguments(["a", "b"], lambda x: 0)
    with pytest.raises(fb.InputError, match="would be a list"):
        model_arguments([], lambda x: 0)


def test_batches_are_moved_and_split_as_they_are():
    batch = {"x": X, "pair": (X, Row(X, IDS)), "ids": IDS, "scale": torch.tensor(2.0), "n": 3}
    part = rows_of(batch, slice(5, 8), N)
    assert part["ids"] == IDS[5:8] and part["n"] == 3 and part["scale"].ndim == 0
    assert isinstance(part["pair"][1], Row) and part["pair"][1].label == IDS[5:8]
    assert part["pair"][1].x.equal(X[5:8]) and batch["x"] is X
    elsewhere = moved(batch, torch.device("meta"))
    assert elsewhere["pair"][1].x.device.type == elsewhere["scale"].device.type == "meta"
    assert elsewhere["ids"] == IDS and batch["x"].device.type == "cpu"
    frozen = moved(UserDict(batch), torch.device("meta"))
    assert isinstance(frozen, UserDict) and frozen["x"].device.type == "meta"
    assert moved(batch, None) is batch


# --- iterable datasets


class Stream(IterableDataset):
    """Examples one after the other; says, wrongly if so told, how many."""

    def __init__(self, length=N):
        self.length = length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(zip(X, LABELS, strict=True))


@pytest.mark.parametrize("labeled", [None, [0, 4, 29]])
@pytest.mark.parametrize("workers", [None, 0, 1])
def test_an_iterable_dataset_in_its_own_order(labeled, workers):
    pool = Stream()
    if workers is not None:
        pool = DataLoader(pool, batch_size=7, num_workers=workers)
    picked = fb.select(Net(), pool, 8, seed=0, labeled=labeled, batch_size=7)
    assert picked.equal(fb.select(Net(), X, 8, seed=0, labeled=labeled))


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (DataLoader(Stream(), num_workers=2), "2 workers, which give examples in turn"),
        (DataLoader(Stream(), batch_size=None), "has batch_size=None"),
        (DataLoader(Stream(), batch_size=7, drop_last=True), "would drop the last 2 of 30"),
        (Stream(length=31), "gave 30 examples but has length 31; mend its __len__"),
        (Stream(length=20), r"gave 30 examples but has length 20; mend"),
        (DataLoader(X, num_workers=2, in_order=False), "in_order=False.*pass in_order=True"),
        ({"a": X, "b": X[:3]}, r"lengths \{'a': 30, 'b': 3\}; expected"),
        ({"a": X, "b": IDS}, "a list in 'b'; expected tensors or arrays of one length"),
        ({}, r"pool is empty \(dict\)"),
        ({"a": X[:0]}, r"pool is empty \(dict\)"),
    ],
)
def test_pools_without_a_known_order(pool, message):
    with pytest.raises(fb.InputError, match=message):
        fb.select(Named() if isinstance(pool, dict) else Net(), pool, 3)


@pytest.mark.parametrize("batch_size", [5, 7, 10, 512])
@pytest.mark.parametrize("length", [20, 40])
@pytest.mark.parametrize("labeled", [None, [0]])
def test_an_iterable_dataset_of_another_length_than_it_says(length, batch_size, labeled):
    with pytest.raises(fb.InputError, match=rf"gave \d+ examples but has length {length}; mend"):
        fb.select(Net(), Stream(length), 3, batch_size=batch_size, labeled=labeled)


# --- loaders


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_workers_and_pinned_memory_keep_the_order():
    options = {"batch_size": 7, "num_workers": 2, "pin_memory": True}
    loader = DataLoader(TensorDataset(X, LABELS), **options)
    for labeled in (None, [0, 4, 29]):
        picked = fb.select(Net(), loader, 8, seed=0, labeled=labeled)
        assert picked.equal(fb.select(Net(), X, 8, seed=0, labeled=labeled))


def test_a_loader_leaves_torchs_generator_alone_and_its_workers_end_with_it():
    class Broken(Net):
        def forward(self, x):
            raise RuntimeError("broken")

    dataset = TensorDataset(X, LABELS)
    before = torch.get_rng_state()
    for collate in (None, torch.utils.data.default_collate, lambda rows: rows[0][0][None]):
        fb.select(Net(), DataLoader(dataset, batch_size=1, collate_fn=collate), 3, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(RuntimeError, match="broken"):
        try:
            fb.select(Broken(), DataLoader(dataset, batch_size=2, num_workers=2), 3)
        except RuntimeError as error:
            assert not multiprocessing.active_children(), error
            raise


def test_a_loader_that_batches_in_order_by_a_sampler_of_its_own():
    batches = BatchSampler(SequentialSampler(X), 7, drop_last=False)
    loader = DataLoader(TensorDataset(X, LABELS), batch_sampler=batches)  # as Accelerate makes it
    for labeled in (None, [0, 4, 29]):
        picked = fb.select(Net(), loader, 8, seed=0, labeled=labeled)
        assert picked.equal(fb.select(Net(), X, 8, seed=0, labeled=labeled))


@pytest.mark.parametrize("labeled", [None, [0, 4, 29]])
@pytest.mark.parametrize("as_loader", [False, True])
def test_labels_of_none(labeled, as_loader):
    expected = fb.select(Net(), X, 8, seed=0, labeled=labeled)
    for model, pool in {
        Net(): [(x, None) for x in X],
        Named(): [{"input_ids": x, "labels": None} for x in X],
    }.items():
        given = DataLoader(pool, batch_size=7) if as_loader else pool
        assert fb.select(model, given, 8, seed=0, labeled=labeled).equal(expected)


def test_one_forward_pass_in_order_and_nothing_labelled():
    asked = []

    class Rows(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, position):
            asked.append(position)
            return X[position], LABELS[position]

    model = Net()
    fb.select(model, DataLoader(Rows(), batch_size=7), 8, labeled=[3, 11])
    free = [i for i in range(N) if i not in (3, 11)]
    assert asked == free
    assert torch.equal(torch.cat(model.seen), X[free])
    assert not any(x.requires_grad for x in model.seen)


def test_no_backward_and_only_factors_are_kept():
    alive = []

    class Watched(Net):
        def forward(self, x):
            assert not torch.is_grad_enabled()
            hidden = x + 1
            alive.append(weakref.ref(hidden))
            assert sum(ref() is not None for ref in alive) <= 2  # a batch, and the one before
            return self.head(hidden)

    model = Watched()
    outputs = infer(model, X, batch_size=3)
    assert len(alive) == 10
    assert not any(ref() is not None for ref in alive)
    assert all(p.grad is None for p in model.parameters())
    assert outputs.logit_NC._base is None and outputs.feature_ND._base is None


@pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("head", [None, "net.2"])
@pytest.mark.parametrize("by_forward", [False, True])
def test_any_end_leaves_the_model_as_it_was(error, head, by_forward):
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 3))
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            if error is not None and self.calls == 3:
                raise error
            return self.net(x)

    model = Fragile()
    model.net[1].eval()
    model.net[0].weight.requires_grad_(False)
    kept = []
    model.net[2].register_forward_hook(lambda *given: kept.append(1))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"head": head, "batch_size": 7, "seed": 0, "amp": "bf16"}
    if by_forward:
        options["forward"] = lambda model, batch: model(batch)
    if error is None:
        fb.select(model, X, 3, **options)
    else:
        with pytest.raises(type(error)):
            fb.select(model, X, 3, **options)
    assert [m.training for m in model.modules()] == [True, True, True, False, True]
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert [len(m._forward_hooks) for m in model.modules()] == [0, 0, 0, 0, 1]
    assert len(kept) == (2 if error else 5)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("labeled", [None, [0, 4, 29]])
def test_examples_that_are_arrays_are_as_one_array(dtype, labeled):
    model, x = Net().to(dtype), X.double().numpy()
    examples = [(row, float(row[0]), np.float64(1), "id", 7) for row in x]
    expected = fb.select(model, x, 8, seed=0, labeled=labeled, batch_size=7)
    for pool in (
        list(x),
        examples,
        [{"x": row, "label": 0.5} for row in x],
        DataLoader(list(x), batch_size=7),
        DataLoader(examples, batch_size=7, num_workers=1),
        IterableRows(x),
    ):
        picked = fb.select(model, pool, 8, seed=0, labeled=labeled, batch_size=7)
        assert picked.equal(expected)
    assert {seen.dtype for seen in model.seen} == {dtype}


class IterableRows(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)


def test_what_is_no_numpy_array_keeps_its_dtype():
    model = Pair()
    model.forward = lambda left, right, count: model.head((left.double() - right).float())
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.extend(given))
    fb.select(model, [(x.double(), x.numpy().astype("f2"), np.int64(3)) for x in X], 3)
    assert [value.dtype for value in seen[:3]] == [torch.float64, torch.float32, torch.int64]


def test_the_batches_of_a_loader_that_collates_by_itself_are_its_own():
    model = Net()
    loader = DataLoader(list(X.double().numpy()), batch_size=7, collate_fn=np.stack)
    picked = fb.select(
        model, loader, 8, seed=0, forward=lambda m, batch: m(torch.from_numpy(batch).float())
    )
    assert picked.equal(fb.select(model, X, 8, seed=0))

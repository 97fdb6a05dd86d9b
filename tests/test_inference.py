"""The forward pass: the head that is found, the order of the pool, and a model left as it was."""

import signal

import pytest
import torch
from pandas import DataFrame
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, TensorDataset

import fastbadge as fb
from fastbadge import inference
from fastbadge.inference import infer, iterate_outputs

BCE = F.binary_cross_entropy_with_logits


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def mlp(*, outputs=3, bias=True, seed=0):
    torch.manual_seed(seed)
    head = nn.Linear(5, outputs, bias=bias)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.ReLU(), head).double()


def gradients_by_autograd(model, head, x, task, include_bias):
    """One backward pass an example, against the model's own prediction."""
    rows = []
    for row in x:
        logits = model(row[None])
        if task == "multiclass":
            loss = F.cross_entropy(logits, logits.argmax(dim=1))
        else:
            loss = BCE(logits, (logits > 0).double(), reduction="sum")
        grad = torch.autograd.grad(loss, list(head.parameters()))
        weight_CD = grad[0]
        if include_bias:
            weight_CD = torch.cat([weight_CD, grad[1][:, None]], dim=1)
        rows.append(weight_CD.flatten())
    return torch.stack(rows)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("include_bias", [False, True])
@pytest.mark.parametrize(
    ("outputs", "task"), [(3, "multiclass"), (1, "binary"), (3, "multilabel"), (1, "multilabel")]
)
def test_gradients_are_those_of_autograd(outputs, task, include_bias):
    model, x = mlp(outputs=outputs), doubles(40, 4)
    emb = fb.compute_gradient_embedding(model, x, task=task, include_bias=include_bias)
    assert_close(emb.dense(), gradients_by_autograd(model, model[4], x, task, include_bias))


def test_a_head_without_bias():
    model, x = mlp(bias=False), doubles(10, 4)
    emb = fb.compute_gradient_embedding(model, x)
    assert_close(emb.dense(), gradients_by_autograd(model, model[4], x, "multiclass", False))


class Disordered(nn.Module):
    """The head is defined first, an unrelated layer of its shape last and called after it."""

    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(5, 3)
        self.embed = nn.Linear(4, 5)
        self.also = nn.Linear(5, 3)

    def forward(self, x):
        hidden = F.relu(self.embed(x))
        logits = self.classify(hidden)
        self.seen = self.also(hidden).sum()
        return logits


def test_the_head_is_found_by_what_it_returns_not_by_its_place():
    torch.manual_seed(0)
    model, x = Disordered().double(), doubles(20, 4)
    emb = fb.compute_gradient_embedding(model, x)
    oracle = gradients_by_autograd(model, model.classify, x, "multiclass", False)
    assert_close(emb.dense(), oracle)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_given_head_counts_instead(by_name):
    torch.manual_seed(0)
    model, x = Disordered().double(), doubles(20, 4)
    emb = fb.compute_gradient_embedding(model, x, head="also" if by_name else model.also)
    oracle = gradients_by_autograd(
        lambda x: model.also(F.relu(model.embed(x))), model.also, x, "multiclass", False
    )
    assert_close(emb.dense(), oracle)


def test_of_two_layers_that_return_the_logits_the_last_one_called_is_the_head():
    first, second = nn.Linear(4, 3), nn.Linear(3, 3, bias=False)
    nn.init.eye_(second.weight)
    model, x = nn.Sequential(first, second).double(), doubles(20, 4)
    emb = fb.compute_gradient_embedding(model, x)
    assert_close(emb.dense(), gradients_by_autograd(model, second, x, "multiclass", False))


class Wrapped(nn.Module):
    """An MLP whose output, or whose tensors after the head, a function changes."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.classify, self.change = nn.Linear(4, 5), nn.Linear(5, 3), change

    def forward(self, x):
        hidden = F.relu(self.embed(x))
        return self.change(self.classify(hidden), hidden)


class WithLogits:
    def __init__(self, logits):
        self.loss, self.logits = None, logits


@pytest.mark.parametrize(
    "change",
    [
        lambda logits, hidden: (logits, hidden),
        lambda logits, hidden: {"loss": hidden, "logits": logits},
        lambda logits, hidden: WithLogits(logits),
        lambda logits, hidden: logits.clone()[:, None, :],
        lambda logits, hidden: (logits, hidden.zero_()),
    ],
    ids=["tuple", "dict", "attribute", "clone with an axis of 1", "features overwritten"],
)
def test_shapes_of_output(change):
    model, x = Wrapped(change).double(), doubles(20, 4)
    plain = nn.Sequential(model.embed, nn.ReLU(), model.classify)
    oracle = gradients_by_autograd(plain, model.classify, x, "multiclass", False)
    assert_close(fb.compute_gradient_embedding(model, x, batch_size=8).dense(), oracle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, hidden: logits / 2, r"'classify' \(5 -> 3\).*pass head='classify'"),
        (lambda logits, hidden: hidden.sum(), r"shape \(\) for a batch of 20.*or pass head="),
        (lambda logits, hidden: "yes", "returns a str in which no logits.*pass forward=.* head="),
    ],
    ids=["temperature", "a number", "no tensor"],
)
def test_what_is_not_the_logits_is_refused_and_head_helps(change, message):
    model, x = Wrapped(change).double(), doubles(20, 4)
    with pytest.raises(fb.InputError, match=message):
        fb.compute_gradient_embedding(model, x)
    plain = nn.Sequential(model.embed, nn.ReLU(), model.classify)
    oracle = gradients_by_autograd(plain, model.classify, x, "multiclass", False)
    assert_close(fb.compute_gradient_embedding(model, x, head="classify").dense(), oracle)


def test_a_squeezed_binary_output_with_a_last_batch_of_one():
    model, x = mlp(outputs=1), doubles(9, 4)

    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x).squeeze()

    emb = fb.compute_gradient_embedding(Squeezed(), x, batch_size=4)
    assert_close(emb.dense(), fb.compute_gradient_embedding(model, x).dense())
    margin = fb.select(Squeezed(), x, 9, strategy="margin", batch_size=4)
    assert margin.equal(fb.select(model, x, 9, strategy="margin"))


def test_batches_of_keyword_arguments_and_a_shared_head_called_by_keyword():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(4, 3)

        def forward(self, left, right):
            logits = self.head(input=left)
            return logits, self.head(right)

    model, x = Pairs().double(), doubles(10, 4)
    rows = [{"left": row, "right": row + 1} for row in x]
    emb = fb.compute_gradient_embedding(model, rows, batch_size=3)
    assert_close(emb.dense(), fb.compute_gradient_embedding(model.head, x).dense())


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), None, "found no nn.Linear; pass head="),
        # Tanh, not ReLU: what positive logits would pass through unchanged is found as it is.
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), None, r"'0' \(4 -> 3\).*pass head='0'"),
        (mlp().float(), "5", r"head='5' is not in the model; expected an nn.Linear.*'4' \(5 -> 3"),
        (mlp().float(), "1", "head='1' is a Tanh"),
        (mlp().float(), nn.Linear(5, 3), "that module is not in the model"),
        (
            nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)), nn.Tanh()),
            None,
            r"found \.\.\., '2'",
        ),
        (torch.relu, None, "model is a builtin_function_or_method; expected a torch.nn.Module"),
        (nn.LSTM(4, 3), None, "the model returns logits of shape|no nn.Linear"),
        (nn.Unflatten(1, (2, 2)), None, r"shape \(6, 2, 2\) for a batch of 6"),
    ],
)
def test_no_head(model, head, message):
    with pytest.raises(fb.InputError, match=message):
        fb.compute_gradient_embedding(model, torch.ones(6, 4), head=head)


def test_a_head_that_is_not_called_or_called_on_tokens():
    model = Disordered()
    model.unused = nn.Linear(5, 3)
    with pytest.raises(fb.InputError, match="head 'unused' gave no row of logits"):
        fb.compute_gradient_embedding(model, torch.ones(6, 4), head="unused")
    with pytest.raises(fb.InputError, match="head '' gave no row of logits"):
        fb.compute_gradient_embedding(nn.Linear(4, 3), torch.ones(6, 2, 4), head="")


# --- the model is left as it was


class Everything(nn.Module):
    """Dropout and batch norm; raises what it is told to at its n-th call."""

    def __init__(self, error=None, at_call=1):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)
        self.error, self.at_call, self.calls = error, at_call, 0

    def forward(self, x):
        self.calls += 1
        if self.error is not None and self.calls == self.at_call:
            raise self.error
        return self.head(self.drop(self.norm(x)))


def state_of(model):
    return {
        "training": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "grad": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "random": torch.get_rng_state(),
    }


def assert_same_state(before, after):
    tensors, others = before.pop("tensors"), after.pop("tensors")
    assert all(torch.equal(tensors[name], others[name]) for name in tensors | others)
    assert torch.equal(before.pop("random"), after.pop("random"))
    assert before == after


@pytest.mark.parametrize("at_call", [1, 3])
@pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_the_model_is_left_as_it_was(error, at_call, as_dataset):
    model, x = Everything(error, at_call), torch.randn(20, 4)
    model.norm.eval()  # partially frozen
    model.norm.weight.requires_grad_(False)
    pool = [(row, 0) for row in x] if as_dataset else x
    before = state_of(model)
    if error is None:
        emb = fb.compute_gradient_embedding(model, pool, batch_size=4)
        again = fb.compute_gradient_embedding(model, x, batch_size=4)
        assert emb.error_NC.equal(again.error_NC)  # dropout off
    else:
        with pytest.raises(type(error)):
            fb.compute_gradient_embedding(model, pool, batch_size=4)
    assert_same_state(before, state_of(model))


class Pressed(nn.Linear):
    """During whose hooking, or whose waking, Ctrl-C comes once."""

    left = 0

    def press(self):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def register_forward_hook(self, *given, **options):
        handle = super().register_forward_hook(*given, **options)
        if self.when == "hooking":
            self.press()
        return handle

    def __setattr__(self, name, value):
        if name == "training" and value and getattr(self, "when", "") == "waking":
            self.press()
        super().__setattr__(name, value)


@pytest.mark.parametrize("when", ["hooking", "waking"])
def test_ctrl_c_in_between_leaves_the_model_as_it_was(when):
    model, x = nn.Sequential(nn.Linear(4, 4), Pressed(4, 4), nn.Linear(4, 3)), torch.randn(20, 4)
    model[1].when, model[1].left = when, 1
    before = state_of(model)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            infer(model, x)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert model[1].left <= 0
    assert_same_state(before, state_of(model))


def test_a_bad_logit_leaves_the_model_as_it_was_and_names_the_position():
    model, x = Everything(), torch.randn(20, 4)
    x[[7, 13]] = torch.tensor(float("nan"))
    before = state_of(model)
    for strategy in ("badge", "margin"):
        with pytest.raises(fb.InputError, match=r"logits are NaN or infinite.*position 7;"):
            fb.select(model, x, 3, strategy=strategy, batch_size=4)
        with pytest.raises(fb.InputError, match="position 13;"):
            fb.select(model, x, 3, strategy=strategy, batch_size=4, labeled=[0, 7])
    assert_same_state(before, state_of(model))
    assert len(fb.select(model, x, 3, labeled=[7, 13])) == 3


class Reads(TorchDispatchMode):
    """Counts what the host would wait for on another device: values and comparisons it reads."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.equal.default,
        )
        return func(*args, **(kwargs or {}))


def test_the_host_reads_two_values_a_batch():
    model, counts = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), []
    for batches in (5, 10):
        with Reads() as reads:
            infer(model, torch.randn(10 * batches, 4), batch_size=10)
        counts.append(reads.count)
    assert counts[1] - counts[0] == 2 * 5  # that the head gave the output; that all is finite


def test_bad_features_and_huge_finite_logits():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2, bias=False)

        def forward(self, x):
            return self.head(x)

    model = Hidden()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
    model.head.register_forward_hook(lambda module, args, out: out.nan_to_num(posinf=1.0))
    with pytest.raises(fb.InputError, match=r"features are NaN or infinite.*position 2;"):
        infer(model, torch.tensor([[1.0, 0.0], [1.0, 0.0], [torch.inf, 0.0]]))
    huge = infer(model, torch.full((4, 2), 2e38))  # their sum is infinite, they are not
    assert float(huge.logit_NC.max()) == pytest.approx(2e38)


def test_the_callers_modes_hold_between_batches():
    model = Everything()
    batches = [(2, torch.randn(2, 4)), (2, torch.randn(2, 4))]
    before = state_of(model)
    stream = iterate_outputs(model, batches, None, True, None)
    logit_BC, feature_BD = next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not model.training
    assert not (logit_BC.is_inference() or logit_BC.requires_grad or feature_BD.requires_grad)
    stream.close()
    assert_same_state(before, state_of(model))


def test_what_the_model_keeps_from_the_pass_can_be_trained():
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3))
    outputs = infer(model, torch.randn(6, 4))
    assert not (outputs.logit_NC.is_inference() or outputs.feature_ND.is_inference())
    model(torch.randn(6, 4)).sum().backward()
    assert model[0].weight.grad is not None


def test_a_device_is_left_again_also_after_an_error(monkeypatch):
    # A device that is everywhere stands for one that holds numbers.
    monkeypatch.setattr(inference, "_check_weights_live", lambda homes, place: None)

    class Recorder(Everything):
        def to(self, device):
            self.places = [*getattr(self, "places", []), str(device)]
            return self

    model = Recorder(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        infer(model, torch.randn(6, 4), device="meta")
    assert model.places == ["meta", "cpu"]
    same = Recorder()
    infer(same, torch.randn(6, 4), device="cpu")
    assert not hasattr(same, "places")
    infer(nn.Flatten(), torch.randn(6, 4), device="cpu", features=False)
    model.head.to("meta")
    with pytest.raises(fb.InputError, match="the model lies on cpu, meta; leave device out"):
        infer(model, torch.randn(6, 4), device="cpu")


def test_the_device_without_memory_is_refused_before_weights_are_lost():
    model, x = mlp(), doubles(20, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(fb.InputError, match="device is meta, which holds no numbers; pass"):
        fb.select(model, x, 3, device="meta")
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    for device in (None, "meta", "cpu"):
        with pytest.raises(fb.InputError, match="the model lies on meta, which holds no numbers"):
            fb.select(mlp().to("meta"), x, 3, device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_and_back():
    model, x = mlp(), doubles(100, 4)
    here = fb.compute_gradient_embedding(model, x)
    there = fb.compute_gradient_embedding(model, x, device="cuda")
    assert there.device.type == "cuda"
    assert next(model.parameters()).device.type == "cpu"
    assert_close(there.dense().cpu(), here.dense())
    picked = fb.select(model, x, 20, labeled=[1, 2], device="cuda", seed=0)
    assert picked.equal(fb.select(model, x, 20, labeled=[1, 2], seed=0))
    assert fb.select(model.cuda(), x, 20, labeled=[1, 2], seed=0).equal(picked)


def test_half_precision_is_kept_in_float32():
    outputs = infer(mlp().bfloat16(), torch.randn(6, 4).bfloat16())
    assert outputs.logit_NC.dtype == outputs.feature_ND.dtype == torch.float32


def test_without_features_any_model_does():
    assert infer(nn.Flatten(), torch.ones(3, 4), features=False).feature_ND is None
    with pytest.raises(fb.InputError, match=r"shape \(3, 2, 2\) for a batch of 3"):
        infer(nn.Unflatten(1, (2, 2)), torch.ones(3, 4), features=False)


def test_progress_goes_to_stderr_when_asked_for(capsys):
    infer(mlp(), doubles(20, 4), progress=True)
    assert "forward pass" in capsys.readouterr().err
    infer(mlp(), doubles(20, 4))
    infer(mlp(), doubles(20, 4), progress=False)
    assert capsys.readouterr().err == ""


def test_batch_size_of_zero():
    with pytest.raises(fb.InputError, match="batch_size is 0"):
        infer(mlp(), doubles(20, 4), batch_size=0)


# --- pools that cannot be used


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(4, 4))


class Endless(torch.utils.data.Dataset):
    def __getitem__(self, position):
        return torch.ones(4)


class Subsetting(DataLoader):
    def __iter__(self):
        return iter(list(super().__iter__())[:-1])


DATA = TensorDataset(torch.ones(10, 4))


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (DataLoader(DATA, shuffle=True), r"shuffles or samples \(RandomSampler\).*positions"),
        (DataLoader(DATA, sampler=[3, 1, 2]), r"\(list\).*not those of its dataset"),
        (
            DataLoader(DATA, sampler=torch.utils.data.SequentialSampler(range(3))),
            "shuffles or samples",
        ),
        (DataLoader(DATA, batch_size=4, drop_last=True), "would drop the last 2 of 10"),
        (DataLoader(DATA, batch_size=None), "has batch_size=None"),
        (DataLoader(DATA, batch_sampler=BatchSampler(range(10), 2, False)), r"samples \(range\)"),
        (DataLoader(DATA, batch_sampler=[[1, 0], [2]]), "batches by list, so positions"),
        (DataLoader(Stream()), "Stream without a length; give it __len__"),
        (Stream(), "Stream without a length; give it __len__"),
        (iter([1]), "list_iterator, which has no positions"),
        (Endless(), "Endless without a length"),
        (DataLoader(Endless(), batch_size=2, sampler=range(4)), "Endless without a length"),
        (torch.ones(0, 4), "pool is empty"),
        ([], r"pool is empty \(list\)"),
        (torch.tensor(1.0), "pool has no axis"),
        (torch.eye(4).to_sparse(), "pool is of layout torch.sparse_coo; pass pool.to_dense"),
        (DataFrame({"a": [1.0, 2.0]}), r"pool is a DataFrame; pass its to_numpy\(\)"),
        ([torch.ones(4), torch.ones(3)], "make no batch: stack expects.*pass a DataLoader with a"),
        ([(torch.ones(4), object())], "make no batch: .*found <class 'object'>; pass a DataLoader"),
        (["a", "b"], "the model's input would be a str"),
        (Subsetting(DATA, batch_size=4), "is a Subsetting with an __iter__ of its own"),
        (
            DataLoader(DATA, batch_size=4, collate_fn=lambda rows: torch.ones(3, 4)),
            "returns 3 rows for a batch of 4 examples; .* collate_fn, or the model, leaves some",
        ),
    ],
)
def test_pools_that_cannot_be_used(pool, message):
    with pytest.raises(fb.InputError, match=message):
        infer(mlp().float(), pool)


def test_drop_last_that_drops_nothing():
    loader = DataLoader(DATA, batch_size=5, drop_last=True)
    assert len(infer(mlp().float(), loader).logit_NC) == 10

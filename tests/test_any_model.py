"""Heads of every kind: the factors against autograd of the loss in the head's true weight."""

import copy
import warnings
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

import fastbadge as fb
from fastbadge.inference import infer
from oracles import assert_gradients, images, plain

# --- convolutional networks


class Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return F.relu(x + self.layers(x), inplace=True)


def resnet(classes=5):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, padding=1)
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
    return nn.Sequential(stem, Block(8), nn.MaxPool2d(2), Block(8), *tail)


def vgg(classes=5):
    torch.manual_seed(0)
    convolutions = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(4), nn.AdaptiveAvgPool2d(2)
    )
    hidden = (nn.Linear(32, 16), nn.ReLU(True), nn.Dropout())
    return nn.Sequential(convolutions, nn.Flatten(), *hidden, nn.Linear(16, classes))


@pytest.mark.parametrize("make", [resnet, vgg])
@pytest.mark.parametrize("change", [copy.copy, nn.DataParallel, AveragedModel])
def test_resnet_and_vgg_plain_and_wrapped(make, change):
    model = make()
    head = model[-1]
    wrapped = change(model)
    if change is AveragedModel:
        head = wrapped.module[-1]
    assert_gradients(wrapped, images(), head.weight, plain)
    if change is nn.DataParallel:
        assert_gradients(wrapped, images(), head.weight, plain, head=head)


def test_distributed_data_parallel_runs_the_module_inside(tmp_path):
    model = resnet()
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert_gradients(wrapped, images(), model[-1].weight, plain)
    finally:
        distributed.destroy_process_group()


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "tail",
    [
        lambda head: (nn.AdaptiveAvgPool2d(1), head, nn.Flatten()),
        lambda head: (nn.AdaptiveAvgPool2d(1), head),
        lambda head: (head, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        lambda head: (head, nn.AvgPool2d(8), nn.Flatten()),
        lambda head: (head, Mean()),
        lambda head: (head, nn.Identity(), Mean(), nn.LogSoftmax(dim=1)),
    ],
    ids=["pool first", "not flattened", "adaptive", "average", "mean", "mean, log-softmax"],
)
def test_a_convolution_of_1x1_as_head(tail, bias):
    torch.manual_seed(0)
    head = nn.Conv2d(8, 5, 1, bias=bias)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), *tail(head))

    def logits_of(model, example):
        return model(example).flatten(1)

    assert_gradients(model, images(), head.weight, logits_of)
    alone = infer(model, images(1))  # a batch of one has axes of one
    together = infer(model, images())
    torch.testing.assert_close(alone.feature_ND, together.feature_ND[:1])


def test_a_convolution_in_half_precision_and_over_a_line():
    torch.manual_seed(0)
    head = nn.Conv1d(4, 3, 1)
    model = nn.Sequential(head, nn.AdaptiveAvgPool1d(1), nn.Flatten())
    x = torch.randn(6, 4, 50, generator=torch.Generator().manual_seed(0))
    assert_gradients(model, x, head.weight, plain)
    half = infer(model, x, amp="bf16")
    torch.testing.assert_close(half.feature_ND, x.mean(dim=2), rtol=0.02, atol=0.02)
    torch.testing.assert_close(half.logit_NC, infer(model, x).logit_NC, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "tail",
    [
        (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),  # as in SqueezeNet
        (nn.AdaptiveMaxPool2d(1), nn.Flatten()),
    ],
)
def test_what_is_no_mean_of_linear_outputs_has_no_factors(tail):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), *tail)
    with pytest.raises(fb.InputError, match=r"no nn.Linear returned.*'0' \(3 -> 5\)"):
        fb.compute_gradient_embedding(model, images())
    with pytest.raises(fb.InputError, match=r"head '0' gave no row.*neither averages"):
        fb.compute_gradient_embedding(model, images(), head="0")
    assert len(fb.select(model, images(), 3, strategy="margin")) == 3


# --- layers


def test_a_lazy_layer_a_subclass_and_a_reparametrised_one():
    class Named(nn.Linear):
        """A layer of somebody's own that calls its parent."""

        def forward(self, x):
            return super().forward(x)

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    lazy = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3))
    fb.compute_gradient_embedding(lazy, x)
    assert_gradients(lazy, x, lazy[2].weight, plain)
    named = nn.Sequential(nn.Linear(4, 5), Named(5, 3))
    assert_gradients(named, x, named[1].weight, plain)
    normed = nn.Sequential(nn.Linear(4, 5), nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)))
    outputs = infer(normed, x)
    torch.testing.assert_close(outputs.feature_ND, normed[0](x).detach())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_head():
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model = torch.ao.quantization.quantize_dynamic(whole, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(model[2], nn.Linear)
    outputs = infer(model, X)
    assert torch.equal(outputs.logit_NC, model(X))
    assert torch.equal(outputs.feature_ND, model[:2](X))
    emb = fb.compute_gradient_embedding(model, X)
    expected = fb.compute_gradient_embedding(whole, X)
    torch.testing.assert_close(emb.dense(), expected.dense(), rtol=0, atol=0.02)


def test_a_layer_that_only_looks_linear():
    class Cosine(nn.Linear):
        def forward(self, x):
            return 16 * F.normalize(x) @ F.normalize(self.weight).T

    model = nn.Sequential(nn.Linear(4, 5), Cosine(5, 3))
    for head in (None, "1"):
        with pytest.raises(fb.InputError, match="'1' is a Cosine, which is not W h \\+ b"):
            fb.compute_gradient_embedding(model, torch.randn(6, 4), head=head)
        assert len(fb.select(model, torch.randn(6, 4), 2, head=head, strategy="margin")) == 2


class NamedLikeALayer(nn.Module):
    """A whole MLP, or a head behind something, with the attributes of a linear layer."""

    def __init__(self, *layers):
        super().__init__()
        self.in_features, self.out_features = 4, 3
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("between", [nn.ReLU(), nn.Tanh(), nn.LayerNorm(5)])
@pytest.mark.parametrize("rows", [9, 1])
def test_of_a_module_named_like_a_layer_the_last_layer_is_the_head(bias, between, rows):
    torch.manual_seed(0)
    model = NamedLikeALayer(nn.Linear(4, 5, bias=bias), between, nn.Linear(5, 3, bias=bias))
    assert_gradients(model, X[:rows], model.layers[2].weight, plain)
    with pytest.raises(fb.InputError, match="'' is a NamedLikeALayer, which is not W h"):
        fb.compute_gradient_embedding(model, X[:rows], head="")
    small = X[:rows] / 100  # of which tanh is all but linear
    assert infer(model, small).feature_ND.shape == (rows, 5)


def test_an_adapter_is_a_linear_layer_with_others_inside():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 5, 3
            self.base, self.down, self.up = nn.Linear(5, 3), nn.Linear(5, 1), nn.Linear(1, 3)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Adapted())
    for head in (None, "2"):
        assert torch.equal(infer(model, X, head=head).feature_ND, model[:2](X))


def test_eval_and_train_of_a_module_are_not_called():
    class Merging(nn.Linear):
        """Merges on eval() and takes apart on train(), as loralib's layers and RepVGG's do."""

        def train(self, mode=True):
            with torch.no_grad():
                self.weight += -1 if mode and not self.training else int(not mode and self.training)
            return super().train(mode)

    model = nn.Sequential(nn.Linear(4, 5), Merging(5, 3))
    before = model[1].weight.clone()
    fb.select(model, X, 2)
    assert model[1].weight.equal(before) and model[1].training


def test_a_scripted_model_is_told_in_one_line_and_a_scripted_part_is_run():
    whole = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(whole)
        part = nn.Sequential(torch.jit.script(whole[:2]), whole[2])
    for head in (None, "2"):
        with pytest.raises(fb.InputError, match=r"^no nn.Linear returned|is a RecursiveScript"):
            fb.select(scripted, X, 2, head=head)
    for strategy, model in {"margin": scripted, "badge": part}.items():
        picked = fb.select(model, X, 5, strategy=strategy, seed=0)
        assert picked.equal(fb.select(whole, X, 5, strategy=strategy, seed=0))


def test_tied_and_frozen_weights():
    class Tied(nn.Module):
        """Class names are words: the head is the embedding of words."""

        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(7, 4)
            self.mix = nn.Linear(4, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.words.weight

        def forward(self, tokens):
            # Detached: the oracle's gradient is that of the head, not of the embedding.
            return self.head(torch.tanh(self.mix(self.words(tokens).detach().mean(dim=1))))

    torch.manual_seed(0)
    model, tokens = Tied(), torch.randint(7, (6, 3))
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        assert_gradients(model, tokens, model.head.weight, plain)
        assert [p.requires_grad for p in model.parameters()] == [not frozen] * 3


# --- outputs


class Two(nn.Module):
    """Two layers over shared features, and whatever a function makes of them."""

    def __init__(self, change, width=7):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(4, width)
        self.left, self.right = nn.Linear(width, 3), nn.Linear(width, 2)
        self.change = change

    def forward(self, x):
        embedding = self.embed(x)
        hidden = F.relu(embedding)
        return self.change(embedding, hidden, self.left(hidden), self.right(hidden))


X = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))


@dataclass
class Output:
    features: torch.Tensor
    scores: torch.Tensor


@pytest.mark.parametrize("strategy", ["badge", "margin"])
@pytest.mark.parametrize(
    "change",
    [
        lambda e, h, left, right: (h, left),
        lambda e, h, left, right: (left, h),
        lambda e, h, left, right: [e, left],
        lambda e, h, left, right: (left, e),
        lambda e, h, left, right: {"hidden": h, "scores": left},
        lambda e, h, left, right: Output(h, left),
        lambda e, h, left, right: (left.sum(), (left, [h])),
        lambda e, h, left, right: {"loss": None, "logits": left, "other": right},
    ],
    ids=["h, l", "l, h", "e, l", "l, e", "dict", "dataclass", "loss, nested", "named logits"],
)
def test_features_beside_the_logits_in_any_order(change, strategy):
    model = Two(change)
    bare = Two(lambda e, h, left, right: left)
    picked = fb.select(model, X, 5, strategy=strategy, seed=0, batch_size=4)
    assert picked.equal(fb.select(bare, X, 5, strategy=strategy, seed=0))
    if strategy == "badge":
        emb = fb.compute_gradient_embedding(model, X, batch_size=4)
        other = fb.compute_gradient_embedding(bare, X)
        torch.testing.assert_close(emb.dense(), other.dense())
        assert_gradients(bare, X, bare.left.weight, plain)


@pytest.mark.parametrize("width", [7, 2, 3])
def test_two_heads_need_one_to_be_named(width):
    model = Two(lambda e, h, left, right: (left, right), width)
    for strategy in ("badge", "margin"):
        with pytest.raises(fb.InputError, match=r"outputs of 2 layers: '.*'; pass head='.*'"):
            fb.select(model, X, 3, strategy=strategy)
    assert_gradients(model, X, model.right.weight, lambda m, x: m(x)[1], head="right")
    assert_gradients(
        model, X, model.left.weight, lambda m, x: m(x)[0], forward=lambda m, batch: m(batch)[0]
    )


def test_a_second_head_is_no_embedding_though_it_is_as_wide_as_the_features():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 6)
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.first(self.left(x).relu()), self.second(self.right(x).relu())

    torch.manual_seed(0)
    model = Branches()
    for _ in range(2):
        with pytest.raises(fb.InputError, match="outputs of 2 layers: 'first', 'second'; pass"):
            infer(model, X)
        for head in (model.first, model.second):  # whose outputs then are equal
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)


@pytest.mark.parametrize("head", [None, "head"])
def test_of_a_head_called_twice_the_first_that_is_returned_counts(head):
    class Twice(nn.Module):
        def __init__(self, order):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)
            self.order = order

        def forward(self, x):
            both = self.head(self.left(x)), self.head(self.right(x))
            return tuple(both[i] for i in self.order)

    for order, part in {(0, 1): "left", (1, 0): "right", (1,): "right"}.items():
        model = Twice(order)
        outputs = infer(model, X, head=head)
        assert torch.equal(outputs.feature_ND, getattr(model, part)(X))
        assert torch.equal(outputs.logit_NC, model(X)[0])


def test_an_embedding_before_logits_of_another_kind():
    model = Two(lambda e, h, left, right: (F.normalize(h) @ torch.ones(7, 3), left))
    with pytest.raises(fb.InputError, match=r"shape \(9, 3\) before the output of 'left'; pass"):
        fb.compute_gradient_embedding(model, X)
    neither = Two(lambda e, h, left, right: (left / 2, right / 2))
    with pytest.raises(fb.InputError, match=r"2 tensors of one row an example.*pass forward="):
        fb.select(neither, X, 2, strategy="margin")


class Tokens(nn.Module):
    """Logits at every position, and what a function makes of them."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.score, self.change = nn.Embedding(20, 6), nn.Linear(6, 3), change

    def forward(self, tokens):
        return self.change(self.score(torch.tanh(self.words(tokens))), tokens)


TOKENS = torch.randint(20, (8, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "change",
    [
        lambda logits, tokens: logits[:, -1],
        lambda logits, tokens: logits[torch.arange(len(tokens)), tokens[:, 0] % 5],
        lambda logits, tokens: logits.mean(dim=1),
    ],
    ids=["last", "any", "mean"],
)
@pytest.mark.parametrize("head", [None, "score"])
def test_one_position_or_the_mean_of_a_sequence(change, head):
    model = Tokens(change)
    assert_gradients(model, TOKENS, model.score.weight, plain, head=head, batch_size=3)


def test_token_and_pixel_classifiers_say_what_to_pass():
    model = Tokens(lambda logits, tokens: logits)
    message = r"shape \(8, 5, 3\) for a batch of 8; .*tokens or pixels pass forward="
    for strategy in ("badge", "margin"):
        with pytest.raises(fb.InputError, match=message):
            fb.select(model, TOKENS, 2, strategy=strategy)
    scorers = Tokens(lambda logits, tokens: logits)
    scorers.score = nn.Linear(6, 1)
    line = nn.Sequential(nn.Conv1d(1, 4, 1), nn.ReLU(), nn.Conv1d(4, 1, 1))
    for scorer, pool in ((scorers, TOKENS), (line, torch.randn(8, 1, 5))):
        for strategy in ("badge", "margin"):
            with pytest.raises(fb.InputError, match=r"tokens or pixels pass forward=|no nn.Linear"):
                fb.select(scorer, pool, 2, strategy=strategy)
    ids = Tokens(lambda logits, tokens: logits[:, 0].argmax(dim=1))
    with pytest.raises(fb.InputError, match=r"returns torch.int64, no logits; pass forward="):
        fb.select(ids, TOKENS, 2, strategy="margin")
    choices = Tokens(lambda logits, tokens: scorers.score(scorers.words(tokens))[..., 0])
    assert len(fb.select(choices, TOKENS, 2, strategy="margin")) == 2  # one score a choice
    pixels = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(fb.InputError, match=r"shape \(6, 2, 14, 14\) for a batch of 6"):
        fb.select(pixels, images(), 2)

    def averaged(model, batch):
        return model(batch).flatten(2).mean(dim=2)

    assert_gradients(pixels, images(), pixels[2].weight, averaged, forward=averaged)


# --- endings, tasks and losses


@pytest.mark.parametrize(
    ("outputs", "ending", "task"),
    [
        (3, nn.Softmax(dim=1), None),
        (3, nn.LogSoftmax(dim=1), "multiclass"),
        (1, nn.Sigmoid(), None),
        (3, nn.Sigmoid(), "multilabel"),
    ],
)
def test_endings_are_looked_through(outputs, ending, task):
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs))
    model = nn.Sequential(*bare, ending)
    emb = fb.compute_gradient_embedding(model, X, task=task)
    other = fb.compute_gradient_embedding(bare, X, task=task)
    torch.testing.assert_close(emb.dense(), other.dense())
    for strategy in ("margin", "entropy"):
        options = {"strategy": strategy, "task": task}
        assert fb.select(model, X, 9, **options).equal(fb.select(bare, X, 9, **options))


def test_endings_and_tasks_that_disagree():
    sigmoid = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    for strategy in ("badge", "margin"):
        with pytest.raises(fb.InputError, match=r"sigmoid over 3 outputs.*pass task='multilabel'"):
            fb.select(sigmoid, X, 2, strategy=strategy)
    softmax = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
    with pytest.raises(fb.InputError, match="ends in a softmax, but task is multilabel"):
        fb.select(softmax, X, 2, loss=nn.BCELoss())
    unknown = nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 4), nn.Flatten(), nn.Softmax(1)
    )
    with pytest.raises(fb.InputError, match="returns probabilities, not logits"):
        fb.select(unknown, X, 2, strategy="margin")


class Calibrated(nn.Module):
    """Divides its logits by a temperature before the sigmoid, as calibration does."""

    def __init__(self, outputs):
        super().__init__()
        self.head = nn.Linear(4, outputs)

    def forward(self, x):
        return torch.sigmoid(self.head(x) / 2)


@pytest.mark.parametrize(("outputs", "task"), [(1, "binary"), (3, "multilabel")])
def test_probabilities_of_nobody_knows_what_are_not_taken_as_logits(outputs, task):
    torch.manual_seed(0)
    model, options = Calibrated(outputs), {"strategy": "margin", "task": task}
    with pytest.raises(fb.InputError, match=r"numbers from 0 to 1, not from a linear layer"):
        fb.select(model, X, 5, **options)
    picked = fb.select(model, X, 5, forward=lambda m, batch: m(batch).logit(), **options)
    double = fb.select(model, X, 5, forward=lambda m, batch: m.head(batch) / 2, **options)
    assert picked.equal(double)
    # Who says so means it.
    assert len(fb.select(model, X, 5, forward=lambda m, batch: m(batch), **options)) == 5


class Sorted(nn.Module):
    """Runs the longest first, as packed sequences are, and puts its outputs back."""

    def __init__(self, late):
        super().__init__()
        self.head, self.late = nn.Linear(4, 3), late

    def forward(self, x):
        order = x[:, 0].argsort()
        back = order.argsort()
        return self.head(x[order])[back] if self.late else self.head(x[order][back])


def test_a_head_that_sees_the_examples_in_another_order_is_refused():
    torch.manual_seed(0)
    late, soon = Sorted(late=True), Sorted(late=False)
    soon.load_state_dict(late.state_dict())
    with pytest.raises(fb.InputError, match=r"no nn.Linear returned the model's output"):
        fb.select(late, X, 5)
    for strategy in ("badge", "margin"):
        with pytest.raises(fb.InputError, match="head 'head' is called on the examples in another"):
            fb.select(late, X, 5, head="head", strategy=strategy)
    assert len(fb.select(soon, X, 5)) == 5
    assert len(fb.select(soon, X[:1].expand(9, 4), 5, strategy="margin")) == 5


class Smoothed(nn.CrossEntropyLoss):
    pass


@pytest.mark.parametrize(
    ("loss", "outputs", "task"),
    [
        (nn.CrossEntropyLoss(), 3, "multiclass"),
        (F.cross_entropy, 3, "multiclass"),
        (partial(F.cross_entropy, label_smoothing=0.1), 3, "multiclass"),
        (Smoothed(label_smoothing=0.1), 3, "multiclass"),
        (nn.NLLLoss, 3, "multiclass"),
        (nn.BCEWithLogitsLoss(), 3, "multilabel"),
        (nn.BCEWithLogitsLoss(), 1, "binary"),
        (F.binary_cross_entropy_with_logits, 2, "multilabel"),
    ],
)
def test_the_loss_tells_the_task(loss, outputs, task):
    model = nn.Linear(4, outputs)
    expected = fb.compute_gradient_embedding(model, X, task=task)
    assert fb.compute_gradient_embedding(model, X, loss=loss).error_NC.equal(expected.error_NC)
    assert fb.compute_gradient_embedding(model, X, loss=loss, task=task).error_NC.equal(
        expected.error_NC
    )
    other = "multilabel" if task == "multiclass" else "multiclass"
    with pytest.raises(fb.InputError, match=f"task is {other} but loss is .*; leave one out"):
        fb.select(model, X, 2, loss=loss, task=other)


def test_one_output_of_a_hugging_face_model_may_be_a_regression():
    model = nn.Linear(4, 1)
    model.config = SimpleNamespace(num_labels=1, problem_type=None)
    with pytest.raises(fb.InputError, match=r"num_labels=1 and no problem_type.*task='binary'"):
        fb.select(model, X, 2)
    for told in ({"task": "binary"}, {"loss": nn.BCEWithLogitsLoss()}):
        assert len(fb.select(model, X, 2, **told)) == 2


def test_a_loss_that_does_not_tell():
    model = nn.Linear(4, 3)
    with pytest.raises(fb.InputError, match=r"loss is MSELoss, which does not tell.*pass\s+task="):
        fb.select(model, X, 2, loss=nn.MSELoss())
    with pytest.raises(fb.InputError, match="multiclass but there is one output"):
        fb.select(nn.Linear(4, 1), X, 2, loss=nn.CrossEntropyLoss())
    told = fb.select(model, X, 2, loss=nn.MSELoss(), task="multilabel", seed=0)
    assert told.equal(fb.select(model, X, 2, task="multilabel", seed=0))


# --- compiled models


@pytest.mark.parametrize("part", ["wrapper", "in place", "backbone", "head"])
def test_a_compiled_model_is_watched_and_stays_compiled(part):
    model = resnet()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = model
    if part == "wrapper":
        compiled = torch.compile(model, backend=backend)
    elif part == "in place":
        model.compile(backend=backend)
    else:
        place = 1 if part == "backbone" else 6
        compiled[place] = torch.compile(compiled[place], backend=backend)
    head = model[6] if part != "head" else model[6]._orig_mod
    x = images()
    compiled.eval()
    with torch.no_grad():
        before = compiled(x)
    built = len(graphs)
    assert built > 0
    bare = resnet().eval()
    expected = fb.compute_gradient_embedding(bare, x)
    emb = fb.compute_gradient_embedding(compiled, x)
    torch.testing.assert_close(emb.dense(), expected.dense())
    assert fb.select(compiled, x, 3, seed=0, head=head).equal(fb.select(bare, x, 3, seed=0))
    with torch.no_grad():
        assert torch.equal(compiled(x), before)
    assert len(graphs) == built  # nothing was compiled anew
    torch._dynamo.reset()


# --- autocast and memory


def test_autocast():
    model = resnet()
    full = infer(model, images())
    for amp, digits in (("bf16", 0.05), ("fp16", 0.01)):
        half = infer(model, images(), amp=amp)
        assert half.logit_NC.dtype == half.feature_ND.dtype == torch.float32
        assert not half.logit_NC.equal(full.logit_NC)
        scale = float(full.logit_NC.abs().max())
        torch.testing.assert_close(half.logit_NC, full.logit_NC, rtol=0, atol=digits * scale)
    assert not torch.is_autocast_enabled("cpu")
    assert fb.select(model, images(), 2, amp="bf16").shape == (2,)
    with pytest.raises(fb.InputError, match="amp is 'int8'; expected 'bf16', 'fp16' or None"):
        fb.select(model, images(), 2, amp="int8")


class Hungry(nn.Module):
    """Runs out of memory with more than `most` examples."""

    def __init__(self, most):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.most, self.batches = nn.Linear(4, 3), most, []

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(x))
        return self.head(x)


def loader_of(x):
    return DataLoader([(row, i, str(i)) for i, row in enumerate(x)], batch_size=40)


@pytest.mark.parametrize("make_pool", [lambda x: x, loader_of])
def test_a_batch_that_does_not_fit_is_halved(make_pool):
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    model = Hungry(most=12)
    with pytest.warns(fb.OutOfMemoryWarning, match=r"batch of \d+ examples; going on") as caught:
        picked = fb.select(model, make_pool(x), 9, seed=0, batch_size=40)
    assert [warning.filename for warning in caught] == [__file__] * 2
    assert max(model.batches) == 10 and sum(model.batches) == 90
    assert picked.equal(fb.select(model.head, x, 9, seed=0))


def test_memory_for_not_even_one_example():
    with pytest.warns(fb.OutOfMemoryWarning), pytest.raises(torch.OutOfMemoryError):
        infer(Hungry(most=0), torch.ones(4, 4))
    model = Hungry(most=1)
    assert model.training and not model.head._forward_hooks

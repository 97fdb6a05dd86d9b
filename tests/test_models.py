"""Models against the same arithmetic written without modules, by the names of their weights."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastbadge.errors import InputError
from fastbadge.inference import infer
from fastbadge.lab.models import build_model, check_model_name, drawing_from, mlp

IMAGE = (3, 32, 32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(name, shape=IMAGE, num_classes=10, seed=0, **others):
    return build_model(name, shape, num_classes, generator=generator(seed), **others)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def conv_bn(channels_in, channels_out, size=3):
    return channels_in * channels_out * size**2 + 2 * channels_out


def test_parameter_counts_by_hand():
    # Two blocks of two convolutions a stage; where it halves the map, a 1 x 1 beside the first.
    stages = 4 * conv_bn(64, 64)
    for narrow, wide in ((64, 128), (128, 256), (256, 512)):
        stages += conv_bn(narrow, wide) + conv_bn(narrow, wide, size=1) + 3 * conv_bn(wide, wide)
    assert parameters(build("resnet18")) == conv_bn(3, 64) + stages + 512 * 10 + 10 == 11_173_962
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(map(conv_bn, widths[:-1], widths[1:]))
    assert parameters(build("vgg11")) == convolutions + 512 * 10 + 10 == 9_228_362
    assert parameters(build("linear")) == 3072 * 10 + 10
    assert parameters(build("mlp", hidden=(7, 5))) == 3073 * 7 + 8 * 5 + 6 * 10


class Weights:
    """The tensors of a model in the order in which they were made, taken one layer at a time."""

    def __init__(self, model):
        self.left = list(model.state_dict().values())

    def conv_bn(self, x, *, stride=1):
        weight, scale, shift, mean, variance, _ = (self.left.pop(0) for _ in range(6))
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return F.batch_norm(x, mean, variance, scale, shift)

    def linear(self, x):
        weight, bias = self.left.pop(0), self.left.pop(0)
        return x @ weight.T + bias


def randomised(model, x):
    """The model in eval mode with statistics and affine parts that are not those of the start."""
    draw = generator(9)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=draw)
                for tensor in (module.bias, module.running_mean):
                    tensor.uniform_(-0.5, 0.5, generator=draw)
    return model.eval()


def resnet18_by_hand(model, x):
    weights = Weights(model)
    x = weights.conv_bn(x.reshape(-1, *IMAGE)).relu()
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = weights.conv_bn(weights.conv_bn(x, stride=stride).relu())
            x = (y + (weights.conv_bn(x, stride=stride) if stride == 2 else x)).relu()
    logits = weights.linear(x.mean(dim=(2, 3)))
    assert not weights.left
    return logits, x.mean(dim=(2, 3))


def vgg11_by_hand(model, x):
    weights = Weights(model)
    x = x.reshape(-1, *IMAGE)
    for layers in (1, 1, 2, 2, 2):
        for _ in range(layers):
            x = weights.conv_bn(x).relu()
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    feature = x[:, :, 0, 0]
    logits = weights.linear(feature)
    assert not weights.left
    return logits, feature


@pytest.mark.parametrize(
    ("name", "by_hand"), [("resnet18", resnet18_by_hand), ("vgg11", vgg11_by_hand)]
)
def test_forward_against_plain_functions(name, by_hand):
    x = torch.randn(3, 3072, generator=generator(1))
    model = randomised(build(name), x)
    outputs = infer(model, x)  # finds the head, and what it reads, in these models too
    with torch.no_grad():
        logits, features = by_hand(model, x)
    torch.testing.assert_close(outputs.logit_NC, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.feature_ND, features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "linear", "resnet18", "vgg11"])
def test_weights_come_from_the_generator_alone(name):
    before = torch.random.get_rng_state()
    first, again, other = (build(name, hidden=(8,), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)  # and whatever state the global one is in
    torch.rand(3)
    late = build(name, hidden=(8,))
    torch.random.set_rng_state(before)
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])
        assert torch.equal(tensor, late.state_dict()[key])
        if tensor.ndim > 1:
            assert not torch.equal(tensor, other.state_dict()[key])


def test_a_generator_goes_on_where_the_context_ended():
    lent, own = generator(5), generator(5)
    before = torch.random.get_rng_state()
    with drawing_from(lent):
        drawn = torch.rand(7)
    assert torch.equal(drawn, torch.rand(7, generator=own))
    assert torch.equal(lent.get_state(), own.get_state())
    with pytest.raises(RuntimeError), drawing_from(lent):
        raise RuntimeError
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_follows_each_hidden_layer_and_draws_no_weight():
    plain = mlp(4, (6, 5), 3, generator=generator())
    dropping = mlp(4, (6, 5), 3, dropout=0.4, generator=generator())
    kinds = [type(layer).__name__ for layer in dropping]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert {layer.p for layer in dropping if isinstance(layer, nn.Dropout)} == {0.4}
    x = torch.randn(8, 4, generator=generator(1))
    assert torch.equal(plain.eval()(x), dropping.eval()(x))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("resnet18", (64,), r"at least 9 x 9, but an example has shape \(64,\); pass --model mlp"),
        ("resnet18", (1, 8, 8), r"shape \(1, 8, 8\)"),
        ("vgg11", (1, 28, 28), r"at least 32 x 32, but an example has shape \(1, 28, 28\)"),
    ],
)
def test_images_that_are_too_small_are_refused(name, shape, expected):
    with pytest.raises(InputError, match=expected):
        build(name, shape)


@pytest.mark.parametrize(("name", "shape"), [("resnet18", (1, 9, 9)), ("vgg11", (1, 32, 32))])
def test_the_smallest_images_can_be_trained_on_one_at_a_time(name, shape):
    # The last batch of an epoch may be of one, and BatchNorm wants two values a channel.
    logits = build(name, shape).train()(torch.randn(1, shape[1] * shape[2], generator=generator()))
    assert logits.isfinite().all()


OWN = """
import torch
from torch import nn

SEEN = []


class Net(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.shape = shape
        self.conv = nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.head = nn.LazyLinear(num_classes)

    def forward(self, x):
        assert x.shape[1:] == self.shape
        return self.head(self.conv(x))


def net(shape, num_classes):
    SEEN.append((shape, num_classes))
    return Net(shape, num_classes)


def table(shape, num_classes):
    return nn.Linear(*shape, num_classes)


def narrow(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def number(shape, num_classes):
    return 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module in the current directory, which is not on the path."""
    (tmp_path / "ownmodels.py").write_text(OWN)
    (tmp_path / "halfmade.py").write_text("import surely_not_installed")
    (tmp_path / "halfwritten.py").write_text("def net(shape, num_classes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("ownmodels", "halfmade"):
        sys.modules.pop(name, None)


def test_a_model_of_one_s_own_is_called_with_the_shape_and_seeded(own_module):
    before = torch.random.get_rng_state()
    first, again, other = (build("ownmodels:net", (1, 8, 8), 7, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sys.modules["ownmodels"].SEEN == [((1, 8, 8), 7)] * 3
    assert first(torch.zeros(5, 64)).shape == (5, 7)
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])  # the lazy layer's too
    assert not torch.equal(first[1].head.weight, other[1].head.weight)
    assert int(again[1].conv[1].num_batches_tracked) == 0  # fresh, in spite of the look at it
    assert str(build("ownmodels:table", (5,), 2)) == str(nn.Linear(5, 2))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet", "'resnet'; expected mlp, linear, resnet18, vgg11 or MODULE:FUNCTION"),
        ("nomodule:net", "cannot be imported: No module named 'nomodule'"),
        ("halfmade:net", "cannot be imported: No module named 'surely_not_installed'"),
        ("halfwritten:net", r"cannot be imported: '\(' was never closed \(halfwritten.py, line 1"),
        ("ownmodels:nothing", "cannot be imported: module 'ownmodels' has no attribute 'nothing'"),
        (":net", "cannot be imported"),
        ("ownmodels:", "cannot be imported"),
    ],
)
def test_models_that_are_not_there_are_refused(own_module, name, expected):
    with pytest.raises(InputError, match=expected) as caught:
        check_model_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("narrow", r"gives \(2, 3\) for two examples; expected \(2, 10\)"),
        ("number", "returned a int; expected a torch.nn.Module"),
    ],
)
def test_models_that_do_not_fit_are_refused(own_module, name, expected):
    with pytest.raises(InputError, match=expected):
        build(f"ownmodels:{name}", (1, 8, 8))

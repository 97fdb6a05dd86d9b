"""The embedding against automatic differentiation and against the matrix multiplied out."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.masked import masked_tensor

import fastbadge as fb
from fastbadge.errors import InputError
from fastbadge.gradients import GradientEmbedding, inner
from oracles import dense_gradients, sqdist_matrix


def autograd_gradients(
    logits_NC: torch.Tensor, features_ND: torch.Tensor, task: str, include_bias: bool
) -> torch.Tensor:
    """Per-sample gradients of the loss against the predicted label in a last layer: [N, C D]."""
    N, C = logits_NC.shape
    rows = []
    for n in range(N):
        weight_CD = torch.zeros(C, features_ND.shape[1], dtype=torch.float64, requires_grad=True)
        bias_C = torch.zeros(C, dtype=torch.float64, requires_grad=True)
        # A layer that gives exactly these logits at weight 0 and offset z.
        z_C = weight_CD @ features_ND[n] + bias_C + logits_NC[n]
        if task == "multiclass":
            loss = F.cross_entropy(z_C[None], z_C.argmax()[None])
        else:
            target_C = (z_C.sigmoid() > 0.5).double()
            loss = F.binary_cross_entropy_with_logits(z_C, target_C, reduction="sum")
        d_weight_CD, d_bias_C = torch.autograd.grad(loss, (weight_CD, bias_C))
        parts = [d_weight_CD, d_bias_C[:, None]] if include_bias else [d_weight_CD]
        rows.append(torch.cat(parts, dim=1).flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("include_bias", [False, True])
@pytest.mark.parametrize(("task", "C"), [("multiclass", 5), ("binary", 1), ("multilabel", 3)])
@pytest.mark.parametrize("route", ["logits", "probabilities"])
def test_dense_gradients_are_those_of_autograd(task, C, include_bias, route):
    g = torch.Generator().manual_seed(C)
    logits_NC = 2 * torch.randn(20, C, generator=g, dtype=torch.float64)
    features_ND = torch.randn(20, 4, generator=g, dtype=torch.float64)
    if route == "logits":
        emb = GradientEmbedding.from_logits(
            logits_NC, features_ND, task=task, include_bias=include_bias
        )
    else:
        probs_NC = logits_NC.softmax(1) if task == "multiclass" else logits_NC.sigmoid()
        emb = GradientEmbedding.from_probabilities(
            probs_NC, features_ND, task=task, include_bias=include_bias
        )
    expected = autograd_gradients(logits_NC, features_ND, task, include_bias)
    torch.testing.assert_close(emb.dense(), expected, rtol=1e-10, atol=0)


def test_confident_examples_keep_their_gradient():
    logits_NC = torch.tensor([[40.0, 0.0, 0.0]])
    features_ND = torch.ones(1, 1)
    emb = GradientEmbedding.from_logits(logits_NC, features_ND)
    expected = autograd_gradients(logits_NC.double(), features_ND.double(), "multiclass", False)
    # float64's own 1 - p is 0 here; the entries of the other classes are not.
    torch.testing.assert_close(emb.error_NC[0, 1:].double(), expected[0, 1:], rtol=1e-5, atol=0)
    assert emb.error_NC.sum() == 0


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 5), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_norms_and_distances_are_those_of_the_dense_matrix(seed, N, C, D):
    rng = np.random.default_rng(seed)
    emb = GradientEmbedding(
        torch.from_numpy(rng.normal(size=(N, C)).astype(np.float32)),
        torch.from_numpy(rng.normal(size=(N, D)).astype(np.float32)),
    )
    dense = dense_gradients(emb.error_NC.double(), emb.feature_ND.double())
    sqnorm_N = emb.sqnorms().numpy()
    np.testing.assert_allclose(sqnorm_N, (dense**2).sum(1), rtol=1e-12)
    rows = torch.from_numpy(rng.integers(0, N, size=3))
    np.testing.assert_allclose(
        emb.sqdist_to(rows).numpy(),
        sqdist_matrix(dense)[:, rows.numpy()],
        rtol=1e-10,
        atol=1e-12 * sqnorm_N.max(),
    )
    assert (emb.sqdist_to(rows).numpy()[rows, np.arange(3)] == 0).all()


def test_exact_copies_are_at_distance_zero():
    g = torch.Generator().manual_seed(0)
    error, feature = torch.randn(1, 7, generator=g), torch.randn(1, 33, generator=g)
    emb = GradientEmbedding(error.repeat(5, 1), feature.repeat(5, 1))
    assert (emb.sqdist_to(2) == 0).all()


@given(st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_inner_adds_the_same_way_for_any_batch(D, seed):
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(9, D, generator=g, dtype=torch.float64) for _ in range(2))
    together = inner(left, right)
    alone = torch.cat([inner(left[i : i + 1], right[i : i + 1]) for i in range(9)])
    assert torch.equal(together, alone)
    torch.testing.assert_close(together, (left * right).sum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_becomes_float32_and_double_stays(dtype):
    emb = GradientEmbedding.from_logits(torch.randn(3, 2).to(dtype), torch.randn(3, 2).to(dtype))
    assert emb.error_NC.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_numpy_and_torch_give_the_same_embedding():
    rng = np.random.default_rng(0)
    probs_NC = rng.dirichlet(np.ones(3), size=6).astype(np.float32)
    features_ND = rng.normal(size=(6, 2)).astype(np.float32)
    a = GradientEmbedding.from_probabilities(probs_NC, features_ND)
    b = GradientEmbedding.from_probabilities(
        torch.from_numpy(probs_NC), torch.from_numpy(features_ND)
    )
    assert torch.equal(a.error_NC, b.error_NC)
    assert torch.equal(a.feature_ND, b.feature_ND)
    assert not a.error_NC.requires_grad


GOOD = np.array([[0.5, 0.5], [0.1, 0.9]])


@pytest.mark.parametrize(
    ("probabilities", "features", "options", "message"),
    [
        (GOOD, np.ones((3, 2)), {}, "probabilities has 2 rows but features has 3"),
        (GOOD[:0], np.ones((0, 2)), {}, "probabilities is empty"),
        (GOOD, np.ones((2, 0)), {}, "features has no columns"),
        (GOOD, np.ones(2), {}, r"features has shape \(2,\); expected two axes"),
        (np.array([[0.5, 0.5], [np.nan, 1]]), np.ones((2, 1)), {}, "probabilities .* row 1"),
        (GOOD, np.array([[1.0], [np.inf]]), {}, r"feature_ND has NaN or inf in row 1 \(1 bad"),
        (3 * GOOD, np.ones((2, 1)), {}, r"lie in \[0.3, 2.7\]; expected \[0, 1\]"),
        (0.8 * GOOD, np.ones((2, 1)), {}, "row 0 sum to 0.8; expected 1"),
        (GOOD, np.ones((2, 1)), {"task": "binary"}, "task is binary but there are 2 outputs"),
        (GOOD[:, :1], np.ones((2, 1)), {"task": "multiclass"}, "there is one output"),
        (GOOD, np.ones((2, 1)), {"task": "softmax"}, "task is 'softmax'; expected one of"),
        (np.array([["a"]]), np.ones((1, 1)), {}, "expected real numbers"),
        (1j * GOOD, np.ones((2, 1)), {}, "expected real numbers"),
    ],
)
def test_bad_input_is_named(probabilities, features, options, message):
    with pytest.raises(InputError, match=message):
        GradientEmbedding.from_probabilities(probabilities, features, **options)


def test_bad_factors_are_named():
    ones = torch.ones(2, 2)
    with pytest.raises(InputError, match="error_NC has 2 rows but feature_ND has 3"):
        GradientEmbedding(ones, torch.ones(3, 2))
    with pytest.raises(InputError, match="bring both to one dtype and device"):
        GradientEmbedding(ones, ones.double())
    with pytest.raises(InputError, match="expected float32 or float64"):
        GradientEmbedding(ones.half(), ones.half())


def test_huge_finite_entries_are_not_mistaken_for_infinite_ones():
    huge = torch.full((4, 2), 3e38)
    assert len(GradientEmbedding(huge, huge)) == 4


PROBS = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 8)
FEATURES = np.random.default_rng(1).normal(size=(8, 4))


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def mapped(array):
    with tempfile.TemporaryDirectory() as directory:
        np.save(f"{directory}/x.npy", array)
        return np.load(f"{directory}/x.npy", mmap_mode="r")


def field_of_records(array):
    records = np.zeros(len(array), dtype=[("id", "i1"), ("x", array.dtype, array.shape[1:])])
    records["x"] = array
    return records["x"]


ODD_ARRAYS = {
    "big-endian": lambda x: x.astype(">f8"),
    "read-only": read_only,
    "mapped": mapped,
    "Fortran order": np.asfortranarray,
    "backwards": lambda x: x[::-1].copy()[::-1],
    "columns backwards": lambda x: x[:, ::-1].copy()[:, ::-1],
    "every other row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "a field of records": field_of_records,
    "a matrix": lambda x: x.view(np.matrix),
    "a list of lists": lambda x: x.tolist(),
    "a tensor that requires grad": lambda x: torch.from_numpy(x).clone().requires_grad_(),
    "a parameter": lambda x: nn.Parameter(torch.from_numpy(x).clone()),
    "a tensor with a negative bit": lambda x: torch.from_numpy(-1j * x).conj().imag,
}
NO_ARRAYS = {
    "long double": (lambda x: x.astype(np.longdouble), "dtype float128; .* at most 64 bits"),
    "complex": (lambda x: x.astype(complex), "dtype complex128; expected real"),
    "objects": (lambda x: x.astype(object), "dtype object; expected real"),
    "text": (lambda x: x.astype(str), "expected real"),
    "dates": (lambda x: x.astype("M8[s]"), r"dtype datetime64\[s\]; expected real"),
    "masked": (lambda x: np.ma.masked_less(x, 0), "is a masked array, whose mask would be"),
    "ragged": (lambda x: [*x.tolist()[1:], [1.0]], "makes no array: .* pass a tensor or an array"),
    "a masked tensor": (
        lambda x: masked_tensor(torch.from_numpy(x), torch.ones(x.shape) > 0),
        "mask",
    ),
    "a nested tensor": (lambda x: torch.nested.nested_tensor([*torch.from_numpy(x)]), "dense"),
    "a sparse tensor": (lambda x: torch.from_numpy(x).to_sparse(), "torch.sparse_coo .* dense"),
    "a meta tensor": (lambda x: torch.from_numpy(x).to("meta"), "on meta; expected real numbers"),
    "a complex tensor": (lambda x: torch.from_numpy(x + 0j), "is torch.complex128"),
}
# Each takes probabilities and features; the last two show them to a model.
ENTRANCES = {
    "from_probabilities": GradientEmbedding.from_probabilities,
    "constructor": lambda p, h: GradientEmbedding(p, h),
    "select_from_arrays": lambda p, h: fb.select_from_arrays(p, h, 3, seed=0),
    "columns": lambda p, h: fb.select(Both(), {"p": p, "h": h}, 3, seed=0),
    "items": lambda p, h: fb.select(Both(), examples_of(p, h), 3, seed=0),
}


def examples_of(p, h):
    return [{"p": a, "h": b} for a, b in zip(p, h, strict=True)]


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(7, 3).double()
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, p, h):
        return self.head(torch.cat([p, h], dim=1))


def result(entrance, p, h):
    found = ENTRANCES[entrance](p, h)
    if isinstance(found, GradientEmbedding):
        assert not found.error_NC.requires_grad
        return [
            *found.error_NC.tolist(),
            *found.feature_ND.tolist(),
            *fb.kmeans_pp(found, 3, seed=0),
        ]
    return found.tolist()


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("kind", ODD_ARRAYS)
def test_any_array_gives_what_a_plain_one_gives(kind, entrance):
    if (kind, entrance) in (("a list of lists", "columns"), ("a list of lists", "items")):
        pytest.skip("no pool of this kind")
    if (kind, entrance) == ("a matrix", "items"):
        pytest.skip("its rows are matrices again")
    make = ODD_ARRAYS[kind]
    assert result(entrance, make(PROBS), make(FEATURES)) == result(entrance, PROBS, FEATURES)


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("kind", NO_ARRAYS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of")
def test_an_array_that_cannot_be_is_refused_in_one_line(kind, entrance):
    make, message = NO_ARRAYS[kind]
    given = make(PROBS), make(FEATURES)
    if entrance in ("columns", "items") and not isinstance(given[0], np.ndarray):
        pytest.skip("of tensors the model takes what it likes; a ragged list is no pool")
    with pytest.raises(InputError, match=message) as refused:
        ENTRANCES[entrance](*given)
    assert "\n" not in str(refused.value)

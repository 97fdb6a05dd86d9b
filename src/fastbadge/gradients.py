"""Last-layer gradients of a pool, held as two factors and never multiplied out.

For one example with penultimate features h (length D), probabilities p (length C) and predicted
class y, the gradient of the cross-entropy against y in the last layer's weight is the outer
product of p - e_y and h (Ash et al., ICLR 2020, section 3). A pool of N examples is therefore
error_NC and feature_ND: N (C + D) numbers that stand for N C D.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastbadge.errors import InputError
from fastbadge.inputs import ArrayLike, as_tensor

Task: TypeAlias = Literal["multiclass", "binary", "multilabel"]

TASKS: tuple[Task, ...] = ("multiclass", "binary", "multilabel")

# How far a row of probabilities may be from summing to 1: bfloat16 softmax over 1,000 classes is
# off by up to 0.02; logits or percentages handed over by mistake are off by far more.
SUM_TOLERANCE = 0.05


@dataclass(frozen=True, eq=False, slots=True)
class GradientEmbedding:
    """N gradients of length C x D as their factors.

    Args:
        error_NC: the derivative of the loss in the logits, p - e_y; float32 or float64. Of a
            tensor that requires grad the values are taken, of a NumPy array a tensor is made.
        feature_ND: what the last layer reads; same dtype, same device. Its last column is 1
            where the gradient of the bias is to count (`include_bias=True` of the constructors).

    Raises:
        InputError: shapes that do not fit, an empty pool, or a NaN or an infinite entry
            (the message names the first bad row).

    >>> probs_NC = torch.tensor([[0.7, 0.3], [0.1, 0.9]])
    >>> features_ND = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
    >>> emb = GradientEmbedding.from_probabilities(probs_NC, features_ND)
    >>> emb
    GradientEmbedding(N=2, C=2, D=3, torch.float32, cpu)
    >>> emb.dense().shape
    torch.Size([2, 6])
    """

    error_NC: Tensor
    feature_ND: Tensor

    def __post_init__(self) -> None:
        """Refuse factors that no distance could be computed from."""
        error_NC = as_tensor(self.error_NC, "error_NC")
        feature_ND = as_tensor(self.feature_ND, "feature_ND")
        object.__setattr__(self, "error_NC", error_NC)
        object.__setattr__(self, "feature_ND", feature_ND)
        check_shapes(error_NC, "error_NC", feature_ND, "feature_ND")
        if error_NC.dtype != feature_ND.dtype or error_NC.device != feature_ND.device:
            raise InputError(
                f"error_NC is {error_NC.dtype} on {error_NC.device} but feature_ND is "
                f"{feature_ND.dtype} on {feature_ND.device}; bring both to one dtype and device"
            )
        if error_NC.dtype not in (torch.float32, torch.float64):
            raise InputError(f"error_NC is {error_NC.dtype}; expected float32 or float64")
        check_finite([error_NC], "error_NC")
        check_finite([feature_ND], "feature_ND")

    @classmethod
    def from_probabilities(
        cls,
        probabilities: ArrayLike,
        features: ArrayLike,
        *,
        task: Task | None = None,
        include_bias: bool = False,
    ) -> GradientEmbedding:
        """Gradients from predicted probabilities and penultimate features of any framework.

        Args:
            probabilities: [N, C] rows that sum to 1 (multiclass), [N] or [N, 1] probabilities of
                the positive class (binary), or [N, C] independent ones (multilabel).
            features: [N, D], the input of the last layer.
            task: "multiclass", "binary" or "multilabel"; by default binary for one column and
                multiclass for more.
            include_bias: count the gradient of the last layer's bias too (a column of 1 is
                appended to the features); the paper does not.

        Returns:
            The embedding, in float64 if both inputs are, else in float32, where the inputs are.

        Raises:
            InputError: shapes that do not fit, values outside [0, 1], rows that do not sum to 1,
                NaN or inf.

        >>> import numpy as np
        >>> emb = GradientEmbedding.from_probabilities(np.array([0.9, 0.2]), np.ones((2, 3)))
        >>> emb.error_NC.flatten()
        tensor([-0.1000,  0.2000], dtype=torch.float64)
        """
        prob_NC, feature_ND = _as_factors(probabilities, features, "probabilities")
        task = resolve_task(task, prob_NC.shape[1])
        check_probabilities([prob_NC], task)
        return cls(error_of_probabilities(prob_NC, task), with_bias(feature_ND, include_bias))

    @classmethod
    def from_logits(
        cls,
        logits: ArrayLike,
        features: ArrayLike,
        *,
        task: Task | None = None,
        include_bias: bool = False,
    ) -> GradientEmbedding:
        """Gradients from the model's logits, exact also where the probability rounds to 1.

        Same arguments as `from_probabilities` with logits in place of probabilities. The error at
        the predicted class is minus the sum of the others, so that a confident example keeps a
        small gradient instead of the rounding error of 1 - p.

        >>> emb = GradientEmbedding.from_logits(torch.tensor([[30.0, 0.0]]), torch.ones(1, 1))
        >>> emb.error_NC
        tensor([[-9.3576e-14,  9.3576e-14]])
        """
        logit_NC, feature_ND = _as_factors(logits, features, "logits")
        task = resolve_task(task, logit_NC.shape[1])
        check_finite([logit_NC], "logits")
        return cls(_error_of_logits(logit_NC, task), with_bias(feature_ND, include_bias))

    def __len__(self) -> int:
        return len(self.error_NC)

    def __repr__(self) -> str:
        N, C = self.error_NC.shape
        D = self.feature_ND.shape[1]
        return (
            f"GradientEmbedding(N={N}, C={C}, D={D}, {self.error_NC.dtype}, {self.error_NC.device})"
        )

    @property
    def num_classes(self) -> int:
        """C, the number of the model's outputs."""
        return self.error_NC.shape[1]

    @property
    def num_features(self) -> int:
        """D, the number of the last layer's inputs, a bias column included."""
        return self.feature_ND.shape[1]

    @property
    def device(self) -> torch.device:
        """Where both factors are."""
        return self.error_NC.device

    def factors(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Errors [B, C] and features [B, D] of some rows: what makes this a `GradientPool`."""
        return self.error_NC[index], self.feature_ND[index]

    def sqnorms(self) -> Tensor:
        """Squared Euclidean norm of each gradient: float64 [N].

        >>> emb = GradientEmbedding(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]]))
        >>> emb.sqnorms()
        tensor([100.], dtype=torch.float64)
        """
        sqnorm_N = torch.empty(len(self), dtype=torch.float64, device=self.device)
        for rows in self._row_blocks():
            error_BC, feature_BD = self.error_NC[rows].double(), self.feature_ND[rows].double()
            sqnorm_N[rows] = inner(error_BC, error_BC) * inner(feature_BD, feature_BD)
        return sqnorm_N

    def sqdist_to(self, rows: Tensor | int) -> Tensor:
        """Squared distance of every gradient to those of `rows`: float64 [N, K].

        Computed from the definition, `|g|² + |r|² - 2 <g, r>`, in float64 and clamped at 0; bitwise
        equal factors give exactly 0.

        Args:
            rows: LongTensor[K] of positions, or one position.

        >>> emb = GradientEmbedding(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0], [1.0]]))
        >>> emb.sqdist_to(1)
        tensor([[1.],
                [0.]], dtype=torch.float64)
        """
        row_K = torch.as_tensor(rows, device=self.device).reshape(-1)
        error_KC, feature_KD = self.error_NC[row_K].double(), self.feature_ND[row_K].double()
        sqnorm_N = self.sqnorms()
        sqdist_NK = torch.empty(len(self), len(row_K), dtype=torch.float64, device=self.device)
        for block in self._row_blocks():
            error_BC, feature_BD = self.error_NC[block].double(), self.feature_ND[block].double()
            for j, row in enumerate(row_K):
                inner_B = inner(error_BC, error_KC[j]) * inner(feature_BD, feature_KD[j])
                sqdist_NK[block, j] = sqdist(sqnorm_N[block], sqnorm_N[row], inner_B)
        return sqdist_NK

    def dense(self) -> Tensor:
        """The gradients themselves, [N, C D]: for tests and small pools only."""
        return torch.einsum("nc,nd->ncd", self.error_NC, self.feature_ND).flatten(1)

    def _row_blocks(self, rows_per_block: int = 4096) -> list[slice]:
        return [slice(i, i + rows_per_block) for i in range(0, len(self), rows_per_block)]


def inner(left_BD: Tensor, right_BD: Tensor) -> Tensor:
    """Row-wise inner products in a summation order that depends on D alone: float64 [B].

    Eight running sums take every eighth product each, then their halves are added until one is
    left. These are element-wise operations only, so the result is bitwise the same for any batch,
    thread count and device, which a library's reduction is not. Products of float32 numbers are
    exact in float64, so it is the same with and without fused multiply-adds.
    """
    product_BD = left_BD * right_BD
    sums_B8 = product_BD.new_zeros(len(product_BD), 8)
    for part_B8 in torch.split(product_BD, 8, dim=1):
        sums_B8[:, : part_B8.shape[1]] += part_B8
    sums_B4 = sums_B8[:, :4] + sums_B8[:, 4:]
    sums_B2 = sums_B4[:, :2] + sums_B4[:, 2:]
    return sums_B2[:, 0] + sums_B2[:, 1]


def sqdist(sqnorm_B: Tensor, sqnorm_c_B: Tensor, inner_B: Tensor) -> Tensor:
    """Squared distances from norms and inner products, float64, clamped at 0.

    |g|2 + |c|2 - 2 <g, c>: where all three ran through the same additions, equal rows give
    exactly 0.
    """
    return ((sqnorm_B + sqnorm_c_B) - 2.0 * inner_B).clamp_min_(0.0)


def _as_factors(left: ArrayLike, features: ArrayLike, name: str) -> tuple[Tensor, Tensor]:
    left_NC, feature_ND = as_tensor(left, name), as_tensor(features, "features")
    if left_NC.ndim == 1:
        left_NC = left_NC[:, None]
    double = left_NC.dtype == feature_ND.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    check_shapes(left_NC, name, feature_ND, "features")
    return left_NC.to(dtype), feature_ND.to(device=left_NC.device, dtype=dtype)


def resolve_task(task: Task | None, num_outputs: int) -> Task:
    """The task given, or the one that so many outputs stand for; an InputError if they disagree."""
    if task is None:
        return "binary" if num_outputs == 1 else "multiclass"
    if task not in TASKS:
        raise InputError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    if task == "binary" and num_outputs != 1:
        raise InputError(
            f"task is binary but there are {num_outputs} outputs; pass one column or another task"
        )
    if task == "multiclass" and num_outputs == 1:
        raise InputError("task is multiclass but there is one output; pass task='binary'")
    return task


def error_of_probabilities(prob_NC: Tensor, task: Task) -> Tensor:
    """The derivative of the loss against the model's own prediction in the logits: p - e_y."""
    if task != "multiclass":
        return prob_NC - (prob_NC > 0.5).to(prob_NC.dtype)
    predicted_N1 = prob_NC.argmax(dim=1, keepdim=True)
    return prob_NC.scatter_add(1, predicted_N1, -torch.ones_like(predicted_N1, dtype=prob_NC.dtype))


def _error_of_logits(logit_NC: Tensor, task: Task) -> Tensor:
    if task != "multiclass":
        # p - [p > 0.5] is +sigmoid(z) below and -sigmoid(-z) above the threshold.
        size_NC = sigmoid(-logit_NC.abs())
        return torch.where(logit_NC > 0, -size_NC, size_NC)
    # Not softmax, which takes 13 ms for 60,000 x 10 where this takes 3.
    top_N1, predicted_N1 = logit_NC.max(dim=1, keepdim=True)
    odds_NC = (logit_NC - top_N1).exp_().scatter_(1, predicted_N1, 0.0)
    others_N1 = odds_NC.sum(dim=1, keepdim=True)
    return odds_NC.scatter_(1, predicted_N1, -others_N1).div_(1 + others_N1)


def sigmoid(logit_NC: Tensor) -> Tensor:
    """torch.sigmoid, but an entry has the same bits wherever it stands in a batch.

    That one rounds the last few entries of a tensor otherwise than those before; exp does not.
    """
    tail_NC = logit_NC.abs().neg_().exp_()
    return torch.where(logit_NC > 0, 1.0, tail_NC) / (1.0 + tail_NC)


def with_bias(feature_ND: Tensor, include_bias: bool) -> Tensor:
    """The features, with a last column of 1 where the bias counts."""
    if not include_bias:
        return feature_ND
    return torch.cat([feature_ND, feature_ND.new_ones(len(feature_ND), 1)], dim=1)


def check_shapes(left: ArrayLike, left_name: str, right: ArrayLike, right_name: str) -> None:
    """Refuse what is no pair of matrices over the same rows."""
    for matrix, name in ((left, left_name), (right, right_name)):
        if matrix.ndim != 2:
            raise InputError(f"{name} has shape {tuple(matrix.shape)}; expected two axes")
        if matrix.shape[0] == 0:
            raise InputError(
                f"{name} is empty (shape {tuple(matrix.shape)}); expected at least one row"
            )
        if matrix.shape[1] == 0:
            raise InputError(f"{name} has no columns; expected at least one")
    if len(left) != len(right):
        raise InputError(
            f"{left_name} has {len(left)} rows but {right_name} has {len(right)}; "
            "both must describe the same examples in the same order"
        )


def check_finite(blocks: Iterable[Tensor], name: str) -> None:
    """Refuse NaN and inf in a matrix that comes in blocks of its rows."""
    N = num_bad = first_bad = 0
    for block_BX in blocks:
        # A sum is finite only if all entries are, and reads the matrix once without a mask. It
        # may overflow for huge finite entries, so a bad sum only sends us to look closer.
        if not bool(block_BX.sum().isfinite()):
            bad_B = ~block_BX.isfinite().all(dim=1)
            if num_bad == 0:
                first_bad = N + int(bad_B.int().argmax())
            num_bad += int(bad_B.sum())
        N += len(block_BX)
    if num_bad:
        raise InputError(
            f"{name} has NaN or inf in row {first_bad} ({num_bad} bad rows of {N}); "
            "every entry must be finite"
        )


def check_probabilities(blocks: Iterable[Tensor], task: Task) -> None:
    """Refuse what are no probabilities for this task, in a matrix that comes in blocks of rows."""
    low, high = math.inf, -math.inf
    worst_row, worst_sum = 0, 1.0

    def measured() -> Iterator[Tensor]:
        nonlocal low, high, worst_row, worst_sum
        start = 0
        for prob_BC in blocks:
            low, high = min(low, float(prob_BC.min())), max(high, float(prob_BC.max()))
            if task == "multiclass":
                sum_B = prob_BC.sum(dim=1)
                row = int((sum_B - 1).abs().argmax())
                if abs(float(sum_B[row]) - 1) > abs(worst_sum - 1):
                    worst_row, worst_sum = start + row, float(sum_B[row])
            start += len(prob_BC)
            yield prob_BC

    check_finite(measured(), "probabilities")
    if low < 0 or high > 1 + 1e-3:
        raise InputError(
            f"probabilities lie in [{low:.3g}, {high:.3g}]; expected [0, 1] "
            "(apply softmax or sigmoid, or use from_logits)"
        )
    if abs(worst_sum - 1) > SUM_TOLERANCE:
        raise InputError(
            f"probabilities of row {worst_row} sum to {worst_sum:.3g}; expected 1 "
            "(for independent outputs pass task='multilabel')"
        )

"""Screen, then settle: the few distances that matter, chosen in float32, computed in float64.

The screen is a lower bound of each squared distance, from float32 products whose rounding is
covered by a margin (Higham 2002, section 3.1: an inner product of length n is off by at most
n u / (1 - n u) of the product of the norms, in any order of summation). Only pairs whose bound
lies under the row's weight, and under the best of the row's other pairs, are settled.

`screen_numba.py` is the same for large pools on a CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastbadge.gradients import inner, sqdist
from fastbadge.precision import full_precision
from fastbadge.rows import Rows

# Entries up to 2^10 neither overflow float32 products nor lose more to underflow than `absolute`
# below, which is negligible beside the gradients of a pool whose largest entries exceed 2^-10.
SAFE_EXPONENT = 10

# Pairs settled at once: 16,384 x D float64 and their halves are 130 MB at D = 512.
_PAIRS_AT_ONCE = 1 << 14


def sqnorms(error_BC: Tensor, feature_BD: Tensor) -> NDArray[np.float64]:
    """Squared norms of gradients from their factors, float64 [B]."""
    error, feature = error_BC.double(), feature_BD.double()
    sqnorm_B = inner(error, error) * inner(feature, feature)
    return sqnorm_B.cpu().numpy()


def lower(weight_B: NDArray[np.float64], rows: Rows, centres: Rows) -> NDArray[np.float64]:
    """The rows' weights after these centres: min(weight, squared distance to each), float64 [B].

    Args:
        weight_B: float64 [B], squared distance to the nearest centre so far (inf for none).
        rows: B gradients.
        centres: K gradients, K >= 1.
    """
    device = rows.error_BC.device
    weight = torch.from_numpy(weight_B).to(device)
    bound_BK = _bounds(rows, centres)
    best_B = bound_BK.amin(dim=1).double()
    # The nearest centre's bound is at most its distance, which is at most any other's bound plus
    # what may lie between a bound and its distance.
    relative, absolute = margins(rows)
    slack_B = 2 * (relative * (rows.sqnorm_B + centres.sqnorm_B.max()) + absolute)
    lowered = ((best_B < weight) & (weight > 0)).nonzero()[:, 0]
    ceiling_B = _above(torch.minimum(weight, best_B + slack_B)[lowered])
    pair = (bound_BK[lowered] <= ceiling_B[:, None]).nonzero()
    row, centre = lowered[pair[:, 0]], pair[:, 1]
    weight = weight.scatter_reduce(0, row, _settle(rows, row, centres, centre), "amin")
    return weight.cpu().numpy()


def accept(
    bar_B: NDArray[np.float64], weight_B: NDArray[np.float64], rows: Rows, need: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Walk the proposals in order and accept each whose current weight exceeds its bar.

    Args:
        bar_B: float64 [B], a uniform share of the weight each proposal was drawn from.
        weight_B: float64 [B], current weights before this walk.
        rows: the B proposals' gradients.
        need: stop after so many.

    Returns:
        The accepted indices (at most `need`), and the weights after them, 0 where accepted.
    """
    earlier_P, later_P, sqdist_P = (t.cpu().numpy() for t in _closer_pairs(weight_B, rows))
    by_earlier = np.argsort(earlier_P, kind="stable")
    later_P, sqdist_P = later_P[by_earlier], sqdist_P[by_earlier]
    ends = np.searchsorted(earlier_P[by_earlier], np.arange(len(rows) + 1))
    current_B = weight_B.copy()
    taken: list[int] = []
    for i in range(len(rows)):
        if len(taken) == need:
            break
        if bar_B[i] < current_B[i]:
            taken.append(i)
            current_B[i] = 0.0
            pair = slice(ends[i], ends[i + 1])
            current_B[later_P[pair]] = np.minimum(current_B[later_P[pair]], sqdist_P[pair])
    return np.array(taken, dtype=np.int64), current_B


def products(rows: Rows, centres: Rows) -> tuple[Tensor, Tensor]:
    """Inner products of errors and of features, float32 [B, K], on whose rounding margins rely.

    In bfloat16, under the caller's autocast, picks were repeated: 18 of 1,000.
    """
    with full_precision(rows.error_BC.device.type):
        return (
            rows.error_BC.float() @ centres.error_BC.float().T,
            rows.feature_BD.float() @ centres.feature_BD.float().T,
        )


def margins(rows: Rows) -> tuple[float, float]:
    """What covers the screen's rounding: a share of the two squared norms, and a constant."""
    C, D = rows.error_BC.shape[1], rows.feature_BD.shape[1]
    relative = (C + D + 32) * 2.0**-23  # twice the bound of the two products and the additions
    absolute = C * D * 2.0 ** (3 * SAFE_EXPONENT - 122)  # products that underflow
    return relative, absolute


def _closer_pairs(weight_B: NDArray[np.float64], rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs i < j of the rows where j is closer to i than its weight: (i, j, squared distance)."""
    weight = torch.from_numpy(weight_B).to(rows.error_BC.device)
    pair = (_bounds(rows, rows) <= _above(weight)[:, None]).tril_(-1).nonzero()
    later, earlier = pair[:, 0], pair[:, 1]
    return earlier, later, _settle(rows, later, rows, earlier)


def _bounds(rows: Rows, centres: Rows) -> Tensor:
    """float32 lower bounds of the squared distances [B, K]."""
    relative, absolute = margins(rows)
    inner_BK, by_feature_BK = products(rows, centres)
    inner_BK *= by_feature_BK
    kept_B = ((1 - relative) * rows.sqnorm_B - absolute).float()
    kept_K = ((1 - relative) * centres.sqnorm_B).float()
    return torch.add(kept_K, inner_BK, alpha=-2.0).add_(kept_B[:, None])


def _above(value_B: Tensor) -> Tensor:
    """float32 values that are not below these float64 ones."""
    return (value_B * (1 + 2.0**-22)).float()


def _settle(rows: Rows, row_P: Tensor, centres: Rows, centre_P: Tensor) -> Tensor:
    """Squared distances of pairs from the definition, float64 [P]."""
    sqdist_P = torch.empty(len(row_P), dtype=torch.float64, device=row_P.device)
    for start in range(0, len(row_P), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        r, c = rows[row_P[part]], centres[centre_P[part]]
        by_error = inner(r.error_BC.double(), c.error_BC.double())
        by_feature = inner(r.feature_BD.double(), c.feature_BD.double())
        sqdist_P[part] = sqdist(r.sqnorm_B, c.sqnorm_B, by_error * by_feature)
    return sqdist_P

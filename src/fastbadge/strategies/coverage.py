"""Examples that stand for many others: greedy coverage of the pool in feature space.

Each row x has a weight, and is covered by an example c to the degree s(x, c); picks maximise the
sum of weight times the largest degree. Both strategies look at features of length 1 and never
hold more than a tile of the N x N degrees; gains are submodular, so most are never looked at again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn.functional import normalize

from fastbadge.errors import InputError
from fastbadge.strategies.greedy import lazy_greedy, with_uniform_rest
from fastbadge.strategies.registry import PoolView, RowsOf, register
from fastbadge.strategies.uncertainty import sureness

# N^2 degrees are computed once: 10 s for 60,000 examples on two cores, 30 s for this many.
_MOST_ROWS = 100_000

# A tile of degrees stays in the cache: 4 MB in float32.
_TILE_ENTRIES = 1 << 20
_CANDIDATES_AT_ONCE = 1024

# Of equal rows' gains, summed in float32, the largest share by which they differ is 5e-7 (12,000
# rows). One row of the most there may be covered, what ProbCover counts by, is 1e-5.
_TIE = 2e-6

# Rows whose distance to another cluster is measured for the radius of ProbCover.
_PURITY_SAMPLE = 1000


def _check_ball(delta: float, purity: float) -> None:
    if not delta >= 0 or not 0 < purity < 1:
        raise InputError(
            f"probcover: delta is {delta} and purity {purity}; expected delta at least 0 and "
            "purity within 0 to 1"
        )


@register("probcover", needs=("probabilities", "features", "labeled"), check=_check_ball)
def probcover(
    view: PoolView,
    k: int,
    *,
    generator: Generator,
    delta: float = 0.0,
    purity: float = 0.95,
) -> Tensor:
    """Balls of one radius that cover most of the pool; delta=0 estimates it for purity=0.95.

    ProbCover (Yehuda et al., NeurIPS 2022): each pick is the example within delta of most rows
    that no labelled or picked example covers yet, in features of length 1. Without `delta` it is
    the largest radius at which 95 % of balls hold one cluster only of k-means with C clusters
    (their section 3.3), measured at 1,000 rows.

    Cost: N^2 D once, then N D for each of some dozens of rows a pick; memory N D. 60,000 rows
    take seconds; more than 100,000 are refused.

    Ties go to the lowest position; a duplicate of a pick gains nothing. Once all rows are covered
    (always so for k = N), the rest is drawn uniformly. Identical features are one ball.
    """
    assert view.probabilities is not None
    _check_ball(delta, purity)
    point_ND = _points(view)
    if not delta:
        num_classes = max(2, view.probabilities(slice(0, 1)).shape[1])
        delta = _pure_radius(point_ND, num_classes, purity, generator)

    def within(sqdist_BM: Tensor) -> Tensor:
        return (sqdist_BM <= delta**2).to(sqdist_BM.dtype)

    return _greedy_cover(view, point_ND, within, point_ND.new_ones(view.size), k, generator)


def _check_sigma(sigma: float) -> None:
    if not sigma >= 0:
        raise InputError(f"uncertainty_herding: sigma is {sigma}; expected at least 0")


@register("uncertainty_herding", needs=("probabilities", "features", "labeled"), check=_check_sigma)
def uncertainty_herding(
    view: PoolView, k: int, *, generator: Generator, sigma: float = 0.0
) -> Tensor:
    """Examples that stand for the uncertain ones: uncertainty-weighted coverage; sigma=0 adapts.

    Uncertainty Herding (Bae, Oliveira & Sutherland, ICLR 2025): greedy maximisation of the mean
    over the pool of (1 - margin) times the largest exp(-|x - c|^2 / sigma^2) over labelled and
    picked c, in features of length 1. Without `sigma` it is the smallest distance between two
    labelled examples that differ, so that with more labels uncertainty counts for more, and 1
    below two of them. The paper also calibrates the probabilities with models trained on parts of
    the labels; here they are taken as the model gives them.

    Cost: N^2 D once, then N D for each of some dozens of rows a pick; memory N D. 60,000 rows
    take seconds; more than 100,000 are refused.

    Ties go to the lowest position; a duplicate of a pick gains nothing. Once nothing is left to
    gain, as for one class, where every margin is 1, the rest is drawn uniformly.
    """
    _check_sigma(sigma)
    point_ND = _points(view)
    if not sigma:
        sigma = _smallest_distance(_labeled_points(view, point_ND)) or 1.0

    def gaussian(sqdist_BM: Tensor) -> Tensor:
        return sqdist_BM.mul_(-1 / sigma**2).exp_()

    weight_N = (1 - sureness(view, "margin")).to(point_ND)
    return _greedy_cover(view, point_ND, gaussian, weight_N, k, generator)


def _greedy_cover(
    view: PoolView,
    point_ND: Tensor,
    degree: Callable[[Tensor], Tensor],
    weight_N: Tensor,
    k: int,
    generator: Generator,
) -> Tensor:
    N = len(point_ND)
    covered_N = point_ND.new_zeros(N)

    def cover(centre_KD: Tensor) -> None:
        for rows in _tiles(N, len(centre_KD)):
            degree_BK = degree(_sqdists(point_ND[rows], centre_KD))
            covered_N[rows] = torch.maximum(covered_N[rows], degree_BK.amax(dim=1))

    def gains_of(block: NDArray[np.int64]) -> NDArray[np.float64]:
        centre_BD = point_ND[torch.from_numpy(block).to(point_ND.device)]
        gain_B = torch.zeros(len(block), dtype=torch.float64, device=point_ND.device)
        for rows in _tiles(N, len(block)):
            degree_BM = degree(_sqdists(centre_BD, point_ND[rows]))
            gain_B += degree_BM.sub_(covered_N[rows]).clamp_min_(0) @ weight_N[rows]
        return gain_B.cpu().numpy()

    known_LD = _labeled_points(view, point_ND)
    for start in range(0, len(known_LD), _CANDIDATES_AT_ONCE):
        cover(known_LD[start : start + _CANDIDATES_AT_ONCE])
    starts = range(0, N, _CANDIDATES_AT_ONCE)
    blocks = [np.arange(start, min(start + _CANDIDATES_AT_ONCE, N)) for start in starts]
    gain_N = np.concatenate([gains_of(block) for block in blocks])
    # What is left of a gain that has been taken is rounding.
    floor = 1e-6 * max(float(gain_N.max()) / N, 0.0)
    picks = lazy_greedy(
        gain_N, k, gains_of, lambda row: cover(point_ND[row : row + 1]), floor=floor, tie=_TIE
    )
    return with_uniform_rest(picks, N, k, generator)


def _points(view: PoolView) -> Tensor:
    assert view.features is not None
    if view.size > _MOST_ROWS:
        raise InputError(
            f"the pool has {view.size:,} examples, whose {view.size**2:,} pairs would take too "
            f"long; at most {_MOST_ROWS:,} here: pass a part of the pool"
        )
    return _of_length_1(view.features, view.size)


def _labeled_points(view: PoolView, like_ND: Tensor) -> Tensor:
    if view.labeled is None:
        return like_ND[:0]
    assert view.labeled.features is not None
    return _of_length_1(view.labeled.features, view.labeled.size).to(like_ND)


def _of_length_1(features: RowsOf, N: int) -> Tensor:
    return normalize(features(slice(0, N)), eps=1e-30)


def _sqdists(left_BD: Tensor, right_MD: Tensor) -> Tensor:
    sqnorm_B, sqnorm_M = left_BD.square().sum(dim=1), right_MD.square().sum(dim=1)
    sqdist_BM = torch.addmm(sqnorm_M, left_BD, right_MD.T, alpha=-2.0)
    return sqdist_BM.add_(sqnorm_B[:, None]).clamp_min_(0)


def _tiles(N: int, columns: int) -> list[slice]:
    rows = max(1, _TILE_ENTRIES // columns)
    return [slice(start, min(start + rows, N)) for start in range(0, N, rows)]


def _pure_radius(point_ND: Tensor, num_clusters: int, purity: float, generator: Generator) -> float:
    """The radius at which a share `purity` of balls holds no row of another cluster."""
    cluster_N = torch.from_numpy(k_means(point_ND, num_clusters, generator)).to(point_ND.device)
    sample_B = torch.randperm(len(point_ND), generator=generator)[:_PURITY_SAMPLE]
    sample_B = sample_B.to(point_ND.device)
    nearest_B = point_ND.new_full((len(sample_B),), 4.0)  # no two are farther apart than 2
    for rows in _tiles(len(point_ND), len(sample_B)):
        sqdist_BM = _sqdists(point_ND[sample_B], point_ND[rows])
        sqdist_BM[cluster_N[sample_B][:, None] == cluster_N[rows]] = 4.0
        nearest_B = torch.minimum(nearest_B, sqdist_BM.amin(dim=1))
    impure = int((1 - purity) * len(sample_B))
    # A ball is closed, so the row at which it stops being pure must stay outside.
    return 0.999 * float(nearest_B.sort().values[impure].sqrt())


def _smallest_distance(point_LD: Tensor) -> float:
    """Of two points that differ; 0 if there are no two."""
    smallest = np.inf
    for rows in _tiles(len(point_LD), max(1, len(point_LD))):
        sqdist_BL = _sqdists(point_LD[rows], point_LD)
        # Below this it is rounding of the products, in float32 at least.
        differ = sqdist_BL > 1e-6
        if bool(differ.any()):
            smallest = min(smallest, float(sqdist_BL[differ].min()))
    return float(smallest**0.5) if np.isfinite(smallest) else 0.0


def k_means(point_ND: Tensor, num_clusters: int, generator: Generator) -> NDArray[np.int64]:
    """Cluster of each row, by scikit-learn's k-means; in mini-batches for more than 50 clusters."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    seed = int(torch.randint(2**31, (1,), generator=generator))
    num_clusters = min(num_clusters, len(point_ND))
    if num_clusters <= 50:
        model = KMeans(num_clusters, n_init=1, random_state=seed)
    else:
        model = MiniBatchKMeans(num_clusters, n_init=1, batch_size=5000, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        cluster_N = model.fit_predict(point_ND.cpu().numpy())
    return np.asarray(cluster_N, dtype=np.int64)

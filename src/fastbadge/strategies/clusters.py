"""One example a cluster: the most typical one, or one the model is unsure of."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn.functional import normalize

from fastbadge.errors import InputError
from fastbadge.strategies.coverage import k_means
from fastbadge.strategies.registry import PoolView, register
from fastbadge.strategies.uncertainty import least_sure

# TypiClust's published settings: clusters below five are noise, twenty neighbours make typicality.
_MOST_CLUSTERS = 500
_SMALLEST_CLUSTER = 5
_NEIGHBOURS = 20

# Average linkage holds all distances of its rows: 1.6 GB for this many.
_MOST_LINKED = 20_000


@register("typiclust", needs=("features", "labeled"))
def typiclust(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """The most typical example of each large cluster that has no label yet.

    TypiClust (Hacohen et al., ICML 2022): k-means into L + k clusters (at most 500) of pool and
    L labelled examples in features of length 1; clusters with the fewest labels first, of these
    the largest, give in turn the row with the smallest mean distance to its 20 nearest neighbours
    (half the cluster if that is less) among the cluster's unlabelled ones, and later their next.
    Clusters below five members come last. Typicality is not measured anew after a pick.

    Cost: k-means (mini-batches beyond 50 clusters), then the neighbours within the clusters used.

    Ties go to the lowest position; k = N gives every row; rows that are all equal are one cluster.
    """
    assert view.features is not None
    point_ND = normalize(view.features(slice(0, view.size)), eps=1e-30)
    labeled = 0
    if view.labeled is not None:
        assert view.labeled.features is not None
        labeled = view.labeled.size
        known_LD = normalize(view.labeled.features(slice(0, labeled)), eps=1e-30)
        point_ND = torch.cat([point_ND, known_LD.to(point_ND)])
    cluster = k_means(point_ND, min(labeled + k, _MOST_CLUSTERS), generator)
    cluster_N, cluster_L = cluster[: view.size], cluster[view.size :]
    size_K = np.bincount(cluster)
    labels_K = np.bincount(cluster_L, minlength=len(size_K))
    small_K = size_K < _SMALLEST_CLUSTER
    order = np.lexsort((-size_K, labels_K, small_K))
    ranked: dict[int, list[int]] = {}
    picks: list[int] = []
    for small in (False, True):
        turn, most = 0, int(size_K.max())
        while len(picks) < k and turn < most:
            for c in order[small_K[order] == small].tolist():
                if c not in ranked:
                    ranked[c] = _by_typicality(point_ND, np.flatnonzero(cluster_N == c))
                picks += ranked[c][turn : turn + 1]
                if len(picks) == k:
                    break
            turn += 1
    return torch.tensor(picks)


def _by_typicality(point_ND: Tensor, rows: NDArray[np.int64]) -> list[int]:
    """The rows of a cluster, those with the nearest neighbours first."""
    from sklearn.neighbors import NearestNeighbors

    order: list[int] = rows.tolist()
    if len(rows) < 3:
        return order
    point_BD = point_ND[torch.from_numpy(rows).to(point_ND.device)].double().cpu().numpy()
    neighbours = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(rows) // 2)).fit(point_BD)
    distance_BK, _ = neighbours.kneighbors()  # of the rows themselves: no row is its own
    order = rows[distance_BK.mean(axis=1).argsort(kind="stable")].tolist()
    return order


def _check(multiple: int, size: int) -> None:
    if multiple < 1 or size < 1:
        raise InputError(
            f"cluster_margin: multiple is {multiple} and size {size}; expected both at least 1"
        )


@register("cluster_margin", needs=("probabilities", "features"), check=_check)
def cluster_margin(
    view: PoolView, k: int, *, generator: Generator, multiple: int = 10, size: int = 20
) -> Tensor:
    """Small margins, spread over clusters, smallest first, in turn; multiple=10, size=20.

    Cluster-Margin (Citovsky et al., NeurIPS 2021): `multiple` k rows of smallest margin are grouped
    by average linkage of their features into clusters of `size` on average; the clusters, smallest
    first, give one random row each, in turn, until there are k. By default there are half as many
    clusters as picks: with as many (size = multiple) each gives one row, and average linkage, which
    leaves many rows alone, makes most picks outliers. The paper links the whole pool once for all
    rounds; here the candidates of the query alone are linked, whose distances fit in memory.

    Cost: N C, then (multiple k)^2 D and as much memory, 1.6 GB for 20,000 candidates; more are
    refused, so k beyond 2,000 needs a lower `multiple`, and beyond 20,000 another strategy.

    Ties in the margin go to the lowest position, duplicates fall into one cluster, k = N gives
    every row (of a pool of at most 20,000), classes do not matter otherwise.
    """
    assert view.features is not None
    _check(multiple, size)
    M = min(multiple * k, view.size)
    if M > _MOST_LINKED:
        fitting = _MOST_LINKED // k
        instead = f"use cluster_margin:multiple={fitting}" if fitting else "use another strategy"
        raise InputError(
            f"cluster_margin would link {M:,} candidates; at most {_MOST_LINKED:,} fit: lower k, "
            f"or {instead}"
        )
    row_M = least_sure(view, M, "margin").cpu()
    row_M = row_M[torch.randperm(M, generator=generator)]
    cluster_M = _linked(view.features(row_M), -(-M // size))
    size_K = np.bincount(cluster_M)
    members = [np.flatnonzero(cluster_M == c) for c in np.argsort(size_K, kind="stable")]
    turns = range(int(size_K.max()))
    order = [int(member[turn]) for turn in turns for member in members if turn < len(member)]
    return row_M[torch.tensor(order[:k])]


def _linked(feature_MD: Tensor, num_clusters: int) -> NDArray[np.int64]:
    """Cluster of each row by average linkage, numbered as they first appear."""
    from sklearn.cluster import AgglomerativeClustering

    if num_clusters == len(feature_MD):
        return np.arange(num_clusters)
    linkage = AgglomerativeClustering(n_clusters=num_clusters, linkage="average")
    label_M = linkage.fit_predict(feature_MD.double().cpu().numpy())
    _, first_K, cluster_M = np.unique(label_M, return_index=True, return_inverse=True)
    rank_K = np.empty(len(first_K), dtype=np.int64)
    rank_K[first_K.argsort()] = np.arange(len(first_K))
    return rank_K[cluster_M]

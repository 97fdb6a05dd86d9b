"""What a query is measured against: the floor of unpruned methods, and how others do it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import torch

from fastbadge import GradientEmbedding


def products(emb: GradientEmbedding, k: int) -> None:
    """(a) The plain matrix products N x C x k and N x D x k in float32, nothing else.

    In tiles whose results stay in the cache: faster than two large products, so a lower floor.
    """
    error_KC, feature_KD = emb.error_NC[:k].T.contiguous(), emb.feature_ND[:k].T.contiguous()
    rows = max(256, (1 << 20) // k)
    by_error, by_feature = torch.empty(rows, k), torch.empty(rows, k)
    for start in range(0, len(emb), rows):
        error_BC, feature_BD = (
            emb.error_NC[start : start + rows],
            emb.feature_ND[start : start + rows],
        )
        torch.mm(error_BC, error_KC, out=by_error[: len(error_BC)])
        torch.mm(feature_BD, feature_KD, out=by_feature[: len(error_BC)])


def one_at_a_time_authors(emb: GradientEmbedding, k: int) -> list[int]:
    """(b) Factorised, one centre at a time in NumPy: the algorithm of the authors' code, anew.

    As there, distances are kept and squared again for every draw, their sum is Python's, and each
    draw makes a scipy.stats.rv_discrete: most of the time goes into the draw.
    """
    import scipy.stats

    error_NC, feature_ND = emb.error_NC.numpy(), emb.feature_ND.numpy()
    sqnorm_N = (error_NC**2).sum(axis=1) * (feature_ND**2).sum(axis=1)
    positions_N = np.arange(len(emb))
    distance_N = np.full(len(emb), np.inf)
    picks = [int(sqnorm_N.argmax())]
    while len(picks) < k:
        last = picks[-1]
        inner_N = (error_NC @ error_NC[last]) * (feature_ND @ feature_ND[last])
        sqdist_N = sqnorm_N + sqnorm_N[last] - 2 * inner_N
        distance_N = np.minimum(distance_N, np.sqrt(np.clip(sqdist_N, 0, None)).astype(float))
        distance_N[picks] = 0
        probability_N = distance_N**2 / sum(distance_N**2)
        drawn = scipy.stats.rv_discrete(values=(positions_N, probability_N))
        picks.append(int(drawn.rvs(size=1, random_state=len(picks))[0]))
    return picks


def one_at_a_time_numpy(emb: GradientEmbedding, k: int) -> list[int]:
    """(n) The same in lean NumPy: squared distances, one cumulative sum a draw."""
    error_NC, feature_ND = emb.error_NC.numpy(), emb.feature_ND.numpy()
    sqnorm_N = (error_NC**2).sum(axis=1) * (feature_ND**2).sum(axis=1)
    rng = np.random.default_rng(0)
    picks = [int(sqnorm_N.argmax())]
    weight_N = np.full(len(emb), np.inf)
    while len(picks) < k:
        last = picks[-1]
        inner_N = (error_NC @ error_NC[last]) * (feature_ND @ feature_ND[last])
        weight_N = np.minimum(weight_N, np.maximum(sqnorm_N + sqnorm_N[last] - 2 * inner_N, 0))
        weight_N[last] = 0
        cumulative_N = weight_N.cumsum()
        target = rng.random() * cumulative_N[-1]
        picks.append(int(cumulative_N.searchsorted(target, side="right")))
    return picks


def one_at_a_time_torch(emb: GradientEmbedding, k: int) -> list[int]:
    """(c) The same in PyTorch."""
    error_NC, feature_ND = emb.error_NC, emb.feature_ND
    sqnorm_N = error_NC.square().sum(dim=1) * feature_ND.square().sum(dim=1)
    generator = torch.Generator(device=emb.device).manual_seed(0)
    picks = [int(sqnorm_N.argmax())]
    weight_N = torch.full_like(sqnorm_N, torch.inf)
    while len(picks) < k:
        last = picks[-1]
        inner_N = (error_NC @ error_NC[last]).mul_(feature_ND @ feature_ND[last])
        sqdist_N = torch.add(sqnorm_N, inner_N, alpha=-2).add_(sqnorm_N[last]).clamp_min_(0)
        torch.minimum(weight_N, sqdist_N, out=weight_N)
        weight_N[last] = 0
        cumulative_N = weight_N.double().cumsum(dim=0)
        target = torch.rand(1, dtype=torch.float64, generator=generator, device=emb.device).mul_(
            cumulative_N[-1]
        )
        picks.append(int(torch.searchsorted(cumulative_N, target, right=True)))
    return picks


def dense_sklearn(emb: GradientEmbedding, k: int) -> list[int]:
    """(d) The dense matrix with scikit-learn's kmeans_plusplus, one local trial: D2 sampling."""
    from sklearn.cluster import kmeans_plusplus

    _, picks = kmeans_plusplus(emb.dense().numpy(), k, n_local_trials=1, random_state=0)
    return [int(p) for p in picks]


_ACTIVEML = """
import sys, time
import numpy as np
from sklearn.base import BaseEstimator
from skactiveml.base import SkactivemlClassifier
from skactiveml.pool import Badge

factors = np.load(sys.argv[1])
probability, feature, k = factors["probability"], factors["feature"], int(sys.argv[2])

class Given(SkactivemlClassifier):
    '''A classifier whose outputs are known: the query alone is timed.'''
    def fit(self, X, y, sample_weight=None):
        self.classes_ = np.arange(probability.shape[1])
        return self
    def predict_proba(self, X):
        rows = X[:, 0].astype(int)
        return probability[rows], feature[rows]

X = np.arange(len(feature), dtype=float)[:, None]
y = np.full(len(feature), np.nan)
clf = Given(classes=np.arange(probability.shape[1])).fit(X, y)
start = time.perf_counter()
Badge(random_state=0).query(X, y, clf, fit_clf=False, batch_size=k)
print(time.perf_counter() - start)
"""


class ScikitActiveml:
    """(e) scikit-activeml's Badge in a venv of its own, given the same outputs."""

    def __init__(self, version: str = "1.0.1") -> None:
        self.reason = ""
        self._folder = tempfile.TemporaryDirectory()
        root = Path(self._folder.name)
        venv.create(root / "env", with_pip=True)
        self._python = root / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        install = [str(self._python), "-m", "pip", "install", "-q", f"scikit-activeml=={version}"]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            self.reason = f"scikit-activeml {version} did not install"

    def seconds(self, emb: GradientEmbedding, k: int) -> float | None:
        """Seconds of one query, or None with a reason in `self.reason`."""
        if self.reason:
            return None
        path = Path(self._folder.name) / "factors.npz"
        probability_NC = emb.error_NC.double()  # p - e_y, whose one negative entry is at y
        probability_NC = probability_NC + (probability_NC < 0)
        np.savez(path, probability=probability_NC.numpy(), feature=emb.feature_ND.numpy())
        command = [str(self._python), "-c", _ACTIVEML, str(path), str(k)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            self.reason = done.stderr.strip().splitlines()[-1]
            return None
        return float(done.stdout.split()[-1])

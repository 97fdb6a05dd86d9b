"""`screen.py` for large pools on a CPU: the same two functions with the same results to the bit.

The products are still the library's. What follows them, bound, row minimum and settling, is one
pass over each tile here instead of four, and settling gathers nothing: 0.05 microseconds a pair
instead of 1.5. Threads are ours, over compiled code that holds no lock, so that any number of
Python threads and processes may sample at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from fastbadge.rows import Rows
from fastbadge.screen import margins, products

P = ParamSpec("P")
R = TypeVar("R")

# The functions below that are compiled, by their names, with what numba is told of each.
_kernels: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
_cached = True


def _kernel(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        _kernels[function.__name__] = function, options
        return function

    return add


def _compile(*, cached: bool) -> None:
    """Put the compiled kernels in the places of the plain ones; each compiles when it is called."""
    global _cached
    for name, (function, options) in _kernels.items():
        globals()[name] = njit(cache=cached, nogil=True, **options)(function)
    _cached = cached


def _despite_cache(function: Callable[P, R]) -> Callable[P, R]:
    """Compile anew where the cache on the disk fails: cut short, garbled, no room for more.

    What that raises, any kind of exception, depends on where a file ends. The index is removed, so
    that the next process writes a whole one.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        cached = _cached
        try:
            return function(*args, **kwargs)
        except Exception:
            if not cached:
                raise
        with suppress(Exception):
            directory = Path(globals()["_inner"].stats.cache_path)
            for index in directory.glob(f"{Path(__file__).stem}.*.nbi"):
                index.unlink(missing_ok=True)
        _compile(cached=False)
        return function(*args, **kwargs)

    return call


def load() -> None:
    """Compile for float32, or load what was compiled before."""
    ones = torch.ones(2, 2, device="cpu")
    rows = Rows(ones, ones, torch.from_numpy(sqnorms(ones, ones)))
    weight_B = np.ones(2)
    for centres in (rows[:1], rows):
        lower(weight_B, rows, centres)
    accept(weight_B, weight_B, rows, 2)


@_despite_cache
def sqnorms(error_BC: torch.Tensor, feature_BD: torch.Tensor) -> NDArray[np.float64]:
    """Squared norms, float64 [B], as `Rows.of` has them."""
    error, feature = error_BC.numpy(), feature_BD.numpy()
    sqnorm_B = np.empty(len(error))
    entries = error.size + feature.size
    _in_threads(len(error), entries, lambda a, b: _sqnorms(error[a:b], feature[a:b], sqnorm_B[a:b]))
    return sqnorm_B


@_despite_cache
def lower(weight_B: NDArray[np.float64], rows: Rows, centres: Rows) -> NDArray[np.float64]:
    """The rows' weights after these centres; see `screen.lower`."""
    error, feature = rows.error_BC.numpy(), rows.feature_BD.numpy()
    error_K, feature_K = centres.error_BC.numpy(), centres.feature_BD.numpy()
    sqnorm_B, sqnorm_K = rows.sqnorm_B.numpy(), centres.sqnorm_B.numpy()
    lowered_B = weight_B.copy()
    if len(centres) == 1:

        def settle(a: int, b: int) -> None:
            _lower_by_one(
                lowered_B[a:b], error[a:b], feature[a:b], sqnorm_B[a:b],
                error_K, feature_K, sqnorm_K,
            )  # fmt: skip

        _in_threads(len(error), error.size + feature.size, settle)
        return lowered_B
    relative, absolute = margins(rows)
    by_error, by_feature = (product.numpy() for product in products(rows, centres))
    kept_K = ((1 - relative) * sqnorm_K).astype(np.float32)
    widest = float(sqnorm_K.max())

    def screen(a: int, b: int) -> None:
        _lower(
            lowered_B[a:b], error[a:b], feature[a:b], sqnorm_B[a:b],
            error_K, feature_K, sqnorm_K, by_error[a:b], by_feature[a:b],
            kept_K, widest, relative, absolute,
        )  # fmt: skip

    _in_threads(len(error), 2 * by_error.size + error.size + feature.size, screen)
    return lowered_B


@_despite_cache
def accept(
    bar_B: NDArray[np.float64], weight_B: NDArray[np.float64], rows: Rows, need: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Walk the proposals in order and accept by rejection sampling; see `screen.accept`."""
    relative, absolute = margins(rows)
    by_error, by_feature = (product.numpy() for product in products(rows, rows))
    current_B = weight_B.copy()
    taken = np.empty(len(rows), dtype=np.int64)
    count = _accept(
        bar_B, current_B, taken, min(need, len(rows)),
        rows.error_BC.numpy(), rows.feature_BD.numpy(), rows.sqnorm_B.numpy(),
        by_error, by_feature, relative, absolute,
    )  # fmt: skip
    return taken[:count], current_B


def _in_threads(rows: int, entries: int, work: Callable[[int, int], None]) -> None:
    """Run work(start, stop) over all rows, in as many threads as torch uses if it is worth it."""
    # 4 million entries take 5 ms, and threads of torch's that still spin get in the way of ours.
    threads = min(torch.get_num_threads(), rows, entries >> 22)
    if threads <= 1:
        work(0, rows)
        return
    bounds = np.linspace(0, rows, threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))


@_kernel()
def _inner(left_BD, i, right_KD, k):  # type: ignore[no-untyped-def]
    """gradients.inner for row i and row k: eight running sums, which become one vector register.

    Not for two vectors: to make a view of a row takes as long as 64 products.
    """
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    D = left_BD.shape[1]
    whole = D - D % 8
    for j in range(0, whole, 8):
        s0 += np.float64(left_BD[i, j]) * np.float64(right_KD[k, j])
        s1 += np.float64(left_BD[i, j + 1]) * np.float64(right_KD[k, j + 1])
        s2 += np.float64(left_BD[i, j + 2]) * np.float64(right_KD[k, j + 2])
        s3 += np.float64(left_BD[i, j + 3]) * np.float64(right_KD[k, j + 3])
        s4 += np.float64(left_BD[i, j + 4]) * np.float64(right_KD[k, j + 4])
        s5 += np.float64(left_BD[i, j + 5]) * np.float64(right_KD[k, j + 5])
        s6 += np.float64(left_BD[i, j + 6]) * np.float64(right_KD[k, j + 6])
        s7 += np.float64(left_BD[i, j + 7]) * np.float64(right_KD[k, j + 7])
    for j in range(whole, D):
        product = np.float64(left_BD[i, j]) * np.float64(right_KD[k, j])
        if j == whole:
            s0 += product
        elif j == whole + 1:
            s1 += product
        elif j == whole + 2:
            s2 += product
        elif j == whole + 3:
            s3 += product
        elif j == whole + 4:
            s4 += product
        elif j == whole + 5:
            s5 += product
        else:
            s6 += product
    return ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))


@_kernel()
def _sqdist(sqnorm, sqnorm_c, inner):  # type: ignore[no-untyped-def]
    return max((sqnorm + sqnorm_c) - 2.0 * inner, 0.0)


@_kernel()
def _sqnorms(error_BC, feature_BD, sqnorm_B):  # type: ignore[no-untyped-def]
    for i in range(len(error_BC)):
        sqnorm_B[i] = _inner(error_BC, i, error_BC, i) * _inner(feature_BD, i, feature_BD, i)


@_kernel()
def _lower_by_one(weight_B, error_BC, feature_BD, sqnorm_B, error_1C, feature_1D, sqnorm_1):  # type: ignore[no-untyped-def]
    for i in range(len(error_BC)):
        if weight_B[i] > 0:
            inner = _inner(error_BC, i, error_1C, 0) * _inner(feature_BD, i, feature_1D, 0)
            weight_B[i] = min(weight_B[i], _sqdist(sqnorm_B[i], sqnorm_1[0], inner))


# The screen alone may be reordered: its margin covers any order of summation.
@_kernel(fastmath={"nnan", "ninf", "nsz", "reassoc"})
def _lowest(by_error_BK, by_feature_BK, i, kept_K):  # type: ignore[no-untyped-def]
    """Smallest of kept - 2 <a, a_c> <h, h_c> over the centres."""
    lowest = np.float32(np.finfo(np.float32).max)
    for j in range(len(kept_K)):
        lowest = min(
            lowest, kept_K[j] - np.float32(2.0) * (by_error_BK[i, j] * by_feature_BK[i, j])
        )
    return lowest


@_kernel()
def _lower(  # type: ignore[no-untyped-def]
    weight_B, error_BC, feature_BD, sqnorm_B,
    error_KC, feature_KD, sqnorm_K, by_error_BK, by_feature_BK,
    kept_K, widest, relative, absolute,
):  # fmt: skip
    for i in range(len(error_BC)):
        if weight_B[i] == 0:
            continue
        kept = (1 - relative) * sqnorm_B[i] - absolute
        lowest = _lowest(by_error_BK, by_feature_BK, i, kept_K)
        if lowest >= weight_B[i] * (1 + 2.0**-22) - kept:
            continue
        slack = 2 * (relative * (sqnorm_B[i] + widest) + absolute)
        ceiling = min(weight_B[i] * (1 + 2.0**-22) - kept, lowest + slack)
        for j in range(len(kept_K)):
            if kept_K[j] - np.float32(2.0) * (by_error_BK[i, j] * by_feature_BK[i, j]) <= ceiling:
                inner = _inner(error_BC, i, error_KC, j) * _inner(feature_BD, i, feature_KD, j)
                weight_B[i] = min(weight_B[i], _sqdist(sqnorm_B[i], sqnorm_K[j], inner))


@_kernel()
def _accept(  # type: ignore[no-untyped-def]
    bar_B, current_B, taken, need, error_BC, feature_BD, sqnorm_B,
    by_error_BB, by_feature_BB, relative, absolute,
):  # fmt: skip
    count = 0
    for i in range(len(bar_B)):
        if count == need:
            break
        kept = (1 - relative) * sqnorm_B[i] - absolute
        for t in range(count):
            j = taken[t]
            product = np.float64(by_error_BB[i, j]) * np.float64(by_feature_BB[i, j])
            if (1 - relative) * sqnorm_B[j] - 2.0 * product + kept < current_B[i]:
                inner = _inner(error_BC, i, error_BC, j) * _inner(feature_BD, i, feature_BD, j)
                current_B[i] = min(current_B[i], _sqdist(sqnorm_B[i], sqnorm_B[j], inner))
        if bar_B[i] < current_B[i]:
            taken[count] = i
            count += 1
            current_B[i] = 0.0
    return count


try:
    _compile(cached=True)
except RuntimeError:  # neither beside this file nor in the user's cache can anything be written
    _compile(cached=False)

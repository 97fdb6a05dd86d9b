"""The sum tree against a plain cumulative sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbadge.sumtree import SumTree

weights = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-300, 1e300), st.integers(1, 9).map(float)),
    min_size=1,
    max_size=70,
).filter(any)


@given(weights, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
@settings(deadline=None)
def test_only_rows_with_weight_are_drawn(weight, uniform):
    rows = SumTree(np.array(weight)).draw(np.array([*uniform, np.nextafter(1.0, 0.0)]))
    assert all(weight[row] > 0 for row in rows)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40).filter(any), st.integers(0, 2**32))
@settings(deadline=None)
def test_draws_are_those_of_the_cumulative_sum(weight, seed):
    # Small whole numbers: both sums are exact, so both must agree to the letter.
    weight_N = np.array(weight, dtype=np.float64)
    uniform_B = np.random.default_rng(seed).random(50)
    expected = np.searchsorted(np.cumsum(weight_N), uniform_B * weight_N.sum(), side="right")
    assert (SumTree(weight_N).draw(uniform_B) == expected).all()


@pytest.mark.parametrize("N", [1, 2, 3, 64, 1000])
def test_lowered_weights_give_the_sums_of_a_new_tree(N):
    rng = np.random.default_rng(N)
    weight_N = rng.random(N)
    tree = SumTree(weight_N)
    rows = rng.integers(0, N, size=2 * N)
    lowered = rng.random(2 * N)
    tree.lower(rows, lowered)
    expected = weight_N.copy()
    for row, value in zip(rows, lowered, strict=True):
        expected[row] = min(expected[row], value)
    assert (tree.weight_N == expected).all()
    fresh = SumTree(expected)
    assert tree.total == fresh.total
    uniform_B = rng.random(200)
    assert (tree.draw(uniform_B) == fresh.draw(uniform_B)).all()


def test_sum_of_a_million_equal_weights_is_exact():
    # A running float32 sum is off by percents here, a running float64 sum in the tenth digit.
    assert SumTree(np.full(1 << 20, 0.1)).total == 0.1 * (1 << 20)

"""The sampler: its distribution against enumeration, its picks across tiles and threads."""

from __future__ import annotations

import importlib.util
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fastbadge import kmeanspp, screen
from fastbadge.errors import InputError, MassExhaustedWarning
from fastbadge.gradients import GradientEmbedding
from fastbadge.kmeanspp import kmeans_pp
from fastbadge.pools import scaled
from fastbadge.precision import full_precision
from oracles import (
    chi_square_p_value,
    dense_gradients,
    literal_d2_sampling,
    sequence_probabilities,
)

DRAWS = 20_000
FEWER_DRAWS = 6_000  # where a variant of the same sampler is drawn


def random_pool(
    N: int, C: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> GradientEmbedding:
    g = torch.Generator().manual_seed(seed)
    logits_NC = 3 * torch.randn(N, C, generator=g, dtype=dtype)
    features_ND = torch.randn(N, D, generator=g, dtype=dtype)
    return GradientEmbedding.from_logits(logits_NC, features_ND)


@pytest.fixture(params=["torch", "numba"])
def arithmetic(request, monkeypatch) -> str:
    entries = 0 if request.param == "numba" else 10**18
    monkeypatch.setattr(scaled, "_ENTRIES_WORTH_COMPILING", entries)
    return request.param


# Picks are the same with either arithmetic (tested below), so distributions are drawn with the
# one that is five times as fast on tiny pools.
compiled = pytest.mark.parametrize("arithmetic", ["numba"], indirect=True)


@pytest.fixture(scope="module")
def small_pool() -> GradientEmbedding:
    return random_pool(N=7, C=3, D=2, seed=4)


@pytest.fixture(scope="module")
def small_points(small_pool: GradientEmbedding) -> np.ndarray:
    return dense_gradients(small_pool.error_NC, small_pool.feature_ND)


@pytest.fixture(scope="module")
def table_from_max_norm(small_points: np.ndarray) -> dict[tuple[int, ...], float]:
    start = int((small_points**2).sum(axis=1).argmax())
    return sequence_probabilities(small_points, 4, [float(i == start) for i in range(7)])


@compiled
def test_sequences_follow_the_enumerated_distribution(small_pool, table_from_max_norm, arithmetic):
    def draw(seed: int) -> list[int]:
        return kmeans_pp(small_pool, 4, seed=seed).tolist()

    assert chi_square_p_value(draw, table_from_max_norm, DRAWS) > 0.01


@compiled
def test_stale_weights_and_small_blocks_leave_the_distribution_alone(
    small_pool, table_from_max_norm, monkeypatch, arithmetic
):
    # Blocks of two proposals and weights that are brought up to date at every excuse: proposals
    # then come from weights of every age, in one draw.
    monkeypatch.setattr(kmeanspp, "_BLOCK_SIZES", (2, 2))
    monkeypatch.setattr(kmeanspp, "_COST_OF_NUMBER", 0)

    def draw(seed: int) -> list[int]:
        return kmeans_pp(small_pool, 4, seed=seed).tolist()

    assert chi_square_p_value(draw, table_from_max_norm, FEWER_DRAWS) > 0.01


@compiled
def test_weights_never_brought_up_to_date(small_pool, table_from_max_norm, monkeypatch, arithmetic):
    monkeypatch.setattr(kmeanspp, "_COST_OF_NUMBER", 10**12)

    def draw(seed: int) -> list[int]:
        return kmeans_pp(small_pool, 4, seed=seed).tolist()

    assert chi_square_p_value(draw, table_from_max_norm, FEWER_DRAWS) > 0.01


@compiled
def test_uniform_first_centre(small_pool, small_points, arithmetic):
    table = sequence_probabilities(small_points, 2, [1 / 7] * 7)

    def draw(seed: int) -> list[int]:
        return kmeans_pp(small_pool, 2, first="uniform", seed=seed).tolist()

    assert chi_square_p_value(draw, table, FEWER_DRAWS) > 0.01


@pytest.mark.parametrize(
    "mistake", [{"trials": 3}, {"power": 1.0}, {"power": 4.0}, {"origin_is_centre": True}]
)
def test_the_same_check_refuses_a_wrong_sampler(small_points, table_from_max_norm, mistake):
    def draw(seed: int) -> list[int]:
        return literal_d2_sampling(small_points, 4, np.random.default_rng(seed), **mistake)

    assert chi_square_p_value(draw, table_from_max_norm, DRAWS) < 1e-6


def test_the_check_accepts_the_literal_sampler(small_points, table_from_max_norm):
    def draw(seed: int) -> list[int]:
        return literal_d2_sampling(small_points, 4, np.random.default_rng(seed))

    assert chi_square_p_value(draw, table_from_max_norm, DRAWS) > 0.01


@compiled
def test_potential_after_many_centres_equals_that_of_literal_sampling(arithmetic):
    # 150 of 1,500: walks of many blocks with stale weights. The mean potential of 40 draws against
    # 40 of the literal algorithm, within four standard errors of the difference.
    pool = random_pool(N=1500, C=4, D=3, seed=1)
    points_NP = dense_gradients(pool.error_NC, pool.feature_ND)

    def potential(picks: list[int]) -> float:
        return float(
            np.min([((points_NP - points_NP[p]) ** 2).sum(axis=1) for p in picks], axis=0).sum()
        )

    ours = [potential(kmeans_pp(pool, 150, seed=s).tolist()) for s in range(40)]
    literal = [
        potential(literal_d2_sampling(points_NP, 150, np.random.default_rng(s))) for s in range(40)
    ]
    standard_error = np.sqrt((np.var(ours, ddof=1) + np.var(literal, ddof=1)) / 40)
    assert abs(np.mean(ours) - np.mean(literal)) < 4 * standard_error
    greedy = [
        potential(literal_d2_sampling(points_NP, 150, np.random.default_rng(s), trials=4))
        for s in range(10)
    ]
    assert abs(np.mean(greedy) - np.mean(literal)) > 8 * standard_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tile", [1, 1000, 10**9])
def test_picks_do_not_depend_on_tiles(monkeypatch, arithmetic, dtype, tile):
    pool = random_pool(N=500, C=5, D=6, seed=2, dtype=dtype)
    expected = kmeans_pp(pool, 120, seed=3)
    monkeypatch.setattr(scaled, "_TILE_FACTORS", tile)
    monkeypatch.setattr(scaled, "_TILE_PRODUCTS", tile)
    assert torch.equal(kmeans_pp(pool, 120, seed=3), expected)


@pytest.mark.parametrize("tile_mb", [1, 64])
def test_picks_do_not_depend_on_the_tile_budget(arithmetic, tile_mb):
    pool = random_pool(N=3000, C=5, D=60, seed=2)
    assert torch.equal(kmeans_pp(pool, 120, seed=3, tile_mb=tile_mb), kmeans_pp(pool, 120, seed=3))


@pytest.mark.parametrize("tile_mb", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_picks_are_the_same_on_a_gpu(dtype, tile_mb):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    pool = random_pool(N=20_000, C=10, D=100, seed=5, dtype=dtype)
    on_gpu = GradientEmbedding(pool.error_NC.cuda(), pool.feature_ND.cuda())
    expected = kmeans_pp(pool, 500, seed=3)
    assert torch.equal(kmeans_pp(on_gpu, 500, seed=3, tile_mb=tile_mb), expected)


def test_picks_do_not_depend_on_threads(arithmetic):
    pool = random_pool(N=5_000, C=10, D=64, seed=5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = kmeans_pp(pool, 300, seed=1)
        torch.set_num_threads(2)
        two = kmeans_pp(pool, 300, seed=1)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e17])
def test_picks_do_not_depend_on_the_scale_of_the_features(scale):
    pool = random_pool(N=300, C=4, D=8, seed=6)
    scale = 2.0 ** round(np.log2(scale))
    scaled = GradientEmbedding(pool.error_NC, pool.feature_ND * scale)
    assert torch.equal(kmeans_pp(scaled, 50, seed=1), kmeans_pp(pool, 50, seed=1))


def exact_sqnorm(error_C: torch.Tensor, feature_D: torch.Tensor) -> Fraction:
    squares = [sum(Fraction(x) ** 2 for x in factor.tolist()) for factor in (error_C, feature_D)]
    return squares[0] * squares[1]


@given(st.integers(-199, 199), st.integers(-199, 199), st.integers(0, 150), st.integers(0, 2**32))
@example(-190, -190, 150, 0)  # of which two picks in three were repeats
@settings(max_examples=20, deadline=None)
def test_norms_and_picks_of_extreme_float64_factors(error_exponent, feature_exponent, below, seed):
    pool = random_pool(N=12, C=3, D=4, seed=seed, dtype=torch.float64)
    error_NC = pool.error_NC / pool.error_NC.abs().max()
    feature_ND = pool.feature_ND / pool.feature_ND.abs().max()
    error_NC[5:] *= 2.0**-below
    feature_ND[5:] *= 2.0**-below
    extreme = GradientEmbedding(error_NC * 2.0**error_exponent, feature_ND * 2.0**feature_exponent)
    read = scaled.ScaledPool.of(extreme)
    scale = Fraction(read.error_scale) * Fraction(read.feature_scale)
    for sqnorm, error_C, feature_D in zip(
        read.sqnorm_N, extreme.error_NC, extreme.feature_ND, strict=True
    ):
        expected = exact_sqnorm(error_C, feature_D) * scale**2
        assert abs(Fraction(float(sqnorm)) - expected) <= expected / 10**14
    picks = kmeans_pp(extreme, 12, seed=seed)
    assert torch.equal(picks, kmeans_pp(GradientEmbedding(error_NC, feature_ND), 12, seed=seed))


def test_one_giant_among_dwarfs_is_taken_first_and_does_not_stall_the_rest():
    pool = random_pool(N=2000, C=3, D=4, seed=7)
    feature_ND = pool.feature_ND.clone()
    feature_ND[11] *= 1e10
    picks = kmeans_pp(GradientEmbedding(pool.error_NC, feature_ND), 500, seed=0)
    assert picks[0] == 11
    assert len(set(picks.tolist())) == 500


def test_same_seed_same_picks_and_a_generator_moves_on():
    pool = random_pool(N=200, C=3, D=3)
    assert torch.equal(kmeans_pp(pool, 20, seed=9), kmeans_pp(pool, 20, seed=9))
    assert not torch.equal(kmeans_pp(pool, 20, seed=9), kmeans_pp(pool, 20, seed=10))
    generator = torch.Generator().manual_seed(9)
    assert torch.equal(kmeans_pp(pool, 20, generator=generator), kmeans_pp(pool, 20, seed=9))
    assert not torch.equal(kmeans_pp(pool, 20, generator=generator), kmeans_pp(pool, 20, seed=9))


def test_all_bits_of_a_seed_count():
    seeds = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**62, 2**63 - 1]
    generators = [kmeanspp.resolve_generator(np.int64(seed), None) for seed in seeds]
    assert len({generator.get_state().numpy().tobytes() for generator in generators}) == len(seeds)
    for seed, generator in zip(seeds[:4], generators, strict=False):  # as they always were
        assert generator.get_state().equal(torch.Generator().manual_seed(seed).get_state())
    # Pinned, so that a seed means the same in every version.
    assert generators[4].initial_seed() == 1813816320


@st.composite
def pools(draw) -> GradientEmbedding:
    """Pools as they come and as they should not: copies, zero rows, huge and tiny norms."""
    N, C, D = draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    copies_of = rng.integers(0, draw(st.integers(1, N)), size=N)
    features = st.sampled_from([0.0, 1e-40, 1e-20, 1.0, 300.0, 1e18])
    scale_N1 = rng.choice([1.0, draw(features), draw(features)], size=(N, 1))
    error_NC = rng.normal(size=(N, C))[copies_of]
    feature_ND = rng.normal(size=(N, D))[copies_of] * scale_N1
    if draw(st.booleans()):  # as after a ReLU
        feature_ND = np.maximum(feature_ND, 0)
    error_NC[rng.random(N) < draw(st.sampled_from([0.0, 0.5]))] = 0.0
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return GradientEmbedding(
        torch.from_numpy(error_NC).to(dtype), torch.from_numpy(feature_ND).to(dtype)
    )


@given(pool=pools(), data=st.data())
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore::fastbadge.errors.MassExhaustedWarning")
def test_any_pool_gives_the_same_k_distinct_positions_in_any_arithmetic(pool, data):
    N = len(pool)
    k, seed = data.draw(st.integers(1, N)), data.draw(st.integers(0, 99))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeanspp, "_BLOCK_SIZES", data.draw(st.sampled_from([(1, 4), (32, 256)])))
        patch.setattr(kmeanspp, "_COST_OF_NUMBER", data.draw(st.sampled_from([0, 40, 10**6])))
        patch.setattr(scaled, "_ENTRIES_WORTH_COMPILING", 10**18)
        picks = kmeans_pp(pool, k, seed=seed)
        patch.setattr(scaled, "_ENTRIES_WORTH_COMPILING", 0)
        patch.setattr(scaled, "_TILE_FACTORS", data.draw(st.sampled_from([1, 50, 10**9])))
        compiled_picks = kmeans_pp(pool, k, seed=seed)
        # Nothing screened away: every distance settled.
        patch.setattr(screen, "SAFE_EXPONENT", 300)
        settled_picks = kmeans_pp(pool, k, seed=seed)
    assert picks.dtype == torch.int64
    assert len(set(picks.tolist())) == k
    assert all(0 <= p < N for p in picks.tolist())
    assert torch.equal(picks, compiled_picks)
    assert torch.equal(picks, settled_picks)


@pytest.mark.filterwarnings("ignore::fastbadge.errors.MassExhaustedWarning")
def test_screened_and_settled_samplers_agree_on_thousands_of_small_pools(monkeypatch):
    # The screen leaves out what its bounds exclude; with margins this wide nothing is left out.
    # Few classes, so that some have no row; scales from denormal to 1e18.
    monkeypatch.setattr(scaled, "_ENTRIES_WORTH_COMPILING", 0)
    rng = np.random.default_rng(0)
    for seed in range(2000):
        N, C, D = rng.integers(2, 12), rng.integers(1, 5), rng.integers(1, 10)
        error_NC = rng.normal(size=(N, C)) * rng.choice([1.0, 1e-3, 1e-40], size=(N, 1))
        feature_ND = rng.normal(size=(N, D)) * rng.choice([1.0, 1e-20, 1e-42, 1e18], size=(N, 1))
        copied = rng.random(N) < 0.2
        error_NC[copied], feature_ND[copied] = error_NC[0], feature_ND[0]
        error_NC[rng.random(N) < 0.1] = 0
        if seed % 2:
            feature_ND = np.abs(feature_ND)
        pool = GradientEmbedding(
            torch.from_numpy(error_NC).float(), torch.from_numpy(feature_ND).float()
        )
        k = int(rng.integers(1, N + 1))
        picks = kmeans_pp(pool, k, seed=seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(screen, "SAFE_EXPONENT", 300)
            assert torch.equal(kmeans_pp(pool, k, seed=seed), picks), f"pool {seed}"


def test_duplicates_are_left_until_every_distinct_gradient_is_chosen():
    pool = random_pool(N=6, C=3, D=2, seed=8)
    row_N = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 3])
    copies = GradientEmbedding(pool.error_NC[row_N], pool.feature_ND[row_N])
    for seed in range(50):
        assert {int(row_N[p]) for p in kmeans_pp(copies, 4, seed=seed)} == {0, 1, 2, 3}


def test_the_caller_is_told_how_many_were_drawn_uniformly():
    copies = GradientEmbedding(torch.ones(10, 2), torch.ones(10, 3))
    with pytest.warns(MassExhaustedWarning, match="after 1 picks; the last 4 of 5 were drawn"):
        picks = kmeans_pp(copies, 5, seed=0)
    assert len(set(picks.tolist())) == 5
    counts = np.zeros(10)
    with pytest.warns(MassExhaustedWarning):
        for seed in range(2000):
            counts[kmeans_pp(copies, 5, seed=seed)[1:]] += 1
    # Row 0 has the largest norm (ties go to the lowest position); the other nine are uniform.
    assert counts[0] == 0
    assert abs(counts[1:] - 2000 * 4 / 9).max() < 5 * np.sqrt(2000 * 4 / 9 * 5 / 9)


def test_all_zero_gradients():
    pool = GradientEmbedding(torch.zeros(5, 2), torch.ones(5, 3))
    with pytest.warns(MassExhaustedWarning):
        assert sorted(kmeans_pp(pool, 5, seed=1).tolist()) == [0, 1, 2, 3, 4]


def test_pool_of_one_and_the_whole_pool():
    assert kmeans_pp(random_pool(1, 2, 2), 1, seed=0).tolist() == [0]
    assert sorted(kmeans_pp(random_pool(30, 2, 2), 30, seed=0).tolist()) == list(range(30))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0; expected 1 to 7"),
        ({"k": 8}, "k is 8; expected 1 to 7"),
        ({"k": -1}, "k is -1"),
        ({"k": 2.5}, "k is 2.5; expected a whole number"),
        ({"k": 2, "first": "random"}, "first is 'random'; expected 'max_norm' or 'uniform'"),
        ({"k": True}, "k is True; expected a whole number"),
        ({"emb": torch.ones(7, 3), "k": 2}, "emb is a Tensor; expected a pool of gradients"),
        ({"k": 2, "generator": np.random.default_rng(0)}, "generator is a Generator; expected"),
        ({"k": 2, "seed": -1}, "seed is -1"),
        ({"k": 2, "seed": 2**63}, "seed is 9223372036854775808; expected"),
        ({"k": 2, "seed": True}, "seed is True"),
        ({"k": 2, "tile_mb": 0}, "tile_mb is 0; expected a whole number, at least 1"),
        ({"k": 2, "tile_mb": "x"}, "tile_mb is 'x'; expected a whole number"),
        ({"k": 2, "tile_mb": 1.5}, "tile_mb is 1.5; expected a whole number"),
        ({"k": 2, "seed": 1, "generator": torch.Generator()}, "got both seed=1 and a generator"),
    ],
)
def test_bad_arguments_are_named(small_pool, arguments, message):
    with pytest.raises(InputError, match=message):
        kmeans_pp(**{"emb": small_pool, **arguments})


def test_progress_bar_ends_at_k(capsys):
    kmeans_pp(random_pool(50, 3, 3), 10, seed=0, progress=True)  # under two seconds: silent
    assert capsys.readouterr().err == ""


def test_autocast_changes_no_pick(arithmetic):
    pool = random_pool(N=2000, C=5, D=16, seed=3)
    expected = kmeans_pp(pool, 500, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        picks = kmeans_pp(pool, 500, seed=0)
    assert torch.equal(picks, expected)


class Multiplies(TorchDispatchMode):
    """What torch is allowed to make of float32 products while it computes one."""

    def __init__(self, error=None):
        super().__init__()
        self.error, self.seen = error, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default:
            self.seen.add(float32_settings())
            if self.error is not None:
                raise self.error
        return function(*args, **(kwargs or {}))


def float32_settings():
    owners = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends
    return tuple(owner.fp32_precision for owner in owners)


def ask_as_ever(precision):
    torch.set_float32_matmul_precision(precision)


def ask_anew(precision):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = {"high": "tf32", "medium": "bf16"}[precision]


def ask_for_everything(precision):
    torch.backends.fp32_precision = "tf32"


@pytest.fixture
def torch_as_it_was():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("ask", [ask_as_ever, ask_anew, ask_for_everything])
def test_products_are_float32_whatever_was_asked_of_torch(
    arithmetic, torch_as_it_was, ask, precision
):
    pool = random_pool(N=60, C=3, D=4, seed=3)
    expected = kmeans_pp(pool, 9, seed=0)
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    ask(precision)
    before = float32_settings()
    with Multiplies() as multiplied:
        assert torch.equal(kmeans_pp(pool, 9, seed=0), expected)
    with Multiplies(RuntimeError("broken")), pytest.raises(RuntimeError, match="broken"):
        kmeans_pp(pool, 9, seed=0)
    assert {settings[:2] for settings in multiplied.seen} == {("ieee", "ieee")}
    assert float32_settings() == before
    if ask is ask_as_ever:  # torch refuses to say where the two ways contradict each other
        assert torch.get_float32_matmul_precision() == precision
    if ask is ask_for_everything:  # what was inherited still is
        torch.backends.fp32_precision = "ieee"
        assert float32_settings() == ("ieee", "ieee", "ieee")


def test_products_of_several_threads_are_float32_until_the_last_has_ended(torch_as_it_was):
    torch.set_float32_matmul_precision("high")
    first, second = full_precision("cpu"), full_precision("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert float32_settings()[:2] == ("ieee", "ieee")
    second.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "high"
    with full_precision("cpu"):
        torch.set_float32_matmul_precision("medium")  # by another thread, in between
        with full_precision("cpu"):
            assert float32_settings()[:2] == ("ieee", "ieee")
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.filterwarnings("ignore::fastbadge.errors.MassExhaustedWarning")
def test_no_pick_is_repeated_however_wrong_the_arithmetic_is(monkeypatch):
    # As if no distance were ever seen: only what is 0 by construction keeps rows from coming back.
    pool = random_pool(N=60, C=3, D=4, seed=2)
    monkeypatch.setattr(scaled, "_ENTRIES_WORTH_COMPILING", 10**18)
    monkeypatch.setattr(screen, "lower", lambda weight_B, *_: np.minimum(weight_B, 1.0))
    monkeypatch.setattr(screen, "_settle", lambda rows, row_P, *_: row_P.double() + 1e9)
    for seed in range(5):
        assert len(set(kmeans_pp(pool, 60, seed=seed).tolist())) == 60


@pytest.fixture
def fresh_kernels(tmp_path, monkeypatch):
    """The compiled arithmetic as another process would load it, its cache below `tmp_path`."""
    from numba import config

    from fastbadge import screen_numba

    def load(cache):
        monkeypatch.setattr(config, "CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
        monkeypatch.setattr(config, "CACHE_DIR", str(cache))
        spec = importlib.util.spec_from_file_location("fastbadge.again", screen_numba.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def assert_same_norms(kernels):
    pool = random_pool(N=9, C=3, D=20)
    factors = pool.error_NC, pool.feature_ND
    assert (kernels.sqnorms(*factors) == screen.sqnorms(*factors)).all()


def test_compiled_where_no_cache_can_be_written(tmp_path, fresh_kernels):
    (tmp_path / "file").touch()  # a directory without permission stops everybody but root
    assert_same_norms(fresh_kernels(tmp_path / "file" / "cache"))


def test_compiled_anew_where_the_cache_is_damaged(tmp_path, fresh_kernels):
    assert_same_norms(fresh_kernels(tmp_path))
    (index,) = tmp_path.rglob("*._sqnorms-*.nbi")
    (data,) = tmp_path.rglob("*._sqnorms-*.nbc")
    whole = index.read_bytes()
    data.write_bytes(data.read_bytes()[:-100])
    assert_same_norms(fresh_kernels(tmp_path))
    assert not index.exists()  # so that the next process does not fall for it again
    index.write_bytes(whole[:3])
    assert_same_norms(fresh_kernels(tmp_path))

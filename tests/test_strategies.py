"""Strategies against NumPy oracles of five lines, and the table they are in."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastbadge as fb
from fastbadge.strategies import get_strategy
from fastbadge.strategies.registry import _TABLE


def oracle(name, prob_NLC):
    """What must be low for an example to be chosen, from the definitions."""
    ascending_NLC = np.sort(prob_NLC, axis=2)
    if name == "least_confidence":
        return ascending_NLC[:, :, -1].mean(axis=1)
    if name == "margin":
        return (ascending_NLC[:, :, -1] - ascending_NLC[:, :, -2]).mean(axis=1)
    return np.array(
        [[sum(q * np.log(q) for q in p if q > 0) for p in row] for row in prob_NLC]
    ).mean(1)


def assert_in_order(picked, score_N, k):
    """Exactly the oracle's order, but where its scores differ by rounding only."""
    assert len(set(picked)) == k
    chosen = score_N[picked]
    assert (np.diff(chosen) > -1e-12).all()
    rest = np.delete(score_N, picked)
    assert rest.size == 0 or chosen.max() <= rest.min() + 1e-12


def weights_to_probs(weight_NC):
    return weight_NC / weight_NC.sum(axis=1, keepdims=True)


# Few distinct values, so that ties and zeros are common.
WEIGHTS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, 1e-9])
POOLS = hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(2, 5)), elements=WEIGHTS)


@pytest.mark.parametrize("name", ["least_confidence", "margin", "entropy"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(weight_NC=POOLS, share=st.floats(0, 1))
def test_multiclass(name, weight_NC, share):
    weight_NC[weight_NC.sum(axis=1) == 0] = 1.0
    prob_NC = weights_to_probs(weight_NC)
    k = 1 + int(share * (len(prob_NC) - 1))
    picked = fb.select_from_arrays(prob_NC, None, k, strategy=name).numpy()
    assert_in_order(picked, oracle(name, prob_NC[:, None, :]), k)


@pytest.mark.parametrize("name", ["least_confidence", "margin", "entropy"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    prob_NC=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 12), st.integers(1, 4)),
        elements=st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.75, 1.0]),
    )
)
def test_binary_and_multilabel(name, prob_NC):
    k = (len(prob_NC) + 1) // 2
    picked = fb.select_from_arrays(prob_NC, None, k, strategy=name, task="multilabel").numpy()
    two_NC2 = np.stack([1 - prob_NC, prob_NC], axis=2)
    assert_in_order(picked, oracle(name, two_NC2), k)
    picked = fb.select_from_arrays(prob_NC[:, 0], None, k, strategy=name).numpy()
    assert_in_order(picked, oracle(name, two_NC2[:, :1]), k)


@pytest.mark.parametrize("name", ["least_confidence", "margin", "entropy"])
def test_ties_go_to_the_lowest_position(name):
    prob_NC = np.tile([[0.9, 0.1], [0.5, 0.5], [0.6, 0.4]], (2000, 1))
    picked = fb.select_from_arrays(prob_NC, None, 5000, strategy=name, labeled=[1])
    thirds = [range(i, 6000, 3) for i in (1, 2, 0)]
    expected = [i for third in thirds for i in third if i != 1]
    assert picked.tolist() == expected[:5000]


@pytest.mark.parametrize("name", ["least_confidence", "margin", "entropy"])
@pytest.mark.parametrize("binary", [True, False])
def test_very_confident_examples_keep_their_order(name, binary):
    """Logits 20 to 33 apart: all have p = 1 in float32."""
    gap_N = torch.tensor([24.0, 33.0, 20.0, 28.0])
    logit_NC = gap_N[:, None] if binary else torch.stack([gap_N, gap_N * 0, gap_N * 0], dim=1)
    picked = fb.select(torch.nn.Identity(), logit_NC, 4, strategy=name)
    assert picked.tolist() == [2, 0, 3, 1]


def test_random_is_uniform_without_replacement():
    draws = 3000
    counts = np.zeros(6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        picked = fb.select_from_arrays(
            np.full(6, 0.5), None, 2, strategy="random", generator=generator
        )
        counts[picked.numpy()] += 1
    expected = draws * 2 / 6
    assert (abs(counts - expected) < 5 * np.sqrt(expected * 4 / 6)).all(), counts


# --- BADGE on a part of the pool


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return rng.dirichlet([0.5] * 4, 300), rng.normal(size=(300, 6))


def picks(arrays, strategy, k=10, seed=0, **options):
    return fb.select_from_arrays(*arrays, k, strategy=strategy, seed=seed, **options).tolist()


@pytest.mark.parametrize("by", ["least_confidence", "margin", "entropy"])
def test_badge_proxy_is_badge_on_the_least_sure(arrays, by):
    probs, features = arrays
    least_sure = np.argsort(oracle(by, probs[:, None, :]), kind="stable")[:40]
    part = np.sort(least_sure)
    expected = part[picks((probs[part], features[part]), "badge")].tolist()
    assert picks(arrays, f"badge_proxy:candidates=40:by={by}") == expected
    if by == "least_confidence":
        assert picks(arrays, "badge_proxy:candidates=40") == expected


def test_badge_subset_is_badge_on_a_uniform_draw(arrays):
    probs, features = arrays
    generator = torch.Generator().manual_seed(3)
    part = torch.randperm(300, generator=generator)[:40].sort().values.numpy()
    within = fb.select_from_arrays(probs[part], features[part], 10, generator=generator)
    assert picks(arrays, "badge_subset:candidates=40", seed=3) == part[within].tolist()


def test_every_row_is_as_often_a_candidate(arrays):
    small = arrays[0][:6], arrays[1][:6]
    draws, counts = 1500, np.zeros(6)
    for seed in range(draws):
        counts[picks(small, "badge_subset:candidates=2", k=2, seed=seed)] += 1
    expected = draws * 2 / 6
    assert (abs(counts - expected) < 5 * np.sqrt(expected * 4 / 6)).all(), counts


@pytest.mark.parametrize("strategy", ["badge_subset", "badge_proxy", "badge_proxy:by=margin"])
@pytest.mark.parametrize("labeled", [None, [5, 77]])
def test_with_the_whole_pool_as_candidates_they_are_badge(arrays, strategy, labeled):
    size = 300 if labeled is None else 298
    expected = picks(arrays, "badge", labeled=labeled)
    for candidates in (size, size + 1, 5000):
        name = f"{strategy}:candidates={candidates}"
        assert picks(arrays, name, labeled=labeled) == expected
    assert picks(arrays, strategy, labeled=labeled) == expected  # 5,000 by default


@pytest.mark.parametrize("strategy", ["badge_subset", "badge_proxy"])
def test_more_picks_than_candidates(arrays, strategy):
    assert len(picks(arrays, f"{strategy}:candidates=10", k=10)) == 10
    with pytest.raises(fb.InputError, match="k is 11 but candidates is 10; expected at least k"):
        picks(arrays, f"{strategy}:candidates=10", k=11)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("badge:candidates=5", "strategy 'badge' has no option 'candidates'; it has none"),
        ("badge_subset:x=5", "'badge_subset' has no option 'x'; it has candidates=5000"),
        ("badge_subset:", "has no option ''; it has candidates=5000"),
        ("badge_subset:generator=5", "has no option 'generator'"),
        ("badge_subset:candidates", "badge_subset: candidates is ''; expected int"),
        ("badge_subset:candidates=1e3", "candidates is '1e3'; expected int"),
        ("badge_proxy:by=top", "by is 'top'; expected least_confidence or margin or entropy"),
        ("badge_subset:candidates=5:candidates=6", "sets an option twice; expected each once"),
        ("bagde_proxy:by=margin", "did you mean 'badge_proxy'"),
    ],
)
def test_options_that_cannot_be(name, message):
    with pytest.raises(fb.InputError, match=message):
        get_strategy(name)


def test_options_of_ones_own_strategy(table, arrays):
    @fb.register("every")
    def every(view, k, *, generator, step: int = 2, share: float = 0.5, note: str = ""):
        assert (share, note) == (0.25, "a=b")
        return torch.arange(k) * step

    assert picks(arrays, "every:step=3:share=0.25:note=a=b", k=3) == [0, 3, 6]
    assert get_strategy("every:step=3").name == "every:step=3"


# --- the table


def test_the_table():
    assert fb.strategy_names() == [
        "albl",
        "badge",
        "badge_proxy",
        "badge_subset",
        "bait",
        "bald",
        "batchbald",
        "cluster_margin",
        "coreset",
        "entropy",
        "kdpp",
        "least_confidence",
        "margin",
        "power_bald",
        "power_margin",
        "probcover",
        "random",
        "typiclust",
        "uncertainty_herding",
        "vessal",
    ]
    assert get_strategy("badge").needs == {"gradients"}
    assert get_strategy("margin").needs == {"probabilities"}
    assert get_strategy("random").needs == frozenset()
    assert all(get_strategy(name).summary for name in fb.strategy_names())


@pytest.mark.parametrize("name", fb.strategy_names())
def test_every_docstring_tells_the_cost_and_the_source(name):
    text = get_strategy(name).fn.__doc__
    assert "Cost:" in text
    assert name == "random" or re.search(r"(19|20)\d\d", text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "bagde",
            "strategy is 'bagde'; did you mean 'badge'\\? expected one of albl, badge,",
        ),
        ("xyz", "strategy is 'xyz'; expected one of albl, badge, badge_proxy,"),
        (None, "strategy is None; expected one of albl"),
    ],
)
def test_an_unknown_name(name, message):
    with pytest.raises(fb.InputError, match=message):
        fb.select(torch.nn.Linear(2, 2), torch.ones(5, 2), 1, strategy=name)


@pytest.fixture
def table():
    before = dict(_TABLE)
    yield
    _TABLE.clear()
    _TABLE.update(before)


@pytest.mark.usefixtures("table")
def test_a_strategy_of_ones_own():
    seen = []

    @fb.register("both", needs=("probabilities", "gradients"))
    def both(view, k, *, generator):
        """Most gradient an unsure example."""
        seen.append(view)
        return view.embedding.sqnorms().topk(k).indices

    model, x = torch.nn.Linear(2, 3), torch.randn(9, 2)
    picked = fb.select(model, x, 4, strategy="both", labeled=[8])
    (view,) = seen
    last_two = torch.tensor([7, 6])
    assert view.probabilities(last_two).equal(view.probability_NC[last_two])
    assert (view.size, view.task) == (8, "multiclass")
    torch.testing.assert_close(view.probability_NC.float(), model(x[:8]).detach().softmax(dim=1))
    expected = fb.compute_gradient_embedding(model, x[:8]).sqnorms().topk(4).indices
    assert picked.equal(expected)
    assert get_strategy("both").summary == "Most gradient an unsure example."


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("wrong", [[0, 0], [0], [0, 5], [-1, 0], [[0, 1]], []], ids=str)
def test_a_strategy_that_returns_no_valid_rows(wrong):
    fb.register("wrong")(lambda view, k, *, generator: torch.tensor(wrong, dtype=torch.long))
    with pytest.raises(fb.InputError, match=r"strategy 'wrong' returned .*; expected 2 distinct"):
        fb.select(torch.nn.Linear(2, 2), torch.ones(5, 2), 2, strategy="wrong")


@pytest.mark.usefixtures("table")
def test_a_name_is_taken_once():
    def cell():
        @fb.register("mine")
        def mine(view, k, *, generator):
            return torch.arange(k)

    cell()
    cell()  # a notebook cell run twice
    with pytest.raises(fb.InputError, match=r"strategy 'badge' is taken by fastbadge\.strategies"):
        fb.register("badge")(cell)
    with pytest.raises(fb.InputError, match=r"needs \['labels'\]; expected some of probabilities"):
        fb.register("other", needs=("labels",))


@pytest.mark.parametrize("name", fb.strategy_names())
def test_options_can_be_checked_before_anything_is_computed(name):
    get_strategy(name).check_options(100)


@pytest.mark.parametrize(
    "name",
    [
        "albl:delta=1",
        "badge_proxy:candidates=99",
        "bait:regularization=0",
        "bald:samples=1",
        "batchbald:configurations=0",
        "batchbald:samples=1",
        "cluster_margin:multiple=0",
        "power_bald:samples=1",
        "power_margin:beta=inf",
        "probcover:purity=1",
        "uncertainty_herding:sigma=nan",
        "vessal:regularization=nan",
    ],
)
def test_an_option_out_of_its_range_is_refused_by_the_check(name):
    option = re.split("[:=]", name)[1]
    with pytest.raises(fb.InputError, match=option):
        get_strategy(name).check_options(100)

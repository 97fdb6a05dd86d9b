"""The paper's strategies and those since, each against a literal version of its definition."""

import itertools
import json
import math
import sqlite3
from collections import Counter
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.cluster import AgglomerativeClustering, KMeans
from torch import nn

import fastbadge as fb
from fastbadge.lab.experiment import run_experiment
from fastbadge.lab.protocol import Config
from fastbadge.strategies import bait as bait_module
from fastbadge.strategies import coreset as coreset_module
from fastbadge.strategies import get_strategy, strategy_names
from fastbadge.strategies.registry import PoolView
from oracles import chi_square_p_value, dense_gradients

SAMPLED = ["bald", "batchbald", "power_bald"]


def arrays(N, C=4, D=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet([0.7] * C, N), rng.normal(size=(N, D))


def picks(pool, strategy, k, *, seed=0, **options):
    return fb.select_from_arrays(*pool, k, strategy=strategy, seed=seed, **options).tolist()


def free_of(N, labeled):
    return [i for i in range(N) if i not in labeled]


def unit(feature_ND):
    return feature_ND / np.linalg.norm(feature_ND, axis=1, keepdims=True)


def margins(prob_NC):
    top = np.sort(prob_NC, axis=1)
    return top[:, -1] - top[:, -2]


# --- coreset


def literal_k_center(feature_ND, k, centres):
    """Farthest first, every distance from its definition, one at a time."""
    chosen = []
    for _ in range(k):
        best, farthest = None, -1.0
        for i in range(len(feature_ND)):
            if i in chosen or i in centres:
                continue
            near = [math.dist(feature_ND[i], feature_ND[c]) for c in [*centres, *chosen]]
            if min(near, default=math.inf) > farthest:
                best, farthest = i, min(near, default=math.inf)
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("labeled", [[], [7, 3, 50]])
@pytest.mark.parametrize("candidates", [1, 4, 512])
def test_coreset_is_k_center_greedy(labeled, candidates, monkeypatch):
    monkeypatch.setattr(coreset_module, "_CANDIDATES", candidates)
    for seed in range(5):
        pool = arrays(60, seed=seed)
        # Whole numbers: many exact ties, and duplicates.
        feature_ND = pool[1] if seed < 3 else np.round(pool[1])
        expected = literal_k_center(feature_ND.tolist(), 25, labeled)
        assert picks((pool[0], feature_ND), "coreset", 25, labeled=labeled) == expected


def test_coreset_under_the_caller_s_autocast():
    pool = arrays(400)
    expected = picks(pool, "coreset", 200, labeled=[5])
    with torch.autocast("cpu", torch.bfloat16):
        assert picks(pool, "coreset", 200, labeled=[5]) == expected


def test_coreset_of_features_of_any_size():
    prob_NC, feature_ND = arrays(40)
    expected = picks((prob_NC, feature_ND), "coreset", 12, labeled=[5])
    for scale in (2.0**-30, 2.0**30):
        assert picks((prob_NC, feature_ND * scale), "coreset", 12, labeled=[5]) == expected


# --- albl


@pytest.mark.parametrize(
    ("name", "noted", "horizon"),
    [
        ("albl", {}, 10),
        ("albl", {"horizon": 40}, 40),  # as an experiment notes it
        ("albl", {"horizon": 0}, 10),
        ("albl:horizon=25", {"horizon": 40}, 25),
    ],
)
def test_albl_replays_exp4p(name, noted, horizon):
    """The probabilities of every query, from the formulas, and arms drawn accordingly."""
    N, delta = 80, 0.1
    prob_NC, feature_ND = arrays(N)
    label_N = np.random.default_rng(1).integers(4, size=N)
    memory, labeled = dict(noted), [0, 1, 2]
    generator = torch.Generator().manual_seed(5)
    weight, importance = [1.0, 1.0], dict.fromkeys(labeled, 1.0)
    least = math.sqrt(math.log(2) / (2 * horizon))
    seen = []
    for _ in range(8):
        if "queries" in memory:
            last = memory["queries"][-1]
            correct = [importance[i] * (prob_NC[i].argmax() == label_N[i]) for i in labeled]
            reward = sum(correct) / len(labeled)
            for j in (0, 1):
                estimate = reward / last["probabilities"][j] if j == last["arm"] else 0.0
                bonus = math.sqrt(math.log(2 / delta) / (2 * horizon)) / last["probabilities"][j]
                weight[j] *= math.exp(least / 2 * (estimate + bonus))
        expected = [(1 - 2 * least) * w / sum(weight) + least for w in weight]
        memory = json.loads(json.dumps(memory))  # as a record keeps it
        picked = fb.select_from_arrays(
            prob_NC, feature_ND, 4, strategy=name, labeled=labeled, labels=label_N[labeled],
            memory=memory, generator=generator,
        ).tolist()  # fmt: skip
        query = memory["queries"][-1]
        np.testing.assert_allclose(query["probabilities"], expected, rtol=1e-12)
        assert query["positions"] == picked
        arm = ["coreset", "least_confidence"][query["arm"]]
        assert picked == picks((prob_NC, feature_ND), arm, 4, labeled=labeled)
        seen.append(arm)
        importance |= dict.fromkeys(picked, 1 / expected[query["arm"]])
        labeled = [*picked, *labeled]  # in no particular order
    assert len(set(seen)) == 2


def test_albl_draws_its_arm_with_these_probabilities():
    pool, label_N = arrays(12), np.zeros(12, dtype=int)
    memory = {"log_weights": [0.0, 1.0], "queries": []}
    arms = Counter()
    for seed in range(800):
        noted = json.loads(json.dumps(memory))
        picks(pool, "albl", 1, seed=seed, labeled=[0], labels=label_N[:1], memory=noted)
        arms[noted["queries"][0]["arm"]] += 1
    least = math.sqrt(math.log(2) / 20)
    share = (1 - 2 * least) / (1 + math.e) + least
    assert scipy.stats.binomtest(arms[0], 800, share).pvalue > 0.01


def test_albl_says_what_it_lacks():
    pool = arrays(12)
    with pytest.raises(fb.InputError, match="pass memory=\\{\\} at the first"):
        picks(pool, "albl", 2)
    memory = {}
    first = picks(pool, "albl", 2, memory=memory)
    with pytest.raises(fb.InputError, match="has queried before; pass labeled= and labels="):
        picks(pool, "albl", 2, memory=memory, labeled=first)
    with pytest.raises(fb.InputError, match=r"labels has shape \(1,\).* each of the 2 examples"):
        picks(pool, "albl", 2, memory=memory, labeled=first, labels=np.array([1]))


# --- kdpp


def test_kdpp_draws_sets_in_proportion_to_their_determinants():
    N, k = 7, 3
    prob_NC, feature_ND = arrays(N, C=3, D=2, seed=3)
    emb = fb.GradientEmbedding.from_probabilities(prob_NC, feature_ND)
    gradients = dense_gradients(emb.error_NC, emb.feature_ND)
    gram = gradients @ gradients.T
    volume = {
        subset: np.linalg.det(gram[np.ix_(subset, subset)])
        for subset in itertools.combinations(range(N), k)
    }
    total = sum(volume.values())
    table = {subset: max(v, 0.0) / total for subset, v in volume.items()}

    def draw(seed):
        return sorted(picks((prob_NC, feature_ND), "kdpp", k, seed=seed))

    assert chi_square_p_value(draw, table, 2000) > 0.01


def test_kdpp_beyond_the_rank_and_with_duplicates():
    prob_NC, feature_ND = arrays(6, C=3, D=2)
    twice = np.tile(prob_NC, (2, 1)), np.tile(feature_ND, (2, 1))
    for seed in range(30):
        first = picks(twice, "kdpp", 4, seed=seed)  # rank 4: (3 - 1) x 2
        assert len({i % 6 for i in first}) == 4
        assert sorted(picks(twice, "kdpp", 12, seed=seed)) == list(range(12))


def test_what_would_not_fit_is_refused_with_the_number():
    prob_NC, feature_ND = np.full((3, 70), 1 / 70), np.ones((3, 60))
    for strategy in ("kdpp", "vessal"):
        with pytest.raises(fb.InputError, match="C D is 4,200; at most 4,096 here"):
            picks((prob_NC, feature_ND), strategy, 2)
    with pytest.raises(fb.InputError, match="C D is 8,400; at most 8,192 here"):
        picks((prob_NC, np.ones((3, 120))), "bait", 2)
    million = PoolView(1_000_000, embedding=SimpleNamespace(num_classes=10, num_features=64))
    with pytest.raises(fb.InputError, match="N k = 640,000,000; at most 268,435,456 fit"):
        run("kdpp", million, 1000)
    wide = np.full((9000, 100), 0.01), np.ones((9000, 2))
    with pytest.raises(fb.InputError, match=r"N C\^2 = 90,000,000 numbers; at most 67,108,864"):
        picks(wide, "bait", 2)
    large = np.full((100_001, 2), 0.5), np.ones((100_001, 1))
    for strategy in ("probcover", "uncertainty_herding"):
        with pytest.raises(fb.InputError, match=r"100,001 examples.* at most 100,000 here"):
            picks(large, strategy, 2)
    with pytest.raises(fb.InputError, match=r"would link 30,000 candidates; at most 20,000 fit"):
        picks(large, "cluster_margin", 3000)


# --- vessal


def literal_vessal(gradient_NP, k, uniform_N, regularization=0.01):
    N, P = gradient_NP.shape
    taken = []
    for t in range(N):
        g = gradient_NP[t]
        chosen = sum((np.outer(gradient_NP[i], gradient_NP[i]) for i in taken), np.zeros((P, P)))
        inverse = np.linalg.inv(chosen + regularization * np.eye(P))
        mean = np.mean([np.outer(x, x) for x in gradient_NP[: t + 1]], axis=0)
        rate = (k - len(taken)) / (N - t)
        if uniform_N[t] < rate * (g @ inverse @ g) / np.trace(inverse @ mean):
            taken.append(t)
    return taken


def test_vessal_is_the_literal_stream(monkeypatch):
    from fastbadge.strategies import determinantal

    pool = arrays(80, C=3, D=4)
    emb = fb.GradientEmbedding.from_probabilities(*pool)
    gradients = dense_gradients(emb.error_NC, emb.feature_ND)
    for seed, tile in [(0, 1 << 22), (1, 60), (2, 130)]:
        monkeypatch.setattr(determinantal, "_TILE_ENTRIES", tile)
        generator = torch.Generator().manual_seed(seed)
        uniform_N = torch.rand(80, dtype=torch.float64, generator=generator).numpy()
        taken = literal_vessal(gradients, 10, uniform_N)
        picked = picks(pool, "vessal", 10, seed=seed)
        assert picked[: len(taken)] == taken
        assert 5 < len(taken) <= 10
        assert not set(picked[len(taken) :]) & set(taken)


# --- power


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_power_margin_is_plackett_luce(beta):
    prob_NC = np.array([[0.5, 0.5], [0.7, 0.3], [0.9, 0.1], [0.4, 0.6], [0.8, 0.2]])
    score_N = (1 - margins(prob_NC)) ** beta
    table = {}
    for sequence in itertools.permutations(range(5), 3):
        probability, left = 1.0, score_N.sum()
        for i in sequence:
            probability *= score_N[i] / left
            left -= score_N[i]
        table[sequence] = probability
    name = f"power_margin:beta={beta}"
    assert chi_square_p_value(lambda s: picks((prob_NC, None), name, 3, seed=s), table, 3000) > 0.01


@pytest.mark.parametrize("beta", [0.001, 1.0, 1000.0])
def test_power_margin_draws_a_score_of_0_last(beta):
    prob_NC = np.array([[1.0, 0.0]] * 300 + [[0.6, 0.4]] * 3 + [[1.0, 0.0]] * 300)
    name = f"power_margin:beta={beta}"
    drawn = [picks((prob_NC, None), name, 4, seed=seed) for seed in range(20)]
    assert all(set(picked[:3]) == {300, 301, 302} for picked in drawn)
    assert len({picked[3] for picked in drawn}) > 10


# --- bald and batchbald, on samples that are given


def sampled_view(prob_SNC, task="multiclass"):
    prob_SNC = torch.as_tensor(prob_SNC, dtype=torch.float64)

    def samples(count, generator):
        assert count == len(prob_SNC)
        return iter(prob_SNC)

    return PoolView(prob_SNC.shape[1], samples=samples, task=task)


def run(name, view, k, seed=0):
    return get_strategy(name).fn(view, k, generator=torch.Generator().manual_seed(seed)).tolist()


def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def joint_information(prob_SNC, rows):
    """I(y_rows; w) by enumerating every joint label."""
    S, _, C = prob_SNC.shape
    joint = []
    for labels in itertools.product(range(C), repeat=len(rows)):
        each_S = np.prod([prob_SNC[:, i, y] for i, y in zip(rows, labels, strict=True)], axis=0)
        joint.append(each_S.mean())
    given = np.mean([sum(entropy(prob_SNC[s, i]) for i in rows) for s in range(S)])
    return entropy(joint) - given


@pytest.fixture(scope="module")
def samples_SNC():
    return np.random.default_rng(2).dirichlet([0.4] * 3, (6, 12))


def test_bald_is_mutual_information(samples_SNC):
    score_N = [joint_information(samples_SNC, [i]) for i in range(12)]
    expected = np.argsort(-np.array(score_N), kind="stable").tolist()
    assert run("bald:samples=6", sampled_view(samples_SNC), 12) == expected
    binary = run("bald:samples=6", sampled_view(samples_SNC[:, :, :1], "binary"), 12)
    pairs = np.stack([1 - samples_SNC[:, :, 0], samples_SNC[:, :, 0]], axis=2)
    assert binary == run("bald:samples=6", sampled_view(pairs), 12)


def test_power_bald_prefers_what_bald_scores(samples_SNC):
    score_N = np.array([joint_information(samples_SNC, [i]) for i in range(12)])
    view = sampled_view(samples_SNC)
    table = {(i,): score_N[i] / score_N.sum() for i in range(12)}
    draw = lambda seed: run("power_bald:samples=6", view, 1, seed)  # noqa: E731
    assert chi_square_p_value(draw, table, 3000) > 0.01


def greedy_batch(samples_SNC, k):
    chosen = []
    for _ in range(k):
        score = {
            i: joint_information(samples_SNC, [*chosen, i])
            for i in range(samples_SNC.shape[1])
            if i not in chosen
        }
        chosen.append(max(score, key=lambda i: score[i]))
    return chosen


def test_batchbald_is_greedy_on_the_exact_joint_entropy(samples_SNC):
    view = sampled_view(samples_SNC)
    assert run("batchbald:samples=6", view, 5) == greedy_batch(samples_SNC, 5)
    # Certain labels leave some joint labels without probability.
    certain = np.eye(3)[np.random.default_rng(0).integers(3, size=(6, 12))]
    picked = run("batchbald:samples=6", sampled_view(certain), 3)
    best = [joint_information(certain, greedy_batch(certain, n)) for n in (1, 2, 3)]
    found = [joint_information(certain, picked[:n]) for n in (1, 2, 3)]
    np.testing.assert_allclose(found, best, rtol=1e-9)


@pytest.mark.parametrize("configurations", [20, 2000])
def test_batchbald_takes_the_lowest_of_equal_rows(configurations):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        copy_N = rng.permutation(np.repeat(np.arange(37), 5))
        view = sampled_view(rng.dirichlet([1.0] * 4, (8, 37))[:, copy_N])
        picked = run(f"batchbald:samples=8:configurations={configurations}", view, 6)
        assert_lowest_of_equals(picked, copy_N)


def test_batchbald_by_sampling_nears_the_exact_batch(samples_SNC):
    view = sampled_view(samples_SNC)
    exact = joint_information(samples_SNC, greedy_batch(samples_SNC, 5))
    for seed in range(3):
        sampled = run("batchbald:samples=6:configurations=2", view, 5, seed)
        assert len(set(sampled)) == 5
        sampled = run("batchbald:samples=6:configurations=200", view, 5, seed)
        assert joint_information(samples_SNC, sampled) > 0.97 * exact


def test_the_model_is_sampled_as_one_function():
    """bald through select(): what the masks give, from the masks themselves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)).double()
    x = torch.randn(40, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(9)
    samples = []
    for _ in range(5):
        mask = (torch.rand(32, dtype=torch.float64, generator=generator) >= 0.5) / 0.5
        samples.append(model[3](torch.relu(model[0](x)) * mask).detach().softmax(dim=1).numpy())
    expected = run("bald:samples=5", sampled_view(np.stack(samples)), 40)
    for batch_size in (512, 7):
        picked = fb.select(model, x, 40, strategy="bald:samples=5", seed=9, batch_size=batch_size)
        assert picked.tolist() == expected
    assert model.training and not model[2]._forward_hooks


def test_dropout_by_channel_and_none_at_all():
    from fastbadge.dropout import fixed_dropout

    model = nn.Sequential(nn.Dropout2d(0.5), nn.Dropout(0.0)).eval()
    with fixed_dropout(model, torch.Generator().manual_seed(0)):
        out = model(torch.ones(4, 50, 3, 3))
    assert out.eq(out[:1, :, :1, :1]).all() and set(out.unique().tolist()) == {0.0, 2.0}
    assert model(torch.ones(1, 2, 1, 1)).eq(1).all()
    for name in SAMPLED:
        with pytest.raises(fb.InputError, match=r"has no nn\.Dropout with p > 0"):
            fb.select(nn.Linear(3, 3), torch.ones(5, 3), 2, strategy=name)
        with pytest.raises(fb.InputError, match="runs the model's dropout; use select"):
            picks(arrays(5), name, 2)
    with pytest.raises(fb.InputError, match=r"batchbald' needs one label an example; .* 3 indep"):
        run("batchbald", sampled_view(np.full((20, 5, 3), 0.5), "multilabel"), 2)


# --- bait


def literal_bait(prob_NC, feature_ND, k, labeled, task="multiclass", regularization=1.0):
    """Forward and backward greedy with every matrix written out."""
    informations = []
    for p, h in zip(prob_NC, feature_ND, strict=True):
        logits = np.diag(p) - np.outer(p, p) if task == "multiclass" else np.diag(p * (1 - p))
        informations.append(np.kron(logits, np.outer(h, h)))
    needed = np.mean(informations, axis=0)
    M = regularization * np.eye(len(needed)) + sum(informations[i] for i in labeled)

    def objective(matrix):
        return np.trace(np.linalg.solve(matrix, needed))

    free, added = free_of(len(prob_NC), labeled), []
    for _ in range(min(2 * k, len(free))):
        left = [i for i in free if i not in added]
        best = min(left, key=lambda i: objective(M + informations[i]))
        added.append(best)
        M = M + informations[best]
    while len(added) > k:
        worst = min(added, key=lambda i: objective(M - informations[i]))
        added.remove(worst)
        M = M - informations[worst]
    return added


@pytest.mark.parametrize("labeled", [[], [4, 17, 9]])
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
def test_bait_is_the_literal_greedy(labeled, task):
    for seed in range(2):
        prob_NC, feature_ND = arrays(40, seed=seed)
        if task == "binary":
            prob_NC = prob_NC[:, :1]
        expected = literal_bait(prob_NC, feature_ND, 8, labeled, task)
        assert picks((prob_NC, feature_ND), "bait", 8, labeled=labeled, task=task) == expected


def square_root_bait(prob_NC, feature_ND, k, labeled, regularization):
    """The same by square roots alone: tr(M^-1 F) = |R^-T G|^2, M = R'R by QR, F = G G'.

    So it has all its digits where M has a condition of 1e14. Multiclass; all logits shifted alike,
    of which no example says anything, are left out.
    """
    N, C = prob_NC.shape
    basis_Cc = np.linalg.qr(np.column_stack([np.ones(C), np.eye(C)[:, 1:]]))[0][:, 1:]
    factors = [
        np.kron(basis_Cc.T @ (np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p))), h[:, None])
        for p, h in zip(prob_NC, feature_ND, strict=True)
    ]
    root = np.linalg.qr(np.concatenate(factors, axis=1).T)[1].T / np.sqrt(N)
    prior = np.sqrt(regularization) * np.eye(len(root))

    def objective(rows):
        R = np.linalg.qr(np.concatenate([prior, *(factors[i].T for i in rows)]), mode="r")
        return (np.linalg.solve(R.T, root) ** 2).sum()

    free, added = free_of(N, labeled), []
    for _ in range(min(2 * k, len(free))):
        left = [i for i in free if i not in added]
        added.append(min(left, key=lambda i: objective([*labeled, *added, i])))
    while len(added) > k:
        worst = min(added, key=lambda i: objective([*labeled, *(j for j in added if j != i)]))
        added.remove(worst)
    return added


def bait_pool(kind, N=20, C=3, D=3, seed=0):
    """After a ReLU: half of the features zero; or a pool twice, or with rows of zeros and sure."""
    rng = np.random.default_rng(seed)
    prob_NC, feature_ND = rng.dirichlet([0.5] * C, N), np.maximum(rng.normal(size=(N, D)), 0)
    if kind == "duplicates":
        prob_NC[N // 2 :], feature_ND[N // 2 :] = prob_NC[: N // 2], feature_ND[: N // 2]
    if kind == "zeros":
        feature_ND[:4], prob_NC[4:8] = 0, np.eye(C)[rng.integers(C, size=4)]
    return prob_NC, feature_ND


@pytest.mark.parametrize("regularization", [1e-6, 1e-2, 1.0, 1e2])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3, 1e4])
def test_bait_at_any_scale(scale, regularization):
    name = f"bait:regularization={regularization}"
    for kind in ("ordinary", "duplicates", "zeros"):
        prob_NC, feature_ND = bait_pool(kind)
        pool = prob_NC, feature_ND * scale
        told = (1 - (prob_NC**2).sum(axis=1)) * (pool[1] ** 2).sum(axis=1)
        for k, labeled in [(3, []), (5, [2, 9]), (18, [2, 9])]:
            most = told[free_of(20, labeled)].max() * min(2 * k, 18) + told[labeled].sum()
            if most > 1e9 * regularization:
                with pytest.raises(fb.InputError, match="lost in float64; pass regularization="):
                    picks(pool, name, k, labeled=labeled)
                continue
            picked = picks(pool, name, k, labeled=labeled)
            if k == 18:
                assert sorted(picked) == free_of(20, labeled)
                continue
            expected = square_root_bait(*pool, k, labeled, regularization)
            if kind == "duplicates":
                assert len(set(picked)) == k
                picked, expected = [sorted(i % 10 for i in rows) for rows in (picked, expected)]
            assert picked == expected, (kind, k)


def test_bait_says_which_regularization_would_do():
    prob_NC, feature_ND = bait_pool("ordinary")
    with pytest.raises(fb.InputError, match="lost in float64; pass regularization=") as error:
        picks((prob_NC, feature_ND * 1e6), "bait", 3)
    enough = str(error.value).split("regularization=")[1].split()[0]
    assert len(picks((prob_NC, feature_ND * 1e6), f"bait:regularization={enough}", 3)) == 3


def test_bait_where_float32_is_given_up(monkeypatch):
    """The picks do not depend on what the screen makes of them, nor on when all is made anew."""
    pool = bait_pool("ordinary", N=60, C=4, D=6)
    twins = tuple(np.concatenate([part, part]) for part in pool)
    for scale in (1.0, 20.0):
        for prob_NC, feature_ND in (pool, twins):
            monkeypatch.undo()
            scaled = prob_NC, feature_ND * scale
            expected = picks(scaled, "bait", 9, labeled=[7])
            for constant, value in [
                ("_FLOAT32", (0.0, 0.0)),
                ("_SETTLED", 0),
                ("_MOST_ERROR", 0.0),
                ("_ROUNDING", 2000),
                ("_ROUNDING", 0.01),
                ("_FADED", {torch.float32: 1.0, torch.float64: 0.5}),
            ]:
                monkeypatch.undo()
                monkeypatch.setattr(bait_module, constant, value)
                assert picks(scaled, "bait", 9, labeled=[7]) == expected, constant
    assert all(i < 60 or i - 60 in [7, *expected] for i in expected), "of twins the lower first"


def test_bait_of_what_tells_nothing_is_the_first():
    pool = np.tile([[1.0, 0.0]], (40, 1)), np.ones((40, 3))
    assert picks(pool, "bait", 5, labeled=[1]) == [0, 2, 3, 4, 5]


def test_bait_settles_in_float64_what_float32_cannot_tell(monkeypatch):
    """Gains that differ by less than float32 resolves."""
    prob_NC, feature_ND = arrays(30)
    nudge = 1 + 1e-9 * np.random.default_rng(0).permutation(8)[:, None]
    pool = np.tile(prob_NC[:1], (8, 1)), feature_ND[:1] * nudge
    pool = np.concatenate([prob_NC, pool[0]]), np.concatenate([feature_ND, pool[1] * 3])
    for k in (1, 4):
        assert picks(pool, "bait", k) == literal_bait(*pool, k, [])
    monkeypatch.setattr(bait_module, "_TILE_ROWS", 7)
    monkeypatch.setattr(bait_module, "_BLOCK", 3)
    assert picks(pool, "bait", 4) == literal_bait(*pool, 4, [])


# --- coverage


def literal_cover(point_ND, known_LD, weight_N, kernel, k):
    """Every degree of every pair, and greedy on the sums."""
    degree_NN = kernel(np.linalg.norm(point_ND[:, None] - point_ND[None], axis=2))
    covered_N = np.zeros(len(point_ND))
    for known_D in known_LD:
        covered_N = np.maximum(covered_N, kernel(np.linalg.norm(point_ND - known_D, axis=1)))
    chosen = []
    for _ in range(k):
        gain_N = (np.maximum(degree_NN - covered_N, 0) * weight_N).sum(axis=1)
        gain_N[chosen] = -1
        if gain_N.max() <= 1e-9:
            break
        chosen.append(int(gain_N.argmax()))
        covered_N = np.maximum(covered_N, degree_NN[chosen[-1]])
    return chosen


@pytest.mark.parametrize("labeled", [[], [3, 40, 41]])
def test_probcover_is_greedy_cover(labeled):
    prob_NC, feature_ND = arrays(150, D=3)
    free = free_of(150, labeled)
    points = unit(feature_ND)
    for delta in (0.2, 0.5):
        chosen = literal_cover(
            points[free], points[labeled], 1.0, lambda d, r=delta: (d <= r) * 1.0, 60
        )
        picked = picks((prob_NC, feature_ND), f"probcover:delta={delta}", 60, labeled=labeled)
        assert picked[: len(chosen)] == [free[i] for i in chosen]
        assert len(chosen) > 8


def test_probcover_finds_a_pure_radius():
    """Three bunches: whole balls of one bunch, none of two."""
    rng = np.random.default_rng(0)
    centre_CD = np.eye(3)
    bunch_N = rng.permutation(np.repeat(range(3), [60, 30, 20]))
    feature_ND = centre_CD[bunch_N] + 0.01 * rng.normal(size=(110, 3))
    prob_NC = np.full((110, 3), 1 / 3)
    picked = picks((prob_NC, feature_ND), "probcover", 3)
    assert bunch_N[picked].tolist() == [0, 1, 2]


@pytest.mark.parametrize("labeled", [[], [3, 40, 41, 99]])
def test_uncertainty_herding_is_greedy_weighted_cover(labeled):
    prob_NC, feature_ND = arrays(150, D=3)
    free = free_of(150, labeled)
    points = unit(feature_ND)
    near = [math.dist(points[i], points[j]) for i, j in itertools.combinations(labeled, 2)]
    for name, sigma in [("", min(near, default=1.0)), (":sigma=0.3", 0.3)]:
        chosen = literal_cover(
            points[free],
            points[labeled],
            1 - margins(prob_NC[free]),
            lambda d, s=sigma: np.exp(-(d**2) / s**2),
            30,
        )
        picked = picks((prob_NC, feature_ND), f"uncertainty_herding{name}", 30, labeled=labeled)
        assert picked == [free[i] for i in chosen]


def assert_lowest_of_equals(picked, copy_N):
    """Of the rows that are copies of one, each pick is the lowest that was left."""
    for j, row in enumerate(picked):
        assert row == min(set(np.flatnonzero(copy_N == copy_N[row])) - set(picked[:j]))


@pytest.mark.parametrize("seed", [1, 3])
def test_uncertainty_herding_takes_the_lowest_of_equal_rows(seed):
    # So many that float32 sums of equal rows differ.
    prob_NC, feature_ND = arrays(800, D=7, seed=seed)
    copy_N = np.random.default_rng(seed).permutation(np.repeat(np.arange(800), 5))
    pool = (prob_NC[copy_N], feature_ND[copy_N].astype(np.float32))
    assert_lowest_of_equals(picks(pool, "uncertainty_herding", 13), copy_N)


# --- clusters


def test_typiclust_is_the_literal_one():
    prob_NC, feature_ND = arrays(200, D=3)
    labeled, k = [5, 6, 7, 150], 9
    free = free_of(200, labeled)
    points = unit(np.concatenate([feature_ND[free], feature_ND[labeled]]))
    seed = int(torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(4)))
    cluster = KMeans(len(labeled) + k, n_init=1, random_state=seed).fit_predict(points)
    sizes, known = Counter(cluster.tolist()), Counter(cluster[len(free) :].tolist())
    order = sorted((c for c in sizes if sizes[c] >= 5), key=lambda c: (known[c], -sizes[c], c))
    expected = []
    for c in order[:k]:
        members = [i for i in range(len(free)) if cluster[i] == c]
        K = min(20, len(members) // 2)
        typicality = {
            i: -np.mean(sorted(math.dist(points[i], points[j]) for j in members if j != i)[:K])
            for i in members
        }
        expected.append(free[max(members, key=lambda i: typicality[i])])
    assert picks((prob_NC, feature_ND), "typiclust", k, seed=4, labeled=labeled) == expected


@pytest.mark.parametrize(("k", "size"), [(6, 20), (15, 20), (6, 10), (8, 3)])
def test_cluster_margin_is_the_literal_round_robin(k, size):
    prob_NC, feature_ND = arrays(120, D=3)
    labeled = [3, 8]
    free = np.array(free_of(120, labeled))
    M = min(10 * k, len(free))
    candidates = free[np.argsort(margins(prob_NC[free]), kind="stable")[:M]]
    candidates = candidates[torch.randperm(M, generator=torch.Generator().manual_seed(2)).numpy()]
    cluster = AgglomerativeClustering(math.ceil(M / size), linkage="average").fit_predict(
        feature_ND[candidates]
    )
    queues = {}
    for row, c in zip(candidates.tolist(), cluster, strict=True):
        queues.setdefault(c, []).append(row)
    ordered = sorted(queues.values(), key=len)  # stable: of equal size the first met
    expected = []
    while len(expected) < k:
        for queue in ordered:
            if queue and len(expected) < k:
                expected.append(queue.pop(0))
    name = "cluster_margin" if size == 20 else f"cluster_margin:size={size}"
    assert picks((prob_NC, feature_ND), name, k, seed=2, labeled=labeled) == expected


def test_cluster_margin_goes_round_the_clusters():
    """Four bunches of candidates and one row far away: it is not the rule that rows are alone."""
    rng = np.random.default_rng(0)
    bunch_N = np.repeat(range(5), [25, 25, 25, 24, 1])
    feature_ND = 10 * np.eye(5)[bunch_N] + 0.1 * rng.normal(size=(100, 5))
    prob_NC = np.full((100, 2), 0.5)
    picked = picks((prob_NC, feature_ND), "cluster_margin", 10)
    assert bunch_N[picked].tolist() == [4, 3, *bunch_N[picked[2:5]], 3, *bunch_N[picked[6:9]], 3]
    assert Counter(bunch_N[picked].tolist()) == {4: 1, 3: 3, 0: 2, 1: 2, 2: 2}


# --- all of them


class Given(nn.Module):
    """Logits of rows as they are, by way of a linear layer, with a dropout before it."""

    def __init__(self, C=3, D=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.dropout = nn.Dropout(0.3)
        self.linear = nn.Linear(D, C).double()
        for parameter in self.linear.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x_BD):
        return self.linear(self.dropout(x_BD))


POOLS = {
    "ordinary": lambda: torch.randn(40, 4, generator=torch.Generator().manual_seed(1)),
    "duplicates": lambda: torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).repeat(
        10, 1
    ),
    "all equal": lambda: torch.ones(40, 4),
    "all zero": lambda: torch.zeros(40, 4),
    "one class": lambda: torch.rand(40, 4, generator=torch.Generator().manual_seed(1)) * 1e6,
}


def query(name, x, k, **options):
    options = {"labeled": [0, 39], "labels": np.array([0, 1]), "memory": {}, "seed": 0} | options
    return fb.select(Given(), x.double(), k, strategy=name, **options).tolist()


@pytest.mark.filterwarnings("ignore::fastbadge.MassExhaustedWarning")
@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("name", strategy_names())
def test_every_strategy_on_every_pool(name, kind):
    x = POOLS[kind]()
    if kind == "one class":
        x[:, 1:] = 0
    for k in (1, 7, 38):
        picked = query(name, x, k)
        assert len(set(picked)) == k and not set(picked) & {0, 39}
        assert picked == query(name, x, k), "the same seed, the same picks"
    assert sorted(query(name, x, 40, labeled=None, labels=None)) == list(range(40))
    assert query(name, x[:1], 1, labeled=None, labels=None) == [0]


@pytest.mark.parametrize("name", strategy_names())
def test_on_disk_as_in_memory(name, tmp_path):
    if name == "random":
        return
    x = POOLS["ordinary"]()
    expected = query(name, x, 9)
    assert query(name, x, 9, factors_dir=tmp_path, batch_size=7) == expected
    assert not list(tmp_path.iterdir())
    if name in SAMPLED:
        return
    model = Given()
    prob_NC = model.eval()(x.double()).detach().softmax(dim=1).numpy()
    np.save(tmp_path / "p.npy", prob_NC)
    np.save(tmp_path / "h.npy", x.double().numpy())
    mapped = [np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in "ph"]
    for given in ((prob_NC, x.double().numpy()), mapped):
        picked = picks(given, name, 9, labeled=[39, 0], labels=np.array([1, 0]), memory={})
        assert picked == expected


@pytest.mark.parametrize("name", strategy_names())
def test_what_a_strategy_does_not_ask_for_is_not_there(name):
    needs = get_strategy(name).needs
    seen = []
    registered = get_strategy(name)

    def look(view, k, *, generator):
        seen.append(view)
        return registered.fn(view, k, generator=generator)

    from fastbadge.strategies.registry import _TABLE, Registered

    _TABLE["looking"] = Registered("looking", look, needs, "")
    try:
        query("looking", POOLS["ordinary"](), 3)
    finally:
        del _TABLE["looking"]
    view = seen[0]
    assert (view.probabilities is not None) == ("probabilities" in needs)
    assert (view.embedding is not None) == ("gradients" in needs)
    assert (view.features is not None) == ("features" in needs)
    assert (view.samples is not None) == ("samples" in needs)
    assert (view.labeled is not None) == ("labeled" in needs)
    assert (view.memory is not None) == ("memory" in needs)
    if view.labeled is not None:
        assert view.labeled.positions.tolist() == [0, 39]
        assert view.labeled.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("power_margin:beta=0", "beta is 0.0; expected a positive number"),
        ("bald:samples=1", "samples is 1; expected at least 2"),
        ("batchbald:configurations=0", "configurations is 0; expected at least 1"),
        ("bait:regularization=0", "regularization is 0.0; expected a positive"),
        ("vessal:regularization=0", "regularization is 0.0; expected a positive"),
        ("vessal:regularization=inf", "regularization is inf; expected a positive"),
        ("probcover:purity=1", "purity 1.0; expected"),
        ("uncertainty_herding:sigma=-1", "sigma is -1.0; expected at least 0"),
        ("bait:regularization=inf", "regularization is inf; expected a positive"),
        ("probcover:delta=nan", "delta is nan and purity 0.95; expected"),
        ("uncertainty_herding:sigma=nan", "sigma is nan; expected at least 0"),
        ("cluster_margin:multiple=0", "multiple is 0 and size 20; expected both at least 1"),
        ("cluster_margin:size=0", "multiple is 10 and size 0; expected both at least 1"),
        ("albl:horizon=-1", "horizon is -1 and delta 0.1; expected"),
    ],
)
def test_options_that_cannot_be_used(name, message):
    with pytest.raises(fb.InputError, match=message):
        query(name, POOLS["ordinary"](), 3)


def test_the_features_have_no_column_for_the_bias():
    x = POOLS["ordinary"]()
    for name in ("coreset", "bait"):
        assert query(name, x, 9, include_bias=True) == query(name, x, 9)


class Asked(torch.utils.data.Dataset):
    """Keeps a list of the positions it was asked for."""

    def __init__(self):
        self.x, self.positions = POOLS["ordinary"]().double(), []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, position):
        self.positions.append(position)
        return self.x[position]


def test_labelled_examples_are_run_where_they_are_asked_for_and_only_there():
    for name in strategy_names():
        pool = Asked()
        fb.select(
            Given(), pool, 3, strategy=name, labeled=[5, 2], labels=np.array([0, 1]), memory={}
        )
        needs = get_strategy(name).needs
        asked = set(range(40)) if "labeled" in needs else set(range(40)) - {2, 5}
        assert set(pool.positions) == (asked if needs else set())
        assert len(pool.positions) == len(asked) * bool(needs) * (20 if "samples" in needs else 1)


def test_an_interrupted_run_of_albl_ends_as_an_undisturbed_one(tmp_path):
    config = Config(strategies=("albl",), trials=1, rounds=5, max_epochs=5, hidden=(8,))
    whole = run_experiment(config, tmp_path / "whole", jobs=1).rows
    assert {query["arm"] for query in json.loads(whole[-1].memory)["queries"]} <= {0, 1}
    assert {json.loads(row.memory)["horizon"] for row in whole} == {5}
    assert len(json.loads(whole[-2].memory)["queries"]) == 5
    for done in (1, 3):
        part = tmp_path / f"part{done}"
        run_experiment(config, part, jobs=1)
        with closing(sqlite3.connect(part / "run.sqlite")) as connection, connection:
            connection.execute("DELETE FROM round WHERE round >= ?", (done,))
        resumed = run_experiment(config, part, jobs=1).rows
        assert [(r.picks, r.accuracy, r.memory) for r in resumed] == [
            (r.picks, r.accuracy, r.memory) for r in whole
        ]

"""query(): any fitted classifier with predict_proba, held against autograd on the same model."""

from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC
from torch import nn

import fastbadge as fb
from fastbadge.pools import DenseWhenRead
from fastbadge.sklearn import query
from fastbadge.strategies import registry

X, Y = load_digits(return_X_y=True)
X = X[:400] / 16
Y = Y[:400]
TWO = Y % 2
TRAIN = np.arange(0, 400, 10)
LAYERS = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}
WORDS = np.array(["red", "green", "blue", "cat", "dog", "runs", "sleeps", "eats", "old", "young"])


@pytest.fixture
def seen(monkeypatch):
    """What query(strategy="spy") shows a strategy."""
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    views = []

    @fb.register("spy", needs=("probabilities", "gradients"))
    def spy(view, k, *, generator):
        """Chooses the first k."""
        views.append(view)
        return torch.arange(k)

    return views


def linear(weight_CD, bias_C):
    layer = nn.Linear(weight_CD.shape[1], weight_CD.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight_CD))
        layer.bias.copy_(torch.from_numpy(bias_C))
    return layer


def as_torch(clf):
    """The same model in torch; one logistic output as the second of two logits, the first 0."""
    weights = clf.coefs_ if isinstance(clf, MLPClassifier) else [clf.coef_.T]
    biases = clf.intercepts_ if isinstance(clf, MLPClassifier) else [clf.intercept_]
    layers = []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        layers += [linear(weight.T, bias), LAYERS[clf.activation]()]
    weight_CD, bias_C = weights[-1].T, biases[-1]
    if len(weight_CD) == 1:
        weight_CD, bias_C = np.vstack([0 * weight_CD, weight_CD]), np.append(0 * bias_C, bias_C)
    return nn.Sequential(*layers, linear(weight_CD, bias_C))


def autograd_gradients(model, x, task="multiclass"):
    """d loss(own prediction) / d weight of the last layer, a row an example."""
    rows = []
    for row in torch.from_numpy(x):
        logit_C = model(row)
        if task == "multiclass":
            loss = nn.functional.cross_entropy(logit_C, logit_C.argmax())
        else:
            target_C = (logit_C > 0).double()
            loss = nn.functional.binary_cross_entropy_with_logits(
                logit_C, target_C, reduction="sum"
            )
        rows.append(torch.autograd.grad(loss, model[-1].weight)[0].flatten())
    return torch.stack(rows).numpy()


def mlp(activation="relu", hidden=(12, 8)):
    return MLPClassifier(hidden, activation=activation, solver="lbfgs", max_iter=8, random_state=0)


def fit(clf, x, y):
    """Fit in eight steps, which is all that a test needs."""
    with pytest.warns(match="converge"):
        return clf.fit(x, y)


def texts(N):
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, 5)) for _ in range(N)]


@pytest.mark.parametrize("y", [Y, TWO], ids=["ten classes", "two"])
def test_logistic_regression_is_badge_itself(seen, y):
    clf = LogisticRegression().fit(X[TRAIN], y[TRAIN])
    query(clf, X[:50], 1, strategy="spy")
    expected = autograd_gradients(as_torch(clf), X[:50])
    np.testing.assert_allclose(seen[0].embedding.dense(), expected, atol=1e-12)
    picked = query(clf, X, 30, seed=4, labeled=TRAIN)
    assert picked.tolist() == fb.select(as_torch(clf), X, 30, seed=4, labeled=TRAIN).tolist()


@pytest.mark.parametrize("activation", LAYERS)
@pytest.mark.parametrize("y", [Y, TWO], ids=["ten classes", "two"])
def test_the_features_of_an_mlp_are_its_last_hidden_layer(seen, activation, y):
    clf = fit(mlp(activation), X[TRAIN], y[TRAIN])
    query(clf, X[:50], 1, strategy="spy")
    expected = autograd_gradients(as_torch(clf), X[:50])
    np.testing.assert_allclose(seen[0].embedding.dense(), expected, atol=1e-12)


def test_an_mlp_without_hidden_layers_is_linear(seen):
    clf = fit(mlp(hidden=()), X[TRAIN], Y[TRAIN])
    query(clf, X[:50], 1, strategy="spy")
    assert torch.equal(seen[0].embedding.feature_ND, torch.from_numpy(X[:50]))


def test_multilabel(seen):
    labels = np.stack([Y % 2, Y > 4, Y == 3], axis=1)
    clf = fit(mlp(), X[TRAIN], labels[TRAIN])
    query(clf, X[:50], 1, strategy="spy", task="multilabel")
    expected = autograd_gradients(as_torch(clf), X[:50], "multilabel")
    np.testing.assert_allclose(seen[0].embedding.dense(), expected, atol=1e-12)
    with pytest.raises(fb.InputError, match="pass task='multilabel'"):
        query(clf, X, 5)


def test_two_columns_choose_what_one_chooses():
    """p and 1 - p double every squared distance, and so change no draw."""
    clf = LogisticRegression().fit(X[TRAIN], TWO[TRAIN])
    one = fb.select_from_arrays(clf.predict_proba(X)[:, 1], X, 30, seed=1)
    assert query(clf, X, 30, seed=1).tolist() == one.tolist()


def test_include_bias_adds_a_column_of_ones(seen):
    clf = LogisticRegression().fit(X[TRAIN], Y[TRAIN])
    query(clf, X, 1, strategy="spy", include_bias=True)
    assert torch.equal(seen[0].embedding.feature_ND[:, -1], torch.ones(400, dtype=torch.float64))


def test_probabilities_are_those_of_the_classifier_in_its_order(seen):
    names = np.array(["b", "c", "a"])[load_iris().target]
    x = load_iris().data
    clf = GaussianNB().fit(x, names)
    query(clf, x, 1, strategy="spy", labeled=[0, 7])
    kept = np.setdiff1d(np.arange(150), [0, 7])
    np.testing.assert_array_equal(seen[0].probability_NC, clf.predict_proba(x)[kept])


@pytest.mark.parametrize("strategy", ["badge", "margin", "badge_proxy:candidates=60"])
def test_a_pipeline_is_its_last_step_on_what_that_sees(strategy):
    options = dict(strategy=strategy, seed=2, labeled=TRAIN)
    scaled = StandardScaler().fit(X[TRAIN]).transform
    last = LogisticRegression().fit(scaled(X[TRAIN]), TWO[TRAIN])
    expected = query(last, scaled(X), 20, **options).tolist()
    plain = make_pipeline(StandardScaler(), LogisticRegression())
    nested = make_pipeline(StandardScaler(), make_pipeline(LogisticRegression()))
    search = GridSearchCV(plain, {"logisticregression__C": [1.0]}, cv=2)
    for clf in (plain, nested, search):
        clf.fit(X[TRAIN], TWO[TRAIN])
        assert query(clf, X, 20, **options).tolist() == expected


def test_a_wrapper_is_what_it_holds():
    fixed = fit(FixedThresholdClassifier(mlp(), threshold=0.3), X[TRAIN], TWO[TRAIN])
    clf = fixed.estimator_
    wrappers = [fixed]
    if find_spec("sklearn.frozen"):  # from scikit-learn 1.6 on
        frozen = import_module("sklearn.frozen").FrozenEstimator(clf)
        tuned = TunedThresholdClassifierCV(frozen, cv="prefit", refit=False)
        wrappers += [frozen, make_pipeline(frozen), tuned.fit(X[TRAIN], TWO[TRAIN])]
    expected = query(clf, X, 20, seed=2).tolist()
    for wrapper in wrappers:
        assert query(wrapper, X, 20, seed=2).tolist() == expected
    with pytest.raises(fb.InputError, match="is not fitted"):
        query(FixedThresholdClassifier(mlp()), X, 5)


@pytest.mark.parametrize("labeled", [None, range(0, 300, 15)])
@pytest.mark.parametrize("last", [LogisticRegression(), mlp()], ids=["linear", "mlp"])
def test_sparse_features_choose_what_dense_ones_choose(last, labeled):
    text = texts(300)
    clf = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), last)
    y = np.arange(300) % 3
    clf = clf.fit(text, y) if isinstance(last, LogisticRegression) else fit(clf, text, y)
    sparse = clf[0].transform(text)
    assert scipy.sparse.issparse(sparse)
    options = dict(labeled=labeled, seed=6, include_bias=True)
    expected = query(clf[-1], sparse.toarray(), 25, **options)
    assert query(clf, text, 25, **options).tolist() == expected.tolist()
    for kind in ("csr", "csc", "coo"):
        X_kind = sparse.asformat(kind)
        assert query(clf[-1], X_kind, 25, **options).tolist() == expected.tolist()


def test_the_sparse_pool_is_never_dense_as_a_whole(monkeypatch):
    sizes, read = [], DenseWhenRead.__getitem__

    def recorded(self, rows):
        dense = read(self, rows)
        sizes.append(dense.shape)
        return dense

    monkeypatch.setattr(DenseWhenRead, "__getitem__", recorded)
    matrix = scipy.sparse.random_array((1000, 10_000), density=1e-3, format="csr", rng=0)
    prob_NC = np.random.default_rng(0).dirichlet(np.ones(3), 1000)
    picked = query(Given(prob_NC), matrix, 10, seed=0)
    assert max(rows for rows, _ in sizes) < 900 and {columns for _, columns in sizes} == {10_000}
    assert picked.tolist() == query(Given(prob_NC), matrix.toarray(), 10, seed=0).tolist()


class Given:
    """A classifier of no library."""

    def __init__(self, prob_NC):
        self.prob_NC = prob_NC

    def predict_proba(self, X):
        return self.prob_NC


def test_features_can_be_given_or_made():
    text = texts(300)
    clf = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(text, np.arange(300) % 3)
    made = TruncatedSVD(4, random_state=0).fit_transform(clf[0].transform(text))
    expected = fb.select_from_arrays(clf.predict_proba(text), made, 20, seed=0).tolist()
    assert query(clf, text, 20, features=made, seed=0).tolist() == expected

    def features(pool):
        assert pool is text
        return made

    assert query(clf, text, 20, features=features, seed=0).tolist() == expected
    with pytest.raises(fb.InputError, match="probabilities has 300 rows but features has 299"):
        query(clf, text, 20, features=made[1:])


def test_data_frames():
    pd = pytest.importorskip("pandas")
    iris = load_iris()
    frame = pd.DataFrame(iris.data, columns=iris.feature_names, index=np.arange(1000, 1150))
    frame["long"] = frame["petal length (cm)"] > 4  # of mixed dtypes
    clf = make_pipeline(MinMaxScaler().set_output(transform="pandas"), LogisticRegression())
    clf.fit(frame, iris.target)
    direct = LogisticRegression(max_iter=1000).fit(frame, iris.target)
    as_array = frame.to_numpy(dtype=float)
    for model in (clf, direct):
        picked = query(model, frame, 12, seed=0)
        expected = fb.select_from_arrays(
            model.predict_proba(frame),
            clf[0].transform(frame).to_numpy(dtype=float) if model is clf else as_array,
            12,
            seed=0,
        )
        assert picked.tolist() == expected.tolist()
        assert len(frame.iloc[picked]) == 12


@pytest.mark.parametrize(
    "clf",
    [
        RandomForestClassifier(5, random_state=0),
        CalibratedClassifierCV(LinearSVC(), cv=2),
        GaussianNB(),
    ],
    ids=lambda clf: type(clf).__name__,
)
def test_other_classifiers_are_linear_models_of_their_inputs(clf):
    clf.fit(X[TRAIN], TWO[TRAIN])
    expected = fb.select_from_arrays(clf.predict_proba(X), X, 20, seed=0)
    assert query(clf, X, 20, seed=0).tolist() == expected.tolist()


def test_positions_are_an_array_and_labelled_ones_are_never_among_them():
    clf = LogisticRegression().fit(X[TRAIN], Y[TRAIN])
    mask_N = np.isin(np.arange(400), TRAIN)
    for strategy in ("badge", "entropy", "random"):
        picked = query(clf, X, 360, labeled=mask_N, strategy=strategy, seed=0)
        assert isinstance(picked, np.ndarray) and picked.dtype == np.int64
        assert sorted(picked) == np.flatnonzero(~mask_N).tolist()


def test_random_needs_no_fitted_classifier():
    expected = fb.select(nn.Linear(64, 2), X, 9, strategy="random", seed=3).tolist()
    for pool in (X, list(X), scipy.sparse.csr_array(X)):
        picked = query(LogisticRegression(), pool, 9, strategy="random", seed=3)
        assert picked.tolist() == expected


FOREST = RandomForestClassifier(2).fit(X, np.stack([Y % 2, Y % 3], axis=1))
BAYES = GaussianNB().fit(X, TWO)


@pytest.mark.parametrize(
    ("clf", "pool", "options", "message"),
    [
        (LogisticRegression(), X, {}, "LogisticRegression is not fitted; call its fit"),
        (make_pipeline(StandardScaler(), mlp()), X, {}, "is not fitted; call its fit"),
        (GridSearchCV(mlp(), {}), X, {}, "GridSearchCV is not fitted; call its fit"),
        (LinearSVC().fit(X, Y), X, {}, "LinearSVC has no predict_proba; pass .*Calibrated"),
        (FOREST, X, {}, "gives a list of 2 arrays, one an output"),
        (Given(np.ones((3, 1))), X, {"strategy": "margin"}, "gives 3 rows; X_pool has 400"),
        (Given(np.ones((2, 1))), ["a", "b"], {}, "features cannot be used: .*; pass features="),
        (BAYES, X, {"features": X[:, 0]}, "features cannot be used: Expected 2D array"),
        (BAYES, X, {"features": X * np.nan}, "features cannot be used: Input contains NaN;"),
        (BAYES, X, {"strategy": "bagde"}, "did you mean 'badge'"),
        (BAYES, X, {"labeled": [400]}, "labeled has position 400"),
        (BAYES, X, {"k": 401}, "k is 401; expected a whole number from 1 to 400"),
    ],
)
def test_errors_say_what_to_do_in_one_line(clf, pool, options, message):
    with pytest.raises(fb.InputError, match=message) as caught:
        query(clf, pool, **{"k": 2, **options})
    assert "\n" not in str(caught.value)

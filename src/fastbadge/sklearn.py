"""BADGE for fitted scikit-learn classifiers: which rows to label next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from scipy.special import expit
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array

from fastbadge.errors import InputError
from fastbadge.gradients import Task
from fastbadge.inputs import check_unmasked
from fastbadge.pools import DenseWhenRead
from fastbadge.select import Positions, select_from_arrays
from fastbadge.strategies import get_strategy

_WITH_THRESHOLD = (FixedThresholdClassifier, TunedThresholdClassifierCV)

Features: TypeAlias = "NDArray[Any] | Callable[[Any], Any]"


def query(
    clf: Any,
    X_pool: Any,
    k: int,
    *,
    features: Features | None = None,
    labeled: Positions | None = None,
    strategy: str = "badge",
    task: Task | None = None,
    include_bias: bool = False,
    seed: int | None = None,
) -> NDArray[np.int64]:
    """Which k rows of a pool to label next, from any fitted classifier with `predict_proba`.

    BADGE needs the gradient in the last layer's weights, whose inputs are the features. For
    LogisticRegression and other linear models that is X itself, and (p - e_y) x^T is exactly the
    gradient; for an MLPClassifier it is the last hidden layer. Of a Pipeline it is what the last
    step sees, of a search over parameters that of its best estimator, of a frozen estimator or a
    tuned threshold that of what it holds. Any other classifier
    (forests, neighbours) is taken as a linear model of its inputs: scale them, or pass features.

    Args:
        clf: the classifier, fitted. A skorch net holds a torch module: to it `fastbadge.select`
            does better, `select(net.module_, X_pool, k)`.
        X_pool: what `clf.predict_proba` takes, N rows: an array, a sparse matrix, a DataFrame, a
            list of texts.
        k: how many to choose.
        features: [N, D], dense or sparse, or a function that makes it of X_pool, where the
            defaults above do not serve. A sparse one is made dense a few rows at a time.
        labeled: rows already labelled (or a boolean mask over the pool), never chosen.
        strategy: "badge" or another of `fastbadge.strategy_names()`.
        task: "multilabel" where the columns of `predict_proba` are independent. Two columns are
            two classes, in the order of `classes_`.
        include_bias: count the gradient of the intercept too; the paper does not.
        seed: an integer, for the same choice every time.

    Returns:
        int64 [k]: distinct rows of X_pool in order of choice, fit for `X_pool[picked]` and
        `X_pool.iloc[picked]`.

    Raises:
        InputError: not fitted, no `predict_proba`, features that do not match or cannot be made,
            and as `fastbadge.select_from_arrays`.

    Source: Ash et al. (ICLR 2020), Algorithm 1.

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X[::10], y[::10])
    >>> query(clf, X, k=3, labeled=range(0, 150, 10), seed=0).shape
    (3,)
    """
    N = _num_rows(X_pool)
    prob_NC: NDArray[Any] = np.ones((N, 1))  # for a strategy that asks for nothing
    feature_ND: Any = None
    if needs := get_strategy(strategy).needs:
        last, X = _last_step(clf, X_pool)
        prob_NC = _probabilities(last, X, N)
        if needs & {"gradients", "features"}:
            given = features(X_pool) if callable(features) else features
            feature_ND = _features(last, X) if given is None else _as_matrix(given)
    picked_K = select_from_arrays(
        prob_NC,
        feature_ND,
        k,
        strategy=strategy,
        labeled=labeled,
        task=task,
        include_bias=include_bias,
        seed=seed,
    )
    return picked_K.numpy()


def _num_rows(X: Any) -> int:
    N: int = X.shape[0] if hasattr(X, "shape") else len(X)  # a sparse matrix has no len()
    return N


def _last_step(clf: Any, X: Any) -> tuple[Any, Any]:
    """The classifier that gives the probabilities, and what it sees of X."""
    if hasattr(clf, "best_estimator_"):
        return _last_step(clf.best_estimator_, X)
    if type(clf).__name__ == "FrozenEstimator":  # from scikit-learn 1.6 on
        return _last_step(clf.estimator, X)
    if isinstance(clf, _WITH_THRESHOLD) and hasattr(clf, "estimator_"):
        return _last_step(clf.estimator_, X)
    if isinstance(clf, Pipeline):
        try:
            return _last_step(clf[-1], clf[:-1].transform(X) if len(clf) > 1 else X)
        except NotFittedError as error:
            raise _not_fitted(clf) from error
    return clf, X


def _probabilities(clf: Any, X: Any, N: int) -> NDArray[Any]:
    name = type(clf).__name__
    if not hasattr(clf, "predict_proba"):
        raise InputError(
            f"{name} has no predict_proba; "
            "pass a classifier that has, such as CalibratedClassifierCV around it"
        )
    try:
        prob_NC = clf.predict_proba(X)
    except NotFittedError as error:
        raise _not_fitted(clf) from error
    if isinstance(prob_NC, list):
        raise InputError(
            f"{name}.predict_proba gives a list of {len(prob_NC)} arrays, one an output; "
            "query with the classifier of one output"
        )
    prob_NC = np.asarray(prob_NC)
    if len(prob_NC) != N:
        raise InputError(f"{name}.predict_proba gives {len(prob_NC)} rows; X_pool has {N}")
    return prob_NC


def _not_fitted(clf: Any) -> InputError:
    return InputError(f"{type(clf).__name__} is not fitted; call its fit(X, y) before query")


def _features(clf: Any, X: Any) -> Any:
    """What the last layer of a classifier reads: its hidden activations if it has any, else X."""
    hidden = _as_matrix(X)
    if not isinstance(clf, MLPClassifier) or len(clf.coefs_) == 1:
        return hidden
    if isinstance(hidden, DenseWhenRead):
        hidden = hidden.matrix
    activate = _ACTIVATIONS[clf.activation]
    for weight, bias in zip(clf.coefs_[:-1], clf.intercepts_[:-1], strict=True):
        hidden = activate(hidden @ weight + bias)
    return hidden


def _as_matrix(features: Any) -> Any:
    """[N, D] real numbers, all finite: an array, or what gives one when read."""
    check_unmasked(features, "features")
    try:
        matrix = check_array(features, accept_sparse="csr")
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"features cannot be used: {reason}; "
            "pass features=, numbers of shape [N, D] or a function that makes them of X_pool"
        ) from error
    return DenseWhenRead(matrix) if issparse(matrix) else matrix


_ACTIVATIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "identity": lambda x: x,
    "logistic": expit,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}

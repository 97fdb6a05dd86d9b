"""Active learning with a scikit-learn pipeline, against random choice, on real digits."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastbadge.sklearn import query

ROUNDS, LABELS_A_ROUND, TRIALS = 6, 20, 3

X, y = load_digits(return_X_y=True)  # 1,797 images of 8 x 8 pixels
X_pool, X_test, y_pool, y_test = train_test_split(X, y, test_size=500, stratify=y, random_state=0)


def learn(strategy: str, seed: int) -> list[float]:
    """Test accuracy in % after each round of labelling."""
    clf = make_pipeline(StandardScaler(), LogisticRegression())
    labeled = np.random.default_rng(seed).permutation(len(X_pool))[:LABELS_A_ROUND]
    reached = []
    for round_number in range(ROUNDS):
        clf.fit(X_pool[labeled], y_pool[labeled])
        reached.append(100 * clf.score(X_test, y_test))
        picked = query(
            clf, X_pool, LABELS_A_ROUND, labeled=labeled, strategy=strategy, seed=round_number
        )
        labeled = np.append(labeled, picked)  # here a person labels X_pool[picked]
    return reached


badge_curve = np.mean([learn("badge", seed) for seed in range(TRIALS)], axis=0)
random_curve = np.mean([learn("random", seed) for seed in range(TRIALS)], axis=0)
print(f"test accuracy in %, mean of {TRIALS} trials\n\n  labels   badge  random")
for number, (badge, random) in enumerate(zip(badge_curve, random_curve, strict=True), start=1):
    print(f"{number * LABELS_A_ROUND:8} {badge:7.1f} {random:7.1f}")

"""Active learning in a training loop of your own, against random choice, on real digits."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fastbadge as fb

ROUNDS, LABELS_A_ROUND, TRIALS = 6, 20, 3

images, digits = load_digits(return_X_y=True)  # 1,797 images of 8 x 8 pixels
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
x = torch.tensor(images, dtype=torch.float32)[order] / 16
y = torch.tensor(digits)[order]
pool_x, pool_y = x[:1297], y[:1297]  # pool_y is what a person would say if asked
test_x, test_y = x[1297:], y[1297:]


def train(labeled: list[int], seed: int) -> nn.Module:
    """Train a fresh network on the examples labelled so far."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(pool_x[labeled]), pool_y[labeled])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def accuracy(model: nn.Module) -> float:
    """Share of the test images that the model names rightly, in %."""
    with torch.no_grad():
        return 100 * float((model(test_x).argmax(dim=1) == test_y).float().mean())


def learn(strategy: str, seed: int) -> list[float]:
    """Test accuracy after each round of labelling."""
    start = torch.Generator().manual_seed(seed)
    labeled: list[int] = torch.randperm(len(pool_x), generator=start)[:LABELS_A_ROUND].tolist()
    reached = []
    for round_number in range(ROUNDS):
        model = train(labeled, seed)
        reached.append(accuracy(model))
        picked: Tensor = fb.select(
            model, pool_x, LABELS_A_ROUND, strategy=strategy, labeled=labeled, seed=round_number
        )
        labeled += picked.tolist()  # here a person looks at pool_x[picked] and labels it
    return reached


def mean(strategy: str) -> list[float]:
    """Accuracy of each round, averaged over the trials."""
    return torch.tensor([learn(strategy, seed) for seed in range(TRIALS)]).mean(dim=0).tolist()


print(f"test accuracy in %, mean of {TRIALS} trials\n\n  labels   badge  random")
curves = zip(mean("badge"), mean("random"), strict=True)
for number, (badge, random) in enumerate(curves, start=1):
    print(f"{number * LABELS_A_ROUND:8} {badge:7.1f} {random:7.1f}")

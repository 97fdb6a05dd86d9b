"""A Hugging Face dataset as pool: real digits, labelled in three rounds."""

import torch
from datasets import Dataset
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fastbadge as fb

images, digits = load_digits(return_X_y=True)
dataset = Dataset.from_dict({"image": (images / 16).tolist(), "label": digits.tolist()})
parts = dataset.train_test_split(test_size=500, seed=0)
pool, test = parts["train"], parts["test"].with_format("torch")

# fastbadge passes each column to the model as a keyword argument: leave those it takes.
inputs = pool.with_format("torch", columns=["image"])


class Classifier(nn.Module):
    """Takes what a row of the dataset holds, as the models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 64]."""
        return self.layers(image)


def train(labeled: list[int]) -> Classifier:
    """Train a fresh network on the rows labelled so far."""
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rows = pool.select(labeled).with_format("torch")
    for _ in range(10):
        for batch in DataLoader(rows, batch_size=20, shuffle=True):
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


labeled = list(range(20))
for round_number in range(3):
    model = train(labeled)
    with torch.no_grad():
        right = model(test["image"][:]).argmax(dim=1) == test["label"][:]
    print(f"{len(labeled)} labels: {100 * float(right.float().mean()):.1f} % of the test images")
    picked = fb.select(model, inputs, k=20, labeled=labeled, seed=round_number).tolist()
    print("  to label next, rows", *picked[:8], "...")
    labeled += picked  # here a person labels pool.select(picked)

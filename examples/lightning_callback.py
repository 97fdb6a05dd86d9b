"""A Lightning fit that ends with the examples to label next: real digits, three rounds."""

import logging
import warnings

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fastbadge.lightning import QueryCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")  # advice on workers, which digits need not

images, digits = load_digits(return_X_y=True)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
everything = TensorDataset(
    torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(digits)[order]
)
pool, test = Subset(everything, range(1297)), Subset(everything, range(1297, 1797))


class Classifier(pl.LightningModule):
    """Any LightningModule whose forward gives the logits will do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 64]."""
        return self.layers(image)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Loss of a batch."""
        image, label = batch
        return nn.functional.cross_entropy(self(image), label)

    def test_step(self, batch: list[Tensor], index: int) -> None:
        """Log the accuracy."""
        image, label = batch
        self.log("accuracy", (self(image).argmax(dim=1) == label).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


labeled = list(range(20))
for round_number in range(3):
    pl.seed_everything(0, verbose=False)
    callback = QueryCallback(pool, k=20, labeled=labeled, seed=round_number)
    trainer = pl.Trainer(
        max_epochs=10,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier()
    trainer.fit(model, DataLoader(Subset(pool, labeled), batch_size=20, shuffle=True))
    (result,) = trainer.test(model, DataLoader(test, batch_size=500), verbose=False)
    print(f"{len(labeled)} labels: {100 * result['accuracy']:.1f} % of the test images")
    picked = callback.picked.tolist()
    print("  to label next, positions", *picked[:8], "...")
    labeled += picked  # here a person labels them

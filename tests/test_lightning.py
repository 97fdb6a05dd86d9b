"""QueryCallback: when it queries, with what, and what it leaves alone."""

import importlib
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastbadge as fb

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from fastbadge.lightning import QueryCallback  # noqa: E402

# Lightning 2.6 with torch 2.13: its own use of torch.utils._pytree.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:.isinstance\(treespec, LeafSpec\). is:FutureWarning"
)

X = torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(dim=1)
POOL = TensorDataset(X, Y)


class Classifier(pl.LightningModule):
    def __init__(self, fails=False):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)
        )
        self.fails = fails

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, index):
        if self.fails:
            raise RuntimeError("out of luck")
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def trainer(*callbacks, epochs=2):
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def batches():
    return DataLoader(POOL, batch_size=30)


class Recorder(pl.Callback):
    """The weights when training ends, and whether each part was training, after the query."""

    def on_train_end(self, trainer, pl_module):
        self.weights = {name: p.clone() for name, p in pl_module.state_dict().items()}
        self.training = [module.training for module in pl_module.modules()]


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 4},
        {"seed": 4, "labeled": [0, 5, 9], "head": "layers.4"},
        {"strategy": "margin"},
    ],
)
def test_it_picks_what_select_does_with_the_trained_model(options):
    model = Classifier()
    callback = QueryCallback(POOL, 7, **options)
    trainer(callback).fit(model, batches())
    assert callback.picked.tolist() == fb.select(model, POOL, 7, **options).tolist()
    untrained = fb.select(Classifier(), POOL, 7, **options)
    assert callback.picked.tolist() != untrained.tolist()


def test_it_changes_nothing_of_the_fit():
    plain, queried = Recorder(), Recorder()
    trainer(plain).fit(Classifier(), batches())
    trainer(QueryCallback(X, 7), queried).fit(Classifier(), batches())
    assert queried.training == plain.training and any(queried.training)
    for name, weight in plain.weights.items():
        assert torch.equal(weight, queried.weights[name]), name


def test_the_model_is_still_where_it_trained(monkeypatch):
    """Lightning brings it to the CPU, by .cpu(), before on_fit_end."""
    order = []
    monkeypatch.setattr(Classifier, "cpu", lambda self: order.append("cpu") or self)
    monkeypatch.setattr("fastbadge.lightning.select", lambda *a, **b: order.append("select"))
    trainer(QueryCallback(POOL, 7), epochs=1).fit(Classifier(), batches())
    assert order[0] == "select" and "cpu" in order


def test_a_fit_that_fails_picks_nothing():
    callback = QueryCallback(POOL, 7, seed=0)
    trainer(callback, epochs=1).fit(Classifier(), batches())
    assert callback.picked is not None
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(callback, epochs=1).fit(Classifier(fails=True), batches())
    assert callback.picked is None


def test_without_lightning_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)  # what makes an import fail
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "fastbadge.lightning")
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("fastbadge.lightning")
    assert str(caught.value) == (
        "fastbadge.lightning needs Lightning; pip install 'fastbadge[lightning]'"
    )

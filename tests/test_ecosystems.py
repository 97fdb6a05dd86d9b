"""Models and batches of other libraries, built for real with random weights; nothing downloaded.

In one file, so that their imports, which take seconds, are shared. timm has a folder and a process
of its own: it needs torchvision, whose wheel does not load beside a CPU build of torch and then
breaks every library that looks for it.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fastbadge as fb
from oracles import assert_gradients, images, plain

TIMM = Path(sys.prefix) / "timm"  # where the Makefile puts it

SENTENCES = [
    "the film was good",
    "the film was bad",
    "a good good film",
    "bad",
    "was the film a good film",
    "a bad film was the film",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "film", "was", "good", "bad"]
SIZES = {"vocab_size": len(WORDS), "num_labels": 3, "pad_token_id": 0}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 20}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20}


@pytest.fixture(scope="module")
def tokenizer():
    """A real fast tokenizer over six words."""
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})


def classifier(kind, **changes):
    import transformers

    torch.manual_seed(0)
    sizes = {"DistilBert": DISTIL, "GPT2": GPT}.get(kind, SMALL)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **sizes | changes)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


def head_of(kind, model):
    if kind == "Roberta":
        return model.classifier.out_proj
    return model.score if kind == "GPT2" else model.classifier


class Reviews(torch.utils.data.Dataset):
    """What people's datasets give: tokens, with a label, an id and the text."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __len__(self):
        return len(SENTENCES)

    def __getitem__(self, i):
        encoded = self.tokenizer(
            SENTENCES[i], padding="max_length", max_length=10, return_tensors="pt"
        )
        row = {name: column[0] for name, column in encoded.items()}
        return row | {"labels": -1, "id": i, "text": SENTENCES[i]}


def pools_of(tokenizer):
    from transformers import DataCollatorWithPadding

    rows = [tokenizer(sentence) for sentence in SENTENCES]
    return {
        "encoding": tokenizer(SENTENCES, padding=True, return_tensors="pt"),
        "dataset with labels and text": Reviews(tokenizer),
        "collator": DataLoader(rows, batch_size=4, collate_fn=DataCollatorWithPadding(tokenizer)),
        "pairs": DataLoader([(row, 0) for row in Reviews(tokenizer)], batch_size=4),
        "text": DataLoader(
            SENTENCES,
            batch_size=4,
            collate_fn=lambda texts: tokenizer(texts, padding=True, return_tensors="pt"),
        ),
    }


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert", "GPT2"])
def test_sequence_classifiers(kind, tokenizer):
    model = classifier(kind)
    head = head_of(kind, model)
    examples = [tokenizer(sentence, return_tensors="pt") for sentence in SENTENCES]
    if kind == "DistilBert":
        examples = [{n: t for n, t in row.items() if n != "token_type_ids"} for row in examples]

    def logits_of(model, example):
        return model(**example).logits

    for pool in pools_of(tokenizer).values():
        assert_gradients(model, pool, head.weight, logits_of, examples=examples, batch_size=4)
    assert model.training
    fb.select(model, pool, 3, strategy="margin")


def test_tuples_with_a_loss_and_multi_label(tokenizer):
    pool = Reviews(tokenizer)
    model = classifier("Bert", return_dict=False)
    wanted = classifier("Bert")
    picked = fb.select(wanted, pool, 4, seed=0)
    assert fb.select(model, pool, 4, seed=0).equal(picked)

    def with_loss(model, batch):
        loss, logits = model(input_ids=batch["input_ids"], labels=0 * batch["labels"])
        return loss, logits

    def without(model, batch):
        return model(input_ids=batch["input_ids"])

    expected = fb.select(model, pool, 4, seed=0, forward=without)
    assert fb.select(model, pool, 4, seed=0, forward=with_loss).equal(expected)
    several = classifier("Bert", problem_type="multi_label_classification")
    by_task = fb.compute_gradient_embedding(wanted, pool, task="multilabel")
    assert fb.compute_gradient_embedding(several, pool).error_NC.equal(by_task.error_NC)
    with pytest.raises(fb.InputError, match="problem_type is regression; pass task="):
        fb.select(classifier("Bert", problem_type="regression"), pool, 2)


def test_a_token_classifier(tokenizer):
    from transformers import BertConfig, BertForTokenClassification

    model = BertForTokenClassification(BertConfig(**SIZES, **SMALL))
    with pytest.raises(fb.InputError, match=r"shape \(6, 10, 3\) .*tokens or pixels pass forward="):
        fb.select(model, Reviews(tokenizer), 2)


def test_an_unpadded_encoding(tokenizer):
    with pytest.raises(fb.InputError, match=r"a list in 'input_ids'.*padding=True"):
        fb.select(classifier("Bert"), tokenizer(SENTENCES), 2)


def test_a_lightning_module():
    import lightning.pytorch as lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            x, y = batch
            return nn.functional.cross_entropy(self(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = Module()
    data = [(image, i % 3) for i, image in enumerate(images())]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.warns(Warning):  # few workers
        trainer.fit(module, DataLoader(data, batch_size=6))
    module.train()
    assert_gradients(module, data, module.net[3].weight, plain, examples=list(images().split(1)))
    assert module.training


def test_the_module_of_a_skorch_net():
    import skorch

    net = skorch.NeuralNetClassifier(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        criterion=nn.CrossEntropyLoss,
        max_epochs=1,
        verbose=0,
        train_split=None,
    )
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    net.fit(x.numpy(), (x[:, 0] > 0).long().numpy())
    head = net.module_[2]
    assert_gradients(net.module_, x.numpy(), head.weight, plain, examples=list(x.split(1)))
    with pytest.raises(fb.InputError, match=r"NeuralNetClassifier; expected a torch\.nn\.Module"):
        fb.select(net, x, 2)


@pytest.mark.skipif(not TIMM.is_dir(), reason="no timm beside the environment; make test has it")
def test_a_vision_transformer_of_timm():
    path = os.pathsep.join(
        [str(TIMM), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    program = Path(__file__).with_name("timm_program.py")
    result = subprocess.run(
        [sys.executable, program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["token", "ok", "avg", "ok"]

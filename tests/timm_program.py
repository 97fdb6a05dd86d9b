"""Run by test_ecosystems.py in a process of its own, where torchvision can harm nobody else."""

import torch
from torch import nn

# What torchvision's compiled part would define, had it been built for this torch; must stay alive.
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402

from oracles import assert_gradients, images, plain  # noqa: E402

torch.manual_seed(0)
sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
for pooling in ("token", "avg"):
    model = timm.models.VisionTransformer(num_classes=5, global_pool=pooling, **sizes)
    nn.init.normal_(model.head.weight)
    assert_gradients(model, images(), model.head.weight, plain)
    print(pooling, "ok")

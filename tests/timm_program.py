"""Run by test_ecosystems.py in a process of its own, where torchvision can harm nobody else."""

import torch
from torch import nn

# What torchvision's compiled part defines beside the CUDA build of torch, which it was made for,
# and cannot beside the CPU build; must stay alive.
if torch.version.cuda is None:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm

from oracles import assert_gradients, images, plain

torch.manual_seed(0)
sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
for pooling in ("token", "avg"):
    model = timm.models.VisionTransformer(num_classes=5, global_pool=pooling, **sizes)
    nn.init.normal_(model.head.weight)
    assert_gradients(model, images(), model.head.weight, plain)
    print(pooling, "ok")

"""A whole query over the forward pass alone: what watching, factors and sampling add.

    python benchmarks/forward.py [--images N] [--runs R]

An untrained ResNet-18 for 32 x 32 images and a DataLoader; `select(model, loader, k=100)` and a
loop that runs the model over the same loader in eval mode, in turn, each pair in both orders.
Prints and saves the medians, and the median of the ratios pair by pair. Where torch can use a GPU,
it is measured too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fastbadge as fb
from fastbadge.lab.environment import describe_environment
from fastbadge.lab.protocol import Config

RESULTS = Path(__file__).parent / "results"


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        hidden = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x), inplace=True)


def resnet18(classes: int = 10) -> nn.Sequential:
    """ResNet-18 with the 3x3 stem usual for 32 x 32 images: 11 million weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)]
    layers.append(nn.ReLU(inplace=True))
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def forward_alone(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]], device: str) -> None:
    """The pass that any query needs."""
    model.eval()
    with torch.no_grad():
        for x, _ in loader:
            model(x.to(device, non_blocking=True))
    if device == "cuda":
        torch.cuda.synchronize()
    model.train()


def measure(device: str, images: int, runs: int, k: int = 100) -> dict[str, float]:
    """Median seconds of both, and the median ratio of pairs that run one after the other."""
    torch.manual_seed(0)
    model = resnet18().to(device)
    data = TensorDataset(torch.randn(images, 3, 32, 32), torch.zeros(images, dtype=torch.int64))
    # Larger batches are slower here: their activations are mapped anew for every layer.
    loader = DataLoader(data, batch_size=50)
    small = DataLoader(TensorDataset(*data[:500]), batch_size=50)
    works: dict[str, Callable[[DataLoader[tuple[Tensor, ...]]], object]] = {
        "forward": lambda loader: forward_alone(model, loader, device),
        "query": lambda loader: fb.select(model, loader, k, seed=0),
    }
    for work in works.values():
        work(small)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for run in range(runs):
        # The second of a pair may find another clock rate, so each goes first in turn.
        for name in sorted(works, reverse=bool(run % 2)):
            start = perf_counter()
            works[name](loader)
            seconds[name].append(perf_counter() - start)
    ratios = [q / f for q, f in zip(seconds["query"], seconds["forward"], strict=True)]
    return {
        "images": images,
        "forward_seconds": statistics.median(seconds["forward"]),
        "query_seconds": statistics.median(seconds["query"]),
        "query_over_forward": statistics.median(ratios),
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
    }


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    figures = {}
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        title = f"ResNet-18, 32 x 32 images, k = 100, {device} (target: at most 1.10)"
        figures[title] = measure(device, options.images, options.runs)
        print(title)
        for name, value in figures[title].items():
            print(f"  {name:32} {value:10.3f}", flush=True)
    environment = describe_environment(Config(threads=torch.get_num_threads()))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "forward.json"
    path.write_text(json.dumps({"environment": environment, "figures": figures}, indent=2) + "\n")
    print(f"saved: {path}")


if __name__ == "__main__":
    main()

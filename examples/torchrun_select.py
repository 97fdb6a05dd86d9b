"""Select in every process of a torchrun job: each runs its share of the pool, all get the picks.

    torchrun --standalone --nproc-per-node 2 examples/torchrun_select.py

Trains a small network on 100 of scikit-learn's digits with DistributedDataParallel, then asks
which 20 of the others to label next. On GPUs it uses NCCL, else gloo.
"""

import os

import torch
from sklearn.datasets import load_digits
from torch import distributed as dist
from torch import nn

import fastbadge as fb


def main() -> None:
    """Train together, select together."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()

    digits = load_digits()
    image_NF = torch.tensor(digits.data / 16, dtype=torch.float32)
    label_N = torch.tensor(digits.target)
    labeled = torch.randperm(len(image_NF), generator=torch.Generator().manual_seed(0))[:100]

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    model = nn.parallel.DistributedDataParallel(network.to(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    ours = labeled[rank::size]
    for _ in range(50):
        optimizer.zero_grad()
        logit_BC = model(image_NF[ours].to(device))
        nn.functional.cross_entropy(logit_BC, label_N[ours].to(device)).backward()
        optimizer.step()

    picked = fb.select(model, image_NF, k=20, labeled=labeled, batch_size=128, seed=0)
    print(f"process {rank} of {size} picked {picked.tolist()}\n", end="", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

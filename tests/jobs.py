"""What the processes of test_distributed.py run: real jobs over gloo, started anew."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastbadge as fb
from fastbadge import kmeanspp
from fastbadge.distributed import Job
from fastbadge.pools import ArrayPool, SubsetPool, write_pool

SECONDS = 60  # no job takes half of it


def run_job(size: int, work: Callable, *arguments: object) -> list[object]:
    """What `work(*arguments)` returned in each of so many processes; None for one that died."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        processes = [
            context.Process(
                target=_run, args=(rank, size, directory, pipes[rank][1], work, arguments)
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()  # so that the end of a process is the end of its pipe
        answers: list[object] = []
        deadline = time.monotonic() + SECONDS
        try:
            for receiver, _ in pipes:
                assert receiver.poll(max(0, deadline - time.monotonic())), "a process hangs"
                try:
                    answers.append(receiver.recv())
                except EOFError:
                    answers.append(None)
        finally:
            for process in processes:
                process.kill()
                process.join()
            for receiver, _ in pipes:
                receiver.close()
    return answers


def _run(rank, size, directory, sender, work, arguments) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=30),
    )
    sender.send(work(*arguments))


def raised(work: Callable, *arguments: object, **options: object) -> str:
    """Kind and words of what it raises."""
    try:
        work(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def mlp() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model


def selections(digits: np.ndarray, folder: Path) -> dict[str, list[int]]:
    """Picks of `select` in many settings: the same in every process and in a process alone."""
    x = torch.from_numpy(digits)
    model, picks = mlp(), {}
    settings = {
        "badge": {},
        "labeled": {"labeled": range(0, 1797, 7)},
        "bias": {"include_bias": True},
        "odd batches": {"batch_size": 37},
        "one batch": {"batch_size": 5000},
        "more than a shard": {"k": 1500, "batch_size": 100},
        "on disk": {"factors_dir": folder, "batch_size": 256},
        "random": {"strategy": "random"},
        "margin": {"strategy": "margin"},
        "entropy": {"strategy": "entropy", "labeled": [0, 5]},
        "least_confidence": {"strategy": "least_confidence", "k": 1700, "batch_size": 100},
        "margin of one batch": {"strategy": "margin", "batch_size": 5000},
        "entropy of one batch": {"strategy": "entropy", "batch_size": 5000},
        "least_confidence of one batch": {"strategy": "least_confidence", "batch_size": 5000},
        "generator": {"generator": torch.Generator().manual_seed(5), "seed": None},
    }
    for name, options in settings.items():
        options = {"k": 40, "seed": 3} | options
        picks[name] = fb.select(model, x, **options).tolist()
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=64)
    picks["loader"] = fb.select(model, loader, 40, seed=3).tolist()
    picks["two examples"] = fb.select(model, x[:2], 2, batch_size=1, seed=3).tolist()
    picks["one example"] = fb.select(model, x[:1], 1, seed=3).tolist()
    repeated = x[:3].repeat(20, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for strategy in ("badge", "margin"):  # all mass gone, and ties across shards
            picks[f"repeated, {strategy}"] = fb.select(
                model, repeated, 30, strategy=strategy, batch_size=7, seed=3
            ).tolist()
    picks["warnings"] = [issubclass(w.category, fb.MassExhaustedWarning) for w in caught]
    return picks


def same_in_a_ddp_model(digits: np.ndarray) -> bool:
    """Its forward pass sends buffers, also in eval mode, and shards take 2 and 1 batches."""
    model = nn.parallel.DistributedDataParallel(mlp())
    x = torch.from_numpy(digits[:300])
    flags = model.training, model.require_forward_param_sync
    picked = fb.select(model, x, 20, head="module.3", batch_size=100, seed=1)
    assert (model.training, model.require_forward_param_sync) == flags
    model(x[:4]).sum().backward()  # still speaks when it trains
    return torch.equal(picked, fb.select(mlp(), x, 20, batch_size=100, seed=1, group=False))


def after_uneven_training(digits: np.ndarray) -> dict[str, object]:
    """Batch normalisation has seen other data in each process: the picks are the first one's."""
    x, rank, size = torch.from_numpy(digits[:300]), dist.get_rank(), dist.get_world_size()
    model = nn.parallel.DistributedDataParallel(mlp())
    model(x[rank::size] * (1 + rank)).sum().backward()
    own = [buffer.clone() for buffer in model.buffers()]
    ids = [id(buffer) for buffer in model.buffers()]
    said: dict[str, object] = {"mean": float(own[0].mean())}
    for name, passed in {"wrapped": model, "inside": model.module}.items():
        said[name] = fb.select(passed, x, 20, batch_size=100, seed=1).tolist()
    said["alone"] = fb.select(model, x, 20, batch_size=100, seed=1, group=False).tolist()
    bad = x.clone()
    bad[250] = float("nan")
    said["raised"] = raised(fb.select, model, bad, 20, batch_size=100)
    said["put back"] = all(map(torch.equal, own, model.buffers()))
    said["the same"] = ids == [id(buffer) for buffer in model.buffers()]
    return said


def random_pools(count: int):
    """Gradients as they come and as they should not, with where the shards begin."""
    rng = np.random.default_rng(0)
    for i in range(count):
        N, C, D = int(rng.integers(1, 60)), int(rng.integers(1, 5)), int(rng.integers(1, 10))
        error_NC = rng.normal(size=(N, C)) * rng.choice([1.0, 1e-3, 1e-40], size=(N, 1))
        feature_ND = rng.normal(size=(N, D)) * rng.choice([1.0, 1e-20, 1e18], size=(N, 1))
        copied = rng.random(N) < 0.2
        error_NC[copied], feature_ND[copied] = error_NC[0], feature_ND[0]
        dtype = (torch.float32, torch.float64)[i % 2]
        emb = fb.GradientEmbedding(
            torch.from_numpy(error_NC).to(dtype), torch.from_numpy(feature_ND).to(dtype)
        )
        borders = np.sort(rng.integers(0, N + 1, size=2))
        yield emb, borders, int(rng.integers(1, N + 1))


def part_of(emb: fb.GradientEmbedding, borders: np.ndarray) -> fb.GradientEmbedding | None:
    bounds = [0, *borders[: dist.get_world_size() - 1], len(emb)]
    part = slice(bounds[dist.get_rank()], bounds[dist.get_rank() + 1])
    if part.start == part.stop:
        return None
    return fb.GradientEmbedding(*emb.factors(part))


def pools_with_other_picks(folder: Path) -> list[str]:
    """Names of sharded pools whose picks are not those of the whole in one process."""
    wrong = []
    warnings.simplefilter("ignore", fb.MassExhaustedWarning)
    for i, (emb, borders, k) in enumerate(random_pools(30)):
        first = "uniform" if i % 5 == 0 else "max_norm"
        picked = fb.kmeans_pp(fb.ShardedPool(part_of(emb, borders)), k, first=first, seed=i)
        if not picked.equal(fb.kmeans_pp(emb, k, first=first, seed=i)):
            wrong.append(f"random pool {i}")
    generator = torch.Generator().manual_seed(0)
    prob_NC = torch.randn(3000, 5, generator=generator).mul(3).softmax(dim=1)
    feature_NF = torch.randn(3000, 8, generator=generator)
    emb = fb.GradientEmbedding.from_probabilities(prob_NC, feature_NF)
    expected = fb.kmeans_pp(emb, 300, seed=0)
    borders = np.array([100, 1003])
    shard = part_of(emb, borders)
    directory = folder / f"shard{dist.get_rank()}"
    with write_pool(directory, len(shard)) as append:
        append(shard.error_NC, shard.feature_ND)
    bounds = [0, *borders[: dist.get_world_size() - 1], len(emb)]
    row_M = torch.arange(bounds[dist.get_rank()], bounds[dist.get_rank() + 1])
    kinds = {
        "memory": shard,
        "disk": fb.DiskPool.open(directory),
        "arrays": ArrayPool.of(prob_NC[row_M].numpy(), feature_NF[row_M].numpy()),
        "subset": SubsetPool(emb, row_M),
    }
    for name, pool in kinds.items():
        if not fb.kmeans_pp(fb.ShardedPool(pool), 300, seed=0).equal(expected):
            wrong.append(name)
    return wrong


class Counted(Job):
    """Counts its exchanges, and the bytes it sends."""

    exchanges = sent = 0

    def _to_all(self, ours, counts):
        Counted.exchanges += 1
        Counted.sent += ours.nbytes * (self.size - 1)
        return super()._to_all(ours, counts)


def traffic(emb: fb.GradientEmbedding, k: int) -> dict[str, object]:
    """Picks of kmeans_pp over processes, what travels meanwhile, and how many blocks are drawn."""
    pool, draws = emb, []
    if dist.is_initialized():
        pool = fb.ShardedPool(part_of(emb, np.array([1500, 2000])))
        pool.job, Counted.sent, Counted.exchanges = Counted(), 0, 0
    cost, kmeanspp._COST_OF_NUMBER = kmeanspp._COST_OF_NUMBER, 10**6  # weights are never renewed
    uniform = kmeanspp._uniform
    kmeanspp._uniform = lambda *arguments: draws.append(1) or uniform(*arguments)
    try:
        picked = fb.kmeans_pp(pool, k, seed=0).tolist()
    finally:
        kmeanspp._COST_OF_NUMBER, kmeanspp._uniform = cost, uniform
    sent, exchanges, blocks = sum(Job().gather(Counted.sent)), Counted.exchanges, len(draws) // 2
    return {"picked": picked, "sent": sent, "exchanges": exchanges, "blocks": blocks}


def traffics() -> dict[str, dict[str, object]]:
    """Of a pool where hundreds of proposals are rejected for a pick; of one where few are."""
    generator = torch.Generator().manual_seed(0)
    error_NC = torch.randn(20, 5, generator=generator)[torch.arange(4000) % 20]
    feature_ND = torch.randn(20, 8, generator=generator)[torch.arange(4000) % 20]
    feature_ND += 0.1 * torch.randn(4000, 8, generator=generator)
    rejected = fb.GradientEmbedding(error_NC, feature_ND)
    factors = (torch.randn(4000, n, generator=generator) for n in (5, 64))
    accepted = fb.GradientEmbedding(*map(nn.functional.normalize, factors))
    return {"rejected": traffic(rejected, 100), "accepted": traffic(accepted, 200)}


class Failing(nn.Module):
    """Raises, hangs or dies in its forward pass, in one process."""

    def __init__(self, how: Callable[[], None], rank: int):
        super().__init__()
        self.model, self.how, self.rank = mlp(), how, rank

    def forward(self, x):
        if dist.get_rank() == self.rank:
            self.how()
        return self.model(x)


def out_of_memory() -> None:
    raise RuntimeError("no memory\nfor this")


class BrokenDisk:
    """A pool whose rows can no longer be read once sampling has begun."""

    def __init__(self, pool):
        self.pool = pool
        self.num_classes, self.num_features = pool.num_classes, pool.num_features
        self.device = pool.device

    def __len__(self):
        return len(self.pool)

    def factors(self, index):
        if dist.get_rank() == 1 and not isinstance(index, slice) and len(index) > 1:
            raise OSError("the disk is gone")
        return self.pool.factors(index)


def errors(digits: np.ndarray) -> dict[str, str]:
    """What is raised when processes disagree or one fails; the job goes on after each."""
    x, rank, model = torch.from_numpy(digits), dist.get_rank(), mlp()
    said = {}

    def attempt(name: str, model: nn.Module = model, x: torch.Tensor = x, **options) -> None:
        said[name] = raised(
            fb.select, model, x, **({"k": 5, "seed": 0, "batch_size": 100} | options)
        )

    attempt("k", k=5 + rank)
    attempt("bad k", k=5 * rank)
    attempt("seed", seed=rank)
    attempt("pool", x=x[: 1000 - rank])
    attempt("labeled", labeled=[rank])
    attempt("strategy", strategy=("badge", "margin")[rank % 2])
    attempt("unsplittable", strategy="badge_subset")
    attempt("raises", model=Failing(out_of_memory, rank=1))
    bad = x.clone()
    bad[1700] = float("nan")  # in the last shard
    attempt("nan", x=bad, labeled=[0])
    attempt("two models", model=nn.Linear(64, 10 + rank))
    other = mlp()
    with torch.no_grad():
        other[0].weight[3, 5] += 0.001 * rank
    attempt("weights", model=other)
    loaders = [DataLoader(TensorDataset(x), batch_size=rows) for rows in (64, 100)]
    attempt("loaders", x=loaders[rank % 2])
    attempt("tensor or loader", x=(x, loaders[0])[rank % 2])
    attempt("numbers of NumPy", k=(5, np.int64(5))[rank % 2], seed=(0, np.int64(0))[rank % 2])
    attempt("no module", model=(model, 5)[rank % 2])
    attempt("head", head=(None, "3")[rank % 2])
    attempt("amp", amp=(None, "bf16")[rank % 2])
    attempt("head by module", head=model[3])
    widths = fb.GradientEmbedding(torch.rand(50, 3), torch.rand(50, 3 + rank))
    said["widths"] = raised(lambda: fb.kmeans_pp(fb.ShardedPool(widths), 5, seed=0))
    emb = fb.GradientEmbedding(torch.rand(500, 3), torch.rand(500, 3))
    said["disk"] = raised(lambda: fb.kmeans_pp(fb.ShardedPool(BrokenDisk(emb)), 50, seed=0))
    said["no rows"] = raised(fb.ShardedPool, None)
    said["sizes"] = raised(fb.ShardedPool, emb, sizes=[500, 400])
    attempt("nothing")
    return said


def two_processes(digits: np.ndarray, folder: Path) -> dict[str, object]:
    x = torch.from_numpy(digits)
    return {
        "selections": selections(digits, folder),
        "ddp": same_in_a_ddp_model(digits),
        "uneven": after_uneven_training(digits),
        "pools": pools_with_other_picks(folder),
        "traffic": traffics(),
        "errors": errors(digits),
        "unseeded": [fb.select(mlp(), x, 10).tolist() for _ in range(2)],
        "spread": spread_model(x),
    }


def spread_model(x: torch.Tensor) -> list[str]:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    model = fully_shard(mlp(), mesh=mesh)
    alone = fb.select(model, x, 10, seed=0, group=False)
    assert alone.equal(fb.select(mlp(), x, 10, seed=0, group=False))
    layers = {"0": ColwiseParallel(), "3": RowwiseParallel()}
    parallel = parallelize_module(mlp(), mesh, layers)
    return [raised(fb.select, model, x, 10), raised(fb.select, parallel, x, 10, strategy="margin")]


def three_processes(digits: np.ndarray, folder: Path) -> dict[str, object]:
    """Everything that is the same in any number of processes, then a hang, then a death."""
    x, rank = torch.from_numpy(digits), dist.get_rank()
    said: dict[str, object] = {
        "selections": selections(digits, folder),
        "ddp": same_in_a_ddp_model(digits),
        "pools": pools_with_other_picks(folder),
    }
    pair = dist.new_group([0, 1])
    said["pair"] = raised(fb.select, mlp(), x, 10, seed=0, group=pair)
    impatient = dist.new_group(timeout=timedelta(seconds=2))
    dist.barrier()
    start = time.monotonic()
    slow = Failing(lambda: time.sleep(4), rank=1)
    said["hang"] = raised(fb.select, slow, x, 5, seed=0, group=impatient)
    said["hang seconds"] = time.monotonic() - start
    dist.barrier()
    start = time.monotonic()
    dying = Failing(lambda: os.kill(os.getpid(), signal.SIGKILL), rank=2)
    said["death"] = raised(fb.select, dying, x, 5, seed=0)
    said["death seconds"] = time.monotonic() - start
    assert rank != 2
    return said

"""select(): inference, then a strategy, then positions in the pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, overload
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from fastbadge.batches import Pool, pool_size, rows_a_batch
from fastbadge.distributed import (
    Group,
    Job,
    Shard,
    Terms,
    check_whole,
    checksum,
    lent_buffers,
    silent,
)
from fastbadge.dropout import fixed_dropout
from fastbadge.errors import InputError
from fastbadge.gradients import GradientEmbedding, Task, resolve_task, sigmoid
from fastbadge.inference import Amp, Batches, Forward, collect, infer_batches, task_of
from fastbadge.inputs import ArrayLike, as_tensor, check_unmasked, is_whole
from fastbadge.kmeanspp import resolve_generator
from fastbadge.pools import (
    ArrayPool,
    DenseWhenRead,
    DiskPool,
    GradientPool,
    SubsetPool,
    write_pool,
)
from fastbadge.pools.disk import PathLike, Storage
from fastbadge.progress import wanted
from fastbadge.strategies import PoolView, Registered, get_strategy
from fastbadge.strategies.registry import Memory, Need, RowsOf

_Outputs: TypeAlias = tuple[RowsOf | None, GradientPool | None, Task]
Positions: TypeAlias = "Sequence[int] | Sequence[bool] | Tensor | NDArray[Any]"


def select(
    model: nn.Module,
    pool: Pool,
    k: int,
    *,
    strategy: str = "badge",
    labeled: Positions | None = None,
    head: str | nn.Module | None = None,
    forward: Forward | None = None,
    task: Task | None = None,
    loss: Any = None,
    include_bias: bool = False,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    amp: Amp | None = None,
    seed: int | None = None,
    generator: Generator | None = None,
    progress: bool | None = None,
    factors_dir: PathLike | None = None,
    labels: ArrayLike | None = None,
    memory: Memory | None = None,
    group: Group = None,
) -> Tensor:
    """Which k examples of the pool to label next.

    Runs the model once over the examples that are not yet labelled, in eval mode and without
    gradients, and leaves it as it was. A strategy that needs nothing of the model runs nothing;
    one that looks at the labelled examples (`coreset`, `bait`, ...) runs it over those too, and
    one that asks for Monte-Carlo dropout (`bald`, ...) once for every sample.

    Args:
        model: a classifier whose logits come from a linear layer or a 1x1 convolution, found by
            watching it.
        pool: a tensor or array with one example a row, a mapping of them (what a tokenizer
            returns), a Dataset with a length, or a DataLoader that neither shuffles nor drops.
            Labels in it are ignored.
        k: how many to choose.
        strategy: "badge" or another of `strategy_names()`.
        labeled: positions already labelled (or a boolean mask over the pool), never chosen.
        head: name or module of the layer that gives the logits, where watching cannot tell.
        forward: a function of the model and a batch that returns the logits, where the input
            cannot be guessed from the batch.
        task: "multiclass", "binary" or "multilabel"; by default what `loss` tells, else binary
            for one output and multiclass for more.
        loss: what the model is trained with, such as `nn.BCEWithLogitsLoss()`.
        include_bias: count the gradient of the head's bias too; the paper does not.
        batch_size: rows a forward pass; a DataLoader keeps its own. Halved, with a warning, as
            often as the device runs out of memory.
        device: where to run; the model is brought back afterwards. Default: where the model is.
        amp: "bf16" or "fp16" to run the model under autocast.
        seed: an integer, for the same choice every time. Uncertainty strategies draw nothing.
        generator: a CPU torch.Generator in place of a seed.
        progress: show a bar; by default on a terminal only, after two seconds.
        factors_dir: a directory on a disk with room for the gradients' factors, 4 (C + D) bytes
            an example, which then never are in memory and are removed at the end. It changes no
            pick. Logits stay in memory for strategies that need probabilities.
        labels: whole numbers, the classes of the examples in `labeled`, in the same order (of a
            mask: ascending); for strategies that learn from their queries (`albl`).
        memory: a dictionary for such strategies, empty before the first query: it is changed in
            place, can be written as JSON, and goes into the next query.
        group: the torch.distributed process group whose processes make this call together, each
            with the same arguments; each runs its share of the pool, and all get the same picks.
            By default all processes of the job where torch.distributed is initialised; False to
            work alone. The group's timeout is how long they wait for each other.

    Returns:
        LongTensor[k] on the CPU: distinct positions in `pool` in order of choice.

    Raises:
        InputError: anything above that cannot be used; the message says why and what to do.
        DistributedError: another process has failed, is gone or does not answer.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> picked = select(model, torch.randn(100, 2), k=5, labeled=[0, 1, 2], seed=0)
    >>> picked.shape, bool((picked > 2).all())
    (torch.Size([5]), True)
    """
    job = Job(group)
    with job.together() as said:
        registered = get_strategy(strategy)
        position_N, known_L = _divide(labeled, pool_size(pool))
        _check_k(k, len(position_N))
        label_L = _labels_of(known_L, labels)
        draw = resolve_generator(seed, generator)
        task = task_of(model, task, loss)
        step = rows_a_batch(pool, batch_size)
        shard = _shard(job, registered, model, len(position_N), step)
        if shard is not None:
            weights, buffers = (
                checksum(tensors) if registered.needs else ""
                for tensors in (model.parameters(), model.buffers())
            )
            terms = Terms.of(
                draw,
                k=k,
                strategy=strategy,
                pool_size=pool_size(pool),
                labeled=f"all but {len(position_N)}, checksum {crc32(position_N.numpy().data):08x}",
                seed=seed,
                task=task,
                include_bias=include_bias,
                batch_size=step,
                head=_head_name(model, head),
                amp=amp,
                model=f"of weights with checksum {weights}",
            )
            said.here = terms, buffers
    ours, lent = position_N, False
    if shard is not None:
        ours = position_N[shard.start : shard.stop]
        job.align(draw, [terms for terms, _ in said.everywhere])
        lent = len({buffers for _, buffers in said.everywhere}) > 1
    run = partial(
        infer_batches,
        model,
        pool,
        head=head,
        forward=forward,
        task=task,
        batch_size=batch_size,
        device=device,
        amp=amp,
        progress=progress if job.rank == 0 else False,
    )
    needs = registered.needs
    factors = needs & {"gradients", "features"}

    def see(row_N: Tensor, out: str | None) -> PoolView:
        view = PoolView(len(row_N), task=task, positions=row_N)
        if len(row_N) == 0 or not (factors or "probabilities" in needs):
            return view
        whole = len(row_N) == len(position_N) + len(known_L)
        batches = run(positions=None if whole else row_N, features=bool(factors))
        outputs = _gather(batches, len(row_N), needs, out, task, include_bias)
        return _with_outputs(view, needs, outputs, include_bias)

    def samples(count: int, generator: Generator) -> Iterator[Tensor]:
        for _ in range(count):
            with fixed_dropout(model, generator):
                logit_NC = collect(
                    run(positions=position_N, features=False), len(position_N)
                ).logit_NC
            resolved = resolve_task(task, logit_NC.shape[1])
            yield _probabilities(logit_NC, resolved)(slice(0, len(position_N)))

    with ExitStack() as scratch:
        if lent:
            scratch.enter_context(lent_buffers(job, model))
        with job.together(), silent(model):
            room = factors_dir if factors else None
            view = see(ours, scratch.enter_context(_scratch_directory(room)))
            if "labeled" in needs and len(known_L):
                out = scratch.enter_context(_scratch_directory(room))
                known = see(known_L.sort().values, out)
                view = replace(view, labeled=replace(known, labels=label_L))
        view = replace(
            view,
            size=len(position_N),
            shard=shard,
            samples=samples if "samples" in needs else None,
            memory=memory if "memory" in needs else None,
            progress=wanted(progress) and job.rank == 0,
        )
        with job.together():
            return _choose(registered, view, k, draw, position_N)


@overload
def compute_gradient_embedding(
    model: nn.Module,
    pool: Pool,
    *,
    head: str | nn.Module | None = None,
    forward: Forward | None = None,
    task: Task | None = None,
    loss: Any = None,
    include_bias: bool = False,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    amp: Amp | None = None,
    progress: bool | None = None,
) -> GradientEmbedding: ...


@overload
def compute_gradient_embedding(
    model: nn.Module,
    pool: Pool,
    *,
    head: str | nn.Module | None = None,
    forward: Forward | None = None,
    task: Task | None = None,
    loss: Any = None,
    include_bias: bool = False,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    amp: Amp | None = None,
    progress: bool | None = None,
    out: PathLike,
    dtype: Storage | None = None,
) -> DiskPool: ...


def compute_gradient_embedding(
    model: nn.Module,
    pool: Pool,
    *,
    head: str | nn.Module | None = None,
    forward: Forward | None = None,
    task: Task | None = None,
    loss: Any = None,
    include_bias: bool = False,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    amp: Amp | None = None,
    progress: bool | None = None,
    out: PathLike | None = None,
    dtype: Storage | None = None,
) -> GradientEmbedding | DiskPool:
    """Last-layer gradients of the whole pool against the model's own predictions.

    Arguments are as of `select`; row i is the gradient of the example at position i (Ash et al.,
    ICLR 2020, section 3).

    With `out`, a directory, the factors are written there while the model runs, and never are in
    memory: `kmeans_pp` takes the DiskPool that is returned, and `DiskPool.open(out)` finds it
    again. `dtype` is that of the files: "float32", "float64", "float16" (3 digits, 6e-8 to
    65,504) or "bfloat16" (2 digits, any size); by default as in memory, for the same picks.

    >>> model = nn.Linear(4, 3)
    >>> compute_gradient_embedding(model, torch.ones(6, 4))
    GradientEmbedding(N=6, C=3, D=4, torch.float32, cpu)
    """
    if out is None and dtype is not None:
        raise InputError(f"dtype is {dtype!r}, that of the files in out; pass out too")
    task = task_of(model, task, loss)
    batches = infer_batches(
        model,
        pool,
        head=head,
        forward=forward,
        task=task,
        batch_size=batch_size,
        device=device,
        amp=amp,
        progress=progress,
    )
    needs: frozenset[Need] = frozenset({"gradients"})
    _, emb, _ = _gather(batches, pool_size(pool), needs, out, task, include_bias, dtype)
    assert isinstance(emb, GradientEmbedding | DiskPool)
    return emb


def select_from_arrays(
    probabilities: ArrayLike | None,
    features: ArrayLike | None,
    k: int,
    *,
    strategy: str = "badge",
    labeled: Positions | None = None,
    task: Task | None = None,
    include_bias: bool = False,
    seed: int | None = None,
    generator: Generator | None = None,
    progress: bool | None = None,
    labels: ArrayLike | None = None,
    memory: Memory | None = None,
) -> Tensor:
    """Which k examples to label next, from a model of any framework.

    Arrays in files larger than memory are read a few rows at a time where they are mapped:
    `np.load(path, mmap_mode="r")`. It changes no pick.

    Args:
        probabilities: [N, C] predicted probabilities ([N] or [N, 1] for a binary model); None where
            the strategy reads none.
        features: [N, D], the input of the last layer; None where the strategy needs none.
        k: how many to choose.
        strategy: "badge" or another of `strategy_names()`.
        labeled: positions already labelled (or a boolean mask over the rows), never chosen.
        task: "multiclass", "binary" or "multilabel"; by default binary for one column and
            multiclass for more.
        include_bias: count the gradient of the last layer's bias too; the paper does not.
        seed: an integer, for the same choice every time.
        generator: a CPU torch.Generator in place of a seed.
        progress: show a bar; by default on a terminal only, after two seconds.
        labels: as of `select`.
        memory: as of `select`.

    Returns:
        LongTensor[k] on the CPU: distinct rows in order of choice.

    Raises:
        InputError: as `GradientEmbedding.from_probabilities` and `select`.

    >>> probs = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    >>> select_from_arrays(probs, None, k=2, strategy="entropy")
    tensor([1, 2])
    """
    registered = get_strategy(strategy)
    needs = registered.needs
    if "samples" in needs:
        raise InputError(f"strategy {strategy!r} runs the model's dropout; use select(model, ...)")
    draw = resolve_generator(seed, generator)
    if features is None:
        if probabilities is None:
            raise InputError("there are no rows to choose from; pass probabilities or features")
        if needs & {"gradients", "features"}:
            raise InputError(f"strategy {strategy!r} needs features; pass the last layer's inputs")
        features = _unread(probabilities)
    elif probabilities is None:
        if needs & {"gradients", "probabilities"}:
            raise InputError(f"strategy {strategy!r} needs probabilities; pass the model's")
        task, probabilities = None, _unread(features)
    mapped = any(isinstance(a, np.memmap | DenseWhenRead) for a in (probabilities, features))
    if not isinstance(probabilities, np.memmap):
        probabilities = as_tensor(probabilities, "probabilities")
    if not isinstance(features, np.memmap | DenseWhenRead):
        features = as_tensor(features, "features")
    # All rows are checked, labelled ones too, so that an error names rows of what was passed in.
    whole = ArrayPool.of(
        probabilities, features, task=task, include_bias=include_bias, progress=progress
    )
    position_N, known_L = _divide(labeled, len(whole))
    _check_k(k, len(position_N))
    label_L = _labels_of(known_L, labels)

    def see(row_N: Tensor) -> PoolView:
        emb: GradientPool = whole
        if labeled is not None:
            emb = SubsetPool(whole, row_N.to(whole.device))
        if not mapped:
            emb = GradientEmbedding(*emb.factors(slice(0, len(emb))))
        view = PoolView(len(row_N), positions=row_N)
        outputs = (lambda index: whole.probabilities(row_N[index])), emb, whole.task
        return _with_outputs(view, needs, outputs, include_bias)

    view = see(position_N)
    if "labeled" in needs and len(known_L):
        view = replace(view, labeled=replace(see(known_L.sort().values), labels=label_L))
    view = replace(view, memory=memory if "memory" in needs else None, progress=wanted(progress))
    return _choose(registered, view, k, draw, position_N)


def _unread(beside: ArrayLike) -> NDArray[np.float32]:
    """In place of an array that the strategy does not read: one that fits beside the other."""
    return np.broadcast_to(np.float32(1), (*np.shape(beside)[:1], 1))


def _shard(job: Job, registered: Registered, model: nn.Module, N: int, step: int) -> Shard | None:
    """This process's part of the N examples; None where it works alone."""
    if job.size == 1:
        return None
    if not registered.sharded:
        raise InputError(
            f"strategy {registered.name!r} has to see the whole pool and cannot be split over "
            f"{job.size} processes; pass group=False in each, or strategy='badge'"
        )
    if registered.needs:
        check_whole(model)
    # Whole batches, so that each is what a single process would run, to the bit.
    return Shard.of(job, N, max(1, step))


def _head_name(model: nn.Module, head: str | nn.Module | None) -> str | None:
    """How all processes may call the head that was given; the same in each for the same layer."""
    if not isinstance(head, nn.Module):
        return head
    return next((name for name, module in model.named_modules() if module is head), "of none")


def _gather(
    batches: Batches,
    N: int,
    needs: frozenset[Need],
    out: PathLike | None,
    task: Task | None,
    include_bias: bool,
    dtype: Storage | None = None,
) -> _Outputs:
    """What a strategy needs of a forward pass; gradients in a directory if one is given."""
    if out is not None:
        logits, emb = _write_gradients(batches, N, needs, out, task, include_bias, dtype)
        return _probabilities(torch.cat(logits), emb.task) if logits else None, emb, emb.task
    outputs = collect(batches, N)
    task = resolve_task(task, outputs.logit_NC.shape[1])
    probabilities, in_memory = None, None
    if "probabilities" in needs:
        probabilities = _probabilities(outputs.logit_NC, task)
    if outputs.feature_ND is not None:
        in_memory = GradientEmbedding.from_logits(
            outputs.logit_NC, outputs.feature_ND, task=task, include_bias=include_bias
        )
    return probabilities, in_memory, task


def _write_gradients(
    batches: Batches,
    N: int,
    needs: frozenset[Need],
    out: PathLike,
    task: Task | None,
    include_bias: bool,
    dtype: Storage | None,
) -> tuple[list[Tensor], DiskPool]:
    """Logits, if they are needed, and the gradients, of which only a batch is ever in memory."""
    logits: list[Tensor] = []
    writing = write_pool(out, N, dtype=dtype, task=task, include_bias=include_bias)
    with writing as append, closing(batches):
        for logit_BC, feature_BD in batches:
            assert feature_BD is not None
            emb = GradientEmbedding.from_logits(
                logit_BC, feature_BD, task=task, include_bias=include_bias
            )
            append(emb.error_NC, emb.feature_ND)
            if "probabilities" in needs:
                logits.append(logit_BC)
    return logits, DiskPool.open(out, device=emb.device)


def _with_outputs(
    view: PoolView, needs: frozenset[Need], outputs: _Outputs, include_bias: bool
) -> PoolView:
    """The view with what the strategy asked for, and nothing else."""
    probabilities, emb, task = outputs
    features = None
    if "features" in needs:
        assert emb is not None
        pool, width = emb, emb.num_features - include_bias

        def features(index: Tensor | slice) -> Tensor:
            return pool.factors(index)[1][:, :width]

    return replace(
        view,
        probabilities=probabilities if "probabilities" in needs else None,
        embedding=emb if "gradients" in needs else None,
        features=features,
        task=task,
    )


def _probabilities(logit_NC: Tensor, task: Task) -> RowsOf:
    def probabilities(index: Tensor | slice) -> Tensor:
        # float64: in float32 every example whose logits are 17 apart has p = 1, a tie.
        wide_BC = logit_NC[index].double()
        return wide_BC.softmax(dim=1) if task == "multiclass" else sigmoid(wide_BC)

    return probabilities


@contextmanager
def _scratch_directory(parent: PathLike | None) -> Iterator[str | None]:
    """A directory that is there for a while; None for None."""
    if parent is None:
        yield None
        return
    try:
        directory = TemporaryDirectory(prefix="fastbadge-", dir=parent)
    except OSError as error:
        raise InputError(f"factors_dir is {parent}: {error.strerror}; pass another") from error
    with directory as path:
        yield path


def _choose(
    registered: Registered, view: PoolView, k: int, generator: Generator, position_N: Tensor
) -> Tensor:
    """Positions of the rows that a strategy chooses from a view, once they are sure to be k."""
    row_K = torch.as_tensor(registered.fn(view, k, generator=generator), device="cpu")
    # Anyone can register a strategy, and a wrong row would be a wrong position without a sound.
    distinct = set(row_K.flatten().tolist())
    if (
        row_K.shape != (k,)
        or len(distinct) != k
        or not 0 <= min(distinct) <= max(distinct) < view.size
    ):
        raise InputError(
            f"strategy {registered.name!r} returned {len(distinct)} distinct rows in shape "
            f"{tuple(row_K.shape)}; expected {k} distinct ones below {view.size}"
        )
    return position_N[row_K]


def _divide(labeled: Positions | None, N: int) -> tuple[Tensor, Tensor]:
    """LongTensors of the positions not in `labeled`, ascending, and of those in it, as given."""
    if labeled is None:
        return torch.arange(N, device="cpu"), torch.empty(0, dtype=torch.int64, device="cpu")
    if isinstance(labeled, set | frozenset):
        labeled = sorted(labeled)
    check_unmasked(labeled, "labeled")
    given = np.asarray(labeled.cpu() if isinstance(labeled, Tensor) else labeled)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iub"):
        raise InputError(
            f"labeled has shape {given.shape} and dtype {given.dtype}; "
            "expected a list of positions or a boolean mask over the pool"
        )
    if given.dtype == bool:
        if len(given) != N:
            raise InputError(f"labeled is a mask of length {len(given)}; the pool has {N} examples")
        given = np.flatnonzero(given)
    outside = given[(given < 0) | (given >= N)]
    if outside.size:
        raise InputError(f"labeled has position {outside[0]}; the pool has 0 to {N - 1}")
    known_L = given.astype(np.int64)
    times_N = np.bincount(known_L, minlength=N)
    if times_N.max() > 1:
        raise InputError(
            f"labeled has position {times_N.argmax()} {times_N.max()} times; "
            "each must be given once"
        )
    return torch.from_numpy(np.flatnonzero(times_N == 0)), torch.from_numpy(known_L)


def _labels_of(known_L: Tensor, labels: ArrayLike | None) -> Tensor | None:
    """LongTensor[L]: the labels in ascending order of their positions."""
    if labels is None:
        return None
    label_L = as_tensor(labels, "labels").cpu()
    if label_L.shape != known_L.shape or label_L.is_floating_point():
        raise InputError(
            f"labels has shape {tuple(label_L.shape)} and dtype {label_L.dtype}; expected a whole "
            f"number for each of the {len(known_L)} examples in labeled"
        )
    return label_L.long()[known_L.argsort()]


def _check_k(k: int, available: int) -> None:
    """Refuse a k that is not between 1 and the number of examples to choose from."""
    if available == 0:
        raise InputError("every example of the pool is in labeled; there is nothing left to select")
    if not is_whole(k) or not 1 <= k <= available:
        raise InputError(
            f"k is {k!r}; expected a whole number from 1 to {available}, "
            "the examples that are not yet labelled"
        )

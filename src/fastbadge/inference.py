"""Model and data to logits and penultimate features: one forward pass, the model left as it was."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from fastbadge.batches import Pool, iterate_batches, model_arguments, moved, pool_size, rows_of
from fastbadge.errors import InputError, OutOfMemoryWarning, level_outside
from fastbadge.gradients import Task
from fastbadge.heads import Head, Watcher, find_head, linear_layers, read_head, resolve_head
from fastbadge.inputs import is_whole
from fastbadge.progress import progress_bar

# Logits, and features where they were asked for, of some rows after the other.
Batches: TypeAlias = Generator[tuple[Tensor, Tensor | None], None, None]
Forward: TypeAlias = Callable[[nn.Module, Any], Any]
Amp: TypeAlias = Literal["bf16", "fp16"]

_AMP: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

# What a loss says about the outputs. Of independent outputs one is the binary case.
_TASK_OF_LOSS: dict[str, Task] = {
    "CrossEntropyLoss": "multiclass",
    "cross_entropy": "multiclass",
    "NLLLoss": "multiclass",
    "nll_loss": "multiclass",
    "BCEWithLogitsLoss": "multilabel",
    "binary_cross_entropy_with_logits": "multilabel",
    "BCELoss": "multilabel",
    "binary_cross_entropy": "multilabel",
    "MultiLabelSoftMarginLoss": "multilabel",
    "multilabel_soft_margin_loss": "multilabel",
}


@dataclass(frozen=True, eq=False, slots=True)
class Outputs:
    """What one forward pass gives: logits, and what the head read to make them.

    Args:
        logit_NC: [N, C]; C = 1 for a binary head. float32 or float64, where the model ran.
        feature_ND: [N, D], or None where they were not asked for.
    """

    logit_NC: Tensor
    feature_ND: Tensor | None


def infer(
    model: nn.Module,
    pool: Pool,
    *,
    positions: Tensor | None = None,
    features: bool = True,
    head: str | nn.Module | None = None,
    forward: Forward | None = None,
    task: Task | None = None,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    amp: Amp | None = None,
    progress: bool | None = None,
) -> Outputs:
    """Logits and penultimate features of a pool by one forward pass in eval mode.

    Memory is the two results and one batch. Training flags, hooks, grad mode and device of the
    model are as before when it returns or raises. What torch.compile made of it is not run, and
    still there afterwards.

    Args:
        model: any classifier; its output is the logits, or holds them under the name `logits` or
            among its tensors.
        pool: a tensor or array, a mapping of them, a dataset, or a DataLoader that keeps the order.
        positions: LongTensor[N] of pool positions to run, in that order; all by default.
        features: whether the head's input is wanted; without it any model will do.
        head: dotted name, or module, of the linear layer to take as head. Its output then stands
            for the logits whatever the model makes of it (a temperature).
        forward: `forward(model, batch)` in place of what is guessed from a batch.
        task: what a softmax or sigmoid at the model's end is held against.
        batch_size: rows a forward pass; a DataLoader keeps its own. Halved, with an
            OutOfMemoryWarning, as often as the device runs out of memory.
        device: where to run; the model is brought back afterwards. Default: where the model is.
        amp: "bf16" or "fp16" to run under autocast.
        progress: show a bar; by default on a terminal only, after two seconds.

    Raises:
        InputError: no head found, logits that are not one row an example, a NaN or infinite
            entry (the message names the position in the pool), a pool that cannot be used.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
    >>> outputs = infer(model, torch.ones(5, 2))
    >>> outputs.logit_NC.shape, outputs.feature_ND.shape
    (torch.Size([5, 4]), torch.Size([5, 3]))
    """
    batches = infer_batches(
        model,
        pool,
        positions=positions,
        features=features,
        head=head,
        forward=forward,
        task=task,
        batch_size=batch_size,
        device=device,
        amp=amp,
        progress=progress,
    )
    return collect(batches, pool_size(pool) if positions is None else len(positions))


def collect(batches: Batches, N: int) -> Outputs:
    """The N rows of a forward pass that comes in batches."""
    outputs: Outputs | None = None
    end = 0
    with closing(batches):
        for logit_BC, feature_BD in batches:
            start, end = end, end + len(logit_BC)
            if outputs is None:
                outputs = Outputs(
                    _room(logit_BC, N), None if feature_BD is None else _room(feature_BD, N)
                )
            outputs.logit_NC[start:end] = logit_BC
            if feature_BD is not None and outputs.feature_ND is not None:
                outputs.feature_ND[start:end] = feature_BD
    assert outputs is not None
    return outputs


def infer_batches(
    model: nn.Module,
    pool: Pool,
    *,
    positions: Tensor | None = None,
    features: bool = True,
    head: str | nn.Module | None = None,
    forward: Forward | None = None,
    task: Task | None = None,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    amp: Amp | None = None,
    progress: bool | None = None,
) -> Batches:
    """What `infer` gives, a batch at a time: (logit_BC, feature_BD or None).

    Nothing is run or checked before the first; the model is in eval mode, and watched, from then
    until the generator is exhausted or closed.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if not is_whole(batch_size) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected a whole number from 1")
    if amp is not None and amp not in _AMP:
        raise InputError(f"amp is {amp!r}; expected 'bf16', 'fp16' or None")
    N = pool_size(pool) if positions is None else len(positions)
    batches = iterate_batches(pool, positions, int(batch_size), _float_dtype(model))
    stream = iterate_outputs(
        model, batches, head, features, device, forward=forward, task=task, amp=amp
    )

    delay_seconds = 0.0 if progress else 2.0
    bar = progress_bar(N, "forward pass", "examples", show=progress, delay_seconds=delay_seconds)
    end = 0
    # Closed both: a loader's workers, or a model watched, would live as long as the exception.
    with closing(batches), closing(stream), bar as advance:
        for logit_BC, feature_BD in stream:
            start, end = end, end + len(logit_BC)
            if end > N:
                break
            _check_finite({"logits": logit_BC, "features": feature_BD}, positions, start)
            yield logit_BC, feature_BD
            advance(len(logit_BC))
    if end != N:
        raise InputError(f"the pool gave {end} examples but has length {N}; mend its __len__")


def iterate_outputs(
    model: nn.Module,
    batches: Iterable[tuple[int, Any]],
    head: str | nn.Module | None,
    features: bool,
    device: str | torch.device | None,
    *,
    forward: Forward | None = None,
    task: Task | None = None,
    amp: Amp | None = None,
) -> Batches:
    """The forward pass, a batch at a time: (logit_BC, feature_BD or None) for each of `batches`.

    A batch that does not fit into the device's memory comes in parts. The model is in eval mode,
    and watched, until the generator is exhausted or closed.
    """
    wrapper, model = model, _unwrapped(model)
    given = None if head is None else resolve_head(model, head, wrapper)
    # What the user calls the logits are the logits.
    sigmoids = False if forward is not None else True if task == "multilabel" else None
    found: Head | None = None
    most_rows = sys.maxsize
    with _evaluating(model, device) as place, closing(Watcher()) as watcher:

        def run(part: Any, rows: int) -> tuple[Head, Tensor, Tensor | None] | None:
            """Head, logits and features; None where memory ran out, and nothing of it is left."""
            try:
                # Not around a yield: the caller's modes are the caller's.
                with _modes(place, amp):
                    output = _run(model, moved(part, place), forward)
                    calls = watcher.take()
                    head = found or find_head(
                        calls,
                        output,
                        rows,
                        model,
                        features=features,
                        given=given,
                        sigmoids=sigmoids,
                    )
                    return head, *read_head(head, calls, output, rows, model)
            except torch.OutOfMemoryError:
                if rows == 1 or rows_of(part, slice(1), rows) is part:
                    raise
                watcher.take()
                return None

        watcher.watch(linear_layers(model).values() if given is None else [given])
        for rows, batch in batches:
            start = 0
            while start < rows:
                count = min(most_rows, rows - start)
                part = batch if count == rows else rows_of(batch, slice(start, start + count), rows)
                result = run(part, count)
                if result is None:
                    most_rows = _halve(count)
                    continue
                head_now, logit_BC, feature_BD = result
                if found is None:  # from now on the head alone is watched, so little is copied
                    found = head_now
                    _check_ending(found, logit_BC.shape[1], task)
                    watcher.watch(_layers(found))
                start += count
                yield logit_BC, feature_BD if features else None


def task_of(model: nn.Module, task: Task | None, loss: Any) -> Task | None:
    """The task given, or the one that a loss, or a Hugging Face model's configuration, tells.

    Args:
        model: the model, whose `config.problem_type` counts if there is one.
        task: what the user says.
        loss: what it is trained with: a module, its class or a function; None to leave it open.

    Raises:
        InputError: a loss that tells nothing, or tells otherwise than `task`.

    >>> task_of(nn.Linear(2, 3), None, nn.BCEWithLogitsLoss())
    'multilabel'
    """
    config = getattr(_unwrapped(model), "config", None)
    problem = getattr(config, "problem_type", None)
    while isinstance(loss, partial):
        loss = loss.func
    if loss is None:
        if problem == "regression" and task is None:
            raise InputError(
                "the model's config.problem_type is regression; pass task= if it is a classifier"
            )
        unsaid = problem is None and hasattr(config, "problem_type")
        if unsaid and task is None and getattr(config, "num_labels", None) == 1:
            raise InputError(
                "the model's config has num_labels=1 and no problem_type, which transformers "
                "trains as regression; pass task='binary' if it is a classifier"
            )
        return "multilabel" if task is None and problem == "multi_label_classification" else task
    kind = loss if isinstance(loss, type) or inspect.isroutine(loss) else type(loss)
    names = [k.__name__ for k in kind.__mro__] if isinstance(kind, type) else [kind.__name__]
    told = next((_TASK_OF_LOSS[name] for name in names if name in _TASK_OF_LOSS), None)
    if told is None and task is None:
        raise InputError(
            f"loss is {names[0]}, which does not tell what the outputs mean; pass "
            "task='multiclass', 'binary' or 'multilabel'"
        )
    if told is None or task is None:
        return task or told
    if (told == "multiclass") != (task == "multiclass"):
        raise InputError(
            f"task is {task} but loss is {names[0]}, which is for {told} outputs; leave one out"
        )
    return task


def _layers(head: Head) -> list[nn.Module]:
    return [] if head.layer is None else [head.layer]


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of torch.compile's, DataParallel's or DistributedDataParallel's wrapper.

    Compiled code does not call hooks, and replicas would call them from several threads.
    """
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


@contextmanager
def _modes(place: torch.device | None, amp: Amp | None) -> Iterator[None]:
    """No gradients, autocast if asked for, and nothing compiled."""
    autocast: AbstractContextManager[Any] = nullcontext()
    if amp is not None:
        autocast = torch.autocast("cpu" if place is None else place.type, _AMP[amp])
    # Parts of a model may be compiled too, which would pass hooks by or compile anew for them.
    # Nothing can be where dynamo was never imported, which takes seconds.
    eager: AbstractContextManager[Any] = nullcontext()
    if "torch._dynamo" in sys.modules:
        eager = torch.compiler.set_stance("force_eager")
    # no_grad, not inference_mode: what a model keeps from a forward pass (lazy parameters, cached
    # tables) must stay fit for training.
    with torch.no_grad(), autocast, eager:
        yield


def _run(model: nn.Module, batch: Any, forward: Forward | None) -> Any:
    if forward is not None:
        return forward(model, batch)
    args, kwargs = model_arguments(batch, model.forward)
    return model(*args, **kwargs)


def _halve(rows: int) -> int:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = rows // 2
    warnings.warn(
        f"no memory for a batch of {rows} examples; going on with {half}, pass batch_size={half} "
        "to start there",
        OutOfMemoryWarning,
        stacklevel=level_outside(),
    )
    return half


def _check_ending(head: Head, C: int, task: Task | None) -> None:
    """Refuse a task that the model's last step contradicts."""
    if head.ending == "sigmoid" and C > 1 and task != "multilabel":
        raise InputError(
            f"the model ends in a sigmoid over {C} outputs, and task is {task}; "
            "pass task='multilabel'"
        )
    if head.ending in ("softmax", "log_softmax") and task == "multilabel":
        raise InputError(f"the model ends in a {head.ending}, but task is {task}; leave it out")


@contextmanager
def _evaluating(
    model: nn.Module, device: str | torch.device | None
) -> Iterator[torch.device | None]:
    """The model in eval mode and on `device`, both undone at the end; gives where inputs go."""
    training = [(module, module.training) for module in model.modules()]
    homes = list(dict.fromkeys(t.device for t in (*model.parameters(), *model.buffers())))
    place = homes[0] if homes else None
    if device is not None:
        # An empty tensor turns "cuda" into "cuda:0", which is what parameters answer.
        try:
            place = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"device is {device!r}, which torch cannot use: {reason}") from error
    _check_weights_live(homes, place)
    move = device is not None and homes not in ([], [place])
    if move and len(homes) > 1:
        raise InputError(
            f"device is {device} but the model lies on {', '.join(map(str, homes))}; "
            "leave device out to run it where it is"
        )
    try:
        # One by one: some merge weights in eval(), and train() would wake what is frozen.
        _set_training((module, False) for module, _ in training)
        if move:
            model.to(place)
        yield place
    finally:
        try:
            _set_training(training)
        finally:  # again, as Ctrl-C may have come between
            _set_training(training)
            if move:
                model.to(homes[0])


def _set_training(flags: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, flag in flags:
        module.training = flag


def _check_weights_live(homes: list[torch.device], place: torch.device | None) -> None:
    """Refuse torch's device without memory: weights that go there are lost."""
    if homes and all(home.type == "meta" for home in homes):
        raise InputError("the model lies on meta, which holds no numbers; load its weights first")
    if place is not None and place.type == "meta":
        raise InputError("device is meta, which holds no numbers; pass one that does, such as cpu")


def _room(matrix_BX: Tensor, N: int) -> Tensor:
    dtype = torch.promote_types(matrix_BX.dtype, torch.float32)
    return matrix_BX.new_empty((N, matrix_BX.shape[1]), dtype=dtype)


def _float_dtype(model: nn.Module) -> torch.dtype:
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.get_default_dtype())


def _check_finite(outputs: dict[str, Tensor | None], positions: Tensor | None, start: int) -> None:
    named = {name: matrix for name, matrix in outputs.items() if matrix is not None}
    # All in one read, for which the host waits; no mask; may overflow, hence what follows.
    if bool(torch.stack([matrix.sum().isfinite() for matrix in named.values()]).all()):
        return
    for name, matrix_BX in named.items():
        bad_B = ~matrix_BX.isfinite().all(dim=1)
        if not bool(bad_B.any()):
            continue
        row = start + int(bad_B.nonzero()[0, 0])
        position = row if positions is None else int(positions[row])
        raise InputError(
            f"{name} are NaN or infinite, first for the example at position {position}; "
            "mend that example or the model's weights"
        )

"""Model and data to logits and penultimate features: one forward pass, the model left as it was.

The head is found by watching: the last nn.Linear called whose output is what the model returns.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastbadge.batches import Batch, Pool, iterate_batches, pool_size
from fastbadge.errors import InputError
from fastbadge.progress import progress_bar

# Logits, and features where they were asked for, of some rows after the other.
Batches: TypeAlias = Generator[tuple[Tensor, Tensor | None], None, None]


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
    batch_size: int = 512,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> Outputs:
    """Logits and penultimate features of a pool by one forward pass in eval mode.

    Memory is the two results and one batch. Training flags, hooks, grad mode and device of the
    model are as before when it returns or raises.

    Args:
        model: any classifier; its output is the logits, a tuple that starts with them, or has
            them as `.logits` or `["logits"]`.
        pool: a tensor or array, a map-style dataset, or a DataLoader that keeps the order.
        positions: LongTensor[N] of pool positions to run, in that order; all by default.
        features: whether the head's input is wanted; without it any model will do.
        head: dotted name, or module, of the nn.Linear to take as head. Its output then stands
            for the logits whatever the model makes of it (softmax, a temperature).
        batch_size: rows a forward pass; a DataLoader keeps its own.
        device: where to run; the model is brought back afterwards. Default: where the model is.
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
        batch_size=batch_size,
        device=device,
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
    batch_size: int = 512,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> Batches:
    """What `infer` gives, a batch at a time: (logit_BC, feature_BD or None).

    Nothing is run or checked before the first; the model is in eval mode, and watched, from then
    until the generator is exhausted or closed.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected a whole number from 1")
    N = pool_size(pool) if positions is None else len(positions)
    layer = None if head is None else _resolve_head(model, head)
    batches = iterate_batches(pool, positions, batch_size, _float_dtype(model))

    delay_seconds = 0.0 if progress else 2.0
    bar = progress_bar(N, "forward pass", "examples", show=progress, delay_seconds=delay_seconds)
    end = 0
    with (
        closing(iterate_outputs(model, batches, layer, features, device)) as stream,
        bar as advance,
    ):
        for logit_BC, feature_BD in stream:
            start, end = end, end + len(logit_BC)
            if end > N:
                break
            _check_finite(logit_BC, "logits", positions, start)
            if feature_BD is not None:
                _check_finite(feature_BD, "features", positions, start)
            yield logit_BC, feature_BD
            advance(len(logit_BC))
    if end != N:
        raise InputError(f"the pool gave {end} examples but has length {N}; mend its __len__")


def iterate_outputs(
    model: nn.Module,
    batches: Iterable[tuple[int, Batch]],
    head: nn.Linear | None,
    features: bool,
    device: str | torch.device | None,
) -> Batches:
    """The forward pass, a batch at a time: (logit_BC, feature_BD or None) for each of `batches`.

    The model is in eval mode, and watched, until the generator is exhausted or closed.
    """
    calls: list[_Call] = []
    with _evaluating(model, device) as place, ExitStack() as hooks:
        if head is not None:
            _watch([head], calls, hooks)
        elif features:
            _watch(_linears(model).values(), calls, hooks)
        found = False
        for rows, batch in batches:
            calls.clear()
            # no_grad, not inference_mode: what a model keeps from a forward pass (lazy parameters,
            # cached tables) must stay fit for training. Not around the yield: the caller's grad
            # mode is the caller's.
            with torch.no_grad():
                output = _forward(model, batch, place)
            if head is not None:
                call = _last_call(calls, head, model)
            elif features:
                call = _find_call(calls, _logits_in(output), rows, model)
                if not found:  # from now on the head alone is watched, so little is copied
                    found = True
                    hooks.close()
                    _watch([call.layer], calls, hooks)
            else:
                yield _as_matrix(_logits_in(output), rows, "the model returns logits"), None
                continue
            logit_BC = _as_matrix(call.output, rows, "the head returns logits")
            yield logit_BC, call.feature.reshape(rows, -1) if features else None


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    """One call of a linear layer; copies, so that later in-place operations do not reach them."""

    layer: nn.Module
    feature: Tensor
    output: Tensor


def _watch(layers: Iterable[nn.Module], calls: list[_Call], hooks: ExitStack) -> None:
    def record(
        layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        # One row an example; to keep every token's activations would cost as much as training.
        if output.numel() == output.shape[0] * output.shape[-1]:
            feature = args[0] if args else kwargs["input"]
            calls.append(_Call(layer, feature.detach().clone(), output.detach().clone()))

    for layer in layers:
        hooks.callback(layer.register_forward_hook(record, with_kwargs=True).remove)


def _find_call(calls: list[_Call], logits: Tensor, rows: int, model: nn.Module) -> _Call:
    logit_BC = _as_matrix(logits, rows, "the model returns logits")
    C = logit_BC.shape[1]
    for call in reversed(calls):
        if call.output.shape[-1] == C and call.output.numel() == logit_BC.numel():
            output_BC = call.output.reshape(rows, C).to(logit_BC)
            if _identical(output_BC, logit_BC):
                return call
    layers = _linears(model)
    fitting = [name for name, layer in layers.items() if layer.out_features == C]
    if fitting:
        advice = f"if {fitting[-1]!r} is the layer that gives the logits, pass head={fitting[-1]!r}"
    else:
        advice = "pass head= with the one that gives the logits, or use select_from_arrays"
    raise InputError(
        f"no nn.Linear returned the model's output of shape {tuple(logits.shape)}; "
        f"found {_listed(layers)}; {advice}"
    )


def _identical(left: Tensor, right: Tensor) -> bool:
    # NaN equals NaN here: that the logits are not finite is said later, with the position.
    return torch.equal(left, right) or torch.allclose(left, right, 0, 0, equal_nan=True)


def _last_call(calls: list[_Call], head: nn.Linear, model: nn.Module) -> _Call:
    if calls:
        return calls[-1]
    name = next(name for name, module in model.named_modules() if module is head)
    raise InputError(
        f"head {name!r} gave no row of logits an example (not called, or called on tokens or "
        f"pixels); pass another: the model has {_listed(_linears(model))}"
    )


def _resolve_head(model: nn.Module, head: str | nn.Module) -> nn.Linear:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(head, str):
        found, name = modules.get(head), repr(head)
    else:
        found, name = next((m for m in modules.values() if m is head), None), "that module"
    if isinstance(found, nn.Linear):
        return found
    reason = "is not in the model" if found is None else f"is a {type(found).__name__}"
    raise InputError(
        f"head={name} {reason}; expected an nn.Linear, and the model has {_listed(_linears(model))}"
    )


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def _listed(layers: Mapping[str, nn.Linear], most: int = 4) -> str:
    if not layers:
        return "no nn.Linear"
    shown = [f"{name!r} ({m.in_features} -> {m.out_features})" for name, m in layers.items()]
    return ("..., " if len(shown) > most else "") + ", ".join(shown[-most:])


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
    move = device is not None and homes not in ([], [place])
    if move and len(homes) > 1:
        raise InputError(
            f"device is {device} but the model lies on {', '.join(map(str, homes))}; "
            "leave device out to run it where it is"
        )
    try:
        model.eval()
        if move:
            model.to(place)
        yield place
    finally:
        for module, flag in training:  # one by one: train() would wake what the user has frozen
            module.training = flag
        if move:
            model.to(homes[0])


def _forward(model: nn.Module, batch: Batch, place: torch.device | None) -> Any:
    if isinstance(batch, Mapping):
        return model(**{name: _moved(value, place) for name, value in batch.items()})
    return model(_moved(batch, place))


def _moved(value: Any, place: torch.device | None) -> Any:
    if place is None or not isinstance(value, Tensor):
        return value
    return value.to(place, non_blocking=True)


def _logits_in(output: Any) -> Tensor:
    found = output
    if hasattr(found, "logits"):
        found = found.logits
    elif isinstance(found, Mapping) and "logits" in found:
        found = found["logits"]
    elif isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, Tensor):
        return found
    raise InputError(
        f"the model returns a {type(output).__name__} in which no logits were found; expected a "
        "tensor, a tuple that starts with one, or something with .logits; else pass head="
    )


def _as_matrix(logits: Tensor, rows: int, what: str) -> Tensor:
    if logits.ndim > 0 and len(logits) == rows and logits.numel() == rows * logits.shape[-1]:
        return logits.reshape(rows, -1)
    if logits.shape == (rows,) or (rows == 1 and logits.ndim < 2):  # squeezed by the model
        return logits.reshape(rows, -1)
    raise InputError(
        f"{what} of shape {tuple(logits.shape)} for a batch of {rows}; expected one row of C "
        "logits an example (pass head= if another layer gives them)"
    )


def _room(matrix_BX: Tensor, N: int) -> Tensor:
    dtype = torch.promote_types(matrix_BX.dtype, torch.float32)
    return matrix_BX.new_empty((N, matrix_BX.shape[1]), dtype=dtype)


def _float_dtype(model: nn.Module) -> torch.dtype:
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.get_default_dtype())


def _check_finite(matrix_BX: Tensor, name: str, positions: Tensor | None, start: int) -> None:
    if bool(matrix_BX.sum().isfinite()):  # one read, no mask; may overflow, hence the next line
        return
    bad_B = ~matrix_BX.isfinite().all(dim=1)
    if not bool(bad_B.any()):
        return
    row = start + int(bad_B.nonzero()[0, 0])
    position = row if positions is None else int(positions[row])
    raise InputError(
        f"{name} are NaN or infinite, first for the example at position {position}; "
        "mend that example or the model's weights"
    )

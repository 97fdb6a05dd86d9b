"""The layer that gives the logits, found by watching what linear layers read and return.

The head is the last linear layer called whose output is what the model returns: as it is, at one
position of a sequence, as a mean over positions, or under a softmax or sigmoid. A linear layer
called at P positions, W h_p + b each, whose outputs are averaged is W mean(h_p) + b: the gradient
of the loss in W is that of one call on the mean of its inputs, so their mean is the feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastbadge.errors import InputError
from fastbadge.interrupts import uninterrupted

Ending: TypeAlias = Literal["", "softmax", "log_softmax", "sigmoid"]

_ENDINGS: dict[Ending, Callable[[Tensor], Tensor]] = {
    "": lambda logit_BC: logit_BC,
    "log_softmax": lambda logit_BC: logit_BC.log_softmax(dim=1),
    "softmax": lambda logit_BC: logit_BC.softmax(dim=1),
    "sigmoid": torch.sigmoid,
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LINEAR_FORWARDS = {nn.Linear.forward, *(kind.forward for kind in _CONVOLUTIONS)}


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """Where the logits of a model are: in its output, or in that of a layer.

    Args:
        layer: the linear layer, or None where the model's output is taken as it is.
        place: which tensor of the model's output tells the logits; None to take the layer's own.
        ending: what the model makes of the logits.
    """

    layer: nn.Module | None
    place: int | None
    ending: Ending = ""


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    """One call of a linear layer, channels last; copies, so that in-place operations miss them."""

    layer: nn.Module
    feature: Tensor
    output: Tensor


class Watcher:
    """Records the calls of linear layers until it is closed."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._hooks: list[RemovableHandle] = []

    def watch(self, layers: Iterable[nn.Module]) -> None:
        """Watch these layers and no others."""
        self.close()
        with uninterrupted():  # a hook whose handle is lost would stay
            for layer in layers:
                self._hooks.append(layer.register_forward_hook(self._record, with_kwargs=True))

    def close(self) -> None:
        """Leave the layers as they were."""
        try:
            self._remove()
        finally:  # again, as Ctrl-C may have come between; what is gone stays so
            self._remove()
        self._hooks.clear()
        self._calls.clear()

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self) -> list[_Call]:
        """The calls since the last time, in order."""
        calls, self._calls = self._calls, []
        return calls

    def _record(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        feature = next(iter((*args, *kwargs.values())), None)
        if not (isinstance(feature, Tensor) and isinstance(output, Tensor)):  # somebody's own layer
            return
        if isinstance(layer, _CONVOLUTIONS):
            axis = _channel_axis(layer)
            feature, output = feature.movedim(axis, -1), output.movedim(axis, -1)
        # Of layers called on tokens or pixels only the last is kept: to keep every activation
        # would cost as much as training.
        if not _one_row_each(output):
            self._calls = [call for call in self._calls if _one_row_each(call.output)]
        self._calls.append(_Call(layer, _copy(feature), _copy(output)))


def find_head(
    calls: list[_Call],
    output: Any,
    rows: int,
    model: nn.Module,
    *,
    features: bool,
    given: nn.Module | None = None,
    sigmoids: bool | None = None,
) -> Head:
    """The head that a first batch of `rows` shows; with `features` it must be a layer.

    A layer that the user has given is the head, if only it is linear. `sigmoids`: whether numbers
    from 0 to 1 that no layer gave are doubted, which may be probabilities; None for one output.

    Raises:
        InputError: no such layer, several of them, or an output that is not one row an example.
    """
    if given is not None:
        if features and calls:
            _check_linear(calls[-1], model)
        return Head(given, None)
    tensors = tensors_in(output)
    targets = {
        place: _as_matrix(tensor, rows)
        for place, tensor in enumerate(tensors)
        if _is_matrix(tensor, rows, alone=len(tensors) == 1)
    }
    if not targets:
        raise InputError(_no_matrix(output, tensors, rows))
    for ending in _ENDINGS:
        found = {
            place: givers
            for place, target_BC in targets.items()
            if (givers := _givers(calls, target_BC, ending))
        }
        if found:
            place = _place_of_logits(found, targets, calls, model)
            layer = found[place][-1].layer
            if features:
                _check_linear(found[place][-1], model)
            # What a layer's output equals needs no watching where no features are wanted.
            watched = features or ending in ("softmax", "sigmoid")
            return Head(layer if watched else None, place, ending)
    if features:
        raise InputError(_no_head(model, next(iter(targets.values()))))
    if len(targets) > 1:
        raise InputError(
            f"the model returns {len(targets)} tensors of one row an example, none of them from a "
            "linear layer; pass forward=lambda model, batch: ... that returns the logits"
        )
    ((place, target_BC),) = targets.items()
    if any(_scores_tokens(call, tensors[place], rows) for call in calls):
        raise InputError(_no_matrix(output, tensors, rows))
    if target_BC.shape[1] > 1 and _are_probabilities(target_BC):
        raise InputError(
            "the model returns probabilities, not logits, and not from a linear layer; pass "
            "forward=lambda model, batch: ... that returns their logarithm"
        )
    if sigmoids is None:
        sigmoids = target_BC.shape[1] == 1
    if sigmoids and bool(((target_BC >= 0) & (target_BC <= 1)).all()):
        raise InputError(
            "the model returns numbers from 0 to 1, not from a linear layer; if they are "
            "probabilities pass forward=lambda model, batch: model(batch).logit(), if they are "
            "logits forward=lambda model, batch: model(batch)"
        )
    return Head(None, place)


def read_head(
    head: Head, calls: list[_Call], output: Any, rows: int, model: nn.Module
) -> tuple[Tensor, Tensor | None]:
    """Logits [rows, C] of one batch, and features [rows, D] where a layer was watched."""
    if head.layer is not None and head.place is None:
        return _read_given(head.layer, calls, output, rows, model)
    tensors = tensors_in(output)
    place = head.place or 0
    if place >= len(tensors) or not _is_matrix(tensors[place], rows, alone=len(tensors) == 1):
        raise InputError(_no_matrix(output, tensors[place : place + 1], rows))
    target_BC = _as_matrix(tensors[place], rows)
    if head.layer is None:
        return target_BC, None
    for call in reversed(calls):  # in the first batch those of other layers too
        pair = _pair(call, target_BC, head.ending) if call.layer is head.layer else None
        if pair is not None:
            return pair
    raise InputError(
        f"{_name(head.layer, model)} gave the model's output in the first batch but not in a later "
        "one; pass head= with the layer that always gives the logits"
    )


def resolve_head(model: nn.Module, head: str | nn.Module, wrapper: nn.Module) -> nn.Module:
    """The layer a user names; its output then stands for the logits whatever becomes of it.

    Of several calls, that counts whose output the model returns (the first that it returns), as
    for a layer that is found; where none is, the last.

    Its name may be that in the model, or that in what the model is wrapped in.
    """
    modules: dict[str, nn.Module] = dict(wrapper.named_modules(remove_duplicate=False))
    modules |= dict(model.named_modules(remove_duplicate=False))
    if isinstance(head, str):
        found, name = modules.get(head), repr(head)
    else:
        found, name = next((m for m in modules.values() if m is head), None), "that module"
    if found is not None and _is_linear(found):
        return found
    reason = "is not in the model" if found is None else f"is a {type(found).__name__}"
    raise InputError(
        f"head={name} {reason}; expected an nn.Linear or a 1x1 convolution, and the model has "
        f"{_listed(linear_layers(model))}"
    )


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Names and layers that return W h + b: nn.Linear and its like, and 1x1 convolutions.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Linear(4, 2))
    >>> list(linear_layers(model))
    ['1', '2']
    """
    return {name: module for name, module in model.named_modules() if _is_linear(module)}


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors of a model's output in order; only its logits where it names them."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        parts = [output["logits"]] if "logits" in output else list(output.values())
    elif hasattr(output, "logits"):
        parts = [output.logits]
    elif is_dataclass(output):
        parts = [getattr(output, field.name) for field in fields(output)]
    elif isinstance(output, tuple | list):
        parts = list(output)
    else:
        parts = []
    return [tensor for part in parts for tensor in tensors_in(part)]


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, _CONVOLUTIONS):
        whole = module.groups == 1 and module.padding in (
            "same",
            "valid",
            (0,) * len(module.stride),
        )
        return whole and {*module.kernel_size, *module.stride} == {1}
    if isinstance(module, torch.jit.ScriptModule):  # takes no hook
        return False
    # Quantised layers and adapters are no nn.Linear, but have its attributes.
    return all(isinstance(getattr(module, n, None), int) for n in ("in_features", "out_features"))


def _channel_axis(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> int:
    return -len(layer.kernel_size) - 1


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _one_row_each(output: Tensor) -> bool:
    return output.numel() == output.shape[0] * output.shape[-1]


def _is_matrix(tensor: Tensor, rows: int, alone: bool) -> bool:
    """Whether it is one row an example, axes of length 1 aside."""
    if not tensor.is_floating_point():  # class ids
        return False
    if tensor.ndim == 0:  # squeezed by the model; a loss where there are others
        return rows == 1 and alone
    if len(tensor) == rows and sum(length > 1 for length in tensor.shape[1:]) <= 1:
        return tensor.numel() > 0
    return rows == 1 and tensor.ndim == 1


def _as_matrix(tensor: Tensor, rows: int) -> Tensor:
    return tensor.detach().reshape(rows, -1)


def _givers(calls: list[_Call], target_BC: Tensor, ending: Ending) -> list[_Call]:
    """The calls that gave `target_BC`, in order; not of a module that holds one that did too.

    Many an MLP has the attributes of a linear layer, and returns what its last layer does.
    """
    givers = [call for call in calls if _pair(call, target_BC, ending) is not None]
    layers = {call.layer for call in givers}
    return [call for call in givers if layers.isdisjoint({*call.layer.modules()} - {call.layer})]


def _scores_tokens(call: _Call, tensor: Tensor, rows: int) -> bool:
    """Whether a tensor of shape [rows, T, 1] is one score a token, not T classes."""
    if call.output.shape[-1] > 1 or tensor.ndim < 3 or call.output.numel() != tensor.numel():
        return False
    return tensor.numel() > rows and _identical(call.output.flatten(), tensor.flatten())


def _pair(call: _Call, target_BC: Tensor, ending: Ending) -> tuple[Tensor, Tensor] | None:
    """Logits and features of a call if the model made `target_BC` of it."""
    rows, C = target_BC.shape
    if call.output.shape[-1] != C or call.output.numel() % target_BC.numel():
        return None
    output_BPC = call.output.reshape(rows, -1, C)
    feature_BPD = call.feature.reshape(*output_BPC.shape[:2], -1)
    if output_BPC.shape[1] == 1:
        logit_BC, feature_BD = output_BPC[:, 0], feature_BPD[:, 0]
        if not ending:
            same = _identical(logit_BC.to(target_BC), target_BC)
            return (logit_BC, feature_BD) if same else None
    else:
        logit_BC, feature_BD = _wide(output_BPC).mean(dim=1), _wide(feature_BPD).mean(dim=1)
    if _close(_ENDINGS[ending](_wide(logit_BC)), target_BC):
        return logit_BC, feature_BD
    if output_BPC.shape[1] == 1 or ending:
        return None
    # One position of each sequence, as of the last token.
    same_BP = torch.isclose(
        output_BPC.to(target_BC), target_BC[:, None], rtol=0, atol=0, equal_nan=True
    ).all(dim=2)
    if not bool(same_BP.any(dim=1).all()):
        return None
    position_B = same_BP.int().argmax(dim=1)
    row_B = torch.arange(rows, device=position_B.device)
    return output_BPC[row_B, position_B], feature_BPD[row_B, position_B]


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _identical(left: Tensor, right: Tensor) -> bool:
    # NaN equals NaN here: that the logits are not finite is said later, with the position.
    return torch.equal(left, right) or torch.allclose(left, right, 0, 0, equal_nan=True)


def _close(left_BC: Tensor, right_BC: Tensor) -> bool:
    """Equal but for the order of additions."""
    # 2e-5 for float32 (means over 3,000 positions differ by 1e-6), 4e-2 for bfloat16
    tolerance = torch.finfo(right_BC.dtype).eps ** (2 / 3)
    left_BC = left_BC.to(right_BC.dtype)
    scale = float(right_BC.abs().nan_to_num(nan=0.0, posinf=0.0).amax())
    return torch.allclose(left_BC, right_BC, tolerance, tolerance * scale, equal_nan=True)


def _are_probabilities(target_BC: Tensor) -> bool:
    return bool((target_BC >= 0).all() & ((target_BC.sum(dim=1) - 1).abs() < 1e-3).all())


def _place_of_logits(
    found: dict[int, list[_Call]], targets: dict[int, Tensor], calls: list[_Call], model: nn.Module
) -> int:
    """Which of the tensors that linear layers gave is the logits."""
    place = max(found, key=lambda place: _index(calls, found[place][-1]))
    last = found[place][-1]
    # A head called twice: the first that the model returns.
    place = next(p for p in found if found[p][-1].layer is last.layer)
    # Of one tensor the last giver is the head; of several, each may be (zeros, before training).
    givers = [c for each in found.values() for c in (each if len(found) > 1 else each[-1:])]
    heads = {id(call.layer): call for call in givers if not _feeds(call, last)}
    if len(heads) > 1:
        names = [_name(call.layer, model) for call in heads.values()]
        raise InputError(
            f"the model returns the outputs of {len(names)} layers: {', '.join(names)}; pass "
            f"head={names[0]} or another of them"
        )
    for other, target_BC in targets.items():
        # Whoever returns the features first returns what the head reads; anything else may be the
        # logits of another kind of head beside the embedding.
        if other >= place or other in found:
            continue
        feature_BD = last.feature.reshape(len(target_BC), -1)
        if feature_BD.shape != target_BC.shape or not _close(feature_BD, target_BC):
            raise InputError(
                f"the model returns a tensor of shape {tuple(target_BC.shape)} before the output "
                f"of {_name(last.layer, model)}; pass head={_name(last.layer, model)} if that gives"
                " the logits, else forward="
            )
    return place


def _index(calls: list[_Call], call: _Call) -> int:
    return next(i for i, other in enumerate(calls) if other is call)


def _feeds(call: _Call, last: _Call) -> bool:
    """Whether it is an embedding that the last layer reads, as it is or after a ReLU."""
    if call.layer is last.layer or call.output.numel() != last.feature.numel():
        return False
    output = call.output.reshape(last.feature.shape)
    return any(_close(read, last.feature) for read in (output, output.relu()))


def _check_linear(call: _Call, model: nn.Module) -> None:
    """Refuse a module of somebody's own that looks linear and is not (a cosine classifier, an MLP).

    W h + b is f with f(g + h) + f(0) = f(g) + f(h).
    """
    layer = call.layer
    if type(layer).forward in _LINEAR_FORWARDS:
        return
    # Four times the features: a tanh of small numbers is all but linear. The second are their
    # mirror image, so that a single row will do, with the other sign, for layers that end in a
    # ReLU or begin with one, and of another size, for odd functions of the direction alone.
    left = 4 * call.feature[:8]
    right = left.flip(-1) / -2
    inputs = torch.cat([left, right, left + right, torch.zeros_like(left)])
    if isinstance(layer, _CONVOLUTIONS):
        inputs = inputs.movedim(-1, _channel_axis(layer))
    with torch.no_grad():
        of_left, of_right, of_sum, of_zero = layer.forward(inputs).chunk(4)
    gap = float((of_sum + of_zero - of_left - of_right).abs().amax())
    # Dynamically quantised layers round their input to a 256th of its range.
    if gap > 0.05 * float((of_left - of_zero).abs().amax()):
        raise InputError(
            f"{_name(layer, model)} is a {type(layer).__name__}, which is not W h + b, so its "
            "gradient has no two factors; use select_from_arrays with factors of your own"
        )


def _read_given(
    layer: nn.Module, calls: list[_Call], output: Any, rows: int, model: nn.Module
) -> tuple[Tensor, Tensor]:
    for tensor in tensors_in(output):
        if _is_matrix(tensor, rows, alone=False):
            for call in reversed(calls):
                pair = _pair(call, _as_matrix(tensor, rows), "")
                if pair is not None:
                    return pair
    if calls and calls[-1].output.numel() == rows * calls[-1].output.shape[-1]:
        call = calls[-1]
        logit_BC = call.output.reshape(rows, -1)
        if any(_reordered(logit_BC, tensor, rows) for tensor in tensors_in(output)):
            raise InputError(
                f"head {_name(layer, model)} is called on the examples in another order than the "
                "batch's (as of sequences sorted by length); let the model put them back before it"
            )
        return logit_BC, call.feature.reshape(rows, -1)
    raise InputError(
        f"head {_name(layer, model)} gave no row of logits an example (not called, or called on "
        f"tokens or pixels that the model neither averages nor takes one of); pass another: the "
        f"model has {_listed(linear_layers(model))}"
    )


def _reordered(logit_BC: Tensor, tensor: Tensor, rows: int) -> bool:
    """Whether a tensor of the output has the same rows in another order."""
    if not _is_matrix(tensor, rows, alone=False):
        return False
    target_BC = _as_matrix(tensor, rows)
    if target_BC.shape != logit_BC.shape:
        return False
    left_BC, right_BC = (matrix.sort(dim=0).values for matrix in (logit_BC, target_BC))
    return _identical(left_BC, right_BC.to(left_BC))


def _no_matrix(output: Any, tensors: list[Tensor], rows: int) -> str:
    if not tensors:
        return (
            f"the model returns a {type(output).__name__} in which no logits were found; expected "
            "a tensor or something with .logits; pass forward=lambda model, batch: ..., or head="
        )
    if not any(tensor.is_floating_point() for tensor in tensors):
        return (
            f"the model returns {tensors[0].dtype}, no logits; pass forward=lambda model, batch: "
            "... that returns them, or head= with the layer that gives them"
        )
    if any(0 < len(tensor) < rows for tensor in tensors if tensor.ndim == 2):
        lengths = " and ".join(str(len(tensor)) for tensor in tensors if tensor.ndim)
        return (
            f"the model returns {lengths} rows for a batch of {rows} examples; expected one for "
            "each: the collate_fn, or the model, leaves some out"
        )
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors[:3])
    return (
        f"the model returns logits of shape {shapes} for a batch of {rows}; expected one row of C "
        "logits an example: of tokens or pixels pass forward=lambda model, batch: ... that "
        "averages their logits, or pass head= if another layer gives them"
    )


def _no_head(model: nn.Module, target_BC: Tensor) -> str:
    layers = linear_layers(model)
    C = target_BC.shape[1]
    fitting = [name for name, layer in layers.items() if _width(layer)[1] == C]
    if fitting:
        advice = f"if {fitting[-1]!r} is the layer that gives the logits, pass head={fitting[-1]!r}"
    else:
        advice = "pass head= with the one that gives the logits, or use select_from_arrays"
    return (
        f"no nn.Linear returned the model's output of shape {tuple(target_BC.shape)}; "
        f"found {_listed(layers)}; {advice}"
    )


def _name(layer: nn.Module, model: nn.Module) -> str:
    return repr(next(name for name, module in model.named_modules() if module is layer))


def _width(layer: nn.Module) -> tuple[Any, Any]:
    if isinstance(layer, _CONVOLUTIONS):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def _listed(layers: Mapping[str, nn.Module], most: int = 4) -> str:
    if not layers:
        return "no nn.Linear"
    shown = [f"{name!r} ({' -> '.join(map(str, _width(m)))})" for name, m in layers.items()]
    return ("..., " if len(shown) > most else "") + ", ".join(shown[-most:])

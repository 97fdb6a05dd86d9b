"""The table of strategies, and what a strategy may see of the pool."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

from torch import Generator, Tensor

from fastbadge.distributed import Shard
from fastbadge.errors import InputError
from fastbadge.gradients import Task
from fastbadge.pools import GradientPool

Need: TypeAlias = Literal["probabilities", "gradients", "features", "samples", "labeled", "memory"]
Strategy: TypeAlias = Callable[..., Tensor]
RowsOf: TypeAlias = Callable[[Tensor | slice], Tensor]
Samples: TypeAlias = Callable[[int, Generator], Iterator[Tensor]]
Memory: TypeAlias = MutableMapping[str, Any]

NEEDS: tuple[Need, ...] = get_args(Need)


@dataclass(frozen=True, eq=False, slots=True)
class PoolView:
    """The examples that may still be chosen, and of the model what the strategy asked for.

    Args:
        size: N, how many there are.
        probabilities: a function from a slice or LongTensor[B] of rows to their probabilities,
            float64 [B, C] ([B, 1], of the positive class, for a binary head), or None where the
            strategy did not ask for "probabilities".
        embedding: last-layer gradients, or None where it did not ask for "gradients". A
            GradientEmbedding where they are in memory, else another pool: read `factors`.
        task: what the probabilities mean; None where the model was not run and the user did not
            say.
        progress: whether to show how far a long choice is.
        shard: the rows this process has where several choose together: then `probabilities` and
            `embedding` (None if there are none) are those of its rows alone.
        features: a function like `probabilities` to the last layer's inputs, [B, D], float32 or
            float64, without a column for the bias; or None where it did not ask for "features".
        samples: a function from S and a CPU generator to S matrices of probabilities, float64
            [N, C], one after the other, each of one draw of the model's dropout for all rows; or
            None where it did not ask for "samples".
        labeled: the labelled examples, with what was asked for of them too; or None where it did
            not ask for "labeled", or nothing is labelled yet.
        memory: what the strategy noted at earlier queries, and where it notes what it wants to
            know at later ones: values that JSON can hold. None where it did not ask for "memory".
        labels: LongTensor[N], in `labeled` alone and if the user gave them.
        positions: LongTensor[N], where the rows are in the pool that the user passed.
    """

    size: int
    probabilities: RowsOf | None = None
    embedding: GradientPool | None = None
    task: Task | None = None
    progress: bool = False
    shard: Shard | None = None
    features: RowsOf | None = None
    samples: Samples | None = None
    labeled: PoolView | None = None
    memory: Memory | None = None
    labels: Tensor | None = None
    positions: Tensor | None = None

    @property
    def probability_NC(self) -> Tensor | None:
        """All probabilities at once, for strategies that cannot do with a few rows at a time."""
        return None if self.probabilities is None else self.probabilities(slice(0, self.size))


@dataclass(frozen=True, slots=True)
class Registered:
    """A strategy in the table: its name, function, needs, one line, and if it knows shards."""

    name: str
    fn: Strategy
    needs: frozenset[Need]
    summary: str
    sharded: bool = False
    check: Callable[..., None] | None = None

    def check_options(self, k: int) -> None:
        """Refuse options that no k examples could be chosen by, before anything is computed.

        Raises:
            InputError: as the strategy itself would.

        >>> get_strategy("badge_subset:candidates=9").check_options(20)
        Traceback (most recent call last):
            ...
        fastbadge.errors.InputError: k is 20 but candidates is 9; expected at least k
        """
        if self.check is None:
            return
        parameters = inspect.signature(self.fn).parameters.values()
        values = {parameter.name: parameter.default for parameter in parameters} | {"k": k}
        self.check(**{name: values[name] for name in inspect.signature(self.check).parameters})


_TABLE: dict[str, Registered] = {}


def register(
    name: str,
    *,
    needs: Iterable[Need] = (),
    sharded: bool = False,
    check: Callable[..., None] | None = None,
) -> Callable[[Strategy], Strategy]:
    """Decorator that adds `fn(view, k, *, generator) -> LongTensor[k]` to the strategies.

    The function gets a PoolView, 1 <= k <= view.size and a CPU torch.Generator, and returns k
    distinct rows of the view in order of choice. The first line of its docstring is its summary;
    further keyword arguments with a default are options that users may set (`get_strategy`).

    Args:
        name: what users pass as `strategy=`.
        needs: any of "probabilities", "gradients", "features" and "samples", nothing else is
            computed; "labeled" to have them of the labelled examples too; "memory" of queries.
        sharded: whether it can choose from a view with a `shard`, together with other processes.
            One that needs nothing always can.
        check: refuses options with an InputError; takes those it looks at by name, and `k` if
            they depend on it. An experiment asks it before it begins; the function itself must.

    Raises:
        InputError: an unknown need, or a name another function has taken.

    >>> import torch
    >>> @register("first", needs=())
    ... def first(view, k, *, generator):
    ...     "The first k examples."
    ...     return torch.arange(k)
    >>> get_strategy("first").summary
    'The first k examples.'
    >>> del _TABLE["first"]
    """
    wanted = frozenset(needs)
    if not wanted <= set(NEEDS):
        raise InputError(
            f"strategy {name!r} needs {sorted(wanted)}; expected some of {', '.join(NEEDS)}"
        )

    def add(fn: Strategy) -> Strategy:
        taken = _TABLE.get(name)
        # The same function again is a notebook cell run twice.
        if taken and (taken.fn.__module__, taken.fn.__qualname__) != (
            fn.__module__,
            fn.__qualname__,
        ):
            raise InputError(f"strategy {name!r} is taken by {taken.fn.__module__}; choose another")
        summary = (fn.__doc__ or "").strip().partition("\n")[0]
        _TABLE[name] = Registered(name, fn, wanted, summary, sharded or not wanted, check)
        return fn

    return add


def get_strategy(name: str) -> Registered:
    """The strategy of that name, with its options set: "badge_subset:candidates=2000".

    Options are the keyword arguments of the strategy's function, `:option=value` each, so that
    one string says in a call, a configuration, a record and a legend what was run.

    Raises:
        InputError: no such strategy or option (the message lists them and suggests the nearest), or
            an option set twice.

    >>> get_strategy("badge").needs
    frozenset({'gradients'})
    >>> get_strategy("badge_subset:candidates=2000").fn.keywords
    {'candidates': 2000}
    """
    base, *settings = str(name).split(":")
    if base not in _TABLE:
        near = difflib.get_close_matches(base, _TABLE, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(strategy_names())
        raise InputError(f"strategy is {name!r}; {hint}expected one of {known}")
    found = _TABLE[base]
    if not settings:
        return found
    options = dict(_option(found, setting) for setting in settings)
    if len(options) < len(settings):
        raise InputError(f"strategy {name!r} sets an option twice; expected each once at most")
    return replace(found, name=name, fn=partial(found.fn, **options))


def _option(strategy: Registered, setting: str) -> tuple[str, Any]:
    """Name and value of `option=value`, in the type of the option's default."""
    option, _, text = setting.partition("=")
    known = {
        parameter.name: parameter
        for parameter in inspect.signature(strategy.fn, eval_str=True).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }
    if option not in known:
        listed = ", ".join(f"{p.name}={p.default}" for p in known.values())
        raise InputError(
            f"strategy {strategy.name!r} has no option {option!r}; it has {listed or 'none'}"
        )
    choices = get_args(known[option].annotation)  # of a Literal
    kind = type(known[option].default)
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or (choices and value not in choices):
        expected = " or ".join(map(str, choices)) or kind.__name__
        raise InputError(f"{strategy.name}: {option} is {text!r}; expected {expected}")
    return option, value


def strategy_names() -> list[str]:
    """Names of all strategies, sorted.

    >>> strategy_names()[:5]
    ['albl', 'badge', 'badge_proxy', 'badge_subset', 'bait']
    """
    return sorted(_TABLE)

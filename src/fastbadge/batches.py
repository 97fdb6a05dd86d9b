"""A pool of examples as batches in pool order, and what of a batch a model takes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from fastbadge.errors import InputError
from fastbadge.inputs import as_tensor


class MapStyle(Protocol):
    """A map-style dataset: anything with a length and an example at each position."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int, /) -> Any: ...


Columns: TypeAlias = "Mapping[str, Tensor | NDArray[Any]]"
Pool: TypeAlias = "Tensor | NDArray[Any] | Columns | Dataset[Any] | DataLoader[Any] | MapStyle"

# What a loader has besides its dataset, its batches and its collation.
_LOADING = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
)

# What datasets call their labels. A model that could do without is not given them: labels of a
# pool are often missing, and -1 in their place would make its loss fail.
_LABELS = {"label", "labels", "label_ids", "target", "targets", "y"}


def pool_size(pool: Pool) -> int:
    """N, the number of examples, once it is sure that positions 0 to N - 1 mean something.

    Args:
        pool: a tensor or an array with one example a row, a mapping of such columns (what a
            tokenizer returns), a dataset with a length, map-style or iterable, or a DataLoader
            that keeps the order of its dataset.

    Raises:
        InputError: an empty pool, one without length or positions, a DataLoader that shuffles,
            samples, drops or reorders.

    >>> pool_size(torch.zeros(5, 3))
    5
    """
    if isinstance(pool, DataLoader):
        _check_order(pool)
        return _length(pool.dataset)
    if isinstance(pool, Mapping):
        return _length_of_columns(pool)
    if hasattr(pool, "iloc"):  # a table, of which pool[i] is a column
        raise InputError(f"pool is a {type(pool).__name__}; pass its to_numpy(), or a Dataset")
    if isinstance(pool, Tensor | np.ndarray) and pool.ndim == 0:
        raise InputError("pool has no axis; expected one example a row")
    if isinstance(pool, Tensor) and pool.layout != torch.strided:
        raise InputError(f"pool is of layout {pool.layout}; pass pool.to_dense() or a Dataset")
    return _length(pool)


def rows_a_batch(pool: Pool, batch_size: int) -> int:
    """How many examples a batch has: a DataLoader that keeps the order has its own number.

    >>> rows_a_batch(DataLoader(torch.zeros(9, 3), batch_size=4), 512)
    4
    """
    if not isinstance(pool, DataLoader):
        return batch_size
    assert isinstance(pool.batch_sampler, BatchSampler)  # else `pool_size` has refused it
    return int(pool.batch_sampler.batch_size)


def iterate_batches(
    pool: Pool, position_N: Tensor | None, batch_size: int, float_dtype: torch.dtype
) -> Generator[tuple[int, Any], None, None]:
    """The examples at `position_N` (all of them when None) as (number of rows, batch).

    A DataLoader keeps its own batch size, and its own collation if it has one. Of NumPy arrays
    and Python numbers, whose default is float64, real numbers are given as `float_dtype`, in the
    examples of a dataset as in an array; a tensor keeps its dtype. Positions in an iterable
    dataset must ascend. Closed, it ends a loader's workers.
    """
    if type(pool) is TensorDataset:  # slicing takes a 15th of the time of collating
        for rows in _row_slices(pool_size(pool), position_N, batch_size):
            columns = tuple(_sliced(tensor, rows, float_dtype) for tensor in pool.tensors)
            yield len(columns[0]), columns
    elif isinstance(pool, Tensor | np.ndarray):
        for rows in _row_slices(len(pool), position_N, batch_size):
            batch = _sliced(pool, rows, float_dtype)
            yield len(batch), batch
    elif isinstance(pool, Mapping):
        for rows in _row_slices(pool_size(pool), position_N, batch_size):
            named = {name: _sliced(column, rows, float_dtype) for name, column in pool.items()}
            yield len(next(iter(named.values()))), named
    else:
        loader = _loader(pool, position_N, batch_size, float_dtype)
        rows_left = len(loader.dataset)  # type: ignore[arg-type]
        streamed = isinstance(loader.dataset, IterableDataset)
        for collated in loader:
            count = min(loader.batch_size or 1, rows_left)
            if streamed:  # whose length is what somebody says, so a batch counts for itself
                count = next((len(t) for t in _tensors(collated) if t.ndim), count)
            rows_left -= count
            yield count, collated


def model_arguments(
    batch: Any, forward: Callable[..., Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What of a batch a model's forward takes: positional and keyword arguments.

    A tensor is the input. Of a tuple or list, as many elements from the start are as forward has
    arguments without default; what follows (labels, ids) is left out. Of a mapping, the names that
    forward has are, labels only where it must have them; all the rest where it takes any keyword
    and names none of them, and the mapping itself where it has one argument of another name.

    >>> def forward(input_ids, attention_mask=None, labels=None): ...
    >>> model_arguments({"input_ids": 1, "labels": 2, "text": "a"}, forward)
    ((), {'input_ids': 1})
    >>> model_arguments([torch.ones(2), torch.zeros(2)], forward)
    ((tensor([1., 1.]),), {})
    """
    if isinstance(batch, Tensor):  # first: the signature takes longer than many a small model
        return (batch,), {}
    named, required, any_keyword = _parameters(forward)
    if isinstance(batch, list | tuple) and batch:
        if isinstance(batch[0], Mapping):
            return model_arguments(batch[0], forward)
        if isinstance(batch[0], list | tuple) and (len(required) > 1 or len(batch[0]) == 1):
            return model_arguments(batch[0], forward)
        if len(batch) < len(required):
            raise InputError(
                f"the model's forward takes {', '.join(required)} but a batch is a "
                f"{type(batch).__name__} of {len(batch)}; pass forward=lambda model, batch: ..."
            )
        found = tuple(batch[: max(len(required), 1)])
        if all(_holds(value, Tensor) for value in found):
            return found, {}
    elif isinstance(batch, Mapping):
        known = {name: value for name, value in batch.items() if name in named}
        if not known and len(required) == 1 and not any_keyword:
            return (batch,), {}
        kept = known if known or not any_keyword else dict(batch)
        return (), {n: v for n, v in kept.items() if n in required or n not in _LABELS}
    found_in = batch[0] if isinstance(batch, list | tuple) and batch else batch
    raise InputError(
        f"the model's input would be a {type(found_in).__name__}, found in a batch of type "
        f"{type(batch).__name__}; expected a tensor, a tuple that starts with one, or a dict; else "
        "pass forward=lambda model, batch: ..."
    )


def moved(value: Any, device: torch.device | None) -> Any:
    """The batch with its tensors on `device`; containers keep their kind."""
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if hasattr(value, "to"):  # a BatchEncoding, a graph, a packed sequence
        return value.to(device)
    return _rebuilt(value, [moved(part, device) for part in _parts(value)])


def rows_of(value: Any, rows: slice, count: int) -> Any:
    """Some rows of a batch of `count` examples: of its tensors, and of lists of one item each."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim > 0 and len(value) == count else value
    per_example = isinstance(value, list | tuple) and len(value) == count
    if per_example and not any(isinstance(part, Tensor) and len(part) == count for part in value):
        return value[rows]
    return _rebuilt(value, [rows_of(part, rows, count) for part in _parts(value)])


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _rebuilt(value: Any, parts: list[Any]) -> Any:
    """A container of the same kind with other parts; anything else as it is."""
    if isinstance(value, MutableMapping):
        new = copy.copy(value)  # a BatchEncoding stays one
        new.update(zip(value, parts, strict=True))
        return new
    if isinstance(value, Mapping):
        return dict(zip(value, parts, strict=True))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*parts)
    return type(value)(parts) if isinstance(value, list | tuple) else value


def _parameters(forward: Callable[..., Any]) -> tuple[set[str], list[str], bool]:
    """Names that can be passed by keyword, those without default, and whether any other may be."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # a compiled function
        return set(), [], True
    plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p.name for p in plain if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    return {p.name for p in plain}, required, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _holds(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) or any(_holds(part, kinds) for part in _parts(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for part in _parts(value):
        yield from _tensors(part)


def _row_slices(N: int, position_N: Tensor | None, batch_size: int) -> Iterator[slice | Tensor]:
    if position_N is None:
        yield from (slice(start, start + batch_size) for start in range(0, N, batch_size))
    else:
        yield from torch.split(position_N, batch_size)


def _sliced(
    column: Tensor | NDArray[Any], rows: slice | Tensor, float_dtype: torch.dtype
) -> Tensor:
    if isinstance(column, Tensor):
        if isinstance(rows, slice):
            return column[rows]  # a view
        # 3 times faster than column[rows] for 512 rows of 784 floats
        return column.index_select(0, rows.to(column.device))
    return _cast(column[rows if isinstance(rows, slice) else rows.numpy()], float_dtype)


def _cast(array: NDArray[Any], float_dtype: torch.dtype) -> Tensor:
    tensor = as_tensor(array)
    return tensor.to(float_dtype) if tensor.is_floating_point() else tensor


def _none(examples: list[Any], *, collate_fn_map: Any) -> None:
    """What stands for the labels of a pool that has none."""


_COLLATE = default_collate_fn_map | {type(None): _none}


def _collate(examples: list[Any], float_dtype: torch.dtype) -> Any:
    """The default collation of examples whose arrays and numbers are as `_sliced` gives them."""
    if _holds(examples[0], (np.ndarray, float, np.floating)):  # 3 microseconds an example
        examples = [_with_tensors(example, float_dtype) for example in examples]
    try:
        return collate(examples, collate_fn_map=_COLLATE)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the examples make no batch: {reason}; pass a DataLoader with a collate_fn of your own"
        ) from error


def _with_tensors(value: Any, float_dtype: torch.dtype) -> Any:
    if isinstance(value, np.ndarray):
        return _cast(value, float_dtype)
    if isinstance(value, float | np.floating):
        return torch.tensor(float(value), dtype=float_dtype, device="cpu")
    return _rebuilt(value, [_with_tensors(part, float_dtype) for part in _parts(value)])


def _loader(
    pool: Any, position_N: Tensor | None, batch_size: int, float_dtype: torch.dtype
) -> DataLoader[Any]:
    collate_fn: Any = partial(_collate, float_dtype=float_dtype)
    dataset, options = pool, {}
    if isinstance(pool, DataLoader):
        dataset = pool.dataset
        if pool.collate_fn is not default_collate:
            collate_fn = pool.collate_fn
        options = {name: getattr(pool, name) for name in _LOADING}
    return DataLoader(
        dataset if position_N is None else _subset(dataset, position_N),
        batch_size=rows_a_batch(pool, batch_size),
        collate_fn=collate_fn,
        generator=torch.Generator(),  # without one it draws a number from torch's global one
        **options,
    )


def _subset(dataset: Any, position_N: Tensor) -> Dataset[Any]:
    if isinstance(dataset, IterableDataset):
        return _Kept(dataset, position_N)
    return Subset(dataset, position_N.tolist())


class _Kept(IterableDataset[Any]):
    """The examples of an iterable dataset at ascending positions."""

    def __init__(self, dataset: Any, position_N: Tensor) -> None:
        self.dataset, self.position_N = dataset, position_N

    def __len__(self) -> int:
        return len(self.position_N)

    def __iter__(self) -> Iterator[Any]:
        kept, count = set(self.position_N.tolist()), 0
        for i, example in enumerate(self.dataset):
            count += 1
            if i in kept:
                yield example
        if count != len(self.dataset):
            raise InputError(
                f"the pool gave {count} examples but has length {len(self.dataset)}; "
                "mend its __len__"
            )


def _length(pool: Any) -> int:
    name = type(pool).__name__
    if not isinstance(pool, IterableDataset) and not hasattr(pool, "__getitem__"):
        raise InputError(
            f"pool is a {name}, which has no positions; "
            "pass a tensor, an array, a map-style Dataset or a DataLoader over one"
        )
    try:
        size = len(pool)
    except TypeError:
        raise InputError(f"pool is a {name} without a length; give it __len__") from None
    if size == 0:
        raise InputError(f"pool is empty ({name}); expected at least one example")
    return size


def _length_of_columns(pool: Columns) -> int:
    odd = [n for n, column in pool.items() if not isinstance(column, Tensor | np.ndarray)]
    lengths = {} if odd else {n: len(c) if c.ndim else 0 for n, c in pool.items()}
    if odd or len(set(lengths.values())) > 1:
        raise InputError(
            f"pool is a {type(pool).__name__} of "
            + (f"a {type(pool[odd[0]]).__name__} in {odd[0]!r}" if odd else f"lengths {lengths}")
            + "; expected tensors or arrays of one length (of a tokenizer: padding=True, "
            "return_tensors='pt')"
        )
    size = next(iter(lengths.values()), 0)
    if size == 0:
        raise InputError(f"pool is empty ({type(pool).__name__}); expected at least one example")
    return size


def _check_order(loader: DataLoader[Any]) -> None:
    dataset_size = _length(loader.dataset)
    kind = type(loader)
    # Accelerate's move batches to a device, and nothing else.
    if kind.__iter__ is not DataLoader.__iter__ and kind.__module__ != "accelerate.data_loader":
        raise InputError(
            f"the DataLoader is a {kind.__name__} with an __iter__ of its own, so what it makes "
            "of its dataset is not known; pass a DataLoader that does it in collate_fn, or a "
            "Dataset"
        )
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler:
        raise InputError(
            "the DataLoader "
            + (f"batches by {type(batches).__name__}" if batches else "has batch_size=None")
            + ", so positions in it are not those of its dataset; "
            "pass DataLoader(dataset, batch_size=..., shuffle=False) or the dataset"
        )
    if loader.num_workers > 1 and not getattr(loader, "in_order", True):  # from torch 2.6 on
        raise InputError(
            "the DataLoader has in_order=False, so its workers' batches come in any order; "
            "pass in_order=True"
        )
    if isinstance(loader.dataset, IterableDataset):
        if loader.num_workers > 1:
            raise InputError(
                f"the DataLoader reads an iterable dataset with {loader.num_workers} workers, "
                "which give examples in turn, so their order is not known; pass num_workers=1 or 0"
            )
    else:
        sampler: Any = batches.sampler
        if type(sampler) is not SequentialSampler or len(sampler) != dataset_size:
            raise InputError(
                f"the DataLoader shuffles or samples ({type(sampler).__name__}), so positions in "
                "it are not those of its dataset; pass DataLoader(..., shuffle=False) or the "
                "dataset"
            )
    if batches.drop_last and dataset_size % batches.batch_size:
        raise InputError(
            f"the DataLoader has drop_last=True and would drop the last "
            f"{dataset_size % batches.batch_size} of {dataset_size} examples; pass drop_last=False"
        )

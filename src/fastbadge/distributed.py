"""Processes that work together: what all of them know, and how all of them fail.

Whatever a process does between two exchanges can fail. Then it still takes part in the next one
and says so there, and every process raises: the one that failed its own error, the others a
DistributedError with its words. Nobody waits for someone who has left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch import distributed as dist

from fastbadge.errors import DistributedError, InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Group: TypeAlias = "ProcessGroup | Literal[False] | None"
_Value = TypeVar("_Value")


class Job:
    """The processes of a torch.distributed group, or this one alone.

    Args:
        group: the process group; None for the default one, or for this process alone where
            torch.distributed is not initialised; False for this process alone.

    Raises:
        InputError: this process is not in the group.

    >>> Job().size, Job().gather("anything")
    (1, ['anything'])
    """

    def __init__(self, group: Group = None) -> None:
        self.rank, self.size = 0, 1
        self.device = torch.device("cpu")
        self.group = None if group is False else group
        if group is False or not (dist.is_available() and dist.is_initialized()):
            return
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise InputError("this process is not in group; only those that are may call")
        if "cpu:" not in dist.get_backend_config(group):  # nccl speaks for GPUs only
            self.device = torch.device("cuda", torch.cuda.current_device())

    def gather(self, value: _Value) -> list[_Value]:
        """What every process has to say, in order of rank; a few numbers, pickled."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        with self._all_there():
            dist.all_gather_object(said, value, group=self.group)
        return said

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that every process leaves in the same way: if one raises, all do."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        self._raise_any(failure)

    @contextmanager
    def adding(self, num_words: int) -> Iterator[Tensor]:
        """A block that fills its words of an int32 [num_words] of zeros.

        After it the tensor holds what every process has filled. A sum of words, of which all but
        one are 0, keeps the bits of whatever they stand for.
        """
        word = torch.zeros(num_words + 1, dtype=torch.int32, device=self.device)
        failure: Exception | None = None
        try:
            yield word[:num_words]
        except Exception as error:
            failure = error
            word[num_words] = 1
        if self.size > 1:
            with self._all_there():
                dist.all_reduce(word, group=self.group)
        if bool(word[num_words]):
            self._raise_any(failure)

    def expect_same(self, **arguments: object) -> None:
        """Raise in all processes if an argument is not the same in each.

        Raises:
            InputError: names the first that differs, and where.
        """
        said = self.gather({name: repr(value) for name, value in arguments.items()})
        for name, first in said[0].items():
            for rank, values in enumerate(said):
                if values[name] != first:
                    raise InputError(
                        f"{name} is {first} in process 0 but {values[name]} in process {rank}; "
                        "every process must pass the same"
                    )

    def align(self, generator: Generator) -> None:
        """Bring the generators of all processes to the state of the first one's."""
        if self.size > 1:
            state = generator.get_state() if self.rank == 0 else None
            generator.set_state(self.gather(state)[0])  # type: ignore[arg-type]

    def _raise_any(self, failure: Exception | None) -> None:
        reasons = self.gather(None if failure is None else _line_about(failure))
        if failure is not None:
            raise failure
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise DistributedError(f"process {rank} of {self.size} failed: {reason}")

    @contextmanager
    def _all_there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of the backend: a lost connection, the group's timeout
            raise DistributedError(
                f"process {self.rank} of {self.size} waited in vain for another, which has ended, "
                f"hangs or does not make the same calls ({_line_about(error)}); look for the "
                "first error among the others, or pass group=False to work alone"
            ) from error


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """The rows of a pool that one process works on, `start` to `stop` - 1.

    >>> shard = Shard.of(Job(), num_rows=5, step=2)
    >>> len(shard), shard.lowest(torch.tensor([3.0, 1.0, 2.0, 1.0, 5.0]), k=3)
    (5, tensor([1, 3, 2]))
    """

    job: Job
    start: int
    stop: int

    @classmethod
    def of(cls, job: Job, num_rows: int, step: int) -> Shard:
        """This process's part, as even as whole steps allow, so that each batch is a whole one."""
        steps = -(-num_rows // step)
        start, stop = (steps * rank // job.size * step for rank in (job.rank, job.rank + 1))
        return cls(job, start, min(stop, num_rows))

    def __len__(self) -> int:
        return self.stop - self.start

    def lowest(self, value_N: Tensor, k: int) -> Tensor:
        """Rows of the k lowest values in the whole pool, from the values of each shard's rows.

        LongTensor[k], the lowest first; ties go to the lowest row. At most k values a process
        travel.
        """
        row_K = value_N.argsort(stable=True)[:k]
        said = self.job.gather((value_N[row_K].cpu().numpy(), row_K.cpu().numpy() + self.start))
        values, rows = (np.concatenate(part) for part in zip(*said, strict=True))
        return torch.from_numpy(rows[np.argsort(values, kind="stable")[:k]])


def check_whole(model: nn.Module) -> None:
    """Refuse a model that no process can run without the others.

    Raises:
        InputError: some of its parameters lie in other processes.
    """
    for module in model.modules():
        names = {kind.__name__ for kind in type(module).__mro__}
        if names & {"FullyShardedDataParallel", "FSDPModule"}:
            raise InputError(
                "the model's parameters are spread over the processes (FSDP), which then must run "
                "it in step; pass group=False, and each runs it over the whole pool"
            )


@contextmanager
def silent(model: nn.Module) -> Iterator[None]:
    """Let no DistributedDataParallel in the model speak, as its forward pass does to send buffers.

    Processes whose shards differ in length would wait for each other.
    """
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    wrappers = [m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]
    flags = [wrapper.require_forward_param_sync for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.require_forward_param_sync = False
    try:
        yield
    finally:
        for wrapper, flag in zip(wrappers, flags, strict=True):
            wrapper.require_forward_param_sync = flag


def _line_about(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"[:500]

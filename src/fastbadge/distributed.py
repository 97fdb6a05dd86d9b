"""Processes that work together: what all of them know, and how all of them fail.

Whatever a process does between two exchanges can fail. Then it still takes part in the next one
and says so there, and every process raises: the one that failed its own error, the others a
DistributedError with its words. Nobody waits for someone who has left.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar
from zlib import crc32

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch import distributed as dist
from torch.nn.parameter import is_lazy

from fastbadge.errors import DistributedError, InputError
from fastbadge.inputs import is_whole

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Group: TypeAlias = "ProcessGroup | Literal[False] | None"
_Value = TypeVar("_Value")

_yield_core: Callable[[], object] = getattr(os, "sched_yield", lambda: sleep(0))

# Bytes of a short message; longer ones take a second exchange.
_FRAME = 512


@dataclass(eq=False, slots=True)
class Said:
    """What this process has to say, and what each has said, in order of rank; a few numbers."""

    here: Any = None
    everywhere: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a call of several processes must agree on: its arguments, and a digest of the generator.

    >>> Terms.of(torch.Generator().manual_seed(0), k=5).arguments
    {'k': '5'}
    """

    arguments: dict[str, str]
    state: bytes

    @classmethod
    def of(cls, generator: Generator, **arguments: object) -> Terms:
        """Of the arguments their words, and of 5,000 bytes of state 16."""
        # int(): of equal numbers NumPy's have another repr.
        words = {n: repr(int(v) if is_whole(v) else v) for n, v in arguments.items()}
        return cls(words, blake2b(generator.get_state().numpy().data, digest_size=16).digest())


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
        message = pickle.dumps(value)
        # One exchange for what fits a frame, behind its length; a second one for more.
        frame = len(message).to_bytes(8, "little") + message[: _FRAME - 8].ljust(_FRAME - 8)
        frames = self._bytes_to_all(frame, [_FRAME] * self.size)
        lengths = [int.from_bytes(frame[:8], "little") for frame in frames]
        messages = [frame[8:] for frame in frames]
        if max(lengths) > _FRAME - 8:
            messages = self._bytes_to_all(message, lengths)
        return [pickle.loads(message) for message in messages]

    @contextmanager
    def together(self) -> Iterator[Said]:
        """A block that every process leaves in the same way: if one raises, all do.

        What each has to say by then, the others know afterwards: one exchange for both.

        >>> with Job().together() as said:
        ...     said.here = "anything"
        >>> said.everywhere
        ['anything']
        """
        said = Said()
        failure: Exception | None = None
        try:
            yield said
        except Exception as error:
            failure = error
        said.everywhere = self._raise_any(failure, said.here)

    def share(self, counts: Sequence[int], work: Callable[[], Tensor]) -> Tensor:
        """Do some work in every process, and give the words it results in to all.

        Args:
            counts: how many words the work of each process gives, known to all.
            work: gives this process's, int32; if one raises, all do.

        Returns:
            int32 [sum(counts)], in order of rank, on `device`.
        """
        failure: Exception | None = None
        # The first word is 1 of a process that failed.
        ours = torch.zeros(1 + counts[self.rank], dtype=torch.int32, device=self.device)
        try:
            ours[1:] = work()
        except Exception as error:
            failure = error
            ours[0] = 1
        parts = self._to_all(ours, [1 + count for count in counts])
        if any(bool(part[0]) for part in parts):
            self._raise_any(failure)
        return torch.cat([part[1:] for part in parts])

    def align(self, generator: Generator, terms: Sequence[Terms]) -> None:
        """Bring the generators of all processes to the state of the first one's.

        Args:
            generator: this process's.
            terms: those of each process, of this generator and of its arguments.

        Raises:
            InputError: an argument is not the same in each process; names the first, and where.
        """
        for name, first in terms[0].arguments.items():
            for rank, said in enumerate(terms):
                if said.arguments[name] != first:
                    raise InputError(
                        f"{name} is {first} in process 0 but {said.arguments[name]} in process "
                        f"{rank}; every process must pass the same"
                    )
        if len({said.state for said in terms}) > 1:
            state = self.gather(generator.get_state() if self.rank == 0 else None)[0]
            generator.set_state(state)  # type: ignore[arg-type]

    def _raise_any(self, failure: Exception | None, value: object = None) -> list[Any]:
        """What every process has to say, unless one of them has failed."""
        said = self.gather((None if failure is None else _line_about(failure), value))
        if failure is not None:
            raise failure
        for rank, (reason, _) in enumerate(said):
            if reason is not None:
                raise DistributedError(f"process {rank} of {self.size} failed: {reason}")
        return [value for _, value in said]

    def _bytes_to_all(self, ours: bytes, counts: Sequence[int]) -> list[bytes]:
        byte = torch.frombuffer(bytearray(ours), dtype=torch.uint8).to(self.device)
        return [part.cpu().numpy().tobytes() for part in self._to_all(byte, counts)]

    def _to_all(self, ours: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
        """What every process has, so many entries of each."""
        if self.size == 1:
            return [ours]
        theirs = ours.new_empty(sum(counts))
        try:
            # A third of the time of all_gather or all_reduce over gloo, and no padding.
            exchange = dist.all_to_all_single(
                theirs,
                ours.repeat(self.size),
                counts,
                [len(ours)] * self.size,
                group=self.group,
                async_op=True,
            )
            if not theirs.is_cuda:
                _watch(exchange)
            exchange.wait()
            if theirs.is_cuda:  # what goes wrong shows when it is waited for
                torch.cuda.current_stream().synchronize()
        except RuntimeError as error:  # of the backend: a lost connection, the group's timeout
            raise DistributedError(
                f"process {self.rank} of {self.size} waited in vain for another, which has ended, "
                f"hangs or does not make the same calls ({_line_about(error)}); look for the "
                "first error among the others, or pass group=False to work alone"
            ) from error
        return torch.split(theirs, list(counts))


def _watch(exchange: dist.Work) -> None:
    """Stay awake until it is over, for 2 ms at most.

    An idle core sleeps, and takes longer to wake up than the message took. The backend's own
    threads, which do the work, have the core whenever they want it.
    """
    deadline = perf_counter() + 2e-3
    while not exchange.is_completed() and perf_counter() < deadline:
        _yield_core()


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """The rows of a pool that this process works on, `start` to `stop` - 1, and how the others lie.

    >>> shard = Shard.of(Job(), num_rows=5, step=2)
    >>> shard.num_rows, shard.lowest(torch.tensor([3.0, 1.0, 2.0, 1.0, 5.0]), k=3)
    (5, tensor([1, 3, 2]))
    """

    job: Job
    bounds: tuple[int, ...]  # where the rows of each process begin, and where the last ones end

    @classmethod
    def of(cls, job: Job, num_rows: int, step: int) -> Shard:
        """Parts as even as whole steps allow, so that each batch is a whole one."""
        steps = -(-num_rows // step)
        starts = (steps * rank // job.size * step for rank in range(job.size))
        return cls(job, (*starts, num_rows))

    @property
    def start(self) -> int:
        """The first row of this process."""
        return self.bounds[self.job.rank]

    @property
    def stop(self) -> int:
        """The row after its last one."""
        return self.bounds[self.job.rank + 1]

    @property
    def num_rows(self) -> int:
        """How many; a shard is no sequence, of which one without rows would count as False."""
        return self.stop - self.start

    @property
    def sizes(self) -> list[int]:
        """How many rows each process has."""
        return [stop - start for start, stop in pairwise(self.bounds)]

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
        InputError: some of its parameters lie in other processes, or it is no module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    for module in model.modules():
        names = {kind.__name__ for kind in type(module).__mro__}
        if names & {"FullyShardedDataParallel", "FSDPModule"}:
            raise InputError(
                "the model's parameters are spread over the processes (FSDP), which then must run "
                "it in step; pass group=False, and each runs it over the whole pool"
            )
    if any("DTensor" in {kind.__name__ for kind in type(p).__mro__} for p in model.parameters()):
        raise InputError(
            "the model's parameters are spread over the processes (DTensor, as for tensor "
            "parallelism), which then must run it in step; pass a whole model"
        )


def checksum(tensors: Iterable[Tensor]) -> str:
    """Eight digits that tell apart what was trained apart: of the sum of the bits of each tensor.

    >>> checksum([torch.ones(2), torch.ones(2)]) == checksum([torch.ones(2), torch.zeros(2)])
    False
    """
    # Integers, whose sum does not depend on the order of additions, and so not on threads.
    sums = [_bits(tensor).sum(dtype=torch.int64).cpu() for tensor in tensors if not is_lazy(tensor)]
    return f"{crc32(torch.tensor(sums, dtype=torch.int64).numpy().data):08x}"


def _bits(tensor: Tensor) -> Tensor:
    dense = tensor.detach().to_dense()
    if dense.is_complex():
        dense = torch.view_as_real(dense)
    return dense.view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dense.itemsize]
    )


@contextmanager
def lent_buffers(job: Job, model: nn.Module) -> Iterator[None]:
    """Let every process run the model with the first one's buffers, and give back its own.

    What batch normalisation has seen in training is not the same in each.

    Raises:
        InputError: the buffers of some process have other shapes.
    """
    own = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    lent = job.gather([buffer.cpu() for _, _, buffer in own] if job.rank == 0 else None)[0]
    with job.together():
        assert lent is not None
        if [b.shape for b in lent] != [b.shape for _, _, b in own]:
            raise InputError(
                "the model's buffers have other shapes than in process 0; pass the same model in "
                "every process, or group=False"
            )
    try:
        for (module, name, buffer), other in zip(own, lent, strict=True):
            setattr(module, name, other.to(buffer.device))
        yield
    finally:
        try:
            _set_buffers(own)
        finally:  # again, as Ctrl-C may have come between
            _set_buffers(own)


def _set_buffers(buffers: Iterable[tuple[nn.Module, str, Tensor]]) -> None:
    for module, name, buffer in buffers:
        setattr(module, name, buffer)


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

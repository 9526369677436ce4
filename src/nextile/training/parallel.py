"""The processes that train one model together: how many there are, which of them this is, what they agree on.

`torchrun` starts them and says so in their environment. Without it there is one process, `ALONE`, and nothing here
costs anything or imports torch.distributed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from math import gcd
from socket import create_connection
from typing import TYPE_CHECKING, Annotated, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from nextile.base.config import Settings
from nextile.base.errors import NextileError, UsageError
from nextile.data.batches import Batch, MicroBatches

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.device_mesh import DeviceMesh

# How long a process waits for the others in one exchange: above what one of them may compile or write meanwhile. The
# death of another is known at once, by its closed connection.
PATIENCE = timedelta(minutes=15)
DAY = timedelta(days=1)  # what the first may take to tokenize a corpus
NAMES = ("replicate", "shard", "tensor")  # the axes of the mesh; processes that are near get the last
LOST = ("connection", "peer", "socket", "timed out", "timeout", "recv", "unhandled system error", "remote process")

Some = Annotated[int, Field(ge=1, le=1 << 20)]
Value = TypeVar("Value")


class Parallel(Settings):
    """How the processes of torchrun share a model; the three numbers multiply to that of the processes.

    replicate: groups that hold a whole model each and divide the rows; None: what the others leave.
    shard: processes of a group that divide rows, parameters and the optimizer's state (FSDP2).
    tensor: processes that divide the matrices and work on the same rows (tensor parallelism).
    """

    replicate: Some | None = None
    shard: Some = 1
    tensor: Some = 1


# --- what the environment says ---------------------------------------------------------------------------------------


def launched(env: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or what sets the same variables, started this process."""
    return all(name in env for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def rank_of(env: Mapping[str, str] = os.environ) -> int:
    """Which process this is, from 0."""
    return int(env["RANK"]) if launched(env) else 0


def restarted(env: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process again after one of them was lost."""
    return launched(env) and int(env.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_speak(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process tells of its error: of all that have one the first, which had the cause."""
    if not launched(env):
        return True
    try:
        with create_connection((env["MASTER_ADDR"], int(env["MASTER_PORT"])), timeout=5):  # torch would complain aloud
            store = _store(timedelta(seconds=5))
        return store.add(_key("errors", env), 1) == 1
    except (OSError, RuntimeError, ValueError):
        return rank_of(env) == 0  # whatever held the store is gone


def _store(timeout: timedelta, hosts: bool = False) -> TCPStore:
    """The store of keys by which the processes find each other; torchrun holds it, or the process that `hosts` it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=hosts, timeout=timeout)


def _key(name: str, env: Mapping[str, str] = os.environ) -> str:
    """A key of this start alone: torchrun holds one store through all restarts."""
    return f"nextile/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


# --- the mesh --------------------------------------------------------------------------------------------------------


def shape_of(asked: Parallel, size: int) -> tuple[int, int, int]:
    """The mesh of so many processes: replicate, shard, tensor.

    Errors: UsageError, with both numbers and the remedy, where they do not multiply to the size.
    """
    inner = asked.shard * asked.tensor
    replicate = asked.replicate or max(1, size // inner)
    if replicate * inner == size:
        return replicate, asked.shard, asked.tensor
    said = f"replicate={asked.replicate} x " if asked.replicate else ""
    mesh = f"a mesh of {said}shard={asked.shard} x tensor={asked.tensor}"
    if size == 1:
        needed = f"torchrun --nproc-per-node {replicate * inner} -m nextile train ..."
        raise UsageError(f"{mesh} needs {replicate * inner} processes and this is one: start them by {needed}")
    verb = "needs" if asked.replicate else "does not divide"
    raise UsageError(f"{mesh} {verb} {f'{replicate * inner} processes, not ' if asked.replicate else ''}{size}"
                     f"{'' if asked.replicate else ' processes'}: choose parallel.* whose product is {size}, "
                     f"or start another number by --nproc-per-node")  # fmt: skip


def fitted(asked: Parallel, size: int) -> Parallel:
    """The mesh of a run that goes on with another number of processes: what was divided stays so, where it can."""
    if (asked.replicate or 1) * asked.shard * asked.tensor == size:
        return asked
    tensor = gcd(asked.tensor, size)
    return Parallel(shard=gcd(asked.shard, size // tensor), tensor=tensor)


@dataclass(frozen=True)
class World:
    """The processes, seen from one of them."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    shape: tuple[int, int, int] = (1, 1, 1)

    @property
    def first(self) -> bool:
        """Whether this is the one that tells and writes."""
        return self.rank == 0

    @property
    def whole(self) -> bool:
        """Whether every process has the whole model."""
        return self.shape[1:] == (1, 1)

    @property
    def readers(self) -> int:
        """How many parts the rows of a batch are divided into."""
        return self.shape[0] * self.shape[1]

    @property
    def reader(self) -> int:
        """Which part this process reads."""
        return self.rank // self.shape[2]

    def meshed(self, asked: Parallel, device: torch.device) -> World:
        """The same processes as a mesh. Errors: UsageError where they are not that many."""
        shape = shape_of(asked, self.size)
        if self.size == 1:
            return self
        from torch.distributed.device_mesh import init_device_mesh

        return replace(self, mesh=init_device_mesh(device.type, shape, mesh_dim_names=NAMES), shape=shape)

    # --- agreeing ---------------------------------------------------------------------------------------------------

    def most(self, *numbers: int) -> tuple[int, ...]:
        """The largest that any process gives, of each."""
        if self.size == 1:
            return numbers
        import torch.distributed as dist

        given = torch.tensor(numbers)
        dist.all_reduce(given, dist.ReduceOp.MAX)
        return tuple(given.tolist())

    def said(self, value: Value) -> Value:
        """What the first process gives: a value for JSON."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        text = json.dumps(value).encode() if self.first else b""
        (length,) = self.most(len(text))
        sent = torch.frombuffer(bytearray(text or bytes(length)), dtype=torch.uint8)
        dist.broadcast(sent, 0)
        return json.loads(bytes(sent.tolist()))

    def meet(self) -> None:
        """Go on when all are here."""
        self.most(0)

    def sum(self, number: Tensor) -> Tensor:
        """The sum of () over all processes."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(number)
        return number

    def after_first(self, what: str, work: Callable[[], Value]) -> Value | None:
        """What the first does, however long it takes, before the others go on with None.

        what: a name for it. Errors: NextileError on the others when it failed.
        """
        if self.size == 1:
            return work()
        key, store = _key(what), _store(DAY)
        if not self.first:
            if store.get(key) == b"failed":
                raise NextileError(f"the first process failed in {what}: see what it says")
            return None
        try:
            found = work()
        except BaseException:
            store.set(key, "failed")
            raise
        store.set(key, "done")
        return found

    # --- reading ----------------------------------------------------------------------------------------------------

    def rows(self, batch: Batch) -> Batch:
        """This process's rows of a batch, which keeps the count of all its targets.

        Errors: UsageError, with the remedy, when the rows do not divide.
        """
        if self.readers == 1:
            return batch
        number = len(batch.inputs)
        if number % self.readers:
            raise UsageError(indivisible(number, self.readers))
        each = number // self.readers
        mine = slice(self.reader * each, (self.reader + 1) * each)
        beside = tuple(tensor[mine] for tensor in batch.beside)
        return Batch(batch.inputs[mine], batch.targets[mine], batch.weight, beside)


ALONE = World()


def indivisible(rows: int, readers: int) -> str:
    """What is said of a batch that does not divide over the processes."""
    fits = f"set batch to a multiple of {readers}, or accumulate to fewer parts"
    return f"a batch of {rows} rows does not divide over the {readers} processes that read it: {fits}"


@dataclass(frozen=True)
class Rows:
    """The rows that this process reads of each step's micro-batches: the order is the same for every number of them."""

    source: MicroBatches
    world: World

    def __call__(self, step: int) -> list[Batch]:
        """Its part of the micro-batches of a step."""
        return [self.world.rows(batch) for batch in self.source(step)]

    def named(self, step: int) -> str:
        """What the whole step is made of."""
        return self.source.named(step)


# --- beginning and ending --------------------------------------------------------------------------------------------


@contextmanager
def joined() -> Iterator[World]:
    """The processes that torchrun started, together until the end of the block; else `ALONE`.

    Errors: NextileError, in one line, when another process is lost meanwhile.
    """
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    rank, size = rank_of(), int(os.environ["WORLD_SIZE"])
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    # Under a prefix, since a restart would find the addresses of the dead.
    store = dist.PrefixStore(_key("group"), _store(PATIENCE, hosts))  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield World(rank, size)
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in LOST):
            raise
        raise NextileError(
            "another process of this run was lost: start the same command again with --resume and the run's folder, "
            "or let torchrun do it by --max-restarts"
        ) from error
    with suppress(RuntimeError):  # another may have ended already
        dist.destroy_process_group()


def only_alone(world: World, what: str) -> None:
    """Errors: UsageError for what one process does alone."""
    if world.size > 1:
        raise UsageError(f"{what} in one process: leave out torchrun, which started {world.size}")

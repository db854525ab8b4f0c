"""Talk between the processes of one training. One process is the ordinary case and needs no setup.

Control messages (barriers, flags, counts) go over a gloo group on the CPU even where tensors go over NCCL: gloo
notices a dead peer at once and honours its deadline. A failed message is explained by `Heartbeat`, which knows
from the shared store how far each rank came.
"""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_control_group: Any = None
_deadline: float = 180.0


class MissingRankError(RuntimeError):
    """A process of the group died or did not answer within the deadline; the message names it."""


def get_world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def get_local_rank() -> int:
    """The rank on this machine, 0 outside torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main_process() -> bool:
    return get_rank() == 0


def init_process_group(deadline: float = 180.0, device: str = "cpu") -> None:
    """Joins the group that torchrun's environment describes; does nothing for a single process.

    `deadline` in seconds is the longest any rank waits for another one.
    Raises: MissingRankError where not all ranks arrive.
    """
    global _control_group, _deadline
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1 or (dist.is_available() and dist.is_initialized()):
        return
    _deadline = deadline
    timeout = timedelta(seconds=deadline)
    try:
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timeout)
    except Exception as error:
        rank = os.environ.get("RANK")
        raise MissingRankError(
            f"rank {rank}: not all {world} processes joined within {deadline:g} s at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({error})"
        ) from error
    _control_group = dist.new_group(backend="gloo", timeout=timeout)


def destroy_process_group() -> None:
    global _control_group
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    _control_group = None


def synchronize() -> None:
    """Waits for all ranks. Raises MissingRankError that names those which do not come."""
    if get_world_size() > 1:
        with Heartbeat.explained("barrier"):
            dist.monitored_barrier(_control_group, timeout=timedelta(seconds=_deadline), wait_all_ranks=True)


def agree_max(*values: int) -> list[int]:
    """The largest value of each number over all ranks."""
    if get_world_size() == 1:
        return list(values)
    flags = torch.tensor(values, dtype=torch.int64)
    with Heartbeat.explained("flags"):
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=_control_group)
    return flags.tolist()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all ranks, on its device; the input is not changed."""
    if get_world_size() == 1:
        return tensor
    total = tensor.detach().cpu().clone()
    with Heartbeat.explained("sum"):
        dist.all_reduce(total, group=_control_group)
    return total.to(tensor.device)


def share_buffers(module: torch.nn.Module) -> None:
    """Gives every rank the buffers of rank 0, so that all evaluate the model that rank 0 saves.

    Batch norm's running statistics differ from rank to rank while training; the weights do not.
    """
    if get_world_size() == 1:
        return
    with Heartbeat.explained("buffers"):
        for buffer in module.buffers():
            value = buffer.detach().cpu().contiguous()
            dist.broadcast(value, src=0, group=_control_group)
            buffer.copy_(value)


def all_gather(value: Any) -> list[Any]:
    """`value` of every rank, in rank order."""
    if get_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * get_world_size()
    with Heartbeat.explained("gather"):
        dist.all_gather_object(gathered, value, group=_control_group)
    return gathered


def _is_network(error: RuntimeError) -> bool:
    """Whether a message between processes failed, and not something a rank did by itself."""
    words = ("gloo", "nccl", "timed out", "connection closed", "connection reset", "monitoredbarrier", "monitored barrier", "store")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


class Heartbeat:
    """How far each rank came, kept in the store that torchrun's own process serves.

    After a failure the ranks that still live report themselves; who does not is named.
    """

    step = 0

    @staticmethod
    def _store() -> Any:
        return dist.distributed_c10d._get_default_store()

    @classmethod
    def beat(cls, step: int) -> None:
        """Notes that this rank starts `step`."""
        if get_world_size() > 1:
            cls.step = step
            cls._store().set(f"heartbeat/{get_rank()}", f"step {step}, process {os.getpid()} on {os.uname().nodename}")

    @classmethod
    @contextmanager
    def explained(cls, what: str) -> Iterator[None]:
        """Turns a failed message inside into a MissingRankError that names the silent ranks."""
        try:
            yield
        except RuntimeError as error:  # torch.distributed.DistBackendError and gloo's errors are RuntimeErrors
            if get_world_size() == 1 or isinstance(error, MissingRankError) or not _is_network(error):
                raise
            raise MissingRankError(cls.explain(what, error)) from error

    @classmethod
    def explain(cls, what: str, error: BaseException, patience: float = 2.0) -> str:
        rank, world = get_rank(), get_world_size()
        try:
            store = cls._store()
            store.set(f"waiting/{rank}/{cls.step}", "1")
            time.sleep(patience)  # the other survivors see the same failure; give them time to say so
            silent = [r for r in range(world) if not store.check([f"waiting/{r}/{cls.step}"])]
            seen = {r: store.get(f"heartbeat/{r}").decode() if store.check([f"heartbeat/{r}"]) else "never seen" for r in silent}
            names = "; ".join(f"rank {r} (last: {seen[r]})" for r in silent) or "no rank in particular"
        except RuntimeError as store_error:
            names = f"the process that serves the store ({store_error})"
        return (
            f"rank {rank} at step {cls.step}: no answer ({what}) within {_deadline:g} s from {names}. "
            f"If it is only slow, raise dist_timeout. Cause: {str(error).splitlines()[0]}"
        )


class Meeting:
    """Where ranks wait for each other after shares of a job that may take very unequal time, as scenes of a test do.

    A rank that works says so with `beat`; one that is done calls `wait`, which lasts as long as the others get on. All
    ranks must make their meetings in the same order.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.name, self.beats = f"meeting/{next(self._numbers)}", 0

    def beat(self) -> None:
        """Notes that this rank got on by a piece."""
        if get_world_size() > 1:
            self.beats += 1
            Heartbeat._store().set(f"{self.name}/{get_rank()}", str(self.beats))

    def wait(self) -> None:
        """Returns when all ranks wait. Raises MissingRankError where one neither does nor gets on for the deadline."""
        world = get_world_size()
        if world == 1:
            return
        with Heartbeat.explained("meeting"):
            store = Heartbeat._store()
            store.set(f"{self.name}/{get_rank()}", "done")
            seen: dict[int, str] = {}
            last = time.monotonic()
            while late := [r for r in range(world) if seen.get(r) != "done"]:
                for rank in late:
                    key = f"{self.name}/{rank}"
                    said = store.get(key).decode() if store.check([key]) else ""
                    if said != seen.get(rank, ""):
                        seen[rank], last = said, time.monotonic()
                if time.monotonic() - last > _deadline:
                    names = ", ".join(f"rank {r} (pieces done: {seen.get(r) or 0})" for r in late if seen.get(r) != "done")
                    raise MissingRankError(f"rank {get_rank()} is done and waits: no progress within {_deadline:g} s of {names}")
                time.sleep(0.02)

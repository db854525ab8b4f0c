"""Jobs handed out to processes: what every preprocessing does with its scenes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch

from pointcept3m.utils.errors import Failure


def as_done(function: Callable[..., Any], jobs: Sequence[Sequence[Any]], workers: int) -> Iterator[Any]:
    """What `function(*job)` returns for each of `jobs`, in the order in which they get done.

    workers: processes, of which each computes on one thread; 0 works in this process, in the order of the jobs.

    Raises: what a job raises, as it was; those that have not begun are given up then, and those that are done stay done.
    """
    if workers <= 0 or len(jobs) <= 1:
        yield from (function(*job) for job in jobs)
        return
    # spawn: a fork of a process that has used torch's threads can hang
    context = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [pool.submit(_carried, function, job) for job in jobs]
        try:
            for future in as_completed(waiting):
                result = future.result()
                if isinstance(result, Failure):
                    result.reraise()
                yield result
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _carried(function: Callable[..., Any], job: Sequence[Any]) -> Any:
    return Failure.carried(lambda: function(*job))

"""Work on every scene of a data set: shared out to processes of a torchrun or of this machine, told as it goes, in order at the end."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pointcept3m.utils import comm
from pointcept3m.utils.logger import Progress
from pointcept3m.utils.processes import as_done

logger = logging.getLogger("pointcept3m")


class SceneReport(Protocol):
    """What is told of a scene at least."""

    split: str
    name: str


Report = TypeVar("Report", bound=SceneReport)


def run_scenes(
    folders: Sequence[Path], job: Any, work: Callable[..., Report], size_of: Callable[[Path], int], line: Callable[[Report], str], title: str, workers: int = 0
) -> list[Report]:
    """Calls `work(folder, job, tick)` for every scene folder, this process for its share; the reports of all, in the order of `folders`.

    size_of: how much work a scene is, by which torchrun's processes share. workers: processes on this machine, which call
    `work(folder, job)`; 0 works in this one. line: what the log says of a report. title: what the progress counts.
    Raises: ValueError for workers under torchrun; what a scene raises.
    """
    check_workers(workers)
    world, rank = comm.get_world_size(), comm.get_rank()
    share = list(range(len(folders)))
    if world > 1:
        plan = share_out([size_of(folder) for folder in folders], world) if comm.is_main_process() else None
        share = comm.all_gather(plan)[0][rank]
    meeting = comm.Meeting()
    mine: list[Report] = []
    with Progress(len(share), title) as progress:
        for report in _reports([folders[row] for row in share], job, work, workers, meeting):
            mine.append(report)
            logger.info("%s/%s: %s", report.split, report.name, line(report))
            progress.update(text=f"{report.split}/{report.name}")
    meeting.wait()
    order = {(folder.parent.name, folder.name): row for row, folder in enumerate(folders)}
    return sorted((report for part in comm.all_gather(mine) for report in part), key=lambda report: order[report.split, report.name])


def check_workers(workers: int) -> None:
    """Raises ValueError where both torchrun and `workers` make processes."""
    world = comm.get_world_size()
    if workers > 1 and world > 1:
        raise ValueError(f"--workers {workers} under torchrun's {world} processes: use one of the two")


def share_out(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """The numbers of the jobs of each of `parts` workers, so that their sums of `sizes` are about even.

    The largest job goes first, each to whom has least; a worker's own are in the order of their numbers.
    """
    loads, shares = [0] * parts, [[] for _ in range(parts)]
    for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)):
        part = loads.index(min(loads))
        loads[part] += max(1, sizes[row])
        shares[part].append(row)
    return [sorted(share) for share in shares]


def _reports(folders: Sequence[Path], job: Any, work: Callable[..., Report], workers: int, meeting: comm.Meeting) -> Iterator[Report]:
    if workers > 1:
        yield from as_done(work, [(folder, job) for folder in folders], workers)
        return
    for folder in folders:
        yield work(folder, job, meeting.beat)

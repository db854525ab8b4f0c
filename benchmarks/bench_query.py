"""A text query over a million points: ours against the product of the text with every point's feature in the text's space.

    OMP_NUM_THREADS=2 python benchmarks/bench_query.py

Features of a backbone (96 channels) under a linear head into a text space of 384 (MiniLM) and 512 channels (CLIP). Plain is
what OpenScene does: the head's output of every point, of length 1, times the text's vector. Ours never makes that output
(`UnitVectors`). Wall time is the median and the least of the runs, which take turns; process time, the median of what both
threads computed, does not mind what else the machine does.
"""

import statistics
import time

import measure
import torch
from torch.nn import functional as F

from pointcept3m.engines.open_vocabulary.scene_embedding import ROWS, SceneEmbedding, UnitVectors

POINTS, WIDTH = 1_000_000, 96
SPACES = {"MiniLM, 384": 384, "CLIP, 512": 512}
VOXELS = {"a voxel for each point": POINTS, "3.3 points a voxel": 300_000}


def timed(runs: dict[str, measure.Run], repeats: int) -> dict[str, tuple[float, float, float]]:
    """(median, least) wall and median process milliseconds of each run; they take turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            wall, process = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.perf_counter() - wall, time.process_time() - process))
    found = {}
    for name, pairs in taken.items():
        walls, processes = zip(*pairs[1:], strict=True)
        found[name] = (1e3 * statistics.median(walls), 1e3 * min(walls), 1e3 * statistics.median(processes))
    return found


def once(run: measure.Run) -> tuple[float, object]:
    """(milliseconds, result) of a run."""
    start = time.perf_counter()
    result = run()
    return 1e3 * (time.perf_counter() - start), result


def plain_features(feature: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The head's output [V, D] of length 1."""
    result = torch.empty(len(feature), len(weight))
    for start in range(0, len(feature), ROWS):
        result[start : start + ROWS] = F.normalize(feature[start : start + ROWS] @ weight.T, dim=1)
    return result


def main() -> None:
    """Prints the table."""
    options = measure.parser(__doc__, repeats=15).parse_args()
    measure.start(options)
    rows = []
    for space, dim in SPACES.items():
        for density, count in VOXELS.items():
            feature, weight, text = torch.randn(count, WIDTH), torch.randn(dim, WIDTH), F.normalize(torch.randn(1, dim), dim=1)
            place = torch.arange(POINTS) if count == POINTS else torch.randint(count, (POINTS,))
            first_ours, unit = once(lambda f=feature, w=weight: UnitVectors.of_linear(f, w))
            first_plain, full = once(lambda f=feature, w=weight: plain_features(f, w))
            ours = SceneEmbedding("3d", unit, place.numpy())

            def plain(full=full, text=text, place=place) -> torch.Tensor:
                found = full @ text[0]
                return found if len(found) == POINTS else found[place]

            error = float((torch.from_numpy(ours.similarity(text)[0]) - plain()).abs().max())
            assert error < 1e-5, error
            found = timed({"ours": lambda ours=ours, text=text: ours.similarity(text), "plain": plain}, options.repeats)
            size = {"ours": unit.rows.nbytes, "plain": full.nbytes}
            first = {"ours": first_ours, "plain": first_plain}
            for name, (median, least, process) in found.items():
                ratio = found["plain"][2] / process
                rows.append([space, density, name, median, least, process, first[name], size[name] / 1e6, ratio if name == "ours" else "", error])
    measure.table(
        ["text space", "scene", "way", "median ms", "least ms", "process ms", "before the first, ms", "MB held", "times less process time", "largest difference"], rows
    )


if __name__ == "__main__":
    main()

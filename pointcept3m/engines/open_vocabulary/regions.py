"""Where in a scene something is: the points above a threshold, and the connected region of them that answers best."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CELL = 0.1  # metres; points are connected where their cells of this size touch, by a corner at least
TOP = 0.999  # quantile of the similarities that counts as the top: one point alone does not
SHARE = 0.75  # of the way from the median to the top


@dataclass
class Region:
    """A connected part of a scene. points: int64 [n], its rows. low, high: [3], its box in metres. mean, best: similarity."""

    points: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: float
    best: float

    @property
    def center(self) -> NDArray[np.float64]:
        return (self.low + self.high) / 2

    @property
    def size(self) -> NDArray[np.float64]:
        return self.high - self.low

    def __str__(self) -> str:
        size = " x ".join(f"{length:.2f}" for length in self.size)
        return f"{size} m about ({', '.join(f'{value:.2f}' for value in self.center)}), {len(self.points):,} points, mean {self.mean:.2f}"


def threshold_of(similarity: NDArray[np.float32]) -> float:
    """Three quarters of the way from the median of the similarities [N] to their 99.9th percentile; NaN are left out.

    On rooms, for names of labels in MiniLM's space (benchmarks/study_query.py): the points above it have an IoU of 0.457 with
    those that were asked for (0.474 two thirds of the way, 0.534 with the best threshold of each query), and the top region
    is what was asked for 81 times in 100 (77). It does not mind spaces where all cosines are high.
    Raises: ValueError where nothing is known of any point.
    """
    known = similarity[~np.isnan(similarity)]
    if not len(known):
        raise ValueError("nothing is known of any point of the scene, so nothing is like the query")
    middle, top = np.quantile(known, [0.5, TOP])
    return float(middle + SHARE * (top - middle))


def regions(coord: NDArray[np.float32], similarity: NDArray[np.float32], threshold: float, cell: float = CELL) -> list[Region]:
    """The connected regions of the points at or above `threshold`, the one that answers best first.

    coord: [N, 3] metres. Points are connected where their cells touch. Best is what has the most above the threshold,
    summed over its cells, so that a part of the scan that lies dense does not count for more.
    """
    points = np.flatnonzero(np.nan_to_num(similarity, nan=-np.inf) >= threshold)
    if not len(points):
        return []
    of_point, label = _connected(coord[points], cell)
    count = np.bincount(of_point)
    excess = np.bincount(of_point, similarity[points].astype(np.float64) - threshold) / count
    weight = np.bincount(label, excess) + np.bincount(label) * 1e-9  # where all are at the threshold, the largest
    region_of = label[of_point]
    order = np.argsort(region_of, kind="stable")
    ends = np.cumsum(np.bincount(region_of))
    parts = np.split(points[order], ends[:-1])
    return [_region(coord, similarity, parts[k]) for k in np.argsort(-weight, kind="stable")]


def _region(coord: NDArray, similarity: NDArray, points: NDArray[np.int64]) -> Region:
    place = coord[points].astype(np.float64)
    return Region(points, place.min(axis=0), place.max(axis=0), float(similarity[points].mean()), float(similarity[points].max()))


def _connected(coord: NDArray[np.float32], cell: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the cell of each point, the component of each cell); 26 neighbours connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    place = np.floor((coord - coord.min(axis=0)) / cell).astype(np.int64) + 1  # a margin, so that neighbours have numbers
    size = place.max(axis=0) + 2
    if float(size[0]) * float(size[1]) * float(size[2]) > 2**62:
        raise ValueError(f"cells of {cell} m are too many for a scene of {' x '.join(map(str, size))} cells")
    number = (place[:, 0] * size[1] + place[:, 1]) * size[2] + place[:, 2]
    cells, of_point = np.unique(number, return_inverse=True)
    rows, columns = [], []
    for step in range(14, 27):  # half of the 26: the relation is symmetric
        dx, dy, dz = step // 9 - 1, step // 3 % 3 - 1, step % 3 - 1
        neighbour = cells + (dx * size[1] + dy) * size[2] + dz
        at = np.searchsorted(cells, neighbour)
        here = np.flatnonzero((at < len(cells)) & (cells[np.minimum(at, len(cells) - 1)] == neighbour))
        rows.append(here)
        columns.append(at[here])
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(row), np.int8), (row, column)), shape=(len(cells), len(cells)))
    return of_point, connected_components(graph, directed=False)[1]

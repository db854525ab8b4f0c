"""Cutting a large cloud into boxes that overlap, so that each can be worked on alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_WEIGHT = 1e-3  # of a point on the very border of a tile: a vote all the same


@dataclass(frozen=True)
class Tile:
    """One box: the core `low` to `high` [3] in metres, infinite where nothing adjoins, and a margin around it.

    rows: the points in the core and the margin, ascending. Each point of the cloud is in the core of one tile.
    """

    rows: NDArray[np.integer]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    margin: float

    def weight(self, coord: NDArray) -> NDArray[np.float32]:
        """[n] how much the tile's opinion of each point [n, 3] counts: 1 inside, down to nearly 0 at its border."""
        result = np.ones(len(coord), np.float32)
        for axis in range(3):
            for border, distance in ((self.low[axis], coord[:, axis] - self.low[axis]), (self.high[axis], self.high[axis] - coord[:, axis])):
                if np.isfinite(border) and self.margin > 0:
                    result *= np.clip((distance + self.margin) / (2 * self.margin), LEAST_WEIGHT, 1).astype(np.float32)
        return result

    def in_core(self, coord: NDArray) -> NDArray[np.bool_]:
        """[n] which of the points [n, 3] lie in the core; its lower side belongs to it."""
        return ((coord >= self.low) & (coord < self.high)).all(axis=1)


def cut_tiles(coord: NDArray[np.floating], cost: NDArray, most: float, margin: float) -> list[Tile]:
    """Tiles of a cost of at most `most` each, made by halving the dearest boxes along their longest side.

    Args:
        coord: [N, 3] metres. cost: [N], what each point adds to the cost of its tile. margin: metres of overlap on
            either side of a cut.

    Without a margin, points that all stand at one place are a tile however dear: nothing tells them apart.

    Raises: ValueError where a box too small to cut, of 2 margins, costs more than `most`.
    """
    everything = np.full(3, np.inf)
    rows = np.arange(len(coord), dtype=np.int32 if len(coord) < 2**31 else np.int64)
    return list(_halve(coord, cost, most, margin, Tile(rows, -everything, everything, margin)))


def _halve(coord: NDArray, cost: NDArray, most: float, margin: float, tile: Tile) -> Iterator[Tile]:
    total = float(cost[tile.rows].sum(dtype=np.float64))
    if total <= most:
        yield tile
        return
    core = tile.rows[tile.in_core(coord[tile.rows])]
    inside = coord[core]
    low, high = inside.min(axis=0), inside.max(axis=0)
    axis = int((high - low).argmax())
    if margin == 0 and high[axis] == low[axis]:
        yield tile
        return
    if high[axis] - low[axis] <= 2 * margin:
        size = " x ".join(f"{length:.2f}" for length in high - low)
        raise ValueError(
            f"a box of {size} m and {margin:g} m of overlap around it hold {total:,.0f} voxels, more than the {most:,.0f} "
            "that pass through the network at a time (--max-points); raise that or lower the overlap"
        )
    cut = float(np.median(inside[cost[core] > 0, axis])) if (cost[core] > 0).any() else float((low[axis] + high[axis]) / 2)
    cut = float(np.clip(cut, low[axis] + margin, high[axis] - margin)) if margin else cut
    if cut <= low[axis]:  # half of the points share the lowest place: they are cut off
        cut = float(np.nextafter(low[axis], high[axis]))
    along = coord[tile.rows, axis]
    upper, lower = tile.high.copy(), tile.low.copy()
    upper[axis] = lower[axis] = cut
    for part in (
        Tile(tile.rows[along < cut + margin], tile.low, upper, margin),
        Tile(tile.rows[along >= cut - margin], lower, tile.high, margin),
    ):
        yield from _halve(coord, cost, most, margin, part)

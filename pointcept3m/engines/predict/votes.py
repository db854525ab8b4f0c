"""Adding up what overlapping tiles say of each point, in memory that does not grow with the scan times its classes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.tiles import Tile


class Votes:
    """Class probabilities of the points of a scan, tile by tile; each point is decided once its last tile has spoken.

    Only points between those two moments keep a row of K numbers: the margins of the tiles at work.

    label: int32 [N], -1 where nothing was said. confidence: float32 [N], the probability of that class.
    """

    def __init__(self, count: int, tiles: Sequence[Tile]):
        self.label = np.full(count, -1, np.int32)
        self.confidence = np.zeros(count, np.float32)
        self._waiting = np.zeros(count, np.uint16)
        for tile in tiles:
            self._waiting[tile.rows] += 1
        self._rows = np.zeros(0, np.int64)
        self._sums: NDArray[np.float32] | None = None

    def add(self, tile: Tile, coord: NDArray, probability: NDArray[np.float32]) -> None:
        """`probability` [n, K] of the tile's points, whose positions are `coord` [n, 3]; rows add up to 1."""
        self._waiting[tile.rows] -= 1
        alone = self._waiting[tile.rows] == 0
        if len(self._rows):
            alone &= ~np.isin(tile.rows, self._rows, assume_unique=True)
        self._decide(tile.rows[alone], probability[alone], None)
        shared = ~alone
        if not shared.any():
            return
        weighed = probability[shared] * tile.weight(coord[shared])[:, None]
        rows = np.union1d(self._rows, tile.rows[shared])
        sums = np.zeros((len(rows), probability.shape[1]), np.float32)
        if self._sums is not None:
            sums[np.searchsorted(rows, self._rows)] = self._sums
        sums[np.searchsorted(rows, tile.rows[shared])] += weighed
        done = self._waiting[rows] == 0
        self._decide(rows[done], sums[done], sums[done].sum(axis=1))
        self._rows, self._sums = rows[~done], sums[~done]

    def _decide(self, rows: NDArray, sums: NDArray[np.float32], total: NDArray | None) -> None:
        if not len(rows):
            return
        best = sums.argmax(axis=1)
        top = sums[np.arange(len(rows)), best]
        self.label[rows] = best
        self.confidence[rows] = top if total is None else top / np.maximum(total, 1e-30)


class InstanceMerge:
    """Object ids of the points of a scan, of tiles that each number their own: two that overlap enough become one.

    instance: int32 [N], ids from 0, -1 none; a point's id is that which the tile whose core it is in gave it.
    """

    def __init__(self, count: int):
        self.instance = np.full(count, -1, np.int32)
        self._first = np.full(count, -1, np.int32)  # by the first tile that saw the point
        self._parent: list[int] = []
        self.classes: list[int] = []
        self.scores: list[float] = []

    def add(self, tile: Tile, coord: NDArray, instance: NDArray[np.int32], classes: Sequence[int], scores: Sequence[float]) -> None:
        """`instance` [n] numbers the tile's objects from 0, -1 none; classes and scores are theirs."""
        base = len(self._parent)
        self._parent += range(base, base + len(classes))
        self.classes += [int(k) for k in classes]
        self.scores += [float(s) for s in scores]
        new = np.where(instance >= 0, instance + base, -1).astype(np.int32)
        old = self._first[tile.rows]
        self._join(old, new, base)
        core = tile.in_core(coord)
        self.instance[tile.rows[core]] = new[core]
        self._first[tile.rows] = np.where(old >= 0, old, new)

    def _join(self, old: NDArray, new: NDArray, base: int) -> None:
        both = (old >= 0) & (new >= 0)
        seen = old >= 0
        if not both.any():
            return
        pairs, common = np.unique(np.stack([old[both], new[both]]), axis=1, return_counts=True)
        # of an object only the part in the overlap can be compared
        old_size = np.bincount(old[seen], minlength=len(self._parent))
        new_size = np.bincount(new[(new >= 0) & seen], minlength=len(self._parent))
        for (a, b), number in zip(pairs.T.tolist(), common.tolist(), strict=True):
            if self.classes[a] == self.classes[b] and number > 0.5 * min(old_size[a], new_size[b]):
                self._parent[self._root(b)] = self._root(a)

    def _root(self, k: int) -> int:
        while self._parent[k] != k:
            k = self._parent[k]
        return k

    def result(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """(instance [N], class of each [I], score of each [I]), ids in the order of their scores, best first."""
        roots = np.array([self._root(k) for k in range(len(self._parent))], np.int64)
        used = np.unique(roots[self.instance[self.instance >= 0]]) if len(roots) else roots
        score = {k: max((self.scores[j] for j in np.flatnonzero(roots == k)), default=0.0) for k in used.tolist()}
        order = sorted(score, key=lambda k: -score[k])
        number = np.full(len(roots) + 1, -1, np.int32)
        number[order] = np.arange(len(order))
        merged = np.append(number[roots], -1)[self.instance] if len(roots) else self.instance
        return merged.astype(np.int32), np.array([self.classes[k] for k in order], np.int32), np.array([score[k] for k in order], np.float32)

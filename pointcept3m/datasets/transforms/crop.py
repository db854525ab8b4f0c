"""Transforms that cut a part out of a scene."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms.compose import DataDict, Transform
from pointcept3m.structures.keys import index_operator
from pointcept3m.utils.arrays import by_column


def _crop(data_dict: DataDict, index: NDArray) -> DataDict:
    """`index_operator`; `inverse` cannot follow a crop, so it is an error."""
    if "inverse" in data_dict:
        raise ValueError("a crop after GridSample(return_inverse=True) would leave inverse pointing at lost points")
    return index_operator(data_dict, index)


@TRANSFORMS.register_module()
class SphereCrop(Transform):
    """Keeps the `point_max` points nearest to a centre, in their order; smaller clouds pass unchanged.

    Args:
        point_max: the most points to keep. sample_rate: where given, this share of the points instead.
        mode: "random" centres on a random point, "center" on the middle point in storage order, "given" on the
            coordinates in `data_dict["center"]`.
    """

    reads = ("coord",)

    def __init__(self, point_max: int = 80000, sample_rate: float | None = None, mode: str = "random") -> None:
        if mode not in ("random", "center", "given"):
            raise ValueError(f"SphereCrop: mode must be 'random', 'center' or 'given', got {mode!r}")
        self.point_max, self.sample_rate, self.mode = point_max, sample_rate, mode
        if mode == "given":
            self.reads = ("coord", "center")

    def apply(self, data_dict: DataDict) -> DataDict:
        coord = data_dict["coord"]
        count = len(coord)
        keep = self.point_max if self.sample_rate is None else max(1, int(self.sample_rate * count))
        if count <= keep:
            return data_dict
        if self.mode == "given":
            center = np.asarray(data_dict["center"], dtype=np.float32)
        else:
            center = coord[np.random.randint(count) if self.mode == "random" else count // 2]
        away = by_column(np.subtract, coord, center)
        nearest = np.argpartition(np.einsum("nc,nc->n", away, away), keep - 1)[:keep]
        kept = np.zeros(count, dtype=bool)
        kept[nearest] = True
        return _crop(data_dict, np.flatnonzero(kept))


@TRANSFORMS.register_module()
class CropBoundary(Transform):
    """Drops the points of the classes `ignored` (wall and floor, as most label lists begin)."""

    reads = ("coord", "segment")

    def __init__(self, ignored: Sequence[int] = (0, 1)) -> None:
        self.ignored = tuple(ignored)

    def apply(self, data_dict: DataDict) -> DataDict:
        keep = ~np.isin(data_dict["segment"].reshape(-1), self.ignored)
        if not keep.any():
            raise ValueError(f"CropBoundary: every point is of the classes {self.ignored}; nothing would be left")
        return _crop(data_dict, keep)

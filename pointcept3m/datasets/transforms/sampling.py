"""Transforms that choose points: grid sampling, masks, dropout, order."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms.compose import DataDict, Transform, chance
from pointcept3m.ops.voxelize import Voxels, voxelize
from pointcept3m.structures.keys import index_operator, take_rows


def find_voxels(coord: NDArray, grid_size: float | Sequence[float]) -> Voxels:
    """`ops.voxelize` of a numpy cloud [N, 3] of any float or integer type.

    Raises: ValueError for no point, for a coordinate that is not finite (one NaN would silently move all the others),
        and for an extent whose cells cannot be numbered in 62 bits (cells would silently merge).
    """
    if len(coord) == 0:
        raise ValueError("a cloud of 0 points has no grid")
    coord = np.require(coord, np.float32 if coord.dtype == np.float32 else np.float64, ["C", "W"])
    return voxelize(torch.from_numpy(coord), grid_size)


@TRANSFORMS.register_module()
class GridSample(Transform):
    """Keeps one point of every cell of a grid.

    In mode "train" the point is drawn uniformly from the cell, and every cell draws for itself. (Pointcept draws one
    number for all cells and takes it modulo each cell's count, which favours the first points of a cell.) In mode
    "test" the result is a list of samples that together hold every point; each has `index`, the rows it took.

    Annotated points (`sampled_index`) are few and all stay in mode "train": one stands for its cell, and further ones of
    the same cell come behind the cells, the only voxels that are there twice. (Pointcept adds all of them to the points
    drawn, so that almost every annotated voxel is there twice, once without its label.)

    Args:
        grid_size: metres, one number or one for each axis.
        hash_type: accepted for Pointcept's configs; cells are numbered exactly, so nothing can collide.
        keys: per-point keys to sample besides those of the table (GaussianCross's dialect).
        return_inverse: adds `inverse` [N_raw], the kept row of the cell of each point.
        return_grid_coord: adds `grid_coord`. return_min_coord: adds `min_coord` [1, 3] in metres.
        return_displacement: adds `displacement`, from the cell's centre in cells; `project_displacement` makes it
            the distance along the normal, [N, 1].
    """

    reads = ("coord",)

    def __init__(
        self,
        grid_size: float | Sequence[float] = 0.05,
        hash_type: str = "fnv",
        mode: str = "train",
        keys: Sequence[str] = (),
        return_inverse: bool = False,
        return_grid_coord: bool = False,
        return_min_coord: bool = False,
        return_displacement: bool = False,
        project_displacement: bool = False,
    ) -> None:
        if mode not in ("train", "test"):
            raise ValueError(f"GridSample: mode must be 'train' or 'test', got {mode!r}")
        self.grid_size, self.hash_type, self.mode, self.keys = grid_size, hash_type, mode, tuple(keys)
        self.return_inverse, self.return_grid_coord = return_inverse, return_grid_coord
        self.return_min_coord, self.return_displacement = return_min_coord, return_displacement
        self.project_displacement = project_displacement
        if project_displacement:
            self.reads = ("coord", "normal")

    def apply(self, data_dict: DataDict) -> DataDict | list[DataDict]:
        voxels = find_voxels(data_dict["coord"], self.grid_size)
        if self.mode == "test":
            return list(self.fragments(data_dict, voxels))
        picked = voxels.sample(torch.from_numpy(np.random.random(len(voxels.counts)))).numpy()
        return self._select(data_dict, picked, voxels.inverse.numpy(), self._extras(data_dict, voxels))

    def fragments(self, data_dict: DataDict, voxels: Voxels, most: int | None = None) -> Iterator[DataDict]:
        """The samples of mode "test", each made when it is asked for, so that memory need not hold them all.

        voxels: `find_voxels` of the sample's coord and this grid. most: stop after so many.
        """
        inverse, extras = voxels.inverse.numpy(), self._extras(data_dict, voxels)
        for rows in voxels.fragments()[:most]:
            picked = rows.numpy()
            part = self._select(dict(data_dict), picked, inverse, extras)
            part["index"] = picked
            yield part

    def _extras(self, data_dict: DataDict, voxels: Voxels) -> DataDict:
        """The per-point keys asked for, for all points."""
        cells, lowest, extras = voxels.grid_coord.numpy(), voxels.lowest.numpy(), {}
        if self.return_grid_coord:
            extras["grid_coord"] = cells
        if self.return_displacement or self.project_displacement:
            size = np.asarray(self.grid_size, dtype=np.float64)
            displacement = data_dict["coord"].astype(np.float64) / size - (cells + lowest) - 0.5
            if self.project_displacement:
                displacement = (displacement * data_dict["normal"]).sum(axis=1, keepdims=True)
            extras["displacement"] = displacement.astype(np.float32)
        if self.return_min_coord:
            extras["min_coord"] = (lowest * np.asarray(self.grid_size))[None].astype(np.float32)
        return extras

    def _select(self, data_dict: DataDict, picked: NDArray, inverse: NDArray, extras: DataDict) -> DataDict:
        if self.mode == "train" and "sampled_index" in data_dict:
            labelled = data_dict["sampled_index"]
            picked[inverse[labelled]] = labelled
            picked = np.concatenate([picked, np.setdiff1d(labelled, picked)])
        data_dict = index_operator(data_dict, picked, extra=self.keys)
        for key, value in extras.items():
            data_dict[key] = value if key == "min_coord" else take_rows(value, picked)
        if self.return_inverse:
            data_dict["inverse"] = inverse
        return data_dict


@TRANSFORMS.register_module()
class RandomMask(Transform):
    """Hides a portion of the cloud: GaussianCross's ratio gamma, Eq. 4.

    Args:
        ratio: the share of points to remove, 0.5 in the paper.
        mode: "point" removes single points; "block" removes whole cubes of `size` metres, drawn at random until
            the share is met as closely as whole cubes allow. The paper does not say which ("a portion of the
            input"); its ancestor PonderV2 drops single points.
        size: edge of a block in metres.

    At least one point always stays, and so do annotated points (`sampled_index`).
    """

    reads = ("coord",)

    def __init__(self, ratio: float = 0.5, mode: str = "point", size: float = 0.5) -> None:
        if not 0 <= ratio < 1:
            raise ValueError(f"RandomMask: ratio must lie in [0, 1), got {ratio}")
        if mode not in ("point", "block"):
            raise ValueError(f"RandomMask: mode must be 'point' or 'block', got {mode!r}")
        self.ratio, self.mode, self.size = ratio, mode, size

    def apply(self, data_dict: DataDict) -> DataDict:
        count = len(data_dict["coord"])
        if self.mode == "point":
            kept = np.random.permutation(count)[: max(1, count - round(self.ratio * count))]
            return index_operator(data_dict, np.union1d(kept, data_dict.get("sampled_index", kept[:1])))
        cubes = find_voxels(data_dict["coord"], self.size)
        counts, block = cubes.counts.numpy(), cubes.inverse.numpy()
        turn = np.random.permutation(len(counts))
        removed = np.cumsum(counts[turn])
        # as many blocks as come nearest to the share, but never all
        blocks = int(np.argmin(np.abs(np.append(0, removed[:-1]) - self.ratio * count)))
        keep_block = np.ones(len(counts), dtype=bool)
        keep_block[turn[:blocks]] = False
        keep = keep_block[block]
        keep[data_dict.get("sampled_index", [])] = True
        return index_operator(data_dict, keep)


@TRANSFORMS.register_module()
class RandomDropout(Transform):
    """With probability `dropout_application_ratio`, removes the share `dropout_ratio` of the points."""

    reads = ("coord",)

    def __init__(self, dropout_ratio: float = 0.2, dropout_application_ratio: float = 0.5) -> None:
        if not 0 <= dropout_ratio < 1:
            raise ValueError(f"RandomDropout: dropout_ratio must lie in [0, 1), got {dropout_ratio}")
        self.dropout_ratio, self.dropout_application_ratio = dropout_ratio, dropout_application_ratio

    def apply(self, data_dict: DataDict) -> DataDict:
        if not chance(self.dropout_application_ratio):
            return data_dict
        count = len(data_dict["coord"])
        kept = np.random.choice(count, max(1, int(count * (1 - self.dropout_ratio))), replace=False)
        keep = np.zeros(count, dtype=bool)
        keep[kept] = True
        keep[data_dict.get("sampled_index", [])] = True  # annotated points stay, however few are kept
        # in their old order: neighbours in memory stay neighbours in space, which all that follows runs faster on
        return index_operator(data_dict, np.flatnonzero(keep))


@TRANSFORMS.register_module()
class ShufflePoint(Transform):
    """Puts the points into a random order."""

    reads = ("coord",)

    def apply(self, data_dict: DataDict) -> DataDict:
        if "inverse" in data_dict:
            raise ValueError("ShufflePoint would leave inverse pointing at other points")
        return index_operator(data_dict, np.random.permutation(len(data_dict["coord"])))

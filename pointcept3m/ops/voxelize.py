"""Voxels of point clouds: `voxelize` says which cell of a grid each point is in, and groups the points by cell.

Exact and deterministic: cells become 64-bit keys in the order (cloud, x, y, z) and are sorted, not hashed, so no two
can collide, and voxels come in the same order on every machine. `GridSample` of the datasets stands on it.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops._checks import FLOATS, check_device, check_offset, check_points, check_shape, check_tensor
from pointcept3m.ops.offsets import offset_to_counts

MAX_CELLS = 2**62  # keys are 63-bit; half is left, so that no sum overflows
MAX_CLOUDS = 2**24  # a larger number in `batch` is not the index of a cloud


class Voxels(NamedTuple):
    """The voxels of N points in V cells of B clouds. All tensors are int64, on the device of the points.

    grid_coord: [N, 3], the cell of each point, counted from `lowest`.
    lowest: [3], or [B, 3] where clouds were told apart: the cell that `grid_coord` 0 stands for, counted from the
        grid's origin. `(grid_coord + lowest) * grid_size + origin` is the lower corner of a point's cell in metres.
    inverse: [N], the voxel of each point. Voxels are numbered in the order of cloud, then x, then y, then z.
    counts: [V], the number of points in each voxel, at least 1.
    order: [N], the rows of the points by voxel, ascending within a voxel.
    start: [V + 1]; the points of voxel v are `order[start[v]:start[v + 1]]`. It serves `segment_csr` as pointers.
    """

    grid_coord: Tensor
    lowest: Tensor
    inverse: Tensor
    counts: Tensor
    order: Tensor
    start: Tensor

    def sample(self, random: Tensor) -> Tensor:
        """One row [V] int64 of every voxel: row `random[v]` of the way through the points of voxel v.

        With numbers drawn uniformly from [0, 1), one for each voxel, every point of a voxel is equally likely and
        voxels draw independently. (Pointcept takes one number for all voxels modulo each count, which favours the
        first points of a voxel and ties voxels to each other.)

        Args:
            random: float32 or float64 [V] in [0, 1). The caller draws it, so the caller's seed decides.

        Raises: TypeError or ValueError where `random` does not fit.
        """
        check_tensor("Voxels.sample", "random", random, FLOATS)
        eager = not torch.compiler.is_compiling()  # a compiler cannot look at sizes and values that depend on data
        if eager and random.shape != self.counts.shape:
            wanted = f"one number for each of {len(self.counts)} voxels"
            raise ValueError(f"Voxels.sample: random must hold {wanted}, got shape {tuple(random.shape)}")
        # in float64 the product of a number below 1 and a count always stays below the count
        place = (random.double() * self.counts).long()
        if eager and not ((random >= 0) & (place < self.counts)).all():
            raise ValueError("Voxels.sample: random must lie in [0, 1)")
        return self.order.index_select(0, place.add_(self.start[:-1]))

    def fragments(self) -> list[Tensor]:
        """Rows [V] int64 of each of the `counts.max()` fragments; together they hold every point.

        Fragment i takes point i of every voxel; voxels with fewer points start again from their first.
        """
        turns = int(self.counts.max()) if len(self.counts) else 0
        return [self.order.index_select(0, self.start[:-1] + turn % self.counts) for turn in range(turns)]


def voxelize(
    coord: Tensor,
    grid_size: float | Sequence[float],
    batch: Tensor | None = None,
    offset: Tensor | None = None,
    origin: Sequence[float] | None = None,
) -> Voxels:
    """Finds the cell of a regular grid that each point is in, and groups the points by cell.

    The cell is floor((coord - origin) / grid_size), computed in float64 whatever the type of `coord`. Time grows
    linearly with N (a radix sort of 64-bit keys). Integers come out, so there is nothing to differentiate.

    Args:
        coord: float32 or float64 [N, 3] in metres, contiguous or not; half precision is refused.
        grid_size: edge of a cell in metres, one number or one for each axis.
        batch: int64 [N], the cloud of each point, in any order. Points of different clouds share no voxel.
        offset: int64 or int32 [B], in place of `batch`: where each cloud ends. It may have empty clouds.
        origin: a corner of the grid in metres, (x, y, z). Then `grid_coord` is counted from it and may be negative,
            and `lowest` is 0. Without it the grid has a corner at 0 and `grid_coord` is counted from the lowest cell
            of each cloud along each axis, as Pointcept does.

    Returns:
        `Voxels`. A cloud without points has none, and `lowest` 0.

    Raises:
        TypeError or ValueError where an argument does not fit; ValueError for coordinates that are not finite, with
        the first such row, and for clouds that span more than 2^62 cells.

    Source: Pointcept's GridSample (the grid and the meaning of inverse, counts and fragments).
    """
    coord = check_points("voxelize", "coord", coord)
    size, corner = _triple(grid_size, "grid_size"), [] if origin is None else _triple(origin, "origin")
    if min(size) <= 0:
        raise ValueError(f"voxelize: grid_size must be positive, got {grid_size}")
    batch, num_clouds = _check_clouds(coord, batch, offset)
    arguments = (coord, size, batch, num_clouds, corner)
    if torch.compiler.is_compiling():
        parts = torch.ops.pointcept3m.voxelize(*arguments)
    else:
        try:
            parts = torch.ops.pointcept3m.voxelize(*arguments)
        except RuntimeError:
            _cells(*arguments)  # finds out which row it was, and says so
            raise
    voxels = Voxels(*parts)
    return voxels if batch is not None else voxels._replace(lowest=voxels.lowest[0])


class Groups(NamedTuple):
    """N rows grouped by K different keys, all int64: `order` [N], `start` [K + 1] and `inverse` [N] as in `Voxels`."""

    order: Tensor
    start: Tensor
    inverse: Tensor


def group_keys(keys: Tensor) -> Groups:
    """Groups rows with equal keys; groups come in the order of their keys, rows of a group in their own order.

    It is `torch.unique(sorted=True, return_inverse=True)` and a stable argsort in one, in time linear in N.

    Args:
        keys: int64 [N], any values.

    Returns:
        `Groups`; the keys without repetition are `keys[order[start[:-1]]]`.

    Raises: TypeError or ValueError where `keys` does not fit.
    """
    check_tensor("group_keys", "keys", keys, (torch.int64,))
    check_shape("group_keys", "keys", keys, ("N",))
    return Groups(*torch.ops.pointcept3m.group_keys(keys.contiguous()))


def _triple(value: float | Sequence[float], name: str) -> list[float]:
    """Three finite floats; one stands for all axes of a grid_size."""
    values = [value] * 3 if isinstance(value, Real) and name == "grid_size" else value
    try:
        numbers = [float(number) for number in values]
    except (TypeError, ValueError):
        raise TypeError(f"voxelize: {name} must be numbers, got {value!r}") from None
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        wanted = "one finite number or three" if name == "grid_size" else "three finite numbers"
        raise ValueError(f"voxelize: {name} must be {wanted}, got {value!r}")
    return numbers


def _check_clouds(coord: Tensor, batch: Tensor | None, offset: Tensor | None) -> tuple[Tensor | None, int]:
    """(the cloud of each point, the number of clouds or -1 where the largest index tells)."""
    if batch is None and offset is None:
        return None, 1
    if batch is not None and offset is not None:
        raise ValueError("voxelize: give batch or offset, not both")
    op, count = "voxelize", coord.size(0)
    if offset is None:
        check_tensor(op, "batch", batch, (torch.int64,))
        check_device(op, "batch", batch, "coord", coord)
        if batch.shape != (count,):
            wanted = f"[{count}], one number for each point"
            raise ValueError(f"{op}: batch must have shape {wanted}, got {tuple(batch.shape)}")
        return batch.contiguous(), -1
    if isinstance(offset, Tensor) and offset.numel() > MAX_CLOUDS:
        raise ValueError(f"{op}: at most {MAX_CLOUDS} clouds can be told apart, offset has {offset.numel()}")
    offset = check_offset(op, "offset", offset, "coord", coord)
    clouds = torch.arange(len(offset), device=offset.device)
    return clouds.repeat_interleave(offset_to_counts(offset), output_size=count), len(offset)


# The ops and their twins.


def _cells(
    coord: Tensor, grid_size: list[float], batch: Tensor | None, num_clouds: int, origin: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(cells counted from the lowest one of each cloud [N, 3], lowest cells [B, 3], extent [3], cloud of each point).

    Raises ValueError for what cannot be counted.
    """
    finite = coord.isfinite().all(dim=1)
    if not finite.all():
        row = int(finite.int().argmin())
        raise ValueError(
            f"voxelize: {int((~finite).sum())} points are not finite, the first is row {row}: {coord[row].tolist()}"
        )
    if batch is None:
        batch = torch.zeros(coord.size(0), dtype=torch.int64, device=coord.device)
    least, most = (0, -1) if len(batch) == 0 else (int(value) for value in torch.aminmax(batch))
    limit = MAX_CLOUDS if num_clouds < 0 else min(num_clouds, MAX_CLOUDS)
    if least < 0 or most >= limit:
        raise ValueError(f"voxelize: batch must lie in [0, {limit}), found {least if least < 0 else most}")
    num_clouds = most + 1 if num_clouds < 0 else num_clouds
    size = torch.tensor(grid_size, dtype=torch.float64, device=coord.device)
    corner = torch.tensor(origin or [0.0] * 3, dtype=torch.float64, device=coord.device)
    scaled = ((coord.double() - corner) / size).floor()
    countable = len(coord) == 0 or bool(scaled.abs().max() < MAX_CELLS)
    cells = scaled.long() if countable else scaled  # of cells past counting, the message gives the extent all the same
    spread = batch[:, None].expand_as(cells)
    low, high = (
        cells.new_zeros(num_clouds, 3).scatter_reduce(0, spread, cells, kind, include_self=False)
        for kind in ("amin", "amax")
    )
    extent = (high - low + 1).amax(dim=0) if num_clouds else low.new_ones(3)
    span = extent.double().prod().item() * num_clouds
    if not countable or span >= MAX_CELLS:
        reach = f"{coord.amin(dim=0).tolist()} .. {coord.amax(dim=0).tolist()}"
        raise ValueError(
            f"voxelize: a grid of {grid_size} m over {reach} has {span:.3g} cells, more than 2^62; "
            f"is the cloud in metres, without far outliers?"
        )
    return cells - low[batch], low, extent, batch


def _voxelize_twin(
    coord: Tensor, grid_size: list[float], batch: Tensor | None, num_clouds: int, origin: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    cells, lowest, extent, cloud = _cells(coord, grid_size, batch, num_clouds, origin)
    keys = ((cloud * extent[0] + cells[:, 0]) * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]
    order, start, inverse = _group_twin(keys)
    if origin:
        cells, lowest = cells + lowest[cloud], torch.zeros_like(lowest)
    return cells, lowest, inverse, start.diff(), order, start


def _group_twin(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ordered, order = keys.sort(stable=True)
    _, group, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return order, start, torch.empty_like(keys).scatter_(0, order, group)


_library.define(
    "voxelize(Tensor coord, float[] grid_size, Tensor? batch, int num_clouds, float[] origin)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _voxelize_twin,
)
_library.define("group_keys(Tensor keys) -> (Tensor, Tensor, Tensor)", _group_twin)


@torch.library.register_fake("pointcept3m::voxelize")
def _(
    coord: Tensor, grid_size: list[float], batch: Tensor | None, num_clouds: int, origin: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()

    def whole(*shape: int) -> Tensor:
        return coord.new_empty(shape, dtype=torch.int64)

    count, num_voxels = coord.size(0), context.new_dynamic_size()
    num_clouds = num_clouds if num_clouds >= 0 else context.new_dynamic_size()
    return whole(count, 3), whole(num_clouds, 3), whole(count), whole(num_voxels), whole(count), whole(num_voxels + 1)


@torch.library.register_fake("pointcept3m::group_keys")
def _(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num_edges = torch.library.get_ctx().new_dynamic_size(min=1)  # one more than groups
    return torch.empty_like(keys), keys.new_empty(num_edges), torch.empty_like(keys)

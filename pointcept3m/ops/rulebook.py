"""Rulebooks: which rows meet under which offset of a convolution's kernel. `ops/sparse_conv.py` multiplies by them.

Coordinates are int32 [N, 4] as (batch, x, y, z). Rows with equal coordinates (Mix3D makes them) are one cell.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops._checks import check_device, type_of

MAX_CELLS = 4e18  # keys are 64-bit


@dataclass(frozen=True, eq=False)
class Rulebook:
    """The pairs of rows that a convolution multiplies.

    pairs: int32 [2, P], input row and output row, grouped by kernel offset; within an offset both ascend in
        cell order. Where cells hold several rows, "row" means cell here.
    start: int64 [K + 1] on the CPU; the pairs of offset k are `start[k]:start[k + 1]`.
    rank_in, rank_out: int32, the place of each row in the lexicographic order of cells.
    cell_in, cell_out: int64, the cell of each row, or None where every cell holds one row.
    reduce: "mean" or "sum", what a cell holds of its rows.
    kernel_size: (kx, ky, kz).
    coord_out: int32 [M, 4], coordinates of the output rows.
    reverse: whether outputs and inputs have changed places (the inverse convolution).
    """

    pairs: Tensor
    start: Tensor
    rank_in: Tensor
    rank_out: Tensor
    cell_in: Tensor | None
    cell_out: Tensor | None
    reduce: str
    kernel_size: tuple[int, int, int]
    coord_out: Tensor
    reverse: bool = False

    def inverse(self, coord: Tensor) -> "Rulebook":
        """The rulebook of the convolution that leads back to the rows `coord` this one started from."""
        return replace(self, reverse=not self.reverse, coord_out=coord)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the ops take: (pairs, start, rank_in, rank_out)."""
        return self.pairs, self.start, self.rank_in, self.rank_out

    @property
    def num_in(self) -> int:
        """Number of rows that go in."""
        return self._rows(self.reverse)

    @property
    def num_out(self) -> int:
        """Number of rows that come out."""
        return self._rows(not self.reverse)

    def _rows(self, out: bool) -> int:
        cell, rank = (self.cell_out, self.rank_out) if out else (self.cell_in, self.rank_in)
        return rank.size(0) if cell is None else cell.size(0)


def triple(value: int | Sequence[int], name: str = "kernel_size") -> tuple[int, int, int]:
    """Three ints from one int or from three. Raises: TypeError or ValueError that starts with `name`."""
    values = tuple(value) if isinstance(value, Iterable) else (value,) * 3
    if not all(hasattr(v, "__index__") for v in values):  # what numpy's and torch's ints have too
        raise TypeError(f"{name} must be an int or three, got {value!r}")
    if len(values) != 3:
        raise ValueError(f"{name} must be an int or three, got {value!r}")
    return tuple(int(v) for v in values)


def check_operands(op: str, rulebook: Rulebook, tensors: dict[str, Tensor]) -> None:
    """Refuses a rulebook that is none, and `tensors` that hold no floats or lie on another device than it.

    Raises: TypeError or ValueError that names the op and the argument.
    """
    if not isinstance(rulebook, Rulebook):
        raise TypeError(f"{op}: rulebook must be a Rulebook, got {type(rulebook).__name__}")
    device = rulebook.pairs.device
    parts = (rulebook.rank_in, rulebook.rank_out, rulebook.cell_in, rulebook.cell_out)
    others = {str(part.device) for part in parts if part is not None and part.device != device}
    if others or rulebook.start.device.type != "cpu":
        raise ValueError(
            f"{op}: rulebook must lie on one device, its start on cpu, but its pairs are on {device}, "
            f"its start is on {rulebook.start.device}, ranks and cells on {', '.join(sorted(others)) or device}"
        )
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must be a floating point tensor, got {type_of(tensor)}")
        check_device(op, name, tensor, "rulebook", rulebook.pairs)


def check_coord(
    coord: Tensor,
    spatial_shape: Sequence[int] | None = None,
    batch_size: int | None = None,
    margin: Sequence[int] = (0, 0, 0),
    name: str = "coord",
) -> None:
    """Refuses coordinates that are not int32 [N, 4], lie outside the given shape, or span too much for 64-bit keys.

    Raises: TypeError or ValueError that starts with `name`, the op and its argument, and says which.
    """
    if not isinstance(coord, Tensor) or coord.dtype != torch.int32:
        raise TypeError(f"{name} must be an int32 tensor, got {type_of(coord)}")
    if coord.dim() != 2 or coord.size(1) != 4:
        raise ValueError(f"{name} must have shape [N, 4] as (batch, x, y, z), got {tuple(coord.shape)}")
    if coord.size(0) == 0:
        return
    low, high = torch.ops.pointcept3m.coord_bounds(coord.contiguous()).tolist()
    size = [batch_size, *(spatial_shape or (None,) * 3)]
    for axis, least, most, limit in zip(("batch", "x", "y", "z"), low, high, size, strict=True):
        if limit is not None and (least < 0 or most >= limit):
            found = least if least < 0 else most
            raise ValueError(f"{name}: {axis} must lie in [0, {limit}), found {found}")
    extent = [most - least + 1 for least, most in zip(low, high, strict=True)]
    if math.prod(e + 2 * m for e, m in zip(extent, (0, *margin), strict=True)) >= MAX_CELLS:
        raise ValueError(f"{name} spans {extent} (batch, x, y, z), more cells than 64-bit keys can tell apart")


def submanifold_rulebook(
    coord: Tensor, kernel_size: int | Sequence[int], dilation: int | Sequence[int] = 1
) -> Rulebook:
    """The rulebook of a submanifold convolution: outputs stand where inputs stand.

    Args:
        coord: int32 [N, 4] as (batch, x, y, z), in any order, equal rows allowed.
        kernel_size: odd, one int or three.
        dilation: one int or three.

    Raises: TypeError or ValueError where an argument does not fit.
    """
    op = "submanifold_rulebook"
    kernel, dilation = triple(kernel_size, f"{op}: kernel_size"), triple(dilation, f"{op}: dilation")
    if any(k < 1 or k % 2 == 0 for k in kernel) or min(dilation) < 1:
        raise ValueError(
            f"{op}: wanted an odd kernel_size and a positive dilation, got {kernel} and {dilation}"
        )
    margin = [k // 2 * d for k, d in zip(kernel, dilation, strict=True)]
    check_coord(coord, margin=margin, name=f"{op}: coord")
    pairs, start, rank, cell = torch.ops.pointcept3m.submanifold_pairs(coord.contiguous(), kernel, dilation)
    shared = cell if cell.numel() else None
    return Rulebook(pairs, start, rank, rank, shared, shared, "mean", kernel, coord)


def strided_rulebook(
    coord: Tensor,
    spatial_shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Rulebook:
    """The rulebook of a strided convolution: an output stands wherever the kernel meets an input.

    Args:
        coord: int32 [N, 4] as (batch, x, y, z), within `spatial_shape`.
        spatial_shape: size of the input grid, one int or (X, Y, Z); outputs lie in `strided_shape` of it, in cell order.
        kernel_size, stride, padding, dilation: as in `conv3d`.

    Raises: TypeError or ValueError where an argument does not fit.
    """
    op = "strided_rulebook"
    sizes = _strided_sizes(op, spatial_shape, kernel_size, stride, padding, dilation)
    check_coord(coord, sizes[0], name=f"{op}: coord")
    pairs, start, rank, cell, coord_out = torch.ops.pointcept3m.strided_pairs(coord.contiguous(), *sizes[1:])
    rank_out = torch.arange(coord_out.size(0), dtype=torch.int32, device=coord.device)
    return Rulebook(pairs, start, rank, rank_out, cell if cell.numel() else None, None, "sum", sizes[1], coord_out)


def strided_shape(
    spatial_shape: int | Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> tuple[int, int, int]:
    """Size of the grid that a strided convolution makes of `spatial_shape`; arguments as in `strided_rulebook`.

    Raises: TypeError or ValueError where an argument does not fit, or no grid is left.
    """
    return _strided_sizes("strided_shape", spatial_shape, kernel_size, stride, padding, dilation)[-1]


def _strided_sizes(op: str, *sizes: int | Sequence[int]) -> list[tuple[int, int, int]]:
    """[spatial_shape, kernel_size, stride, padding, dilation, shape of the result], checked in the name of `op`."""
    names = ("spatial_shape", "kernel_size", "stride", "padding", "dilation")
    checked = [triple(size, f"{op}: {name}") for name, size in zip(names, sizes, strict=True)]
    grid, kernel, stride, padding, dilation = checked
    if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(
            f"{op}: kernel_size {kernel}, stride {stride} and dilation {dilation} must be positive, "
            f"padding {padding} not negative"
        )
    axes = zip(*checked, strict=True)
    shape = tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in axes)
    if min(shape) < 1:
        raise ValueError(f"{op}: a grid of {grid} is too small for kernel_size {kernel} with padding {padding}")
    return [*checked, shape]


# The ops and their twins.


def _keys(coord: Tensor, low: Tensor, size: Tensor) -> Tensor:
    """int64 [N]: the place of each coordinate in a box, ascending in lexicographic order."""
    place = coord.long() - low
    key = place[:, 0]
    for axis in range(1, 4):
        key = key * size[axis] + place[:, axis]
    return key


def _bounds_twin(coord: Tensor) -> Tensor:
    if coord.size(0) == 0:
        return coord.new_zeros(2, 4, dtype=torch.int64)
    return torch.stack(torch.aminmax(coord, dim=0)).long()


def _cells(coord: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(cells [U, 4] in order, name of each, rank of each name, cell of each row or nothing).

    A cell is named by its row, or by its place among the cells if some cell holds several rows.
    """
    if coord.size(0) == 0:
        return coord, coord.new_empty(0), coord.new_empty(0), coord.new_empty(0, dtype=torch.int64)
    cells, cell = torch.unique(coord, dim=0, return_inverse=True)
    place = torch.arange(cells.size(0), device=coord.device)
    if cells.size(0) < coord.size(0):
        return cells, place.int(), place.int(), cell
    return cells, torch.empty_like(place).scatter_(0, cell, place).int(), cell.int(), cell[:0].clone()


def _offsets(kernel_size: Sequence[int], device: torch.device) -> Tensor:
    """int64 [K, 4]: (0, ix, iy, iz) in the order of the weights."""
    positions = list(itertools.product([0], *(range(k) for k in kernel_size)))
    return torch.tensor(positions, device=device).reshape(-1, 4)


def _join(pairs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Lists of pairs, one per offset, as (pairs [2, P], start [K + 1] on the CPU)."""
    lengths = torch.tensor([0, *(p.size(1) for p in pairs)])
    return torch.cat(pairs, 1).int().contiguous(), lengths.cumsum(0)


def _submanifold_twin(
    coord: Tensor, kernel_size: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cells, name, rank, cell = _cells(coord)
    if cells.size(0) == 0:
        return *_join([coord.new_empty(2, 0)] * math.prod(kernel_size)), rank, cell
    middle = torch.tensor([0, *(k // 2 for k in kernel_size)], device=coord.device)
    step = torch.tensor([1, *dilation], device=coord.device)
    low, high = (x.long() for x in torch.aminmax(cells, dim=0))
    low, size = low - middle * step, high - low + 1 + 2 * middle * step
    keys = _keys(cells, low, size)
    pairs = []
    for offset in _offsets(kernel_size, coord.device):
        target = _keys(cells + (offset - middle) * step, low, size)
        place = torch.searchsorted(keys, target).clamp(max=keys.size(0) - 1)
        hit = keys[place] == target
        pairs.append(torch.stack([name[place[hit]], name[hit]]))
    return *_join(pairs), rank, cell


def _strided_twin(coord: Tensor, *settings: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    kernel_size, stride, padding, dilation, out_shape = settings
    cells, name, rank, cell = _cells(coord)
    pad, step = (torch.tensor([0, *v], device=coord.device) for v in (padding, dilation))
    by = torch.tensor([1, *stride], device=coord.device)
    shape = torch.tensor(out_shape, device=coord.device)
    sites, reaching = [], []
    for offset in _offsets(kernel_size, coord.device):
        target = cells.long() + pad - offset * step
        site = target.div(by, rounding_mode="floor")
        hit = ((target % by == 0).all(1)) & (site[:, 1:] >= 0).all(1) & (site[:, 1:] < shape).all(1)
        sites.append(site[hit])
        reaching.append(name[hit])
    coord_out, inverse = torch.unique(torch.cat(sites), dim=0, return_inverse=True)
    outputs = inverse.int().split([s.size(0) for s in sites])
    pairs = [torch.stack(p) for p in zip(reaching, outputs, strict=True)]
    return *_join(pairs), rank, cell, coord_out.int()


_library.define("coord_bounds(Tensor coord) -> Tensor", _bounds_twin)
_library.define(
    "submanifold_pairs(Tensor coord, int[] kernel_size, int[] dilation) -> (Tensor, Tensor, Tensor, Tensor)",
    _submanifold_twin,
)
_library.define(
    "strided_pairs(Tensor coord, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int[] out_shape)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _strided_twin,
)


@torch.library.register_fake("pointcept3m::coord_bounds")
def _(coord: Tensor) -> Tensor:
    return coord.new_empty(2, 4, dtype=torch.int64)


def _fake_pairs(coord: Tensor, kernel_size: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    start = torch.empty(math.prod(kernel_size) + 1, dtype=torch.int64, device="cpu")
    rank = coord.new_empty(context.new_dynamic_size())
    cell = coord.new_empty(context.new_dynamic_size(), dtype=torch.int64)
    return coord.new_empty(2, context.new_dynamic_size()), start, rank, cell


@torch.library.register_fake("pointcept3m::submanifold_pairs")
def _(coord: Tensor, kernel_size: list[int], dilation: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _fake_pairs(coord, kernel_size)


@torch.library.register_fake("pointcept3m::strided_pairs")
def _(coord: Tensor, *settings: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return *_fake_pairs(coord, settings[0]), coord.new_empty(torch.library.get_ctx().new_dynamic_size(), 4)

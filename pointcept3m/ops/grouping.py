"""Features of neighbours: `grouping` lists them, `interpolation` averages them; with the API of Pointcept's `pointops`.

As keywords, pointops' names `xyz`, `new_xyz` and `with_xyz` are taken for `coord`, `new_coord` and `with_coord` too.
"""

import torch
from torch import Tensor

from pointcept3m.ops import _library, scatter  # noqa: F401  (scatter declares gather_rows)
from pointcept3m.ops._checks import (
    INTS,
    check_device,
    check_int,
    check_range,
    check_shape,
    check_tensor,
    pointops_names,
    type_of,
)
from pointcept3m.ops.neighbours import check_balls, check_clouds
from pointcept3m.ops.offsets import offset_to_counts

NATIVE_DTYPES = (torch.float32, torch.float64)
EPSILON = 1e-8  # in the unit of coord; keeps the weight of a point that coincides with the query finite


@pointops_names
def grouping(
    idx: Tensor,
    feat: Tensor,
    coord: Tensor | None = None,
    new_coord: Tensor | None = None,
    with_coord: bool = False,
) -> Tensor:
    """Features of the neighbours of each query, `feat[idx]`; neighbours that are absent (-1) have features 0.

    Differentiable in `feat`, `coord` and `new_coord`; gradients are summed in a fixed order. O(M nsample C), and the
    gradient O(M nsample C + N C).

    Args:
        idx: int32 or int64 [M, nsample], as the queries give it.
        feat: [N, C], any floating dtype.
        coord: [N, 3], any floating dtype; needed and read only `with_coord`.
        new_coord: the queries [M, 3]; without them `coord`.
        with_coord: puts the position of the neighbour relative to the query in front, 0 where it is absent.

    Returns:
        [M, nsample, C], or [M, nsample, 3 + C] of the wider dtype `with_coord`.

    Raises: TypeError, ValueError or IndexError where an argument does not fit.

    Source: Pointcept's `pointops.grouping`.
    """
    return _group("grouping", idx, feat, coord, new_coord, with_coord)


def _group(
    op: str, idx: Tensor, feat: Tensor, coord: Tensor | None, new_coord: Tensor | None, with_coord: bool
) -> Tensor:
    """`grouping`, for the function `op` that was called."""
    _check_rows(op, "feat", feat)
    flat, absent = _check_idx(op, idx, feat)
    grouped = _rows(feat, flat, absent).view(*idx.shape, feat.size(1))
    if not with_coord:
        return grouped
    if coord is None:
        raise ValueError(f"{op}: with_coord needs coord, got None")
    for name, value in (("coord", coord), ("new_coord", new_coord)):
        if value is not None:
            _check_rows(op, name, value)
            check_device(op, name, value, "feat", feat)
    centre = coord if new_coord is None else new_coord
    if coord.shape != (len(feat), 3):
        wanted = f"[{len(feat)}, 3], one row for each of feat"
        raise ValueError(f"{op}: coord must have shape {wanted}, got {tuple(coord.shape)}")
    if centre.shape != (len(idx), 3):
        name = "coord, as new_coord is absent," if new_coord is None else "new_coord"
        wanted = f"[{len(idx)}, 3], one row for each of idx"
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {tuple(centre.shape)}")
    relative = _rows(coord, flat, absent).view(*idx.shape, 3) - centre[:, None]
    if absent:
        relative = torch.where((idx >= 0)[..., None], relative, 0)
    return torch.cat([relative, grouped], dim=-1)


@pointops_names
def knn_query_and_group(
    feat: Tensor,
    coord: Tensor,
    offset: Tensor | None = None,
    new_coord: Tensor | None = None,
    new_offset: Tensor | None = None,
    idx: Tensor | None = None,
    nsample: int | None = None,
    with_coord: bool = False,
) -> tuple[Tensor, Tensor]:
    """`grouping` of the nearest neighbours, and their idx, which is looked for with `knn_query` unless it is given."""
    op = "knn_query_and_group"
    if idx is None:
        if nsample is None or offset is None:
            raise ValueError(f"{op}: give idx, or nsample and offset")
        check_int(op, "nsample", nsample, least=1)
        clouds = check_clouds(op, coord, offset, new_coord, new_offset)
        idx, _ = torch.ops.pointcept3m.knn_query(nsample, *clouds)
    return _group(op, idx, feat, coord, new_coord, with_coord), idx


@pointops_names
def ball_query_and_group(
    feat: Tensor,
    coord: Tensor,
    offset: Tensor | None = None,
    new_coord: Tensor | None = None,
    new_offset: Tensor | None = None,
    idx: Tensor | None = None,
    max_radius: float | None = None,
    min_radius: float = 0,
    nsample: int | None = None,
    with_coord: bool = False,
) -> tuple[Tensor, Tensor]:
    """`grouping` of the points in a ball, and their idx, which is looked for with `ball_query` unless it is given."""
    op = "ball_query_and_group"
    if idx is None:
        if nsample is None or offset is None or max_radius is None:
            raise ValueError(f"{op}: give idx, or nsample, max_radius and offset")
        clouds = check_balls(op, nsample, max_radius, min_radius, coord, offset, new_coord, new_offset)
        idx, _ = torch.ops.pointcept3m.ball_query(nsample, float(max_radius), float(min_radius), *clouds, None)
    return _group(op, idx, feat, coord, new_coord, with_coord), idx


@pointops_names
def interpolation(
    coord: Tensor, new_coord: Tensor, feat: Tensor, offset: Tensor, new_offset: Tensor, k: int = 3
) -> Tensor:
    """Features at new points: the mean of those of the k nearest points, weighted with 1 / (distance + 1e-8).

    Where an item has fewer than k points, all of them are averaged (pointops reads the last row of the batch instead).
    Differentiable in `feat`; weights are constants, as in pointops. O(M log N + M k C); no [M, k, C] is stored.

    Args:
        coord: points [N, 3], float32 or float64.
        new_coord: where features are wanted, [M, 3].
        feat: features of the points [N, C]. float16 and bfloat16 are averaged in float32.
        offset, new_offset: int64 or int32 [B], where each item ends in `coord` and in `new_coord`.
        k: neighbours that are averaged.

    Returns:
        [M, C] of feat's dtype; NaN where new_coord is not finite.

    Raises: TypeError or ValueError where an argument does not fit, or where an item has new points but no points.

    Source: Pointcept's `pointops.interpolation`.
    """
    op = "interpolation"
    _check_rows(op, "feat", feat)
    check_int(op, "k", k, least=1)
    if new_coord is None or new_offset is None:
        raise ValueError("interpolation: new_coord and new_offset must be given")
    coord, offset, new_coord, new_offset = check_clouds(op, coord, offset, new_coord, new_offset)
    idx, dist = torch.ops.pointcept3m.knn_query(k, coord, offset, new_coord, new_offset)
    if len(feat) != len(coord) or feat.device != coord.device:
        raise ValueError(
            f"{op}: feat must have {len(coord)} rows on {coord.device} as coord has, got {len(feat)} on {feat.device}"
        )
    if not torch.compiler.is_compiling():
        lost = (offset_to_counts(offset) == 0) & (offset_to_counts(new_offset) > 0)
        if lost.any():
            raise ValueError(f"interpolation: item {int(lost.int().argmax())} has new points, but no points to average")
    wide = feat.float() if feat.dtype in (torch.float16, torch.bfloat16) else feat
    near = 1 / (dist + EPSILON)
    weight = (near / near.sum(dim=1, keepdim=True)).to(wide.dtype)
    average = torch.ops.pointcept3m.interpolate_rows if wide.dtype in NATIVE_DTYPES else _interpolate_twin
    return average(wide.contiguous(), idx, weight).to(feat.dtype)


interpolation2 = interpolation  # pointops' version with a backward of its own; ours has one


def _check_rows(op: str, name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be a tensor of floats, got {type_of(value)}")
    if value.dim() != 2:
        raise ValueError(f"{op}: {name} must have two dimensions, got shape {tuple(value.shape)}")


def _check_idx(op: str, idx: Tensor, feat: Tensor) -> tuple[Tensor, bool]:
    """idx as int64 [M * nsample], with the number of rows in place of -1, and whether there may be one."""
    check_tensor(op, "idx", idx, INTS)
    check_shape(op, "idx", idx, ("M", "nsample"))
    check_device(op, "idx", idx, "feat", feat)
    low = check_range(op, "idx", idx, len(feat), least=-1)
    absent = low is None or low < 0
    flat = idx.reshape(-1).long()
    return (torch.where(flat == -1, len(feat), flat) if absent else flat), absent


def _rows(src: Tensor, flat: Tensor, absent: bool) -> Tensor:
    """src[flat]; where some are absent, their index is one past the end, and they get a row of zeros."""
    padded = torch.cat([src, src.new_zeros(1, src.size(1))]) if absent else src.contiguous()
    return torch.ops.pointcept3m.gather_rows(padded, flat)


# The ops: feat [N, C], idx int32 [M, k] with -1 where a neighbour is absent, weight [M, k] of feat's dtype.


def _check_range(idx: Tensor, num_rows: int) -> None:
    if ((idx < -1) | (idx >= num_rows)).any():
        raise IndexError(f"interpolate_rows: idx must lie in [-1, {num_rows})")


def _neighbour_rows(feat: Tensor, idx: Tensor) -> Tensor:
    padded = torch.cat([feat, feat.new_zeros(1, feat.size(1))])
    return padded[torch.where(idx == -1, len(feat), idx).long()]


def _interpolate_twin(feat: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    _check_range(idx, feat.size(0))
    out = feat.new_zeros(idx.size(0), feat.size(1))
    for column, share in zip(idx.unbind(dim=1), torch.where(idx < 0, 0, weight).unbind(dim=1), strict=True):
        out = out + share[:, None] * _neighbour_rows(feat, column)
    return torch.where(weight.isnan().any(dim=1, keepdim=True), torch.nan, out)


def _interpolate_backward_twin(grad: Tensor, idx: Tensor, weight: Tensor, num_rows: int) -> Tensor:
    _check_range(idx, num_rows)
    rows = torch.where(idx == -1, num_rows, idx).reshape(-1)
    parts = (torch.where(idx < 0, 0, weight)[..., None] * grad[:, None]).flatten(0, 1)
    return grad.new_zeros(num_rows + 1, grad.size(1)).index_add_(0, rows, parts)[:num_rows].clone()


_library.define("interpolate_rows(Tensor feat, Tensor idx, Tensor weight) -> Tensor", _interpolate_twin)
_library.define(
    "interpolate_rows_backward(Tensor grad, Tensor idx, Tensor weight, SymInt num_rows) -> Tensor",
    _interpolate_backward_twin,
)


@torch.library.register_fake("pointcept3m::interpolate_rows")
def _(feat: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    return feat.new_empty(idx.size(0), feat.size(1))


@torch.library.register_fake("pointcept3m::interpolate_rows_backward")
def _(grad: Tensor, idx: Tensor, weight: Tensor, num_rows: int) -> Tensor:
    return grad.new_empty(num_rows, grad.size(1))


def _weight_gradient(grad: Tensor, idx: Tensor, rows: Tensor) -> Tensor:
    return (grad[:, None] * _neighbour_rows(rows, idx)).sum(dim=2)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _interpolate_backward(ctx, grad: Tensor) -> tuple:
    feat, idx, weight = ctx.saved_tensors
    to_feat, _, to_weight = ctx.needs_input_grad
    op = torch.ops.pointcept3m.interpolate_rows_backward
    return (
        op(grad.contiguous(), idx, weight, feat.size(0)) if to_feat else None,
        None,
        _weight_gradient(grad, idx, feat) if to_weight else None,
    )


def _interpolate_backward_backward(ctx, grad: Tensor) -> tuple:
    before, idx, weight = ctx.saved_tensors
    to_before, _, to_weight, _ = ctx.needs_input_grad
    return (
        torch.ops.pointcept3m.interpolate_rows(grad.contiguous(), idx, weight) if to_before else None,
        None,
        _weight_gradient(before, idx, grad) if to_weight else None,
        None,
    )


_register = torch.library.register_autograd
_register("pointcept3m::interpolate_rows", _interpolate_backward, setup_context=_save)
_register("pointcept3m::interpolate_rows_backward", _interpolate_backward_backward, setup_context=_save)

"""Features of neighbours: `grouping` lists them, `interpolation` averages them; with the API of Pointcept's `pointops`."""

import torch
from torch import Tensor

from pointcept3m.ops import _library, scatter  # noqa: F401  (scatter declares gather_rows)
from pointcept3m.ops.neighbours import ball_query, knn_query, type_of
from pointcept3m.ops.offsets import offset_to_counts

NATIVE_DTYPES = (torch.float32, torch.float64)
EPSILON = 1e-8  # in the unit of coord; keeps the weight of a point that coincides with the query finite


def grouping(
    idx: Tensor, feat: Tensor, coord: Tensor, new_coord: Tensor | None = None, with_coord: bool = False
) -> Tensor:
    """Features of the neighbours of each query, `feat[idx]`; neighbours that are absent (-1) have features 0.

    Differentiable in `feat`, `coord` and `new_coord`; gradients are summed in a fixed order.

    Args:
        idx: int32 or int64 [M, nsample], as the queries give it.
        feat: [N, C], any floating dtype.
        coord: [N, 3]; read only `with_coord`.
        new_coord: the queries [M, 3]; without them `coord`.
        with_coord: puts the position of the neighbour relative to the query in front, 0 where it is absent.

    Returns:
        [M, nsample, C], or [M, nsample, 3 + C] of the wider dtype `with_coord`.

    Raises: TypeError, ValueError or IndexError where an argument does not fit.

    Source: Pointcept's `pointops.grouping`.
    """
    _check_rows("feat", feat)
    flat, absent = _check_idx("grouping", idx, feat)
    grouped = _rows(feat, flat, absent).view(*idx.shape, feat.size(1))
    if not with_coord:
        return grouped
    _check_rows("coord", coord)
    centre = coord if new_coord is None else new_coord
    if coord.shape != (len(feat), 3):
        raise ValueError(f"grouping: coord must have shape [{len(feat)}, 3], one row for each of feat, got {tuple(coord.shape)}")
    if centre.shape != (len(idx), 3):
        name = "coord, as new_coord is absent," if new_coord is None else "new_coord"
        raise ValueError(f"grouping: {name} must have shape [{len(idx)}, 3], one row for each of idx, got {tuple(centre.shape)}")
    relative = _rows(coord, flat, absent).view(*idx.shape, 3) - centre[:, None]
    if absent:
        relative = torch.where((idx >= 0)[..., None], relative, 0)
    return torch.cat([relative, grouped], dim=-1)


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
    """`grouping` of the nearest neighbours, and their idx; they are looked for with `knn_query` unless `idx` is given."""
    if idx is None:
        if nsample is None or offset is None:
            raise ValueError("knn_query_and_group: give idx, or nsample and offset")
        idx, _ = knn_query(nsample, coord, offset, new_coord, new_offset)
    return grouping(idx, feat, coord, new_coord, with_coord), idx


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
    """`grouping` of the points in a ball, and their idx; they are looked for with `ball_query` unless `idx` is given."""
    if idx is None:
        if nsample is None or offset is None or max_radius is None:
            raise ValueError("ball_query_and_group: give idx, or nsample, max_radius and offset")
        idx, _ = ball_query(nsample, max_radius, min_radius, coord, offset, new_coord, new_offset)
    return grouping(idx, feat, coord, new_coord, with_coord), idx


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
    _check_rows("feat", feat, "interpolation")
    if new_coord is None or new_offset is None:
        raise ValueError("interpolation: new_coord and new_offset must be given")
    idx, dist = knn_query(k, coord, offset, new_coord, new_offset)
    if len(feat) != len(coord) or feat.device != coord.device:
        raise ValueError(
            f"interpolation: feat must have {len(coord)} rows on {coord.device} as coord has, got {len(feat)} on {feat.device}"
        )
    if not torch.compiler.is_compiling():
        lost = (offset_to_counts(offset) == 0) & (offset_to_counts(new_offset) > 0)
        if lost.any():
            raise ValueError(f"interpolation: item {int(lost.int().argmax())} has new points, but no points to average")
    wide = feat.float() if feat.dtype in (torch.float16, torch.bfloat16) else feat
    near = 1 / (dist + EPSILON)
    weight = (near / near.sum(dim=1, keepdim=True)).to(wide.dtype)
    op = torch.ops.pointcept3m.interpolate_rows if wide.dtype in NATIVE_DTYPES else _interpolate_twin
    return op(wide.contiguous(), idx, weight).to(feat.dtype)


interpolation2 = interpolation  # pointops' version with a backward of its own; ours has one


def _check_rows(name: str, value: Tensor, op: str = "grouping") -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be a tensor of floats, got {type_of(value)}")
    if value.dim() != 2:
        raise ValueError(f"{op}: {name} must have two dimensions, got shape {tuple(value.shape)}")


def _check_idx(op: str, idx: Tensor, feat: Tensor) -> tuple[Tensor, bool]:
    """idx as int64 [M * nsample], with the number of rows in place of -1, and whether there may be one."""
    if not isinstance(idx, Tensor) or idx.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: idx must be an int32 or int64 tensor, got {type_of(idx)}")
    if idx.dim() != 2:
        raise ValueError(f"{op}: idx must have shape [M, nsample], got {tuple(idx.shape)}")
    if idx.device != feat.device:
        raise ValueError(f"{op}: feat is on {feat.device}, idx on {idx.device}")
    absent = True
    if not torch.compiler.is_compiling():  # there no value can be looked at; gather_rows refuses one out of range
        low, high = (0, -1) if idx.numel() == 0 else (int(value) for value in torch.aminmax(idx))
        if low < -1 or high >= len(feat):
            raise IndexError(f"{op}: idx must lie in [-1, {len(feat)}), found {low if low < -1 else high}")
        absent = low < 0
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

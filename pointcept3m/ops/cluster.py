"""Clusters of points: pointgroup_ops' `ballquery_batch_p` and `bfs_cluster`, and both in one without lists.

Two points are neighbours where (dx * dx + dy * dy) + dz * dz < radius * radius, every operation rounded in the dtype
of the coordinates. The twins and the kernels for CPU and CUDA agree on that to the last bit, and so on every result.
"""

import math
from collections.abc import Iterator
from numbers import Integral, Real

import torch
from torch import Tensor

from pointcept3m.ops import _library

MIN_RADIUS, MAX_RADIUS = 1e-15, 1e15
MAX_ENTRIES = 2**31 - 1


def ballquery_batch_p(
    coords: Tensor, batch_idxs: Tensor, batch_offsets: Tensor, radius: float, meanActive: int | None = None
) -> tuple[Tensor, Tensor]:
    """For every point the points of its batch item that are nearer than `radius`, itself among them.

    Arguments and results are those of pointgroup_ops (PointGroup, Jiang et al. 2020). Unlike there, lists stand in the
    order of the points, have no limit of 1000, and every call gives the same. O(N log N + pairs of points in
    neighbouring cells of a grid as wide as the radius).

    Args:
        coords: float [N, 3], in the unit of `radius`; float16 and bfloat16 are computed in float32. A point with a
            coordinate that is not finite has no neighbours, not even itself.
        batch_idxs: int32 or int64 [N], the batch item of each point; points of an item stand together.
        batch_offsets: int32 or int64 [B + 1], 0 and the cumulative ends of the items.
        radius: distance from 1e-15 to 1e15.
        meanActive: the average length that pointgroup_ops sets memory aside for; ignored, as lengths are counted.

    Returns:
        idx: int32 [nActive], the neighbours of all points, ascending for each point.
        start_len: int32 [N, 2], for each point where its neighbours start in `idx`, and how many there are.

    Raises: TypeError or ValueError where an argument does not fit; RuntimeError where there are more than 2^31 - 1
    neighbours (`cluster_points` finds clusters without listing them).
    """
    coords = _check_coord("ballquery_batch_p", "coords", coords)
    _check_ints("ballquery_batch_p", "batch_idxs", batch_idxs, coords, (coords.size(0),))
    _check_ints("ballquery_batch_p", "batch_offsets", batch_offsets, coords, None)
    if batch_offsets.dim() != 1 or batch_offsets.size(0) == 0:
        raise ValueError(f"ballquery_batch_p: batch_offsets must have shape [B + 1], got {tuple(batch_offsets.shape)}")
    _check_radius("ballquery_batch_p", radius)
    ends = batch_offsets[1:].long().contiguous()
    if not torch.compiler.is_compiling():  # no value can be looked at there; the kernels refuse ends that do not fit
        _check_ends("ballquery_batch_p", "batch_offsets", ends, coords.size(0), int(batch_offsets[0]))
        item = torch.arange(ends.size(0), device=ends.device).repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))
        if not torch.equal(batch_idxs.long(), item):
            raise ValueError("ballquery_batch_p: batch_idxs and batch_offsets disagree on the batch item of a point")
    return torch.ops.pointcept3m.ballquery_batch_p(coords, ends, float(radius))


def bfs_cluster(
    semantic_label: Tensor, ball_query_idxs: Tensor, start_len: Tensor, threshold: int
) -> tuple[Tensor, Tensor]:
    """Clusters of points that neighbours of the same label connect, where they have at least `threshold` points.

    Arguments and results are those of pointgroup_ops, on the device of the arguments. Clusters are numbered by their
    first points, and a cluster's points ascend (pointgroup_ops gives them in the order of its search). A neighbour
    connects two points even where only one of the two lists names the other. O(N + nActive).

    Args:
        semantic_label: int32 or int64 [N].
        ball_query_idxs: int32 [nActive], and
        start_len: int32 [N, 2], both as `ballquery_batch_p` returns them.
        threshold: the fewest points of a cluster that is kept.

    Returns:
        cluster_idxs: int32 [sumNPoint, 2], cluster and point, in ascending order.
        cluster_offsets: int32 [nCluster + 1], where each cluster starts in `cluster_idxs`, and the end.

    Raises: TypeError or ValueError where an argument does not fit; RuntimeError where lists name what is not there.
    """
    op = "bfs_cluster"
    _check_tensor(op, "semantic_label", semantic_label)
    _check_ints(op, "semantic_label", semantic_label, semantic_label, (semantic_label.numel(),))
    _check_ints(op, "ball_query_idxs", ball_query_idxs, semantic_label, (ball_query_idxs.numel(),), (torch.int32,))
    _check_ints(op, "start_len", start_len, semantic_label, (semantic_label.numel(), 2), (torch.int32,))
    _check_integer(op, "threshold", threshold)
    return torch.ops.pointcept3m.bfs_cluster(
        semantic_label.long().contiguous(), ball_query_idxs.contiguous(), start_len.contiguous(), int(threshold)
    )


def cluster_points(
    coord: Tensor, offset: Tensor, label: Tensor, radius: float, min_points: int = 1
) -> tuple[Tensor, Tensor]:
    """What `ballquery_batch_p` and then `bfs_cluster` find, without listing neighbours: memory O(N).

    Points of the same label and batch item that are nearer than `radius` are of one cluster. O(N log N) and, on a CPU,
    hardly more for more neighbours: cells that hold many points are joined as a whole. On CUDA every point is compared
    with those of the 27 cells around it.

    Args:
        coord: float [N, 3], in the unit of `radius`; float16 and bfloat16 are computed in float32.
        offset: int64 [B], the cumulative ends of the batch items, without a leading 0.
        label: int32 or int64 [N].
        radius: distance from 1e-15 to 1e15.
        min_points: the fewest points of a cluster that is kept.

    Returns:
        As `bfs_cluster`: cluster_idxs int32 [sumNPoint, 2] and cluster_offsets int32 [nCluster + 1].

    Raises: TypeError or ValueError where an argument does not fit.
    """
    op = "cluster_points"
    coord = _check_coord(op, "coord", coord)
    _check_ints(op, "offset", offset, coord, None, (torch.int64,))
    if offset.dim() != 1:
        raise ValueError(f"{op}: offset must have shape [B], got {tuple(offset.shape)}")
    _check_ints(op, "label", label, coord, (coord.size(0),))
    _check_radius(op, radius)
    _check_integer(op, "min_points", min_points)
    if not torch.compiler.is_compiling():
        _check_ends(op, "offset", offset, coord.size(0))
    return torch.ops.pointcept3m.cluster_points(
        coord, offset.contiguous(), label.long().contiguous(), float(radius), int(min_points)
    )


def _check_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def _check_coord(op: str, name: str, coord: Tensor) -> Tensor:
    """`coord` as the kernels take it."""
    _check_tensor(op, name, coord)
    if not coord.is_floating_point():
        raise TypeError(f"{op}: {name} must be of a floating-point dtype, got {coord.dtype}")
    if coord.dim() != 2 or coord.size(1) != 3:
        raise ValueError(f"{op}: {name} must have shape [N, 3], got {tuple(coord.shape)}")
    wide = coord if coord.dtype == torch.float64 else coord.float()
    return wide.detach().contiguous()


def _check_ints(
    op: str,
    name: str,
    value: Tensor,
    like: Tensor,
    shape: tuple[int, ...] | None,
    dtypes: tuple[torch.dtype, ...] = (torch.int32, torch.int64),
) -> None:
    _check_tensor(op, name, value)
    if value.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{op}: {name} must be {wanted}, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device} as the first argument is, got {value.device}")
    if shape is not None and tuple(value.shape) != shape:
        raise ValueError(f"{op}: {name} must have shape {list(shape)}, got {list(value.shape)}")


def _check_integer(op: str, name: str, value: object) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}")


def _check_radius(op: str, radius: object) -> None:
    if not isinstance(radius, Real) or isinstance(radius, bool):
        raise TypeError(f"{op}: radius must be a number, got {type(radius).__name__}")
    if not (math.isfinite(radius) and MIN_RADIUS <= radius <= MAX_RADIUS):
        raise ValueError(f"{op}: radius must lie from {MIN_RADIUS:g} to {MAX_RADIUS:g}, got {radius}")


def _check_ends(op: str, name: str, ends: Tensor, num_points: int, first: int = 0) -> None:
    found = [first, *ends.tolist()]
    if first != 0 or found[-1] != num_points or any(b < a for a, b in zip(found, found[1:], strict=False)):
        raise ValueError(f"{op}: {name} must ascend to the {num_points} points that there are, got {_shorten(found)}")


def _shorten(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:3]))}, ..., {values[-1]}]"


# The ops: coord float32 or float64 [N, 3], offset int64 [B], label int64 [N], all contiguous. Twins serve any device.

PAIRS_AT_ONCE = 1 << 22


def _near_pairs(coord: Tensor, offset: Tensor, radius: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields int64 (point, neighbour) of a few points after another, both ascending; every pair from both sides."""
    edge = torch.tensor(radius, dtype=coord.dtype, device=coord.device)
    square = edge * edge
    begin = 0
    for end in offset.tolist():
        item = coord[begin:end]
        rows = max(1, PAIRS_AT_ONCE // max(1, end - begin))
        for start in range(0, end - begin, rows):
            delta = item[start : start + rows, None] - item
            delta = delta * delta
            near = (delta[..., 0] + delta[..., 1]) + delta[..., 2] < square
            point, neighbor = near.nonzero(as_tuple=True)
            yield point + (begin + start), neighbor + begin
        begin = end


def _check_offset_of_op(offset: Tensor, num_points: int) -> None:
    if offset.numel() == 0 and num_points == 0:
        return
    if (
        offset.numel() == 0
        or int(offset[-1]) != num_points
        or bool((offset.diff(prepend=offset.new_zeros(1)) < 0).any())
    ):
        raise RuntimeError("offset must ascend from 0 or more to the number of points")


def _ball_query_twin(coord: Tensor, offset: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    _check_offset_of_op(offset, coord.size(0))
    count = torch.zeros(coord.size(0), dtype=torch.int64, device=coord.device)
    found = [torch.zeros(0, dtype=torch.int32, device=coord.device)]
    total = 0
    for point, neighbor in _near_pairs(coord, offset, radius):
        count += point.bincount(minlength=coord.size(0))
        found.append(neighbor.int())
        total += neighbor.numel()
        if total > MAX_ENTRIES:
            raise RuntimeError(
                f"ballquery_batch_p: more than {MAX_ENTRIES} neighbours do not fit the int32 indices of the result; "
                "take a smaller radius, or cluster_points, which needs no lists"
            )
    return torch.cat(found), torch.stack([count.cumsum(0) - count, count], 1).int()


def _first_of_component(point: Tensor, neighbor: Tensor, first: Tensor) -> Tensor:
    """Continues `first`, the first point of each point's component, by the edges between `point` and `neighbor`."""
    while True:
        a, b = first[point], first[neighbor]
        hooked = first.scatter_reduce(0, a, b, "amin").scatter_reduce(0, b, a, "amin")
        hooked = torch.minimum(hooked, hooked[hooked])
        if torch.equal(hooked, first):
            return first
        first = hooked


def _compact(first: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    size = first.bincount(minlength=first.numel())
    kept = (size >= threshold) & (size > 0)
    number = kept.cumsum(0) - 1
    point = kept[first].nonzero().flatten()
    cluster, order = number[first[point]].sort(stable=True)
    ends = size[kept].cumsum(0)
    return torch.stack([cluster, point[order]], 1).int(), torch.cat([ends.new_zeros(1), ends]).int()


def _bfs_twin(label: Tensor, idx: Tensor, start_len: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    start, length = start_len.long().unbind(1)
    inside = bool(((start >= 0) & (length >= 0) & (start + length <= idx.numel())).all())
    everyone = torch.arange(label.numel(), device=label.device)
    if inside:
        point = everyone.repeat_interleave(length)
        place = torch.arange(point.numel(), device=label.device) + (start - (length.cumsum(0) - length))[point]
        neighbor = idx[place].long()
        inside = bool(((neighbor >= 0) & (neighbor < label.numel())).all())
    if not inside:
        raise RuntimeError(
            "bfs_cluster: start_len names entries outside ball_query_idxs, or those name points outside [0, N)"
        )
    same = label[point] == label[neighbor]
    return _compact(_first_of_component(point[same], neighbor[same], everyone), threshold)


def _cluster_points_twin(
    coord: Tensor, offset: Tensor, label: Tensor, radius: float, min_points: int
) -> tuple[Tensor, Tensor]:
    _check_offset_of_op(offset, coord.size(0))
    first = torch.arange(coord.size(0), device=coord.device)
    for point, neighbor in _near_pairs(coord, offset, radius):
        same = label[point] == label[neighbor]
        first = _first_of_component(point[same], neighbor[same], first)
    return _compact(first, min_points)


_library.define("ballquery_batch_p(Tensor coord, Tensor offset, float radius) -> (Tensor, Tensor)", _ball_query_twin)
_library.define("bfs_cluster(Tensor label, Tensor idx, Tensor start_len, int threshold) -> (Tensor, Tensor)", _bfs_twin)
_library.define(
    "cluster_points(Tensor coord, Tensor offset, Tensor label, float radius, int min_points) -> (Tensor, Tensor)",
    _cluster_points_twin,
)


@torch.library.register_fake("pointcept3m::ballquery_batch_p")
def _(coord: Tensor, offset: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    total = torch.library.get_ctx().new_dynamic_size()
    return offset.new_empty(total, dtype=torch.int32), offset.new_empty(coord.size(0), 2, dtype=torch.int32)


def _fake_clusters(label: Tensor) -> tuple[Tensor, Tensor]:
    context = torch.library.get_ctx()
    num_points, num_ends = context.new_dynamic_size(), context.new_dynamic_size(min=1)
    return label.new_empty(num_points, 2, dtype=torch.int32), label.new_empty(num_ends, dtype=torch.int32)


@torch.library.register_fake("pointcept3m::bfs_cluster")
def _(label: Tensor, idx: Tensor, start_len: Tensor, threshold: int) -> tuple[Tensor, Tensor]:
    return _fake_clusters(label)


@torch.library.register_fake("pointcept3m::cluster_points")
def _(coord: Tensor, offset: Tensor, label: Tensor, radius: float, min_points: int) -> tuple[Tensor, Tensor]:
    return _fake_clusters(label)

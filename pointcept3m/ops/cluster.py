"""Clusters of points: pointgroup_ops' `ballquery_batch_p` and `bfs_cluster`, and both in one without lists.

Two points are neighbours where (dx * dx + dy * dy) + dz * dz < radius * radius, every operation rounded in the dtype
of the coordinates. The twins and the kernels for CPU and CUDA agree on that to the last bit, and so on every result.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops._checks import (
    INTS,
    check_device,
    check_int,
    check_number,
    check_offset,
    check_points,
    check_range,
    check_shape,
    check_tensor,
)

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
        coords: float32 or float64 [N, 3], in the unit of `radius`; half precision is refused. A point with a coordinate
            that is not finite has no neighbours, not even itself.
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
    op = "ballquery_batch_p"
    coords = check_points(op, "coords", coords)
    _check_ints(op, "batch_idxs", batch_idxs, (coords.size(0),), "coords", coords)
    _check_ints(op, "batch_offsets", batch_offsets, ("B + 1",), "coords", coords)
    if batch_offsets.size(0) == 0:
        raise ValueError(f"{op}: batch_offsets must have shape [B + 1], got (0,)")
    _check_radius(op, radius)
    ends = check_offset(op, "batch_offsets", batch_offsets[1:], "coords", coords)
    if not torch.compiler.is_compiling():  # no value can be looked at there; the kernels refuse ends that do not fit
        if int(batch_offsets[0]) != 0:
            raise ValueError(f"{op}: batch_offsets must start with 0, got {int(batch_offsets[0])}")
        item = torch.arange(ends.size(0), device=ends.device).repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))
        if not torch.equal(batch_idxs.long(), item):
            raise ValueError(f"{op}: batch_idxs and batch_offsets disagree on the batch item of a point")
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

    Raises: TypeError or ValueError where an argument does not fit; IndexError where a list names a point outside
    [0, N).
    """
    op = "bfs_cluster"
    check_tensor(op, "semantic_label", semantic_label, INTS)
    check_shape(op, "semantic_label", semantic_label, ("N",))
    like = ("semantic_label", semantic_label)
    _check_ints(op, "ball_query_idxs", ball_query_idxs, ("nActive",), *like, (torch.int32,))
    _check_ints(op, "start_len", start_len, (semantic_label.size(0), 2), *like, (torch.int32,))
    check_int(op, "threshold", threshold)
    lists = (semantic_label.long().contiguous(), ball_query_idxs.contiguous(), start_len.contiguous())
    if torch.compiler.is_compiling():
        return torch.ops.pointcept3m.bfs_cluster(*lists, int(threshold))
    try:
        return torch.ops.pointcept3m.bfs_cluster(*lists, int(threshold))
    except RuntimeError as error:
        refusal = error
    _check_lists(*lists)  # only now, as kernels look at every list anyway: finds out which it was, and says so
    raise refusal


def cluster_points(
    coord: Tensor, offset: Tensor, label: Tensor, radius: float, min_points: int = 1
) -> tuple[Tensor, Tensor]:
    """What `ballquery_batch_p` and then `bfs_cluster` find, without listing neighbours: memory O(N).

    Points of the same label and batch item that are nearer than `radius` are of one cluster. O(N log N) and, on a CPU,
    hardly more for more neighbours: cells that hold many points are joined as a whole. On CUDA every point is compared
    with those of the 27 cells around it.

    Args:
        coord: float32 or float64 [N, 3], in the unit of `radius`; half precision is refused.
        offset: int64 or int32 [B], the cumulative ends of the batch items, without a leading 0.
        label: int32 or int64 [N].
        radius: distance from 1e-15 to 1e15.
        min_points: the fewest points of a cluster that is kept.

    Returns:
        As `bfs_cluster`: cluster_idxs int32 [sumNPoint, 2] and cluster_offsets int32 [nCluster + 1].

    Raises: TypeError or ValueError where an argument does not fit.
    """
    op = "cluster_points"
    coord = check_points(op, "coord", coord)
    offset = check_offset(op, "offset", offset, "coord", coord)
    _check_ints(op, "label", label, (coord.size(0),), "coord", coord)
    _check_radius(op, radius)
    check_int(op, "min_points", min_points)
    return torch.ops.pointcept3m.cluster_points(
        coord, offset, label.long().contiguous(), float(radius), int(min_points)
    )


def _check_ints(
    op: str,
    name: str,
    value: Tensor,
    shape: tuple[int | str, ...],
    like_name: str,
    like: Tensor,
    dtypes: tuple[torch.dtype, ...] = INTS,
) -> None:
    check_tensor(op, name, value, dtypes)
    check_shape(op, name, value, shape)
    check_device(op, name, value, like_name, like)


def _check_radius(op: str, radius: object) -> None:
    check_number(op, "radius", radius)
    if not (math.isfinite(radius) and MIN_RADIUS <= radius <= MAX_RADIUS):
        raise ValueError(f"{op}: radius must lie from {MIN_RADIUS:g} to {MAX_RADIUS:g}, got {radius}")


def _check_lists(label: Tensor, idx: Tensor, start_len: Tensor) -> None:
    """Raises where a list of bfs_cluster reaches out of `idx`, or names a point that there is not."""
    start, length = start_len.long().unbind(1)
    bad = (start < 0) | (length < 0) | (start + length > idx.numel())
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"bfs_cluster: start_len must name entries of ball_query_idxs, which has {idx.numel()}, got start and "
            f"length {start_len[row].tolist()} in row {row}"
        )
    lists_here = start.new_zeros(idx.numel() + 1)  # how many lists begin at an entry, less those that end before it
    lists_here.index_add_(0, start, torch.ones_like(start)).index_add_(0, start + length, -torch.ones_like(start))
    check_range("bfs_cluster", "ball_query_idxs", idx[lists_here.cumsum(0)[:-1] > 0], label.numel())


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
            point, neighbour = near.nonzero(as_tuple=True)
            yield point + (begin + start), neighbour + begin
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
    for point, neighbour in _near_pairs(coord, offset, radius):
        count += point.bincount(minlength=coord.size(0))
        found.append(neighbour.int())
        total += neighbour.numel()
        if total > MAX_ENTRIES:
            raise RuntimeError(
                f"ballquery_batch_p: more than {MAX_ENTRIES} neighbours do not fit the int32 indices of the result; "
                "take a smaller radius, or cluster_points, which needs no lists"
            )
    return torch.cat(found), torch.stack([count.cumsum(0) - count, count], 1).int()


def _first_of_component(point: Tensor, neighbour: Tensor, first: Tensor) -> Tensor:
    """Continues `first`, the first point of each point's component, by the edges between `point` and `neighbour`."""
    while True:
        a, b = first[point], first[neighbour]
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
        neighbour = idx[place].long()
        inside = bool(((neighbour >= 0) & (neighbour < label.numel())).all())
    if not inside:
        raise RuntimeError(
            "bfs_cluster: start_len names entries outside ball_query_idxs, or those name points outside [0, N)"
        )
    same = label[point] == label[neighbour]
    return _compact(_first_of_component(point[same], neighbour[same], everyone), threshold)


def _cluster_points_twin(
    coord: Tensor, offset: Tensor, label: Tensor, radius: float, min_points: int
) -> tuple[Tensor, Tensor]:
    _check_offset_of_op(offset, coord.size(0))
    first = torch.arange(coord.size(0), device=coord.device)
    for point, neighbour in _near_pairs(coord, offset, radius):
        same = label[point] == label[neighbour]
        first = _first_of_component(point[same], neighbour[same], first)
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

"""Neighbours of points, exact and never across the items of a batch: `knn_query`, `ball_query`, `random_ball_query`.

The API is that of Pointcept's `pointops`, with `coord` for its `xyz`. The CPU walks through a tree of boxes over the
leaves of a k-d tree; no cloud, however clustered, stretched or repeated, makes it compare every pair.
"""

import math

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops.offsets import offset_to_batch, offset_to_counts

DTYPES = (torch.float32, torch.float64)
CHUNK = 2**23  # pairs that a twin compares at a time


def knn_query(
    nsample: int, coord: Tensor, offset: Tensor, new_coord: Tensor | None = None, new_offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The `nsample` points nearest to each query, among the points of the query's own item, nearest first.

    Of equally distant points the one with the lower index comes first. A point finds itself. Time grows as M log N,
    memory as N + M * nsample. Nothing is differentiated: take `coord[idx]` to differentiate distances.

    Args:
        nsample: neighbours for each query, at least 1. There is no upper limit (pointops stops at 128).
        coord: float32 or float64 [N, 3], any unit.
        offset: int64 or int32 [B], where each item of the batch ends.
        new_coord: queries [M, 3] of coord's dtype; without them the points themselves.
        new_offset: [B], where the queries of each item end; given exactly when `new_coord` is.

    Returns:
        idx: int32 [M, nsample], rows of `coord`, -1 where an item has fewer points.
        dist: [M, nsample], distance in the unit of coord, not squared; infinity where idx is -1 (pointops: 1e5).

    A point that is not finite is nobody's neighbour and has none.

    Raises: TypeError or ValueError where an argument does not fit.

    Source: Pointcept's `pointops.knn_query` (arguments and results).
    """
    _check_count("knn_query", nsample)
    return torch.ops.pointcept3m.knn_query(nsample, *_clouds("knn_query", coord, offset, new_coord, new_offset))


def ball_query(
    nsample: int,
    max_radius: float,
    min_radius: float,
    coord: Tensor,
    offset: Tensor,
    new_coord: Tensor | None = None,
    new_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Up to `nsample` points of the query's item at a distance in [min_radius, max_radius), nearest first.

    Points at distance 0 always belong. Where a ball holds more than `nsample`, those are returned that stand at
    `i * count // nsample` for i = 0 .. nsample - 1 when all are ordered by distance, equal ones by index: a sample that
    reaches from the centre to the border. Time grows with the number of points in the balls.

    pointops means the same but does otherwise: it orders incompletely, returns indices as distances in full balls, calls
    everything within 3 mm "at distance 0" whatever the unit, and overruns its memory at 2,048 points in a ball.

    Args, Returns and Raises are those of `knn_query`, and:
        max_radius, min_radius: in the unit of coord, 0 <= min_radius < max_radius.
    """
    return _ball_query("ball_query", nsample, max_radius, min_radius, coord, offset, new_coord, new_offset, None)


def random_ball_query(
    nsample: int,
    max_radius: float,
    min_radius: float,
    coord: Tensor,
    offset: Tensor,
    new_coord: Tensor | None = None,
    new_offset: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """`ball_query` with a random sample of each ball, in random order: every point of a ball is equally likely.

    All points get one random order, drawn from `generator` or torch's global one, and a ball gives its first in that
    order, as in pointops; so the samples of two balls are not independent.
    """
    order = torch.randperm(len(coord), generator=generator, device=generator.device if generator else "cpu")
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(coord), device=order.device)).to(coord.device)
    return _ball_query("random_ball_query", nsample, max_radius, min_radius, coord, offset, new_coord, new_offset, rank)


def _ball_query(
    op: str,
    nsample: int,
    max_radius: float,
    min_radius: float,
    coord: Tensor,
    offset: Tensor,
    new_coord: Tensor | None,
    new_offset: Tensor | None,
    rank: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check_count(op, nsample)
    for name, radius in (("max_radius", max_radius), ("min_radius", min_radius)):
        if isinstance(radius, bool) or not isinstance(radius, (int, float)):
            raise TypeError(f"{op}: {name} must be a number, got {type(radius).__name__}")
    if not 0 <= min_radius < max_radius:
        raise ValueError(f"{op}: radii must satisfy 0 <= min_radius < max_radius, got {min_radius} and {max_radius}")
    clouds = _clouds(op, coord, offset, new_coord, new_offset)
    return torch.ops.pointcept3m.ball_query(nsample, float(max_radius), float(min_radius), *clouds, rank)


def _check_count(op: str, nsample: int) -> None:
    if isinstance(nsample, bool) or not isinstance(nsample, (int, torch.SymInt)):
        raise TypeError(f"{op}: nsample must be an int, got {type(nsample).__name__}")
    if nsample < 1:
        raise ValueError(f"{op}: nsample must be at least 1, got {nsample}")


def _clouds(
    op: str, coord: Tensor, offset: Tensor, new_coord: Tensor | None, new_offset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The arguments as the ops take them."""
    if (new_coord is None) != (new_offset is None):
        given, absent = ("new_offset", "new_coord") if new_coord is None else ("new_coord", "new_offset")
        raise ValueError(f"{op}: {given} was given without {absent}")
    coord, offset = check_cloud(op, coord, offset)
    if new_coord is None:
        return coord, offset, None, None
    new_coord, new_offset = check_cloud(op, new_coord, new_offset, "new_coord", "new_offset")
    if new_coord.dtype != coord.dtype or new_coord.device != coord.device:
        raise ValueError(
            f"{op}: new_coord must be {coord.dtype} on {coord.device} as coord is, got {new_coord.dtype} on {new_coord.device}"
        )
    if new_offset.shape != offset.shape:
        raise ValueError(f"{op}: offset tells of {len(offset)} items, new_offset of {len(new_offset)}")
    return coord, offset, new_coord, new_offset


def check_cloud(
    op: str, coord: Tensor, offset: Tensor, name: str = "coord", offset_name: str = "offset"
) -> tuple[Tensor, Tensor]:
    """`coord` [N, 3], detached and contiguous, and `offset` [B] as int64; raises where they are not points of a batch."""
    if not isinstance(coord, Tensor) or coord.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} must be a float32 or float64 tensor, got {type_of(coord)}")
    if coord.dim() != 2 or coord.size(1) != 3:
        raise ValueError(f"{op}: {name} must have shape [N, 3], got {tuple(coord.shape)}")
    offset = check_offset(op, offset, coord, offset_name)
    if not torch.compiler.is_compiling():
        ends = offset.tolist()
        if (ends[-1] if ends else 0) != len(coord) or sorted([0, *ends]) != [0, *ends]:
            raise ValueError(f"{op}: {offset_name} must ascend to the number of points, {len(coord)}, got {ends}")
    return coord.detach().contiguous(), offset


def check_offset(op: str, offset: Tensor, coord: Tensor, name: str) -> Tensor:
    """`offset` [B] as int64 on the device of coord."""
    if not isinstance(offset, Tensor) or offset.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{op}: {name} must be an int64 or int32 tensor, got {type_of(offset)}")
    if offset.dim() != 1:
        raise ValueError(f"{op}: {name} must have shape [B], got {tuple(offset.shape)}")
    if offset.device != coord.device:
        raise ValueError(f"{op}: coord is on {coord.device}, {name} on {offset.device}")
    return offset.long().contiguous()


def type_of(value: object) -> str:
    """The dtype of a tensor, the type of anything else."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


# The ops and their twins, which compare all pairs of an item, a chunk of queries at a time.


def _squares(query: Tensor, coord: Tensor) -> Tensor:
    """Squared distances [m, n], rounded step by step as the kernels do."""
    x, y, z = (query[:, None, d] - coord[None, :, d] for d in range(3))
    return (x * x + y * y) + z * z


def _chunks(coord: Tensor, offset: Tensor, new_coord: Tensor | None, new_offset: Tensor | None):
    """(rows of queries, rows of points, squared distances between them) for finite points of the same item."""
    queries, ends = (coord, offset) if new_coord is None else (new_coord, new_offset)
    if (new_coord is None) != (new_offset is None) or ends.shape != offset.shape:
        raise ValueError("knn_query, ball_query: new_coord and new_offset go together, with one item for each of offset")
    for points, stop in ((coord, offset), (queries, ends)):
        if (offset_to_counts(stop) < 0).any() or (int(stop[-1]) if len(stop) else 0) != len(points):
            raise ValueError(f"knn_query, ball_query: {stop.tolist()} does not ascend to {len(points)}")
    point_item, query_item = offset_to_batch(offset), offset_to_batch(ends)
    finite, asked = coord.isfinite().all(dim=1), queries.isfinite().all(dim=1)
    for item in range(len(offset)):
        points = ((point_item == item) & finite).nonzero().flatten()
        for rows in ((query_item == item) & asked).nonzero().flatten().split(max(1, CHUNK // max(1, len(points)))):
            yield rows, points, _squares(queries[rows], coord[points])


def _nothing_found(nsample: int, coord: Tensor, new_coord: Tensor | None) -> tuple[Tensor, Tensor]:
    if nsample < 1:
        raise ValueError(f"knn_query, ball_query: nsample must be at least 1, got {nsample}")
    shape = (len(coord) if new_coord is None else len(new_coord), nsample)
    return coord.new_full(shape, -1, dtype=torch.int32), coord.new_full(shape, math.inf)


def _knn_twin(
    nsample: int, coord: Tensor, offset: Tensor, new_coord: Tensor | None, new_offset: Tensor | None
) -> tuple[Tensor, Tensor]:
    idx, dist = _nothing_found(nsample, coord, new_coord)
    for rows, points, squares in _chunks(coord, offset, new_coord, new_offset):
        squares, order = squares.sort(dim=1, stable=True)
        width = min(nsample, len(points))
        idx[rows, :width] = points[order[:, :width]].int()
        dist[rows, :width] = squares[:, :width].sqrt()
    return idx, dist


def _ball_twin(
    nsample: int,
    max_radius: float,
    min_radius: float,
    coord: Tensor,
    offset: Tensor,
    new_coord: Tensor | None,
    new_offset: Tensor | None,
    rank: Tensor | None,
) -> tuple[Tensor, Tensor]:
    idx, dist = _nothing_found(nsample, coord, new_coord)
    if not 0 <= min_radius < max_radius:
        raise ValueError(f"ball_query: radii must satisfy 0 <= min_radius < max_radius, got {min_radius} and {max_radius}")
    if rank is not None and (rank.shape != coord.shape[:1] or ((rank < 0) | (rank >= len(coord))).any()):
        raise ValueError("ball_query: rank must hold a number below N for each point")
    low, high = (coord.new_tensor(radius).square() for radius in (min_radius, max_radius))
    place = torch.arange(nsample, device=coord.device)
    for rows, points, squares in _chunks(coord, offset, new_coord, new_offset):
        if len(points) == 0:
            continue
        inside = ((squares < high) & (squares >= low)) | (squares == 0)
        count = inside.sum(dim=1, keepdim=True)
        if rank is None:
            order = torch.where(inside, squares, math.inf).argsort(dim=1, stable=True)
            taken = torch.where(count > nsample, place * count // nsample, place)
        else:
            order = torch.where(inside, rank[points], len(coord)).argsort(dim=1, stable=True)
            taken = place.expand(len(rows), -1)
        column = order.gather(1, taken.clamp(max=len(points) - 1))
        idx[rows] = torch.where(place < count, points[column].int(), -1)
        dist[rows] = torch.where(place < count, squares.gather(1, column).sqrt(), math.inf)
    return idx, dist


_library.define(
    "knn_query(SymInt nsample, Tensor coord, Tensor offset, Tensor? new_coord, Tensor? new_offset) -> (Tensor, Tensor)",
    _knn_twin,
)
_library.define(
    "ball_query(SymInt nsample, float max_radius, float min_radius, Tensor coord, Tensor offset, Tensor? new_coord,"
    " Tensor? new_offset, Tensor? rank) -> (Tensor, Tensor)",
    _ball_twin,
)


@torch.library.register_fake("pointcept3m::knn_query")
def _(
    nsample: int, coord: Tensor, offset: Tensor, new_coord: Tensor | None, new_offset: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = ((coord if new_coord is None else new_coord).size(0), nsample)
    return coord.new_empty(shape, dtype=torch.int32), coord.new_empty(shape)


@torch.library.register_fake("pointcept3m::ball_query")
def _(
    nsample: int,
    max_radius: float,
    min_radius: float,
    coord: Tensor,
    offset: Tensor,
    new_coord: Tensor | None,
    new_offset: Tensor | None,
    rank: Tensor | None,
) -> tuple[Tensor, Tensor]:
    shape = ((coord if new_coord is None else new_coord).size(0), nsample)
    return coord.new_empty(shape, dtype=torch.int32), coord.new_empty(shape)

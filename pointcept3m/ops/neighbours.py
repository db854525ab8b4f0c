"""Neighbours of points, exact and never across the items of a batch: `knn_query`, `ball_query`, `random_ball_query`.

The API is that of Pointcept's `pointops`. Its `xyz`, `new_xyz` and `with_xyz` are called `coord`, `new_coord` and
`with_coord` here; as keywords, the old names are taken too. Coordinates are float32 or float64: half precision, which
tells apart some 2,000 places along an axis, is refused. The CPU walks through a tree of boxes over the
leaves of a k-d tree; no cloud, however clustered, stretched or repeated, makes it compare every pair.
"""

import math

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops._checks import check_device, check_int, check_number, check_offset, check_points, pointops_names
from pointcept3m.ops.offsets import offset_to_batch, offset_to_counts

CHUNK = 2**23  # pairs that a twin compares at a time


@pointops_names
def knn_query(
    nsample: int, coord: Tensor, offset: Tensor, new_coord: Tensor | None = None, new_offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The `nsample` points nearest to each query, among the points of the query's own item, nearest first.

    Of equally distant points the one with the lower index comes first. A point finds itself. Time grows as M log N,
    memory as N + M * nsample. Nothing is differentiated: take `coord[idx]` to differentiate distances.

    Args:
        nsample: an int, neighbours for each query, at least 1. There is no upper limit (pointops stops at 128).
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
    check_int("knn_query", "nsample", nsample, least=1)
    return torch.ops.pointcept3m.knn_query(nsample, *check_clouds("knn_query", coord, offset, new_coord, new_offset))


@pointops_names
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

    Points at distance 0 always belong. Where a ball holds `count` points, more than `nsample`, the ball is sorted by
    distance (equal ones by index) and every (count / nsample)-th point is taken, `i * count // nsample` for i = 0 ..
    nsample - 1: a sample that reaches from the centre to the border. Time grows with the number of points in the balls.

    pointops means the same but does otherwise: it orders incompletely, returns indices as distances in full balls,
    calls everything within 3 mm "at distance 0" whatever the unit, and overruns its memory at 2,048 points in a ball.

    Args, Returns and Raises are those of `knn_query`, and:
        max_radius, min_radius: in the unit of coord, 0 <= min_radius < max_radius.
    """
    clouds = check_balls("ball_query", nsample, max_radius, min_radius, coord, offset, new_coord, new_offset)
    return torch.ops.pointcept3m.ball_query(nsample, float(max_radius), float(min_radius), *clouds, None)


@pointops_names
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
    op = "random_ball_query"
    clouds = check_balls(op, nsample, max_radius, min_radius, coord, offset, new_coord, new_offset)
    order = torch.randperm(len(coord), generator=generator, device=generator.device if generator else "cpu")
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(coord), device=order.device)).to(coord.device)
    return torch.ops.pointcept3m.ball_query(nsample, float(max_radius), float(min_radius), *clouds, rank)


def check_balls(
    op: str,
    nsample: int,
    max_radius: float,
    min_radius: float,
    coord: Tensor,
    offset: Tensor,
    new_coord: Tensor | None,
    new_offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The clouds as the ops take them; nsample and the radii fit."""
    check_int(op, "nsample", nsample, least=1)
    for name, radius in (("max_radius", max_radius), ("min_radius", min_radius)):
        check_number(op, name, radius)
    if not 0 <= min_radius < max_radius:
        raise ValueError(f"{op}: radii must satisfy 0 <= min_radius < max_radius, got {min_radius} and {max_radius}")
    return check_clouds(op, coord, offset, new_coord, new_offset)


def check_clouds(
    op: str, coord: Tensor, offset: Tensor, new_coord: Tensor | None, new_offset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The arguments as the ops take them."""
    if (new_coord is None) != (new_offset is None):
        given, absent = ("new_offset", "new_coord") if new_coord is None else ("new_coord", "new_offset")
        raise ValueError(f"{op}: {given} was given without {absent}")
    coord = check_points(op, "coord", coord)
    offset = check_offset(op, "offset", offset, "coord", coord)
    if new_coord is None:
        return coord, offset, None, None
    new_coord = check_points(op, "new_coord", new_coord, "M")
    check_device(op, "new_coord", new_coord, "coord", coord)
    if new_coord.dtype != coord.dtype:
        raise ValueError(f"{op}: new_coord must be {coord.dtype} as coord is, got {new_coord.dtype}")
    new_offset = check_offset(op, "new_offset", new_offset, "new_coord", new_coord)
    if new_offset.shape != offset.shape:
        raise ValueError(f"{op}: offset tells of {len(offset)} items, new_offset of {len(new_offset)}")
    return coord, offset, new_coord, new_offset


# The ops and their twins, which compare all pairs of an item, a chunk of queries at a time.


def _squares(query: Tensor, coord: Tensor) -> Tensor:
    """Squared distances [m, n], rounded step by step as the kernels do."""
    x, y, z = (query[:, None, d] - coord[None, :, d] for d in range(3))
    return (x * x + y * y) + z * z


def _chunks(coord: Tensor, offset: Tensor, new_coord: Tensor | None, new_offset: Tensor | None):
    """(rows of queries, rows of points, squared distances between them) for finite points of the same item."""
    queries, ends = (coord, offset) if new_coord is None else (new_coord, new_offset)
    if (new_coord is None) != (new_offset is None) or ends.shape != offset.shape:
        raise ValueError("knn_query, ball_query: new_coord and new_offset go together, one item for each of offset")
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
        raise ValueError(f"ball_query: radii must be 0 <= min_radius < max_radius, got {min_radius} and {max_radius}")
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

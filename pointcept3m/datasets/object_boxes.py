"""Boxes of objects that stand upright: from points, and from annotated boxes that may be turned in any way."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[tuple[float, float, float], tuple[float, float, float], float]  # centre, size along its own axes, heading about z

THIN = 1e-3  # metres: the least side of a box, as a flat thing has a size too
UPRIGHT = np.cos(np.radians(5))  # an axis is vertical within 5 degrees


def upright_box(points: ArrayLike, heading: float | None = None) -> Box:
    """The box around points [P, 3]: vertical sides, its x axis turned by `heading` radians, or so that its area is least.

    With a free heading the x axis is the longer one and the heading lies in (-pi/2, pi/2]. Raises: ValueError without points.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"a box needs finite points [P, 3] with at least one, got {list(points.shape)}")
    free = heading is None
    flat = _hull(points[:, :2]) if free else points[:, :2]
    angles = _edge_angles(flat) if free else np.array([heading])
    turn = np.stack([np.stack([np.cos(angles), np.sin(angles)], -1), np.stack([-np.sin(angles), np.cos(angles)], -1)], axis=1)  # [A, 2, 2]: rows are axes
    along = np.einsum("akd,pd->apk", turn, flat)
    low, high = along.min(axis=1), along.max(axis=1)
    best = int(np.round(np.prod(high - low, axis=1), 9).argmin())  # rounded, as equal areas must not be told apart by their last bits
    angle, extent, axes = float(angles[best]), (high - low)[best], turn[best]
    center = (low + high)[best] / 2 @ axes
    if free and extent[1] > extent[0]:
        angle, extent = angle + np.pi / 2, extent[::-1]
    if free:
        angle = float(-((-angle + np.pi / 2) % np.pi - np.pi / 2))
    bottom, top = points[:, 2].min(), points[:, 2].max()
    size = np.maximum([*extent, top - bottom], THIN)
    return (float(center[0]), float(center[1]), float(bottom + top) / 2), (float(size[0]), float(size[1]), float(size[2])), angle


def read_obb(entry: object, where: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(centroid [3], lengths [3], axes [3, 3], one a row) of a box {centroid, axesLengths, normalizedAxes} as ScanNet's kin have them.

    Raises: ValueError that begins with `where`: a number missing, not finite, a length not positive, axes that are no rotation
    (a reflection is one here: a box has no handedness).
    """
    try:
        found = [np.asarray(entry[key], np.float64).reshape(shape) for key, shape in (("centroid", 3), ("axesLengths", 3), ("normalizedAxes", (3, 3)))]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: wanted a box with centroid (3 numbers), axesLengths (3) and normalizedAxes (9), got {str(entry)[:80]!r}") from error
    centroid, lengths, axes = found
    if not all(np.isfinite(part).all() for part in found) or (lengths < 0).any() or np.abs(axes @ axes.T - np.eye(3)).max() > 0.01:
        raise ValueError(f"{where}: wanted finite numbers, lengths that are not negative and axes at right angles, got {str(entry)[:160]!r}")
    return centroid, lengths, axes


def box_of_obb(centroid: NDArray, lengths: NDArray, axes: NDArray) -> Box:
    """The upright box of an annotated one (see `read_obb`): itself where one of its axes is vertical within 5 degrees, else that
    around its corners."""
    vertical = int(np.abs(axes[:, 2]).argmax())
    if abs(axes[vertical, 2]) < UPRIGHT:
        signs = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        return upright_box(centroid + (signs * lengths) @ axes)
    first, second = (k for k in range(3) if k != vertical)
    heading = float(np.arctan2(axes[first, 1], axes[first, 0]))
    size = np.maximum(lengths[[first, second, vertical]], THIN)
    return tuple(centroid.tolist()), tuple(size.tolist()), heading


def inside_obb(points: NDArray, centroid: NDArray, lengths: NDArray, axes: NDArray) -> NDArray[np.bool_]:
    """bool [N]: which points [N, 3] lie in an annotated box (see `read_obb`), its sides included."""
    return (np.abs((np.asarray(points, np.float64) - centroid) @ axes.T) <= lengths / 2).all(axis=1)


def box_iou(one: Box, other: Box) -> float:
    """The volume that two upright boxes share over that which they take together, 0 to 1."""
    rise = min(one[0][2] + one[1][2] / 2, other[0][2] + other[1][2] / 2) - max(one[0][2] - one[1][2] / 2, other[0][2] - other[1][2] / 2)
    if rise <= 0:
        return 0.0
    shape = _footprint(one)
    for start, end in zip(corners := _footprint(other), np.roll(corners, -1, axis=0), strict=True):
        shape = _left_of(shape, start, end)
        if len(shape) < 3:
            return 0.0
    x, y = shape.T
    shared = rise * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return shared / (float(np.prod(one[1])) + float(np.prod(other[1])) - shared)


def solid_of(box: Box) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(vertices [8, 3], faces [12, 3]) of a box."""
    flat, half = _footprint(box), box[1][2] / 2
    vertices = np.concatenate([np.column_stack([flat, np.full(4, box[0][2] + z)]) for z in (-half, half)])
    sides = [[k, (k + 1) % 4, (k + 1) % 4 + 4, k + 4] for k in range(4)]
    faces = [[a, b, c, a, c, d] for a, b, c, d in [[3, 2, 1, 0], [4, 5, 6, 7], *sides]]
    return vertices, np.array(faces).reshape(12, 3)


def _footprint(box: Box) -> NDArray[np.float64]:
    """The corners [4, 2] of a box from above, counterclockwise."""
    (x, y, _), (length, width, _), heading = box
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    cos, sin = np.cos(heading), np.sin(heading)
    return np.array([x, y]) + signs * (length, width) @ np.array([[cos, sin], [-sin, cos]])


def _left_of(shape: NDArray, start: NDArray, end: NDArray) -> NDArray[np.float64]:
    """What of a convex polygon [P, 2] lies left of the line from start to end."""
    along = end - start
    side = along[0] * (shape[:, 1] - start[1]) - along[1] * (shape[:, 0] - start[0])
    kept: list[NDArray] = []
    for here, there, a, b in zip(shape, np.roll(shape, -1, axis=0), side, np.roll(side, -1), strict=True):
        if a >= 0:
            kept.append(here)
        if (a > 0) != (b > 0) and a != b:
            kept.append(here + (there - here) * (a / (a - b)))
    return np.array(kept).reshape(-1, 2)


def _hull(points: NDArray) -> NDArray[np.float64]:
    """The corners of the convex hull of points [P, 2] in order; its two ends where they lie on a line."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        return points[ConvexHull(points).vertices]
    except (QhullError, ValueError):  # on a line, or fewer than three
        return points[np.lexsort(points.T)[[0, -1]]]


def _edge_angles(corner: NDArray) -> NDArray[np.float64]:
    """Directions [A] of the edges of a hull [C, 2], of which one is a side of the rectangle of least area; 0 first."""
    edge = np.roll(corner, -1, axis=0) - corner
    angles = np.arctan2(edge[:, 1], edge[:, 0])[np.linalg.norm(edge, axis=1) > 1e-9]
    return np.unique(np.round(np.concatenate([[0.0], angles % (np.pi / 2)]), 12))

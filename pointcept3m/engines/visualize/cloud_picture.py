"""Pictures of point clouds without a GPU or a window: a camera that sees into a room, and splats with a depth buffer."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

VIEWS = ("iso", "top", "front")
CEILING_SLAB = 0.1  # metres; thickness of the layers that are looked through for a ceiling
CEILING_ABOVE = 1.7  # metres above the floor below which nothing is a ceiling
CEILING_SHARE = 0.4  # of the floor plan that a layer must cover to be one
TALL = 1.5  # metres above the floor that a wall reaches and furniture rarely
MAX_RADIUS = 12  # pixels


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: pixel = focal * (rotation @ (x - position))[:2] / depth + center, z forward, y down.

    rotation [3, 3] world->camera, position [3], focal in pixels, center (x, y), size (H, W).
    """

    rotation: NDArray[np.float64]
    position: NDArray[np.float64]
    focal: float
    center: tuple[float, float]
    size: tuple[int, int]

    def project(self, coord: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixels [N, 2] as (x, y), the centre of the first pixel at 0.5, and depths [N] in metres."""
        local = (np.asarray(coord, np.float64) - self.position) @ self.rotation.T
        depth = np.maximum(local[:, 2], 1e-9)
        return local[:, :2] * (self.focal / depth)[:, None] + np.array(self.center), local[:, 2]


def looking(view: str, coord: NDArray, size: tuple[int, int] = (720, 960), azimuth: float | None = None, fov: float = 32.0) -> Camera:
    """A camera that has all of `coord` [N, 3] (metres, z up) in its picture, as large as fits.

    Args:
        view: "iso" looks down into a room from a corner, "top" straight down, "front" from the side at a low angle.
        azimuth: degrees from the x axis of where the camera stands; None: off a corner of the plan (iso), below its
            longer side (top, front).
        fov: degrees across the picture's diagonal.

    Raises: ValueError for another view, no point, or points that are not finite.
    """
    coord = np.asarray(coord, np.float64)
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
    if len(coord) == 0:
        raise ValueError("there is no point to look at")
    if not np.isfinite(coord).all():
        raise ValueError("the cloud has coordinates that are not finite")
    elevation = {"iso": 52.0, "top": 89.9, "front": 18.0}[view]
    if azimuth is None:
        azimuth = plan_angle(coord) - 90 + (33.0 if view == "iso" else 0.0)
    around, up = np.deg2rad(azimuth), np.deg2rad(elevation)
    backward = np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])  # towards the camera
    right = np.array([-np.sin(around), np.cos(around), 0.0])
    rotation = np.stack([right, np.cross(-backward, right), -backward])
    height, width = size
    focal = np.hypot(height, width) / 2 / np.tan(np.deg2rad(fov) / 2)
    return _frame(rotation, coord, focal, (width / 2, height / 2), size)


def _frame(rotation: NDArray, coord: NDArray, focal: float, center: tuple[float, float], size: tuple[int, int]) -> Camera:
    """Moves a camera of fixed direction so that the points fill the picture, less a margin of 2 %."""
    height, width = size
    local = coord @ rotation.T
    aim = (local.min(axis=0) + local.max(axis=0)) / 2
    reach = np.array([width, height]) * 0.48 / focal
    for _ in range(8):
        offset = local - aim
        # seen at distance d, |offset| <= reach * (d + depth offset) must hold on both axes
        distance = max((np.abs(offset[:, :2]) / reach - offset[:, 2:]).max(), 1e-3)
        seen = offset[:, :2] / (distance + offset[:, 2:])
        middle = (seen.min(axis=0) + seen.max(axis=0)) / 2
        aim[:2] += middle * distance
    return Camera(rotation, (aim - np.array([0, 0, distance])) @ rotation, focal, center, size)


def plan_angle(coord: NDArray) -> float:
    """Degrees in [0, 180) of the longer side of the smallest rectangle around the floor plan of `coord` [N, 3]."""
    plan = np.asarray(coord, np.float64)[:, :2]
    plan = plan[:: max(1, len(plan) // 50_000)]
    low, high = np.quantile(plan, [0.005, 0.995], axis=0)
    plan = plan[((plan >= low) & (plan <= high)).all(axis=1)] if len(plan) > 100 else plan
    best = (np.inf, 0.0)
    for angle in np.arange(0.0, 90.0, 1.0):
        turn = np.deg2rad(angle)
        along, across = (np.ptp(plan @ np.array(axis)) for axis in ((np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))))
        # a turn must pay: without the margin, noise would turn a room that stands straight
        if along * across < best[0] * 0.98:
            best = (along * across, angle if along >= across else angle + 90)
    return best[1]


def choose_points(coord: NDArray, ceiling: str | float = "auto") -> NDArray[np.bool_]:
    """[N] true for the points to show: those below the ceiling ("auto"), all ("keep"), or those up to a height in metres above the floor.

    A few points far from all others, as a window lets through, are left out, so that the room fills the picture.
    Raises: ValueError for another word, or a height that is not positive.
    """
    coord = np.asarray(coord, np.float64)
    low, high = np.quantile(coord, [0.002, 0.998], axis=0)
    slack = 0.25 * (high - low) + 1e-6
    near = ((coord >= low - slack) & (coord <= high + slack)).all(axis=1)
    if ceiling == "keep":
        return near
    if ceiling == "auto":
        return near & below_ceiling(coord)
    if isinstance(ceiling, str):
        raise ValueError(f"ceiling must be 'auto', 'keep' or a height in metres, got {ceiling!r}")
    if not ceiling > 0:
        raise ValueError(f"ceiling: wanted metres above the floor, more than 0, got {ceiling:g}")
    return near & (coord[:, 2] <= low[2] + ceiling)


def below_ceiling(coord: NDArray) -> NDArray[np.bool_]:
    """[N] true for the points below the ceiling; all of them where there is none.

    A ceiling is the lowest layer, CEILING_ABOVE over the floor, that covers CEILING_SHARE of the floor plan.
    """
    coord = np.asarray(coord, np.float64)
    floor = np.quantile(coord[:, 2], 0.01)
    layer = np.floor((coord[:, 2] - floor) / CEILING_SLAB).astype(np.int64)
    place = _cell_numbers(coord[:, :2], 0.2)
    plan = len(np.unique(place))
    candidates = np.arange(int(CEILING_ABOVE / CEILING_SLAB), layer.max() + 1)
    for number in candidates:
        # two layers: an uneven or bevelled ceiling lies in both
        inside = (layer == number) | (layer == number + 1)
        if inside.sum() >= CEILING_SHARE * plan and len(np.unique(place[inside])) >= CEILING_SHARE * plan:
            return coord[:, 2] < floor + (number - 0.5) * CEILING_SLAB
    return np.ones(len(coord), dtype=bool)


def facing(coord: NDArray, normal: NDArray | None, camera: Camera, estimated: bool = False, cell: float = 0.1) -> NDArray[np.bool_]:
    """[N] true for points whose surface faces the camera: walls with their back to it are left out, as in a doll's house.

    Each cell of `cell` metres goes by the majority of its points, for single normals are noisy. Without normals all
    points stay, and so does one whose normal has length 0. estimated: the sides of furniture are not to be trusted, and
    only what stands upright and reaches TALL is left out.
    """
    coord = np.asarray(coord, np.float64)
    if normal is None or len(coord) == 0:
        return np.ones(len(coord), dtype=bool)
    towards = camera.position - coord
    cosine = (towards * normal).sum(axis=1) / np.linalg.norm(towards, axis=1).clip(1e-9)
    vote = np.where(cosine == 0, 1.0, np.sign(cosine - 0.05))
    # the main axis of the normal and its sign: the two faces of a thin wall vote apart
    axis = np.abs(normal).argmax(axis=1)
    sides = axis * 2 + (normal[np.arange(len(normal)), axis] > 0)
    _, place = np.unique(_cell_numbers(coord, cell) * 6 + sides, return_inverse=True)
    shown = np.bincount(place, weights=vote)[place] > 0
    if estimated:
        _, column = np.unique(_cell_numbers(coord[:, :2], 2.5 * cell), return_inverse=True)
        top = np.full(column.max() + 1, -np.inf)
        np.maximum.at(top, column, coord[:, 2])
        wall = (top[column] > np.quantile(coord[:, 2], 0.01) + TALL) & (np.abs(normal[:, 2]) < 0.6)
        shown |= ~wall
    return shown


def _cell_numbers(coord: NDArray, size: float) -> NDArray[np.int64]:
    """[N] the number of the cell of `size` metres that each point [N, 2 or 3] lies in."""
    cells = np.floor((coord - coord.min(axis=0)) / size).astype(np.int64)
    number = cells[:, 0]
    for column in cells.T[1:]:
        number = number * (column.max() + 1) + column
    return number


def spacing_of(coord: NDArray, seed: int = 0) -> float:
    """The median distance in metres from a point to its third neighbour, from 2000 of the points."""
    from scipy.spatial import cKDTree

    coord = np.asarray(coord, np.float64)
    if len(coord) < 4:
        return float(max(np.ptp(coord, axis=0).max() / 10, 1e-3)) if len(coord) else 1e-3
    rows = np.random.default_rng(seed).permutation(len(coord))[:2000]
    distance = cKDTree(coord).query(coord[rows], k=4)[0][:, 3]
    return float(max(np.median(distance), 1e-6))


class Picture:
    """What a camera sees of a cloud, found once and painted in as many colours as wanted.

    Each point is a disc, and the nearest at a pixel is seen.

    Args:
        coord: [N, 3] metres.
        point_size: diameter of a point in metres; None adapts it to how densely the points lie.
        shade: how dark pixels get that lie behind their neighbours, which shows edges (eye-dome lighting, Boucheny
            2009); 0 leaves every colour as it is.
        oversample: the picture is drawn so many times as large and averaged.
    """

    def __init__(self, coord: NDArray, camera: Camera, point_size: float | None = None, shade: float = 0.6, oversample: int = 2):
        coord = np.asarray(coord)
        if coord.ndim != 2 or coord.shape[1] != 3:
            raise ValueError(f"Picture: wanted coord [N, 3], got {coord.shape}")
        self.count, self.size, self.oversample = len(coord), camera.size, oversample
        size = 1.8 * spacing_of(coord) if point_size is None else point_size
        owner, depth = fill_gaps(*nearest_points(coord, magnified(camera, oversample), size), rounds=4 * oversample)
        self.seen = owner >= 0
        self.owner = owner[self.seen]
        self.light = eye_dome(depth, shade, oversample, size)[self.seen] if shade > 0 else None

    def draw(self, color: NDArray, background: tuple[int, int, int] = (255, 255, 255)) -> NDArray[np.uint8]:
        """The picture, uint8 [H, W, 3], with `color` [N, 3] 0..255 on the points. Raises ValueError for another shape."""
        color = np.asarray(color)
        if color.shape != (self.count, 3):
            raise ValueError(f"Picture: wanted colours [{self.count}, 3], got {color.shape}")
        image = np.empty((*self.seen.shape, 3), np.float32)
        image[:] = background
        shown = color[self.owner].astype(np.float32)
        image[self.seen] = shown if self.light is None else shown * self.light[:, None].astype(np.float32)
        height, width = self.size
        image = image.reshape(height, self.oversample, width, self.oversample, 3).mean(axis=(1, 3))
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def magnified(camera: Camera, factor: int) -> Camera:
    """The same view in a picture `factor` times as large."""
    height, width = camera.size
    center = (camera.center[0] * factor, camera.center[1] * factor)
    return replace(camera, focal=camera.focal * factor, center=center, size=(height * factor, width * factor))


def nearest_points(coord: NDArray, camera: Camera, point_size: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """At each pixel, the row of the nearest point whose disc covers it (-1: none), and its depth (inf), both [H, W]."""
    height, width = camera.size
    pixel, depth = camera.project(coord)
    radius = np.clip(camera.focal * point_size / 2 / np.maximum(depth, 1e-9), 0.5, MAX_RADIUS)
    near = (depth > 1e-6) & (pixel > -MAX_RADIUS).all(axis=1) & (pixel < np.array([width, height]) + MAX_RADIUS).all(axis=1)
    rows = np.flatnonzero(near)
    if len(rows) == 0:
        return np.full((height, width), -1, np.int64), np.full((height, width), np.inf)
    # one number per point, depth first, so that a minimum picks the nearest and its row with it
    order = rows[np.argsort(depth[rows], kind="stable")]
    x, y, radius = pixel[order, 0], pixel[order, 1], radius[order]
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    rank, first = np.arange(len(order)), np.full(height * width, len(order), np.int64)
    reach = int(np.ceil(radius.max()))
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            c, r = column + dx, row + dy
            covered = (c + 0.5 - x) ** 2 + (r + 0.5 - y) ** 2 <= radius**2
            if dx == dy == 0:
                covered[:] = True  # however small, a point is a pixel
            covered &= (c >= 0) & (c < width) & (r >= 0) & (r < height)
            np.minimum.at(first, (r * width + c)[covered], rank[covered])
    hit = first < len(order)
    owner, distance = np.full(height * width, -1, np.int64), np.full(height * width, np.inf)
    owner[hit] = order[first[hit]]
    distance[hit] = depth[owner[hit]]
    return owner.reshape(height, width), distance.reshape(height, width)


AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


def fill_gaps(owner: NDArray, depth: NDArray, rounds: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Closes the small holes of a sparse surface: an empty pixel with at least 5 of 8 neighbours gets the nearest of them.

    Straight edges and corners of what is seen do not grow, since an empty pixel beside them has 3 neighbours or fewer.
    """
    height, width = owner.shape
    owner, depth = np.pad(owner, 1, constant_values=-1), np.pad(depth, 1, constant_values=np.inf)
    for _ in range(rounds):
        seen = (owner >= 0).view(np.uint8)
        count = np.zeros((height, width), np.uint8)
        for dy, dx in AROUND:
            count += seen[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        rows, columns = np.nonzero((count >= 5) & (owner[1:-1, 1:-1] < 0))
        if len(rows) == 0:
            break
        around = [(rows + 1 + dy, columns + 1 + dx) for dy, dx in AROUND]
        nearest = np.argmin([depth[place] for place in around], axis=0)
        best = np.choose(nearest, [owner[place] for place in around]), np.choose(nearest, [depth[place] for place in around])
        owner[rows + 1, columns + 1], depth[rows + 1, columns + 1] = best
    return owner[1:-1, 1:-1], depth[1:-1, 1:-1]


def eye_dome(depth: NDArray, strength: float, reach: int, tolerance: float) -> NDArray[np.float64]:
    """[H, W] factors in (0, 1]: dark where the pixels around, `reach` away, are nearer by more than `tolerance` metres."""
    finite = np.isfinite(depth)
    if not finite.any():
        return np.ones_like(depth)
    known = np.where(finite, depth, depth[finite].max() * 2)
    padded = np.pad(known, reach, mode="edge")
    height, width = depth.shape
    fall = np.zeros_like(depth)
    for dy, dx in AROUND:
        around = padded[reach + dy * reach :, reach + dx * reach :][:height, :width]
        fall += np.clip((known - around - tolerance) / known, 0, 0.03)
    return np.exp(-strength * 10 * fall)

"""Floorplans: a room's walls, openings and furniture from above, as a picture with a scale (CrossOver Sec. 3.3)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.scene_objects import Floorplan

if TYPE_CHECKING:
    from PIL import Image

OVERSAMPLING = 3  # pixels drawn for one that is kept, along a side
MAX_SIDE = 2000  # pixels
INK, GLASS, PAPER = (40, 40, 40), (120, 150, 180), (255, 255, 255)
WALL, LEAF = 0.1, 0.03  # metres: width of a wall, of a door's leaf

Solid = tuple[NDArray, NDArray]


def render_floorplan(
    walls: NDArray,
    solids: Sequence[Solid],
    metres_per_pixel: float = 0.02,
    margin: float = 0.25,
    doors: NDArray | None = None,
    windows: NDArray | None = None,
) -> Floorplan:
    """A plan on white paper: dark walls with doors and windows in them, furniture from above in greys with outlines.

    Args:
        walls, doors, windows: segments [W, 2, 2] in metres, from (x, y) to (x, y); a door hangs at its first point.
        solids: (vertices [V, 3] metres, faces [F, 3]) of each thing, in the scene's axes; the higher is drawn over the lower.
        metres_per_pixel: enlarged where a side would have more than 2000 pixels.
        margin: of paper around everything, metres.

    Raises: ValueError where there is nothing to draw, or a coordinate is not finite.
    """
    from PIL import Image, ImageDraw

    walls, doors, windows = (np.zeros((0, 2, 2)) if s is None else np.asarray(s, dtype=np.float64).reshape(-1, 2, 2) for s in (walls, doors, windows))
    walls, doors, windows = (s[np.linalg.norm(s[:, 1] - s[:, 0], axis=1) != 0] for s in (walls, doors, windows))
    solids = [(np.asarray(v, dtype=np.float64), np.asarray(f, dtype=np.int64)) for v, f in solids if len(v) and len(f)]
    points = np.concatenate([walls.reshape(-1, 2), doors.reshape(-1, 2), windows.reshape(-1, 2), *(v[:, :2] for v, _ in solids)])
    if not len(points):
        raise ValueError("a floorplan needs a wall or a solid; there is nothing to draw")
    if not np.isfinite(points).all():
        raise ValueError("a floorplan's coordinates must be finite")
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    scale = max(metres_per_pixel, float((high - low).max()) / MAX_SIDE)
    width, height = (int(np.ceil(extent / scale)) for extent in high - low)
    plan = Floorplan(np.zeros((height, width, 3), np.uint8), scale, float(low[0]), float(low[1] + height * scale))
    canvas = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), PAPER)
    for vertices, faces in sorted(solids, key=lambda solid: float(solid[0][:, 2].max())):
        _draw_solid(canvas, plan, vertices, faces)
    pen = _Pen(ImageDraw.Draw(canvas), plan)
    for segment in walls:
        pen.line(segment, INK, WALL)
    for segment in windows:
        pen.opening(segment)
        pen.line(segment, GLASS, WALL / 2)
    for segment in doors:
        pen.door(segment)
    image = np.asarray(canvas.resize((width, height), Image.Resampling.BOX))
    return Floorplan(image, plan.metres_per_pixel, plan.left, plan.top)


class _Pen:
    """Draws in metres."""

    def __init__(self, draw, plan: Floorplan):
        self.draw, self.plan = draw, plan

    def line(self, segment: NDArray, color: tuple[int, int, int], width: float) -> None:
        along = segment[1] - segment[0]
        length = float(np.hypot(*along))
        if length == 0:
            return
        along = along / length
        side = np.array([-along[1], along[0]]) * width / 2
        # half a width longer, so that walls meet in a corner
        a, b = segment[0] - along * width / 2, segment[1] + along * width / 2
        self.draw.polygon(_pixels(self.plan, np.stack([a + side, b + side, b - side, a - side])), fill=color)

    def opening(self, segment: NDArray) -> None:
        """Paper instead of wall; a little wider, or a slanting wall would leave dots along its edges."""
        self.line(segment, PAPER, 1.25 * WALL)

    def door(self, segment: NDArray) -> None:
        """An opening, its leaf open at a right angle, and the arc between."""
        hinge, end = segment
        self.opening(segment)
        angles = np.linspace(0, np.pi / 2, 17)
        x, y = end - hinge
        arc = hinge + np.stack([x * np.cos(angles) - y * np.sin(angles), x * np.sin(angles) + y * np.cos(angles)], axis=1)
        self.line(np.stack([hinge, arc[-1]]), INK, LEAF)
        for a, b in zip(arc[:-1], arc[1:], strict=True):
            self.line(np.stack([a, b]), (150, 150, 150), LEAF / 2)


def _pixels(plan: Floorplan, points: NDArray) -> list[tuple[float, float]]:
    return [tuple(pixel) for pixel in plan.pixel(points) * OVERSAMPLING]


def _draw_solid(canvas: "Image.Image", plan: Floorplan, vertices: NDArray, faces: NDArray) -> None:
    """A thing from above: its faces from the lowest to the highest, the higher the lighter, and an outline."""
    from PIL import Image, ImageChops, ImageDraw, ImageFilter

    corner = vertices[faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    faces_up = np.abs(normal[:, 2]) > 0.05 * np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    corner = corner[faces_up] if faces_up.any() else corner
    height = corner[..., 2].mean(axis=1)
    low, extent = float(vertices[:, 2].min()), max(float(np.ptp(vertices[:, 2])), 1e-6)
    polygons = (plan.pixel(corner[..., :2].reshape(-1, 2)) * OVERSAMPLING).reshape(-1, 3, 2)
    left, top = (int(x) - 3 for x in polygons.min(axis=(0, 1)))
    width, tall = (int(x) + 6 for x in np.ptp(polygons, axis=(0, 1)))
    drawn, shape = ImageDraw.Draw(canvas), Image.new("L", (width, tall), 0)
    outline = ImageDraw.Draw(shape)
    for k in np.argsort(height, kind="stable"):
        shade = int(150 + 90 * (height[k] - low) / extent)
        drawn.polygon([tuple(point) for point in polygons[k]], fill=(shade, shade, shade))
        outline.polygon([tuple(point) for point in polygons[k] - (left, top)], fill=255)
    edge = ImageChops.subtract(shape, shape.filter(ImageFilter.MinFilter(2 * (OVERSAMPLING // 2) + 3)))
    canvas.paste(INK, (left, top), edge)

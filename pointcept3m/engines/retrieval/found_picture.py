"""Objects that were found in a scene, drawn from above."""

import numpy as np
from numpy.typing import NDArray

from pointcept3m.engines.retrieval.found_objects import FoundObjects
from pointcept3m.structures.scene import Scene
from pointcept3m.structures.scene_objects import SceneObject, read_objects

AGREES, STANDS_ELSEWHERE, NOT_ALIGNED, OTHER = (20, 130, 60), (200, 90, 20), (40, 80, 180), (190, 190, 190)
CEILING = 2.0  # metres above the lowest point, from which on points would hide the rest
LEGEND = 26  # pixels


def draw_found(found: FoundObjects, side: int = 900) -> NDArray[np.uint8]:
    """The target scene from above, uint8 [H, W, 3]: its points, all boxes in grey, matched ones coloured and named, a legend below."""
    from PIL import Image, ImageDraw

    from pointcept3m.engines.visualize.sheet import font

    known = {thing.id: thing for thing in read_objects(found.target_folder) or []}
    outlines = [_corners(known.get(int(number)), box) for number, box in zip(found.target.object_id, found.target.object_box.astype(np.float64), strict=True)]
    points, color = _points(found)
    every = np.concatenate([*outlines, points[:, :2]])
    low, high = every.min(axis=0) - 0.3, every.max(axis=0) + 0.3
    scale = side / float((high - low).max())
    width, height = (int(value) + 1 for value in (high - low) * scale)
    picture = np.full((height + LEGEND, width, 3), 255, np.uint8)
    order = np.argsort(points[:, 2])
    column, row = ((points[order, 0] - low[0]) * scale).astype(int), ((high[1] - points[order, 1]) * scale).astype(int)
    for dx in (0, 1):
        for dy in (0, 1):
            picture[np.clip(row + dy, 0, height - 1), np.clip(column + dx, 0, width - 1)] = (255 - (255 - color[order]) * 0.55).astype(np.uint8)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)

    def outline(corners: NDArray, ink: tuple[int, int, int], thick: int) -> NDArray:
        pixels = np.stack([(corners[:, 0] - low[0]) * scale, (high[1] - corners[:, 1]) * scale], axis=1)
        draw.line([tuple(pixel) for pixel in (*pixels, pixels[0])], fill=ink, width=thick, joint="curve")
        return pixels

    for corners in outlines:
        outline(corners, OTHER, 1)
    named = []
    for match in reversed(found.result.matches):
        target, query = int(found.target_rows[match.target]), int(found.query_rows[match.query])
        ink = NOT_ALIGNED if found.result.motion is None else AGREES if match.inlier else STANDS_ELSEWHERE
        pixels = outline(outlines[target], ink, 3)
        here, there = found.query.labels[query], found.target.labels[target]
        named.append((pixels.mean(axis=0), here if here == there or not there else f"{here} = {there}", ink))
    for (x, y), words, ink in named:  # over all lines
        half = draw.textlength(words, font(14)) / 2
        draw.text((min(max(x, half + 2), width - half - 2), y), words, ink, font(14), anchor="mm", stroke_width=3, stroke_fill="white")
    legend = [("match", NOT_ALIGNED)] if found.result.motion is None else [("match that agrees with the alignment", AGREES), ("match that does not", STANDS_ELSEWHERE)]
    x = 8.0
    for words, ink in [*legend, ("other objects", OTHER)]:
        draw.rectangle((x, height + 8, x + 14, height + 18), outline=ink, width=3 if ink != OTHER else 1)
        draw.text((x + 20, height + 13), words, (70, 70, 70), font(12), anchor="lm")
        x += 44 + draw.textlength(words, font(12))
    return np.asarray(image)


def _corners(thing: SceneObject | None, box: NDArray[np.float64]) -> NDArray[np.float64]:
    """The corners [4, 2] of an object from above, turned as its objects.json says; of its box [6] along the axes where that has it not."""
    center, size, angle = (box[:2], box[3:5], 0.0) if thing is None else (np.array(thing.center[:2]), np.array(thing.size[:2]), thing.heading)
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2
    cos, sin = np.cos(angle), np.sin(angle)
    return square @ np.array([[cos, sin], [-sin, cos]]) + center


def _points(found: FoundObjects) -> tuple[NDArray, NDArray[np.float64]]:
    """(points [P, 3] below a ceiling, colours 0..255 [P, 3]) of the target scene, none where it has none."""
    if not (found.target_folder / "coord.npy").is_file():
        return np.zeros((0, 3)), np.zeros((0, 3))
    assets = Scene(found.target_folder).points(("coord", "color"))
    points, color = assets["coord"], assets.get("color")
    keep = points[:, 2] < points[:, 2].min() + CEILING
    return points[keep], np.full((int(keep.sum()), 3), 170.0) if color is None else color[keep].astype(np.float64)

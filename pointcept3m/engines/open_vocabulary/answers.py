"""What is said and written of a query: the best region in words, how label names rank there, files with the heat map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.engines.open_vocabulary.query import SceneQuery
from pointcept3m.engines.open_vocabulary.regions import Region, regions, threshold_of
from pointcept3m.engines.open_vocabulary.sources import AskedScene
from pointcept3m.engines.open_vocabulary.vocabulary import Vocabulary
from pointcept3m.engines.visualize.scene_files import parse_spot
from pointcept3m.utils.files import atomic_write, replacing
from pointcept3m.utils.palette import score_colors

PICTURES = {".png": "PNG", ".jpg": "JPEG"}
SIZE = (480, 640)  # pixels of a panel, before its white rim is cut
GREEN = (0, 170, 119)  # of the best region
LOW = 0.02  # quantile of the similarities where the colour scale begins
MAX_DISTANCE = 0.5  # metres from a place that was asked for to the nearest point, beyond which it is a mistake


def named_queries(texts: Sequence[str], images: Sequence[Path], points: Sequence[str], scene: AskedScene) -> list[tuple[str, Any]]:
    """(name, what `SceneQuery` takes) of each query, in order.

    points: INDEX or x,y,z in the scene's file. Raises: ValueError for another form, or a place with no point near it.
    """
    found: list[tuple[str, Any]] = [(text, text) for text in texts]
    found += [(f"image {path.name}", path) for path in images]
    return found + [(f"point {point}", point_number(point, scene)) for point in points]


def point_number(word: str, scene: AskedScene) -> int:
    """The number of the point that INDEX or x,y,z names, counted as the scene's file has its points."""
    place = parse_point(word)
    if isinstance(place, int):
        if place >= len(scene):
            raise ValueError(f"--point {word}: {scene.name} has points 0 to {len(scene) - 1}")
        return place
    distance = np.linalg.norm(scene.original_coord - place, axis=1)
    nearest = int(np.nanargmin(distance))
    if distance[nearest] * scene.scene.unit > MAX_DISTANCE:
        low, high = (", ".join(f"{v:.2f}" for v in end) for end in (np.nanmin(scene.original_coord, 0), np.nanmax(scene.original_coord, 0)))
        raise ValueError(
            f"--point {word}: the nearest point of {scene.name} is {distance[nearest] * scene.scene.unit:.2f} m away; its points lie "
            f"in ({low}) to ({high})"
        )
    return nearest


def parse_point(word: str) -> int | NDArray[np.float64]:
    """INDEX, or x,y,z as an array [3]. Raises ValueError for anything else."""
    spot = parse_spot(word)
    if spot is None:
        raise ValueError(f"--point {word}: wanted INDEX or x,y,z in the scene's file")
    return spot


def report(
    name: str, scene: AskedScene, query: SceneQuery, similarity: NDArray[np.float32], vocabulary: Vocabulary, threshold: float | None = None
) -> str:
    """The answer to one query in words: how similar the scene is, the best region's place, what labels it is likest to."""
    known = similarity[~np.isnan(similarity)]
    cut = threshold_of(similarity) if threshold is None else threshold
    found = regions(scene.coord, similarity, cut)
    above = sum(len(region.points) for region in found)
    middle, top = np.quantile(known, [0.5, 0.999])
    lines = [
        f"{name}: similarity {known.min():.2f} to {known.max():.2f}, median {middle:.2f}, top 0.1 % from {top:.2f}; "
        f"{query.seconds * 1000:.1f} ms for {len(similarity):,} points"
    ]
    if not found:
        return lines[0] + f"\n  no point reaches {cut:.3f} (--threshold)"
    best = found[0]
    lines.append(f"  {above:,} points ({100 * above / len(known):.1f} %) reach {cut:.3f} (--threshold), in {len(found)} region{'s' if len(found) > 1 else ''}")
    lines += ["  " + line for line in describe(best, scene)]
    ranked = query.rank(vocabulary, best.points)
    width = max(len(label) for label, _ in ranked)
    lines.append(f"  the region as a whole is likest to, of {vocabulary.labels.name}:")
    lines += [f"    {label:<{width}}  {value:5.2f}" for label, value in ranked]
    return "\n".join(lines)


def describe(region: Region, scene: AskedScene) -> list[str]:
    """The best region's extent, in metres with z up, and in the coordinates of the scene's file where those are others."""
    lines = [f"best region: {region}", f"  box in metres: {_box(region.low, region.high)}"]
    low, high = file_box(region, scene)
    if not (np.allclose(low, region.low, atol=1e-4) and np.allclose(high, region.high, atol=1e-4)):
        lines.append(f"  box in the file's coordinates: {_box(low, high)}")
    return lines


def file_box(region: Region, scene: AskedScene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(low, high), [3] each: the region's box in the coordinates of the scene's file."""
    there = scene.original_coord[region.points].astype(np.float64)
    return there.min(axis=0), there.max(axis=0)


def _box(low: NDArray, high: NDArray) -> str:
    return " to ".join(f"({', '.join(f'{value:.2f}' for value in end)})" for end in (low, high))


def color_range(similarity: NDArray[np.float32]) -> tuple[float, float]:
    """(low, high) of the colour scale: the 2nd and the 99.9th percentile."""
    known = similarity[~np.isnan(similarity)]
    low, high = (float(value) for value in np.quantile(known, [LOW, 0.999]))
    return low, max(high, low + 1e-6)


def heat_colors(similarity: NDArray[np.float32], limits: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """uint8 [N, 3]: matplotlib's inferno, even to the eye, brighter where likelier; grey where nothing is known."""
    return score_colors(similarity, *(limits or color_range(similarity)))


def save(
    paths: Sequence[Path], scene: AskedScene, names: Sequence[str], similarity: Sequence[NDArray[np.float32]], threshold: float | None = None
) -> list[Path]:
    """Writes what was found; returns the files.

        .ply   one file a query: x y z as they went in, the heat map's red green blue, similarity, the scan's own colours
               as scan_red scan_green scan_blue
        .npy   similarity float32 [N], or [N, K] for K queries
        .npz   similarity float32 [N, K], query [K], threshold float32 [K]
        .png .jpg  the scene in its own colours and a heat map a query, with the box of the best region
    """
    suffix = paths[0].suffix.lower()
    if suffix in PICTURES:
        image = picture(scene, names, similarity, threshold)
        atomic_write(paths[0], lambda stream: image.save(stream, format=PICTURES[suffix], quality=80))
        return [paths[0]]
    if suffix == ".ply":
        for path, values in zip(paths, similarity, strict=True):
            _write_ply(path, scene, values)
        return list(paths)
    table = np.stack(similarity, axis=1)
    if suffix == ".npy":
        values = table[:, 0] if len(names) == 1 else table
        atomic_write(paths[0], lambda stream: np.save(stream, np.ascontiguousarray(values), allow_pickle=False))
    else:
        cuts = np.array([threshold_of(values) if threshold is None else threshold for values in similarity], np.float32)
        atomic_write(paths[0], lambda stream: np.savez_compressed(stream, similarity=table, query=np.array(list(names)), threshold=cuts))
    return [paths[0]]


def picture(scene: AskedScene, names: Sequence[str], similarity: Sequence[NDArray[np.float32]], threshold: float | None = None) -> Any:
    """A Pillow image: the scene in its own colours, and beside it a heat map for each query, each on a scale of its own."""
    from PIL import Image

    from pointcept3m.engines.visualize import cloud_picture, sheet

    points = scene.scene
    seen = cloud_picture.choose_points(points.coord)
    camera = cloud_picture.looking("iso", points.coord[seen], SIZE)
    normal = None if points.normal is None else points.normal[seen]
    seen[seen] = cloud_picture.facing(points.coord[seen], normal, camera, points.estimated_normals)
    rows = points.rows[seen]
    cloud = cloud_picture.Picture(points.coord[seen], camera)
    titles, images, legends = [], [], []
    if scene.color is not None:
        titles, images = [scene.name], [cloud.draw(scene.color[rows])]
    for name, values in zip(names, similarity, strict=True):
        image = cloud.draw(heat_colors(values)[rows])
        found = regions(scene.coord, values, threshold_of(values) if threshold is None else threshold)
        images.append(draw_box(image, found[0], camera) if found else image)
        titles.append(name)
        legends.append(sheet.ScaleLegend(f"similarity to “{name}”", *color_range(values)))
    return Image.fromarray(sheet.compose(titles, [("", sheet.crop_together(images))], legends, size=18))


def draw_box(image: NDArray[np.uint8], region: Region, camera: Any) -> NDArray[np.uint8]:
    """The picture with the edges of a region's box, as `camera` sees them."""
    from PIL import Image, ImageDraw

    sheet = Image.fromarray(image)
    draw = ImageDraw.Draw(sheet)
    for edge in box_edges(region.low, region.high):
        ends, depth = camera.project(edge)
        if (depth > 0).all():
            draw.line([tuple(end) for end in ends], fill=GREEN, width=3)
    return np.asarray(sheet)


def box_edges(low: NDArray, high: NDArray) -> NDArray[np.float32]:
    """float32 [12, 2, 3]: the edges of a box."""
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])], np.float32)
    pairs = [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4)]
    return corners[np.array(pairs)]


def _write_ply(path: Path, scene: AskedScene, similarity: NDArray[np.float32]) -> None:
    from pointcept3m.datasets.readers.ply import needs_double, write_ply

    fields: dict[str, NDArray] = {"similarity": similarity.astype(np.float32)}
    if scene.color is not None:
        fields.update({f"scan_{name}": scene.color[:, i] for i, name in enumerate(("red", "green", "blue"))})
    with replacing(path) as temporary:
        write_ply(temporary, scene.original_coord, heat_colors(similarity), double=needs_double(scene.original_coord), **fields)

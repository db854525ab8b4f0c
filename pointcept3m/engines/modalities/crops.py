"""Pictures of objects: in which frames their masks are largest, and the crops around them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pointcept3m.structures.images import image_size, read_color
from pointcept3m.structures.scene_objects import read_mask

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive


@dataclass(frozen=True)
class View:
    """One object in one frame: pixels of its mask, and the mask's bounding box in the mask's own pixels."""

    frame: str
    pixels: int
    box: Box
    mask_size: tuple[int, int]


def grown_box(box: Box, level: int, size: tuple[int, int], growth: float = 0.2) -> Box:
    """`box` grown by int(growth * side) * level on each side, within a picture of `size` (H, W).

    Level 0 is the box itself. Source: OpenMask3D's multi-level crops as CrossOver (Sec. 4) uses them.
    """
    left, top, right, bottom = box
    x, y = int((right - left) * growth) * level, int((bottom - top) * growth) * level
    return max(0, left - x), max(0, top - y), min(size[1], right + x), min(size[0], bottom + y)


def scaled_box(box: Box, from_size: tuple[int, int], to_size: tuple[int, int]) -> Box:
    """`box` of a mask of `from_size` (H, W) in the pixels of a picture of `to_size`, outwards to whole pixels."""
    if from_size == to_size:
        return box
    x, y = to_size[1] / from_size[1], to_size[0] / from_size[0]
    left, top, right, bottom = box
    scaled = int(np.floor(left * x)), int(np.floor(top * y)), int(np.ceil(right * x)), int(np.ceil(bottom * y))
    return scaled[0], scaled[1], min(to_size[1], scaled[2]), min(to_size[0], scaled[3])


def views_in(mask: NDArray[np.int64], frame: str) -> dict[int, View]:
    """object id -> its view, of the ids >= 0 in a mask [H, W]."""
    from scipy.ndimage import find_objects

    ids, labels = np.unique(mask, return_inverse=True)
    labels = labels.reshape(mask.shape)
    pixels = np.bincount(labels.ravel(), minlength=len(ids))
    found = {}
    for row, place in enumerate(find_objects(labels + 1, max_label=len(ids))):
        if ids[row] >= 0:
            rows, columns = place
            found[int(ids[row])] = View(frame, int(pixels[row]), (columns.start, rows.start, columns.stop, rows.stop), mask.shape)
    return found


def top_views(folder: Path, names: Sequence[str], wanted: Collection[int], count: int) -> tuple[dict[int, list[View]], int]:
    """({object id: its at most `count` views with most pixels, largest first}, pixels of ids that are not `wanted`).

    names: the frames whose mask/<frame>.png is read, in order; of equally large views the earlier frame's comes first.

    Raises: ValueError naming the file where a mask is damaged.
    """
    views: dict[int, list[View]] = {}
    foreign = 0
    for name in names:
        for object_id, view in views_in(read_mask(folder, name), name).items():
            if object_id not in wanted:
                foreign += view.pixels
                continue
            best = views.setdefault(object_id, [])
            best.append(view)
            best.sort(key=lambda one: -one.pixels)  # stable: earlier frames stay before later ones
            del best[count:]
    return views, foreign


def cut_crops(
    paths: Mapping[str, Path], views: Mapping[int, Sequence[View]], levels: int, side: int, growth: float = 0.2
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(object id, crop uint8 [side, side, 3]) of every view and level; each frame is decoded once, in the order of `paths`.

    Raises: ValueError naming the files where mask and picture are of another shape, or a picture is damaged.
    """
    by_frame: dict[str, list[tuple[int, View]]] = {}
    for object_id in sorted(views):
        for view in views[object_id]:
            by_frame.setdefault(view.frame, []).append((object_id, view))
    for name, path in paths.items():
        if name not in by_frame:
            continue
        image = read_color(path)
        size = image.shape[:2]
        picture = Image.fromarray(image)
        for object_id, view in by_frame[name]:
            check_ratio(path, size, view.mask_size)
            box = scaled_box(view.box, view.mask_size, size)
            for level in range(levels):
                crop = picture.crop(grown_box(box, level, size, growth)).resize((side, side), Image.Resampling.BICUBIC)
                yield object_id, np.asarray(crop)


def check_ratio(path: Path, size: tuple[int, int], mask_size: tuple[int, int]) -> None:
    """Raises ValueError where a mask of `mask_size` (H, W) is no smaller or larger copy of its picture of `size`."""
    if abs(size[0] * mask_size[1] / (size[1] * mask_size[0]) - 1) > 0.03:
        raise ValueError(
            f"{path}: the picture is {size[1]} x {size[0]} and mask/{path.stem}.png {mask_size[1]} x {mask_size[0]} pixels: "
            "another shape, so one is not of the other"
        )


def mask_names(folder: Path, paths: Mapping[str, Path]) -> list[str]:
    """The frames that have a mask and a picture, in the order of `paths`; empty where the scene has no masks.

    Raises: ValueError where there are masks and none is of a picture, naming the folder.
    """
    there = {path.stem for path in (folder / "mask").glob("*.png")} if (folder / "mask").is_dir() else set()
    names = [name for name in paths if name in there]
    if there and paths and not names:
        raise ValueError(f"{folder / 'mask'}: none of its {len(there)} masks ({sorted(there)[0]}.png) has the name of a picture in color/")
    for name in names[:1]:
        image_size(paths[name])
    return names

"""The picture that stands for a scene where scenes are listed."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.images import read_color
from pointcept3m.structures.scene import Scene
from pointcept3m.structures.scene_objects import read_floorplan


def scene_picture(folder: Path) -> NDArray[np.uint8] | None:
    """The picture that stands for a scene: its floorplan and its middle frame, side by side, where it has both; else the one it has,
    else its cloud from above, else None."""
    plan = read_floorplan(folder)
    frames = sorted((folder / "color").glob("*")) if (folder / "color").is_dir() else []
    found = [] if plan is None else [plan.image]
    found += [read_color(frames[len(frames) // 2])] if frames else []
    if found:
        return found[0] if len(found) == 1 else _beside(*found)
    if not (folder / "coord.npy").is_file():
        return None
    assets = Scene(folder).points(("coord", "color"))
    return cloud_from_above(assets["coord"], assets.get("color"))


def _beside(left: NDArray[np.uint8], right: NDArray[np.uint8], height: int = 240, gap: int = 8) -> NDArray[np.uint8]:
    """Two pictures on white, each fitted into `height` by at most 4/3 of it."""
    from PIL import Image

    parts = []
    for image in (left, right):
        picture = Image.fromarray(image)
        scale = min(height / picture.height, height * 4 / 3 / picture.width)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS)
        part = np.full((height, picture.width, 3), 255, np.uint8)
        top = (height - picture.height) // 2
        part[top : top + picture.height] = np.asarray(picture)
        parts.append(part)
    return np.concatenate([parts[0], np.full((height, gap, 3), 255, np.uint8), parts[1]], axis=1)


def cloud_from_above(coord: NDArray[np.float32], color: NDArray | None) -> NDArray[np.uint8]:
    """A cloud from above, its ceiling cut off."""
    from pointcept3m.engines.visualize.cloud_picture import Picture, choose_points, looking

    keep = choose_points(coord)
    shown = np.full((len(coord), 3), 150, np.uint8) if color is None else np.clip(color, 0, 255).astype(np.uint8)
    return Picture(coord[keep], looking("top", coord[keep], (240, 320))).draw(shown[keep])

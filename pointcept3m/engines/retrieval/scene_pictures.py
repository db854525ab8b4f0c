"""The picture that stands for a scene where scenes are listed."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.images import read_color
from pointcept3m.structures.scene import Scene
from pointcept3m.structures.scene_objects import read_floorplan


def scene_picture(folder: Path) -> NDArray[np.uint8] | None:
    """The picture that stands for a scene: its floorplan, else its middle frame, else its cloud from above, else None."""
    plan = read_floorplan(folder)
    if plan is not None:
        return plan.image
    frames = sorted((folder / "color").glob("*")) if (folder / "color").is_dir() else []
    if frames:
        return read_color(frames[len(frames) // 2])
    if not (folder / "coord.npy").is_file():
        return None
    assets = Scene(folder).points(("coord", "color"))
    return cloud_from_above(assets["coord"], assets.get("color"))


def cloud_from_above(coord: NDArray[np.float32], color: NDArray | None) -> NDArray[np.uint8]:
    """A cloud from above, its ceiling cut off."""
    from pointcept3m.engines.visualize.cloud_picture import Picture, choose_points, looking

    keep = choose_points(coord)
    shown = np.full((len(coord), 3), 150, np.uint8) if color is None else np.clip(color, 0, 255).astype(np.uint8)
    return Picture(coord[keep], looking("top", coord[keep], (240, 320))).draw(shown[keep])

"""Which frames show which points of a scene, before any teacher runs: sizes, depth test, and a guess at depth in wrong units."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.ops.view_fusion import visible_points
from pointcept3m.structures.camera import SizeHW
from pointcept3m.structures.scene import Scene, heldout

COLOR_SIDE = 640  # pixels of the longer side of the pictures that teachers get; they resize them as they are made for
CHUNK = 8  # views projected at once
SUSPECT = 0.2  # below this share of points that pass the depth test its unit is looked into
UNITS = {1.0: "metres", 100.0: "centimetres", 4000.0: "Matterport3D's", 5000.0: "TUM's", 6553.5: "Replica's", 1e4: "tenths of millimetres", 1e6: "micrometres"}


@dataclass(frozen=True)
class DatasetDefaults:
    """How a data set's frames are tested: relative depth tolerance, pixels of the longer side, pixels of border there.

    depth: whether its frames have depth.
    """

    tolerance: float
    side: int
    border: int = 10
    depth: bool = True


# As OpenScene fuses them. Rooms: below 0.02 points are lost, above it more of them take the label of something else
# (docs/features.md has the table).
DATASETS = {
    "scannet": DatasetDefaults(0.25, 320),
    "matterport": DatasetDefaults(0.02, 640),
    "replica": DatasetDefaults(0.25, 640),
    "nuscenes": DatasetDefaults(0.25, 800, 5, depth=False),
    "rooms": DatasetDefaults(0.02, 320),
}


@dataclass(frozen=True)
class ViewSettings:
    """What decides which frames show which points.

    every: every n-th frame. frames_per_scene: at most so many of those, evenly spaced; 0: all. holdout: every n-th frame
    is left out (`structures.heldout`). tolerance: relative, |depth - z| <= tolerance * depth. side: the longer side in
    pixels at which depth is tested, smaller frames as they are. border: pixels there that do not count, in smaller frames
    fewer in proportion. color_side: the longer side of the pictures that teachers get. sampling: of the teachers' maps.
    depth: test it; without, every point in front of a camera counts as seen. skip_bad_frames: leave out frames whose pose
    is not finite or no rigid motion.
    """

    tolerance: float = 0.25
    side: int = 320
    border: int = 10
    every: int = 1
    frames_per_scene: int = 0
    holdout: int = 0
    color_side: int = COLOR_SIDE
    sampling: str = "bilinear"
    depth: bool = True
    skip_bad_frames: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is a share of the depth, between 0 and 1; got {self.tolerance}")
        if self.every < 1 or self.frames_per_scene < 0:
            raise ValueError(f"every must be at least 1 and frames_per_scene at least 0, got {self.every} and {self.frames_per_scene}")
        if self.side < 1 or self.color_side < 1 or self.border < 0:
            raise ValueError(f"sizes must be at least 1 pixel, the border at least 0; got {self.side}, {self.color_side}, {self.border}")
        if self.sampling not in ("bilinear", "nearest"):
            raise ValueError(f"sampling must be 'bilinear' or 'nearest', got {self.sampling!r}")
        heldout((), self.holdout)  # raises


@dataclass
class Views:
    """V frames of a scene: names, cameras float64 for `size`, and what they show.

    depth [V, *size] in metres, None where it is not tested or not read yet · shown [V, N] bool, point n is visible in
    view v · color_size (H, W) of the pictures for teachers · digest of names, poses and intrinsics · left_out, names of
    frames without a usable pose or depth.
    """

    names: list[str]
    size: SizeHW
    color_size: SizeHW
    border: int
    intrinsic: torch.Tensor
    extrinsic: torch.Tensor
    depth: torch.Tensor | None
    digest: str
    left_out: list[str]
    shown: torch.Tensor | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[N] bool: the points that at least one view shows."""
        return self.shown.any(dim=0).numpy()


def shrink(size: SizeHW, side: int) -> SizeHW:
    """`size` with its longer side at most `side`, proportions kept."""
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def choose_frames(scene: Scene, settings: ViewSettings) -> tuple[list[str], list[str]]:
    """(frames to fuse, frames left out for what they lack or for their pose).

    Raises: ValueError where frames of colour have no pose or no depth, unless `skip_bad_frames`, or none is left; as `Scene.pose`.
    """
    held = set(heldout(scene.frame_names, settings.holdout))
    names = [name for name in scene.frame_names if name not in held][:: settings.every]
    left_out = list(scene.incomplete_frames)
    if left_out and not settings.skip_bad_frames:
        kinds = "pose or depth" if scene.has_depth else "pose"
        shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        raise ValueError(
            f"{scene.frames_root}: {len(left_out)} of {len(left_out) + len(scene.frame_names)} frames with colour have no {kinds} under their "
            f"name ({shown}): was all of the scene copied? --skip-bad-frames leaves them out"
        )
    for name in list(names) if settings.skip_bad_frames else ():
        try:
            scene.pose(name)
        except ValueError:
            names.remove(name)
            left_out.append(name)
    most = settings.frames_per_scene
    if most and len(names) > most:
        names = [names[int(row)] for row in (np.arange(most) + 0.5) * len(names) / most]
    if not names:
        raise ValueError(
            f"scene {scene.name!r}: none of its {len(scene.frame_names)} frames is left to fuse "
            f"({len(held)} held out, {len(left_out)} without a usable pose, every {settings.every})"
        )
    return names, left_out


def read_views(scene: Scene, settings: ViewSettings) -> Views:
    """Cameras of the scene's frames; no picture is decoded, so that scenes that are done already take no time.

    Raises: FileNotFoundError, ValueError where frames, poses or intrinsics are missing or damaged, as `Scene` does.
    """
    names, left_out = choose_frames(scene, settings)
    if settings.depth and not scene.has_depth:
        raise FileNotFoundError(
            f"{scene.frames_root / 'depth'}: no such folder; without depth every point in front of a camera counts as seen, through walls "
            "too. If that is wanted, as for LiDAR sweeps outdoors, say --no-depth"
        )
    own = scene.frame_size(names[0])
    size = shrink(own, settings.side)
    cameras = [scene.camera(name, size) for name in names]
    intrinsic, extrinsic = (np.stack([camera[i] for camera in cameras]) for i in (0, 1))
    digest = hashlib.sha256(repr(names).encode() + intrinsic.tobytes() + extrinsic.tobytes()).hexdigest()[:16]
    return Views(
        names, size, shrink(own, settings.color_side), round(settings.border * max(size) / settings.side), torch.from_numpy(intrinsic),
        torch.from_numpy(extrinsic), None, digest, left_out,
    )  # fmt: skip


def find_visible(scene: Scene, coord: torch.Tensor, views: Views, settings: ViewSettings) -> None:
    """Reads `views.depth`, and fills `views.shown` for the points `coord` [N, 3].

    Raises: ValueError where a depth picture is damaged, or where hardly a point passes the depth test because depth is in
        other units than the points.
    """
    if settings.depth:
        views.depth = torch.from_numpy(np.stack([scene.depth(name, views.size)[0] for name in views.names]))
    shown = []
    for start in range(0, len(views.names), CHUNK):
        part = slice(start, start + CHUNK)
        depth = None if views.depth is None else views.depth[part]
        _, visible = visible_points(
            coord, views.intrinsic[part], views.extrinsic[part], views.size, depth, settings.tolerance, views.border
        )
        shown.append(visible)
    views.shown = torch.cat(shown)
    if views.depth is not None:
        check_units(scene.name, coord, views)


def check_units(name: str, coord: torch.Tensor, views: Views) -> None:
    """Raises ValueError where many points lie inside the views, few pass the depth test, and depth / z gathers away from 1."""
    rows = np.unique(np.linspace(0, len(views.names) - 1, CHUNK).round().astype(int))
    ratios, passed = [], 0
    for row in rows:
        camera, matrix, depth = views.intrinsic[row : row + 1], views.extrinsic[row], views.depth[row]
        pixel, inside = visible_points(coord, camera, matrix[None], views.size, None, 0.25, views.border)
        u, v = pixel[0][inside[0]].long().unbind(dim=1)
        z = coord[inside[0]].double() @ matrix[2, :3] + matrix[2, 3]
        ratio = depth[v.clamp(0, views.size[0] - 1), u.clamp(0, views.size[1] - 1)] / z
        known = ratio > 0
        ratios.append(ratio[known])
        passed += int((views.shown[row][inside[0]] & known).sum())
    ratios = torch.cat(ratios).numpy()
    if len(ratios) < 100 or passed > SUSPECT * len(ratios):
        return
    # points behind what is seen spread below the true ratio; what is seen gathers at it
    counts, edges = np.histogram(np.log(ratios), bins=np.arange(-12, 12, 0.05))
    peak = int(np.argmax(counts))
    near = np.log(ratios)
    scale = float(np.exp(np.median(near[(near >= edges[max(peak - 1, 0)]) & (near < edges[min(peak + 2, len(edges) - 1)])])))
    if 0.8 < scale < 1.25:
        return
    unit = min(UNITS, key=lambda known: abs(np.log(1000 * scale / known)))
    unit, like = (unit, f" ({UNITS[unit]})") if abs(np.log(1000 * scale / unit)) < 0.1 else (1000 * scale, "")
    raise ValueError(
        f"scene {name!r}: of {len(ratios)} points inside {len(rows)} views only {passed} agree with the depth there, which is {scale:.2g} "
        f"times their distance. The depth pictures seem to have {unit:.5g} units a metre{like} where a scene folder wants 1000 (millimetres): "
        "write them anew, for a folder of frames with `tools/preprocess/rgbd.py --depth-units`. Or coord and poses are not in metres"
    )

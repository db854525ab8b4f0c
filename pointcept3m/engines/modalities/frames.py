"""Which pictures of a scene are its key frames. No pose is needed, unless by the rule that goes by poses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from pointcept3m.structures.images import read_color
from pointcept3m.structures.scene import COLOR_SUFFIXES, natural_key, read_pose
from pointcept3m.utils.registry import near_names

RULES = ("sharp", "even", "pose")
CANDIDATES = 3  # pictures of a span that are looked at by "sharp"
SIDE = 160  # pixels of the longer side at which sharpness is compared


def color_paths(folder: Path) -> dict[str, Path]:
    """name -> path of the pictures in <folder>/color, in the order of their numbers; empty where there is no such folder."""
    if not (folder / "color").is_dir():
        return {}
    found = {path.stem: path for path in (folder / "color").iterdir() if path.suffix.lower() in COLOR_SUFFIXES}
    return {name: found[name] for name in sorted(found, key=natural_key)}


def choose_key_frames(folder: Path, paths: Mapping[str, Path], count: int = 20, rule: str = "sharp") -> list[str]:
    """At most `count` names of `paths` (in the order of their numbers), in that order; the same for the same files.

    "sharp": the recording is cut into `count` spans of equal length, and of `CANDIDATES` pictures evenly spaced in each the
    sharpest is taken (variance of the Laplacian; the earlier of equals). "even": the middle one of each span.
    "pose": CrossOver's rule (Sec. 4), farthest-point sampling of camera poses (`spread_poses`); frames without a finite pose
    in <folder>/pose are left out.

    Raises: KeyError for another rule; ValueError naming the file where a picture is damaged, or none has a pose.
    """
    if rule not in RULES:
        raise KeyError(f"no rule of key frames is called {rule!r}; {near_names(rule, RULES)}")
    names = list(paths)
    if rule == "pose" and names:
        return _by_pose(folder, names, count)
    if len(names) <= count:
        return names
    edges = [round(k * len(names) / count) for k in range(count + 1)]
    chosen = []
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        if rule == "even":
            chosen.append(names[(first + last - 1) // 2])
            continue
        share = min(CANDIDATES, last - first)
        some = [names[first + (2 * k + 1) * (last - first) // (2 * share)] for k in range(share)]
        chosen.append(max(some, key=lambda name: sharpness(paths[name])))
    return chosen


def sharpness(path: Path) -> float:
    """Variance of the Laplacian of a picture's grey values, at a longer side of about `SIDE` pixels."""
    image = Image.fromarray(read_color(path)).convert("L")
    image.thumbnail((SIDE, SIDE))
    grey = np.pad(np.asarray(image, np.float32), 1, mode="edge")
    return float((grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]).var())


def _by_pose(folder: Path, names: Sequence[str], count: int) -> list[str]:
    found = {}
    for name in names:
        path = folder / "pose" / f"{name}.txt"
        if not path.is_file():
            continue
        try:
            found[name] = read_pose(path)
        except ValueError:  # the tracking was lost there; ScanNet writes -inf
            continue
    if not found:
        raise ValueError(f"{folder / 'pose'}: none of {len(names)} frames has a pose; choose key frames without (--keyframes sharp)")
    rows = spread_poses(np.stack(list(found.values())), count)
    return [name for row, name in enumerate(found) if row in set(rows.tolist())]


def spread_poses(poses: NDArray, count: int) -> NDArray[np.int64]:
    """Rows of at most `count` of poses [V, 4, 4] that are far from each other, in the order in which they are taken.

    Distances are between positions and unit quaternions, each of the seven numbers scaled to 0..1 over the scene, as in
    CrossOver's release. It begins at a random pose, this at the first; a quaternion and its negative are one turn, and here
    the one with w >= 0 stands for it.
    """
    turns = Rotation.from_matrix(poses[:, :3, :3]).as_quat()
    turns *= np.where(turns[:, 3:] < 0, -1, 1)
    values = np.concatenate([poses[:, :3, 3], turns], axis=1)
    span = np.ptp(values, axis=0)
    values = (values - values.min(axis=0)) / np.where(span > 0, span, 1)
    chosen, nearest = [0], np.full(len(values), np.inf)
    while len(chosen) < min(count, len(values)):
        nearest = np.minimum(nearest, ((values - values[chosen[-1]]) ** 2).sum(axis=1))
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)

"""Rooms on disk, in the one scene layout: `write_rooms(root, split, count)`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pointcept3m.datasets.rooms.cast import RayCaster, Surface
from pointcept3m.datasets.rooms.categories import object_labels
from pointcept3m.datasets.rooms.layout import generate_room
from pointcept3m.datasets.rooms.render import Frames, render_frames
from pointcept3m.datasets.rooms.scan import Cloud, scan_cloud
from pointcept3m.utils.files import atomic_folder
from pointcept3m.utils.processes import as_done

DONE = ".done"
JPEG_QUALITY = 92


def write_rooms(root: str | Path, split: str, count: int, first_seed: int = 0, num_frames: int = 24,
                size: tuple[int, int] = (120, 160), workers: int = 2, spacing: float = 0.025,
                progress: Callable[[int, int], None] | None = None) -> list[Path]:  # fmt: skip
    """Writes rooms `first_seed` to `first_seed + count - 1` of a split below `root`; returns their folders.

    A room that is already there, complete and with the same settings, is kept: a stopped run continues. Folders are
    written under a temporary name and renamed.

    Args:
        size: (H, W) of the frames.
        workers: processes; 0 works in this one.
        progress: called with (rooms done, rooms in all) after each room.

    Raises: ValueError for a negative count or worker number, or what `generate_room` refuses.
    """
    if count < 0 or workers < 0:
        raise ValueError(f"count and workers must not be negative, got count={count}, workers={workers}")
    folder = Path(root) / split
    jobs = [(folder, seed, split, num_frames, tuple(size), spacing) for seed in range(first_seed, first_seed + count)]
    paths = [folder / generate_name(seed) for seed in range(first_seed, first_seed + count)]
    for done, _ in enumerate(as_done(write_room, jobs, workers), 1):
        if progress:
            progress(done, count)
    return paths


def generate_name(seed: int) -> str:
    """The folder name of a room."""
    return f"room{seed:06d}"


def write_room(folder: Path, seed: int, split: str, num_frames: int, size: tuple[int, int], spacing: float) -> Path:
    """Writes one room into `folder`/<name>; see `write_rooms`."""
    path = Path(folder) / generate_name(seed)
    settings = f"version 1, split {split}, num_frames {num_frames}, size {size[0]}x{size[1]}, spacing {spacing}\n"
    done = path / DONE
    if done.is_file() and done.read_text() == settings:
        return path
    room = generate_room(seed, split)
    caster = RayCaster(Surface.of(room))
    frames = render_frames(room, num_frames, size, caster)
    cloud = scan_cloud(room, frames, caster, spacing)
    labels = object_labels(room)
    with atomic_folder(path) as part:
        _write_cloud(part, cloud, labels)
        _write_frames(part, frames, labels)
        (part / DONE).write_text(settings)
    return path


def _write_cloud(path: Path, cloud: Cloud, labels: dict[str, np.ndarray]) -> None:
    np.save(path / "coord.npy", cloud.coord)
    np.save(path / "color.npy", cloud.color)
    np.save(path / "normal.npy", cloud.normal)
    np.save(path / "instance.npy", cloud.instance)
    for name in ("segment", "segment20", "segment200"):
        np.save(path / f"{name}.npy", labels[name][cloud.instance])


def _write_frames(path: Path, frames: Frames, labels: dict[str, np.ndarray]) -> None:
    from PIL import Image

    for name in ("color", "depth", "pose", "label", "intrinsic"):
        (path / name).mkdir()
    nyu40 = np.append(labels["nyu40"], 0).astype(np.uint8)  # the last entry serves pixels of no object, id -1
    for k in range(len(frames.pose)):
        stem = f"{k:04d}"
        Image.fromarray(frames.rgb[k]).save(path / "color" / f"{stem}.jpg", quality=JPEG_QUALITY)
        Image.fromarray(frames.depth[k]).save(path / "depth" / f"{stem}.png")
        Image.fromarray(nyu40[frames.instance[k]]).save(path / "label" / f"{stem}.png")
        np.savetxt(path / "pose" / f"{stem}.txt", frames.pose[k], fmt="%.9f")
    matrix = np.eye(4)
    matrix[:3, :3] = frames.intrinsic
    for name in ("intrinsic_color", "intrinsic_depth"):
        np.savetxt(path / "intrinsic" / f"{name}.txt", matrix, fmt="%.9f")

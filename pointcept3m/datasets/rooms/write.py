"""Rooms on disk, in the one scene layout: `write_rooms(root, split, count)`."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pointcept3m.datasets.rooms.cast import RayCaster, Surface
from pointcept3m.datasets.rooms.categories import object_labels
from pointcept3m.datasets.rooms.layout import Room, generate_room
from pointcept3m.datasets.rooms.modalities import check_shares, draw_kind, drop_modalities, write_room_modalities
from pointcept3m.datasets.rooms.render import Frames, render_frames
from pointcept3m.datasets.rooms.rescan import rescan
from pointcept3m.datasets.rooms.scan import Cloud, scan_cloud
from pointcept3m.utils.files import atomic_folder
from pointcept3m.utils.processes import as_done

DONE = ".done"
JPEG_QUALITY = 92


def write_rooms(root: str | Path, split: str, count: int, first_seed: int = 0, num_frames: int = 24,
                size: tuple[int, int] = (120, 160), workers: int = 2, spacing: float = 0.025, modalities: bool = False,
                rescans: int = 0, drop: Mapping[str, float] | None = None, progress: Callable[[int, int], None] | None = None) -> list[Path]:  # fmt: skip
    """Writes rooms `first_seed` to `first_seed + count - 1` of a split below `root`; returns their folders.

    A room that is already there, complete and with the same settings, is kept: a stopped run continues. Folders are
    written under a temporary name and renamed.

    Args:
        size: (H, W) of the frames.
        workers: processes; 0 works in this one.
        modalities: rooms of a kind (bedroom, kitchen, ...) with objects, CAD models, masks, floorplan and referrals. They are other
            rooms than those without.
        drop: share of scans that lack a whole modality ("image", "point", "cad", "text" or "floorplan"), drawn for each scan and
            modality; none by default.
        rescans: so many more scans of every room, <room>_1 and so on, with things moved; they need `modalities`.
        progress: called with (rooms done, rooms in all) after each room.

    Raises: ValueError for a negative count or worker number, or what `generate_room` refuses.
    """
    if count < 0 or workers < 0 or rescans < 0:
        raise ValueError(f"count, workers and rescans must not be negative, got count={count}, workers={workers}, rescans={rescans}")
    if rescans and not modalities:
        raise ValueError("rescans are told from their first scan by scene.json, which needs modalities=True")
    if drop and not modalities:
        raise ValueError("drop leaves out modalities, which needs modalities=True")
    check_shares(drop or {})
    folder = Path(root) / split
    scans = [(seed, scan) for seed in range(first_seed, first_seed + count) for scan in range(1 + rescans)]
    jobs = [(folder, seed, split, num_frames, tuple(size), spacing, scan if modalities else None, drop) for seed, scan in scans]
    for done, _ in enumerate(as_done(write_room, jobs, workers), 1):
        if progress:
            progress(done, len(jobs))
    return [folder / generate_name(seed, scan) for seed, scan in scans]


def generate_name(seed: int, scan: int = 0) -> str:
    """The folder name of a scan of a room."""
    return f"room{seed:06d}" + (f"_{scan}" if scan else "")


def write_room(folder: Path, seed: int, split: str, num_frames: int, size: tuple[int, int], spacing: float, scan: int | None = None,
               drop: Mapping[str, float] | None = None) -> Path:  # fmt: skip
    """Writes one room into `folder`/<name>; see `write_rooms`. scan: number of the scan of a room with modalities, None without them."""
    path = Path(folder) / generate_name(seed, scan or 0)
    settings = f"version 1, split {split}, num_frames {num_frames}, size {size[0]}x{size[1]}, spacing {spacing}"
    settings += "\n" if scan is None else f", modalities 3, scan {scan}{''.join(f', without {k} {v}' for k, v in sorted((drop or {}).items()))}\n"
    done = path / DONE
    if done.is_file() and done.read_text() == settings:
        return path
    room = generate_room(seed, split, category=None if scan is None else draw_kind(seed, split))
    motion, moved = np.eye(4), []
    if scan:
        again = rescan(room, scan)
        room, motion, moved = again.room, np.linalg.inv(again.to_reference), again.moved
    caster = RayCaster(Surface.of(room))
    frames = render_frames(room, num_frames, size, caster)
    cloud = scan_cloud(room, frames, caster, spacing)
    labels = object_labels(room)
    with atomic_folder(path) as part:
        _write_cloud(part, cloud, labels, room, motion)
        _write_frames(part, frames, labels, motion)
        if scan is not None:
            write_room_modalities(part, room, frames, motion, generate_name(seed) if scan else None, moved)
            if drop:
                drop_modalities(part, room, drop)
        (part / DONE).write_text(settings)
    return path


def _write_cloud(path: Path, cloud: Cloud, labels: dict[str, np.ndarray], room: Room, motion: np.ndarray) -> None:
    """motion [4, 4]: the room's axes to those of the files."""
    own = np.array_equal(motion, np.eye(4))
    coord = cloud.coord if own else (cloud.coord @ motion[:3, :3].T + motion[:3, 3]).astype(np.float32)
    np.save(path / "coord.npy", coord)
    np.save(path / "color.npy", cloud.color)
    np.save(path / "normal.npy", cloud.normal if own else (cloud.normal @ motion[:3, :3].T).astype(np.float32))
    np.save(path / "instance.npy", np.array([o.id for o in room.objects], dtype=np.int32)[cloud.instance])
    for name in ("segment", "segment20", "segment200"):
        np.save(path / f"{name}.npy", labels[name][cloud.instance])


def _write_frames(path: Path, frames: Frames, labels: dict[str, np.ndarray], motion: np.ndarray) -> None:
    from PIL import Image

    for name in ("color", "depth", "pose", "label", "intrinsic"):
        (path / name).mkdir()
    nyu40 = np.append(labels["nyu40"], 0).astype(np.uint8)  # the last entry serves pixels of no object, id -1
    for k in range(len(frames.pose)):
        stem = f"{k:04d}"
        Image.fromarray(frames.rgb[k]).save(path / "color" / f"{stem}.jpg", quality=JPEG_QUALITY)
        Image.fromarray(frames.depth[k]).save(path / "depth" / f"{stem}.png")
        Image.fromarray(nyu40[frames.instance[k]]).save(path / "label" / f"{stem}.png")
        np.savetxt(path / "pose" / f"{stem}.txt", motion @ frames.pose[k], fmt="%.9f")
    matrix = np.eye(4)
    matrix[:3, :3] = frames.intrinsic
    for name in ("intrinsic_color", "intrinsic_depth"):
        np.savetxt(path / "intrinsic" / f"{name}.txt", matrix, fmt="%.9f")

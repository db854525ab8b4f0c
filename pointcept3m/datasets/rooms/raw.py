"""Rooms as raw ScanNet: the files and folders of a ScanNet download, so that the real preprocessing can be run and tested."""

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointcept3m.datasets.readers.ply import write_ply
from pointcept3m.datasets.readers.sens import write_sens
from pointcept3m.datasets.rooms.cast import RayCaster, Surface
from pointcept3m.datasets.rooms.categories import CATEGORIES, object_labels
from pointcept3m.datasets.rooms.layout import SPLITS, Room, generate_room
from pointcept3m.datasets.rooms.render import Frames, render_frames
from pointcept3m.datasets.rooms.scan import COORD_NOISE, Cloud, color_points, find_viewer
from pointcept3m.datasets.scannet_labels import NYU40_NAMES

TSV_COLUMNS = (
    "id", "raw_category", "category", "count", "nyu40id", "eigen13id", "nyuClass", "nyu40class", "eigen13class", "ModelNet40",
    "ModelNet10", "ShapeNetCore55", "synsetoffset", "wnsynsetid", "wnsynsetkey", "mpcat40", "mpcat40index",
)  # fmt: skip


@dataclass
class Scan:
    """A scanned mesh: `cloud` holds its vertices, faces [F, 3] int64, and segment [N] int64, the over-segmentation."""

    cloud: Cloud
    faces: np.ndarray
    segment: np.ndarray


def scan_mesh(room: Room, frames: Frames, caster: RayCaster, edge: float = 0.06) -> Scan:
    """The surfaces of a room that its frames see, as a mesh with no edge longer than `edge` metres before noise."""
    rng = room.rng(71)
    surface = caster.surface
    corner, owner = subdivide(surface.vertices[surface.faces].astype(np.float64), edge)
    middle = corner.mean(axis=1).astype(np.float32)
    size = frames.depth.shape[1:]
    seen = find_viewer(middle, surface.face_normal[owner], frames.pose, frames.intrinsic, size, caster) >= 0
    corner, owner = corner[seen], owner[seen]
    # Corners of one object that meet become one vertex.
    flat = corner.reshape(-1, 3)
    # (a number of 64 bits: 10 for the object, 18 for each coordinate in tenths of a millimetre, 0 to 26 m)
    step = np.round((flat - flat.min(axis=0)) * 1e4).astype(np.uint64)
    key = np.repeat(surface.face_object[owner], 3).astype(np.uint64)
    for axis in range(3):
        key = (key << np.uint64(18)) | step[:, axis]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    point = flat[first].astype(np.float32)
    face = np.repeat(owner, 3)[first]
    faces = inverse.reshape(-1, 3).astype(np.int64)
    normal = surface.face_normal[face]
    color = color_points(room, caster, point, normal, face, frames)
    coord = point + rng.standard_normal(point.shape, dtype=np.float32) * (COORD_NOISE / 2)
    instance = surface.face_object[face]
    # Superpoints: pieces of one object that face one way within a cell of 60 cm.
    piece = instance.astype(np.int64)
    for values, count in ((np.round(normal * 1.5) + 2, 5), (np.floor(point / 0.6) + 1, 64)):
        for axis in range(3):
            piece = piece * count + values[:, axis].astype(np.int64)
    segment = np.unique(piece, return_inverse=True)[1]
    return Scan(Cloud(coord.astype(np.float32), color, normal, instance.astype(np.int32)), faces, segment)


def subdivide(corner: np.ndarray, edge: float) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [F, 3, 3] halved across their longest side until none is longer than `edge`: (corners [T, 3, 3], parent [T])."""
    parent = np.arange(len(corner))
    done_corner, done_parent = [], []
    while len(corner):
        length = np.linalg.norm(corner - np.roll(corner, -1, axis=1), axis=2)
        longest = length.argmax(axis=1)
        big = length[np.arange(len(corner)), longest] > edge
        done_corner.append(corner[~big])
        done_parent.append(parent[~big])
        corner, parent, longest = corner[big], parent[big], longest[big]
        # Turned so that the longest side runs from the first corner to the second.
        order = (longest[:, None] + np.arange(3)) % 3
        a, b, c = np.moveaxis(np.take_along_axis(corner, order[:, :, None], axis=1), 1, 0)
        half = (a + b) / 2
        corner = np.concatenate([np.stack([a, half, c], 1), np.stack([half, b, c], 1)])
        parent = np.concatenate([parent, parent])
    return np.concatenate(done_corner), np.concatenate(done_parent)


def write_raw_scannet(root: str | Path, seeds: Mapping[str, Iterable[int]], num_frames: int = 12,
                      depth_size: tuple[int, int] = (120, 160), color_size: tuple[int, int] = (242, 324),
                      lost_frames: Iterable[int] = (), edge: float = 0.06) -> list[Path]:  # fmt: skip
    """Writes rooms the way ScanNet is downloaded; returns the scenes' folders.

    root/scans/sceneXXXX_YY/ holds .sens, _vh_clean_2.ply, _vh_clean_2.labels.ply, .aggregation.json,
    _vh_clean_2.0.010000.segs.json, _2d-label-filt.zip and .txt; test scenes lie in root/scans_test without labels;
    root has the label table and the split lists. XXXX is the seed, YY the number of the split.

    Args:
        seeds: seeds (0 to 9999) of each split, as {"train": [0, 1], "val": [2]}.
        color_size: (H, W); like ScanNet's its shape differs a little from depth's.
        lost_frames: frames whose pose is written as -inf, ScanNet's mark of lost tracking.

    Raises: ValueError for an unknown split or a seed beyond 9999.
    """
    root = Path(root)
    folders = []
    for split, numbers in seeds.items():
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; known: {', '.join(SPLITS)}")
        names = []
        for seed in numbers:
            if seed > 9999:
                raise ValueError(f"ScanNet names have four digits: wanted a seed up to 9999, got {seed}")
            names.append(f"scene{seed:04d}_{SPLITS.index(split):02d}")
            folder = root / ("scans_test" if split == "test" else "scans") / names[-1]
            folder.mkdir(parents=True, exist_ok=True)
            _write_scene(folder, generate_room(seed, split), num_frames, depth_size, color_size, tuple(lost_frames), edge, split != "test")
            folders.append(folder)
        (root / f"scannetv2_{split}.txt").write_text("".join(f"{name}\n" for name in names))
    rows = ["\t".join(TSV_COLUMNS)]
    for name, (number, nyu40) in sorted(CATEGORIES.items(), key=lambda item: item[1]):
        known = {"id": number, "raw_category": name, "category": name, "count": 1, "nyu40id": nyu40, "nyu40class": NYU40_NAMES[nyu40 - 1]}
        rows.append("\t".join(str(known.get(column, "")) for column in TSV_COLUMNS))
    (root / "scannetv2-labels.combined.tsv").write_text("\n".join(rows) + "\n")
    return folders


def _write_scene(folder: Path, room: Room, num_frames: int, depth_size: tuple[int, int], color_size: tuple[int, int],
                 lost_frames: tuple[int, ...], edge: float, labelled: bool) -> None:  # fmt: skip
    caster = RayCaster(Surface.of(room))
    depth = render_frames(room, num_frames, depth_size, caster)
    scale = np.array([color_size[1] / depth_size[1], color_size[0] / depth_size[0], 1.0])
    color = render_frames(room, num_frames, color_size, caster, pose=depth.pose, intrinsic=depth.intrinsic * scale[:, None])
    pose = depth.pose.copy()
    pose[list(lost_frames)] = -np.inf
    write_sens(folder / f"{folder.name}.sens", pose, color.rgb, depth.depth, color.intrinsic, depth.intrinsic)
    scan = scan_mesh(room, depth, caster, edge)
    cloud = scan.cloud
    write_ply(folder / f"{folder.name}_vh_clean_2.ply", cloud.coord, cloud.color, faces=scan.faces)
    _write_description(folder, depth, color, num_frames)
    if labelled:
        nyu40 = object_labels(room)["nyu40"].astype(np.uint16)
        write_ply(folder / f"{folder.name}_vh_clean_2.labels.ply", cloud.coord, cloud.color, faces=scan.faces, label=nyu40[cloud.instance])
        _write_annotation(folder, room, scan)
        _write_label_images(folder, room, color)


def _write_annotation(folder: Path, room: Room, scan: Scan) -> None:
    name = folder.name
    segments = f"{name}_vh_clean_2.0.010000.segs.json"
    (folder / segments).write_text(json.dumps({"sceneId": name, "segIndices": scan.segment.tolist()}))
    owner = np.zeros(int(scan.segment.max()) + 1, np.int64)
    owner[scan.segment] = scan.cloud.instance
    groups = [
        {"id": o.id, "objectId": o.id, "segments": np.flatnonzero(owner == o.id).tolist(), "label": o.category} for o in room.objects
    ]
    groups = [group for group in groups if group["segments"]]
    text = json.dumps({"sceneId": f"scannet.{name}", "appId": "Aggregator.v2", "segGroups": groups, "segmentsFile": f"scannet.{segments}"})
    (folder / f"{name}.aggregation.json").write_text(text)


def _write_label_images(folder: Path, room: Room, color: Frames) -> None:
    from PIL import Image

    raw_id = np.array([CATEGORIES[o.category][0] for o in room.objects] + [0], np.uint16)
    with zipfile.ZipFile(folder / f"{folder.name}_2d-label-filt.zip", "w") as archive:
        for k, instance in enumerate(color.instance):
            buffer = io.BytesIO()
            Image.fromarray(raw_id[instance]).save(buffer, "PNG")
            # A fixed date keeps the archive the same for the same room.
            archive.writestr(zipfile.ZipInfo(f"label-filt/{k}.png"), buffer.getvalue())


def _write_description(folder: Path, depth: Frames, color: Frames, num_frames: int) -> None:
    lines = {"axisAlignment": " ".join(f"{v:.6f}" for v in np.eye(4).reshape(-1)), "numColorFrames": num_frames, "numDepthFrames": num_frames}
    for kind, frames in (("color", color), ("depth", depth)):
        h, w = frames.depth.shape[1:]
        k = frames.intrinsic
        lines |= {f"{kind}Height": h, f"{kind}Width": w, f"fx_{kind}": k[0, 0], f"fy_{kind}": k[1, 1], f"mx_{kind}": k[0, 2], f"my_{kind}": k[1, 2]}
    (folder / f"{folder.name}.txt").write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))

"""Rooms as Structured3D is unpacked: a house of one room, with perspectives, a panorama, boxes and its structure."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pointcept3m.datasets.rooms import generate_room, render_frames
from pointcept3m.datasets.rooms.cast import RayCaster, Surface
from pointcept3m.datasets.rooms.categories import object_labels

PLACE = np.array([3.2, -1.7, 0.0])  # of the room in its house, metres
SIZE, PANORAMA = (72, 128), (256, 512)
INTRINSIC = np.array([[80.0, 0, 64], [0, 80, 36], [0, 0, 1]])
FIRST_ID = 40  # ids of a house's objects go on from room to room
DOOR, WINDOW = (0.3, 0.6), (0.2, 0.8)  # along the first and the second wall


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_pictures(folder: Path, rgb, depth, instance, nyu40, instances=True) -> None:
    """depth metres, instance -1 none."""
    write_image(folder / "rgb_rawlight.png", rgb)
    write_image(folder / "depth.png", np.rint(depth * 1000).astype(np.uint16))
    semantic = np.where(instance < 0, 0, nyu40[instance])
    write_image(folder / "semantic.png", semantic.astype(np.uint8))
    if instances:
        shell = np.isin(semantic, (0, 1, 2, 22))
        write_image(folder / "instance.png", np.where(shell, 65535, instance + FIRST_ID).astype(np.uint16))


def camera_line(pose: np.ndarray, intrinsic: np.ndarray, size) -> str:
    eye, forward, up = (pose[:3, 3] + PLACE) * 1000, pose[:3, 2], -pose[:3, 1]
    half = np.arctan([size[1] / 2 / intrinsic[0, 0], size[0] / 2 / intrinsic[1, 1]])
    return " ".join(f"{v:.6f}" for v in (*eye, *forward, *up, *half, 1.0)) + "\n"


def panorama_of(room, caster, eye):
    """(rgb, distance along the ray, instance) of a panorama: middle +y, right +x."""
    height, width = PANORAMA
    u = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    v = -((np.arange(height) + 0.5) / height - 0.5) * np.pi
    u, v = np.meshgrid(u, v)
    ray = np.stack([np.cos(v) * np.sin(u), np.cos(v) * np.cos(u), np.sin(v)], axis=-1).reshape(-1, 3).astype(np.float32)
    origin = np.broadcast_to(eye, ray.shape).astype(np.float32)
    face, distance = caster.hit(origin, ray)
    point = origin + ray * distance[:, None]
    color = np.zeros((len(face), 3), np.float32)
    seen = face >= 0
    color[seen] = caster.surface.albedo(face[seen], point[seen], np.full(seen.sum(), 0.02, np.float32))
    instance = np.where(seen, caster.surface.face_object[face], -1)
    shape = PANORAMA
    return (color.reshape(*shape, 3).clip(0, 1) * 255).astype(np.uint8), distance.reshape(shape), instance.reshape(shape)


def structure_of(room, number: int, kind: str) -> dict:
    """annotation_3d.json: floor, ceiling, walls, a door in the first wall and a window in the second."""
    count = len(room.outline)
    corner = [(x, y, z) for z in (0.0, room.height) for x, y in room.outline]
    lines = [(k, (k + 1) % count) for k in range(count)] + [(k + count, (k + 1) % count + count) for k in range(count)] + [(k, k + count) for k in range(count)]
    planes = [[*range(count)], [*range(count, 2 * count)]] + [[k, k + count, k + 2 * count, (k + 1) % count + 2 * count] for k in range(count)]
    kinds = ["floor", "ceiling"] + ["wall"] * count
    semantics = [{"ID": number, "type": kind, "planeID": list(range(count + 2))}]
    for what, wall, (start, end), (low, high) in (("door", 0, DOOR, (0.0, 2.0)), ("window", 1, WINDOW, (0.9, 1.8))):
        a, b = room.outline[wall], room.outline[(wall + 1) % count]
        first = len(corner)
        corner += [(*(a + (b - a) * t), z) for z in (low, high) for t in (start, end)]
        mine = [(first, first + 1), (first + 2, first + 3), (first, first + 2), (first + 1, first + 3)]
        numbers = list(range(len(lines), len(lines) + 4))
        lines += mine
        planes[2 + wall] += numbers
        if low == 0:
            planes[0].append(numbers[0])  # the sill lies on the floor
        semantics.append({"ID": 900 + wall, "type": what, "planeID": [len(planes)]})
        planes.append(numbers)
        kinds.append("wall")
    semantics.append({"ID": 999, "type": "outwall", "planeID": []})
    of_plane, at = np.zeros((len(planes), len(lines)), int), np.zeros((len(lines), len(corner)), int)
    for row, members in enumerate(planes):
        of_plane[row, members] = 1
    for row, ends in enumerate(lines):
        at[row, list(ends)] = 1
    points = (np.array(corner) + PLACE) * 1000
    return {
        "junctions": [{"ID": k, "coordinate": p.tolist()} for k, p in enumerate(points)],
        "lines": [{"ID": k, "point": points[a].tolist(), "direction": (points[b] - points[a]).tolist()} for k, (a, b) in enumerate(lines)],
        "planes": [{"ID": k, "type": kind, "normal": [0, 0, 1], "offset": 0} for k, kind in enumerate(kinds)],
        "semantics": semantics, "planeLineMatrix": of_plane.tolist(), "lineJunctionMatrix": at.tolist(), "cuboids": [], "manhattan": [],
    }  # fmt: skip


def write_house(root: Path, scene: str, seed: int, number: int, kind: str = "bedroom", frames: int = 5, panorama_ids: bool = True):
    """Writes root/<scene>; returns (room, poses, intrinsic)."""
    room = generate_room(seed, "train")
    caster, nyu40 = RayCaster(Surface.of(room)), object_labels(room)["nyu40"]
    shots = render_frames(room, frames, SIZE, caster, intrinsic=INTRINSIC)
    folder = root / scene / "2D_rendering" / str(number)
    for k in range(frames):
        view = folder / "perspective" / "full" / str(k)
        write_pictures(view, shots.rgb[k], shots.true_depth[k], shots.instance[k], nyu40)
        (view / "camera_pose.txt").write_text(camera_line(shots.pose[k], shots.intrinsic, SIZE))
    eye = shots.pose[0][:3, 3]
    write_pictures(folder / "panorama" / "full", *panorama_of(room, caster, eye), nyu40, panorama_ids)
    (folder / "panorama" / "camera_xyz.txt").write_text(" ".join(f"{v:.4f}" for v in (eye + PLACE) * 1000))
    boxes = []
    for thing in room.objects:
        low, high = thing.box
        basis = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
        half = (high - low)[[1, 2, 0]] / 2
        boxes.append({"ID": thing.id + FIRST_ID, "basis": basis, "coeffs": (half * 1000).tolist(), "centroid": (((low + high) / 2 + PLACE) * 1000).tolist()})
    (root / scene / "bbox_3d.json").write_text(json.dumps(boxes))
    (root / scene / "annotation_3d.json").write_text(json.dumps(structure_of(room, number, kind)))
    return room, shots

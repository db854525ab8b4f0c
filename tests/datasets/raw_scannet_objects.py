"""The data sets around ScanNet, made of rooms: Scan2CAD, ShapeNetCore.v2, SceneCAD, SceneVerse and ScanNet's pictures of instances."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

SHIFT = 3  # objectId less id, as nothing says that they are equal
TURN = np.radians(25)  # of ScanNet's axis alignment
Y_UP = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0.0]])  # (x, y, z) with y up to (x, -z, y) with z up


def align(folder: Path, scene_type: str = "Bedroom / Hotel") -> np.ndarray:
    """Gives a scan an axis alignment and a kind of room; returns the 4x4 matrix."""
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]]
    matrix[:3, 3] = (1.5, -2.0, 0.1)
    path = folder / f"{folder.name}.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("axisAlignment", "sceneType"))]
    lines += [f"axisAlignment = {' '.join(f'{v:.6f}' for v in matrix.reshape(-1))} ", f"sceneType = {scene_type}"]
    path.write_text("\n".join(lines) + "\n")
    return matrix


def shift_object_ids(folder: Path) -> None:
    """Makes objectId differ from id."""
    path = folder / f"{folder.name}.aggregation.json"
    content = json.loads(path.read_text())
    for group in content["segGroups"]:
        group["objectId"] = group["id"] + SHIFT
    path.write_text(json.dumps(content))


def write_instance_zip(folder: Path, instance: np.ndarray, names=None) -> Path:
    """_2d-instance-filt.zip of ids [M, H, W], -1 none: objectId + 1 in 8 bits."""
    path = folder / f"{folder.name}_2d-instance-filt.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, ids in zip(names or range(len(instance)), instance, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(np.where(ids < 0, 0, ids + SHIFT + 1).astype(np.uint8)).save(buffer, "PNG")
            archive.writestr(f"instance-filt/{number}.png", buffer.getvalue())
    return path


def trs(shift, turn: Rotation, scale) -> dict:
    """Scan2CAD's way to say a transform: the quaternion has w first."""
    x, y, z, w = turn.as_quat()
    return {"translation": [float(v) for v in shift], "rotation": [float(v) for v in (w, x, y, z)], "scale": [float(v) for v in scale]}


def write_models(shapenet: Path, things) -> dict:
    """A ShapeNet model of each RoomObject; returns Scan2CAD's entry of a scan, whose world is turned against the scan."""
    world = Rotation.from_euler("xyz", [0.3, -0.7, 1.1])
    offset, models = np.array([0.4, -1.2, 2.0]), []
    for thing in things:
        own = (thing.vertices - thing.translation) @ thing.rotation @ Y_UP  # the row times Y_UP is its inverse on a column
        low, high = own.min(axis=0), own.max(axis=0)
        scale = high - low
        canonical = (own - (low + high) / 2) / scale
        model = f"model{thing.id:02d}"
        path = shapenet / "03001627" / model / "models" / "model_normalized.obj"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["mtllib model_normalized.mtl", *(f"v {x:.7f} {y:.7f} {z:.7f}" for x, y, z in canonical), "usemtl wood"]
        path.write_text("\n".join([*lines, *(f"f {a} {b} {c}" for a, b, c in thing.faces + 1)]) + "\n")
        turn = Rotation.from_matrix(thing.rotation @ Y_UP)
        center = thing.translation + thing.rotation @ Y_UP @ ((low + high) / 2)
        pose = trs(world.apply(center) + offset, world * turn, scale)
        models.append({"catid_cad": "03001627", "id_cad": model, "sym": "__SYM_NONE", "trs": pose, "bbox": [0.5] * 3, "center": [0.0] * 3})
    return {"trs": trs(offset, world, (1, 1, 1)), "aligned_models": models, "n_aligned_models": len(models)}


def write_layout(path: Path, outline: np.ndarray, height: float) -> None:
    """SceneCAD's layout of a room: floor and ceiling of corners outline [P, 2], y up."""
    count = len(outline)
    verts = [[float(x), float(z), -float(y)] for z in (0.0, height) for x, y in outline]
    ring = [[k, (k + 1) % count] for k in range(count)]
    edges = ring + [[a + count, b + count] for a, b in ring] + [[k, k + count] for k in range(count)]
    quads = [[a, b, b + count, a + count] for a, b in ring]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"verts": verts, "edges": edges, "quads": quads}))

"""nuScenes' tables and files of key frames in the box room, through which a car drives."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.datasets.synthetic import cast, cloud

SIZE, INTRINSIC = (90, 160), np.array([[80.0, 0, 84.0], [0, 82.0, 41.0], [0, 0, 1]])
RAW_INTRINSIC = [[80.0, 0, 83.5], [0, 82.0, 40.5], [0, 0, 1]]  # with the centre of the first pixel at 0
CATEGORIES = {"noise": 0, "vehicle.car": 17, "human.pedestrian.child": 3, "static.vegetation": 30, "vehicle.ego": 31, "animal": 1}
INDICES = np.array([0, 17, 3, 30, 31, 1])  # of the six walls


def turn(axis: str, angle: float) -> np.ndarray:
    """The 4x4 rotation about one axis, written out."""
    c, s = np.cos(angle), np.sin(angle)
    a, b = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    pose = np.eye(4)
    pose[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return pose


def quaternion(matrix: np.ndarray) -> list[float]:
    """(w, x, y, z) of a rotation: the eigenvector of a 4x4 that is built from it (Bar-Itzhack 2000)."""
    m = matrix[:3, :3]
    k = np.array([
        [m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[2, 0] + m[0, 2], m[2, 1] - m[1, 2]],
        [0, m[1, 1] - m[0, 0] - m[2, 2], m[2, 1] + m[1, 2], m[0, 2] - m[2, 0]],
        [0, 0, m[2, 2] - m[0, 0] - m[1, 1], m[1, 0] - m[0, 1]],
        [0, 0, 0, m.trace()],
    ])  # fmt: skip
    x, y, z, w = np.linalg.eigh((np.triu(k) + np.triu(k, 1).T) / 3)[1][:, -1]
    return [w, x, y, z]


def as_row(token: str, pose: np.ndarray, **more) -> dict:
    return {"token": token, "rotation": quaternion(pose), "translation": pose[:3, 3].tolist(), **more}


def write_nuscenes(root: Path, version: str = "v1.0-trainval", scenes=("scene-0001", "scene-0003"), labels: bool = True) -> Path:
    """Two key frames a scene, with a lidar and two cameras, and a sweep between them that is none."""
    room = cloud(1500)
    lidar, cameras = turn("z", -1.6), {"CAM_FRONT": turn("x", -1.5), "CAM_BACK": turn("z", 2.9) @ turn("x", -1.4)}
    lidar[:3, 3] = 0.1, 0.0, 0.3
    cameras["CAM_FRONT"][:3, 3], cameras["CAM_BACK"][:3, 3] = (0.2, 0.1, 0.2), (-0.1, 0, 0.2)
    sensors = {"LIDAR_TOP": lidar, **cameras}
    tables: dict[str, list[dict]] = {name: [] for name in ("scene", "sample", "sample_data", "ego_pose", "lidarseg")}
    tables["sensor"] = [{"token": f"s{name}", "channel": name, "modality": name[:3].lower()} for name in sensors]
    tables["calibrated_sensor"] = [
        as_row(f"c{name}", pose, sensor_token=f"s{name}", camera_intrinsic=RAW_INTRINSIC if name in cameras else [])
        for name, pose in sensors.items()
    ]
    tables["category"] = [{"token": f"k{n}", "name": name, **({"index": n} if labels else {})} for name, n in CATEGORIES.items()]
    for scene in scenes:
        tables["scene"].append({"token": f"t{scene}", "name": scene})
        for key in (1, 0):  # not in the order of time
            sample = f"{scene}.{key}"
            tables["sample"].append({"token": sample, "scene_token": f"t{scene}", "timestamp": 500_000 * key})
            for number, (channel, mount) in enumerate(sensors.items()):
                car = turn("z", 0.5 * key + 0.05 * number)  # the car moves on between lidar and cameras
                car[:3, 3] = 1.8 + 0.06 * number, 1.4, 1.0 + 0.2 * key
                tables["ego_pose"].append(as_row(f"e{sample}{channel}", car))
                file = f"samples/{channel}/{sample}" + (".pcd.bin" if channel == "LIDAR_TOP" else ".jpg")
                row = {"token": f"d{sample}{channel}", "sample_token": sample, "ego_pose_token": f"e{sample}{channel}",
                       "calibrated_sensor_token": f"c{channel}", "filename": file, "is_key_frame": True}  # fmt: skip
                sweep = {**row, "token": row["token"] + "x", "is_key_frame": False, "filename": "sweeps/none"}
                tables["sample_data"] += [row, sweep]
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                if channel != "LIDAR_TOP":
                    Image.fromarray(cast(car @ mount, INTRINSIC, SIZE)[1]).save(root / file, quality=98)
                    continue
                coord = np.c_[room["coord"], np.ones(1500)] @ np.linalg.inv(car @ mount).T
                np.c_[coord[:, :3], np.arange(1500) % 256, np.zeros(1500)].astype("<f4").tofile(root / file)
                name = f"lidarseg/{version}/{sample}_lidarseg.bin"
                tables["lidarseg"].append({"token": f"l{sample}", "sample_data_token": row["token"], "filename": name})
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                INDICES[room["segment"]].astype(np.uint8).tofile(root / name)
    (root / version).mkdir()
    for name, rows in tables.items():
        (root / version / f"{name}.json").write_text(json.dumps(rows))
    return root

"""A Matterport3D download, byte for byte as the data set has it, of the box room: regions, cameras, pictures, categories."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from tests.datasets.synthetic import HIGH, LOW, cast, look

TRAIN, VAL, TEST = "17DRP5sb8fy", "2azQ1b91cZZ", "2t7WUuJeko7"
SIZE = (128, 160)  # an eighth of 1024 x 1280
# by camera: looking up, flat and down; principal points far from the middle, so that a row counted from the wrong side shows
INTRINSICS = [np.array([[134.0 + k, 0, 84.0 - 3 * k], [0, 135.0 - k, 72.0 - 4 * k], [0, 0, 1]]) for k in range(3)]
TABLE = [  # index, nyu40id, nyuClass
    (1, "1", "wall"), (2, "8", "door"), (3, "22", "ceiling"), (4, "39", "unknown"), (5, "", ""), (6, "40", "toilet brush"),
]  # fmt: skip
PLY_HEADER = """ply
format binary_little_endian 1.0
element vertex {}
property float x
property float y
property float z
property float nx
property float ny
property float nz
property float tx
property float ty
property uchar red
property uchar green
property uchar blue
element face {}
property list uchar int vertex_indices
property int material_id
property int segment_id
property int category_id
end_header
"""


def walls(shift=(0.0, 0.0, 0.0), steps: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(coord [N, 3], faces [F, 3], wall of each face [F]) of the room's six walls as grids, moved by `shift`."""
    coord, faces, wall = [], [], []
    for number in range(6):
        axis, others = number % 3, [a for a in range(3) if a != number % 3]
        grid = np.stack(np.meshgrid(*[np.linspace(LOW[a], HIGH[a], steps) for a in others], indexing="ij"), axis=-1).reshape(-1, 2)
        points = np.zeros((len(grid), 3))
        points[:, others], points[:, axis] = grid, (HIGH if number >= 3 else LOW)[axis]
        corner = (np.arange(steps - 1)[:, None] * steps + np.arange(steps - 1)).reshape(-1) + number * steps**2
        quads = np.concatenate([corner[:, None] + [0, steps, 1], corner[:, None] + [1, steps, steps + 1]])
        coord.append(points)
        faces.append(quads)
        wall.append(np.full(len(quads), number))
    return (np.concatenate(coord) + shift).astype(np.float32), np.concatenate(faces), np.concatenate(wall)


def write_region(path: Path, coord, faces, segment_id, category_id) -> None:
    """A region<n>.ply as the data set has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vertex = np.zeros(len(coord), [("coord", "<f4", 3), ("rest", "<f4", 5), ("color", "u1", 3)])
    vertex["coord"], vertex["color"] = coord, np.arange(3 * len(coord)).reshape(-1, 3) % 251
    face = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3), ("ids", "<i4", 3)])
    face["count"], face["corners"] = 3, faces
    face["ids"] = np.stack([np.arange(len(faces)), segment_id, category_id], axis=1)
    path.write_bytes(PLY_HEADER.format(len(coord), len(faces)).encode() + vertex.tobytes() + face.tobytes())


def write_pictures(building: Path, panos: dict[str, np.ndarray]) -> None:
    """The .conf and the pictures of cameras that stand at `panos` in the room, two yaws for each of three cameras."""
    for kind in ("camera_parameters", "color_images", "depth_images"):
        (building / f"undistorted_{kind}").mkdir(parents=True)
    lines = ["dataset matterport", f"n_images {6 * len(panos)}", "depth_directory undistorted_depth_images", "color_directory undistorted_color_images"]
    for pano, eye in panos.items():
        for camera, intrinsic in enumerate(INTRINSICS):
            (fx, _, cx), (_, fy, cy), _ = intrinsic
            lines += ["", f"intrinsics_matrix {fx} 0 {cx - 0.5}  0 {fy} {SIZE[0] - 0.5 - cy}  0 0 1"]
            for yaw in range(2):
                pose = look(3.0 * yaw + 0.4, tilt=0.5 * (camera - 1), eye=tuple(eye))
                depth, color = cast(pose, intrinsic, SIZE)
                names = [f"{pano}_{kind}{camera}_{yaw}" for kind in "di"]
                Image.fromarray(np.rint(depth * 4000).astype(np.uint16)).save(building / f"undistorted_depth_images/{names[0]}.png")
                Image.fromarray(color).save(building / f"undistorted_color_images/{names[1]}.jpg", quality=98)
                lines.append(f"scan {names[0]}.png {names[1]}.jpg " + " ".join(f"{x:.8g}" for x in (pose @ np.diag([1, -1, -1, 1])).flat))
    (building / f"undistorted_camera_parameters/{building.name}.conf").write_text("\n".join(lines) + "\n")


def write_matterport(root: Path) -> Path:
    """Three buildings: two regions for training, of which only the first has cameras; one to validate, one to test on, without."""
    coord, faces, wall = walls()
    ids = {"segment_id": np.where(wall == 0, -1, 10 * wall), "category_id": np.array([1, 2, 3, 6, 5, -1])[wall]}
    for building, regions in ((TRAIN, (0, 1)), (VAL, (0,)), (TEST, (2,))):
        for region in regions:
            shift = (0, 0, 0) if building != TEST and region == 0 else (20, 0, 0)
            write_region(root / "scans" / building / "region_segmentations" / f"region{region}.ply", coord + np.float32(shift), faces, **ids)
        write_pictures(root / "scans" / building, {"0a1f": np.array([2.0, 1.5, 1.4]), "9e10": np.array([1.0, 1.2, 1.5])})
    with open(root / "category_mapping.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("index", "nyu40id", "nyuClass"), *TABLE])
    return root

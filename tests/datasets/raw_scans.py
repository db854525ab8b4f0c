"""Downloads of 3RScan, ARKitScenes and MultiScan, in their published layouts, of one small furnished room known in closed form."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pointcept3m.structures.camera import pixel_rays
from tests.datasets.raw_matterport import walls
from tests.datasets.synthetic import HIGH, LOW, cast, look

INTRINSIC, SIZE = np.array([[60.0, 0, 31.0], [0, 60.0, 24.5], [0, 0, 1]]), (48, 64)
SHELL = {0: 1, 1: 2, 2: 8, 3: 1, 4: 2, 5: 9}  # wall of the room -> id; the rest of SHELL_LABELS by id
LABELS = {1: "wall", 2: "wall", 8: "floor", 9: "ceiling", 3: "chair", 4: "table", 6: "trash can"}
BOXES = {3: ((0.4, 1.8, 0.0), (0.9, 2.3, 0.9)), 4: ((2.2, 1.6, 0.0), (3.4, 2.4, 0.7)), 6: ((3.3, 0.3, 0.0), (3.6, 0.6, 0.4))}
VIEWS = [look(angle, 0.35, (2.0, 0.9, 1.5)) for angle in (0.2, 1.2, 2.4, 4.0)]


def box_mesh(low, high, steps: int = 7):
    """(coord, faces) of a box as six grids of its own."""
    coord, faces, _ = walls(steps=steps)
    unit = (coord - LOW) / (HIGH - LOW)
    return np.asarray(low) + unit * (np.asarray(high) - low), faces


def room(boxes=BOXES):
    """(coord [V, 3], faces [F, 3], id [V]) of the room with boxes in it."""
    coord, faces, wall = walls()
    ids = np.zeros(len(coord), np.int64)
    for number in range(6):
        ids[faces[wall == number].ravel()] = SHELL[number]
    parts, all_faces, all_ids, count = [coord], [faces], [ids], len(coord)
    for name, (low, high) in boxes.items():
        coord, faces = box_mesh(low, high)
        parts.append(coord)
        all_faces.append(faces + count)
        all_ids.append(np.full(len(coord), name))
        count += len(coord)
    return np.concatenate(parts).astype(np.float64), np.concatenate(all_faces), np.concatenate(all_ids)


def picture(pose, intrinsic=INTRINSIC, size=SIZE, boxes=BOXES):
    """(depth [H, W], colour by position [H, W, 3] uint8, id of the box [H, W], -1 none) as slabs have it, not as rays on triangles."""
    depth, _ = cast(pose, intrinsic, size)
    ray, ids = pixel_rays(size, intrinsic) @ pose[:3, :3].T, np.full(size, -1)
    for name, (low, high) in boxes.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.sort(np.stack([(np.asarray(side) - pose[:3, 3]) / ray for side in (low, high)]), axis=0)
        enter, leave = ends[0].max(axis=-1), ends[1].min(axis=-1)
        hit = (enter < leave) & (enter > 0) & (enter < depth)
        depth, ids = np.where(hit, enter, depth), np.where(hit, name, ids)
    return depth, color_at(pose[:3, 3] + ray * depth[..., None]), ids


def color_at(coord):
    return np.clip(np.rint((coord - LOW) / (HIGH - LOW) * 255), 0, 255).astype(np.uint8)


def moved(coord, matrix):
    return coord @ matrix[:3, :3].T + matrix[:3, 3]


def turn(degrees, shift=(0.0, 0.0, 0.0), about=(0.0, 0.0, 0.0)):
    """A turn about a vertical axis through `about`, then a shift, [4, 4]."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(4)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    matrix[:3, 3] = np.asarray(about) - matrix[:3, :3] @ about + shift
    return matrix


def column_major(matrix):
    return np.asarray(matrix).T.ravel().tolist()


def write_pgm(path: Path, depth) -> None:
    values = np.rint(depth * 1000).astype(">u2")
    path.write_bytes(f"P5\n{values.shape[1]} {values.shape[0]}\n65535\n".encode() + values.tobytes())


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# 3RScan

REFERENCE, RESCAN, HIDDEN, OTHER = (f"0000000{k}-aaaa-bbbb-cccc-00000000000{k}" for k in range(4))
TO_REFERENCE = turn(40, (0.5, -1.2, 0.05))
CHANGES = {3: turn(0, (0.6, 0, 0)), 4: turn(0, (0.03, 0.0, 0)), 6: turn(3, about=(3.45, 0.45, 0.2))}  # by how things changed, in the reference's axes


def write_labels_ply(path: Path, coord, faces, ids) -> None:
    lines = ["ply", "format ascii 1.0", f"element vertex {len(coord)}", *(f"property float {k}" for k in "xyz"),
             *(f"property uchar {k}" for k in ("red", "green", "blue")), "property ushort objectId", "property ushort globalId",
             *(f"property uchar {k}" for k in ("NYU40", "Eigen13", "RIO27")), f"element face {len(faces)}",
             "property list uchar int vertex_indices", "end_header"]  # fmt: skip
    lines += [f"{x:.6f} {y:.6f} {z:.6f} 174 199 232 {number} 188 2 5 2" for (x, y, z), number in zip(coord, ids, strict=True)]
    lines += [f"3 {a} {b} {c}" for a, b, c in faces]
    path.write_text("\n".join(lines) + "\n")


def write_textured(folder: Path, coord, faces, color) -> None:
    """mesh.refined.v2.obj with a texel for each vertex."""
    side = int(np.ceil(np.sqrt(len(coord))))
    texture = np.zeros((side * side, 3), np.uint8)
    texture[: len(coord)] = color
    Image.fromarray(texture.reshape(side, side, 3)).save(folder / "mesh.refined_0.png")
    (folder / "mesh.refined.mtl").write_text("newmtl material_0\nmap_Kd mesh.refined_0.png\n")
    row, column = np.divmod(np.arange(len(coord)), side)
    u, v = (column + 0.5) / side, 1 - (row + 0.5) / side
    lines = ["mtllib mesh.refined.mtl", *(f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in coord)]
    lines += [*(f"vt {a:.6f} {b:.6f}" for a, b in zip(u, v, strict=True)), "usemtl material_0"]
    lines += ["f " + " ".join(f"{k + 1}/{k + 1}" for k in face) for face in faces]
    (folder / "mesh.refined.v2.obj").write_text("\n".join(lines) + "\n")


def write_3rscan_scan(folder: Path, coord, faces, ids, to_scan, labelled: bool = True) -> None:
    """A scan's folder; coord are the reference's, `to_scan` [4, 4] takes them to the scan's own axes."""
    folder.mkdir(parents=True)
    own = moved(coord, to_scan)
    if labelled:
        write_labels_ply(folder / "labels.instances.annotated.v2.ply", own, faces, ids)
        groups = [{"id": k, "objectId": k, "label": label, "segments": [k]} for k, label in LABELS.items()]
        write_json(folder / "semseg.v2.json", {"scan_id": folder.name, "segGroups": groups})
    write_textured(folder, own, faces, color_at(coord))


def write_3rscan_frames(folder: Path, to_scan, boxes=BOXES, sideways: bool = False) -> None:
    """sideways: the camera was held turned by a quarter, its right side down, as 3RScan's tablets are."""
    sequence = folder / "sequence"
    sequence.mkdir()
    size, intrinsic, held = SIZE, INTRINSIC, np.eye(4)
    if sideways:  # its x is what was y, its y what was -x
        size, intrinsic = SIZE[::-1], np.array([[60.0, 0, 24.5], [0, 60.0, SIZE[1] - 31.0], [0, 0, 1]])
        held[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    numbers = " ".join(str(v) for v in np.block([[intrinsic, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]).ravel())
    half = np.diag([0.5, 0.5, 1]) @ intrinsic
    halves = " ".join(str(v) for v in np.block([[half, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]).ravel())
    (sequence / "_info.txt").write_text(
        f"m_versionNumber = 4\nm_colorWidth = {size[1]}\nm_colorHeight = {size[0]}\nm_depthWidth = {size[1] // 2}\nm_depthHeight = {size[0] // 2}\n"
        f"m_depthShift = 1000\nm_calibrationColorIntrinsic = {numbers}\nm_calibrationDepthIntrinsic = {halves}\nm_frames.size = {len(VIEWS)}\n"
    )
    for k, pose in enumerate(VIEWS):
        pose = pose @ held
        _, color, _ = picture(pose, intrinsic, size, boxes)
        depth, _, _ = picture(pose, half, (size[0] // 2, size[1] // 2), boxes)
        Image.fromarray(color).save(sequence / f"frame-{k:06d}.color.jpg", quality=95)
        write_pgm(sequence / f"frame-{k:06d}.depth.pgm", depth)
        np.savetxt(sequence / f"frame-{k:06d}.pose.txt", to_scan @ pose)


def changed_room():
    """(coord, faces, id, boxes) after the chair was shifted, the table a little, and the trash can turned."""
    coord, faces, ids = room()
    for name, change in CHANGES.items():
        coord[ids == name] = moved(coord[ids == name], change)
    chair = tuple(tuple(np.asarray(side) + (0.6, 0, 0)) for side in BOXES[3])
    return coord, faces, ids, {**BOXES, 3: chair}


def meta_3rscan() -> list:
    to_scan = np.linalg.inv(TO_REFERENCE)
    rigid = [{"instance_reference": k, "instance_rescan": k, "symmetry": 0, "transform": column_major(to_scan @ change)} for k, change in CHANGES.items()]
    rescan = {"reference": RESCAN, "transform": column_major(TO_REFERENCE), "rigid": rigid, "nonrigid": [], "removed": []}
    return [
        {"reference": REFERENCE, "type": "train", "ambiguity": [], "scans": [rescan]},
        {"reference": OTHER, "type": "validation", "scans": []},
        {"reference": "99999999-test", "type": "test", "scans": [{"reference": HIDDEN}]},
    ]


def write_3rscan(root: Path) -> Path:
    """A reference, its rescan and a scan of the hidden test set; returns `root`."""
    write_json(root / "3RScan.json", meta_3rscan())
    coord, faces, ids = room()
    write_3rscan_scan(root / REFERENCE, coord, faces, ids, np.eye(4))
    write_3rscan_frames(root / REFERENCE, np.eye(4))
    to_scan = np.linalg.inv(TO_REFERENCE)
    coord, faces, ids, boxes = changed_room()
    write_3rscan_scan(root / RESCAN, coord, faces, ids, to_scan)
    write_3rscan_frames(root / RESCAN, to_scan, boxes)
    write_3rscan_scan(root / HIDDEN, *room(), np.eye(4), labelled=False)
    write_3rscan_frames(root / HIDDEN, np.eye(4))
    return root


# ARKitScenes

VIDEOS = {"40753679": ("NA", "Training"), "41048190": ("381531", "Training"), "41048191": ("381531", "Training"), "41069021": ("421002", "Validation")}
PILLOW = ((2.4, 1.7, 0.5), (2.8, 2.1, 0.75))  # reaches into the table's box


def obb(low, high, degrees: float = 0.0, center=None):
    low, high = np.asarray(low, float), np.asarray(high, float)
    axes = turn(degrees)[:3, :3].T
    middle = (low + high) / 2 if center is None else center
    return {"centroid": list(map(float, middle)), "axesLengths": (high - low).tolist(), "normalizedAxes": axes.ravel().tolist()}


def write_mesh_ply(path: Path, coord, faces, color, **face) -> None:
    """A binary mesh as ARKitScenes and MultiScan have them; `face` are numbers of faces."""
    properties = "".join(f"property int {name}\n" for name in face)
    header = (f"ply\nformat binary_little_endian 1.0\nelement vertex {len(coord)}\n" + "".join(f"property float {k}\n" for k in "xyz")
              + "".join(f"property uchar {k}\n" for k in ("red", "green", "blue", "alpha"))
              + f"element face {len(faces)}\nproperty list uchar int vertex_indices\n{properties}end_header\n")  # fmt: skip
    vertex = np.zeros(len(coord), [("coord", "<f4", 3), ("color", "u1", 4)])
    vertex["coord"], vertex["color"][:, :3], vertex["color"][:, 3] = coord, color, 255
    rows = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3), *((name, "<i4") for name in face)])
    rows["count"], rows["corners"] = 3, faces
    for name, values in face.items():
        rows[name] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode() + vertex.tobytes() + rows.tobytes())


def write_arkit_video(folder: Path, degrees: float = 25.0) -> None:
    """A video of the room turned by `degrees`, so that boxes are oriented."""
    from scipy.spatial.transform import Rotation

    video, motion = folder.name, turn(degrees)
    coord, faces, _ = room({**BOXES, 5: PILLOW})
    write_mesh_ply(folder / f"{video}_3dod_mesh.ply", moved(coord, motion), faces, color_at(coord))
    entries = []
    # the pillow first, so that "the last box wins" would give its points to the table
    for label, (low, high) in (("pillow", PILLOW), ("table", BOXES[4]), ("tv_monitor", BOXES[3]), ("stool", ((3.7, 2.7, 2.0), (3.9, 2.9, 2.2)))):
        middle = moved((np.asarray(low) + high) / 2, motion)
        entries.append({"uid": label, "label": label, "segments": {"obbAligned": obb(np.asarray(low) - 0.01, np.asarray(high) + 0.01, degrees, middle)}})
    write_json(folder / f"{video}_3dod_annotation.json", {"data": entries, "skipped": False})
    frames = folder / f"{video}_frames"
    for name in ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics"):
        (frames / name).mkdir(parents=True)
    lines = []
    for k, pose in enumerate(VIEWS):
        time = 6845.706 + 0.1 * k
        extrinsic = np.linalg.inv(motion @ pose)
        rotation = Rotation.from_matrix(extrinsic[:3, :3]).as_rotvec()
        lines.append(" ".join(f"{v:.9f}" for v in (time + 0.0004, *rotation, *extrinsic[:3, 3])))
        intrinsic = INTRINSIC + np.array([[k, 0, 0], [0, k, 0], [0, 0, 0]])
        depth, color, _ = picture(pose, intrinsic, boxes={**BOXES, 5: PILLOW})
        name = f"{video}_{time:.3f}"
        Image.fromarray(color).save(frames / "lowres_wide" / f"{name}.png")
        Image.fromarray(np.rint(depth * 1000).astype(np.uint16)).save(frames / "lowres_depth" / f"{name}.png")
        # as in the data set, a camera may be a millisecond beside its picture
        camera = f"{video}_{time + 0.001 * (k % 2):.3f}.pincam"
        (frames / "lowres_wide_intrinsics" / camera).write_text(f"{SIZE[1]} {SIZE[0]} {60 + k} {60 + k} {INTRINSIC[0, 2]} {INTRINSIC[1, 2]}\n")
    (frames / "lowres_wide.traj").write_text("\n".join(lines) + "\n")


def write_arkitscenes(root: Path, videos=("41048190", "41048191", "41069021")) -> Path:
    """Two videos of one visit and one of another; returns `root`."""
    rows = [f"{video},{visit},{fold}" for video, (visit, fold) in VIDEOS.items()]
    root.mkdir(parents=True, exist_ok=True)
    (root / "3dod_train_val_splits.csv").write_text("\n".join(["video_id,visit_id,fold", *rows]) + "\n")
    for k, video in enumerate(videos):
        write_arkit_video(root / "3dod" / VIDEOS[video][1] / video, 25.0 + 10 * k)
    return root


# MultiScan

SCANS = ("scene_00000_00", "scene_00000_01", "scene_00002_00")
# published with the data set's example, scene_00021_00.align.json: the mesh has z up, ARKit's cameras y
ALIGN = [-0.1003847479784171, -2.2092298953272443e-16, -0.9949486933371537, 0.0, -0.9949486933371539, 2.228989170536646e-17, 0.1003847479784171, 0.0,
         0.0, 1.0, -2.220446049250313e-16, 0.0, 4.310161355360575, 0.01644575595855688, -3.6318566108995913, 1.0]  # fmt: skip
NAMES = {1: "wall.1", 2: "wall.2", 8: "floor.1", 9: "ceiling.1", 3: "chair.1", 4: "wall_cabinet.2", 6: "trash_can.1", 12: "remove.1"}
JUNK = ((5.0, 5.0, 0.0), (5.5, 5.5, 0.5))


def write_multiscan_scan(folder: Path, stride: int = 10) -> None:
    """A scan whose sequence/ has every `stride`-th frame of a video of 40."""
    scan, (coord, faces, ids) = folder.name, room({**BOXES, 12: JUNK})
    write_mesh_ply(folder / f"{scan}.ply", coord, faces, color_at(coord), objectId=ids[faces[:, 0]], partId=np.ones(len(faces), int))
    objects = [{"objectId": k, "label": label, "partIds": [1], "mobilityType": "fixed"} for k, label in NAMES.items()]
    objects[5]["obb"] = {**obb(*BOXES[4]), "min": [0, 0, 0], "max": [1, 1, 1], "front": [0, 1, 0], "up": [0, 0, 1]}
    write_json(folder / f"{scan}.annotations.json", {"version": "multiscan@0.0.1", "scanId": scan, "objects": objects})
    streams = [{"type": "color_camera", "resolution": [SIZE[0] * 2, SIZE[1] * 2]}, {"type": "lidar_sensor", "resolution": [12, 16]}]
    write_json(folder / f"{scan}.json", {"scene": {"type": "Kitchen", "description": ""}, "streams": streams})
    write_json(folder / f"{scan}.align.json", {"version": "multiscan@0.0.1", "coordinate_transform": ALIGN})
    to_cameras, lines = np.array(ALIGN).reshape(4, 4).T, []
    for k in range(40):
        pose = to_cameras @ VIEWS[k // 10] @ np.diag([1, -1, -1, 1])
        lines.append(json.dumps({"timestamp": k, "transform": column_major(pose), "intrinsics": column_major(np.diag([2, 2, 1]) @ INTRINSIC)}))
    (folder / f"{scan}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "sequence").mkdir()
    for k in range(0, 40, stride):
        _, color, _ = picture(VIEWS[k // 10], np.diag([2, 2, 1]) @ INTRINSIC, (SIZE[0] * 2, SIZE[1] * 2))
        Image.fromarray(color).save(folder / "sequence" / f"{k // stride:06d}.jpg", quality=95)


def write_multiscan(root: Path, scans=SCANS) -> Path:
    """Two scans of one place and one of another; returns `root`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "scans_split.csv").write_text("scanId,split\nscene_00000_00,train\nscene_00000_01,train\nscene_00002_00,val\nscene_00003_00,\n")
    for scan in scans:
        write_multiscan_scan(root / scan)
    return root

"""Generated rooms: the same for the same seed, sound in their geometry, and not to be solved by colour alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from pointcept3m.datasets.rooms import NYU40_TO_ROOMS, ROOMS_CLASSES, generate_room, write_rooms
from pointcept3m.datasets.rooms import cast as cast_module
from pointcept3m.datasets.rooms.camera import EYE_HEIGHT
from pointcept3m.datasets.rooms.cast import RayCaster, Surface
from pointcept3m.datasets.rooms.categories import CATEGORIES, object_labels
from pointcept3m.datasets.rooms.layout import SHELL
from pointcept3m.datasets.rooms.render import sense_depth
from pointcept3m.datasets.scannet_labels import SCANNET20_NAMES, SCANNET200_NAMES

SIZE = (60, 80)
FRAMES = 10
FURNITURE = [name for name in ROOMS_CLASSES if name not in ("wall", "floor")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms")
    write_rooms(root, "train", 2, first_seed=7, num_frames=FRAMES, size=SIZE, workers=0, spacing=0.035)
    return root


def load_frames(scene: Path):
    """(depth metres [M, H, W], label [M, H, W], pose [M, 4, 4], intrinsic [3, 3]) read by other means than the package's."""
    names = sorted(path.stem for path in (scene / "depth").iterdir())
    depth = np.stack([np.asarray(Image.open(scene / f"depth/{n}.png")) / 1000 for n in names])
    label = np.stack([np.asarray(Image.open(scene / f"label/{n}.png")) for n in names])
    pose = np.stack([np.loadtxt(scene / f"pose/{n}.txt") for n in names])
    return depth, label, pose, np.loadtxt(scene / "intrinsic/intrinsic_depth.txt")[:3, :3]


def back_project(depth, pose, intrinsic):
    """World points of the valid pixels of one frame, and the mask of these pixels."""
    rows, cols = np.nonzero(depth)
    z = depth[rows, cols]
    rays = np.linalg.inv(intrinsic) @ np.stack([cols + 0.5, rows + 0.5, np.ones(len(rows))])
    return (rays * z).T @ pose[:3, :3].T + pose[:3, 3], (rows, cols)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_same_seed_same_bytes_whatever_the_workers(root, tmp_path, workers):
    write_rooms(tmp_path, "train", 2, first_seed=7, num_frames=FRAMES, size=SIZE, workers=workers, spacing=0.035)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for file in files:
        assert (root / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_layout_on_disk(root):
    scene = root / "train" / "room000007"
    arrays = {path.stem: np.load(path, allow_pickle=False) for path in scene.glob("*.npy")}
    number = len(arrays["coord"])
    kinds = {"coord": ("float32", 3), "normal": ("float32", 3), "color": ("uint8", 3)}
    for name, array in arrays.items():
        kind, columns = kinds.get(name, ("int32" if name == "instance" else "int64", 0))
        assert array.dtype == kind and array.shape == ((number, columns) if columns else (number,)), name
    np.testing.assert_allclose(np.linalg.norm(arrays["normal"], axis=1), 1, atol=1e-5)
    names20 = np.array([*SCANNET20_NAMES, "none"])[arrays["segment20"]]
    names = np.array([*ROOMS_CLASSES, "none"])[arrays["segment"]]
    assert (names == names20).all()
    assert (arrays["segment200"] >= 0).mean() > 0.95  # nearly all raw categories are among ScanNet's 200
    counts = {name: len(list((scene / name).iterdir())) for name in ("color", "depth", "pose", "label", "intrinsic")}
    assert counts == {"color": FRAMES, "depth": FRAMES, "pose": FRAMES, "label": FRAMES, "intrinsic": 2}


def test_back_projected_depth_lies_on_the_cloud_and_has_its_labels(root):
    for scene in sorted((root / "train").iterdir()):
        tree = cKDTree(np.load(scene / "coord.npy"))
        segment = np.load(scene / "segment.npy")
        depth, label, pose, intrinsic = load_frames(scene)
        for k in range(FRAMES):
            point, pixel = back_project(depth[k], pose[k], intrinsic)
            distance, nearest = tree.query(point)
            assert np.median(distance) < 0.03
            same = segment[nearest] == NYU40_TO_ROOMS[label[k][pixel]]
            assert same[distance < 0.05].mean() > 0.85


def test_poses_are_rigid_and_stand_clear_of_furniture(root):
    for seed, scene in zip((7, 8), sorted((root / "train").iterdir()), strict=True):
        room = generate_room(seed, "train")
        _, _, pose, _ = load_frames(scene)
        np.testing.assert_allclose(pose[:, :3, :3] @ pose[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (FRAMES, 1, 1)), atol=1e-6)
        assert np.allclose(np.linalg.det(pose[:, :3, :3]), 1)
        eye = pose[:, :3, 3]
        assert (eye[:, 2] >= EYE_HEIGHT[0]).all() and (eye[:, 2] <= EYE_HEIGHT[1]).all()
        assert room.contains(eye[:, :2], 0.3).all()
        for thing in room.objects:
            if thing.category not in SHELL:
                low, high = thing.box
                gap = np.maximum(np.maximum(low - eye, eye - high), 0)
                assert np.linalg.norm(gap, axis=1).min() > 0.1, thing.category
        assert (pose[:, 2, 1] < -0.5).all()  # the camera's y axis points down


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_nothing_enters_anything(split):
    for seed in range(15):
        room = generate_room(seed, split)
        things = [thing for thing in room.objects if thing.category not in SHELL]
        for k, a in enumerate(things):
            assert a.vertices[:, 2].min() > -1e-6 and a.vertices[:, 2].max() < room.height
            assert room.contains(a.vertices[:, :2] * 0.999999 + room.outline.mean(axis=0) * 1e-6).mean() > 0.99, (seed, a.category)
            np.testing.assert_allclose(a.box, [a.parts[:, 0].min(axis=0), a.parts[:, 1].max(axis=0)], atol=0.12)
            for b in things[k + 1 :]:
                for low, high in a.parts:
                    depth = np.minimum(high, b.parts[:, 1]) - np.maximum(low, b.parts[:, 0])
                    assert depth.min(axis=1).max() < 0.003, (seed, a.category, b.category)


def test_rooms_vary_in_size_and_hold_what_rooms_hold():
    areas, per_room, instances = [], [], Counter()
    for seed in range(40):
        room = generate_room(seed, "train")
        names = [ROOMS_CLASSES[s] for s in object_labels(room)["segment"] if s >= 0]
        areas.append(room.area)
        per_room.append(set(names))
        instances.update(names)
    assert min(areas) < 9 and max(areas) > 35
    assert np.mean([len(names) for names in per_room]) > 9
    frequency = Counter(name for names in per_room for name in names)
    assert set(frequency) == set(ROOMS_CLASSES)
    assert min(frequency.values()) >= 2
    assert instances["chair"] > 1.5 * frequency["chair"]  # several of a kind in one room


def test_walls_and_floor_do_not_swamp_the_points(root):
    share = []
    for scene in (root / "train").iterdir():
        names = np.array([*ROOMS_CLASSES, "none"])[np.load(scene / "segment.npy")]
        share.append(np.isin(names, FURNITURE).mean())
    assert np.mean(share) > 0.2


def describe_colors(split: str, seeds: range):
    """(mean colour, class) of each piece of furniture, from its materials weighted by area."""
    features, classes = [], []
    for seed in seeds:
        room = generate_room(seed, split)
        for thing, label in zip(room.objects, object_labels(room)["segment"], strict=True):
            if label >= 0 and thing.category not in SHELL:
                corner = thing.vertices[thing.faces]
                area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
                color = np.array([room.materials[m].color_a for m in thing.face_material])
                features.append((color * area[:, None]).sum(axis=0) / area.sum())
                classes.append(label)
    return np.array(features), np.array(classes)


def test_colour_alone_does_not_tell_the_class():
    features, classes = describe_colors("train", range(30))
    tests, truth = describe_colors("val", range(15))
    _, nearest = cKDTree(features).query(tests, k=5)
    votes = np.array([np.bincount(row).argmax() for row in classes[nearest]])
    windows = ROOMS_CLASSES.index("window")  # glass looks like glass
    recall = [np.mean(votes[truth == c] == c) for c in np.unique(truth) if c != windows]
    assert np.mean(recall) < 0.25


def test_splits_differ():
    outlines = [generate_room(3, split) for split in ("train", "val", "test")]
    assert len({tuple(room.outline.ravel()) for room in outlines}) == 3

    def hue_share(split):
        colors = np.concatenate([[m.color_a for m in generate_room(seed, split).materials] for seed in range(10)])
        return (colors[:, 0] > colors[:, 2]).mean()  # redder than blue

    assert hue_share("train") > hue_share("val") + 0.1


def test_depth_noise_grows_and_grazing_rays_are_lost():
    rng = np.random.default_rng(0)
    spread = []
    for z in (1.0, 2.0, 4.0):
        seen = sense_depth(np.full((200, 200), z, np.float32), np.ones((200, 200), np.float32), rng)
        assert (seen == 0).mean() < 0.01
        spread.append(seen[seen > 0].std())
        assert abs(seen[seen > 0].mean() - 1000 * z) < 1
    assert spread[2] > 3 * spread[1] > 4 * spread[0]
    graze = sense_depth(np.full((200, 200), 2.0, np.float32), np.full((200, 200), 0.02, np.float32), rng)
    assert (graze == 0).mean() > 0.6
    far = sense_depth(np.full((20, 20), 9.0, np.float32), np.ones((20, 20), np.float32), rng)
    assert (far == 0).all()


def test_tracing_without_embree_says_so_and_agrees(monkeypatch):
    surface = Surface.of(generate_room(1))
    rng = np.random.default_rng(0)
    origin = np.tile(np.float32([1.3, 1.2, 1.5]), (300, 1))
    direction = rng.normal(size=(300, 3)).astype(np.float32)
    fast = RayCaster(surface)
    monkeypatch.setattr(cast_module, "_embree", lambda surface: None)
    with pytest.warns(UserWarning, match="embreex is not installed"):
        slow = RayCaster(surface)
    assert slow.backend == "brute force"
    target = origin + direction
    face, distance = slow.hit(origin, direction)
    assert (face >= 0).all()
    if fast.backend == "embree":
        assert (fast.hit(origin, direction)[0] == face).mean() > 0.99
        assert (fast.blocked(origin, target) == slow.blocked(origin, target)).mean() > 0.99
    # a hit is on its triangle's plane, and nothing blocks the way to just before it
    from_corner = origin + direction * distance[:, None] - surface.face_point[face]
    np.testing.assert_allclose(np.einsum("ni,ni->n", from_corner, surface.face_normal[face]), 0, atol=1e-4)
    assert not slow.blocked(origin, origin + 0.98 * direction * distance[:, None]).any()


def test_a_room_that_is_there_is_kept_and_other_settings_write_it_anew(tmp_path):
    arguments = dict(first_seed=1, num_frames=2, size=(24, 32), workers=0, spacing=0.08)
    calls = []
    (path,) = write_rooms(tmp_path, "val", 1, progress=lambda *numbers: calls.append(numbers), **arguments)
    before = (path / "coord.npy").stat().st_mtime_ns
    write_rooms(tmp_path, "val", 1, **arguments)
    assert (path / "coord.npy").stat().st_mtime_ns == before
    write_rooms(tmp_path, "val", 1, **{**arguments, "num_frames": 3})
    assert len(list((path / "depth").iterdir())) == 3
    assert calls == [(1, 1)]
    assert [p.name for p in (tmp_path / "val").iterdir()] == ["room000001"]


def test_categories_are_scannets_own(real_data):
    table = real_data("metadata/scannet/meta_data/scannetv2-labels.combined.tsv").read_text().splitlines()
    rows = {row.split("\t")[1]: row.split("\t") for row in table[1:] if row.strip()}
    for name, (number, nyu40) in CATEGORIES.items():
        assert (int(rows[name][0]), int(rows[name][4])) == (number, nyu40), name
    assert len(SCANNET200_NAMES) == len(set(SCANNET200_NAMES)) == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(seed=0, split="trian"), "split 'trian' is unknown; did you mean 'train'"),
        (dict(seed=-1), "seed must be at least 0, got -1"),
        (dict(seed=0, size=(1.0, 3.0)), "size must be two lengths of 2 to 20 m"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_room(**arguments)

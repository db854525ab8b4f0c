"""Rooms with objects, CAD models, masks, floorplans and referrals, and the same places scanned again."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from pointcept3m.datasets.rooms import generate_room, write_rooms
from pointcept3m.datasets.rooms.layout import ROOM_KINDS, SHELL
from pointcept3m.datasets.rooms.modalities import WITHOUT_CAD, draw_kind, plan_of, room_objects
from pointcept3m.datasets.rooms.rescan import FIXED, rescan
from pointcept3m.structures.scene_objects import read_cad, read_facts, read_floorplan, read_mask, read_objects

SMALL = dict(num_frames=6, size=(48, 64), workers=0, spacing=0.05, modalities=True)
STILL = np.eye(4)


def kind_of_room(seed, split="train"):
    return generate_room(seed, split, category=draw_kind(seed, split))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A place's first scan and its rescan, as folders."""
    return write_rooms(tmp_path_factory.mktemp("rooms"), "train", 1, first_seed=3, rescans=1, **SMALL)


def test_same_seed_same_bytes_and_a_scan_that_is_there_is_kept(scans, tmp_path):
    again = write_rooms(tmp_path, "train", 1, first_seed=3, rescans=1, **SMALL)
    for one, two in zip(scans, again, strict=True):
        files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
        assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    assert {"objects.json", "scene.json", "floorplan.png", "floorplan.json", "cad", "mask"} <= {path.name for path in scans[0].iterdir()}
    before = (scans[0] / "objects.json").stat().st_mtime_ns
    write_rooms(scans[0].parents[1], "train", 1, first_seed=3, rescans=1, **SMALL)
    assert (scans[0] / "objects.json").stat().st_mtime_ns == before


def test_objects_are_those_of_the_cloud_in_boxes_about_their_points(scans):
    for path in scans:
        coord, instance = np.load(path / "coord.npy"), np.load(path / "instance.npy")
        objects = {thing.id: thing for thing in read_objects(path)}
        assert not set(SHELL) & {thing.label for thing in objects.values()}
        seen = 0
        for number, thing in objects.items():
            cos, sin = np.cos(thing.heading), np.sin(thing.heading)
            local = (coord[instance == number] - thing.center) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
            assert (np.abs(local) <= np.array(thing.size) / 2 + 0.03).all(), thing.label
            seen += len(local) > 0
        assert seen > 0.7 * len(objects)
        others = np.isin(instance, [*objects], invert=True)
        assert 0.3 < others.mean() < 0.95  # walls, floor and ceiling have points and are no objects


def test_masks_show_the_objects_where_the_points_are(scans):
    for path in scans:
        tree, instance = cKDTree(np.load(path / "coord.npy")), np.load(path / "instance.npy")
        ids = {thing.id for thing in read_objects(path)}
        intrinsic = np.loadtxt(path / "intrinsic/intrinsic_depth.txt")[:3, :3]
        agree = []
        for frame in sorted(file.stem for file in (path / "mask").iterdir()):
            depth, pose, mask = np.asarray(Image.open(path / f"depth/{frame}.png")) / 1000, np.loadtxt(path / f"pose/{frame}.txt"), read_mask(path, frame)
            assert mask.shape == depth.shape and set(np.unique(mask)) <= ids | {-1}
            rows, cols = np.nonzero(depth)
            rays = np.linalg.inv(intrinsic) @ np.stack([cols + 0.5, rows + 0.5, np.ones(len(rows))])
            point = (rays * depth[rows, cols]).T @ pose[:3, :3].T + pose[:3, 3]
            distance, nearest = tree.query(point)
            owner = np.where(np.isin(instance[nearest], [*ids]), instance[nearest], -1)
            agree.append((owner == mask[rows, cols])[distance < 0.05])
        assert np.concatenate(agree).mean() > 0.85


def test_floorplans_show_walls_and_things_where_they_are():
    for seed, motion in ((5, STILL), (8, np.array([[0, -1, 0, 3], [1, 0, 0, -2], [0, 0, 1, 0], [0, 0, 0, 1.0]]))):
        room = kind_of_room(seed)
        plan = plan_of(room, motion)
        grey = plan.image.mean(axis=2)

        def at(points, plan=plan, motion=motion, grey=grey):
            column, row = np.floor(plan.pixel(points @ motion[:2, :2].T + motion[:2, 3])).astype(int).T
            return grey[row, column]

        for a, b in zip(room.outline, np.roll(room.outline, -1, axis=0), strict=True):
            along = (b - a) / np.linalg.norm(b - a)
            middle = a + np.linspace(0.1, 0.9, 60)[:, None] * (b - a) + 0.05 * np.array([along[1], -along[0]])  # in the wall
            assert (at(middle) < 70).mean() > 0.3  # doors and windows take the rest
        for thing in room.objects:
            if thing.category in ("bed", "couch", "table", "desk", "cabinet", "counter"):
                assert at(thing.box.mean(axis=0)[None, :2])[0] < 250, thing.category
        spots = np.random.default_rng(0).uniform(room.outline.min(axis=0), room.outline.max(axis=0), (2000, 2))
        free = room.contains(spots, 0.1)
        for thing in room.objects:
            if thing.category not in SHELL:
                reach = 1.2 if thing.category == "door" else 0.05
                low, high = thing.box[:, :2]
                free &= ~((spots > low - reach) & (spots < high + reach)).all(axis=1)
        assert (at(spots[free]) == 255).all()


def test_cad_models_are_near_to_what_stands_there_and_some_things_have_none():
    counts, ratios = Counter(), []
    for seed in range(12):
        room = kind_of_room(seed)
        objects, models = room_objects(room, STILL)
        assert {thing.cad for thing in objects} - {None} == set(models)
        for thing in objects:
            counts[thing.cad is not None] += thing.label not in WITHOUT_CAD
            assert not (thing.cad and thing.label in WITHOUT_CAD)
            if thing.cad:
                points = models[thing.cad] @ np.array(thing.cad_pose)[:3, :3].T + np.array(thing.cad_pose)[:3, 3]
                assert points.shape == (2048, 3)
                own = next(o for o in room.objects if o.id == thing.id)
                ratios.append(np.ptp(points, axis=0) / np.ptp(own.vertices, axis=0))
    assert 0.6 < counts[True] / counts.total() < 0.95
    ratios = np.array(ratios)
    assert 0.9 < np.median(ratios) < 1.1 and (np.abs(ratios - 1) > 0.02).mean() > 0.5 and ratios.min() > 0.15


def test_furniture_follows_the_kind_of_room_and_kinds_overlap():
    things = {}
    for kind in ROOM_KINDS:
        rooms = [generate_room(seed, category=kind) for seed in range(6)]
        things[kind] = Counter(name for room in rooms for name in {o.category for o in room.objects})
    assert all(things["bathroom"][name] >= 5 for name in ("toilet", "sink"))
    assert things["bedroom"]["bed"] >= 5 and things["kitchen"]["counter"] >= 5 and things["living room"]["couch"] >= 5
    assert not things["office"]["toilet"] and not things["bathroom"]["bed"]
    for kind in ROOM_KINDS:  # no kind is told by one word that no other has, but each shares furniture with others
        furniture = {name for name in things[kind] if name not in (*SHELL, "door", "window", "curtain", "picture", "radiator")}
        assert any(len(furniture & set(things[other])) >= 5 for other in ROOM_KINDS if other != kind)
    assert set(Counter(draw_kind(seed, "val") for seed in range(60))) == set(ROOM_KINDS)


def test_rescans_keep_ids_move_rigidly_and_enter_nothing():
    moved, gone, come = 0, 0, 0
    for seed in range(10):
        room = kind_of_room(seed)
        before = {o.id: o for o in room.objects}
        vertices = {i: o.vertices.copy() for i, o in before.items()}
        for number in (1, 2):
            new = rescan(room, number)
            after = {o.id: o for o in new.room.objects}
            for i in before.keys() & after.keys():
                a, b = before[i], after[i]
                assert a.category == b.category and np.array_equal(a.vertices, vertices[i])  # the first is left as it was
                local = [(o.vertices - o.translation) @ o.rotation for o in (a, b)]
                np.testing.assert_allclose(*local, atol=1e-9)
                assert np.allclose(a.vertices, b.vertices) == (i not in new.moved)
                assert i not in new.moved or a.category not in FIXED
            moved, gone, come = moved + len(new.moved), gone + len(before.keys() - after.keys()), come + len(after.keys() - before.keys())
            assert all(o.support < 0 or o.support in after for o in after.values())
            things = [o for o in after.values() if o.category not in SHELL]
            doors = [(o.box, o.box + 0.75 * o.rotation[:, 1]) for o in things if o.category == "door"]
            for i in new.moved:  # nothing was put where a door swings
                low, high = after[i].parts[:, 0], after[i].parts[:, 1]
                assert not any(((high > np.minimum(*swing)[0]) & (low < np.maximum(*swing)[1])).all(axis=1).any() for swing in doors)
            for k, a in enumerate(things):
                assert new.room.contains(a.vertices[:, :2] * 0.999 + room.outline.mean(axis=0) * 0.001).mean() > 0.99
                for b in things[k + 1 :]:
                    if {a.id, b.id} <= set(new.moved) and {a.support, b.support} != {-1}:
                        continue  # they may have been turned together: the boxes about turned boxes meet where the things do not
                    depth = np.minimum(a.parts[:, None, 1], b.parts[None, :, 1]) - np.maximum(a.parts[:, None, 0], b.parts[None, :, 0])
                    assert depth.min(axis=2).max() < 0.003, (seed, a.category, b.category)
    assert moved > 20 and gone > 5 and come > 5
    one, two = rescan(kind_of_room(1), 1), rescan(kind_of_room(1), 2)
    brought = [{o.id for o in new.room.objects} - {o.id for o in kind_of_room(1).objects} for new in (one, two)]
    assert not brought[0] & brought[1]


def test_a_rescan_is_the_same_place_in_axes_of_its_own(scans):
    first, second = scans
    facts = read_facts(second)
    assert read_facts(first).reference is None and facts.reference == first.name and facts.place == read_facts(first).place
    assert facts.category == read_facts(first).category == draw_kind(3, "train") and facts.dataset == "rooms"
    motion = np.array(facts.to_reference)
    assert np.abs(motion - np.eye(4)).max() > 0.1
    np.testing.assert_allclose(motion[:3, :3] @ motion[:3, :3].T, np.eye(3), atol=1e-9)
    one, two = ({thing.id: thing for thing in read_objects(path)} for path in scans)
    still = 0
    for i in one.keys() & two.keys():
        there = motion[:3, :3] @ two[i].center + motion[:3, 3]
        assert (np.linalg.norm(there - one[i].center) < 1e-6 and i not in facts.moved) or i in facts.moved
        assert one[i].cad == two[i].cad and np.allclose(one[i].size, two[i].size)
        still += i not in facts.moved
    assert still >= 3
    coord, instance = np.load(second / "coord.npy"), np.load(second / "instance.npy")
    walls = coord[np.isin(instance, [*two], invert=True)] @ motion[:3, :3].T + motion[:3, 3]
    distance, _ = cKDTree(np.load(first / "coord.npy")).query(walls)
    assert np.median(distance) < 0.05
    for path in scans:
        for thing in read_objects(path):
            assert thing.cad is None or len(read_cad(path, thing.cad)) == 2048
        plan, floor = read_floorplan(path), np.load(path / "coord.npy")[:, :2]
        pixel = plan.pixel(floor)
        assert (pixel > 0).all() and (pixel < [plan.image.shape[1], plan.image.shape[0]]).all()
    assert not np.array_equal(Image.open(first / "color/0000.jpg"), Image.open(second / "color/0000.jpg"))


def test_scans_without_a_modality(tmp_path):
    few = SMALL | dict(num_frames=1, size=(24, 32), spacing=0.1)
    everything = {name: 1.0 for name in ("image", "point", "cad", "text", "floorplan")}
    (path,) = write_rooms(tmp_path, "val", 1, drop=everything, **few)
    files = {entry.name for entry in path.iterdir()}
    kept = [{"color", "mask"} <= files, "coord.npy" in files, "cad" in files, any(o.texts for o in read_objects(path)), "floorplan.png" in files]
    assert sum(kept) == 1 and read_facts(path).place == "room000000"
    assert not any(o.cad for o in read_objects(path)) or "cad" in files
    (path,) = write_rooms(tmp_path, "val", 1, drop={"floorplan": 1.0, "text": 0.0}, **few)
    assert read_floorplan(path) is None and (path / "cad").is_dir() and json.loads((path / "objects.json").read_text())["objects"]
    with pytest.raises(ValueError, match="no modality to drop is called 'flor'; did you mean"):
        write_rooms(tmp_path, "val", 1, drop={"flor": 0.1}, **few)
    with pytest.raises(ValueError, match="must be 0 to 1, got 2"):
        write_rooms(tmp_path, "val", 1, drop={"cad": 2}, **few)
    with pytest.raises(ValueError, match="needs modalities=True"):
        write_rooms(tmp_path, "val", 1, drop={"cad": 0.5}, **(few | dict(modalities=False)))


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="no kind of room is called 'kitchn'; did you mean 'kitchen'"):
        generate_room(0, category="kitchn")
    with pytest.raises(ValueError, match="rescans are numbered from 1, got 0"):
        rescan(kind_of_room(0), 0)
    with pytest.raises(ValueError, match="which needs modalities=True"):
        write_rooms(tmp_path, "train", 1, rescans=1)

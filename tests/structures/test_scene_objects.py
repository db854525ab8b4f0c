"""The files that say what a scene's objects are: they come back as written, and what is wrong is named."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from pointcept3m.structures.scene_objects import (
    Floorplan,
    SceneFacts,
    SceneObject,
    read_cad,
    read_facts,
    read_floorplan,
    read_mask,
    read_objects,
    write_cad,
    write_facts,
    write_floorplan,
    write_mask,
    write_objects,
)


def thing(**changes):
    entry = dict(id=3, label="chair", center=(1.0, 2.0, 0.5), size=(0.4, 0.5, 1.0), texts=["the chair by the window"])
    return SceneObject(**{**entry, **changes})


def test_objects_come_back_in_the_order_of_their_ids(tmp_path):
    pose = np.diag([2.0, 2.0, 2.0, 1.0]).tolist()
    written = [thing(id=7, cad="a_model", cad_pose=pose), thing(id=0, label="Stuhl ü", texts=[])]
    write_objects(tmp_path, written)
    assert read_objects(tmp_path) == written[::-1]
    assert read_objects(tmp_path / "nothing") is None


def test_the_box_is_that_of_the_turned_object():
    box = thing(center=(1.0, 2.0, 3.0), size=(2.0, 1.0, 0.5), heading=np.pi / 2).box
    assert np.allclose(box, [1, 2, 3, 1, 2, 0.5], atol=1e-6)
    turned = thing(center=(0, 0, 0), size=(2.0, 1.0, 0.5), heading=np.pi / 6)
    corners = np.array([[x, y] for x in (-1, 1) for y in (-0.5, 0.5)])
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    corners = corners @ np.array([[cos, sin], [-sin, cos]])
    assert np.allclose(turned.box[3:5], np.ptp(corners, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(id=-1), "id must be a whole number from 0, got -1"),
        (dict(id=True), "id must be a whole number"),
        (dict(label=" "), "label must be a name"),
        (dict(center=(0, 0)), "center must be three lengths"),
        (dict(center=(0, 0, float("nan"))), "center must be three lengths"),
        (dict(center=(0, 0, 1e6)), "center must be three lengths"),
        (dict(size=(1, 0, 1)), "size must be positive"),
        (dict(heading=float("inf")), "heading must be an angle"),
        (dict(cad="../../etc"), "cad must be the name of a file"),
        (dict(cad_pose=[[1, 2], [3, 4]]), "cad_pose must be a 4x4 matrix"),
        (dict(texts=["good", " "]), "texts must be a list of sentences"),
        (dict(texts="a sentence"), "texts must be a list of sentences"),
    ],
)
def test_a_wrong_object_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"objects.json: object 0.*{re.escape(message)}"):
        write_objects(tmp_path, [thing(**changes)])
    assert not (tmp_path / "objects.json").exists()


def test_a_wrong_file_is_named(tmp_path):
    path = tmp_path / "objects.json"
    for content, message in (
        ("{", "not JSON"),
        ("[]", "wanted"),
        ('{"objects": [1]}', "wanted an entry with id"),
        ('{"objects": [{"id": 1}]}', "label, center, size is missing"),
        ('{"objects": [{"id": 1, "lable": "x"}]}', "'lable' is unknown; did you mean 'label'"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_objects(tmp_path)
    write_objects(tmp_path, [thing()])
    content = json.loads(path.read_text())
    content["objects"] *= 2
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="object 1: id 3 stands there twice"):
        read_objects(tmp_path)


def test_facts_come_back_and_a_scene_without_is_a_place_of_its_own(tmp_path):
    motion = np.eye(4)
    motion[:2, 3] = 1, 2
    facts = SceneFacts("place", "kitchen", "scan0", motion.tolist(), [1, 5], "rooms")
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path) == facts
    (tmp_path / "room3").mkdir()
    assert read_facts(tmp_path / "room3") == SceneFacts("room3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(place=""), "place must be a name"),
        (dict(category=None), "category must be a name"),
        (dict(reference=""), "reference must be the name of a scene"),
        (dict(to_reference=np.diag([2.0, 1, 1, 1]).tolist()), "to_reference: wanted a camera->world rotation"),
        (dict(same_ids=1), "same_ids must be true or false"),
        (dict(moved=[-1]), "moved must be a list of object ids"),
    ],
)
def test_wrong_facts_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"scene.json.*{re.escape(message)}"):
        write_facts(tmp_path, SceneFacts(**{"place": "p", **changes}))


def test_cad_points(tmp_path):
    points = np.random.default_rng(0).random((20, 3))
    write_cad(tmp_path, "sofa.1", points)
    assert np.array_equal(read_cad(tmp_path, "sofa.1"), points.astype(np.float32))
    with pytest.raises(FileNotFoundError, match=r"objects.json names this CAD model.*sofa"):
        read_cad(tmp_path, "sofa.2")
    with pytest.raises(ValueError, match="1 of 4 points are not finite"):
        write_cad(tmp_path, "bad", np.array([[np.nan, 0, 0], *[[0, 0, 0]] * 3]))
    with pytest.raises(ValueError, match=r"wanted points on a surface, floats \[S, 3\]"):
        write_cad(tmp_path, "none", np.zeros((0, 3)))


def test_floorplan(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    write_floorplan(tmp_path, Floorplan(image, 0.5, left=-1.0, top=2.0))
    plan = read_floorplan(tmp_path)
    assert np.array_equal(plan.image, image)
    # the upper left corner, and one metre right and down of it
    assert np.allclose(plan.pixel(np.array([[-1.0, 2.0], [0.0, 1.0]])), [[0, 0], [2, 2]])
    (tmp_path / "floorplan.json").unlink()
    with pytest.raises(ValueError, match="no scale"):
        read_floorplan(tmp_path).pixel(np.zeros((1, 2)))
    (tmp_path / "floorplan.json").write_text('{"metres_per_pixel": 0, "left": 0, "top": 0}')
    with pytest.raises(ValueError, match=r"floorplan.json: wanted metres_per_pixel > 0"):
        read_floorplan(tmp_path)
    (tmp_path / "floorplan.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"floorplan.png: not a readable"):
        read_floorplan(tmp_path)
    assert read_floorplan(tmp_path / "nothing") is None


def test_masks(tmp_path):
    ids = np.array([[-1, 0, 700], [5, -1, 65534]])
    write_mask(tmp_path, "0007", ids)
    assert np.array_equal(read_mask(tmp_path, "0007"), ids)
    with pytest.raises(FileNotFoundError, match=r"no mask of this frame.*0007"):
        read_mask(tmp_path, "0008")
    with pytest.raises(ValueError, match="wanted object ids"):
        write_mask(tmp_path, "0009", ids + 1)
    Image.new("RGB", (3, 2)).save(tmp_path / "mask" / "rgb.png")
    with pytest.raises(ValueError, match="16-bit picture of object ids"):
        read_mask(tmp_path, "rgb")

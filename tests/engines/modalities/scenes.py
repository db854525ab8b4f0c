"""A small scene folder with every modality, made of flat coloured pictures: what is in it is known by hand."""

import numpy as np
from PIL import Image

from pointcept3m.structures.scene_objects import (
    Floorplan,
    SceneFacts,
    SceneObject,
    write_cad,
    write_facts,
    write_floorplan,
    write_mask,
    write_objects,
)

SIZE = (60, 80)
RECIPE = dict(
    name="tiny", image=dict(type="PocketTeacher", name="geometric", image_size=None), shape=dict(type="PocketShape"),
    text=dict(type="ReferralEncoder"), frame_size=40, crop_size=32,
)  # fmt: skip


def make_scene(folder, num_frames=5, seed=0, words=("chair", "desk", "lamp"), extent=1.0):
    """Three objects: 2 in every frame, larger in later ones; 5 in frames 0 and 1; 9 has too few points, no mask, no CAD, no text."""
    rng = np.random.default_rng(seed)
    for kind in ("color", "pose"):
        (folder / kind).mkdir(parents=True)
    for i in range(num_frames):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / "color" / f"{i}.png")
        pose = np.eye(4)
        pose[0, 3] = i
        np.savetxt(folder / "pose" / f"{i}.txt", pose)
        mask = np.full(SIZE, -1)
        mask[10 : 20 + 2 * i, 30:50] = 2
        if i < 2:
            mask[40:45, 2:10] = 5
        mask[55:, 70:] = 77  # the floor, which is no object
        write_mask(folder, str(i), mask)
    np.save(folder / "coord.npy", (rng.normal(size=(400, 3)) * [extent, 1, 1]).astype(np.float32))
    np.save(folder / "instance.npy", np.repeat([2, 5, 9, -1], [200, 60, 40, 100]).astype(np.int32))
    for name in ("seat", "box"):
        write_cad(folder, name, rng.normal(size=(300, 3)) * [1, 2, 3])
    chair, desk, lamp = words
    write_objects(folder, [
        SceneObject(5, chair, (0, 0, 0), (1, 1, 1), cad="seat", texts=[f"the {chair} left of the {desk}"]),
        SceneObject(2, desk, (1, 0, 0), (2, 1, 1), cad="box", texts=[f"the {desk} right of the {chair}", f"the large {desk}"]),
        SceneObject(9, lamp, (2, 0, 0), (0.1, 0.1, 0.3)),
    ])  # fmt: skip
    write_facts(folder, SceneFacts(place="here", category="office", moved=[5], dataset="made"))
    write_floorplan(folder, Floorplan(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8), 0.02))
    return folder

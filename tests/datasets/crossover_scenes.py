"""Scene folders with the features of their modalities, made up: what tests of CrossOver's data, metrics and runs start from.

Every object has a hidden vector, every modality is a fixed linear map of it with noise, and a scene's tokens are maps of the mean
of its objects: so there is something to learn, and it is known what.
"""

import numpy as np

from pointcept3m.structures.modality_features import ModalityFeatures, modality_path, write_modalities

WIDTHS = dict(image=24, point=16, cad=16, text=12)
LABELS = ("chair", "lamp", "sofa", "table")
ENCODERS = {name: f"made-up {name}" for name in ("image", "point", "cad", "text", "floorplan")}


def maps(seed=0):
    """modality -> [H, D], the same for every scene."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(8, width)) for name, width in WIDTHS.items()}


def features(name, split="train", objects=5, lacks=(), seed=None, encoders=None, views=4, texts=3, **facts):
    """ModalityFeatures of a scene; `lacks` names modalities that it does not have."""
    rng = np.random.default_rng(abs(hash_of(name)) if seed is None else seed)
    hidden, table = rng.normal(size=(objects, 8)), maps()
    ids = np.sort(rng.choice(3 * objects, objects, replace=False)) if objects else np.zeros(0, np.int64)
    vectors, known = {}, {}
    for modality, matrix in table.items():
        if modality in lacks:
            continue
        mask = rng.random(objects) < 0.9
        if modality == "image":
            mask[:] = True
        rows = (hidden @ matrix + 0.1 * rng.normal(size=(objects, matrix.shape[1]))).astype(np.float32)
        vectors[modality], known[modality] = np.where(mask[:, None], rows, 0).astype(np.float32), mask
    mean = hidden.mean(axis=0) if objects else np.zeros(8)
    tokens = {}
    for modality, rows, source in (("image", views, "image"), ("floorplan", 1, "image"), ("text", texts, "text")):
        if modality not in lacks:
            width = 2 * WIDTHS["image"] if modality != "text" else WIDTHS["text"]
            matrix = np.concatenate([table[source]] * 2, axis=1)[:, :width]
            tokens[modality] = (mean @ matrix + 0.05 * rng.normal(size=(rows, width))).astype(np.float32)
    box = np.concatenate([rng.normal(size=(objects, 3)), 0.2 + rng.random((objects, 3))], axis=1).astype(np.float32)
    return ModalityFeatures(
        scene=name, split=split, object_id=ids, labels=[LABELS[i % 4] for i in range(objects)], object_box=box, objects=vectors, known=known, tokens=tokens,
        encoders=encoders or ENCODERS, dataset="made-up", **{"place": name, "category": "kitchen", **facts},
    )  # fmt: skip


def hash_of(name):
    """A number of a name, the same in every process."""
    return int.from_bytes(name.encode()[-6:], "little")


def write_scene(root, made, points=200, recipe="pocket", instance=True):
    """Writes a folder <root>/<split>/<scene> with points and features; its path."""
    folder = root / made.split / made.scene
    folder.mkdir(parents=True, exist_ok=True)
    if points:
        rng = np.random.default_rng(hash_of(made.scene))
        np.save(folder / "coord.npy", (rng.random((points, 3)) * [3, 3, 2]).astype(np.float32))
        np.save(folder / "color.npy", rng.integers(0, 256, (points, 3)).astype(np.uint8))
        if instance:
            ids = np.append(made.object_id, -1)
            np.save(folder / "instance.npy", ids[np.arange(points) % len(ids)].astype(np.int32))
    write_modalities(modality_path(folder, recipe), made)
    return folder


def write_set(root, train=6, val=4, **changes):
    """A data set of so many scenes, whose last val scene is a rescan of the first; its root."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            name = f"{split}{number:02d}"
            facts = dict(category=("kitchen", "office")[number % 2])
            if split == "val" and number == count - 1 and count > 1:
                first = features("val00", split)
                facts = dict(category="kitchen", place="val00", reference="val00", seed=hash_of("val00"), moved=first.object_id[:2].tolist(), same_ids=True)
            write_scene(root, features(name, split, **{**facts, **changes}))
    return root

"""Embeddings made up by hand or at random, for tests of retrieval."""

import numpy as np

from pointcept3m.structures.scene_embeddings import SceneEmbeddings


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embeddings(scenes, objects=(), **facts):
    """SceneEmbeddings of lists.

    scenes: modality -> a vector or None for each scene. objects: for each scene a list of (id, label, {modality: vector}).
    """
    count = len(next(iter(scenes.values())))
    objects = list(objects) or [[] for _ in range(count)]
    flat = [thing for each in objects for thing in each]

    def rows(values):
        width = len(next(value for value in values if value is not None))
        known = np.array([value is not None for value in values])
        return np.concatenate([unit([value]) if value is not None else np.zeros((1, width), np.float32) for value in values]), known

    scene_rows = {name: rows(values) for name, values in scenes.items()}
    names = sorted({name for _, _, vectors in flat for name in vectors})
    object_rows = {name: rows([vectors.get(name) for _, _, vectors in flat]) for name in names}
    moved = facts.pop("moved", [])  # (scene, id)
    owner = [scene for scene, each in enumerate(objects) for _ in each]
    given = dict(
        model="hand-made", names=[f"s{i}" for i in range(count)], splits=["val"] * count, datasets=["made-up"] * count,
        places=[f"s{i}" for i in range(count)], categories=[""] * count, references=[None] * count,
    )  # fmt: skip
    given |= facts
    given.setdefault("same_ids", [reference is not None for reference in given["references"]])
    return SceneEmbeddings(
        **given,
        scenes={name: values for name, (values, _) in scene_rows.items()}, scene_known={name: known for name, (_, known) in scene_rows.items()},
        object_offset=np.cumsum([len(each) for each in objects]), object_id=np.array([i for i, _, _ in flat], dtype=np.int64),
        labels=[label for _, label, _ in flat], object_box=np.zeros((len(flat), 6), np.float32),
        moved=np.array([(scene, thing[0]) in moved for scene, thing in zip(owner, flat, strict=True)], dtype=bool),
        objects={name: values for name, (values, _) in object_rows.items()}, object_known={name: known for name, (_, known) in object_rows.items()},
    )  # fmt: skip


def random_embeddings(seed=0, scenes=14, width=6, dataset="made-up"):
    """Random scenes with gaps in every modality, two categories, places of up to three scans, and objects that persist in rescans."""
    rng = np.random.default_rng(seed)

    def maybe(base, noise=1.0):
        return base + noise * rng.normal(size=width) if rng.random() < 0.8 else None

    names = [f"s{i}" for i in range(scenes)]
    places, references, things = [], [], []
    for i in range(scenes):
        again = i % 3 != 0 and i > 0
        first = i - i % 3
        places.append(f"p{first}" if again else f"p{i}")
        references.append(names[first] if again else None)
        if again:
            things.append([t for t in things[first] if rng.random() < 0.8])
        else:
            ids = rng.choice(40, rng.integers(0, 7), replace=False)
            things.append([(int(n), rng.choice(["chair", "table", "lamp"]), rng.normal(size=width)) for n in sorted(ids)])
    objects, moved = [], []
    for i, each in enumerate(things):
        row = []
        for number, label, base in each:
            vectors = {name: maybe(base, 0.7) for name in ("image", "point", "cad", "text")}
            row.append((number, str(label), {name: v for name, v in vectors.items() if v is not None}))
            if references[i] is not None and rng.random() < 0.4:
                moved.append((i, number))
        objects.append(row)
    bases = rng.normal(size=(scenes, width))
    vectors = {name: [maybe(base) for base in bases] for name in ("image", "point", "floorplan", "text")}
    categories = ["", *rng.choice(["kitchen", "office", "hall"], scenes - 1).tolist()]
    return embeddings(vectors, objects, names=names, places=places, references=references, categories=categories, moved=moved, datasets=[dataset] * scenes)

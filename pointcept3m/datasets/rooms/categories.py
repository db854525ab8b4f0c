"""What the things in rooms are called and which label each benchmark gives them."""

import numpy as np

from pointcept3m.datasets.rooms.layout import Room
from pointcept3m.datasets.scannet_labels import (
    IGNORE_INDEX,
    NYU40_TO_SCANNET20,
    SCANNET20_NAMES,
    SCANNET200_IDS,
    lookup_table,
)

# raw category: (its id, its NYU40 id), as in ScanNet's scannetv2-labels.combined.tsv
CATEGORIES = {
    "wall": (1, 1), "floor": (3, 2), "ceiling": (41, 22), "door": (5, 8), "window": (16, 9), "curtain": (21, 16),
    "picture": (15, 11), "radiator": (96, 39), "bed": (11, 4), "chair": (2, 5), "office chair": (10, 5), "armchair": (23, 5),
    "couch": (6, 6), "table": (4, 7), "coffee table": (24, 7), "desk": (9, 14), "cabinet": (7, 3), "kitchen cabinet": (29, 3),
    "nightstand": (34, 32), "tv stand": (51, 39), "counter": (35, 12), "refrigerator": (27, 24), "bookshelf": (18, 10),
    "toilet": (17, 33), "sink": (14, 34), "bathtub": (42, 36), "lamp": (28, 35), "trash can": (56, 39), "ottoman": (67, 39),
    "plant": (40, 40), "box": (26, 29), "monitor": (19, 40), "books": (22, 23), "vase": (194, 40), "microwave": (59, 40),
    "pillow": (13, 18),
}  # fmt: skip

_OCCURRING = {int(NYU40_TO_SCANNET20[nyu40]) for _, nyu40 in CATEGORIES.values()} - {IGNORE_INDEX}
ROOMS_CLASSES = tuple(name for index, name in enumerate(SCANNET20_NAMES) if index in _OCCURRING)
"""Names of the classes of `segment.npy`: the ScanNet20 classes that occur in rooms, in ScanNet20's order."""

SCANNET20_TO_ROOMS = np.array([ROOMS_CLASSES.index(name) if name in ROOMS_CLASSES else IGNORE_INDEX for name in SCANNET20_NAMES])
NYU40_TO_ROOMS = np.where(NYU40_TO_SCANNET20 < 0, IGNORE_INDEX, SCANNET20_TO_ROOMS[NYU40_TO_SCANNET20])
"""int64 [41]: class index in ROOMS_CLASSES of an NYU40 id (the value of a label image), -1 where it has none."""


def object_labels(room: Room) -> dict[str, np.ndarray]:
    """Labels of each object of a room, int64 [O] by name: nyu40 (1..40), segment (of ROOMS_CLASSES), segment20, segment200 (-1 none)."""
    ids = np.array([CATEGORIES[o.category] for o in room.objects], dtype=np.int64)
    segment20 = NYU40_TO_SCANNET20[ids[:, 1]]
    return {
        "nyu40": ids[:, 1],
        "segment": NYU40_TO_ROOMS[ids[:, 1]],
        "segment20": segment20,
        "segment200": lookup_table(SCANNET200_IDS, 1 + max(*SCANNET200_IDS, *ids[:, 0]))[ids[:, 0]],
    }

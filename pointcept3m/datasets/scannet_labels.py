"""ScanNet's label sets: names, ids and the maps between them. Facts of the data set, in its own spelling.

Three numberings are in use. A raw category ("office chair") has an id in the first column of
`scannetv2-labels.combined.tsv`; many raw categories share one of the 40 NYU classes; benchmarks keep 20 of the NYU
classes (ScanNet20) or 200 of the raw ids (ScanNet200). Class indices, 0-based and contiguous, count within a benchmark's
list; -1 means not labelled or not in the list. Label images hold NYU40 ids, 0 where there is no label.
"""

import numpy as np

from pointcept3m.structures.class_names import SCANNET20_NAMES, SCANNET200_NAMES

IGNORE_INDEX = -1

SCANNET20_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)

NYU40_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "blinds",
    "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books", "refrigerator",
    "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip

SCANNET200_IDS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24, 26, 27, 28, 29, 31, 32, 33, 34, 35,
    36, 38, 39, 40, 41, 42, 44, 45, 46, 47, 48, 49, 50, 51, 52, 54, 55, 56, 57, 58, 59, 62, 63, 64, 65, 66, 67, 68, 69,
    70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 82, 84, 86, 87, 88, 89, 90, 93, 95, 96, 97, 98, 99, 100, 101, 102, 103,
    104, 105, 106, 107, 110, 112, 115, 116, 118, 120, 121, 122, 125, 128, 130, 131, 132, 134, 136, 138, 139, 140, 141,
    145, 148, 154, 155, 156, 157, 159, 161, 163, 165, 166, 168, 169, 170, 177, 180, 185, 188, 191, 193, 195, 202, 208,
    213, 214, 221, 229, 230, 232, 233, 242, 250, 261, 264, 276, 283, 286, 300, 304, 312, 323, 325, 331, 342, 356, 370,
    392, 395, 399, 408, 417, 488, 540, 562, 570, 572, 581, 609, 748, 776, 1156, 1163, 1164, 1165, 1166, 1167, 1168,
    1169, 1170, 1171, 1172, 1173, 1174, 1175, 1176, 1178, 1179, 1180, 1181, 1182, 1183, 1184, 1185, 1186, 1187, 1188,
    1189, 1190, 1191,
)  # fmt: skip

# The names that configs import from Pointcept's scannet200_constants.
VALID_CLASS_IDS_20, CLASS_LABELS_20 = SCANNET20_IDS, SCANNET20_NAMES
VALID_CLASS_IDS_200, CLASS_LABELS_200 = SCANNET200_IDS, SCANNET200_NAMES

# The validation split of ScanNet v2, as the numbers XXXX of sceneXXXX_YY: all scans of one space are in one split.
# Spaces 0 to 706 outside this list are for training, 707 to 806 for testing.
SCANNET_VAL_SPACES = (
    11, 15, 19, 25, 30, 46, 50, 63, 64, 77, 81, 84, 86, 88, 95, 100, 131, 139, 144, 146, 149, 153, 164, 169, 187, 193,
    196, 203, 207, 208, 217, 221, 222, 231, 246, 249, 251, 256, 257, 277, 278, 300, 304, 307, 314, 316, 328, 329, 334,
    338, 342, 343, 351, 353, 354, 355, 356, 357, 377, 378, 382, 389, 406, 412, 414, 423, 426, 427, 430, 432, 435, 441,
    458, 461, 462, 474, 488, 490, 494, 496, 500, 518, 527, 535, 549, 550, 552, 553, 558, 559, 565, 568, 574, 575, 578,
    580, 583, 591, 593, 595, 598, 599, 606, 607, 608, 609, 616, 618, 621, 629, 633, 643, 644, 645, 647, 648, 651, 652,
    653, 655, 658, 660, 663, 664, 665, 670, 671, 678, 684, 685, 686, 689, 690, 693, 695, 696, 697, 699, 700, 701, 702,
    704,
)  # fmt: skip
SCANNET_LAST_TRAIN_SPACE = 706
SCANNET_LAST_SPACE = 806


def scannet_split(scene: str) -> str:
    """Official ScanNet v2 split, "train", "val" or "test", of a scene named like "scene0011_00".

    Raises: ValueError for a name of another form or a space number that ScanNet does not have.
    """
    digits = scene[5:9]
    if not (scene.startswith("scene") and digits.isdigit() and scene[9:10] == "_" and scene[10:].isdigit()):
        raise ValueError(f"wanted a ScanNet scene name such as 'scene0011_00', got {scene!r}")
    space = int(digits)
    if space > SCANNET_LAST_SPACE:
        raise ValueError(f"ScanNet v2 has spaces 0000 to {SCANNET_LAST_SPACE:04d}, got {scene!r}")
    if space > SCANNET_LAST_TRAIN_SPACE:
        return "test"
    return "val" if space in SCANNET_VAL_SPACES else "train"


def lookup_table(ids: tuple[int, ...], size: int | None = None) -> np.ndarray:
    """int64 [size] table from an id to its 0-based place in `ids`, -1 where the id is not among them."""
    table = np.full(max(ids) + 1 if size is None else size, IGNORE_INDEX, dtype=np.int64)
    table[list(ids)] = np.arange(len(ids))
    return table


NYU40_TO_SCANNET20 = lookup_table(SCANNET20_IDS, 41)
"""int64 [41]: class index in ScanNet20 of an NYU40 id (the value of a label image), -1 where it has none."""

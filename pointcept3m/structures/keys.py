"""The table of data keys: what each entry of a sample holds, and how it travels through sampling and batching.

Transforms, `Collect`, `collate_fn` and Mix3D look here; none of them keeps a list of keys of its own. A new
modality enters by one row (`register_key`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# per_point  one row for every point kept so far: sampling indexes it, collate concatenates it
# packed     rows of another cloud (the raw one, or objects): sampling leaves it, collate concatenates it
# index      rows number the points of the sample: like `packed`, and collate shifts it by the points before
# offset     ends of the scenes inside packed rows: collate adds them up, Mix3D merges pairs
# per_view   one entry for every camera: collate stacks scenes, and geometric transforms may have to update it
# per_scene  one value for the whole scene: collate lists or stacks it
KINDS = ("per_point", "packed", "index", "offset", "per_view", "per_scene")


@dataclass(frozen=True)
class Key:
    """One row of the table. `shape` uses N points, M views, O objects, B scenes, C channels, H W pixels; `dtype` is numpy's."""

    name: str
    shape: tuple[str | int, ...]
    dtype: str
    unit: str
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"key {self.name!r}: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")


KEYS: dict[str, Key] = {}


def register_key(name: str, shape: tuple[str | int, ...], dtype: str, unit: str, kind: str) -> Key:
    """Adds or replaces one row of the table and returns it."""
    KEYS[name] = Key(name, shape, dtype, unit, kind)
    return KEYS[name]


for _row in (
    ("coord", ("N", 3), "float32", "metres, z up", "per_point"),
    ("color", ("N", 3), "float32", "0..255 until NormalizeColor", "per_point"),
    ("normal", ("N", 3), "float32", "unit length", "per_point"),
    ("strength", ("N", 1), "float32", "sensor's own", "per_point"),
    ("superpoint", ("N",), "int64", "superpoint id", "per_point"),
    ("segment", ("N",), "int64", "class id, -1 unlabelled", "per_point"),
    ("instance", ("N",), "int64", "object id, -1 none", "per_point"),
    ("instance_centroid", ("N", 3), "float32", "metres", "per_point"),
    ("grid_coord", ("N", 3), "int64", "cells, minimum at 0", "per_point"),
    ("displacement", ("N", "C"), "float32", "cells, from the cell's centre", "per_point"),
    ("mask", ("N",), "bool", "true where hidden from the network", "per_point"),
    ("feat", ("N", "C"), "float32", "the keys named in feat_keys, side by side", "per_point"),
    # `index` numbers the points of one raw scene, whatever batch its fragment is in, so it is never shifted
    ("index", ("N",), "int64", "row of the raw scene", "per_point"),
    ("inverse", ("N_raw",), "int64", "row of the point kept in this cell", "index"),
    ("sampled_index", ("S",), "int64", "rows of the points that carry a label", "index"),
    ("feature_row", ("N",), "int64", "number of the point in its scene where cameras saw it, else -1", "per_point"),
    ("target_index", ("S",), "int64", "rows of the points that have a target", "index"),
    ("min_coord", (1, 3), "float32", "metres", "packed"),
    ("bbox", ("I", 8), "float32", "centre, size in metres, angle, class", "packed"),
    ("offset", ("B",), "int64", "ends of the scenes in the packed points", "offset"),
    ("rgb", ("M", "H", "W", 3), "float32", "0..1", "per_view"),
    ("depth", ("M", "H", "W"), "float32", "metres along the camera's z, 0 invalid", "per_view"),
    ("intrinsic", ("M", 3, 3), "float32", "pixels, centre of the first pixel at 0.5", "per_view"),
    ("extrinsic", ("M", 4, 4), "float32", "affine world -> camera, OpenCV axes", "per_view"),
    # a scene's objects and the frozen features of its modalities (CrossOver); zeros where `object_known` is false
    ("object_id", ("O",), "int64", "as in instance", "packed"),
    ("object_class", ("O",), "int64", "class id, -1 none", "packed"),
    ("object_box", ("O", 6), "float32", "centre and extent in metres", "packed"),
    ("cad_box", ("O", 6), "float32", "centre and extent in the CAD model's axes, metres", "packed"),
    ("object_image", ("O", "D"), "float32", "a frozen encoder's", "packed"),
    ("object_point", ("O", "D"), "float32", "a frozen encoder's", "packed"),
    ("object_cad", ("O", "D"), "float32", "a frozen encoder's", "packed"),
    ("object_text", ("O", "D"), "float32", "a frozen encoder's", "packed"),
    ("object_known", ("O", 4), "bool", "image, point, cad, text", "packed"),
    ("image_token", ("V", "2D"), "float32", "[CLS; mean of patches], a row a key frame", "packed"),
    ("floorplan_token", ("F", "2D"), "float32", "[CLS; mean of patches], none or one a scene", "packed"),
    ("text_token", ("T", "D"), "float32", "a row a referral", "packed"),
    ("name", (), "str", "scene", "per_scene"),
    ("place", (), "str", "scans of one place share it", "per_scene"),
    ("category", (), "str", "kind of room, empty where unknown", "per_scene"),
    ("split", (), "str", "", "per_scene"),
    ("condition", (), "str", "name of the data set", "per_scene"),
    ("view_name", ("M",), "str", "scene/frame", "per_scene"),
):
    register_key(*_row)

_PREFIX = re.compile(r"^(?:view\d+_|local_|global_|mask_)+")


def key_of(name: str) -> Key | None:
    """The row for `name`, or None. `origin_x` is a copy of x for the raw points; `view1_x` is x of that view."""
    if name in KEYS:
        return KEYS[name]
    base = _PREFIX.sub("", name)
    if base.startswith("origin_"):
        row = key_of(base.removeprefix("origin_"))
        # the raw cloud keeps its rows, whatever is sampled later
        return row and Key(name, row.shape, row.dtype, row.unit, "packed" if row.kind == "per_point" else row.kind)
    if base in KEYS:
        return KEYS[base]
    if base.startswith("target_"):
        return Key(name, ("S", "C"), "float32", "a teacher's features of the points in target_index", "packed")
    if base.endswith("_offset"):
        return Key(name, ("B",), "int64", "ends of packed rows", "offset")
    if base.endswith("feat"):
        return Key(name, ("N", "C"), "float32", "", "per_point")
    return None


def kind_of(name: str) -> str | None:
    """The kind of the key `name` (one of KINDS), or None where the table has no such row."""
    row = key_of(name)
    return row.kind if row else None


def per_point_keys(data_dict: Mapping[str, Any], extra: Iterable[str] = ()) -> list[str]:
    """The keys of `data_dict` that hold one row for every point.

    Those are the table's `per_point` rows by their plain names, the names in `data_dict["index_valid_keys"]`
    (Pointcept's way to add some) and `extra`.
    """
    wanted = {*data_dict.get("index_valid_keys", ()), *extra}
    return [k for k in data_dict if k in wanted or (k in KEYS and KEYS[k].kind == "per_point")]


def index_operator(data_dict: dict[str, Any], index: Any, duplicate: bool = False, extra: Iterable[str] = ()) -> dict:
    """Keeps the points `index` (row numbers or a boolean mask) in every per-point key; `sampled_index`, the rows of the
    annotated points, is renumbered to those that are left.

    Returns: `data_dict` itself, changed; with `duplicate`, a new dict that shares the other entries.

    Raises: ValueError where a per-point key has another number of rows than `coord`.
    """
    index = np.asarray(index)
    chosen = per_point_keys(data_dict, extra)
    count = len(data_dict["coord"]) if "coord" in data_dict else None
    result = dict(data_dict) if duplicate else data_dict
    if "sampled_index" in data_dict:
        result["sampled_index"] = _rows_left(data_dict["sampled_index"], index)
    for key in chosen:
        value = data_dict[key]
        if count is not None and len(value) != count:
            raise ValueError(f"{key!r} has {len(value)} rows where coord has {count}; it cannot be sampled with it")
        result[key] = take_rows(value, index)
    return result


def _rows_left(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Where `rows` are after sampling by `index`, ascending."""
    kept = np.flatnonzero(index) if index.dtype == bool else index
    return np.flatnonzero(np.isin(kept, rows))


def take_rows(value: Any, index: np.ndarray) -> Any:
    """`value[index]`; of arrays and row numbers by `take`, which is four times as fast on rows of three numbers."""
    if isinstance(value, np.ndarray) and np.issubdtype(index.dtype, np.integer):
        return value.take(index, axis=0)
    return value[index]

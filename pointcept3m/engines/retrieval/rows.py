"""Embeddings that other methods made of the same objects (ULIP-2, Point-Bind, ...), as a further row of the tables."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.modality_features import OBJECT_MODALITIES, SCENE_MODALITIES
from pointcept3m.structures.scene_embeddings import SceneEmbeddings, read_embeddings
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names

from .embed import mean_of_objects


def read_row(path: str | Path, base: SceneEmbeddings) -> SceneEmbeddings:
    """Another method's embeddings of the scenes and objects of `base`.

    path: a `.safetensors` file of SceneEmbeddings, as the tester writes (of an Instance Baseline, say), of the same scenes; or vectors in
    an `.npz` with entries `<modality>/<scene>/<object id>` of one object and, where the method has them, `<modality>/<scene>` of a
    scene; or a folder of `<scene>.npz` with entries `<modality>/<object id>` and `<modality>`. Vectors need no unit length, and all
    have one width. Scenes without a vector of their own are the mean of their objects, as the paper compares such methods (Sec. 4.2).

    Raises: FileNotFoundError; ValueError or KeyError naming the file and the entry where it names no scene, object or modality of
        the test, or vectors have no length.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        row = read_embeddings(path)
        same = all(getattr(row, key) == getattr(base, key) for key in ("datasets", "splits", "names"))
        if not same or not np.array_equal(row.object_offset, base.object_offset) or not np.array_equal(row.object_id, base.object_id):
            raise ValueError(f"{path}: embeddings of other scenes or objects ({len(row)} scenes, {len(row.object_id)} objects) than are tested "
                             f"({len(base)}, {len(base.object_id)}); rows of one table are of the same")  # fmt: skip
        return row
    scene_row = {name: row for row, name in enumerate(base.names)}
    objects: dict[str, dict[int, NDArray]] = {}
    scenes: dict[str, dict[int, NDArray]] = {}
    for where, modality, name, number, vector in _entries(path):
        if name not in scene_row:
            raise KeyError(f"{where}: no scene {name!r} is tested; {near_names(name, scene_row)}")
        row, known = scene_row[name], SCENE_MODALITIES if number is None else OBJECT_MODALITIES
        if modality not in known:
            raise KeyError(f"{where}: {modality!r} is no modality of {'scenes' if number is None else 'objects'}; {near_names(modality, known)}")
        if vector.ndim != 1 or vector.dtype.kind != "f" or not np.isfinite(vector).all() or not np.any(vector):
            raise ValueError(f"{where}: wanted a vector of finite floats, not all 0, got {vector.dtype} {list(vector.shape)}")
        if number is None:
            scenes.setdefault(modality, {})[row] = vector
            continue
        part = base.rows_of(row)
        found = np.flatnonzero(base.object_id[part] == number)
        if not len(found):
            ids = base.object_id[part].tolist()
            raise KeyError(f"{where}: scene {name!r} has no object {number} in the test; its ids are {ids[:20]}")
        objects.setdefault(modality, {})[part.start + int(found[0])] = vector
    rows, known = _table(path, objects, len(base.object_id))
    made = replace(base, model=str(path), objects=rows, object_known=known, scenes={}, scene_known={}, details={})
    of_objects, of_objects_known = mean_of_objects(made)
    own, own_known = _table(path, scenes, len(base))
    for name, mask in own_known.items():
        if name in of_objects:
            own[name] = np.where(mask[:, None], own[name], of_objects[name])
            own_known[name] = mask | of_objects_known[name]
    names = [name for name in SCENE_MODALITIES if name in own or name in of_objects]
    return replace(
        made,
        scenes={name: own[name] if name in own else of_objects[name] for name in names},
        scene_known={name: own_known[name] if name in own else of_objects_known[name] for name in names},
    )


def _entries(path: Path) -> Iterator[tuple[str, str, str, int | None, NDArray]]:
    """(where, modality, scene, object id or None, vector) of all entries."""
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path}: no such .npz or .safetensors file, nor a folder of .npz files; {near_files(path)}")
    for file in files:
        with np.load(file) as content:
            for key in content.files:
                modality, *rest = key.split("/")
                if path.is_dir():
                    rest = [file.stem, *rest]
                where = f"{file}: entry {key!r}"
                if len(rest) not in (1, 2) or (len(rest) == 2 and not rest[1].isdigit()):
                    wanted = "<modality>/<object id>, or <modality>" if path.is_dir() else "<modality>/<scene>/<object id>, or <modality>/<scene>"
                    raise ValueError(f"{where}: wanted {wanted}")
                yield where, modality, rest[0], int(rest[1]) if len(rest) == 2 else None, content[key]


def _table(path: Path, found: dict[str, dict[int, NDArray]], count: int) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """modality -> unit rows [count, D] and their mask."""
    rows, known = {}, {}
    for modality, vectors in found.items():
        widths = {len(vector) for vector in vectors.values()}
        if len(widths) > 1:
            raise ValueError(f"{path}: vectors of {modality} are {sorted(widths)} wide; one method has one width")
        rows[modality], known[modality] = np.zeros((count, widths.pop()), dtype=np.float32), np.zeros(count, dtype=bool)
        for row, vector in vectors.items():
            rows[modality][row], known[modality][row] = vector / np.linalg.norm(vector.astype(np.float64)), True
    return rows, known

"""Objects that belong to no scene: CAD models, pictures and words, as objects of a batch."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.cad import SUFFIXES as MESHES
from pointcept3m.datasets.cad import read_mesh, sample_surface
from pointcept3m.engines.modalities.recipe import Recipe
from pointcept3m.engines.retrieval.inputs import PICTURES
from pointcept3m.structures.images import read_with_alpha
from pointcept3m.structures.modality_features import ModalityFeatures
from pointcept3m.utils.files import near_files

SURFACE = 4096  # points on a CAD model
UP = {"x": (1, 2, 0), "y": (2, 0, 1), "z": (0, 1, 2)}  # columns of the file that become x, y, z


def object_kind(given: str) -> str:
    """The modality of one object: cad for a mesh, image for a picture, else text. Raises FileNotFoundError for a file that is not there."""
    suffix = Path(given).suffix.lower()
    if suffix in (*MESHES, *PICTURES):
        if not Path(given).is_file():
            raise FileNotFoundError(f"{given}: no such file; {near_files(given)}")
        return "cad" if suffix in MESHES else "image"
    if os.path.exists(given):
        raise ValueError(f"{given}: no object: wanted a mesh ({', '.join(MESHES)}), a picture ({', '.join(PICTURES)}) or words")
    return "text"


def read_objects_alone(given: Sequence[str], recipe: Recipe, up: str = "z") -> tuple[ModalityFeatures, list[str]]:
    """(features of the objects, the modality that each is given in). An object's id is its number.

    Pictures show one object and little else; where a picture is partly transparent, its opaque part counts. up: axis of the meshes
    that points up. Raises: what reading raises, naming the file; ValueError for an empty text.
    """
    kinds = [object_kind(each) for each in given]
    found: dict[str, dict[int, NDArray]] = {"image": {}, "cad": {}, "text": {}}
    boxes = np.zeros((len(given), 6), np.float32)
    for row, (each, kind) in enumerate(zip(given, kinds, strict=True)):
        if kind == "cad":
            points = _surface(each)[:, UP[up]]
            low, high = points.min(axis=0), points.max(axis=0)
            boxes[row] = np.concatenate([(low + high) / 2, high - low])
            found["cad"][row] = recipe.shapes([points])[0]
        elif kind == "image":
            found["image"][row] = recipe.image_crops([_opaque_part(Path(each))])[0]
        else:
            if not each.strip():
                raise ValueError("an empty text describes no object")
            found["text"][row] = recipe.texts([each])[0]
    rows, known = {}, {}
    for name, vectors in found.items():
        if vectors:
            rows[name] = np.zeros((len(given), len(next(iter(vectors.values())))), np.float32)
            known[name] = np.zeros(len(given), dtype=bool)
            for row, vector in vectors.items():
                rows[name][row], known[name][row] = vector, True
    labels = [each if kind == "text" else Path(each).stem for each, kind in zip(given, kinds, strict=True)]
    features = ModalityFeatures(
        scene="query", split="", object_id=np.arange(len(given)), labels=labels, object_box=np.zeros((len(given), 6), np.float32), cad_box=boxes,
        objects=rows, known=known, tokens={}, encoders=recipe.encoders,
    )  # fmt: skip
    return features, kinds


def _surface(path: str) -> NDArray[np.float32]:
    vertices, faces = read_mesh(path)
    try:
        return sample_surface(vertices, faces, SURFACE, np.random.default_rng(0))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _opaque_part(path: Path) -> NDArray[np.uint8]:
    """The picture, cut to where it is opaque."""
    picture = read_with_alpha(path)
    if picture.shape[2] == 3:
        return picture
    opaque = picture[..., 3] > 127
    if not opaque.any():
        raise ValueError(f"{path}: all of the picture is transparent; wanted one of an object")
    rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
    return np.ascontiguousarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, :3])

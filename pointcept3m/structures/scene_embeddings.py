"""Scenes and their objects in CrossOver's one space: what a model made of a data set, and all that a metric or a gallery needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.checked_file import Kind, open_checked, write_checked
from pointcept3m.structures.modality_features import OBJECT_MODALITIES, SCENE_MODALITIES

FUSED = "scene"  # F_S, the fusion of a scene's object modalities (Eq. 2)
KIND = Kind("scene_embeddings", version=1, again="embed the scenes again")


@dataclass
class SceneEmbeddings:
    """N scenes with K objects in all, scene after scene.

    model: fingerprint of weights and encoders; embeddings of other models are in another space · names, splits, datasets,
    places, categories, references (None: itself a reference), same_ids (objects have the reference's ids) [N] · scenes: modality of SCENE_MODALITIES or FUSED ->
    unit rows float32 [N, D] · scene_known: modality -> bool [N]; rows not known are zeros · object_offset int64 [N]: ends
    of the scenes among the objects · object_id int64 [K], labels [K], object_box float32 [K, 6], moved bool [K]: stands
    elsewhere than in the reference scan · objects: modality of OBJECT_MODALITIES -> unit rows float32 [K, D]
    · object_known: modality -> bool [K] · details: what the writer adds.
    """

    model: str
    names: list[str]
    splits: list[str]
    datasets: list[str]
    places: list[str]
    categories: list[str]
    references: list[str | None]
    same_ids: list[bool]
    scenes: dict[str, NDArray[np.float32]]
    scene_known: dict[str, NDArray[np.bool_]]
    object_offset: NDArray[np.int64]
    object_id: NDArray[np.int64]
    labels: list[str]
    object_box: NDArray[np.float32]
    moved: NDArray[np.bool_]
    objects: dict[str, NDArray[np.float32]]
    object_known: dict[str, NDArray[np.bool_]]
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.check()

    def __len__(self) -> int:
        """N, the number of scenes."""
        return len(self.names)

    def rows_of(self, scene: int) -> slice:
        """The objects of one scene."""
        return slice(int(self.object_offset[scene - 1]) if scene else 0, int(self.object_offset[scene]))

    def check(self) -> None:
        """Raises ValueError where numbers of rows differ, a modality is unknown, or a known row is no unit vector."""
        count, objects = len(self.names), len(self.object_id)
        for key in ("splits", "datasets", "places", "categories", "references", "same_ids", "object_offset"):
            if len(getattr(self, key)) != count:
                raise ValueError(f"embeddings: {len(getattr(self, key))} {key} for {count} scenes")
        ends = [0, *np.asarray(self.object_offset).tolist()]
        if ends != sorted(ends) or ends[-1] != objects:
            raise ValueError(f"embeddings: object_offset must ascend to the {objects} objects, got {ends[1:][:20]}")
        for key in ("labels", "object_box", "moved"):
            if len(getattr(self, key)) != objects:
                raise ValueError(f"embeddings: {len(getattr(self, key))} {key} for {objects} objects")
        for what, rows, known, number, words in (
            ("scenes", self.scenes, self.scene_known, count, (*SCENE_MODALITIES, FUSED)),
            ("objects", self.objects, self.object_known, objects, OBJECT_MODALITIES),
        ):
            if set(rows) != set(known):
                raise ValueError(f"embeddings of {what}: vectors of {sorted(rows)}, masks of {sorted(known)}")
            for name, values in rows.items():
                _check_vectors(f"embeddings of {what}' {name}", name, words, values, known[name], number)


def write_embeddings(path: str | Path, embeddings: SceneEmbeddings) -> None:
    """Writes embeddings, whole or not at all, vectors as float32."""
    embeddings.check()
    arrays: dict[str, NDArray] = {key: np.asarray(getattr(embeddings, key)) for key in ("object_offset", "object_id", "object_box", "moved")}
    for group in ("scenes", "scene_known", "objects", "object_known"):
        arrays |= {f"{group}.{name}": rows for name, rows in getattr(embeddings, group).items()}
    told = ("model", "names", "splits", "datasets", "places", "categories", "references", "same_ids", "labels", "details")
    write_checked(path, arrays, KIND, {key: getattr(embeddings, key) for key in told})


def read_embeddings(path: str | Path) -> SceneEmbeddings:
    """Reads what `write_embeddings` wrote, arrays mapped. Raises FileNotFoundError; ValueError where the file is damaged."""
    arrays, header = open_checked(path, KIND)
    groups: dict[str, dict[str, NDArray]] = {"scenes": {}, "scene_known": {}, "objects": {}, "object_known": {}}
    own = {key: arrays.pop(key) for key in ("object_offset", "object_id", "object_box", "moved")}
    for key, value in arrays.items():
        group, name = key.split(".", 1)
        groups[group][name] = value
    for key in ("format", "content", "digest"):
        header.pop(key)
    return SceneEmbeddings(**own, **header, **groups)


def _check_vectors(where: str, name: str, words: Sequence[str], values: NDArray, known: NDArray, number: int) -> None:
    if name not in words:
        raise ValueError(f"{where}: none of the modalities {', '.join(words)}")
    if values.ndim != 2 or len(values) != number or values.dtype != np.float32:
        raise ValueError(f"{where}: wanted float32 [{number}, D], got {values.dtype} {list(values.shape)}")
    if known.shape != (number,) or known.dtype != np.bool_:
        raise ValueError(f"{where}: wanted a bool mask [{number}], got {known.dtype} {list(known.shape)}")
    length = np.sqrt(np.einsum("nd,nd->n", values, values))  # no second array as large as the vectors
    if not np.allclose(length, known, atol=1e-3):
        row = int(np.argmax(np.abs(length - known)))
        raise ValueError(f"{where}: known rows must be unit vectors and others zeros; row {row} has length {length[row]:g}, known {known[row]}")

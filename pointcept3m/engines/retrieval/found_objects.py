"""Objects of a query scene found in another: embeddings, matches, a table, JSON, a picture."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.engines.retrieval.inputs import Query, RetrievalModel, make_batch
from pointcept3m.engines.retrieval.localize import TOLERANCE, Localization, localize
from pointcept3m.engines.retrieval.scenes import scene_features
from pointcept3m.engines.retrieval.single_objects import read_objects_alone
from pointcept3m.structures.modality_features import OBJECT_MODALITIES, ModalityFeatures
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names

HAS_PLACE = ("image", "point", "cad")  # modalities whose objects' boxes may be taken for known; words tell no place


@dataclass
class FoundObjects:
    """name of what was given; query, target: the features · query_rows, target_rows: the objects that have the modality · result: in numbers of those."""

    name: str
    target_folder: Path
    source: str
    target_modality: str
    query: ModalityFeatures
    target: ModalityFeatures
    query_rows: NDArray[np.int64]
    target_rows: NDArray[np.int64]
    result: Localization

    def rows(self) -> list[dict[str, Any]]:
        """One entry a match: labels, ids, cosine, whether the alignment agrees, the box in the target scene."""
        entries = []
        for match in self.result.matches:
            q, t = int(self.query_rows[match.query]), int(self.target_rows[match.target])
            box = [round(float(value), 4) for value in self.target.object_box[t]]
            entries.append(dict(
                query_id=int(self.query.object_id[q]), query_label=self.query.labels[q], id=int(self.target.object_id[t]),
                label=self.target.labels[t], score=match.score, aligned=match.inlier, center=box[:3], size=box[3:],
            ))  # fmt: skip
        return entries

    def why_not(self) -> str:
        """Why there is no motion."""
        if not self.query.object_box[:, 3:].any():
            return "objects that are given alone have no place to each other"
        return "too few matches agree on where the query's scene lies in this one" if self.source in HAS_PLACE else "words tell no place"

    def as_json(self) -> dict[str, Any]:
        """What `--out FILE.json` holds: who was asked for where, the motion [4, 4] or None, and `rows`."""
        motion = None if self.result.motion is None else self.result.motion.tolist()
        return dict(
            query=self.name, scene=str(self.target_folder), source=self.source, target=self.target_modality, motion=motion, objects=self.rows()
        )


@torch.no_grad()
def find_objects(
    given: Sequence[str | Path], scene: Path, model: RetrievalModel, source: str = "cad", target: str = "point", tolerance: float = TOLERANCE,
    feature_root: Path | None = None, up: str = "z",
) -> FoundObjects:  # fmt: skip
    """Matches objects with those that `scene` has in modality `target`.

    given: one scene folder, whose objects in modality `source` are looked for; or meshes, pictures and words, an object each, whose
    places are not known, so that nothing is aligned.
    Raises: KeyError for an unknown modality; FileNotFoundError; ValueError where a scene has no object in its modality.
    """
    for word in (source, target):
        if word not in OBJECT_MODALITIES:
            raise KeyError(f"objects have no modality {word!r}; {near_names(word, OBJECT_MODALITIES)}")
    folders = [Path(each) for each in given if os.path.isdir(each)]
    if folders and len(given) > 1:
        raise ValueError(f"--query: wanted one scene folder alone, or meshes, pictures and words; got {', '.join(map(str, given))}")
    for folder in (*folders, scene):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such scene folder; {near_files(folder)}")
        if not (folder / "objects.json").is_file():
            raise FileNotFoundError(f"{folder}: no objects.json, so its objects are not known (docs/data.md says how one looks, docs/crossover_data.md what writes it)")
    if folders:
        first, kinds = Query(folders[0].name, "scene", features=scene_features(folders[0], model, feature_root)), None
    else:
        features, kinds = read_objects_alone([str(each) for each in given], model.recipe, up)
        first = Query("query", "scene", features=features)
    query_vectors, query_rows = _embedded(first, kinds or source, str(given[0]), model)
    second = Query(scene.name, "scene", features=scene_features(scene, model, feature_root))
    target_vectors, target_rows = _embedded(second, target, str(scene), model)
    placed = kinds is None and source in HAS_PLACE
    centers = first.features.object_box[query_rows, :3].astype(np.float64) if placed else None
    result = localize(query_vectors, target_vectors, centers, second.features.object_box[target_rows, :3].astype(np.float64), tolerance)
    name = ", ".join(map(str, given))
    modality = source if kinds is None else ", ".join(dict.fromkeys(kinds))
    return FoundObjects(name, scene, modality, target, first.features, second.features, query_rows, target_rows, result)


def _embedded(part: Query, modality: str | Sequence[str], name: str, model: RetrievalModel) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(unit rows, their numbers) of a scene's objects that are known in the modality, or each in its own of several."""
    vectors, known = model.network.embed_objects(make_batch([part], model))
    count = len(part.features)
    wanted = [modality] * count if isinstance(modality, str) else list(modality)
    for word in dict.fromkeys(wanted):
        if word not in vectors:
            raise ValueError(f"{model.weight} embeds no {word} of objects; it embeds {', '.join(vectors)}")
    chosen = np.array([row for row, word in enumerate(wanted) if bool(known[word][row])], dtype=np.int64)
    if not len(chosen):
        raise ValueError(f"{name}: none of its {count} objects is known by {modality}")
    return np.stack([vectors[wanted[row]][row].float().cpu().numpy() for row in chosen.tolist()]), chosen


def describe_found(found: FoundObjects) -> str:
    """A table of the matches, best first."""
    rows = found.rows()
    wide = max([22, *(len(f"{row['query_label']} {row['query_id']}") for row in rows)]) + 2
    lines = [f"{'object':<{wide}}{'is':<24}{'score':>6}  {'aligned':<8}centre x, y, z (metres)"]
    for row in rows:
        place = ", ".join(f"{value:.2f}" for value in row["center"])
        here, there = f"{row['query_label']} {row['query_id']}", f"{row['label']} {row['id']}"
        aligned = "-" if found.result.motion is None else "yes" if row["aligned"] else "no"
        lines.append(f"{here:<{wide}}{there:<24}{row['score']:>6.3f}  {aligned:<8}{place}")
    if found.result.motion is None:
        lines.append(f"nothing is aligned: {found.why_not()}")
    else:
        angle = np.degrees(np.arctan2(found.result.motion[1, 0], found.result.motion[0, 0]))
        shift = found.result.motion[:3, 3]
        lines.append(
            f"{found.result.inliers} of {len(found.result.matches)} matches agree: the query's axes are turned by {angle:.0f} degrees and "
            f"shifted by ({shift[0]:.2f}, {shift[1]:.2f}, {shift[2]:.2f}) m"
        )
    return "\n".join(lines)

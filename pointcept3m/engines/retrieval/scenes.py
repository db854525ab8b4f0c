"""Scene folders embedded whole, whether or not their modalities were extracted before, and their pictures."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.engines.modalities.extract import ModalitySettings, extract_scene, inputs_digest
from pointcept3m.engines.retrieval.embed import concatenate, embed_batch
from pointcept3m.engines.retrieval.inputs import (
    PICTURES,
    Query,
    RetrievalModel,
    Say,
    guess_kind,
    make_batch,
    point_sample,
    read_query,
)
from pointcept3m.engines.retrieval.scene_pictures import scene_picture
from pointcept3m.structures.modality_features import TOKENS, ModalityFeatures, modality_path, read_modalities
from pointcept3m.structures.scene import Scene
from pointcept3m.structures.scene_embeddings import SceneEmbeddings
from pointcept3m.structures.scene_objects import SCENE_FILES, is_scene_folder
from pointcept3m.utils.files import near_files


def find_scenes(given: Sequence[str | Path]) -> list[Path]:
    """The scenes in `given`: files (a scan, a picture, ...) and folders of pictures or RGB-D frames, each a scene; scene folders, or
    those in a folder or one level below. Raises FileNotFoundError naming what holds none."""
    found: list[Path] = []
    for path in map(Path, given):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such scene, nor folder of scenes; {near_files(path)}")
        here = [path] if path.is_file() or is_scene_folder(path) else sorted(folder for folder in (*path.glob("[!.]*"), *path.glob("[!.]*/*")) if is_scene_folder(folder))
        if not here and any("depth." in file.name or file.suffix.lower() in PICTURES for file in path.iterdir()):
            here = [path]
        if not here:
            raise FileNotFoundError(f"{path}: no scene in it: no folder has color/ or one of {', '.join(SCENE_FILES)}, and it holds no pictures itself")
        found += here
    return list(dict.fromkeys(found))


def scene_features(folder: Path, model: RetrievalModel, feature_root: Path | None = None, say: Say = print) -> ModalityFeatures:
    """The frozen features of a scene: of its file where the model's encoders, all of them, made it of what the scene holds; else
    extracted now, with the file's settings where there is one, which `say` tells."""
    settings = ModalitySettings()
    path = modality_path(folder, model.recipe.name, feature_root)
    if path.is_file():
        features = read_modalities(path)
        # pictures may lie elsewhere than in the scene folder, so they are not compared
        made_of = features.scene, features.encoders, features.details.get("inputs")
        if made_of == (folder.name, model.recipe.encoders, inputs_digest(folder)):
            return features
        settings = ModalitySettings(**features.details.get("settings", {}))
        changed = "another scene" if made_of[0] != folder.name else "other encoders" if made_of[1] != model.recipe.encoders else "other files"
        say(f"{path}: was made of {changed} than are there now; extracted anew")
    return extract_scene(folder, model.recipe, settings)


def scene_query(folder: Path, model: RetrievalModel, feature_root: Path | None = None, say: Say = print, **options: Any) -> Query:
    """All that a scene folder has, as one scene of a batch; depth is fused where there are no points. options: as `read_query`."""
    points = None
    if model.points is not None and (folder / "coord.npy").is_file():
        assets = Scene(folder).points(("coord", *model.points.needs))
        missing = [key for key in model.points.needs if key not in assets]
        if missing:
            raise ValueError(f"{folder}: has no {' and no '.join(f'{key}.npy' for key in missing)}, which {model.weight} was trained with")
        points = point_sample(assets, model)
    elif model.points is not None and (folder / "depth").is_dir():
        points = read_query(folder, model, "point", say, **options).points
    return Query(folder.name, "scene", points=points, features=scene_features(folder, model, feature_root, say))


def read_any(
    given: str | Path, model: RetrievalModel, kind: str | None = None, say: Say = print, feature_root: Path | None = None, **options: Any
) -> Query:
    """A query of `read_query`, or one modality of a scene folder (kind "scene": all its objects, fused).

    feature_root: where the features of scene folders lie, if not in them.

    Raises: as `read_query`; ValueError for a scene folder without a kind, which tells the kinds it has.
    """
    folder = Path(given)
    if not (os.path.isdir(folder) and guess_kind(given) == "scene") or kind == "panorama":
        return read_query(given, model, kind, say, **options)
    query = scene_query(folder, model, feature_root, say, **options)
    have = [name for name in TOKENS if name in query.features.tokens] + ["point"] * (query.points is not None) + ["scene"] * bool(len(query.features))
    if kind not in have:
        got = f"has no {kind}" if kind else "is a whole scene"
        raise ValueError(f"{given}: {got}; --as {' or '.join(have)} says which of its modalities is the query")
    query.kind, query.picture = kind, scene_picture(folder)
    return query


@torch.no_grad()
def embed_scenes(
    folders: Sequence[Path], model: RetrievalModel, feature_root: Path | None = None, batch: int = 8, seconds: float = math.inf,
    broken: dict[Path, Exception] | None = None, say: Say = print, **options: Any,
) -> Iterator[tuple[SceneEmbeddings, list[NDArray[np.uint8] | None]]]:  # fmt: skip
    """Embeds what `find_scenes` found, in its order, in parts of about `seconds` of work; `details["folders"]` names a part's scenes.

    Yields a part and the pictures of its scenes. options: as `read_query`, for scenes that are a file or a folder of frames.
    broken: takes what is wrong with scenes that cannot be read, by folder; the others go on. Without it such a scene raises, naming it.
    """
    pieces, paths, shown, since = [], [], [], time.monotonic()
    for start in range(0, len(folders), batch):
        queries, read = [], []
        for folder in folders[start : start + batch]:
            try:
                whole = folder.is_dir() and is_scene_folder(folder)
                query = scene_query(folder, model, feature_root, say, **options) if whole else read_any(folder, model, None, say, **options)
                picture = scene_picture(folder) if whole else query.picture
            except (ValueError, KeyError, OSError) as error:
                if broken is None:
                    raise
                broken[folder] = error
                say(f"{folder}: left out: {error}")
                continue
            queries.append(query)
            shown.append(picture)
            read.append(folder)
        if queries:
            piece = embed_batch(model.network, make_batch(queries, model), model.fingerprint)
            for row, folder in enumerate(read):
                if not any(known[row] for known in piece.scene_known.values()):
                    say(f"{folder}: no modality that {model.weight} embeds; it will not be found")
            pieces.append(piece)
            paths += read
        last = start + batch >= len(folders)
        say(f"{min(start + batch, len(folders))} of {len(folders)} scenes")
        if pieces and (last or time.monotonic() - since > seconds):
            part = concatenate(pieces)
            part.details["folders"] = [str(path.resolve()) for path in paths]
            yield part, shown
            pieces, paths, shown, since = [], [], [], time.monotonic()

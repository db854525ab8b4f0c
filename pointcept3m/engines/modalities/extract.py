"""One scene through a recipe: what its frozen encoders say of objects, key frames, floorplan and texts."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.engines.modalities.crops import cut_crops, mask_names, top_views
from pointcept3m.engines.modalities.frames import RULES, choose_key_frames, color_paths
from pointcept3m.engines.modalities.recipe import Recipe
from pointcept3m.structures.images import read_color
from pointcept3m.structures.modality_features import ModalityFeatures
from pointcept3m.structures.scene import Scene
from pointcept3m.structures.scene_objects import SceneObject, read_cad, read_facts, read_floorplan, read_objects
from pointcept3m.utils.registry import near_names

TEXTS = ("each", "join")
Tick = Callable[[], None]


@dataclass(frozen=True)
class ModalitySettings:
    """How a scene is looked at. Defaults are the figures of CrossOver's paper and release.

    keyframes: rule of `choose_key_frames`; num_frames: at most so many · views: pictures of an object, those with most of
    its pixels; levels: crops of each; growth: share of a side by which a level grows the box · min_points: an object with
    fewer points has no point vector · texts_per_object: referrals of an object that are averaged, 0 all (the release; the
    paper's k) · num_texts: referrals of the scene, drawn by its name; text: "each" has a vector (the paper), or they are
    joined to one string that has one ("join", the release).
    """

    keyframes: str = "sharp"
    num_frames: int = 20
    views: int = 10
    levels: int = 3
    growth: float = 0.2
    min_points: int = 50
    texts_per_object: int = 0
    num_texts: int = 10
    text: str = "each"

    def __post_init__(self) -> None:
        for key, known in (("keyframes", RULES), ("text", TEXTS)):
            if getattr(self, key) not in known:
                raise KeyError(f"{key} {getattr(self, key)!r} is unknown; {near_names(getattr(self, key), known)}")
        for key in ("num_frames", "views", "levels", "min_points", "num_texts"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.growth < 0 or self.texts_per_object < 0:
            raise ValueError(f"growth and texts_per_object must not be negative, got {self.growth} and {self.texts_per_object}")


def extract_scene(
    folder: str | Path, recipe: Recipe, settings: ModalitySettings | None = None, frames_root: Path | None = None, tick: Tick = lambda: None
) -> ModalityFeatures:
    """All frozen features of one scene folder; what the scene lacks, the result lacks.

    frames_root: where color/ and pose/ lie as <frames_root>/<scene>/, if not in the scene folder. tick: called now and then.

    Pixels of masks and points whose id is in no entry of objects.json count as nothing: they show walls, floor, or
    what nobody described. Raises: FileNotFoundError, ValueError naming the file: what is there and damaged, ids of which
    none fits objects.json, masks of other frames.
    """
    folder, settings = Path(folder), settings or ModalitySettings()
    facts, objects = read_facts(folder), read_objects(folder) or []
    frames_folder = folder if frames_root is None else Path(frames_root) / folder.name
    paths = color_paths(frames_folder)
    count = len(objects)
    found: dict[str, dict[int, NDArray]] = {}
    notes: dict[str, Any] = {}
    if recipe.images:
        found["image"], notes["foreign_pixels"] = _object_images(folder, paths, objects, recipe, settings, tick)
    if recipe.shape is not None:
        found["point"], notes["few_points"] = _object_points(folder, objects, recipe, settings)
        tick()
        found["cad"] = _object_cads(folder, objects, recipe)
    if recipe.text is not None:
        found["text"] = _object_texts(folder, objects, recipe, settings)
    tick()
    tokens, frames, texts = _tokens(folder, frames_folder, paths, objects, recipe, settings)
    rows, known = {}, {}
    for name, vectors in found.items():
        rows[name] = np.zeros((count, recipe.widths[f"object_{name}"]), np.float32)
        known[name] = np.zeros(count, bool)
        for row, vector in vectors.items():
            rows[name][row], known[name][row] = vector, True
    boxes = np.stack([thing.box for thing in objects]) if objects else np.zeros((0, 6), np.float32)
    return ModalityFeatures(
        scene=folder.name, split=folder.parent.name, object_id=np.array([thing.id for thing in objects], np.int64),
        labels=[thing.label for thing in objects], object_box=boxes, cad_box=_cad_boxes(folder, objects), objects=rows, known=known,
        tokens=tokens, encoders=recipe.encoders, frames=frames, texts=texts, dataset=facts.dataset, place=facts.place,
        category=facts.category, reference=facts.reference, moved=facts.moved, same_ids=facts.same_ids,
        details={**record(folder, recipe, settings, frames_root), **notes},
    )  # fmt: skip


def record(folder: Path, recipe: Recipe, settings: ModalitySettings, frames_root: Path | None = None) -> dict[str, Any]:
    """What makes a file: two with the same record and encoders are the same file.

    inputs: of what the scene folder says of its objects and itself; frames: of its pictures, which may lie elsewhere.
    """
    frames = folder if frames_root is None else Path(frames_root) / folder.name
    return {"recipe": recipe.name, "settings": asdict(settings), "inputs": inputs_digest(folder), "frames": _digest([*frames.glob("color/*"), *frames.glob("pose/*")])}


def inputs_digest(folder: Path) -> str:
    """16 hex digits of a scene folder's objects, masks, CAD models, floorplan and points. Masks, models and pictures count by name and
    size, the rest by what is in it: an edited instance.npy has the size that it had."""
    names = ("objects.json", "scene.json", "floorplan.json", "coord.npy", "instance.npy")
    told = b"".join(f"{name};".encode() + _content(folder / name) for name in names)
    parts = [*(folder / "mask").glob("*.png"), *(folder / "cad").glob("*.npy"), *folder.glob("floorplan.*")]
    return _digest(parts, told)


def _content(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b""


def _digest(paths: Sequence[Path], told: bytes = b"") -> str:
    digest = hashlib.sha256(told)
    for path in sorted(paths):
        if path.is_file():
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size};".encode())
    return digest.hexdigest()[:16]


def _object_images(
    folder: Path, paths: Mapping[str, Path], objects: Sequence[SceneObject], recipe: Recipe, settings: ModalitySettings, tick: Tick
) -> tuple[dict[int, NDArray], int]:
    """({row of an object: mean over its views and levels of the crops' class tokens}, pixels of masks that are of no object)."""
    row_of = {thing.id: row for row, thing in enumerate(objects)}
    names = mask_names(folder, paths) if objects else []
    views, foreign = top_views(folder, names, row_of.keys(), settings.views)
    if names and not views and foreign:
        raise ValueError(f"{folder / 'mask'}: none of the ids in its masks is in objects.json, whose first are {list(row_of)[:5]}")
    sums: dict[int, NDArray] = {}
    counts: dict[int, int] = {}
    waiting: list[tuple[int, NDArray]] = []

    def encode() -> None:
        for (object_id, _), vector in zip(waiting, recipe.image_crops([crop for _, crop in waiting]), strict=True):
            row = row_of[object_id]
            sums[row] = sums.get(row, 0) + vector.astype(np.float64)
            counts[row] = counts.get(row, 0) + 1
        waiting.clear()
        tick()

    for one in cut_crops(paths, views, settings.levels, recipe.crop_size, settings.growth):
        waiting.append(one)
        if len(waiting) == recipe.batch:
            encode()
    encode()
    return {row: sums[row] / counts[row] for row in sorted(sums)}, foreign


def _object_points(folder: Path, objects: Sequence[SceneObject], recipe: Recipe, settings: ModalitySettings) -> tuple[dict[int, NDArray], list[int]]:
    """({row: vector of its points}, ids of objects with fewer points than `min_points`)."""
    if not objects or not all((folder / f"{name}.npy").is_file() for name in ("coord", "instance")):
        return {}, []
    scene = Scene(folder)
    coord = scene.load("coord")
    instance = scene.load("instance", count=len(coord))
    order = np.argsort(instance, kind="stable")
    ids, starts = np.unique(instance[order], return_index=True)
    members = dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))
    if any(value >= 0 for value in members) and not any(thing.id in members for thing in objects):
        raise ValueError(f"{folder / 'instance.npy'}: none of its ids ({[v for v in members if v >= 0][:5]}) is in objects.json ({[o.id for o in objects][:5]})")
    nothing = np.zeros(0, np.int64)
    clouds = {row: coord[members.get(thing.id, nothing)] for row, thing in enumerate(objects)}
    enough = {row: cloud for row, cloud in clouds.items() if len(cloud) >= settings.min_points}
    few = [objects[row].id for row in clouds if row not in enough]
    return dict(zip(enough, recipe.shapes(list(enough.values())), strict=True)), few


def _object_cads(folder: Path, objects: Sequence[SceneObject], recipe: Recipe) -> dict[int, NDArray]:
    """{row: vector of its CAD model}; a model that several objects have is encoded once."""
    names = list(dict.fromkeys(thing.cad for thing in objects if thing.cad is not None))
    vectors = dict(zip(names, recipe.shapes([read_cad(folder, name) for name in names]), strict=True))
    return {row: vectors[thing.cad] for row, thing in enumerate(objects) if thing.cad is not None}


def _cad_boxes(folder: Path, objects: Sequence[SceneObject]) -> NDArray[np.float32]:
    boxes = np.zeros((len(objects), 6), np.float32)
    for row, thing in enumerate(objects):
        if thing.cad is not None:
            points = read_cad(folder, thing.cad)
            low, high = points.min(axis=0), points.max(axis=0)
            boxes[row] = np.concatenate([(low + high) / 2, high - low])
    return boxes


def _object_texts(folder: Path, objects: Sequence[SceneObject], recipe: Recipe, settings: ModalitySettings) -> dict[int, NDArray]:
    """{row: mean of the vectors of its referrals}; a sentence that several objects share is encoded once."""
    chosen = {row: thing.texts[: settings.texts_per_object or None] for row, thing in enumerate(objects) if thing.texts}
    vectors = _text_vectors(folder, list(dict.fromkeys(text for texts in chosen.values() for text in texts)), recipe)
    return {row: np.mean([vectors[text] for text in texts], axis=0) for row, texts in chosen.items()}


def _text_vectors(folder: Path, texts: Sequence[str], recipe: Recipe) -> dict[str, NDArray]:
    try:
        return dict(zip(texts, recipe.texts(texts), strict=True))
    except ValueError as error:
        raise ValueError(f"{folder / 'objects.json'}: {error}") from error


def _tokens(
    folder: Path, frames_folder: Path, paths: Mapping[str, Path], objects: Sequence[SceneObject], recipe: Recipe, settings: ModalitySettings
) -> tuple[dict[str, NDArray], list[str], list[str]]:
    """(tokens of the scene's modalities, names of the key frames, texts of the text tokens)."""
    tokens: dict[str, NDArray] = {}
    frames: list[str] = []
    if recipe.images:
        frames = choose_key_frames(frames_folder, paths, settings.num_frames, settings.keyframes)
        if frames:
            tokens["image"] = recipe.image_tokens([read_color(paths[name]) for name in frames])
        plan = read_floorplan(folder)
        if plan is not None:
            tokens["floorplan"] = recipe.image_tokens([plan.image])
    texts = _scene_texts(folder.name, objects, settings) if recipe.text is not None else []
    if texts:
        vectors = _text_vectors(folder, list(dict.fromkeys(texts)), recipe)
        tokens["text"] = np.stack([vectors[text] for text in texts])
    return tokens, frames, texts


def _scene_texts(name: str, objects: Sequence[SceneObject], settings: ModalitySettings) -> list[str]:
    """At most `num_texts` of the scene's referrals, drawn by its name alone and kept in their order; joined if so asked."""
    every = [text for thing in objects for text in thing.texts]
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rows = np.random.default_rng(seed).permutation(len(every))[: settings.num_texts]
    texts = [every[row] for row in sorted(rows.tolist())]
    return [" ".join(texts)] if texts and settings.text == "join" else texts

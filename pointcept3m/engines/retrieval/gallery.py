"""A gallery: embedded scenes in a folder that is searched, with a small picture of each.

    <gallery>/embeddings.safetensors   what `structures.scene_embeddings` reads
              pictures/<number>.jpg    of the scene with that number, where it has one
              index/<modality>.safetensors   of large galleries; without it search is exact
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.engines.retrieval.embed import concatenate, select
from pointcept3m.engines.retrieval.index import (
    TRIALS,
    BuildReport,
    ExactIndex,
    FaissIndex,
    build_faiss,
    has_faiss,
    read_faiss,
)
from pointcept3m.structures.checked_file import read_header
from pointcept3m.structures.images import read_color
from pointcept3m.structures.scene_embeddings import KIND, SceneEmbeddings, read_embeddings, write_embeddings
from pointcept3m.utils.files import near_files, replacing
from pointcept3m.utils.registry import near_names

logger = logging.getLogger("pointcept3m")

PICTURE_SIDE = 480  # pixels


@dataclass(frozen=True)
class Filter:
    """Which scenes of a gallery may be found; None lets all pass. without: names of scenes, without_place: places that may not."""

    split: str | None = None
    category: str | None = None
    dataset: str | None = None
    without: tuple[str, ...] = ()
    without_place: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hit:
    """One scene found: its number in the gallery, name, the modality in which it is near, and the cosine there; geometry: the score of
    its scan for a floorplan, where candidates were re-ranked."""

    number: int
    name: str
    modality: str
    score: float
    geometry: float | None = None


class Gallery:
    """An opened gallery folder.

    embeddings: of its N scenes. Raises when opened: FileNotFoundError where it is no gallery; ValueError where a file is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / "embeddings.safetensors"
        if not path.is_file():
            near = f"; {near_files(self.folder)}" if not self.folder.exists() else ""
            raise FileNotFoundError(f"{folder}: no gallery (no embeddings.safetensors in it); pointcept3m embed --gallery makes one{near}")
        self.embeddings = read_embeddings(path)
        self._indices: dict[str, ExactIndex | FaissIndex] = {}

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def modalities(self) -> list[str]:
        """Those in which at least one scene is known."""
        return [name for name, known in self.embeddings.scene_known.items() if known.any()]

    def check_model(self, fingerprint: str, weight: str) -> None:
        """Raises ValueError where the gallery was embedded by another model or by other encoders."""
        if self.embeddings.model != fingerprint:
            raise ValueError(
                f"{self.folder}: was embedded by the model {self.embeddings.model}, {weight} is {fingerprint}: their vectors lie in different "
                "spaces; embed the gallery again with this weight (tools/embed.py)"
            )

    def allowed(self, modality: str, chosen: Filter) -> NDArray[np.bool_]:
        """bool [N]: scenes known in `modality` that pass. Raises KeyError, ValueError where a word is unknown or nothing is left."""
        e = self.embeddings
        if modality not in e.scene_known:
            raise KeyError(f"{self.folder}: holds no {modality!r}; {near_names(modality, list(e.scene_known))}")
        mask = e.scene_known[modality].copy()
        if not mask.any():
            raise ValueError(f"{self.folder}: none of its {len(e)} scenes has {modality}; it has {', '.join(self.modalities)}")
        for what, value in (("split", chosen.split), ("category", chosen.category), ("dataset", chosen.dataset)):
            if value is not None:
                there = self._facts[what]
                if not (same := there == value).any():
                    raise KeyError(f"{self.folder}: no scene has {what} {value!r}; {near_names(value, sorted(set(there.tolist())))}")
                mask &= same
        for what, unwanted in (("name", chosen.without), ("place", chosen.without_place)):
            there = set(self._facts[what].tolist())
            for value in unwanted:
                if value not in there:
                    raise KeyError(f"{self.folder}: no scene has {what} {value!r}, so there is nothing to leave out; {near_names(value, sorted(there))}")
            if unwanted:
                mask &= ~np.isin(self._facts[what], unwanted)
        if not mask.any():
            raise ValueError(f"{self.folder}: the filters leave no scene with {modality}; loosen --split, --category, --dataset or --without")
        return mask

    def targets(self, chosen: Filter = Filter()) -> list[str]:
        """The modalities in which a scene passes. Raises: as `allowed`, where there is none."""
        found, reason = [], None
        for modality in self.modalities:
            try:
                self.allowed(modality, chosen)
                found.append(modality)
            except ValueError as error:
                reason = error
        if not found:
            raise reason or ValueError(f"{self.folder}: an empty gallery: none of its {len(self)} scenes has any embedding")
        return found

    @cached_property
    def _facts(self) -> dict[str, NDArray[np.str_]]:
        e = self.embeddings
        told = {"split": e.splits, "category": e.categories, "dataset": e.datasets, "name": e.names, "place": e.places}
        return {what: np.array(values, dtype=np.str_) for what, values in told.items()}

    def index(self, modality: str) -> ExactIndex | FaissIndex:
        """What searches a modality: its faiss file where there is one and faiss is installed, else exact."""
        if modality not in self._indices:
            vectors, known = self.embeddings.scenes[modality], self.embeddings.scene_known[modality]
            path = self._index_path(modality)
            usable = path.is_file() and has_faiss()
            if path.is_file() and not usable:
                logger.warning("%s: has an index of faiss, which is not installed (pip install faiss-cpu); searched exactly, which takes longer", self.folder)
            self._indices[modality] = read_faiss(path, vectors, self._of()) if usable else ExactIndex(vectors, known)
        return self._indices[modality]

    def _index_path(self, modality: str) -> Path:
        return self.folder / "index" / f"{modality}.safetensors"

    def _of(self) -> dict[str, str]:
        """What tells an index of these embeddings from one of others."""
        return {"of": read_header(self.folder / "embeddings.safetensors", KIND)["content"]}

    def search(self, vector: NDArray[np.float32], targets: Sequence[str], count: int = 5, chosen: Filter = Filter()) -> list[Hit]:
        """The `count` best scenes for a unit vector [D], best first; a scene counts by the best of the `targets` it has.

        Raises: as `allowed`; ValueError where the vector is of another width, or count not positive.
        """
        if count < 1:
            raise ValueError(f"--top must be at least 1, got {count}")
        found: dict[int, Hit] = {}
        for modality in targets:
            mask = self.allowed(modality, chosen)
            width = self.embeddings.scenes[modality].shape[1]
            if vector.shape != (width,):
                raise ValueError(f"{self.folder}: its vectors have {width} numbers, the query's {vector.shape}")
            filtered = int(mask.sum()) < int(self.embeddings.scene_known[modality].sum())
            rows, scores = self.index(modality).search(vector, count, mask if filtered else None)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
                if row not in found or score > found[row].score:
                    found[row] = Hit(row, self.embeddings.names[row], modality, score)
        return sorted(found.values(), key=lambda hit: (-hit.score, hit.number))[:count]

    def picture(self, number: int) -> NDArray[np.uint8] | None:
        """The picture of a scene, uint8 [H, W, 3], None where there is none."""
        path = self.picture_path(number)
        return read_color(path) if path.is_file() else None

    def picture_path(self, number: int) -> Path:
        """Where the picture of a scene lies, if it has one."""
        return self.folder / "pictures" / f"{number}.jpg"

    def build_index(self, modality: str) -> BuildReport:
        """Makes and writes the faiss index of a modality, and measures its recall with what the gallery has in other modalities,
        since these are what asks it. Raises: ImportError; KeyError; ValueError where no scene has the modality."""
        e = self.embeddings
        self.allowed(modality, Filter())
        others = [np.asarray(e.scenes[name])[known & e.scene_known[modality]] for name, known in e.scene_known.items() if name != modality]
        asked = np.concatenate([rows for rows in others if rows.shape[1] == e.scenes[modality].shape[1]] or [np.zeros((0, 1), np.float32)])
        rng = np.random.default_rng(0)
        queries = asked[rng.permutation(len(asked))[:TRIALS]] if len(asked) else None
        index, report = build_faiss(e.scenes[modality], e.scene_known[modality], queries)
        report.bytes = index.save(self._index_path(modality), self._of())
        self._indices[modality] = index
        return report


def write_gallery(
    folder: str | Path, embeddings: SceneEmbeddings, pictures: Callable[[int], NDArray[np.uint8] | None], add: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Gallery:  # fmt: skip
    """Writes a gallery, or with `add` puts scenes behind those it has (one of the same
    data set, split and name takes the old one's place).

    pictures: gives the picture of the scene with that number in `embeddings`. say: told which scenes took the place of one from
    another folder. Indices of faiss are dropped, since they are of the scenes before.
    Raises: FileExistsError where there is a gallery and `add` is false; ValueError where it is of another model, or two of the scenes
        have one data set, split and name.
    """
    folder = Path(folder)
    check_unique(embeddings, {})
    path = folder / "embeddings.safetensors"
    if path.is_file() and not add:
        raise FileExistsError(f"{folder}: holds a gallery already; --add puts scenes into it, another folder makes a new one")
    places = list(range(len(embeddings)))
    if path.is_file():
        old = Gallery(folder)
        old.check_model(embeddings.model, "the new scenes'")
        was = dict(zip(_keys(old.embeddings), folders_of(old.embeddings), strict=True))
        for key, path_of in zip(_keys(embeddings), folders_of(embeddings), strict=True):
            if was.get(key, path_of) != path_of:
                say(f"{path_of}: takes the place of {was[key]}, which has the same data set, split and name ({', '.join(map(repr, key))})")
        embeddings, places = _joined(old.embeddings, embeddings)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    write_embeddings(path, embeddings)  # first: an index of the scenes before is refused from now on
    for number, place in enumerate(places):
        target = folder / "pictures" / f"{place}.jpg"
        image = pictures(number)
        if image is None:
            target.unlink(missing_ok=True)
        else:
            save_picture(target, image)
    for stale in (folder / "index").glob("*.safetensors"):
        stale.unlink()
    return Gallery(folder)


def _joined(old: SceneEmbeddings, new: SceneEmbeddings) -> tuple[SceneEmbeddings, list[int]]:
    """(all scenes, numbers of the new ones among them). New ones replace old ones of their data set, split and name."""
    known = {key: number for number, key in enumerate(_keys(old))}
    both = concatenate([old, new])
    places, order = [], list(range(len(old)))
    for number, key in enumerate(_keys(new)):
        place = known.setdefault(key, len(order))
        if place == len(order):
            order.append(0)
        order[place] = len(old) + number
        places.append(place)
    folders = [*folders_of(old), *folders_of(new)]
    joined = select(both, order)
    joined.details["folders"] = [folders[number] for number in order]
    return joined, places


def check_unique(embeddings: SceneEmbeddings, seen: dict[tuple[str, str, str], str | None]) -> None:
    """Raises ValueError where two scenes have one data set, split and name, by which a gallery knows them. seen: the folders by these
    of scenes before, to which those of `embeddings` are added."""
    for key, path in zip(_keys(embeddings), folders_of(embeddings), strict=True):
        if key in seen:
            raise ValueError(f"{seen[key]} and {path}: both are scene {key[2]!r} of split {key[1]!r} and data set {key[0]!r}; rename one, or say another dataset in its scene.json")
        seen[key] = path


def _keys(embeddings: SceneEmbeddings) -> list[tuple[str, str, str]]:
    return list(zip(embeddings.datasets, embeddings.splits, embeddings.names, strict=True))


def folders_of(embeddings: SceneEmbeddings) -> list[str | None]:
    """[N] the folder each scene was embedded from, None where it is not told."""
    told = list(embeddings.details.get("folders") or [])
    return told if len(told) == len(embeddings) else [None] * len(embeddings)


def save_picture(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes a JPEG of at most `PICTURE_SIDE` pixels a side."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    with replacing(path) as part:
        picture.save(part, format="JPEG", quality=88)

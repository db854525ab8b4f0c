"""Scenes with all their modalities: the point cloud, what frozen encoders say of the others, and the objects (CrossOver)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.datasets.base import PointDataset, _naming_scene
from pointcept3m.datasets.builder import DATASETS
from pointcept3m.datasets.limited import read_names
from pointcept3m.datasets.rooms_dataset import MODALITIES_HINT
from pointcept3m.datasets.transforms.collect import Collect
from pointcept3m.datasets.transforms.compose import DataDict, to_tensor
from pointcept3m.structures.checked_file import read_header
from pointcept3m.structures.keys import kind_of
from pointcept3m.structures.modality_features import (
    KIND,
    OBJECT_MODALITIES,
    TOKENS,
    ModalityFeatures,
    check_encoders,
    modality_path,
    read_modalities,
    read_widths,
)
from pointcept3m.utils.registry import near_names
from pointcept3m.utils.seed import mix_seed, preserved_rng

logger = logging.getLogger("pointcept3m")

MODALITIES = ("image", "point", "cad", "text", "floorplan")
WIDTHS = (*(f"object_{name}" for name in OBJECT_MODALITIES), *(f"{name}_token" for name in TOKENS))
PER_SCENE = ("name", "split", "dataset", "place", "category", "reference", "same_ids")


@DATASETS.register_module()
class CrossOverDataset(PointDataset):
    """Scenes as CrossOver sees them: `<data_root>/<split>/<scene>/` and the features of its modalities that
    `tools/preprocess/modalities.py` wrote. Scenes without such a file leave the list, and the log says how many.

    A sample has the transformed points (`coord`, `grid_coord`, `feat`, `offset`, as `transform` collects them), the objects
    (`object_id`, `object_class`, `object_box`, `cad_box`, `object_<m>`, `object_known`, `object_moved`, `object_offset`), tokens
    (`image_token`, `floorplan_token`, `text_token`, with offsets) and name, split, dataset, place, category, reference, labels.
    Every key is always there: what a scene lacks has 0 rows, objects that lack a modality have zeros and a mask.

    Args:
        split, data_root, transform, cache, loop, on_bad_scene, lr_file: as `PointDataset`. `data_root` may be several folders
            (ScanNet and 3RScan), whose scenes stand one after the other; `lr_file` goes with one of them alone.
        recipe: which frozen encoders made the features. feature_root: where they lie, None for the scene folders; as many as
            there are data roots, or one for all.
        points: false leaves the clouds on the disk; the object level does without.
        object_points: only points of objects, as in CrossOver's release, whose training clouds are filtered by annotation while
            its inference sees all points. The default, all points everywhere, needs no annotation (Sec. 3.3).
        views: so many of a scene's key frames are drawn (N = 10, Sec. 3.3), None for all. The release trains on 10 of 20 and
            infers with 20; here that is `views=10` in training and None in tests, and a mean over frames bears both.
        referrals: so many referrals are drawn (t = 10), None for all. max_objects: as many objects (150 in the release).
        fixed: a scene draws the same in every pass, by its name: for validation and tests.
        chunks: modality -> text file of scene names (or a list of them); the modality is hidden in all other scenes (the
            protocol of Table 4). "point", "image" and "text" hide objects' vectors and the scene's points or tokens alike.
        drop: modality -> probability with which it is hidden, never all that a scene has.
        turn_boxes: turns all boxes of a scene by a random quarter about z. Boxes stay in the scene's own axes whatever
            `transform` does to the points: they enter by location terms of the object level alone, never beside the cloud.
        widths: widths of the vectors (`object_image=1536`, `image_token=3072`, ...). Needed for modalities that no scene has;
            a file of another width is an error.
        class_names: labels in the order of their ids in `object_class`; by default all labels of these scenes, sorted.

    Raises: FileNotFoundError where no scene has features; ValueError where files of different encoders or widths meet, or a file
        is of another scene; KeyError for an unknown modality in `chunks`, `drop` or `widths`.
    """

    hint = MODALITIES_HINT

    def __init__(
        self,
        split: str | Sequence[str] = "train",
        data_root: str | Path | Sequence[str | Path] = "data/rooms_modalities",
        recipe: str = "pocket",
        feature_root: str | Path | Sequence[str | Path | None] | None = None,
        points: bool = True,
        object_points: bool = False,
        views: int | None = None,
        referrals: int | None = None,
        max_objects: int | None = None,
        fixed: bool = False,
        chunks: Mapping[str, str | Path | Sequence[str]] | None = None,
        drop: Mapping[str, float] | None = None,
        turn_boxes: bool = False,
        widths: Mapping[str, int] | None = None,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (("views", views), ("referrals", referrals), ("max_objects", max_objects)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"CrossOverDataset: {name} must be a whole number of at least 1, or None for all, got {value!r}")
        self.roots = [Path(data_root)] if isinstance(data_root, (str, Path)) else [Path(root) for root in data_root]
        if len(self.roots) > 1 and kwargs.get("lr_file") is not None:
            raise ValueError("CrossOverDataset: lr_file names scenes of one data_root; here are several")
        self.recipe, self.feature_roots = recipe, self._one_each(feature_root)
        self.points, self.object_points, self.turn_boxes, self.fixed = points, object_points, turn_boxes, fixed
        self.views, self.referrals, self.max_objects = views, referrals, max_objects
        self.drop = dict(drop or {})
        _check_names("drop", self.drop, MODALITIES)
        _check_names("chunks", chunks or {}, MODALITIES)
        _check_names("widths", widths or {}, WIDTHS)
        if not all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in self.drop.values()):
            raise ValueError(f"CrossOverDataset: drop holds probabilities from 0 to 1, got {self.drop}")
        self._features: dict[int, ModalityFeatures] = {}
        self._no_points: DataDict | None = None
        super().__init__(split=split, data_root=self.roots[0], **kwargs)
        self.widths = self._common_widths(widths or {})
        self.class_names = list(class_names) if class_names is not None else self._labels_there
        self._class = {name: number for number, name in enumerate(self.class_names)}
        self.chunks = {name: self._chunk(name, listed) for name, listed in (chunks or {}).items()}

    # which scenes

    def _one_each(self, feature_root: Any) -> list[Path | None]:
        """A feature root for each data root."""
        given = [feature_root] if feature_root is None or isinstance(feature_root, (str, Path)) else list(feature_root)
        if len(given) == 1:
            given *= len(self.roots)
        if len(given) != len(self.roots):
            raise ValueError(f"CrossOverDataset: {len(given)} feature roots for {len(self.roots)} data roots; wanted one, or as many")
        return [None if root is None else Path(root) for root in given]

    def get_data_list(self) -> list[Path]:
        """The scene folders that have features, root after root; `self.files` are those. Raises as the class says."""
        found: list[tuple[Path, Path]] = []
        for root, feature_root in zip(self.roots, self.feature_roots, strict=True):
            self.data_root = root
            found += [(folder, modality_path(folder, self.recipe, feature_root)) for folder in super().get_data_list()]
        self.data_root = self.roots[0]
        kept = [(folder, path) for folder, path in found if path.is_file()]
        if len(kept) < len(found):
            first = next(path for _, path in found if not path.is_file())
            if not kept:
                raise FileNotFoundError(
                    f"CrossOverDataset: none of the {len(found)} scenes has features of recipe {self.recipe!r}, first {first}; "
                    f"tools/preprocess/modalities.py --recipe {self.recipe} makes them"
                )
            words = "%d of %d scenes lack features of recipe %r and are left out; first: %s"
            logger.warning(words, len(found) - len(kept), len(found), self.recipe, first)
        self.files = [path for _, path in kept]
        headers = {str(path): read_header(path, KIND) for path in self.files}
        check_encoders({path: header["encoders"] for path, header in headers.items()})
        self.encoders = {name: fingerprint for header in headers.values() for name, fingerprint in header["encoders"].items()}
        self._labels_there = sorted({label for header in headers.values() for label in header["labels"]})
        return [folder for folder, _ in kept]

    def _common_widths(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """The width of every kind of vector. Raises ValueError, which names the file, where one differs."""
        widths, first = dict(wanted), {name: "the config's widths" for name in wanted}
        for path in self.files:
            for name, width in read_widths(path).items():
                if widths.setdefault(name, width) != width:
                    where = first[name]
                    raise ValueError(f"{path}: {name} is {width} wide, but {widths[name]} in {where}; is {self.recipe!r} the recipe that is meant?")
                first.setdefault(name, str(path))
        return {name: widths.get(name, 0) for name in WIDTHS}

    def _chunk(self, modality: str, listed: str | Path | Sequence[str]) -> set[str]:
        """The scenes that keep a modality. Raises ValueError where none of them is here."""
        names = set(read_names(listed) if isinstance(listed, (str, Path)) else listed)
        here = {self.scene_name(folder) for folder in self.data_list}
        if not names & here:
            example = min(names) if names else "no name at all"
            raise ValueError(f"CrossOverDataset: chunks[{modality!r}] ({example}, ...) names none of the {len(here)} scenes; {near_names(example, here)}")
        return names

    def features_of(self, idx: int) -> ModalityFeatures:
        """The features of the scene of sample `idx`. Raises ValueError where the file is of another scene."""
        number = idx % len(self.data_list)
        if number in self._features:
            return self._features[number]
        features, name = read_modalities(self.files[number]), self.get_data_name(number)
        if features.scene != name:
            raise ValueError(f"{self.files[number]}: holds features of scene {features.scene!r}, and lies where those of {name!r} belong")
        if self.cache:
            self._features[number] = features
        return features

    # what a sample is

    def get_data(self, idx: int) -> DataDict:
        """The raw sample: the points (none where there are none, or they are not asked for), `modalities`, name."""
        features, name = self.features_of(idx), self.get_data_name(idx)
        keeps_points = self.points and ("point" not in self.chunks or name in self.chunks["point"])
        data = super().get_data(idx) if keeps_points and (self.scene(idx).root / "coord.npy").is_file() else {}
        if data and self.object_points:
            data = self._only_objects(data, features)
        return {**data, "name": name, "split": self.get_split_name(idx), "modalities": features}

    def _only_objects(self, data: DataDict, features: ModalityFeatures) -> DataDict:
        """The points of a scene's objects. Raises ValueError where objects that have points are not in instance.npy."""
        name, instance = data["name"], data["instance"]
        wanted = features.object_id[features.known["point"]] if "point" in features.known else features.object_id[:0]
        absent = np.setdiff1d(wanted, instance)
        if len(absent):
            raise ValueError(
                f"scene {name!r}: instance.npy has no point of the objects {absent.tolist()[:10]}, whose points have features: the file of features "
                "is of other annotations; run tools/preprocess/modalities.py again for this scene"
            )
        keep = np.isin(instance, features.object_id)
        if not keep.any():
            return {}
        count = len(instance)
        return {key: value[keep] if isinstance(value, np.ndarray) and len(value) == count else value for key, value in data.items()}

    def __getitem__(self, idx: int) -> DataDict:
        if not 0 <= idx < len(self):
            raise IndexError(f"sample {idx} of {len(self)}")
        data = self._read(idx)
        features, name, split = data.pop("modalities"), data["name"], data["split"]
        rng = np.random.default_rng(mix_seed("CrossOver", name) if self.fixed else np.random.randint(2**31))
        hidden = self._hidden(features, name, "coord" in data, rng)
        with _naming_scene(data):
            if "coord" not in data or "point" in hidden:
                sample = self._empty_points()
            else:
                sample = self.transform(data)
        sample = {key: value for key, value in sample.items() if kind_of(key) != "per_scene"}
        sample |= self._objects(features, hidden, rng) | self._tokens(features, hidden, rng)
        told = (name, split, features.dataset, features.place or name, features.category, features.reference, features.same_ids)
        return sample | dict(zip(PER_SCENE, told, strict=True))

    def _hidden(self, features: ModalityFeatures, name: str, has_points: bool, rng: np.random.Generator) -> set[str]:
        """The modalities that this sample does without."""
        hidden = {modality for modality, names in self.chunks.items() if name not in names}
        there = {m for m in MODALITIES if m in features.tokens or (m in features.known and features.known[m].any())} - hidden
        there |= {"point"} - hidden if has_points else set()
        dropped = {modality for modality, p in self.drop.items() if rng.random() < p}
        return hidden | dropped if there - dropped else hidden

    def _objects(self, features: ModalityFeatures, hidden: set[str], rng: np.random.Generator) -> DataDict:
        count = len(features)
        rows = _draw(count, self.max_objects, rng)
        known = np.zeros((count, len(OBJECT_MODALITIES)), dtype=np.bool_)
        result: DataDict = {}
        for column, name in enumerate(OBJECT_MODALITIES):
            values = np.zeros((count, self.widths[f"object_{name}"]), dtype=np.float32)
            if name in features.objects and name not in hidden:
                known[:, column] = features.known[name]
                values = features.objects[name]
            result[f"object_{name}"] = to_tensor(values[rows])
        boxes, cad_boxes = features.object_box, features.cad_box
        if self.turn_boxes:
            boxes = quarter_turn(boxes, int(rng.integers(4)))
        classes = np.array([self._class.get(label, -1) for label in features.labels], dtype=np.int64)
        moved = np.isin(features.object_id, features.moved)
        parts = dict(object_id=features.object_id, object_class=classes, object_box=boxes, cad_box=cad_boxes, object_known=known, object_moved=moved)
        result |= {key: to_tensor(value[rows]) for key, value in parts.items()}
        return result | {"object_offset": torch.tensor([len(rows)]), "labels": [features.labels[row] for row in rows]}

    def _tokens(self, features: ModalityFeatures, hidden: set[str], rng: np.random.Generator) -> DataDict:
        result: DataDict = {}
        for name, most in (("image", self.views), ("floorplan", None), ("text", self.referrals)):
            values = features.tokens.get(name) if name not in hidden else None
            if values is None:
                values = np.zeros((0, self.widths[f"{name}_token"]), dtype=np.float32)
            values = values[_draw(len(values), most, rng)]
            result |= {f"{name}_token": to_tensor(values), f"{name}_offset": torch.tensor([len(values)])}
        return result

    def _empty_points(self) -> DataDict:
        """What `transform` makes of a cloud, with 0 points: a scene without one batches with those that have it."""
        if self._no_points is None:
            with preserved_rng(0):
                count = 64
                cloud = dict(
                    coord=np.random.rand(count, 3).astype(np.float32), color=np.zeros((count, 3), np.float32), normal=np.tile(np.float32([0, 0, 1]), (count, 1)),
                    segment=np.full(count, self.ignore_index), instance=np.full(count, -1), name="", split="",
                )  # fmt: skip
                chain = self.transform.transforms
                sample = self.transform(cloud) if any(isinstance(step, Collect) for step in chain) else {"coord": torch.zeros(0, 3)}
            self._no_points = {key: value[:0] if kind_of(key) != "offset" else torch.zeros_like(value) for key, value in sample.items() if torch.is_tensor(value)}
            self._no_points.setdefault("offset", torch.tensor([0]))
        return dict(self._no_points)


def quarter_turn(boxes: NDArray[np.float32], quarters: int) -> NDArray[np.float32]:
    """Boxes [O, 6] (centre, extent) turned by so many times 90 degrees about z: exact, unlike any other angle."""
    x, y, z, dx, dy, dz = boxes.T
    turned = {0: (x, y), 1: (-y, x), 2: (-x, -y), 3: (y, -x)}[quarters % 4]
    return np.stack([*turned, z, *((dx, dy) if quarters % 2 == 0 else (dy, dx)), dz], axis=1)


def _draw(count: int, most: int | None, rng: np.random.Generator) -> NDArray[np.int64]:
    """`most` of `count` rows, ascending; all where that is no fewer."""
    return np.arange(count) if most is None or count <= most else np.sort(rng.choice(count, most, replace=False))


def _check_names(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise KeyError(f"CrossOverDataset: {what} names {name!r}; {near_names(name, known)}")

"""The dataset every other one extends: a list of scene folders, read, transformed, and cut into fragments for tests."""

import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from pointcept3m.datasets.builder import DATASETS, TRANSFORMS
from pointcept3m.datasets.features import SceneFeatures
from pointcept3m.datasets.limited import (
    keep_annotated,
    listed_scenes,
    read_annotated_rows,
    read_names,
    require_annotated,
)
from pointcept3m.datasets.transforms.collect import Collect
from pointcept3m.datasets.transforms.compose import Compose, DataDict
from pointcept3m.structures.scene import Scene
from pointcept3m.utils.errors import add_note
from pointcept3m.utils.registry import ShowsArguments, near_names
from pointcept3m.utils.seed import mix_seed, preserved_rng

logger = logging.getLogger("pointcept3m")


@DATASETS.register_module()
class PointDataset(ShowsArguments, Dataset):
    """Scenes `<data_root>/<split>/<scene>/` as samples: coord, color, normal, segment, instance, name, split.

    Args:
        split: a folder below data_root, several of them, or a `.json` below data_root that lists scene folders.
        data_root: the folder of the data set.
        transform: configs of the transforms, in order.
        test_mode: with `test_cfg`, samples become {segment, name, fragment_list} for a tester that votes.
        test_cfg: dict(voxelize, crop, post_transform, aug_transform), as Pointcept's.
        cache: keeps the arrays of every scene read in this process's memory.
        ignore_index: label of points without one.
        loop: how often an epoch passes over the scenes (always 1 in test mode).
        on_bad_scene: "raise" an error that names the scene, or "skip" it: the log names it once and the next scene in
            order that can be read takes its place. Which one that is follows from the index of the sample and the
            files alone, so samples do not depend on the number of workers.
        lr_file: a text file of scene names, one a line: only those scenes are used, in that order (ScanNet's limited
            reconstructions).
        la_file: a torch file {scene name: rows that carry a label}: other labels are hidden (limited annotations), and
            the rows stand in `sampled_index`, which every transform keeps up.
        feature_teachers: names of 2D teachers whose features of the points `tools/preprocess/fuse_features.py` has written.
            Samples then hold `feature_row` and `feature_files`, which `SampleTargets` reads; scenes without such files leave
            the list, and the log says how many.
        feature_root: the folder of those files; None where they lie in the scene folders.
        feature_common: takes the points that all those teachers know, where by default masks that differ are an error.

    Raises: FileNotFoundError where the data are not there, with `hint`: what to put where, and which command needs
        none of it.
    """

    segment_asset = "segment"
    hint = "see docs/data.md for the layout of a scene folder"

    def __init__(
        self,
        split: str | Sequence[str] = "train",
        data_root: str | Path = "data/dataset",
        transform: Sequence[Any] | None = None,
        test_mode: bool = False,
        test_cfg: Mapping[str, Any] | None = None,
        cache: bool = False,
        ignore_index: int = -1,
        loop: int = 1,
        on_bad_scene: str = "raise",
        lr_file: str | Path | None = None,
        la_file: str | Path | None = None,
        feature_teachers: Sequence[str] = (),
        feature_root: str | Path | None = None,
        feature_common: bool = False,
    ) -> None:
        super().__init__()
        if on_bad_scene not in ("raise", "skip"):
            raise ValueError(f"on_bad_scene must be 'raise' or 'skip', got {on_bad_scene!r}")
        if not isinstance(loop, int) or loop < 1:
            raise ValueError(f"loop must be an integer of at least 1, got {loop!r}")
        self.split, self.data_root = split, Path(data_root)
        self.transform = Compose(transform)
        self.ignore_index, self.cache, self.on_bad_scene = ignore_index, cache, on_bad_scene
        self.test_mode, self.test_cfg = test_mode, test_cfg
        self.loop = 1 if test_mode else loop
        self._memory: dict[int, dict[str, np.ndarray]] = {}
        self._named: set[int] = set()
        self._scenes: dict[int, Scene] = {}
        if test_cfg:
            self._build_test(test_cfg)
        self.lr_names = None if lr_file is None else read_names(lr_file)
        self.la_rows = None if la_file is None else read_annotated_rows(la_file)
        self.data_list = self.get_data_list()
        if self.la_rows is not None:
            require_annotated(map(self.scene_name, self.data_list), self.la_rows)
        self.features = SceneFeatures(feature_teachers, feature_root, feature_common) if feature_teachers else None
        if self.features is not None:
            self.data_list = self.features.scenes_with_files(self.data_list)
        self.num_labelled = self._count_labelled()
        logger.info("%s: %d scenes x %d in split %s", type(self).__name__, len(self.data_list), self.loop, split)

    def _build_test(self, test_cfg: Mapping[str, Any]) -> None:
        known = ("voxelize", "crop", "post_transform", "aug_transform")
        for key in test_cfg:
            if key not in known:
                raise KeyError(f"test_cfg has no {key!r}; {near_names(key, known)}")
        voxelize, crop = test_cfg.get("voxelize"), test_cfg.get("crop")
        self.test_voxelize = TRANSFORMS.build(voxelize) if voxelize else None
        self.test_crop = TRANSFORMS.build(crop) if crop else None
        self.post_transform = Compose(test_cfg.get("post_transform"), self.transform.tensors)
        self.aug_transform = [Compose(aug, self.transform.tensors) for aug in test_cfg.get("aug_transform") or [[]]]

    # where the scenes are

    def get_data_list(self) -> list[Path]:
        """The scene folders, sorted within each split. Raises FileNotFoundError with `hint` where there are none."""
        if not self.data_root.is_dir():
            raise FileNotFoundError(f"{self.data_root}: no such folder for {type(self).__name__}. {self.hint}")
        splits = [self.split] if isinstance(self.split, str) else list(self.split)
        folders = [folder for split in splits for folder in self._folders_of(split)]
        if not folders:
            raise FileNotFoundError(
                f"{type(self).__name__}: no scene in {self.data_root}, split {self.split}. {self.hint}"
            )
        if self.lr_names is None:
            return folders
        by_name = {self.scene_name(folder): folder for folder in folders}
        return listed_scenes(by_name, self.lr_names, f"{self.data_root}, split {self.split}")

    def _folders_of(self, split: str) -> list[Path]:
        if split.endswith(".json"):
            path = self.data_root / split
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such list of scenes")
            try:
                listed = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path}: not JSON ({error})") from error
            if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
                raise ValueError(f"{path}: wanted a JSON list of scene folders below {self.data_root}")
            return [self.data_root / item for item in listed]
        folder = self.data_root / split
        if not folder.is_dir():
            others = [p.name for p in self.data_root.iterdir() if p.is_dir()]
            near = near_names(split, others) if others else "it has no folders"
            raise FileNotFoundError(f"{type(self).__name__}: {folder} not found; {near}. {self.hint}")
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))

    def scene_name(self, folder: Path) -> str:
        """What the scene in `folder` is called in samples, lists of scenes and predictions."""
        return folder.name

    def get_data_name(self, idx: int) -> str:
        """The name of the scene of sample `idx`."""
        return self.scene_name(self.data_list[idx % len(self.data_list)])

    def get_split_name(self, idx: int) -> str:
        """The folder that holds the scene of sample `idx`."""
        return self.data_list[idx % len(self.data_list)].parent.name

    def scene(self, idx: int) -> Scene:
        """The scene of sample `idx`, opened once."""
        idx %= len(self.data_list)
        if idx not in self._scenes:
            self._scenes[idx] = self.open_scene(self.data_list[idx])
        return self._scenes[idx]

    def open_scene(self, folder: Path) -> Scene:
        """How a scene folder is opened; data sets whose frames lie apart override it."""
        return Scene(folder)

    # what a sample is

    def get_data(self, idx: int) -> DataDict:
        """The raw sample: coord, color, normal [N, 3] float32 (those the scene has), segment, instance [N] int64
        (`ignore_index` where the scene has none), name, split."""
        scene_index = idx % len(self.data_list)
        scene = self.scene(idx)
        assets = self._memory.get(scene_index)
        if assets is None:
            assets = scene.points(("coord", "color", "normal", "strength", self.segment_asset, "instance"))
            if self.cache:
                self._memory[scene_index] = assets
        data = {key: value.copy() if self.cache else value for key, value in assets.items()}
        count = len(data["coord"])
        data["segment"] = self._labels(data.pop(self.segment_asset, None), count)
        data["instance"] = self._labels(data.get("instance"), count)
        data["name"], data["split"] = self.get_data_name(idx), self.get_split_name(idx)
        if self.la_rows is not None:
            keep_annotated(data, self.la_rows[data["name"]], self.ignore_index)
        if self.features is not None:
            data.update(self.features.draw(scene.root, data["coord"]))
        return data

    def _count_labelled(self) -> int | None:
        """How many scenes have a file of labels, with a warning where some have none; None where labels are not asked for.

        Tests may do without, and so may a data set that makes its labels itself.
        """
        asked = any(isinstance(step, Collect) and "segment" in step.keys for step in self.transform.transforms)
        if not asked or self.test_mode or not type(self).get_data.__module__.startswith("pointcept3m."):
            return None
        bare = [folder for folder in map(Path, self.data_list) if not (folder / f"{self.segment_asset}.npy").is_file()]
        if bare:
            words = f"{type(self).__name__}: {len(bare)} of {len(self.data_list)} scenes in split {self.split} have no"
            logger.warning("%s %s.npy, so their points have no label; first %s", words, self.segment_asset, bare[0])
        return len(self.data_list) - len(bare)

    def _labels(self, values: np.ndarray | None, count: int) -> np.ndarray:
        """Labels as int64, with -1 (unlabelled on disk) turned into `ignore_index`."""
        if values is None:
            return np.full(count, self.ignore_index, dtype=np.int64)
        return values if self.ignore_index == -1 else np.where(values == -1, self.ignore_index, values)

    def __len__(self) -> int:
        return len(self.data_list) * self.loop

    def __getitem__(self, idx: int) -> DataDict:
        if not 0 <= idx < len(self):
            raise IndexError(f"sample {idx} of {len(self)}")
        data = self._read(idx)
        if self.test_mode and self.test_cfg:
            with _naming_scene(data):
                return self.prepare_test_data(data)
        with _naming_scene(data):
            name, sample = data["name"], self.transform(data)
        if isinstance(sample, dict):
            sample.setdefault("name", name)  # Pointcept's configs do not collect it, but errors shall name the scene
        return sample

    def _read(self, idx: int) -> DataDict:
        """`get_data`, or with on_bad_scene="skip" that of the next scene that can be read.

        Each call tries the scenes anew: what earlier samples of this worker met must not show in this one, not even
        in how many random numbers were drawn.
        """
        if self.on_bad_scene == "raise":
            return self.get_data(idx)
        for step in range(len(self.data_list)):
            scene_index = (idx + step) % len(self.data_list)
            try:
                return self.get_data(scene_index)
            except (OSError, ValueError, KeyError) as error:
                self._warn_bad(scene_index, error)
        raise ValueError(f"{type(self).__name__}: not one of the {len(self.data_list)} scenes can be read")

    def _warn_bad(self, scene_index: int, error: Exception) -> None:
        """Names a skipped scene, once."""
        if scene_index not in self._named:
            self._named.add(scene_index)
            logger.warning("scene %s is skipped: %s", self.get_data_name(scene_index), error)

    def prepare_test_data(self, data: DataDict) -> DataDict:
        """{segment, name, fragment_list, [origin_segment, inverse]}: every augmentation's fragments, in order.

        Each fragment holds `index`, the rows of `segment` that it predicts.
        """
        data = self.transform(data)
        result, seed = self._test_scene(data)
        parts = [self._test_fragments(data, seed, part)[0] for part in range(len(self.aug_transform))]
        result["fragment_list"] = [fragment for part in parts for fragment in part]
        return result

    @property
    def num_test_parts(self) -> int:
        """In how many parts a tester can ask for a scene: one for each augmentation.

        0 where it gives whole scenes only, as a data set does that has a `prepare_test_data` of its own.
        """
        whole = type(self).prepare_test_data is not PointDataset.prepare_test_data
        return 0 if whole or not (self.test_mode and self.test_cfg) else len(self.aug_transform)

    def get_test_part(self, idx: int, part: int, most: int | None = None) -> DataDict:
        """Sample `idx` with the fragments of augmentation `part` alone; what is said once of a scene is in part 0.

        Whoever holds one part at a time needs memory for one augmentation's fragments. The parts are those of the
        whole sample where the generators start from the same state for each.

        most: only so many fragments where a grid makes more, and in `voxel` [N] which row of theirs, the same in each,
            is of the voxel of each point. (Not where test_cfg crops.)
        """
        data = self._read(idx)
        with _naming_scene(data):
            data = self.transform(data)
            result, seed = self._test_scene(data)
            fragments, voxel = self._test_fragments(data, seed, part, most)
        if part > 0:
            result = {"name": result["name"]}
        if voxel is not None:
            result["voxel"] = voxel
        return {**result, "test_part": (part, len(self.aug_transform)), "fragment_list": fragments}

    def _test_scene(self, data: DataDict) -> tuple[DataDict, int]:
        """({segment, name, [origin_segment, inverse]}, a seed for the augmentations); takes those keys out of `data`."""
        result = {key: data.pop(key) for key in ("segment", "name")}
        if "origin_segment" in data:
            if "inverse" not in data:
                raise KeyError("test data with origin_segment need inverse: GridSample(return_inverse=True)")
            result.update(origin_segment=data.pop("origin_segment"), inverse=data.pop("inverse"))
        return result, int(np.random.randint(2**31))

    def _test_fragments(
        self, data: DataDict, seed: int, part: int, most: int | None = None
    ) -> tuple[list[DataDict], np.ndarray | None]:
        """The fragments of augmentation `part` of a scene, which draws from generators of its own; and `voxel`."""
        voxel = None
        with preserved_rng(mix_seed(seed, part)):
            augmented = self.aug_transform[part](copy.deepcopy(data))
            if self.test_voxelize is None:
                augmented["index"] = np.arange(len(augmented["coord"]))
                fragments = [augmented]
            else:
                fragments = self.test_voxelize(augmented)
            if self.test_crop:
                fragments = [self.test_crop(fragment) for fragment in fragments]
            elif most is not None and self.test_voxelize is not None:
                voxel = np.empty(len(augmented["coord"]), dtype=np.int64)
                for fragment in fragments:  # a fragment has one row of each voxel, in the order of voxels
                    voxel[np.asarray(fragment["index"])] = np.arange(len(fragment["index"]))
                fragments = fragments[:most]
            return [self.post_transform(fragment) for fragment in fragments], voxel


@contextmanager
def _naming_scene(data: DataDict) -> Iterator[None]:
    """Adds the scene of a raw sample, and which common files it lacks, to an error within."""
    where = f"in scene {data['name']!r}"
    absent = [f"{key}.npy" for key in ("color", "normal") if key not in data]
    if absent:
        where += f", whose folder has no {' and no '.join(absent)}"
    try:
        yield
    except (KeyError, ValueError, TypeError) as error:
        add_note(error, where)
        raise


DATASETS.register_module("DefaultDataset", module=PointDataset)

"""Datasets whose samples also hold posed views: what pretraining by rendering learns from."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pointcept3m.datasets.base import PointDataset
from pointcept3m.datasets.builder import DATASETS
from pointcept3m.datasets.rooms_dataset import ROOMS_HINT
from pointcept3m.datasets.scannet import SCANNET_HINT
from pointcept3m.datasets.transforms.compose import DataDict
from pointcept3m.structures.scene import Scene, heldout

logger = logging.getLogger("pointcept3m")


class RGBDDataset(PointDataset):
    """A PointDataset whose samples also hold M views of the scene.

    Adds to every sample: rgb [M, H, W, 3] float32 0..1 · depth [M, H, W] float32 metres · intrinsic [M, 3, 3]
    · extrinsic [M, 4, 4] float64 world->camera · view_name, M strings "scene/frame". Only the M frames drawn are
    decoded, but the poses and intrinsics of all that can be drawn are checked at the start, before work is lost: a
    scene that fails is an error then, or with on_bad_scene="skip" leaves the list of scenes.

    Args:
        rgb_root: the folder with one folder of frames for every scene; None where frames lie in the scene folders.
        num_cameras: M. Drawn anew without replacement for every training sample; fixed and evenly spaced in test
            mode, for the split "val" and for held-out views. A scene with fewer frames repeats them.
        image_size: (H, W) of the views.
        view_split: "train" (all but the held-out frames), "heldout", or "all".
        holdout: every n-th frame is held out (see `pointcept3m.structures.heldout`); 0 holds none out.
        fixed_views: overrides whether the views are fixed.
        **kwargs: as PointDataset.
    """

    def __init__(
        self,
        split: str | Sequence[str] = "train",
        data_root: str | Path = "data/dataset",
        rgb_root: str | Path | None = None,
        num_cameras: int = 5,
        image_size: tuple[int, int] = (480, 640),
        view_split: str = "train",
        holdout: int = 8,
        fixed_views: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if view_split not in ("train", "heldout", "all"):
            raise ValueError(f"view_split must be 'train', 'heldout' or 'all', got {view_split!r}")
        if num_cameras < 1 or min(image_size) < 1:
            raise ValueError(f"num_cameras and image_size must be at least 1, got {num_cameras} and {image_size}")
        if view_split == "heldout" and holdout == 0:
            raise ValueError("view_split='heldout' needs a holdout of at least 2: holdout=0 keeps no frame back")
        self.rgb_root = None if rgb_root is None else Path(rgb_root)
        self.num_cameras, self.image_size = num_cameras, (int(image_size[0]), int(image_size[1]))
        self.view_split, self.holdout = view_split, holdout
        super().__init__(split=split, data_root=data_root, **kwargs)
        if fixed_views is None:
            fixed_views = self.test_mode or view_split == "heldout" or split == "val"
        self.fixed_views = fixed_views
        self._view_names: dict[int, list[str]] = {}
        self._check_scenes()

    def _check_scenes(self) -> None:
        """Looks over the frames of every scene; the list of scenes loses those that fail, or the first one raises."""
        sound = []
        for idx, folder in enumerate(self.data_list):
            try:
                self.scene(idx).check_frames(self.view_names(idx))
                sound.append(folder)
            except (OSError, ValueError, KeyError) as error:
                if self.on_bad_scene == "raise":
                    raise
                self._warn_bad(idx, error)
        if not sound:
            raise ValueError(f"{type(self).__name__}: not one of the {len(self.data_list)} scenes has frames that can be used")
        if len(sound) < len(self.data_list):
            self.data_list = sound
            for by_number in (self._scenes, self._view_names, self._named):  # scenes have other numbers now
                by_number.clear()

    def open_scene(self, folder: Path) -> Scene:
        return Scene(folder, frames_root=self.rgb_root)

    def get_data_list(self) -> list[Path]:
        if self.rgb_root is not None and not self.rgb_root.is_dir():
            raise FileNotFoundError(f"{self.rgb_root}: no such folder of frames for {type(self).__name__}. {self.hint}")
        return super().get_data_list()

    def view_names(self, idx: int) -> list[str]:
        """The frames of the scene of sample `idx` that belong to `view_split`, in order."""
        idx %= len(self.data_list)
        if idx not in self._view_names:
            scene = self.scene(idx)
            check_holdout(scene, self.holdout)
            held = set(heldout(scene.frame_names, self.holdout))
            keep = {"train": lambda n: n not in held, "heldout": lambda n: n in held, "all": lambda n: True}
            names = [n for n in scene.frame_names if keep[self.view_split](n)]
            if not names:
                raise ValueError(
                    f"scene {scene.name!r}: none of its {len(scene.frame_names)} frames is {self.view_split}"
                )
            if len(names) < self.num_cameras:
                logger.warning(
                    "scene %s has %d %s views where num_cameras is %d; views repeat",
                    scene.name, len(names), self.view_split, self.num_cameras,
                )  # fmt: skip
            self._view_names[idx] = names
        return self._view_names[idx]

    def draw_views(self, names: Sequence[str]) -> list[str]:
        """`num_cameras` of `names`: evenly spaced if views are fixed, else at random, as few repeated as can be."""
        count = len(names)
        if self.fixed_views:
            rows = (np.arange(self.num_cameras) + 0.5) * count / self.num_cameras
            return [names[int(row)] for row in rows]
        turns = [np.random.permutation(count) for _ in range(-(-self.num_cameras // count))]
        return [names[row] for row in np.concatenate(turns)[: self.num_cameras]]

    def get_data(self, idx: int) -> DataDict:
        data = super().get_data(idx)
        scene = self.scene(idx)
        frames = [scene.frame(name, self.image_size) for name in self.draw_views(self.view_names(idx))]
        data["rgb"] = np.stack([frame.rgb for frame in frames])
        data["depth"] = np.stack([frame.depth for frame in frames])
        data["intrinsic"] = np.stack([frame.intrinsic for frame in frames])
        data["extrinsic"] = np.stack([frame.extrinsic for frame in frames])
        data["view_name"] = [frame.name for frame in frames]
        return data


def check_holdout(scene: Scene, holdout: int) -> None:
    """Raises ValueError where the cloud of `scene` was fused with another holdout than the views are split by.

    Only clouds fused by this project's RGB-D preprocessing say how (`fusion.json`); a sensor's own scan has no such
    file, and nothing to check.
    """
    fused = scene.fusion_settings()
    if fused and fused["holdout"] != holdout:
        raise ValueError(
            f"scene {scene.name!r} was fused with --holdout {fused['holdout']} but the data set splits views by "
            f"holdout={holdout}: held-out views would be in the cloud. Set holdout={fused['holdout']} or fuse again."
        )


@DATASETS.register_module()
class ScanNetRGBDDataset(RGBDDataset):
    """ScanNet scenes with views, as GaussianCross pretrains on them. Labels are segment20 where they exist."""

    segment_asset = "segment20"
    hint = SCANNET_HINT

    def __init__(
        self,
        split: str | Sequence[str] = "train",
        data_root: str | Path = "data/scannet",
        rgb_root: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(split=split, data_root=data_root, rgb_root=rgb_root, **kwargs)


@DATASETS.register_module()
class RoomsRGBDDataset(RGBDDataset):
    """Generated rooms with views."""

    hint = ROOMS_HINT

    def __init__(
        self, split: str | Sequence[str] = "train", data_root: str | Path = "data/rooms", **kwargs: Any
    ) -> None:
        super().__init__(split=split, data_root=data_root, **kwargs)


@DATASETS.register_module()
class RGBDFolderDataset(RGBDDataset):
    """Any folders of posed RGB-D frames that `tools/preprocess/rgbd.py` has fused."""

    hint = (
        "Fuse a folder of posed RGB-D frames with `python tools/preprocess/rgbd.py --input FOLDER "
        "--output data/rgbd/train/NAME`, or run `pointcept3m demo`, which needs no data."
    )

    def __init__(
        self, split: str | Sequence[str] = "train", data_root: str | Path = "data/rgbd", **kwargs: Any
    ) -> None:
        super().__init__(split=split, data_root=data_root, **kwargs)

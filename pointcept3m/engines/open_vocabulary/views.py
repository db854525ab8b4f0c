"""What an open-vocabulary test reads of a scene: random views of it on the network's grid, and its fused 2D features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pointcept3m.datasets.transforms.compose import Compose
from pointcept3m.engines.predict.scan_input import ScanInput, scan_input
from pointcept3m.structures.fused_features import FusedFeatures, find_features, open_features
from pointcept3m.utils.errors import add_note
from pointcept3m.utils.seed import mix_seed, preserved_rng

# The release's test: turned by up to pi / 64 about x and y and by any angle about z, scaled by 0.9 to 1.1.
VIEW = (
    dict(type="RandomRotate", angle=(-1 / 64, 1 / 64), axis="x", always_apply=True),
    dict(type="RandomRotate", angle=(-1 / 64, 1 / 64), axis="y", always_apply=True),
    dict(type="RandomRotate", angle=(-1, 1), axis="z", always_apply=True),
    dict(type="RandomScale", scale=(0.9, 1.1)),
)
ATTRIBUTES = ("coord", "color", "normal", "strength")


class SceneViews(Dataset):
    """Scenes of a labelled data set as a network's input, each in `num_parts` views; item `scene * num_parts + view`.

    section: the data section whose transforms lead from points to the network's input, with a `test_cfg` or without; what
    they do to labels is left out. One point stands for each voxel. augment: every view is turned and scaled at random
    (`VIEW`), by generators that start from (seed, scene, view); without it there is one view, the scene as it is.

    An item: name, root, view (number, of how many), fragment (a sample of the network's batch), inverse int64 [N], the row of
    the fragment that stands for each raw point, segment int64 [N], and coord [N, 3], the last two in view 0 alone.
    """

    def __init__(self, dataset: Any, section: Mapping[str, Any], views: int = 1, augment: bool = True, seed: int = 0):
        if not (hasattr(dataset, "get_data") and hasattr(dataset, "scene")):
            raise TypeError(f"an open-vocabulary test needs a data set of scene folders (PointDataset), got {type(dataset).__name__}")
        self.dataset, self.num_parts, self.seed = dataset, views, seed
        self.steps: ScanInput = scan_input({"data": {"test": section}})
        self.augment = Compose(VIEW, self.steps.prepare.tensors) if augment else None

    def __len__(self) -> int:
        return len(self.dataset) * self.num_parts

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, view = divmod(index, self.num_parts)
        data = self.dataset.get_data(scene)
        name = self.dataset.get_data_name(scene)
        try:
            with preserved_rng(mix_seed(self.seed, "view", scene, view)):
                fragment, inverse = self._input({key: data[key].copy() for key in ATTRIBUTES if key in data})
        except (KeyError, ValueError, TypeError) as error:
            add_note(error, f"in scene {name!r}")
            raise
        if len(inverse) != len(data["coord"]):
            raise ValueError(
                f"scene {name}: the transforms of data.test keep {len(inverse)} of {len(data['coord'])} points before the grid; a test "
                "scores every point, so they must drop none"
            )
        item = {"name": name, "root": str(self.dataset.scene(scene).root), "view": (view, self.num_parts), "fragment": fragment, "inverse": inverse}
        return item if view else {**item, "segment": torch.as_tensor(data["segment"]).long(), "coord": data["coord"]}

    def _input(self, sample: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
        sample = self.steps.prepare(sample)
        before = sample.pop("inverse", None)  # of a grid among the first transforms
        if self.augment is not None:
            sample = self.augment(sample)
        voxels = self.steps.voxels(sample)
        fragment = next(self.steps.fragments(sample, voxels, 1))
        inverse = voxels.inverse
        return fragment, inverse if before is None else inverse[torch.as_tensor(before).long()]


class SceneFusion:
    """Fused features of one scene's N points, from one file or several.

    Where OpenScene's random subsets (`{scene}_{n}.pt`) are all there is, a point's features are those of the first that has it.
    seen: bool [N], the points that have features.
    """

    def __init__(self, files: Sequence[FusedFeatures], num_points: int, dim: int):
        self.files, self.dim = files, dim
        self.owner = np.full(num_points, -1, np.int64)
        for number in reversed(range(len(files))):
            self.owner[files[number].mask] = number

    @property
    def seen(self) -> NDArray[np.bool_]:
        return self.owner >= 0

    def read(self, rows: slice) -> NDArray[np.float32]:
        """[n, dim] of the points `rows`, zeros where no camera saw them."""
        owner, points = self.owner[rows], np.arange(len(self.owner))[rows]
        result = np.zeros((len(points), self.dim), np.float32)
        for number, file in enumerate(self.files):
            mine = owner == number
            result[mine] = file.read(points[mine])
        return result


def open_fusion(
    root: str | Path, teacher: str, feature_root: str | Path | None, coord: NDArray, dim: int, missing: str = "raise"
) -> SceneFusion:
    """The features of `teacher` for the points `coord` [N, 3] of the scene in `root`.

    missing: "unseen" takes a scene without files for one that no camera saw, as the fusion leaves those out.
    Raises: as `find_features` and `open_features`; ValueError where widths differ from `dim`.
    """
    try:
        paths = find_features(root, teacher, feature_root)
    except FileNotFoundError:
        if missing == "raise":
            raise
        paths = []
    files = [open_features(path, coord=coord) for path in paths]
    for file in files:
        if file.dim != dim:
            raise ValueError(
                f"{file.path}: features of {teacher!r} have {file.dim} channels, the text encoder gives {dim}; they do not share a space"
            )
    return SceneFusion(files, len(coord), dim)

"""The transform that turns fused 2D features into the targets of distillation."""

import logging

import numpy as np

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms.compose import DataDict, Transform

logger = logging.getLogger("pointcept3m")


@TRANSFORMS.register_module()
class SampleTargets(Transform):
    """Draws at most `num_points` of the points that cameras saw, and reads each teacher's features of them.

    Put it where no point is dropped any more, after GridSample and crops: only then are features read, and only those.
    Adds `target_index` [S] int64, rows of the sample in ascending order, and for each teacher `target_<name>` [S, D] float32;
    takes the open files out of the sample. Where no camera saw a point of what is left of the scene, there are no targets, and
    the log says so; the scene then teaches nothing this time.
    CUA-O3D Sec. 4.2: 20,000 points a scene (the released code stores up to 300,000 and uses all of them).
    """

    reads = ("coord", "feature_row", "feature_files")

    def __init__(self, num_points: int = 20_000) -> None:
        if not isinstance(num_points, int) or num_points < 1:
            raise ValueError(f"SampleTargets: num_points must be at least 1, got {num_points!r}")
        self.num_points = num_points

    def apply(self, data_dict: DataDict) -> DataDict:
        files, row = data_dict.pop("feature_files"), data_dict.pop("feature_row")
        seen = np.flatnonzero(row >= 0)
        if len(seen) == 0:
            words = "scene %s: no camera saw any of the %d points that a crop or the grid kept of it, so it has no targets this time"
            logger.warning(words, data_dict.get("name", "without a name"), len(row))
        if len(seen) > self.num_points:
            seen = np.sort(np.random.choice(seen, self.num_points, replace=False))
        data_dict["target_index"] = seen
        for teacher, file in files.items():
            data_dict[f"target_{teacher}"] = file.read(row[seen])
        return data_dict

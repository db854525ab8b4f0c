"""What data sets need of fused 2D features: which scenes have them, and which files a visit of a scene reads."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.fused_features import check_masks, find_features, open_features

logger = logging.getLogger("pointcept3m")


class SceneFeatures:
    """The fused features of `teachers`, below `root` or in the scene folders.

    common: take the points that all teachers have features of, instead of refusing masks that differ. For files whose points
    were drawn apart, as OpenScene's downloads of two teachers.
    """

    def __init__(self, teachers: Sequence[str], root: str | Path | None = None, common: bool = False) -> None:
        if isinstance(teachers, str):
            raise TypeError(f"feature_teachers must be a list of names, got the string {teachers!r}")
        self.teachers, self.root, self.common = tuple(teachers), root, common

    def scenes_with_files(self, folders: Sequence[Path]) -> list[Path]:
        """Those of `folders` that have a file of each teacher; the log says how many have not, and names the first.

        Raises: FileNotFoundError where none has, as `find_features` says it of the first.
        """
        kept, first, missing = [], None, 0
        for folder in folders:
            try:
                for name in self.teachers:
                    find_features(folder, name, self.root)
                kept.append(folder)
            except FileNotFoundError as error:
                first, missing = first or error, missing + 1
        if not kept and first is not None:
            raise first
        if missing:
            words = "%d of %d scenes lack features and are left out (no camera saw them, or they were not fused yet); first: %s"
            logger.warning(words, missing, len(folders), first)
        return kept

    def draw(self, folder: Path, coord: NDArray[np.float32]) -> dict[str, Any]:
        """`feature_files`, teacher -> open file, and `feature_row` [N]: a visible point's number, -1 where no camera saw it.

        coord [N, 3]: the scene's points as they lie on disk. Where a scene has several files of each teacher (OpenScene's
        random subsets `{scene}_{n}.pt`), one number is drawn for all teachers.
        Raises: ValueError where a file is of other points, or the teachers' masks differ (unless `common`).
        """
        found = {name: find_features(folder, name, self.root) for name in self.teachers}
        most = min(map(len, found.values()))
        turn = random.randrange(most) if most > 1 else 0
        files = {name: open_features(paths[turn], len(coord), coord) for name, paths in found.items()}
        if not self.common:
            check_masks(list(files.values()))
        mask = np.logical_and.reduce([file.mask for file in files.values()])
        return {"feature_files": files, "feature_row": np.where(mask, np.arange(len(coord)), -1)}

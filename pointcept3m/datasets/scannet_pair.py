"""Pairs of overlapping RGB-D frames of one scene, each frame a cloud of its own: what PointContrast learns from.

    <data_root>/<scene>/pcd/<frame>.npz (or Pointcept's .pth): coord [N, 3] in the scene's world, color, maybe normal
    <data_root>/<scene>/pcd/overlap.txt: a line for every pair, "/<scene>/pcd/<a> /<scene>/pcd/<b> <share of overlap>"

`python tools/preprocess/pairs.py` makes them from posed frames; those that Pointcept's scripts made work as they are.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pointcept3m.datasets.builder import DATASETS
from pointcept3m.datasets.transforms.collect import Collect
from pointcept3m.datasets.transforms.compose import Compose, DataDict
from pointcept3m.structures.keys import register_key
from pointcept3m.utils.files import near_files
from pointcept3m.utils.torch_files import load_plain

logger = logging.getLogger("pointcept3m")

PAIRS_HINT = (
    "Pairs of frames are made from posed depth frames: "
    "`python tools/preprocess/pairs.py --input data/scannet/train --output-root data/scannet_pair`"
)
# The coordinates of a frame in the world of its scene; transforms sample them with the points and do not move them.
register_key("world_coord", ("N", 3), "float32", "metres, common to all frames of a scene", "per_point")


@DATASETS.register_module()
class ScanNetPairDataset(Dataset):
    """Two overlapping frames as `view1_x` and `view2_x`, for every key x that the view's transforms leave.

    Args:
        data_root: the folder of scenes.
        overlap_threshold: pairs that overlap by more than this share are used.
        view1_transform, view2_transform: configs of the transforms of each view.
        loop: how often an epoch passes over the pairs.
        test_mode: must be False, since a pair has nothing to be tested on.

    `origin_coord`, by which points are matched, is the scene's own frame for both views, whatever the transforms say.
    (Pointcept's configuration moves each frame to its own centre before it copies `coord` to `origin_coord`, so its
    matches join points that lie as far apart as the two centres; and it samples `origin_coord` in one view only.)

    Raises: FileNotFoundError where there is no overlap.txt; ValueError where a line of one does not fit, or no pair
    overlaps enough.
    """

    def __init__(
        self,
        data_root: str | Path = "data/scannet_pair",
        overlap_threshold: float = 0.3,
        view1_transform: Sequence[Any] | None = None,
        view2_transform: Sequence[Any] | None = None,
        loop: int = 1,
        test_mode: bool = False,
    ) -> None:
        super().__init__()
        if test_mode:
            raise ValueError("ScanNetPairDataset has no test mode: pairs are for pretraining")
        if not isinstance(loop, int) or loop < 1:
            raise ValueError(f"loop must be an integer of at least 1, got {loop!r}")
        self.data_root, self.overlap_threshold, self.loop = Path(data_root), overlap_threshold, loop
        self.view_transforms = (Compose(view1_transform), Compose(view2_transform))
        self.data_list = self.get_data_list()
        logger.info("%s: %d pairs x %d", type(self).__name__, len(self.data_list), loop)

    def get_data_list(self) -> list[tuple[Path, Path]]:
        """The files of every pair, scenes and pairs in the order of their names."""
        lists = sorted(self.data_root.glob("*/pcd/overlap.txt"))
        if not lists:
            raise FileNotFoundError(f"{self.data_root}: no <scene>/pcd/overlap.txt there. {PAIRS_HINT}")
        rows = [row for path in lists for row in read_overlap(path)]
        root = self.data_root.resolve()
        pairs = []
        for names in sorted(names for *names, share in rows if share > self.overlap_threshold):
            # Pointcept writes the paths with a slash in front of them or without, as its data_root ended.
            pair = tuple(self.data_root / name.lstrip("/") for name in names)
            for path in pair:
                if not path.resolve().is_relative_to(root):
                    raise ValueError(f"{self.data_root}: overlap.txt names {path}, which lies outside")
            pairs.append(pair)
        if not pairs:
            most = max((share for *_, share in rows), default=0.0)
            raise ValueError(
                f"{self.data_root}: none of {len(rows)} pairs overlaps by more than {self.overlap_threshold}; the most is {most:.3f}"
            )
        return pairs

    def get_data_name(self, idx: int) -> str:
        """`<scene>/<frame>+<frame>` of pair `idx`."""
        first, second = self.data_list[idx % len(self.data_list)]
        return f"{first.parents[1].name}/{first.stem}+{second.stem}"

    def get_data(self, idx: int) -> tuple[DataDict, DataDict]:
        """The two frames of pair `idx`, as `read_frame` gives them."""
        first, second = self.data_list[idx % len(self.data_list)]
        return read_frame(first), read_frame(second)

    def __len__(self) -> int:
        return len(self.data_list) * self.loop

    def __getitem__(self, idx: int) -> DataDict:
        if not 0 <= idx < len(self):
            raise IndexError(f"pair {idx} of {len(self)}")
        result: DataDict = {}
        for number, (frame, transform) in enumerate(zip(self.get_data(idx), self.view_transforms, strict=True), 1):
            view = self._transformed(frame, transform)
            result.update({f"view{number}_{key}": value for key, value in view.items()})
        return result

    @staticmethod
    def _transformed(frame: DataDict, transform: Compose) -> DataDict:
        """A frame through its transforms, `origin_coord` being the world's when Collect looks at it."""
        view = {**frame, "world_coord": frame["coord"].copy(), "index_valid_keys": [*frame, "origin_coord"]}
        for step in transform.transforms:
            if isinstance(step, Collect) and "origin_coord" in view:
                view["origin_coord"] = view["world_coord"]
            view = step(view)
        return view


def read_overlap(path: str | Path) -> list[tuple[str, str, float]]:
    """The lines of an overlap.txt: two files, and the share of the smaller that overlaps. ValueError names a bad line."""
    rows = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            first, second, share = words
            rows.append((first, second, float(share)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: wanted two files and a number, got {line!r}") from error
    return rows


def read_frame(path: str | Path) -> DataDict:
    """One frame: coord [N, 3] float32 metres, color [N, 3] float32 0..255, normal [N, 3] float32 where it has one.

    Reads `.npz`, and the `.pth` that Pointcept's script writes, in which numpy arrays and nothing else are allowed.
    Raises: FileNotFoundError or ValueError naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such frame; {near_files(path)}")
    arrays = _read_torch(path) if path.suffix == ".pth" else _read_npz(path)
    frame = {}
    for key in ("coord", "color", "normal"):
        if key not in arrays:
            if key == "normal":
                continue
            raise ValueError(f"{path}: no {key!r} in it, but {', '.join(arrays) or 'nothing'}")
        value = np.asarray(arrays[key])
        if value.dtype.kind not in "fiu" or value.ndim != 2 or value.shape[1] != 3:
            raise ValueError(f"{path}: {key} must be numbers [N, 3], got {value.dtype} {list(value.shape)}")
        frame[key] = value.astype(np.float32)
    counts = {key: len(value) for key, value in frame.items()}
    if len(set(counts.values())) > 1 or not counts["coord"]:
        raise ValueError(f"{path}: wanted as many rows of each, at least one, got {counts}")
    if not np.isfinite(frame["coord"]).all():
        raise ValueError(f"{path}: coordinates that are not finite (a lost pose?)")
    return frame


def _read_npz(path: Path) -> dict[str, NDArray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except Exception as error:  # numpy raises many kinds for a damaged archive
        raise ValueError(f"{path}: not a readable .npz ({error})") from error


def _read_torch(path: Path) -> dict[str, Any]:
    content = load_plain(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: wanted a dict of arrays, got {type(content).__name__}")
    return content

"""Scans to look at: scene folders with their labels, and whatever else `datasets.readers.cloud` reads."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets import DATASETS
from pointcept3m.datasets.readers.cloud import read_cloud
from pointcept3m.datasets.scan import ScanOptions, prepare_scan
from pointcept3m.structures.scene import Scene
from pointcept3m.utils.files import near_files

SEGMENTS = ("segment", "segment20", "segment200")


@dataclass
class PointScene:
    """A cloud with z up in metres. coord [N, 3] float32; color [N, 3] 0..255, normal [N, 3], segment [N] int64 or None.

    original_coord: [N, 3] as the file has them, less points that are not finite. rows: [N], where they stand in the file.
    segment_asset: the file that `segment` was read from, without `.npy`. notes: sentences about what was guessed or left out.
    """

    name: str
    path: Path
    coord: NDArray[np.float32]
    original_coord: NDArray
    rows: NDArray[np.int64]
    color: NDArray[np.float32] | None = None
    normal: NDArray[np.float32] | None = None
    segment: NDArray[np.int64] | None = None
    segment_asset: str = ""
    notes: list[str] = field(default_factory=list)
    estimated_normals: bool = False

    def __len__(self) -> int:
        return len(self.coord)

    @property
    def unit(self) -> float:
        """Metres in a unit of `original_coord`."""
        away = np.linalg.norm(self.coord - self.coord[0], axis=1)
        far = int(away.argmax())
        length = np.linalg.norm(np.asarray(self.original_coord[far], np.float64) - self.original_coord[0])
        return float(away[far] / length) if length > 0 else 1.0


def parse_spot(text: str) -> int | NDArray[np.float64] | None:
    """What names a point of a scene's file: INDEX, or x,y,z as an array [3]; None for anything else."""
    if re.fullmatch(r"\d+", text):
        return int(text)
    try:
        values = np.array([float(part) for part in text.split(",")])
    except ValueError:
        return None
    return values if values.shape == (3,) and np.isfinite(values).all() else None


def segment_asset_of(cfg: Mapping[str, Any] | None) -> str | None:
    """The file of labels that the config's data set reads ("segment", "segment20", ...); None where it names no data set."""
    data = (cfg or {}).get("data") or {}
    probes = [hook.get("val") for hook in (cfg or {}).get("hooks", ()) if isinstance(hook, Mapping)]
    for entry in (data.get("val"), data.get("test"), *probes, data.get("train")):
        kind = entry.get("type") if isinstance(entry, Mapping) else None
        if kind in DATASETS and hasattr(DATASETS.get(kind), "segment_asset"):
            return DATASETS.get(kind).segment_asset
    return None


def open_scenes(
    paths: Sequence[str | Path], segment_asset: str | None, arguments: argparse.Namespace
) -> list[PointScene]:
    """The scenes in order, each under a name of its own. Raises: as `open_scene`, for the first that cannot be read."""
    scenes = [open_scene(path, segment_asset, arguments) for path in paths]
    names = [scene.name for scene in scenes]
    for scene in scenes:
        if names.count(scene.name) > 1:
            scene.name = f"{scene.path.resolve().parent.name}-{scene.name}"
    taken: dict[str, int] = {}
    for scene in scenes:
        taken[scene.name] = taken.get(scene.name, 0) + 1
        if taken[scene.name] > 1:
            scene.name = f"{scene.name}-{taken[scene.name]}"
    return scenes


def open_scene(path: str | Path, segment_asset: str | None, arguments: argparse.Namespace) -> PointScene:
    """The cloud in a scene folder of `.npy` files or in any file that `read_cloud` knows, turned so that z is up, in metres.

    segment_asset: the file of labels of a scene folder; None takes the first of SEGMENTS that it has.
    Raises: FileNotFoundError with near files; ValueError naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such scene; {near_files(path)}")
    # The axis is asked for twice: frames are fused with it, points are turned by it.
    cloud = read_cloud(path, **({"up_axis": arguments.up_axis} if path.is_dir() else {}))
    scan = prepare_scan(cloud, scan_options(arguments))
    is_folder = (path / "coord.npy").is_file()
    asset = _asset_of(path, segment_asset) if is_folder else ""
    # a scene folder says all this by its layout, except that normals are computed where it has none
    told = ("unit: ", "up is ", "colours: 0..255") if is_folder else ()
    notes = [note for note in scan.guesses if not note.startswith(told) and (cloud.color is not None or not note.startswith("colours"))]
    if is_folder:
        notes = [note for note in notes if not note.startswith("normals: ") or "estimated" in note]
    return PointScene(
        name=path.resolve().stem if path.is_file() else path.resolve().name,
        path=path,
        coord=scan.coord,
        original_coord=cloud.coord[scan.valid],
        rows=np.flatnonzero(scan.valid),
        color=scan.color if cloud.color is not None or arguments.fill_color is not None else None,
        normal=scan.normal,
        estimated_normals=cloud.normal is None or arguments.normals == "estimate",
        segment=Scene(path).load(asset, count=len(scan.valid))[scan.valid] if asset else None,
        segment_asset=asset,
        notes=notes,
    )


def scan_options(arguments: argparse.Namespace) -> ScanOptions:
    """What the command line says about scans whose files do not."""
    given = {name: getattr(arguments, name) for name in ("up_axis", "unit", "color_range", "normals", "fill_color")}
    return ScanOptions(**{name: value for name, value in given.items() if value is not None})


def _asset_of(path: Path, asset: str | None) -> str:
    """The file of labels, without its suffix, of a scene folder: `asset`, by default the first of SEGMENTS; "" where it has none."""
    present = Scene(path).assets
    return next((name for name in ((asset,) if asset else SEGMENTS) if name in present), "")

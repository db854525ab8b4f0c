"""Scan2CAD's full_annotations.json: which ShapeNet models stand in a ScanNet scan, and how.

    [{id_scan, trs: scan -> Scan2CAD's world, aligned_models: [{catid_cad, id_cad, sym, bbox, center, trs: CAD -> that world}]}]

A trs has translation [x y z], rotation [w x y z] and scale [x y z], and means translation * rotation * scale. Models are files
<catid_cad>/<id_cad>/models/model_normalized.obj of ShapeNetCore.v2, with y up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.preprocess_objects import load_json


@dataclass(frozen=True)
class CadModel:
    """A model in a scan: ShapeNet's category and id · pose [4, 4]: the model's axes to the scan's, with scales · symmetry: Scan2CAD's
    word for it, e.g. "__SYM_ROTATE_UP_2"."""

    category: str
    model: str
    pose: NDArray[np.float64]
    symmetry: str = ""

    @property
    def name(self) -> str:
        """Its name in cad/: category and id."""
        return f"{self.category}_{self.model}"

    def path(self, shapenet: Path) -> Path:
        """Its mesh in a folder of ShapeNetCore.v2."""
        return shapenet / self.category / self.model / "models" / "model_normalized.obj"


def read_scan2cad(path: str | Path) -> dict[str, list[CadModel]]:
    """scan -> its models, in the order of the file.

    Raises: FileNotFoundError; ValueError naming the file, the scan and the model whose entry is not as above, or whose trs cannot
        be inverted.
    """
    path, found = Path(path), {}
    for entry in load_json(path, list, "Scan2CAD's annotation of scans"):
        scan = entry.get("id_scan") if isinstance(entry, Mapping) else None
        if not isinstance(scan, str) or not isinstance(entry.get("aligned_models"), list):
            raise ValueError(f"{path}: wanted entries with id_scan, trs and aligned_models, got {str(entry)[:80]!r}")
        to_scan = np.linalg.inv(_matrix(entry.get("trs"), f"{path}: scan {scan}"))
        models = found.setdefault(scan, [])
        for number, model in enumerate(entry["aligned_models"]):
            where = f"{path}: scan {scan}, model {number}"
            names = [model.get(key) for key in ("catid_cad", "id_cad")] if isinstance(model, Mapping) else [None]
            if not all(isinstance(name, str) and name and not name.startswith(".") and "/" not in name for name in names):
                raise ValueError(f"{where}: wanted catid_cad and id_cad, names of ShapeNet's folders, got {str(model)[:80]!r}")
            models.append(CadModel(*names, to_scan @ _matrix(model.get("trs"), where), str(model.get("sym", ""))))
    return found


def _matrix(trs: Any, where: str) -> NDArray[np.float64]:
    """[4, 4] of a translation, a quaternion (w first, of any length) and scales. Raises ValueError that begins with `where`."""
    try:
        shift, turn, scale = (np.array(trs[key], np.float64).reshape(size) for key, size in (("translation", 3), ("rotation", 4), ("scale", 3)))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where}: wanted a trs with translation (3 numbers), rotation (4) and scale (3), got {str(trs)[:120]!r}") from None
    length = float(np.linalg.norm(turn))
    if not all(np.isfinite(part).all() for part in (shift, turn, scale)) or length < 1e-6 or np.abs(scale).min() < 1e-9:
        raise ValueError(f"{where}: wanted finite numbers, a rotation and scales that are not 0, got {str(trs)[:160]!r}")
    w, x, y, z = turn / length
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= scale
    matrix[:3, 3] = shift
    return matrix

"""SceneCAD's layouts of ScanNet scans, <scan>.json: corners of rooms (verts), edges between them, and faces (quads: walls, floor).

Corners have y up; (x, -z, y) are the scan's own axes, before ScanNet's axis alignment.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.preprocess_objects import load_json

SHORT = 0.05  # metres: an edge no longer than this from above is upright, or none


@dataclass(frozen=True)
class Layout:
    """corner [V, 3] metres, the scan's axes · edge [E, 2] numbers of corners."""

    corner: NDArray[np.float64]
    edge: NDArray[np.int64]

    def walls(self) -> NDArray[np.float64]:
        """Segments [W, 2, 2] from (x, y) to (x, y): the edges from above, those of floor and ceiling that fall together once."""
        seen, kept = set(), []
        for segment in self.corner[self.edge][..., :2]:
            key = tuple(sorted(map(tuple, np.round(segment / SHORT).astype(int).tolist())))
            if np.linalg.norm(segment[1] - segment[0]) > SHORT and key not in seen:
                seen.add(key)
                kept.append(segment)
        return np.array(kept).reshape(-1, 2, 2)


def read_layout(path: str | Path) -> Layout:
    """A layout; where it has no edges, those around its quads.

    Raises: FileNotFoundError; ValueError naming the file: corners that are not three finite numbers, edges or quads that name
        corners which are not there.
    """
    path = Path(path)
    content = load_json(path, dict, "SceneCAD's layout with verts, edges and quads")
    try:
        corner = np.array(content.get("verts", []), np.float64).reshape(-1, 3)
        edges = [[int(k) for k in edge] for edge in content.get("edges") or []]
        quads = [[int(k) for k in quad] for quad in content.get("quads") or []]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: wanted verts [x, y, z], edges [a, b] and quads [a, b, c, d] ({error})") from error
    if not np.isfinite(corner).all():
        raise ValueError(f"{path}: {int((~np.isfinite(corner).all(axis=1)).sum())} of {len(corner)} corners are not finite")
    edges = edges or [list(side) for quad in quads for side in pairwise([*quad, *quad[:1]])]
    bad = next((edge for edge in edges if len(edge) != 2 or min(edge) < 0 or max(edge) >= len(corner)), None)
    if bad is not None:
        raise ValueError(f"{path}: edge {bad} wanted two of {len(corner)} corners")
    return Layout(corner[:, [0, 2, 1]] * (1, -1, 1), np.array(edges, np.int64).reshape(-1, 2))

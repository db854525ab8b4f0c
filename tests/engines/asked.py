"""A small scene whose fused features say what its points are, for the tests of query and view."""

from pathlib import Path

import numpy as np
import torch

from pointcept3m.models.text import PocketTextEncoder
from pointcept3m.structures.fused_features import feature_path, write_features

THINGS = {"floor": ((0.0, 0.0, 0.0), (4.0, 3.0, 0.05)), "chair": ((0.5, 0.5, 0.1), (1.1, 1.0, 0.9)), "bed": ((2.0, 0.8, 0.1), (3.8, 2.6, 0.6))}


def make_scene(folder: Path, points: int = 900, hidden: int = 40, storage: str = "float16", seed: int = 0) -> dict[str, np.ndarray]:
    """A scene folder of three boxes full of points; each point's fused feature is its name's text vector and noise.

    The last `hidden` points of each box are in no image. Returns the rows of each thing, "visible" and "features" [M, 64].
    """
    generator = np.random.default_rng(seed)
    coord, rows, names = [], {}, []
    for number, (name, (low, high)) in enumerate(THINGS.items()):
        coord.append(generator.uniform(low, high, (points, 3)))
        rows[name] = np.arange(number * points, (number + 1) * points)
        names += [name] * points
    coord = np.concatenate(coord).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    color = np.repeat(np.array([[120, 110, 100], [200, 60, 40], [60, 90, 200]], np.uint8), points, axis=0)
    np.save(folder / "coord.npy", coord)
    np.save(folder / "color.npy", color)
    np.save(folder / "normal.npy", np.tile(np.array([0, 0, 1], np.float32), (len(coord), 1)))
    vectors = dict(zip(THINGS, PocketTextEncoder()(list(THINGS)), strict=True))
    mask = np.ones(len(coord), bool)
    for members in rows.values():
        mask[members[points - hidden :]] = False
    clean = torch.stack([vectors[name] for name in np.array(names)[mask]])
    noise = torch.from_numpy(generator.normal(0, 0.05, tuple(clean.shape)).astype(np.float32))
    length = torch.from_numpy(generator.uniform(0.5, 2.0, (len(clean), 1)).astype(np.float32))
    features = (clean + noise) * length  # cosines must not mind lengths
    path = feature_path(folder, "text")
    path.parent.mkdir(exist_ok=True)
    write_features(path, features, mask, teacher="text", scene=folder.name, coord=coord, storage=storage)
    return {**rows, "visible": mask, "features": features.numpy(), "coord": coord, "color": color}

"""Scenes of CrossOver with the coloured points of each object, in the object's own box: what a decoder of embeddings is taught."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.datasets.builder import DATASETS
from pointcept3m.datasets.crossover import CrossOverDataset
from pointcept3m.datasets.transforms.compose import DataDict
from pointcept3m.structures.scene_objects import SceneObject, read_objects
from pointcept3m.utils.seed import mix_seed

KEEP = 4  # a cached object keeps so many times the points of a sample


@DATASETS.register_module()
class ObjectCloudDataset(CrossOverDataset):
    """CrossOverDataset, and for each of a scene's O objects `cloud_points` of its points.

    Further keys: object_cloud float32 [O, S, 3], centre and axes of the object's box (objects.json), half of its longest side
    as unit; object_cloud_color float32 [O, S, 3] in 0..1; object_has_cloud bool [O], false (and zeros) where an object has fewer
    than `min_points` points. An object with fewer than S points has some twice.

    Scenes need coord.npy, color.npy and instance.npy; points of the scene itself are not read unless `points` asks for them.
    """

    def __init__(self, *args: Any, cloud_points: int = 1024, min_points: int = 100, points: bool = False, **kwargs: Any) -> None:
        if not isinstance(cloud_points, int) or cloud_points < 1:
            raise ValueError(f"ObjectCloudDataset: cloud_points must be a whole number of at least 1, got {cloud_points!r}")
        self.cloud_points, self.min_points = cloud_points, min_points
        self._clouds: dict[int, dict[int, NDArray[np.float32]]] = {}
        super().__init__(*args, points=points, **kwargs)

    def __getitem__(self, idx: int) -> DataDict:
        sample = super().__getitem__(idx)
        name = sample["name"]
        rng = np.random.default_rng(mix_seed("clouds", name) if self.fixed else np.random.randint(2**31))
        clouds, ids = self.clouds_of(idx), sample["object_id"].tolist()
        drawn = np.zeros((len(ids), self.cloud_points, 6), dtype=np.float32)
        for row, number in enumerate(ids):
            if number in clouds:
                cloud = clouds[number]
                drawn[row] = cloud[rng.choice(len(cloud), self.cloud_points, replace=len(cloud) < self.cloud_points)]
        there = torch.tensor([number in clouds for number in ids], dtype=torch.bool)
        rows = torch.from_numpy(drawn)
        return sample | {"object_cloud": rows[..., :3], "object_cloud_color": rows[..., 3:], "object_has_cloud": there}

    def clouds_of(self, idx: int) -> dict[int, NDArray[np.float32]]:
        """object id -> [P, 6], place in its box and colour, of the objects with enough points."""
        number = idx % len(self.data_list)
        if number in self._clouds:
            return self._clouds[number]
        scene = self.scene(idx)
        found = scene.points(("color", "instance"))
        lacking = [f"{name}.npy" for name in ("color", "instance") if name not in found]
        if lacking:
            raise ValueError(f"scene {self.get_data_name(idx)}: {' and '.join(lacking)} not found in {scene.root}; objects' coloured points need them")
        order = np.argsort(found["instance"], kind="stable")
        ids, starts = np.unique(found["instance"][order], return_index=True)
        members = dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))
        rng = np.random.default_rng(mix_seed("objects", self.get_data_name(idx)))
        clouds = {}
        for thing in read_objects(scene.root) or ():
            rows = members.get(thing.id, order[:0])
            if len(rows) < self.min_points:
                continue
            if len(rows) > KEEP * self.cloud_points:
                rows = rng.choice(rows, KEEP * self.cloud_points, replace=False)
            clouds[thing.id] = np.concatenate([in_box(found["coord"][rows], thing), found["color"][rows] / 255], axis=1, dtype=np.float32)
        if self.cache:
            self._clouds[number] = clouds
        return clouds

    def point_counts(self) -> list[int]:
        """How many points each object of these scenes has that has enough: what storing them costs."""
        counts: list[int] = []
        for number in range(len(self.data_list)):
            ids, found = np.unique(self.scene(number).load("instance"), return_counts=True)
            listed = {thing.id for thing in read_objects(self.scene(number).root) or ()}
            counts += [int(count) for identity, count in zip(ids, found, strict=True) if identity in listed and count >= self.min_points]
        return counts


def in_box(coord: NDArray, thing: SceneObject) -> NDArray[np.float32]:
    """Points [P, 3] of a scene, metres, in an object's own axes: its centre at 0, half of its longest side as unit."""
    cos, sin = np.cos(thing.heading), np.sin(thing.heading)
    local = (np.asarray(coord, dtype=np.float64) - thing.center) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return (local / (max(thing.size) / 2)).astype(np.float32)

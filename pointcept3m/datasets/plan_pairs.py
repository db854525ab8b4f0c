"""Floorplans and scans as two rasters of one size, from above: what a re-ranker of floorplan retrieval compares.

Neither raster knows the other's axes. Each is turned so that its outline fills the smallest rectangle, and centred on that
rectangle: two rasters of one room then differ by a quarter turn at most, which is left to be tried.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.datasets.base import PointDataset
from pointcept3m.datasets.builder import DATASETS
from pointcept3m.datasets.rooms_dataset import MODALITIES_HINT
from pointcept3m.datasets.transforms.compose import DataDict
from pointcept3m.structures.scene import Scene
from pointcept3m.structures.scene_objects import Floorplan, read_facts, read_floorplan
from pointcept3m.utils.seed import mix_seed

logger = logging.getLogger("pointcept3m")

WALL_BAND = (1.0, 2.0)  # metres above the floor: walls reach it, most furniture does not
TOP = 2.1  # metres: what is higher is ceiling, or hangs from it
PLAN_CHANNELS, SCAN_CHANNELS = 2, 3
INK_BELOW = 90  # grey value below which a line is a wall or an outline
PAPER_FROM, PAPER_SPREAD = 225, 6  # the most frequent grey from the first on is the paper; what is darker by more than the second is drawn
MAX_POINTS = 30_000


class Marks(NamedTuple):
    """What a raster is drawn of, aligned: xy [P, 2] metres around the centre, value [P, C] of each channel, cover [P] square metres
    that each mark stands for; angle: by which the file's axes were turned back, radians."""

    xy: NDArray[np.float32]
    value: NDArray[np.float32]
    cover: float
    angle: float


def main_angle(xy: NDArray) -> float:
    """The turn in 0..pi/2 (radians, about z) at which points [P, 2] fill the smallest upright rectangle.

    Of each direction the outermost half percent does not count: a door's leaf, points seen through a window.
    """
    xy = xy[:: max(1, len(xy) // 4000)]
    best, found = np.inf, 0.0
    for step in (np.arange(0, 90, 3.0), np.arange(-3, 3.1, 0.5)):
        for degrees in step + (0 if len(step) > 20 else np.degrees(found)):
            turned = turn(xy, -np.radians(degrees))
            low, high = np.percentile(turned, (0.5, 99.5), axis=0)
            area = float(np.prod(high - low))
            if area < best:
                best, angle = area, np.radians(degrees)
        found = angle
    return float(found % (np.pi / 2))


def turn(xy: NDArray, angle: float) -> NDArray:
    """Points [P, 2] turned by `angle` radians, counter-clockwise."""
    cos, sin = np.cos(angle), np.sin(angle)
    return xy @ np.array([[cos, sin], [-sin, cos]])


def aligned(xy: NDArray, outline: NDArray[np.bool_], value: NDArray, cover: float) -> Marks:
    """Marks in the axes of their outline, around the centre of its rectangle. outline [P]: which marks it is made of."""
    angle = main_angle(xy[outline])
    turned = turn(xy, -angle)
    low, high = np.percentile(turned[outline], (0.5, 99.5), axis=0)
    return Marks((turned - (low + high) / 2).astype(np.float32), value.astype(np.float32), cover, angle)


def marks_of_plan(plan: Floorplan) -> Marks:
    """Channels: walls and outlines; furniture. Raises ValueError for a plan without a scale, or without a line."""
    if plan.metres_per_pixel is None:
        raise ValueError("this floorplan has no scale (metres_per_pixel), and a re-ranker compares rooms in metres; floorplan.json says it")
    grey = plan.image.mean(axis=2)
    bright = np.bincount(grey[grey >= PAPER_FROM].astype(np.int64), minlength=256)
    paper = int(bright.argmax()) if bright.any() else 255
    row, column = np.nonzero(grey < paper - PAPER_SPREAD)
    ink = grey[row, column] < INK_BELOW
    if ink.sum() < 20:
        raise ValueError(f"a floorplan of {grey.shape[1]} x {grey.shape[0]} pixels with no dark line: nothing to compare")
    share = max(1.0, len(row) / MAX_POINTS)
    kept = np.linspace(0, len(row) - 1, min(len(row), MAX_POINTS)).astype(np.int64)
    row, column, ink = row[kept], column[kept], ink[kept]
    xy = np.stack([column + 0.5, -(row + 0.5)], axis=1) * plan.metres_per_pixel
    return aligned(xy, ink, np.stack([ink, ~ink], axis=1), share * plan.metres_per_pixel**2)


def marks_of_points(coord: NDArray) -> Marks:
    """Channels of a scan [P, 3] in metres, z up: walls; things below WALL_BAND; their height in units of WALL_BAND's end.

    The floor is the first percentile of z; what lies on it is nothing. Raises ValueError where no point is in the band of walls.
    """
    cells = np.unique(np.floor(coord[:, :3] / 0.05).astype(np.int64), axis=0)  # one mark a cell, however often it was scanned
    place = (cells + 0.5) * 0.05
    height = place[:, 2] - np.percentile(place[:, 2], 1)
    keep = (height > 0.15) & (height < TOP)
    place, height = place[keep], height[keep]
    if len(place) > MAX_POINTS:
        kept = np.linspace(0, len(place) - 1, MAX_POINTS).astype(np.int64)
        place, height = place[kept], height[kept]
    wall = (height >= WALL_BAND[0]) & (height <= WALL_BAND[1])
    if wall.sum() < 20:
        raise ValueError(f"a scan with {int(wall.sum())} cells at {WALL_BAND[0]:g} to {WALL_BAND[1]:g} m above its floor: no wall to compare")
    return aligned(place[:, :2], wall, np.stack([wall, ~wall, height / WALL_BAND[1]], axis=1), 0.0)


def raster(marks: Marks, size: int, cell: float, angle: float = 0.0, mirror: bool = False, shift: NDArray | None = None) -> NDArray[np.float32]:
    """Marks drawn on `size` x `size` cells of `cell` metres, north up: float32 [C, size, size] in 0..1.

    A plan's cells hold the share of them that is covered; a scan's whether there is anything: log of the count, 1 from 20 marks on,
    and of its last channel the greatest value. angle, mirror, shift: turn about the centre, mirrored along x, moved by [2] metres.
    """
    xy = turn(marks.xy, angle)
    if mirror:
        xy = xy * [-1, 1]
    if shift is not None:
        xy = xy + shift
    column, row = (np.floor(axis / cell + size / 2).astype(np.int64) for axis in (xy[:, 0], -xy[:, 1]))
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    place, value = (row * size + column)[inside], marks.value[inside]
    made = np.zeros((value.shape[1], size * size), np.float32)
    for channel in range(2):
        counted = np.bincount(place, weights=value[:, channel], minlength=size * size)
        made[channel] = counted * marks.cover / cell**2 if marks.cover else np.log1p(counted) / np.log(21)
    for channel in range(2, value.shape[1]):
        np.maximum.at(made[channel], place, value[:, channel])
    return np.minimum(made, 1).reshape(-1, size, size)


@DATASETS.register_module()
class PlanPairDataset(PointDataset):
    """Scenes with a floorplan of known scale and points: the plan, its own scan, and `negatives` scans of other places.

    A sample has plan float32 [1, 2, S, S], scans float32 [1, 1 + negatives, 3, S, S] of which the first is the plan's own, turn int64
    [1]: by how many quarters that one is turned against the plan, and name, place, category. Half of the negatives are of the same
    category (hard ones) where there are so many; scans of the same place are never among them.

    Scans come turned by a random quarter and, unless `fixed`, a little more, moved, with points missing; plan and scans mirrored
    together. Plan and points of a scene share axes on the disk, which training needs and tests do not.

    Args:
        size, cell: of the rasters, in cells and metres. Others as `PointDataset`. Scenes without a plan leave the list.
    """

    hint = MODALITIES_HINT

    def __init__(self, *args: Any, size: int = 64, cell: float = 0.15, negatives: int = 7, fixed: bool = False, cache: bool = True, **kwargs: Any):
        if size < 16 or size % 4 or cell <= 0 or negatives < 0:
            raise ValueError(f"PlanPairDataset: wanted a size of 16 or more in fours, cell > 0 and negatives >= 0, got {size}, {cell}, {negatives}")
        self.size, self.cell, self.negatives, self.fixed = size, cell, negatives, fixed
        self._marks: dict[int, tuple[Marks, Marks]] = {}
        super().__init__(*args, cache=cache, **kwargs)
        facts = [read_facts(folder) for folder in self.data_list]
        self.places, self.categories = [each.place for each in facts], [each.category for each in facts]
        if negatives and len(set(self.places)) < 2:
            raise ValueError(f"PlanPairDataset: all {len(facts)} scenes are of one place, so there are no negatives; negatives=0 does without")

    def get_data_list(self) -> list[Path]:
        """Scene folders with a floorplan and its scale. Raises FileNotFoundError where there are none."""
        folders = super().get_data_list()
        kept = [folder for folder in folders if (folder / "floorplan.json").is_file() and (folder / "coord.npy").is_file()]
        if not kept:
            raise FileNotFoundError(f"PlanPairDataset: none of {len(folders)} scenes in {self.data_root} has floorplan.png, floorplan.json and coord.npy")
        if len(kept) < len(folders):
            logger.warning("%d of %d scenes have no floorplan with a scale, or no points, and are left out", len(folders) - len(kept), len(folders))
        return kept

    def marks(self, number: int) -> tuple[Marks, Marks]:
        """(plan, scan) of a scene. Raises ValueError naming it."""
        if number in self._marks:
            return self._marks[number]
        scene = self.scene(number)
        try:
            made = marks_of_plan(read_floorplan(scene.root)), marks_of_points(scene.load("coord"))
        except ValueError as error:
            raise ValueError(f"scene {self.get_data_name(number)}: {error}") from error
        if self.cache:
            self._marks[number] = made
        return made

    def __getitem__(self, idx: int) -> DataDict:
        number = idx % len(self.data_list)
        name = self.get_data_name(number)
        rng = np.random.default_rng(mix_seed("plans", name) if self.fixed else np.random.randint(2**31))
        mirror = not self.fixed and rng.random() < 0.5
        plan, scan = self.marks(number)
        quarters = int(rng.integers(4))
        scans = [self._draw_scan(scan, quarters, mirror, rng)]
        scans += [self._draw_scan(self.marks(other)[1], int(rng.integers(4)), mirror, rng) for other in self.draw_negatives(number, rng)]
        # the scan's axes on the disk were turned back by its own angle, the plan's by the plan's: what is left is in quarters
        left = int(np.round((scan.angle - plan.angle) / (np.pi / 2)))
        turns = (left - quarters if not mirror else -left + quarters) % 4
        return dict(
            plan=torch.from_numpy(raster(plan, self.size, self.cell, mirror=mirror))[None], scans=torch.from_numpy(np.stack(scans))[None],
            turn=torch.tensor([turns]), name=name, place=self.places[number], category=self.categories[number],
        )  # fmt: skip

    def draw_negatives(self, number: int, rng: np.random.Generator) -> list[int]:
        """Scenes of other places, half of them of this one's category where there are so many; one may come twice where they are few."""
        others = [k for k, place in enumerate(self.places) if place != self.places[number]]
        same = [k for k in others if self.categories[k] and self.categories[k] == self.categories[number]]
        hard = list(rng.permutation(same)[: (self.negatives + 1) // 2]) if same else []
        rest = self.negatives - len(hard)
        return [int(k) for k in [*hard, *rng.choice(others, rest, replace=len(others) < rest)]]

    def _draw_scan(self, marks: Marks, quarters: int, mirror: bool, rng: np.random.Generator) -> NDArray[np.float32]:
        angle = quarters * np.pi / 2
        if self.fixed:
            return raster(marks, self.size, self.cell, angle)
        keep = rng.random(len(marks.xy)) < rng.uniform(0.5, 1)
        if rng.random() < 0.3:  # a strip that nobody scanned
            direction, part = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 0.95)
            along = marks.xy @ [np.cos(direction), np.sin(direction)]
            keep &= along <= np.quantile(along, part)
        marks = marks._replace(xy=marks.xy[keep], value=marks.value[keep])
        return raster(marks, self.size, self.cell, angle + rng.normal(0, 0.02), mirror, rng.normal(0, 0.1, 2))


def scan_raster(folder: str | Path, size: int, cell: float, angle: float = 0.0) -> NDArray[np.float32]:
    """The scan of a scene folder as a raster [3, size, size], whatever its axes. angle: turns the points first, for tests.

    Raises: FileNotFoundError, ValueError naming the scene.
    """
    scene = Scene(folder)
    coord = scene.load("coord")
    if angle:
        coord = np.concatenate([turn(coord[:, :2], angle), coord[:, 2:]], axis=1)
    try:
        return raster(marks_of_points(coord), size, cell)
    except ValueError as error:
        raise ValueError(f"scene {scene.name}: {error}") from error


def plan_raster(plan: Floorplan, size: int, cell: float) -> NDArray[np.float32]:
    """A floorplan as a raster [2, size, size]. Raises ValueError where it has no scale or no line."""
    return raster(marks_of_plan(plan), size, cell)

"""How the pocket shape encoder is made: scans of generated furniture find their CAD models, by shape alone."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pointcept3m.datasets.rooms import generate_room
from pointcept3m.datasets.rooms.layout import SHELL
from pointcept3m.engines.pocket_common import fit
from pointcept3m.models.shapes import PocketShape, unit_sphere
from pointcept3m.models.shapes.pocket import WEIGHTS, PocketShapeNet
from pointcept3m.models.teachers.pocket import write_pocket
from pointcept3m.utils.files import atomic_write

logger = logging.getLogger(__name__)

FIRST_SEED = 3_000_000  # no other part of the project draws rooms from here on
PROBE_SEED = 3_900_000  # rooms that it is scored on
DIM, STEPS = 128, 340
DENSE = 3000  # points of a surface that the camera looks at
KEPT = 512  # points of a scan or a CAD model that are kept


@dataclass
class ShapePairs:
    """K pieces of furniture: cad float32 [K, KEPT, 3] · scans float32 [K, S, KEPT, 3], both as they are met · category [K]."""

    cad: Tensor
    scans: Tensor
    category: list[str]

    def __len__(self) -> int:
        return len(self.cad)


def make_pairs(seeds: range, scans: int = 3, split: str = "train") -> ShapePairs:
    """The furniture of rooms with these seeds, each with a CAD sample in its own axes and `scans` partial scans."""
    cad, seen, category = [], [], []
    for seed in seeds:
        room = generate_room(seed, split)
        rng = room.rng(71)
        for thing in room.objects:
            if thing.category in SHELL:
                continue
            own = (thing.vertices - thing.translation) @ thing.rotation
            cad.append(_surface(own, thing.faces, KEPT, rng)[0])
            seen.append(np.stack([partial_scan(own, thing.faces, rng) for _ in range(scans)]))
            category.append(thing.category)
    return ShapePairs(torch.from_numpy(np.stack(cad)), torch.from_numpy(np.stack(seen)), category)


def partial_scan(vertices: NDArray, faces: NDArray, rng: np.random.Generator) -> NDArray[np.float32]:
    """What a hand-held camera leaves of a mesh: points [KEPT, 3] seen from one to four places, noisy, evenly thinned."""
    points, _ = _surface(vertices, faces, DENSE, rng)
    middle = points.mean(axis=0)
    seen = np.zeros(len(points), bool)
    start, turn = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.2)
    for k in range(int(rng.integers(1, 5))):
        angle = start + k * turn
        eye = middle + np.array([np.cos(angle), np.sin(angle), 0]) * rng.uniform(1.2, 3.5)
        eye[2] = middle[2] + rng.uniform(0.1, 1.4)
        seen |= _visible(points, eye)
    found = points[seen] + rng.normal(0, rng.uniform(0.002, 0.012), (int(seen.sum()), 3))
    cell = np.floor(found / rng.uniform(0.015, 0.03)).astype(np.int64)
    found = found[np.unique(cell, axis=0, return_index=True)[1]]
    rows = rng.permutation(len(found))[:KEPT] if len(found) >= KEPT else rng.integers(len(found), size=KEPT)
    return found[rows].astype(np.float32)


def _surface(vertices: NDArray, faces: NDArray, count: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray]:
    """(points [count, 3] evenly spread over a mesh's area, faces [count] that they lie on)."""
    corner = vertices[faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    face = rng.choice(len(faces), count, p=area / area.sum())
    u, v = rng.random((2, count))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    a, b, c = corner[face].transpose(1, 0, 2)
    return (a + u[:, None] * (b - a) + v[:, None] * (c - a)).astype(np.float32), face


def _visible(points: NDArray, eye: NDArray) -> NDArray[np.bool_]:
    """Which points [N, 3] are about the nearest to the eye in their direction: a depth buffer whose pixels hold several points."""
    ray = points - eye
    depth = np.linalg.norm(ray, axis=1)
    azimuth = np.arctan2(ray[:, 1], ray[:, 0])
    middle = np.arctan2(-(eye[1] - points[:, 1].mean()), -(eye[0] - points[:, 0].mean()))
    azimuth = (azimuth - middle + np.pi) % (2 * np.pi) - np.pi
    elevation = np.arcsin(ray[:, 2] / np.maximum(depth, 1e-9))
    pixel = max(np.ptp(azimuth), np.ptp(elevation), 1e-6) / 24
    cell = np.floor((azimuth - azimuth.min()) / pixel).astype(np.int64) * 64 + np.floor((elevation - elevation.min()) / pixel).astype(np.int64)
    nearest = np.full(cell.max() + 1, np.inf)
    np.minimum.at(nearest, cell, depth)
    return depth <= nearest[cell] + np.maximum(0.03, 0.6 * pixel * depth)


def train_shape(pairs: ShapePairs, steps: int = STEPS, batch: int = 48, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the encoder: a scan is more like its CAD model than like any other in the batch, and the reverse (InfoNCE)."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = PocketShapeNet(DIM)
    scale = torch.nn.Parameter(torch.tensor(2.5))
    count = PocketShape.num_points

    def drawn(clouds: Tensor) -> Tensor:
        rows = torch.randint(clouds.shape[1], (len(clouds), count), generator=generator)
        points = torch.gather(clouds, 1, rows[..., None].expand(-1, -1, 3))
        return torch.stack([torch.from_numpy(unit_sphere(cloud.numpy())) for cloud in points])

    def loss_of(step: int) -> Tensor:
        rows = torch.randint(len(pairs), (batch,), generator=generator)
        which = torch.randint(pairs.scans.shape[1], (batch,), generator=generator)
        vectors = F.normalize(net(torch.cat([drawn(pairs.cad[rows]), drawn(pairs.scans[rows, which])])), dim=-1)
        logits = scale.clamp(max=3.5).exp() * vectors[:batch] @ vectors[batch:].T
        same = (rows[:, None] == rows) & ~torch.eye(batch, dtype=torch.bool)
        logits = logits.masked_fill(same, -1e4)
        target = torch.arange(batch)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    fit([*net.parameters(), scale], loss_of, steps, 3e-3, "shape")
    return dict(net.state_dict())


@torch.no_grad()
def score_shape(encoder: PocketShape, pairs: ShapePairs, gallery: int = 100, seed: int = 0) -> dict[str, float]:
    """How well a scan finds its own CAD model among `gallery` pieces of furniture, and one of its own category first.

    top1, top5: share of scans whose CAD model is the first, or among the first five; chance beside them. category: share
    whose first CAD model but their own is of their category.
    """
    rng = np.random.default_rng(seed)
    cad, scan = encoder(list(pairs.cad)), encoder(list(pairs.scans[:, 0]))
    names = np.array(pairs.category)
    hits, rounds, alike, by_chance = np.zeros(2), 0, [], []
    for _ in range(20):
        rows = rng.choice(len(pairs), min(gallery, len(pairs)), replace=False)
        score = scan[rows] @ cad[rows].T
        rank = (score > score.diagonal()[:, None]).sum(1)
        hits += [float((rank < k).float().mean()) for k in (1, 5)]
        rounds += 1
        other = score.clone().fill_diagonal_(-2).argmax(1).numpy()
        alike.append(float((names[rows[other]] == names[rows]).mean()))
        by_chance.append(float(np.mean([(names[rows] == name).sum() - 1 for name in names[rows]]) / (len(rows) - 1)))
    top1, top5 = hits / rounds
    size = min(gallery, len(pairs))
    return {"gallery": size, "top1": float(top1), "top5": float(top5), "chance_top1": 1 / size, "chance_top5": 5 / size,
            "category": float(np.mean(alike)), "chance_category": float(np.mean(by_chance))}  # fmt: skip


def make_pocket_shape(out: str | Path = WEIGHTS, rooms: int = 150, steps: int = STEPS, threads: int = 1) -> dict[str, float]:
    """Trains, writes pocket_shape.safetensors and its scores pocket_shape.json to `out`, and returns the scores."""
    torch.set_num_threads(threads)
    out = Path(out)
    pairs = make_pairs(range(FIRST_SEED, FIRST_SEED + rooms))
    logger.info("%d pieces of furniture of %d rooms", len(pairs), rooms)
    path = out / "pocket_shape.safetensors"
    write_pocket(path, train_shape(pairs, steps), {"kind": "shape", "dim": str(DIM), "rooms": str(rooms), "steps": str(steps)})
    scores = score_shape(PocketShape(path), make_pairs(range(PROBE_SEED, PROBE_SEED + 40), scans=1, split="val"))
    text = json.dumps({key: round(value, 4) for key, value in scores.items()}, indent=1) + "\n"
    atomic_write(out / "pocket_shape.json", lambda stream: stream.write(text.encode()))
    logger.info("scores: %s", scores)
    return scores

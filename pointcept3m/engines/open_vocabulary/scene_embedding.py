"""A scene in the space of a text encoder: unit vectors of its points, kept so that a question is one small product.

A distilled head without bias maps backbone features h [C] to W h in the teacher's D channels, so all points of a scene
lie in the span of W's columns. There are orthonormal coordinates of that span, C numbers a voxel, and the cosine of a
text to every voxel is one matrix-vector product with them; the D channels never exist. Features that were fused from
images and stored as PCA codes are such a map too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.engines.visualize.point_features import MAX_VOXELS, InputRecipe, voxel_features
from pointcept3m.engines.visualize.scene_files import PointScene
from pointcept3m.structures.fused_features import FusedFeatures, open_features

ROWS = 65_536  # rows worked on at once: bounds memory, not the number of points


class UnitVectors:
    """R vectors of length 1 in D channels, or of length 0 where there is no direction.

    rows: [R, r], coordinates in the orthonormal `basis` [D, r]; without a basis the vectors themselves, r = D. float32, or
    float16 for vectors that no basis shortens, which costs the cosine at most 0.001.
    """

    def __init__(self, rows: Tensor, basis: Tensor | None = None):
        self.rows, self.basis = rows, basis
        self.dim = rows.shape[1] if basis is None else basis.shape[0]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of_linear(cls, code: Tensor, weight: Tensor, offset: Tensor | None = None) -> "UnitVectors":
        """The directions of `weight @ c + offset` for each row c of `code` [R, C]; weight [D, C], offset [D] or None.

        Exact but for float32. Work is R C^2, memory R C, whatever D is.
        """
        map_ = weight.double() if offset is None else torch.cat([weight.double(), offset.double()[:, None]], dim=1)
        basis, size, right = torch.linalg.svd(map_, full_matrices=False)
        rank = max(1, int((size > size[0] * 1e-7).sum()))
        basis, coordinates = basis[:, :rank].float(), (right[:rank].T * size[:rank]).float()
        turn, shift = coordinates[: code.shape[1]], 0 if offset is None else coordinates[-1]
        rows = torch.empty(len(code), rank)
        for start in range(0, len(code), ROWS):
            part = code[start : start + ROWS].float() @ turn + shift
            rows[start : start + ROWS] = F.normalize(part, dim=1)
        return cls(rows, basis)

    @classmethod
    def of_parts(cls, parts: Iterator[Tensor]) -> "UnitVectors":
        """The directions of vectors that come in parts [n, D], kept as float16."""
        return cls(torch.cat([F.normalize(part.float(), dim=1).half() for part in parts]))

    def full(self) -> Iterator[Tensor]:
        """The vectors themselves, in parts [n, D]."""
        yield from (part.float() if self.basis is None else part.float() @ self.basis.T for part in self.rows.split(ROWS))

    def cosine(self, vectors: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """float32 [K, n]: the cosine of each of `vectors` [K, D] to the vectors in `rows`, all by default."""
        wanted = F.normalize(vectors.float(), dim=1)
        wanted = wanted if self.basis is None else wanted @ self.basis
        chosen = self.rows[rows]
        if self.rows.dtype == torch.float32:
            # one vector is bound by reading the rows, which a matrix-vector product does at the memory's speed
            return (chosen @ wanted[0])[None] if len(wanted) == 1 else wanted @ chosen.T
        parts = [wanted @ part.float().T for part in chosen.split(ROWS // 8)]
        return torch.cat(parts, dim=1) if parts else torch.zeros(len(wanted), 0)

    def vectors(self, rows: Tensor) -> Tensor:
        """float32 [n, D]: the vectors in `rows`."""
        chosen = self.rows[rows].float()
        return chosen if self.basis is None else chosen @ self.basis.T


@dataclass
class SceneEmbedding:
    """The points of a scene as unit vectors of D channels.

    source: "3d", a network's, or "2d", fused from images. unit: the vectors; points of a voxel share one. place: int64
    [N], the row in `unit` of each point of the scene's file, -1 where nothing is known of it. sigma: for each teacher
    what uncertainty the network predicts, float32 [R] in the rows of `unit`, or one number; empty where it predicts none.
    """

    source: str
    unit: UnitVectors
    place: NDArray[np.int64]
    sigma: Mapping[str, NDArray[np.float32] | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known: NDArray[np.bool_] = self.place >= 0
        # half the bytes to read, and torch is faster by them; a point of which nothing is known reads one row beyond the last
        self._place = torch.from_numpy(np.where(self.known, self.place, len(self.unit)).astype(np.int32))
        self._identity = len(self.unit) == len(self.place) and bool((self.place == np.arange(len(self.place))).all())
        self._all_known = bool(self.known.all())

    def __len__(self) -> int:
        return len(self.place)

    @property
    def dim(self) -> int:
        return self.unit.dim

    def similarity(self, vectors: Tensor, points: slice = slice(None), missing: float = np.nan) -> NDArray[np.float32]:
        """float32 [K, n]: the cosine of each of `vectors` [K, D] to the points, `missing` where nothing is known of one."""
        _check_width(vectors, self.dim)
        if points == slice(None):
            return self.spread(self.unit.cosine(vectors).numpy(), missing)
        place = self._place[points]
        found = self.unit.cosine(vectors, place.clamp(max=len(self.unit) - 1)).numpy()
        return found if self._all_known else np.where(self.known[points], found, np.float32(missing))

    def spread(self, values: NDArray, missing: float = np.nan) -> NDArray:
        """Values [..., R] of rows as values [..., N] of points, `missing` where nothing is known of one."""
        if self._identity:
            return values
        flat = torch.from_numpy(np.ascontiguousarray(values)).reshape(-1, values.shape[-1])
        if not self._all_known:
            flat = F.pad(flat, (0, 1), value=missing)
        result = torch.empty(len(flat), len(self.place), dtype=flat.dtype)
        for row, target in zip(flat, result, strict=True):
            torch.index_select(row, 0, self._place, out=target)
        return result.reshape(*values.shape[:-1], len(self.place)).numpy()

    def vectors(self, points: NDArray[np.int64]) -> Tensor:
        """float32 [n, D]: the unit vectors of points. Raises ValueError where nothing is known of one."""
        points = np.asarray(points, np.int64)
        unknown = points[~self.known[points]]
        if len(unknown):
            why = "no image shows it" if self.source == "2d" else "its coordinates are not finite"
            raise ValueError(f"point {int(unknown[0])} has no features: {why}")
        return self.unit.vectors(self._place[torch.from_numpy(points)])


class EnsembleEmbedding:
    """The 2D3D ensemble: each point's vector is the sum of its unit vectors from images and network, scaled to length 1.

    Where no image shows a point, the network's alone. CUA-O3D averages the two without scaling either, so that the
    length of a distilled feature, which its cosine loss leaves free, decides how they are mixed; here both count alike.
    """

    source = "2d3d"

    def __init__(self, first: SceneEmbedding, second: SceneEmbedding):
        if len(first) != len(second) or first.dim != second.dim:
            raise ValueError(
                f"2d3d: {first.source} has {len(first)} points of {first.dim} channels, {second.source} {len(second)} of "
                f"{second.dim}: they do not belong together"
            )
        self.parts, self.dim, self.sigma = (first, second), first.dim, {**first.sigma, **second.sigma}
        self.known = first.known | second.known
        self.gain = np.where(self.known, np.float32(1), np.float32(np.nan))  # 1 / |sum of the two|
        both = np.flatnonzero(first.known & second.known)
        bases = [part.unit.basis if part.unit.basis is not None else torch.eye(part.dim) for part in self.parts]
        middle = bases[0].T @ bases[1]
        for rows in np.array_split(both, -(-len(both) // ROWS) or 1):
            a, b = (part.unit.rows[part._place[torch.from_numpy(rows)]].float() for part in self.parts)
            inner = ((a @ middle) * b).sum(1).numpy()
            self.gain[rows] = 1 / np.sqrt(np.maximum(2 + 2 * inner, 1e-6))

    def __len__(self) -> int:
        return len(self.gain)

    def similarity(self, vectors: Tensor, points: slice = slice(None)) -> NDArray[np.float32]:
        """As `SceneEmbedding.similarity`."""
        result = self.parts[0].similarity(vectors, points, missing=0.0)
        result = result + self.parts[1].similarity(vectors, points, missing=0.0)
        result *= self.gain[points]  # NaN where neither knows a point
        return result

    def vectors(self, points: NDArray[np.int64]) -> Tensor:
        """As `SceneEmbedding.vectors`."""
        points = np.asarray(points, np.int64)
        unknown = points[~self.known[points]]
        if len(unknown):
            raise ValueError(f"point {int(unknown[0])} has no features, neither from an image nor from the network")
        total = torch.zeros(len(points), self.dim)
        for part in self.parts:
            here = np.flatnonzero(part.known[points])
            total[torch.from_numpy(here)] += part.vectors(points[here])
        return F.normalize(total, dim=1)


Embedding = SceneEmbedding | EnsembleEmbedding


def embed_scan(
    scene: PointScene,
    count: int,
    model: nn.Module,
    recipe: InputRecipe,
    device: torch.device | str = "cpu",
    max_voxels: int = MAX_VOXELS,
    seed: int = 0,
    head: str | None = None,
) -> SceneEmbedding:
    """What a distilled `model` (CUA-O3D) sees in a scene, in the space of its `head`, by default that of its text.

    scene: the points with finite coordinates; count: all points of the file. max_voxels: voxels in one pass.
    A head that is one linear map keeps C numbers a voxel; with a hidden layer its output is kept, D numbers in float16.
    Raises: KeyError for a head that the model does not have; FloatingPointError where its output is not finite.
    """
    head = head or model.text_head
    found = voxel_features(scene, recipe, model.backbone, device, max_voxels, seed)
    if not torch.isfinite(found.value).all():
        raise FloatingPointError(f"{scene.name}: the network's features are not finite")
    layer = model.heads[head]
    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            unit = UnitVectors.of_linear(found.value, layer.weight.cpu(), None if layer.bias is None else layer.bias.cpu())
        else:
            unit = UnitVectors.of_parts(model.project(part.to(device), head).cpu() for part in found.value.split(ROWS))
    place = np.full(count, -1, np.int64)
    place[scene.rows] = found.inverse
    return SceneEmbedding("3d", unit, place, _sigmas(model, found.value, device))


@torch.no_grad()
def _sigmas(model: nn.Module, feature: Tensor, device: torch.device | str) -> dict[str, Any]:
    """What the model predicts of its uncertainty: [V] for each teacher, or one number where it has one for all points."""
    uncertainty = getattr(model, "uncertainty", None)
    if uncertainty is None or not hasattr(uncertainty, "sigma"):
        return {}
    if isinstance(uncertainty.sigma, Tensor):  # one learned number a teacher
        return dict(zip(uncertainty.teachers, map(float, uncertainty.sigma), strict=True))
    if uncertainty.per == "scene":
        values = uncertainty.sigma(feature.mean(0, keepdim=True).to(device))[0]
        return dict(zip(uncertainty.teachers, map(float, values), strict=True))
    values = torch.cat([uncertainty.sigma(part.to(device)).cpu() for part in feature.split(ROWS)]).numpy()
    return {name: np.ascontiguousarray(values[:, i]) for i, name in enumerate(uncertainty.teachers)}


def embed_files(paths: Sequence[str | Path], coord: NDArray) -> SceneEmbedding:
    """The features that images gave a scene's points, from a file of `tools/preprocess/fuse_features.py` or OpenScene's `.pt`.

    paths: of several, which OpenScene writes as random subsets of a scene, a point's features are those of the first that
    has it. coord: [N, 3], the points as the scene's own file has them.
    Raises: as `open_features`, ValueError for the features of another scene among them; ValueError where widths differ.
    """
    files = [open_features(path, coord=coord) for path in paths]
    if len({file.dim for file in files}) > 1:
        raise ValueError(f"features of different widths: {', '.join(f'{file.path} {file.dim}' for file in files)}")
    place, base = np.full(len(coord), -1, np.int64), 0
    for file in files:
        fresh = file.mask & (place < 0)
        place[fresh] = (base + np.cumsum(file.mask) - 1)[fresh]
        base += len(file)
    units = [unit_vectors_of(file) for file in files]
    unit = units[0] if len(units) == 1 else UnitVectors.of_parts(part for each in units for part in each.full())
    return SceneEmbedding("2d", unit, place)


def unit_vectors_of(features: FusedFeatures) -> UnitVectors:
    """The directions of fused features, one row a visible point; those stored as PCA codes stay in their few components."""
    encoding = features.encoding
    if "basis" in encoding:
        code = torch.from_numpy(encoding["codes"].astype(np.float32)) * torch.from_numpy(encoding["scale"])
        basis, mean = (torch.from_numpy(np.asarray(encoding[key], np.float32)) for key in ("basis", "mean"))
        unit = UnitVectors.of_linear(code, basis.T, mean)
        unit.rows[torch.from_numpy(np.asarray(encoding["norm"]) == 0)] = 0  # a feature of length 0 has no direction
        return unit
    shown = np.flatnonzero(features.mask)
    return UnitVectors.of_parts(torch.from_numpy(features.read(part)) for part in np.array_split(shown, -(-len(shown) // ROWS)))


def _check_width(vectors: Tensor, dim: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"wanted query vectors [K, {dim}], got {list(vectors.shape)}: is the text encoder the one of that teacher?")

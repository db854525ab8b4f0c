"""What every shape encoder is: frozen, an object's points in, one vector out; how points are drawn and normalised."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pointcept3m.models.teachers.base import weights_digest


class ShapeEncoder:
    """`encoder(points) -> float32 [N, dim]` on the CPU, of N objects with points [S_i, 3] each (metres, any origin).

    Each object is cut down to `num_points` of its points (`sample_points`), centred, and scaled into the unit sphere
    (`unit_sphere`), as CrossOver prepares objects and CAD models alike. The points that are drawn depend on the object
    alone, and so does its vector (to the rounding of matrix products of other sizes), whoever else is in the batch.

    No `nn.Module`, so that a model that holds one carries none of its weights. A subclass sets `dim`, `name`, `network`
    and `num_points`.
    """

    dim: int
    name: str
    network: nn.Module
    num_points: int = 1024
    max_batch: int = 32
    device: torch.device = torch.device("cpu")

    def to(self, device: str | torch.device) -> "ShapeEncoder":
        """Runs on `device` from now on; returns itself."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    @property
    def fingerprint(self) -> str:
        """`<name>-<16 hex digits>`: a digest of class, weights and number of points. Computed once."""
        if "_fingerprint" not in self.__dict__:
            digest = hashlib.sha256(repr((type(self).__name__, self.name, self.num_points)).encode())
            digest.update(weights_digest(self.network).encode())
            self.__dict__["_fingerprint"] = f"{self.name}-{digest.hexdigest()[:16]}"
        return self.__dict__["_fingerprint"]

    @torch.no_grad()
    def __call__(self, points: Sequence[NDArray | torch.Tensor]) -> torch.Tensor:
        """Raises: TypeError, ValueError that number the object: no points, another shape, values that are not finite."""
        if isinstance(points, np.ndarray | torch.Tensor) and points.ndim == 2:
            raise TypeError(f"{self.name}: wanted a list of objects, got the points of one {list(points.shape)}; write [points]")
        clouds = [unit_sphere(sample_points(_checked(self.name, i, cloud), self.num_points)) for i, cloud in enumerate(points)]
        if not clouds:
            return torch.zeros(0, self.dim)
        batches = torch.from_numpy(np.stack(clouds)).split(self.max_batch)
        vectors = torch.cat([self.network(batch.to(self.device)).float().cpu() for batch in batches])
        assert tuple(vectors.shape) == (len(clouds), self.dim), f"{self.name} gave {tuple(vectors.shape)}"
        if not torch.isfinite(vectors).all():
            raise ValueError(f"{self.name}: the weights give vectors that are not finite")
        return vectors


def sample_points(points: NDArray, count: int, seed: int = 0) -> NDArray[np.float32]:
    """`count` points float32 [count, 3] of `points` [S, 3], the same for the same points.

    Of more points a random draw without repeats; of fewer, all of them and a random draw of repeats; in random order.
    """
    rng = np.random.default_rng((seed, len(points)))
    if len(points) >= count:
        rows = rng.choice(len(points), count, replace=False)
    else:
        rows = rng.permutation(np.concatenate([np.arange(len(points)), rng.integers(len(points), size=count - len(points))]))
    return np.asarray(points[rows], dtype=np.float32)


def unit_sphere(points: NDArray) -> NDArray[np.float32]:
    """Points [S, 3] about their mean, the farthest at distance 1; points that all coincide become zeros."""
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    radius = np.sqrt((centred**2).sum(axis=1)).max()
    return (centred / radius if radius > 0 else centred).astype(np.float32)


def _checked(name: str, number: int, points: NDArray | torch.Tensor) -> NDArray:
    points = points.detach().cpu().numpy() if isinstance(points, torch.Tensor) else np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0 or points.dtype.kind != "f":
        raise ValueError(f"{name}: object {number}: wanted points, floats [S, 3], got {points.dtype} {list(points.shape)}")
    if not np.isfinite(points).all():
        raise ValueError(f"{name}: object {number}: {int((~np.isfinite(points).all(axis=1)).sum())} of {len(points)} points are not finite")
    return points

"""Transforms that move points. Every affine one moves normals and cameras along, by one shared function."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms.compose import DataDict, Transform, chance
from pointcept3m.structures.camera import apply_affine_to_extrinsic
from pointcept3m.utils.arrays import bounds, by_column, normal_noise

CAMERAS = ("extrinsic",)
MAX_NOISE_CELLS = 2**27  # of ElasticDistortion: 1.6 GB of noise


def affine(linear: NDArray | None = None, shift: NDArray | None = None) -> NDArray[np.float64]:
    """A 4x4 matrix from its 3x3 part (identity by default) and its translation (zero by default)."""
    matrix = np.eye(4)
    if linear is not None:
        matrix[:3, :3] = linear
    if shift is not None:
        matrix[:3, 3] = shift
    return matrix


def rotation(axis: str, angle: float, center: Sequence[float]) -> NDArray[np.float64]:
    """The 4x4 matrix that turns by `angle` radians about the line through `center` along `axis` ("x", "y", "z")."""
    if axis not in ("x", "y", "z"):
        raise ValueError(f"axis must be 'x', 'y' or 'z', got {axis!r}")
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    linear = np.eye(3)
    linear[first, first] = linear[second, second] = np.cos(angle)
    linear[second, first], linear[first, second] = np.sin(angle), -np.sin(angle)
    center = np.asarray(center, dtype=np.float64)
    return affine(linear, center - linear @ center)


def apply_affine(data_dict: DataDict, matrix: NDArray, keys: Sequence[str] = CAMERAS) -> DataDict:
    """Moves the sample by the 4x4 `matrix`: coord, normal (inverse transpose) and cameras (E A^-1).

    `keys` names the world->camera matrices to move; those that are absent are passed over, and "extrinsic" is moved
    whether named or not, since a sample whose cameras stay behind is never wanted. Depth images stay as they are:
    camera-space z is unchanged (see `apply_affine_to_extrinsic`).

    Normals keep their length where the matrix turns, mirrors and scales all axes alike; where it shears or scales them
    unlike, they get unit length. Computed in float32, or for float64 coordinates in float64; float32 comes out.
    """
    linear, shift = matrix[:3, :3], matrix[:3, 3]
    coord = data_dict["coord"]
    if coord.dtype != np.float32:
        coord = coord.astype(np.float64)
    coord = _times(coord, linear)
    if shift.any():
        coord = by_column(np.add, coord, shift)
    data_dict["coord"] = coord.astype(np.float32, copy=False)
    if "normal" in data_dict:
        data_dict["normal"] = _turn_normals(data_dict["normal"].astype(np.float32, copy=False), linear)
    for key in {*CAMERAS, *keys} & data_dict.keys():
        data_dict[key] = apply_affine_to_extrinsic(data_dict[key], matrix)
    return data_dict


def _times(points: NDArray, linear: NDArray) -> NDArray:
    """Each row of points [N, 3] multiplied by the 3x3 matrix `linear`, in their type."""
    diagonal = np.diag(linear)
    if not np.array_equal(linear, np.diag(diagonal)):
        return points @ linear.T.astype(points.dtype)
    return points if (diagonal == 1).all() else by_column(np.multiply, points, diagonal)


def _turn_normals(normal: NDArray[np.float32], linear: NDArray) -> NDArray[np.float32]:
    """Normals [N, 3] of points that were multiplied by `linear`."""
    scale = np.linalg.norm(linear[:, 0])
    turn = linear / scale if scale else linear
    if np.allclose(turn.T @ turn, np.eye(3), rtol=0, atol=1e-12):  # its own inverse transpose
        return _times(normal, turn.astype(np.float32))
    normal = _times(normal, np.linalg.inv(linear).T)
    length = np.sqrt(np.einsum("nc,nc->n", normal, normal))
    return normal / np.maximum(length, 1e-12)[:, None]


def _bounds(data_dict: DataDict) -> tuple[NDArray, NDArray]:
    low, high = bounds(data_dict["coord"])
    return low.astype(np.float64), high.astype(np.float64)


def _refuse_frames(transform: Transform, data_dict: DataDict) -> None:
    if any(key in data_dict for key in CAMERAS):
        raise ValueError(
            f"{type(transform).__name__} is not affine, so no camera could follow it: points would leave their pixels. "
            f"Remove it from the transforms of a data set with frames."
        )


class AffineTransform(Transform):
    """A transform that is one 4x4 matrix. `keys` names camera matrices to move besides "extrinsic"."""

    reads = ("coord",)

    def __init__(self, keys: Sequence[str] = CAMERAS) -> None:
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)

    def matrix(self, data_dict: DataDict) -> NDArray | None:
        """The 4x4 matrix drawn for this sample, or None for "leave it"."""
        raise NotImplementedError

    def apply(self, data_dict: DataDict) -> DataDict:
        matrix = self.matrix(data_dict)
        return data_dict if matrix is None else apply_affine(data_dict, matrix, self.keys)


@TRANSFORMS.register_module()
class NormalizeCoord(AffineTransform):
    """Centres the points on their mean and divides by the largest distance from it."""

    def matrix(self, data_dict: DataDict) -> NDArray:
        coord = data_dict["coord"].astype(np.float64)
        center = coord.mean(axis=0)
        radius = np.linalg.norm(coord - center, axis=1).max()
        if radius == 0:
            raise ValueError(f"NormalizeCoord: all {len(coord)} points are the same, there is no extent to divide by")
        return affine(np.eye(3) / radius, -center / radius)


@TRANSFORMS.register_module()
class PositiveShift(AffineTransform):
    """Shifts the smallest coordinate of each axis to 0."""

    def matrix(self, data_dict: DataDict) -> NDArray:
        return affine(shift=-_bounds(data_dict)[0])


@TRANSFORMS.register_module()
class CenterShift(AffineTransform):
    """Shifts the middle of the bounding box to 0 in x and y; with `apply_z` also its bottom to z = 0."""

    def __init__(self, apply_z: bool = True, keys: Sequence[str] = CAMERAS) -> None:
        super().__init__(keys)
        self.apply_z = apply_z

    def matrix(self, data_dict: DataDict) -> NDArray:
        low, high = _bounds(data_dict)
        middle = (low + high) / 2
        return affine(shift=-np.array([middle[0], middle[1], low[2] if self.apply_z else 0.0]))


@TRANSFORMS.register_module()
class RandomShift(AffineTransform):
    """Shifts by a uniform draw from the three (low, high) ranges of `shift`, in metres."""

    def __init__(
        self,
        shift: Sequence[Sequence[float]] = ((-0.2, 0.2), (-0.2, 0.2), (0, 0)),
        keys: Sequence[str] = CAMERAS,
    ) -> None:
        super().__init__(keys)
        self.shift = shift

    def matrix(self, data_dict: DataDict) -> NDArray:
        return affine(shift=np.array([np.random.uniform(low, high) for low, high in self.shift]))


@TRANSFORMS.register_module()
class PointClip(Transform):
    """Clips coordinates into the box (x0, y0, z0, x1, y1, z1). Not affine: an error where there are frames."""

    reads = ("coord",)

    def __init__(self, point_cloud_range: Sequence[float] = (-80, -80, -3, 80, 80, 1)) -> None:
        self.low, self.high = np.float32(point_cloud_range[:3]), np.float32(point_cloud_range[3:])

    def apply(self, data_dict: DataDict) -> DataDict:
        _refuse_frames(self, data_dict)
        data_dict["coord"] = np.clip(data_dict["coord"], self.low, self.high)
        return data_dict


@TRANSFORMS.register_module()
class RandomRotate(AffineTransform):
    """Turns by a uniform draw from `angle` (in units of pi) about `axis`, with probability `p`.

    `center` None is the middle of the bounding box. `always_apply` overrides `p`.
    """

    def __init__(
        self,
        angle: Sequence[float] | None = None,
        center: Sequence[float] | None = None,
        axis: str = "z",
        always_apply: bool = False,
        p: float = 0.5,
        keys: Sequence[str] = CAMERAS,
    ) -> None:
        super().__init__(keys)
        self.angle = (-1, 1) if angle is None else angle
        self.center, self.axis = center, axis
        self.p = 1.0 if always_apply else p

    def draw(self) -> float:
        """An angle in units of pi."""
        return np.random.uniform(self.angle[0], self.angle[1])

    def matrix(self, data_dict: DataDict) -> NDArray | None:
        if not chance(self.p):
            return None
        center = np.mean(_bounds(data_dict), axis=0) if self.center is None else self.center
        return rotation(self.axis, self.draw() * np.pi, center)


@TRANSFORMS.register_module()
class RandomRotateTargetAngle(RandomRotate):
    """Turns by one of the angles listed (in units of pi), with probability `p`."""

    def __init__(
        self,
        angle: Sequence[float] = (1 / 2, 1, 3 / 2),
        center: Sequence[float] | None = None,
        axis: str = "z",
        always_apply: bool = False,
        p: float = 0.75,
        keys: Sequence[str] = CAMERAS,
    ) -> None:
        super().__init__(angle, center, axis, always_apply, p, keys)

    def draw(self) -> float:
        return random.choice(list(self.angle))


@TRANSFORMS.register_module()
class RandomScale(AffineTransform):
    """Scales by a uniform draw from `scale`; `anisotropic` draws one for each axis.

    Legal with frames in both cases (the GaussianCross paper scales anisotropically, its code refuses to): the cameras
    become affine, and depth stays in metres.
    """

    def __init__(
        self,
        scale: Sequence[float] | None = None,
        anisotropic: bool = False,
        keys: Sequence[str] = CAMERAS,
    ) -> None:
        super().__init__(keys)
        self.scale = (0.95, 1.05) if scale is None else scale
        self.anisotropic = anisotropic

    def matrix(self, data_dict: DataDict) -> NDArray:
        drawn = np.random.uniform(self.scale[0], self.scale[1], 3 if self.anisotropic else 1)
        return affine(np.eye(3) * drawn)


@TRANSFORMS.register_module()
class RandomFlip(AffineTransform):
    """Mirrors x and, by a draw of its own, y, each with probability `p`. Mirrored cameras are left-handed."""

    def __init__(self, p: float = 0.5, keys: Sequence[str] = CAMERAS) -> None:
        super().__init__(keys)
        self.p = p

    def matrix(self, data_dict: DataDict) -> NDArray | None:
        signs = [-1.0 if chance(self.p) else 1.0, -1.0 if chance(self.p) else 1.0, 1.0]
        return None if signs == [1.0, 1.0, 1.0] else affine(np.diag(signs))


@TRANSFORMS.register_module()
class RandomJitter(Transform):
    """Adds Gaussian noise of `sigma` metres to every point, clipped at `clip`. Cameras stay: it is sensor noise."""

    reads = ("coord",)

    def __init__(self, sigma: float = 0.01, clip: float = 0.05) -> None:
        if clip <= 0:
            raise ValueError(f"RandomJitter: clip must be positive, got {clip}")
        self.sigma, self.clip = sigma, clip

    def apply(self, data_dict: DataDict) -> DataDict:
        noise = normal_noise(data_dict["coord"].shape)
        noise *= self.sigma
        data_dict["coord"] = data_dict["coord"] + np.clip(noise, -self.clip, self.clip, out=noise)
        return data_dict


@TRANSFORMS.register_module()
class ClipGaussianJitter(Transform):
    """Adds Gaussian noise whose 1.96 sigma is `scalar` metres, clipped there; `store_jitter` keeps it as "jitter"."""

    reads = ("coord",)

    def __init__(self, scalar: float = 0.02, store_jitter: bool = False) -> None:
        self.scalar, self.store_jitter = scalar, store_jitter

    def apply(self, data_dict: DataDict) -> DataDict:
        noise = self.scalar * np.clip(normal_noise(data_dict["coord"].shape) / np.float32(1.96), -1, 1)
        data_dict["coord"] = data_dict["coord"] + noise
        if self.store_jitter:
            data_dict["jitter"] = noise
        return data_dict


@TRANSFORMS.register_module()
class ElasticDistortion(Transform):
    """Bends space by smoothed noise, once for each (granularity, magnitude) in metres, with probability `p`.

    Not affine: an error where there are frames.
    """

    reads = ("coord",)

    def __init__(self, distortion_params: Sequence[Sequence[float]] | None = None, p: float = 0.95) -> None:
        self.distortion_params = ((0.2, 0.4), (0.8, 1.6)) if distortion_params is None else distortion_params
        self.p = p

    def apply(self, data_dict: DataDict) -> DataDict:
        _refuse_frames(self, data_dict)
        if chance(self.p):
            for granularity, magnitude in self.distortion_params:
                data_dict["coord"] = elastic_distortion(data_dict["coord"], granularity, magnitude)
        return data_dict


def elastic_distortion(coord: NDArray, granularity: float, magnitude: float) -> NDArray[np.float32]:
    """Adds to coord [N, 3] a smooth random field: noise on a grid of `granularity`, box-blurred twice per axis, read
    between the grid's nodes by trilinear interpolation.

    Raises: ValueError where the extent needs more than 2^27 nodes.
    """
    low, high = bounds(coord)
    cells = np.floor((high - low) / granularity).astype(np.int64) + 3
    if not 0 < cells.astype(float).prod() <= MAX_NOISE_CELLS:
        raise ValueError(
            f"ElasticDistortion: noise every {granularity} m over {low.tolist()} .. {high.tolist()} has "
            f"{'x'.join(map(str, cells))} nodes, more than {MAX_NOISE_CELLS}; is the cloud in metres, without outliers?"
        )
    noise = _smooth(normal_noise((*cells, 3))) * np.float32(magnitude)
    # the first point's place is at node 1: a margin on both sides, so that every point has all its neighbours.
    # grid_sample counts from -1 (first node) to 1 (last), and x along the last axis
    place = by_column(np.subtract, coord.astype(np.float32, copy=False), low)
    place = by_column(np.multiply, place, 2 / (granularity * (cells - 1)))
    place = by_column(np.add, place, 2 / (cells - 1) - 1)
    volume = torch.from_numpy(noise).permute(3, 2, 1, 0)[None]
    at = torch.from_numpy(place)[None, None, None]
    field = torch.nn.functional.grid_sample(volume, at, align_corners=True, padding_mode="border")
    return (coord + field.reshape(3, -1).numpy().T).astype(np.float32, copy=False)


def _smooth(noise: NDArray[np.float32]) -> NDArray[np.float32]:
    """Noise [X, Y, Z, C] box-blurred over three nodes along x, y and z, twice; beyond the border it is 0."""
    for axis in (0, 1, 2) * 2:
        summed = noise.copy()
        before, after = (np.moveaxis(array, axis, 0) for array in (noise, summed))
        after[1:] += before[:-1]
        after[:-1] += before[1:]
        noise = summed
    return noise / np.float32(27**2)

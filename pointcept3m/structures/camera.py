"""Pinhole cameras as arrays: x right, y down, z forward; the centre of the first pixel lies at (0.5, 0.5).

Everything here takes and returns numpy arrays and works in float64 unless it says otherwise: a pose loses a
tenth of a millimetre over ten float32 products, which is visible in pixels.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

SizeHW = tuple[int, int]


def scale_intrinsic(intrinsic: ArrayLike, from_size: SizeHW, to_size: SizeHW) -> NDArray[np.float64]:
    """The 3x3 intrinsic for an image of `to_size` (H, W), given the one for `from_size` (H, W) of the same view.

    Accepts 3x3 or 4x4. With pixel centres at + 0.5 the image plane scales about its corner, so whole rows scale.
    """
    result = np.array(intrinsic, dtype=np.float64)[:3, :3]
    result[0] *= to_size[1] / from_size[1]
    result[1] *= to_size[0] / from_size[0]
    return result


def turn_view(intrinsic: ArrayLike, size: SizeHW, pose: ArrayLike, quarters: int) -> tuple[NDArray[np.float64], SizeHW, NDArray[np.float64]]:
    """(intrinsic [3, 3], size (H, W), pose [4, 4] camera->world) of a picture that is turned clockwise by so many quarters, as
    `np.rot90(picture, -quarters)` turns it: every point of the world keeps the pixel that shows it."""
    intrinsic, pose = np.array(intrinsic, dtype=np.float64)[:3, :3], np.array(pose, dtype=np.float64)
    for _ in range(quarters % 4):
        pixels = np.array([[0, -1, size[0]], [1, 0, 0], [0, 0, 1]], dtype=np.float64)  # right goes down, down goes left
        axes = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=np.float64)
        intrinsic, size = pixels @ intrinsic @ axes.T, (size[1], size[0])
        pose[:3, :3] = pose[:3, :3] @ axes.T
    return intrinsic, size, pose


def upright_quarters(poses: ArrayLike) -> int:
    """By how many quarters (0 to 3), clockwise, most pictures of poses [N, 4, 4] (camera->world, z up) have to be turned to stand
    upright. Those that look straight up or down say little, and count for as little."""
    down = -np.asarray(poses, dtype=np.float64).reshape(-1, 4, 4)[:, 2, :2]  # the world's down along each camera's x and y
    votes = np.maximum(np.stack([down[:, 1], down[:, 0], -down[:, 1], -down[:, 0]]), 0).sum(axis=1)
    return int(np.argmax(votes)) if len(down) else 0


def invert_pose(pose: ArrayLike) -> NDArray[np.float64]:
    """The inverse of a 4x4 affine matrix [..., 4, 4]: camera->world from world->camera and back."""
    return np.linalg.inv(np.asarray(pose, dtype=np.float64))


def transform_coord(coord: ArrayLike, matrix: ArrayLike) -> NDArray[np.float64]:
    """Points [..., 3] moved by a 4x4 affine matrix."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return np.asarray(coord, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def project(
    coord: ArrayLike, intrinsic: ArrayLike, extrinsic: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """World points [N, 3] -> (pixel [N, 2] as (u, v), camera-space depth [N]).

    Points on or behind the camera plane have depth <= 0 and pixel NaN.
    """
    camera = transform_coord(coord, extrinsic)
    depth = camera[..., 2]
    homogeneous = camera @ np.asarray(intrinsic, dtype=np.float64)[:3, :3].T
    pixel = np.full(homogeneous.shape[:-1] + (2,), np.nan)
    front = depth > 0
    pixel[front] = homogeneous[front, :2] / homogeneous[front, 2:]
    return pixel, depth


def pixel_rays(size: SizeHW, intrinsic: ArrayLike) -> NDArray[np.float64]:
    """For every pixel centre of an image (H, W) the camera-space point at depth 1: [H, W, 3]."""
    height, width = size
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixel = np.stack([u, v, np.ones_like(u)], axis=-1)
    return pixel @ np.linalg.inv(np.asarray(intrinsic, dtype=np.float64)[:3, :3]).T


def unproject(depth: ArrayLike, intrinsic: ArrayLike, pose: ArrayLike | None = None) -> NDArray[np.float64]:
    """A depth image [H, W] in metres -> points [H, W, 3], in the camera's frame, or the world's if `pose` is given.

    Invalid pixels (depth 0) come out at the camera's centre; select by `depth > 0`.
    """
    depth = np.asarray(depth, dtype=np.float64)
    coord = pixel_rays(depth.shape, intrinsic) * depth[..., None]
    return coord if pose is None else transform_coord(coord, pose)


def apply_affine_to_extrinsic(extrinsic: ArrayLike, matrix: ArrayLike) -> NDArray[np.float64]:
    """World->camera matrices [..., 4, 4] for a world moved by the 4x4 affine `matrix`: E' = E A^-1.

    Then E' (A x) = E x: every point keeps its pixel, and its camera-space depth stays in metres whatever A does,
    anisotropic scaling included. That is why no transform ever rescales a depth image.

    Raises: ValueError where `matrix` cannot be inverted.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError(f"an affine transform must be finite and invertible, got {matrix.tolist()}")
    return np.asarray(extrinsic, dtype=np.float64) @ np.linalg.inv(matrix)


def register_color(
    color: NDArray, color_intrinsic: ArrayLike, target_intrinsic: ArrayLike, size: SizeHW
) -> NDArray[np.float32]:
    """A colour image seen by another pinhole at the same place: [h, w, 3] uint8 -> [H, W, 3] float32 in 0..1.

    The target's pixel p reads the colour image at K_color K_target^-1 p, which is exact where the two cameras share
    centre and axes (ScanNet's registered sensors). Bilinear; box-averaged first where it shrinks by 2 or more; beyond
    the colour image the nearest border pixel is repeated.

    Raises: ValueError where an intrinsic has skew, since the map is then no longer one per axis.
    """
    color = np.asarray(color)
    affine = np.asarray(color_intrinsic, np.float64)[:3, :3] @ np.linalg.inv(
        np.asarray(target_intrinsic, np.float64)[:3, :3]
    )
    if abs(affine[0, 1]) > 1e-9 or abs(affine[1, 0]) > 1e-9:
        raise ValueError(f"intrinsics with skew cannot be registered: {np.asarray(color_intrinsic).tolist()}")
    if color.shape[:2] == tuple(size) and np.allclose(affine, np.eye(3), atol=1e-9):
        return color.astype(np.float32) / np.float32(255)
    image = color.astype(np.float32)
    for axis, row, length in ((0, 1, size[0]), (1, 0, size[1])):
        scale, shift = affine[row, row], affine[row, 2]
        shrink = int(scale)
        if shrink >= 2:
            image = _box_average(image, axis, shrink)
            scale, shift = scale / shrink, shift / shrink
        position = scale * (np.arange(length) + 0.5) + shift - 0.5
        image = _interpolate(image, axis, position)
    return image / np.float32(255)


def _box_average(image: NDArray, axis: int, factor: int) -> NDArray:
    """Means of `factor` neighbours along `axis`; a last incomplete group averages what it has."""
    starts = np.arange(0, image.shape[axis], factor)
    counts = np.diff(np.append(starts, image.shape[axis])).astype(np.float32)
    shape = [1] * image.ndim
    shape[axis] = -1
    return np.add.reduceat(image, starts, axis=axis) / counts.reshape(shape)


def _interpolate(image: NDArray, axis: int, position: NDArray) -> NDArray:
    """Linear interpolation along `axis` at fractional indices, clamped to the ends."""
    position = np.clip(position, 0, image.shape[axis] - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, image.shape[axis] - 1)
    shape = [1] * image.ndim
    shape[axis] = -1
    weight = (position - low).astype(np.float32).reshape(shape)
    first = np.take(image, low, axis=axis)
    return first + (np.take(image, high, axis=axis) - first) * weight


def resize_nearest(image: NDArray, size: SizeHW) -> NDArray:
    """`image` [h, w, ...] read at the nearest pixel centre for an image of `size` (H, W): depth and labels."""
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.int64)
    return image[rows[:, None], columns]

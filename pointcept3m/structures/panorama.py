"""Equirectangular panoramas, and the perspective views that networks of ordinary pictures want.

A panorama's axes are those of a camera that looks at its middle: x right, y down, z forward.
"""

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.camera import pixel_rays

SEAM, PLAIN = 2.0, 4.0  # across the seam colours may differ by so many times what neighbouring columns do, and in any case by so much


def is_panorama(image: NDArray[np.uint8]) -> bool:
    """Whether a picture [H, W, 3] is a whole turn: twice as wide as high, and its left edge continues its right one."""
    height, width = image.shape[:2]
    if abs(width - 2 * height) > 0.02 * width or height < 16:
        return False
    columns = image[:, : width // 2 * 2].reshape(height, -1, 2, 3).astype(np.float32).mean(axis=2)
    step = np.abs(np.diff(columns, axis=1)).mean(axis=(0, 2))
    return float(np.abs(columns[:, 0] - columns[:, -1]).mean()) < max(PLAIN, SEAM * float(np.median(step)))


def perspectives(
    panorama: NDArray[np.uint8], count: int = 8, fov: float = 80.0, size: tuple[int, int] | None = None, pitch: float = 0.0
) -> list[NDArray[np.uint8]]:
    """`count` views uint8 [h, w, 3] around a panorama uint8 [H, W, 3], the first at its middle, the next to the right.

    fov: across a view, degrees. size: (h, w), by default square, a pixel of the panorama's middle row for each. pitch: degrees
    above the horizon. Raises: ValueError where the panorama is not twice as wide as high, or a number makes no view.
    """
    height, width = panorama.shape[:2]
    if panorama.ndim != 3 or abs(width - 2 * height) > 0.02 * width:
        raise ValueError(f"an equirectangular panorama is twice as wide as high, got {width} x {height}")
    if count < 1 or not 1 <= fov <= 170:
        raise ValueError(f"wanted at least one view of 1 to 170 degrees, got count={count}, fov={fov}")
    h, w = size or (max(8, round(width * fov / 360)),) * 2
    intrinsic = view_intrinsic(fov, (h, w))
    return [look(panorama, view_rotation(360 * k / count, pitch), intrinsic, (h, w)) for k in range(count)]


def view_intrinsic(fov: float, size: tuple[int, int]) -> NDArray[np.float64]:
    """[3, 3] of a view `fov` degrees wide with square pixels, of `size` (h, w)."""
    focal = size[1] / 2 / np.tan(np.radians(fov) / 2)
    return np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1.0]])


def view_rotation(yaw: float, pitch: float = 0.0) -> NDArray[np.float64]:
    """[3, 3], a view's axes to the panorama's: it looks `yaw` degrees right of the middle and `pitch` degrees above the horizon."""
    yaw, pitch = np.radians(yaw), np.radians(pitch)
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    return turn @ tilt


def look(panorama: NDArray, rotation: NDArray, intrinsic: NDArray, size: tuple[int, int]) -> NDArray:
    """What a view of `size` (h, w) shows of a panorama: colours uint8 [H, W, 3] between its pixels, one channel [H, W] (depth,
    ids) of the nearest."""
    height, width = panorama.shape[:2]
    rays = pixel_rays(size, intrinsic).reshape(-1, 3).astype(np.float64) @ rotation.T
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    row = (0.5 + np.arcsin(np.clip(rays[:, 1], -1, 1)) / np.pi) * height - 0.5
    column = (0.5 + np.arctan2(rays[:, 0], rays[:, 2]) / (2 * np.pi)) * width - 0.5
    if panorama.ndim == 3:
        return _bilinear(panorama, row, column).reshape(*size, 3)
    row, column = np.rint(row).astype(int).clip(0, height - 1), np.rint(column).astype(int) % width
    return panorama[row, column].reshape(size)


def _bilinear(image: NDArray[np.uint8], row: NDArray, column: NDArray) -> NDArray[np.uint8]:
    """Colours [N, 3] at fractional pixels; columns go round, rows stop at the poles."""
    height, width = image.shape[:2]
    row = np.clip(row, 0, height - 1)
    r0, c0 = np.floor(row).astype(int), np.floor(column).astype(int)
    fr, fc = (row - r0)[:, None], (column - c0)[:, None]
    r1 = np.minimum(r0 + 1, height - 1)
    c0, c1 = c0 % width, (c0 + 1) % width
    top = image[r0, c0] * (1 - fc) + image[r0, c1] * fc
    bottom = image[r1, c0] * (1 - fc) + image[r1, c1] * fc
    return np.rint(top * (1 - fr) + bottom * fr).astype(np.uint8)

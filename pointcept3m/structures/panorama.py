"""Equirectangular panoramas, and the perspective views that networks of ordinary pictures want."""

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.camera import pixel_rays

SEAM = 12.0  # mean difference of colours across the picture's seam below which it closes


def is_panorama(image: NDArray[np.uint8]) -> bool:
    """Whether a picture [H, W, 3] is a whole turn: twice as wide as high, and its left edge continues its right one."""
    height, width = image.shape[:2]
    if abs(width - 2 * height) > 0.02 * width or height < 16:
        return False
    left, right = image[:, :2].astype(np.float32).mean(axis=1), image[:, -2:].astype(np.float32).mean(axis=1)
    return float(np.abs(left - right).mean()) < SEAM


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
    focal = w / 2 / np.tan(np.radians(fov) / 2)
    rays = pixel_rays((h, w), np.array([[focal, 0, w / 2], [0, focal, h / 2], [0, 0, 1.0]])).reshape(-1, 3).astype(np.float64)
    tilt = np.radians(pitch)
    rays = rays @ np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]).T
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    latitude = np.arcsin(np.clip(-rays[:, 1], -1, 1))
    longitude = np.arctan2(rays[:, 0], rays[:, 2])
    row = (0.5 - latitude / np.pi) * height - 0.5
    views = []
    for k in range(count):
        column = (0.5 + (longitude / (2 * np.pi) + k / count)) * width - 0.5
        views.append(_bilinear(panorama, row, column).reshape(h, w, 3))
    return views


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

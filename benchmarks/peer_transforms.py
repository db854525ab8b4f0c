"""The transforms of Pointcept's ScanNet training chain as Pointcept computes them, written anew from their description.

Step by step the same arithmetic, in the same types, by the same libraries: `numpy` in float64 for what moves points,
`scipy.ndimage.convolve` and `RegularGridInterpolator` for the elastic distortion, an FNV-1a hash and `numpy.unique` for
the grid. Each is a function of a sample that changes it; `CHAIN` names them as their configs do.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from scipy import interpolate, ndimage

Sample = dict
Step = Callable[[Sample], Sample]
FNV_START, FNV_PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)
POINT_KEYS = ("coord", "color", "normal", "superpoint", "strength", "segment", "instance")


def take(sample: Sample, index: np.ndarray) -> Sample:
    for key in sample.setdefault("index_valid_keys", list(POINT_KEYS)):
        if key in sample:
            sample[key] = sample[key][index]
    return sample


def center_shift(apply_z: bool) -> Step:
    def step(sample: Sample) -> Sample:
        x0, y0, z0 = sample["coord"].min(axis=0)
        x1, y1, _ = sample["coord"].max(axis=0)
        sample["coord"] -= [(x0 + x1) / 2, (y0 + y1) / 2, z0 if apply_z else 0]
        return sample

    return step


def dropout(ratio: float, probability: float) -> Step:
    def step(sample: Sample) -> Sample:
        if random.random() < probability:
            count = len(sample["coord"])
            sample = take(sample, np.random.choice(count, int(count * (1 - ratio)), replace=False))
        return sample

    return step


def rotate(reach: float, axis: int, at_origin: bool, probability: float) -> Step:
    def step(sample: Sample) -> Sample:
        if random.random() > probability:
            return sample
        angle = np.random.uniform(-reach, reach) * np.pi
        turn = np.eye(3)
        first, second = ((1, 2), (2, 0), (0, 1))[axis]
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[second, first], turn[first, second] = np.sin(angle), -np.sin(angle)
        center = [0, 0, 0]
        if not at_origin:
            low, high = sample["coord"].min(axis=0), sample["coord"].max(axis=0)
            center = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        sample["coord"] -= center
        sample["coord"] = np.dot(sample["coord"], np.transpose(turn))
        sample["coord"] += center
        sample["normal"] = np.dot(sample["normal"], np.transpose(turn))
        return sample

    return step


def scale(sample: Sample) -> Sample:
    sample["coord"] *= np.random.uniform(0.9, 1.1, 1)
    return sample


def flip(sample: Sample) -> Sample:
    for axis in (0, 1):
        if np.random.rand() < 0.5:
            for key in ("coord", "normal"):
                sample[key][:, axis] = -sample[key][:, axis]
    return sample


def jitter(sample: Sample) -> Sample:
    sample["coord"] += np.clip(0.005 * np.random.randn(len(sample["coord"]), 3), -0.02, 0.02)
    return sample


def elastic(sample: Sample) -> Sample:
    if random.random() < 0.95:
        for granularity, magnitude in ((0.2, 0.4), (0.8, 1.6)):
            sample["coord"] = distort(sample["coord"], granularity, magnitude)
    return sample


def distort(coord: np.ndarray, granularity: float, magnitude: float) -> np.ndarray:
    """Adds smoothed noise to coord, in place. `field` is what is added, also for tests of ours against it."""
    low = coord.min(0)
    nodes = ((coord - low).max(0) // granularity).astype(int) + 3
    coord += field(coord, np.random.randn(*nodes, 3).astype(np.float32), granularity) * magnitude
    return coord


def field(coord: np.ndarray, noise: np.ndarray, granularity: float) -> np.ndarray:
    low, nodes = coord.min(0), np.array(noise.shape[:3])
    for _ in range(2):
        for axis in range(3):
            window = np.full([3 if a == axis else 1 for a in range(4)], 1 / 3, dtype=np.float32)
            noise = ndimage.convolve(noise, window, mode="constant", cval=0)
    ends = zip(low - granularity, low + granularity * (nodes - 2), nodes, strict=True)
    axes = [np.linspace(*end) for end in ends]
    return interpolate.RegularGridInterpolator(axes, noise, bounds_error=False, fill_value=0)(coord)


def auto_contrast(sample: Sample) -> Sample:
    color = sample["color"]
    if np.random.rand() < 0.2:
        low, high = color.min(0, keepdims=True), color.max(0, keepdims=True)
        stretched, blend = (color[:, :3] - low) * (255 / (high - low)), np.random.rand()
        color[:, :3] = (1 - blend) * color[:, :3] + blend * stretched
    return sample


def translate_color(sample: Sample) -> Sample:
    if np.random.rand() < 0.95:
        shift = (np.random.rand(1, 3) - 0.5) * 255 * 2 * 0.05
        sample["color"][:, :3] = np.clip(shift + sample["color"][:, :3], 0, 255)
    return sample


def jitter_color(sample: Sample) -> Sample:
    if np.random.rand() < 0.95:
        noise = np.random.randn(len(sample["color"]), 3)
        noise *= 0.05 * 255
        sample["color"][:, :3] = np.clip(noise + sample["color"][:, :3], 0, 255)
    return sample


def grid_sample(sample: Sample) -> Sample:
    cells = np.floor(sample["coord"] / np.array(0.02)).astype(int)
    cells -= cells.min(0)
    key = FNV_START * np.ones(len(cells), dtype=np.uint64)
    for axis in range(3):
        key *= FNV_PRIME
        key = np.bitwise_xor(key, cells.astype(np.uint64)[:, axis])
    order = np.argsort(key)
    _, _, counts = np.unique(key[order], return_inverse=True, return_counts=True)
    starts = np.cumsum(np.insert(counts, 0, 0)[:-1])
    picked = order[starts + np.random.randint(0, counts.max(), counts.size) % counts]
    sample = take(sample, picked)
    sample["grid_coord"] = cells[picked]
    sample["index_valid_keys"].append("grid_coord")
    return sample


def sphere_crop(most: int) -> Step:
    def step(sample: Sample) -> Sample:
        coord = sample["coord"]
        if len(coord) > most:
            center = coord[np.random.randint(len(coord))]
            sample = take(sample, np.argsort(np.sum(np.square(coord - center), 1))[:most])
        return sample

    return step


def normalize_color(sample: Sample) -> Sample:
    sample["color"] = sample["color"] / 255
    return sample


def to_tensor(sample: Sample) -> Sample:
    result = {}
    for key, value in sample.items():
        if isinstance(value, np.ndarray):
            tensor = torch.from_numpy(value)
            value = tensor.long() if np.issubdtype(value.dtype, np.integer) else tensor.float()
        result[key] = value
    return result


def collect(counts_rows: bool) -> Step:
    """`counts_rows`: Pointcept 1.7.0 makes a tensor of the length of every single point and drops it."""

    def step(sample: Sample) -> Sample:
        result = {key: sample[key] for key in ("coord", "grid_coord", "segment")}
        if counts_rows:
            torch.tensor([row.shape[0] for row in sample["coord"]])
        result["offset"] = torch.tensor([sample["coord"].shape[0]])
        result["feat"] = torch.cat([sample[key].float() for key in ("color", "normal")], dim=1)
        return result

    return step


def chain(point_max: int = 102400, counts_rows: bool = True) -> list[tuple[str, Step]]:
    """(name in configs, step) of `semseg-spunet-v1m1-0-base`'s training transforms."""
    return [
        ("CenterShift", center_shift(True)),
        ("RandomDropout", dropout(0.2, 0.2)),
        ("RandomRotate z", rotate(1, 2, True, 0.5)),
        ("RandomRotate x", rotate(1 / 64, 0, False, 0.5)),
        ("RandomRotate y", rotate(1 / 64, 1, False, 0.5)),
        ("RandomScale", scale),
        ("RandomFlip", flip),
        ("RandomJitter", jitter),
        ("ElasticDistortion", elastic),
        ("ChromaticAutoContrast", auto_contrast),
        ("ChromaticTranslation", translate_color),
        ("ChromaticJitter", jitter_color),
        ("GridSample", grid_sample),
        ("SphereCrop", sphere_crop(point_max)),
        ("CenterShift xy", center_shift(False)),
        ("NormalizeColor", normalize_color),
        ("ToTensor", to_tensor),
        ("Collect", collect(counts_rows)),
    ]

"""Transforms of colour. Points carry 0..255 until `NormalizeColor`; views carry 0..1 throughout.

Where a sample has views, a photometric change is drawn once and done to the points and to the pictures alike
(`views=False` leaves the pictures), so that what is rendered from the points can still match what is seen.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms.compose import DataDict, Transform, chance
from pointcept3m.utils.arrays import bounds, by_column, normal_noise

GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # luma of ITU-R BT.601
ColorMap = Callable[[NDArray], NDArray]


class ColorTransform(Transform):
    """A change of colour as one function of values in 0..255, applied to points and, if `views`, to pictures."""

    reads = ("color",)

    def __init__(self, views: bool = True) -> None:
        self.views = views

    def draw(self, color: NDArray) -> ColorMap | None:
        """The function drawn for this sample ([..., 3] -> [..., 3]), or None for "leave it"."""
        raise NotImplementedError

    def apply(self, data_dict: DataDict) -> DataDict:
        change = self.draw(data_dict["color"])
        if change is None:
            return data_dict
        changed = change(data_dict["color"].astype(np.float32, copy=False))
        data_dict["color"] = np.clip(changed, 0, 255, out=changed).astype(np.float32, copy=False)
        if self.views and "rgb" in data_dict:
            changed = change(data_dict["rgb"].astype(np.float32) * np.float32(255))
            data_dict["rgb"] = (np.clip(changed, 0, 255) / 255).astype(np.float32)
        return data_dict


@TRANSFORMS.register_module()
class NormalizeColor(Transform):
    """Points' colours from 0..255 to the range a network takes; views are 0..1 already.

    Args:
        mode: "zero_one" divides by 255 (Pointcept since 1.6.0), "minus_one_one" gives color / 127.5 - 1 (Pointcept
            before, GaussianCross). A checkpoint is only good with the mode it was trained with.

    Raises: ValueError where the colours seem to be normalised already.
    """

    reads = ("color",)

    def __init__(self, mode: str = "zero_one") -> None:
        if mode not in ("zero_one", "minus_one_one"):
            raise ValueError(f"NormalizeColor: mode must be 'zero_one' or 'minus_one_one', got {mode!r}")
        self.mode = mode

    def apply(self, data_dict: DataDict) -> DataDict:
        color = data_dict["color"].astype(np.float32)
        if color.size and np.abs(color).max() <= 1 and (color != np.rint(color)).any():
            raise ValueError("NormalizeColor: the colours lie within -1..1, so they are normalised already")
        data_dict["color"] = color / np.float32(255) if self.mode == "zero_one" else color / np.float32(127.5) - 1
        return data_dict


@TRANSFORMS.register_module()
class ChromaticAutoContrast(ColorTransform):
    """With probability `p`, stretches each channel of the points to 0..255 and blends that in.

    `blend_factor` None draws the weight from 0..1. Views are stretched by the limits of the points.
    """

    def __init__(self, p: float = 0.2, blend_factor: float | None = None, views: bool = True) -> None:
        super().__init__(views)
        self.p, self.blend_factor = p, blend_factor

    def draw(self, color: NDArray) -> ColorMap | None:
        if not chance(self.p):
            return None
        low, high = (limit.astype(np.float32) for limit in bounds(color))
        gain = np.where(high > low, 255 / np.maximum(high - low, 1e-6), 1).astype(np.float32)
        low = np.where(high > low, low, 0).astype(np.float32)
        blend = np.float32(np.random.rand() if self.blend_factor is None else self.blend_factor)
        # values + blend * ((values - low) * gain - values), with each column's numbers put together first
        factor, shift = 1 + blend * (gain - 1), -blend * low * gain
        return lambda values: by_column(np.add, by_column(np.multiply, values, factor), shift)


@TRANSFORMS.register_module()
class ChromaticTranslation(ColorTransform):
    """With probability `p`, adds to each channel one uniform draw of up to `ratio` of the range."""

    def __init__(self, p: float = 0.95, ratio: float = 0.05, views: bool = True) -> None:
        super().__init__(views)
        self.p, self.ratio = p, ratio

    def draw(self, color: NDArray) -> ColorMap | None:
        if not chance(self.p):
            return None
        shift = (np.random.uniform(-1, 1, 3) * 255 * self.ratio).astype(np.float32)
        return lambda values: by_column(np.add, values, shift)


@TRANSFORMS.register_module()
class ChromaticJitter(ColorTransform):
    """With probability `p`, adds Gaussian noise of `std` of the range to every point. Never to views: it is noise of
    the single point, and nothing a picture should be asked to show."""

    def __init__(self, p: float = 0.95, std: float = 0.005) -> None:
        super().__init__(views=False)
        self.p, self.std = p, std

    def draw(self, color: NDArray) -> ColorMap | None:
        if not chance(self.p):
            return None
        noise = normal_noise(color.shape)
        noise *= self.std * 255
        return lambda values: values + noise


@TRANSFORMS.register_module()
class RandomColorGrayScale(ColorTransform):
    """With probability `p`, colours become their luma."""

    def __init__(self, p: float = 0.2, views: bool = True) -> None:
        super().__init__(views)
        self.p = p

    def draw(self, color: NDArray) -> ColorMap | None:
        return to_gray if chance(self.p) else None


@TRANSFORMS.register_module()
class RandomColorJitter(ColorTransform):
    """With probability `p`, changes brightness, contrast, saturation and hue in random order.

    Each argument is a reach (0.4 draws the factor from 0.6..1.4; hue 0.1 draws the shift from -0.1..0.1 turns) or
    a (low, high) range of the factor or shift.
    """

    def __init__(
        self,
        brightness: float | Sequence[float] = 0,
        contrast: float | Sequence[float] = 0,
        saturation: float | Sequence[float] = 0,
        hue: float | Sequence[float] = 0,
        p: float = 0.95,
        views: bool = True,
    ) -> None:
        super().__init__(views)
        self.p = p
        self.ranges = {
            "brightness": _factor_range("brightness", brightness),
            "contrast": _factor_range("contrast", contrast),
            "saturation": _factor_range("saturation", saturation),
            "hue": (-hue, hue) if isinstance(hue, (int, float)) else tuple(hue),
        }
        if not -0.5 <= self.ranges["hue"][0] <= self.ranges["hue"][1] <= 0.5:
            raise ValueError(f"RandomColorJitter: hue must lie within -0.5..0.5, got {hue}")

    def draw(self, color: NDArray) -> ColorMap | None:
        if not chance(self.p):
            return None
        steps: list[ColorMap] = []
        for number in np.random.permutation(4):
            name = ("brightness", "contrast", "saturation", "hue")[number]
            low, high = self.ranges[name]
            neutral = 0.0 if name == "hue" else 1.0
            value = np.random.uniform(low, high)
            if low == high == neutral:
                continue
            # contrast turns about the points' mean for points and views alike, so both get the same map
            steps.append(_jitter(name, np.float32(value), float((color @ GRAY_WEIGHTS).mean())))
        return lambda values: _chain(steps, values)


@TRANSFORMS.register_module()
class HueSaturationTranslation(ColorTransform):
    """Turns the hue by up to `hue_max` turns and scales the saturation by 1 +- `saturation_max`, always."""

    def __init__(self, hue_max: float = 0.5, saturation_max: float = 0.2, views: bool = True) -> None:
        super().__init__(views)
        self.hue_max, self.saturation_max = hue_max, saturation_max

    def draw(self, color: NDArray) -> ColorMap:
        turn = np.random.uniform(-self.hue_max, self.hue_max)
        factor = 1 + np.random.uniform(-self.saturation_max, self.saturation_max)
        return lambda values: shift_hue(values, turn, factor)


@TRANSFORMS.register_module()
class RandomDropColor(Transform):
    """With probability `p`, multiplies the points' colours by `color_augment` (0 removes them). Views stay."""

    reads = ("color",)

    def __init__(self, p: float = 0.2, color_augment: float = 0.0) -> None:
        self.p, self.color_augment = p, color_augment

    def apply(self, data_dict: DataDict) -> DataDict:
        if chance(self.p):
            data_dict["color"] = (data_dict["color"] * self.color_augment).astype(np.float32)
        return data_dict


TRANSFORMS.register_module("RandomColorDrop", module=RandomDropColor)


@TRANSFORMS.register_module()
class RandomDropNormal(Transform):
    """With probability `p`, multiplies the normals by `normal_augment` (0 removes them)."""

    reads = ("normal",)

    def __init__(self, p: float = 0.2, normal_augment: float = 0.0) -> None:
        self.p, self.normal_augment = p, normal_augment

    def apply(self, data_dict: DataDict) -> DataDict:
        if chance(self.p):
            data_dict["normal"] = (data_dict["normal"] * self.normal_augment).astype(np.float32)
        return data_dict


def to_gray(values: NDArray) -> NDArray:
    """[..., 3] -> [..., 3] with the luma in all three channels."""
    return np.repeat((values @ GRAY_WEIGHTS)[..., None], 3, axis=-1)


def rgb_to_hsv(values: NDArray) -> NDArray:
    """[..., 3] in 0..255 -> hue in turns 0..1, saturation 0..1, value 0..255."""
    high, low = values.max(axis=-1), values.min(axis=-1)
    span = high - low
    safe = np.where(span > 0, span, 1)
    red, green, blue = (values[..., c] for c in range(3))
    sixth = np.where(
        high == red,
        (green - blue) / safe % 6,
        np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return np.stack([sixth / 6, span / np.where(high > 0, high, 1), high], axis=-1)


def hsv_to_rgb(hsv: NDArray) -> NDArray:
    """The inverse of `rgb_to_hsv`."""
    hue, saturation, value = (hsv[..., c] for c in range(3))
    # each channel is the value lowered by a trapezoid of the hue, offset by 5, 3 and 1 sixths of a turn
    channels = []
    for start in (5, 3, 1):
        position = (start + hue * 6) % 6
        channels.append(value - value * saturation * np.clip(np.minimum(position, 4 - position), 0, 1))
    return np.stack(channels, axis=-1)


def shift_hue(values: NDArray, turn: float, saturation_factor: float = 1.0) -> NDArray:
    """[..., 3] in 0..255 with the hue turned by `turn` (1 is all the way round) and the saturation scaled."""
    hsv = rgb_to_hsv(values)
    hsv[..., 0] = (hsv[..., 0] + turn) % 1
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation_factor, 0, 1)
    return hsv_to_rgb(hsv)


def _factor_range(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    low, high = (max(0.0, 1 - value), 1.0 + value) if isinstance(value, (int, float)) else value
    if not 0 <= low <= high:
        raise ValueError(f"RandomColorJitter: {name} must be a reach >= 0 or a range of factors >= 0, got {value}")
    return float(low), float(high)


def _jitter(name: str, value: np.float32, mean_gray: float) -> ColorMap:
    if name == "brightness":
        return lambda values: values * value
    if name == "contrast":
        return lambda values: np.float32(mean_gray) + value * (values - np.float32(mean_gray))
    if name == "saturation":
        return lambda values: to_gray(values) + value * (values - to_gray(values))
    return lambda values: shift_hue(values, float(value))


def _chain(steps: Sequence[ColorMap], values: NDArray) -> NDArray:
    for step in steps:
        values = np.clip(step(values), 0, 255)
    return values

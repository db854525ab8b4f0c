"""From a cloud as someone's file has it to points as a network was trained on: metres, z up, colours 0..255, normals.

What the file does not say is guessed, and every guess is a sentence with the flag that overrides it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.datasets.fusion import AXES, rotation_to_z
from pointcept3m.datasets.normals import estimate_normals
from pointcept3m.datasets.readers.cloud import Cloud
from pointcept3m.datasets.transforms.sampling import find_voxels
from pointcept3m.ops.neighbours import knn_query
from pointcept3m.structures.scene import MAX_COORD
from pointcept3m.utils.registry import near_names

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "ft": 0.3048, "in": 0.0254}
COLOR_RANGES = {"0..1": (255.0, 0.0), "-1..1": (127.5, 127.5), "0..255": (1.0, 0.0), "0..65535": (1 / 257, 0.0)}
SAMPLE = 20_000  # points that guesses look at
Z_PRIOR = 0.2  # how much better another direction must look than z
GRAY = (127.5, 127.5, 127.5)
GRID = 0.02  # metres; what coordinates are measured against where no model says its own
ROOM_HEIGHT, LIKELY_HEIGHT, ROOM_AREA = (1.8, 6.0), (2.0, 4.0), (3.0, 400.0)  # metres, metres, square metres


@dataclass(frozen=True)
class ScanOptions:
    """What is known about a scan; "auto" is guessed.

    up_axis: x, y, z, -x, -y or -z. unit: a name of UNITS, or metres in a unit as a number. color_range: a name of
    COLOR_RANGES. fill_color: 0..255, of points in a scan without colours. normals: "file" (an error where there are
    none), "estimate" (also where there are), or "auto" (the file's, else estimated).
    """

    up_axis: str = "auto"
    unit: str | float = "auto"
    color_range: str = "auto"
    fill_color: Sequence[float] = GRAY
    normals: str = "auto"

    def __post_init__(self) -> None:
        for name, known in (("up_axis", ("auto", "camera", *AXES)), ("color_range", ("auto", *COLOR_RANGES)), ("normals", ("auto", "file", "estimate"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r} is none of {', '.join(known)}; {near_names(str(getattr(self, name)), known)}")
        if len(self.fill_color) != 3 or not all(0 <= value <= 255 for value in self.fill_color):
            raise ValueError(f"fill_color: wanted three numbers within 0..255, got {self.fill_color}")
        if self.unit != "auto":
            metres_of(self.unit)


@dataclass
class Scan:
    """Points as a network takes them, and how they came about.

    coord: float32 [N, 3] metres, z up; counted from the lowest corner where the file's are far from 0. color: float32
    [N, 3] 0..255, or None where it was not asked for. normal: float32 [N, 3] of unit length, or None likewise.
    valid: bool [M], which points of the cloud the N are: those whose coordinates are finite. guesses: sentences.
    """

    coord: NDArray[np.float32]
    color: NDArray[np.float32] | None
    normal: NDArray[np.float32] | None
    valid: NDArray[np.bool_]
    guesses: list[str] = field(default_factory=list)


def prepare_scan(
    cloud: Cloud, options: ScanOptions | None = None, needs: Sequence[str] = ("color", "normal"), grid_size: float | None = None
) -> Scan:
    """The scan that `cloud` is, with those of color and normal that the model `needs`.

    grid_size: metres, the model's; coordinates that were rounded to more than half of it are refused, and to more than
    a tenth noted. None: noted against 2 cm.
    Raises: ValueError where no point is finite, the cloud is larger than 10 km, its coordinates are too coarse, colours do
    not fit the range, or options.normals="file" and there are none.
    """
    options = options or ScanOptions()
    guesses = list(cloud.notes)
    valid = np.isfinite(cloud.coord).all(axis=1)
    if not valid.all():
        rows = np.flatnonzero(~valid)
        if len(rows) == len(valid):
            raise ValueError(f"{cloud.name}: not one of its {len(valid)} points has finite coordinates")
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        guesses.append(f"{len(rows)} of {len(valid)} points have no finite coordinates (rows {shown}): they stay in the result, unlabelled (-1)")
    everything = bool(valid.all())

    def kept(values: NDArray) -> NDArray:
        return values if everything else values[valid]

    raw = kept(cloud.coord)
    low, high = raw.min(axis=0).astype(np.float64), raw.max(axis=0).astype(np.float64)
    # Georeferenced coordinates would lose centimetres in float32, so they are counted from the lowest corner.
    far = max(-low.min(), high.max()) > 4 * max(1.0, (high - low).max())
    coord = (raw - low).astype(np.float32) if far else raw.astype(np.float32)
    scale, reason = _choose_unit(cloud, coord, options)
    guesses.append(reason)
    if doubt := _doubt_resolution(cloud.name, raw, scale, grid_size):
        guesses.append(doubt)
    coord *= np.float32(scale)
    extent = np.ptp(coord, axis=0)
    if extent.max() > MAX_COORD:
        raise ValueError(f"{cloud.name}: is {extent.max():,.0f} m long, beyond {MAX_COORD:,.0f} m: far outliers, or another unit (--unit)")
    rotation, reason = _choose_up(cloud, coord, options)
    guesses.append(reason)
    if rotation is not None:
        coord = coord @ rotation.T.astype(np.float32)
    if doubt := _doubt_unit(_robust_extent(coord), scale):
        guesses.append(doubt)
    color = normal = None
    if "color" in needs:
        color, reason = _colors(cloud, kept, len(coord), options)
        guesses.append(reason)
    elif cloud.color is not None:
        guesses.append("colours: not used by this model")
    if "normal" in needs:
        normal, reason = _normals(cloud, kept, coord, rotation, options)
        guesses.append(reason)
    return Scan(np.ascontiguousarray(coord), color, normal, valid, guesses)


def metres_of(unit: str | float) -> float:
    """Metres in a unit, given by name or as a number. Raises ValueError for neither."""
    if unit in UNITS:
        return UNITS[unit]
    try:
        value = float(unit)
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value < np.inf:
        raise ValueError(f"unit: wanted {', '.join(UNITS)} or metres as a positive number, got {unit!r}")
    return value


def _choose_unit(cloud: Cloud, coord: NDArray[np.float32], options: ScanOptions) -> tuple[float, str]:
    if options.unit != "auto":
        value = metres_of(options.unit)
        return value, f"unit: {value:g} m, as --unit says"
    if cloud.unit is not None:
        return cloud.unit[0], f"unit: {cloud.unit[0]:g} m: {cloud.unit[1]}; --unit m|cm|mm|ft|in overrides"
    spacing, extent = _typical_spacing(coord), _robust_extent(coord).max()
    name = guess_unit(spacing, extent)
    size = f"points {spacing:.3g} apart, {extent:.4g} across"
    return UNITS[name], f"unit: {name}, guessed from {size}; --unit m|cm|mm|ft|in overrides"


def guess_unit(spacing: float, extent: float) -> str:
    """m, cm or mm: with which the typical spacing and the length of the scan are likeliest.

    Spacings are taken to spread by 0.7 decades about 2 cm and lengths by 0.6 about 8 m; metres start one ahead.
    """

    def likelihood(scale: float) -> float:
        near = np.log10(max(spacing * scale, 1e-9) / 0.02) ** 2 / (2 * 0.7**2)
        far = np.log10(max(extent * scale, 1e-9) / 8) ** 2 / (2 * 0.6**2)
        return -near - far + (scale == 1)

    return max(("m", "cm", "mm"), key=lambda name: likelihood(UNITS[name]))


def _typical_spacing(coord: NDArray[np.float32]) -> float:
    """The median distance from a point to the nearest one that lies elsewhere."""
    query = torch.from_numpy(np.ascontiguousarray(coord[:: max(1, len(coord) // 2000)]))
    idx, distance = knn_query(min(8, len(coord)), torch.from_numpy(np.ascontiguousarray(coord)), torch.tensor([len(coord)]), query, torch.tensor([len(query)]))
    distance[(distance == 0) | (idx < 0)] = torch.inf
    nearest = distance.min(dim=1).values
    nearest = nearest[nearest.isfinite()]
    return float(nearest.median()) if len(nearest) else 0.0


def _robust_box(coord: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(low, high), [3] each: the 0.5th and the 99.5th percentile of a sample."""
    sample = coord[:: max(1, len(coord) // 200_000)]
    low, high = np.percentile(sample, [0.5, 99.5], axis=0).astype(np.float64)
    return low, high


def _robust_extent(coord: NDArray) -> NDArray[np.float64]:
    low, high = _robust_box(coord)
    return high - low


def describe_extent(coord: NDArray[np.float32]) -> str:
    """The size of a scan in metres, in words; where points lie far off, their number and the size without them.

    Far off is farther outside the box from the 0.5th to the 99.5th percentile than that box is long.
    """
    full, (low, high) = _sides(np.ptp(coord, axis=0)), _robust_box(coord)
    reach = (high - low).max()
    number = int(((coord < low - reach) | (coord > high + reach)).any(axis=1).sum())
    if not number:
        return full
    points = "1 point lies" if number == 1 else f"{number:,} points lie"
    return f"{full}, 99 % of each axis within {_sides(high - low)}: {points} more than {reach:.3g} m off; if that is noise, remove it"


def _sides(extent: NDArray) -> str:
    return " x ".join(f"{length:.2f}" for length in extent) + " m"


def coord_resolution(coord: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(what the type of the numbers tells apart [3], the step that they were seen to keep or 0 [3]), in their unit.

    Doubles that are whole multiples of float32's spacing at that distance from 0 count as floats that were converted. A
    step is seen where the gaps between the different values of an axis are multiples of the smallest.
    """
    sample = coord[:: max(1, len(coord) // SAMPLE)]
    spacing, step = np.zeros(3), np.zeros(3)
    for axis in range(3):
        values = np.unique(sample[:, axis])
        kind = values.dtype.type if values.dtype.kind == "f" and values.dtype.itemsize < 8 else np.float32
        found = float(np.spacing(kind(np.median(np.abs(values)))))
        if values.dtype.kind != "f" or (values.dtype.itemsize == 8 and np.abs(values - values.astype(np.float32)).max() > 0.01 * found):
            found = 0.0
        spacing[axis] = found
        gaps = np.diff(values.astype(np.float64))
        if len(sample) >= 1000 and len(gaps) >= 8:
            times = gaps / gaps.min()
            step[axis] = gaps.min() if np.abs(times - np.rint(times)).max() < 0.01 else 0.0
    return spacing, step


def _doubt_resolution(name: str, coord: NDArray, scale: float, grid_size: float | None) -> str:
    """A sentence where coordinates were rounded so that a grid notices, else "". Raises ValueError for half of `grid_size`."""
    spacing, step = (values * scale for values in coord_resolution(coord))
    grid = grid_size or GRID
    shown = " x ".join(f"{length:.2g}" for length in np.maximum(spacing, step))
    against = f"{shown} m along x, y, z" + (f", and the model's grid is {grid_size:g} m" if grid_size else "")
    way_out = "save them as doubles, or subtract an offset before saving"
    if grid_size and spacing.max() > grid / 2:
        raise ValueError(
            f"{name}: so far from 0 its 32-bit coordinates come in steps of {against}: floors and walls are lost, and only the source "
            f"of the file still has them; {way_out}"
        )
    if spacing.max() > grid / 10:
        return f"caution: so far from 0 the 32-bit coordinates come in steps of {against}; {way_out}"
    if step.max() > grid:
        return f"caution: the coordinates come in steps of {against}: rounded, or thinned to a lattice"
    return ""


def _doubt_unit(extent: NDArray, scale: float) -> str:
    """A sentence where a scan of `extent` [3] metres, z up, is no room but would be one in another unit, else ""."""
    if ROOM_HEIGHT[0] <= extent[2] <= ROOM_HEIGHT[1]:
        return ""
    likely = []
    for name, value in UNITS.items():
        other = extent * value / scale
        if not np.isclose(value, scale) and LIKELY_HEIGHT[0] <= other[2] <= LIKELY_HEIGHT[1] and ROOM_AREA[0] <= other[0] * other[1] <= ROOM_AREA[1]:
            likely.append(f"--unit {name} would make it {_sides(other)}")
    if not likely:
        return ""
    return f"caution: {_sides(extent)} is an odd size for a room ({extent[2]:.1f} m high); {', '.join(likely)}"


def _choose_up(cloud: Cloud, coord: NDArray[np.float32], options: ScanOptions) -> tuple[NDArray[np.float64] | None, str]:
    """(the rotation that turns up to z, None for none; why)."""
    axes = "--up-axis x|y|z|-x|-y|-z overrides"
    if options.up_axis in AXES:
        up, reason = AXES[options.up_axis], f"up is {options.up_axis}, as --up-axis says"
    elif cloud.up is not None:
        (x, y, z), why = cloud.up
        up, reason = cloud.up[0], f"up is ({x:.3f}, {y:.3f}, {z:.3f}): {why}; {axes}"
    elif options.up_axis == "camera":
        raise ValueError(f"{cloud.name}: --up-axis camera is for folders of RGB-D frames; this is {cloud.kind}")
    else:
        name, why = guess_up(coord)
        up, reason = AXES[name], f"up is {name}: {why}; {axes}"
    return (None if np.array_equal(up, AXES["z"]) else rotation_to_z(up)), reason


def guess_up(coord: NDArray[np.float32]) -> tuple[str, str]:
    """(the axis that points up, why). z, unless another one looks it clearly more.

    Three signs of the true direction: furniture stands below the middle of the height, the lowest layer is a floor
    while the highest need not be a ceiling, and rooms are wider than high. On 20 generated rooms and two real scans,
    turned so that each axis was up in turn, their sum was largest for the true direction every time.
    """
    extent = _robust_extent(coord)
    if len(coord) < 500 or not (extent > 0).all():
        return "z", "too few points to tell, so the common choice"
    cells = find_voxels(coord, float(extent.max()) / 100)
    rows = cells.order[cells.start[:-1]].numpy()
    thin = np.ascontiguousarray(coord[rows[:: max(1, len(rows) // SAMPLE)]])
    normal = estimate_normals(thin, 12)
    score = {}
    for axis, name in enumerate("xyz"):
        height = thin[:, axis]
        low, high = np.percentile(height, [0.5, 99.5])
        layer, border = 0.05 * (high - low), 0.15 * extent[axis]
        flat = np.abs(normal[:, axis]) > 0.9
        floor, ceiling = (flat & (height < low + layer)).mean(), (flat & (height > high - layer)).mean()
        inner = (height > low + border) & (height < high - border)
        below = (height[inner] < (low + high) / 2).mean() if inner.any() else 0.5
        wide = 0.5 * np.log(np.prod(extent) ** (1 / 3) / extent[axis])
        lean = 4 * (below - 0.5) + 2 * (floor - ceiling)
        score[name], score[f"-{name}"] = wide + lean, wide - lean
    best = max(score, key=score.get)
    if best == "z" or score[best] > score["z"] + Z_PRIOR:
        return best, "guessed from where floor and furniture seem to be"
    return "z", f"the common choice ({best} looks as likely)"


def _colors(cloud: Cloud, kept, count: int, options: ScanOptions) -> tuple[NDArray[np.float32], str]:
    if cloud.color is None:
        fill = np.asarray(options.fill_color, np.float32)
        shown = ", ".join(f"{value:g}" for value in fill)
        return np.tile(fill, (count, 1)), f"colours: the scan has none; every point is fed ({shown}), and classes told by colour will suffer; --fill-color overrides"
    color = kept(cloud.color)
    low, high = float(color.min()), float(color.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{cloud.name}: some colours are not finite")
    name = options.color_range if options.color_range != "auto" else guess_color_range(color.dtype, low, high)
    gain, offset = COLOR_RANGES[name]
    result = color.astype(np.float32) * np.float32(gain) + np.float32(offset)
    if low * gain + offset < -0.5 or high * gain + offset > 255.5:
        raise ValueError(f"{cloud.name}: colours run from {low:g} to {high:g}, outside {name}; --color-range {'|'.join(COLOR_RANGES)} says what they are")
    how = "as --color-range says" if options.color_range != "auto" else f"guessed from values {low:g} to {high:g}; --color-range {'|'.join(COLOR_RANGES)} overrides"
    return np.clip(result, 0, 255), f"colours: {name}, {how}"


def guess_color_range(dtype: np.dtype, low: float, high: float) -> str:
    """A name of COLOR_RANGES, by the type and the limits of the values."""
    if dtype.kind in "iu":
        return "0..255" if high <= 255 else "0..65535"
    if low < 0:
        return "-1..1"
    return "0..1" if high <= 1 else "0..255" if high <= 255 else "0..65535"


def _normals(cloud: Cloud, kept, coord: NDArray[np.float32], rotation: NDArray | None, options: ScanOptions) -> tuple[NDArray[np.float32], str]:
    if cloud.normal is None and options.normals == "file":
        raise ValueError(f"{cloud.name}: has no normals; --normals estimate computes some")
    if cloud.normal is None or options.normals == "estimate":
        why = "as --normals says" if options.normals == "estimate" else "the scan has none; --normals file refuses such scans"
        how = f"estimated from the {min(16, len(coord))} nearest points, turned to the open side" if len(coord) > 2 else "(0, 0, 1), for want of a plane"
        return estimate_normals(coord), f"normals: {how}: {why}"
    normal = kept(cloud.normal).astype(np.float32)
    if rotation is not None:
        normal = normal @ rotation.T.astype(np.float32)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    absent = ~(np.isfinite(length) & (length > 1e-6))[:, 0]
    if absent.any():
        fresh = estimate_normals(coord)  # of points that are turned already
        normal[absent], length[absent] = fresh[absent], 1
    normal /= length
    bad = f", {int(absent.sum())} of length 0 estimated" if absent.any() else ""
    return np.ascontiguousarray(normal, np.float32), f"normals: the scan's own{bad}; --normals estimate overrides"

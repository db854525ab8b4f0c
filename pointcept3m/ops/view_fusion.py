"""Points of a scene and its posed images: `visible_points` projects and tests, `fuse_views` sums features per point.

What OpenScene and CUA-O3D call multi-view feature fusion, without the steps that make it slow there: no map is ever
enlarged to the size of its image, and all views of a call are read for one group of neighbouring points after the
other, so that a row of the result is loaded and stored once a call. Nothing here is differentiated.

Pixels follow structures/camera.py: (u, v) with the centre of the first pixel at (0.5, 0.5), so that the nearest pixel is
(floor u, floor v). Projections are computed in float64, rounded step by step as the kernels round them, and the result
is rounded to float32 once; the tests are made on that rounded pixel, so that whoever reads an image at the nearest pixel
reads what was tested.
"""

import math

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops._checks import check_device, check_int, check_number, check_shape, check_tensor, type_of
from pointcept3m.utils.registry import near_names

SAMPLINGS = ("bilinear", "nearest")
# bytes of maps that are copied at a time, where they do not have channels last in memory already
COPIED_AT_A_TIME = 2**28


def visible_points(
    coord: Tensor,
    intrinsic: Tensor,
    extrinsic: Tensor,
    size: tuple[int, int],
    depth: Tensor | None = None,
    tolerance: float = 0.25,
    border: int = 10,
) -> tuple[Tensor, Tensor]:
    """Where each view sees each point, and whether it does.

    A point is visible where it lies in front of the camera, its pixel is at least `border` pixels from the image's edge,
    and, with depth images, the depth at the nearest pixel is a positive number and |depth - z| <= tolerance * depth.

    Args:
        coord: float32 [N, 3], metres, in the world of the poses.
        intrinsic: float32 or float64 [V, 3, 3], for images of `size`; last row (0, 0, 1).
        extrinsic: float32 or float64 [V, 4, 4], world to camera; last row (0, 0, 0, 1).
        size: (H, W) of the images.
        depth: float32 [V, H, W], metres; 0, negative, infinite or NaN where the sensor saw nothing.
        tolerance: of the depth test, a share of the depth (0.25 for ScanNet, 0.02 for Matterport3D in OpenScene).
        border: pixels, an int.

    Returns:
        pixel: float32 [V, N, 2], (u, v); NaN where z is not positive and finite.
        visible: bool [V, N].

    Raises: TypeError or ValueError where an argument does not fit.

    Source: Peng et al., OpenScene (CVPR 2023), Sec. 3.1, and the mapper of its release, which rounds to whole pixels
    with the first one's centre at 0.
    """
    views = _check_views("visible_points", coord, intrinsic, extrinsic, size, depth, tolerance, border)
    return torch.ops.pointcept3m.visible_points(coord.detach().contiguous(), *views)


def fuse_views(
    total: Tensor,
    count: Tensor,
    coord: Tensor,
    maps: Tensor,
    intrinsic: Tensor,
    extrinsic: Tensor,
    size: tuple[int, int],
    depth: Tensor | None = None,
    tolerance: float = 0.25,
    border: int = 10,
    sampling: str = "bilinear",
) -> None:
    """Adds to each point, in place, the features that the views show of it, and to its count the number of these views.

    A feature map is stretched over its image, whatever its resolution. A point's sum is taken view after view, so one
    call with many views gives the bits of many calls with one; more views a call are faster. The mean is the caller's:
    `total / count.clamp(min=1)[:, None]`. Time grows as N V + (visible points) C; maps with channels last in memory
    (`maps.permute(0, 3, 1, 2)` of [V, h, w, C]) are read where they lie, others are copied, 256 MiB at a time.

    Args:
        total: float32 [N, C], changed in place.
        count: int32 [N], changed in place.
        coord, intrinsic, extrinsic, size, depth, tolerance, border: those of `visible_points`.
        maps: float32 [V, C, h, w], h and w of any size. What is not finite there goes into the points that read it.
        sampling: "bilinear" interpolates at the projected position, clamped to the centres of the outermost cells
            (torch's `interpolate` with align_corners=False); "nearest" takes the cell under the nearest pixel's centre.

    Raises: TypeError or ValueError where an argument does not fit, before anything is added.

    Source: OpenScene's fusion, a mean over visible views.
    """
    op = "fuse_views"
    views = _check_views(op, coord, intrinsic, extrinsic, size, depth, tolerance, border)
    if sampling not in SAMPLINGS:
        raise ValueError(f"{op}: no sampling {sampling!r}; {near_names(str(sampling), SAMPLINGS)}")
    num_views, num_points = len(intrinsic), len(coord)
    check_tensor(op, "maps", maps, (torch.float32,))
    check_shape(op, "maps", maps, (num_views, "C", "h", "w"))
    if 0 in maps.shape[2:]:
        raise ValueError(f"{op}: maps must have at least one cell, got {tuple(maps.shape)}")
    check_tensor(op, "total", total, (torch.float32,))
    check_shape(op, "total", total, (num_points, maps.size(1)))
    check_tensor(op, "count", count, (torch.int32,))
    check_shape(op, "count", count, (num_points,))
    for name, value in (("maps", maps), ("total", total), ("count", count)):
        check_device(op, name, value, "coord", coord)
    if total.requires_grad:
        raise ValueError(f"{op}: total requires a gradient, and fuse_views has none; give it total.detach()")
    sums, counts, coord = total.contiguous(), count.contiguous(), coord.detach().contiguous()
    matrix, height, width, depth, tolerance, border = views
    maps = maps.detach()
    if not maps.is_contiguous() and not maps.is_contiguous(memory_format=torch.channels_last):
        maps = maps.contiguous()
    for part in _views_at_a_time(maps):
        torch.ops.pointcept3m.fuse_views(
            sums, counts, coord, maps[part].permute(0, 2, 3, 1), matrix[part], height, width,
            None if depth is None else depth[part], tolerance, border, sampling == "bilinear",
        )  # fmt: skip
    for target, value in ((total, sums), (count, counts)):
        if value is not target:
            target.copy_(value)


def _views_at_a_time(maps: Tensor) -> list[slice]:
    """Slices of views whose copies with channels last are small enough; one slice where nothing is copied."""
    if maps.is_contiguous(memory_format=torch.channels_last) or maps.size(0) == 0:
        return [slice(None)]
    step = max(1, COPIED_AT_A_TIME // max(1, 4 * maps[0].numel()))
    return [slice(start, start + step) for start in range(0, maps.size(0), step)]


Views = tuple[Tensor, int, int, Tensor | None, float, int]


def _check_views(
    op: str,
    coord: Tensor,
    intrinsic: Tensor,
    extrinsic: Tensor,
    size: tuple[int, int],
    depth: Tensor | None,
    tolerance: float,
    border: int,
) -> Views:
    """The arguments after `coord` as the ops take them: one float64 matrix [V, 3, 4] to pixels times z, and z."""
    check_tensor(op, "coord", coord, (torch.float32,))
    check_shape(op, "coord", coord, ("N", 3))
    for name, value, edge in (("intrinsic", intrinsic, 3), ("extrinsic", extrinsic, 4)):
        check_tensor(op, name, value, (torch.float32, torch.float64))
        check_shape(op, name, value, ("V", edge, edge))
        check_device(op, name, value, "coord", coord)
    if len(intrinsic) != len(extrinsic):
        raise ValueError(f"{op}: intrinsic tells of {len(intrinsic)} views, extrinsic of {len(extrinsic)}")
    if not isinstance(size, (tuple, list, torch.Size)) or len(size) != 2:
        raise TypeError(f"{op}: size must be (H, W), got {type_of(size) if isinstance(size, Tensor) else repr(size)}")
    height, width = size
    for name, value in (("height", height), ("width", width)):
        check_int(op, f"the {name} in size", value, least=1)
    check_number(op, "tolerance", tolerance)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"{op}: tolerance must be a share of the depth, 0 or more, got {tolerance}")
    check_int(op, "border", border, least=0)
    if 2 * border >= min(height, width):
        raise ValueError(f"{op}: a border of {border} pixels leaves nothing of images of {height} x {width}")
    if depth is not None:
        check_tensor(op, "depth", depth, (torch.float32,))
        check_shape(op, "depth", depth, (len(intrinsic), height, width))
        check_device(op, "depth", depth, "coord", coord)
        depth = depth.detach().contiguous()
    intrinsic, extrinsic = intrinsic.detach().double(), extrinsic.detach().double()
    if not torch.compiler.is_compiling():
        _check_cameras(op, intrinsic, extrinsic)
    # product by product: a library's batched one may round otherwise for another number of views
    parts = [intrinsic[:, :, k, None] * extrinsic[:, None, k] for k in range(3)]
    return ((parts[0] + parts[1]) + parts[2]).contiguous(), height, width, depth, float(tolerance), border


def _check_cameras(op: str, intrinsic: Tensor, extrinsic: Tensor) -> None:
    """Every matrix is finite and ends with the row that makes it affine."""
    for name, matrices in (("intrinsic", intrinsic), ("extrinsic", extrinsic)):
        finite = matrices.isfinite().flatten(1).all(dim=1)
        if not finite.all():
            view = int((~finite).int().argmax())
            raise ValueError(f"{op}: {name} of view {view} is not finite; leave frames without a pose out")
        last = matrices.new_tensor([0.0] * (matrices.size(1) - 1) + [1.0])
        affine = (matrices[:, -1] - last).abs().amax(dim=1) < 1e-6
        if not affine.all():
            view = int((~affine).int().argmax())
            row = matrices[view, -1].tolist()
            raise ValueError(f"{op}: {name} of view {view} must end with the row {last.tolist()}, got {row}")


# The ops. matrix: float64 [V, 3, 4], whose rows give u z, v z and z of a point; maps: [V, h, w, C], contiguous or with
# channels first in memory.


def _check_depth(matrix: Tensor, height: int, width: int, depth: Tensor | None) -> None:
    if depth is not None and depth.shape != (len(matrix), height, width):
        raise ValueError(f"depth must be [V, height, width], {(len(matrix), height, width)}, got {tuple(depth.shape)}")


def _visible_twin(
    coord: Tensor, matrix: Tensor, height: int, width: int, depth: Tensor | None, tolerance: float, border: int
) -> tuple[Tensor, Tensor]:
    _check_depth(matrix, height, width, depth)
    shape = (len(matrix), len(coord))
    pixel, visible = coord.new_empty(*shape, 2), coord.new_empty(shape, dtype=torch.bool)
    x, y, z = coord.double().unbind(dim=1)
    for view, rows in enumerate(matrix):
        across, down, far = (((x * row[0] + y * row[1]) + z * row[2]) + row[3] for row in rows)
        front = (far > 0) & (far < math.inf)
        u, v = (torch.where(front, value / far, math.nan).float() for value in (across, down))
        seen = (u >= border) & (u < width - border) & (v >= border) & (v < height - border)
        if depth is not None:
            nearest = v.floor().long().clamp(0, height - 1) * width + u.floor().long().clamp(0, width - 1)
            there = depth[view].flatten()[torch.where(seen, nearest, 0)].double()
            seen = seen & (there > 0) & (there < math.inf) & ((there - far).abs() <= tolerance * there)
        pixel[view], visible[view] = torch.stack([u, v], dim=1), seen
    return pixel, visible


def _between(position: Tensor, cells: int, length: int) -> tuple[Tensor, Tensor]:
    """The lower of the two cells, of `cells` along an axis of `length` pixels, around a position; the upper's weight."""
    place = (position.double() * (cells / length) - 0.5).clamp(0, cells - 1)
    low = place.floor().clamp(max=max(cells - 2, 0))
    return low.long(), (place - low).float()


def _fuse_twin(
    total: Tensor,
    count: Tensor,
    coord: Tensor,
    maps: Tensor,
    matrix: Tensor,
    height: int,
    width: int,
    depth: Tensor | None,
    tolerance: float,
    border: int,
    bilinear: bool,
) -> None:
    if total.shape != (len(coord), maps.size(3)) or count.shape != coord.shape[:1] or len(maps) != len(matrix):
        raise ValueError("fuse_views: total must be [N, C], count [N], coord [N, 3], maps [V, h, w, C], matrix [V, 3, 4]")
    _check_depth(matrix, height, width, depth)
    h, w = maps.shape[1:3]
    for view in range(len(matrix)):
        one = slice(view, view + 1)
        pixel, visible = _visible_twin(
            coord, matrix[one], height, width, None if depth is None else depth[one], tolerance, border
        )
        rows = visible[0].nonzero().flatten()
        u, v = pixel[0, rows].unbind(dim=1)
        cells = maps[view].flatten(0, 1)
        if bilinear:
            (left, right_share), (top, low_share) = _between(u, w, width), _between(v, h, height)
            right, low = min(1, w - 1), w * min(1, h - 1)
            first = top * w + left
            taps = (
                (first, (1 - low_share) * (1 - right_share)),
                (first + right, (1 - low_share) * right_share),
                (first + low, low_share * (1 - right_share)),
                (first + low + right, low_share * right_share),
            )
            feat = sum(cells[cell] * share[:, None] for cell, share in taps)
        else:
            column = (2 * u.floor().long() + 1) * w // (2 * width)
            row = (2 * v.floor().long() + 1) * h // (2 * height)
            feat = cells[row * w + column]
        total.index_add_(0, rows, feat)
        count.add_(visible[0])


_library.define(
    "visible_points(Tensor coord, Tensor matrix, SymInt height, SymInt width, Tensor? depth, float tolerance,"
    " SymInt border) -> (Tensor, Tensor)",
    _visible_twin,
)
_library.define(
    "fuse_views(Tensor(a!) total, Tensor(b!) count, Tensor coord, Tensor maps, Tensor matrix, SymInt height,"
    " SymInt width, Tensor? depth, float tolerance, SymInt border, bool bilinear) -> ()",
    _fuse_twin,
)


@torch.library.register_fake("pointcept3m::visible_points")
def _(
    coord: Tensor, matrix: Tensor, height: int, width: int, depth: Tensor | None, tolerance: float, border: int
) -> tuple[Tensor, Tensor]:
    shape = (matrix.size(0), coord.size(0))
    return coord.new_empty((*shape, 2)), coord.new_empty(shape, dtype=torch.bool)


@torch.library.register_fake("pointcept3m::fuse_views")
def _(
    total: Tensor,
    count: Tensor,
    coord: Tensor,
    maps: Tensor,
    matrix: Tensor,
    height: int,
    width: int,
    depth: Tensor | None,
    tolerance: float,
    border: int,
    bilinear: bool,
) -> None:
    return None

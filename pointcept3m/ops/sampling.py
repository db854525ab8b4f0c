"""Farthest point sampling with the API of Pointcept's `pointops`: `farthest_point_sampling`."""

import math

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops._checks import check_offset, check_points, pointops_names
from pointcept3m.ops.offsets import offset_to_counts


@pointops_names
def farthest_point_sampling(coord: Tensor, offset: Tensor, new_offset: Tensor) -> Tensor:
    """Rows of points that lie far from each other: each sample is the point farthest from those sampled before it.

    Every item of the batch starts with its first point; of equally far points the one with the lower index is taken.
    No row is taken twice, so that where points coincide, other rows of the same place follow in order (pointops gives
    the first row again and again). Exact. The CPU prunes with a tree of boxes, which makes time grow about as
    (N + M) log N for clouds of surfaces; plain torch and CUDA take N * M / B.

    Args:
        coord: float32 or float64 [N, 3], all finite. (As a keyword also `xyz`, its name in pointops.)
        offset: int64 or int32 [B], where each item ends.
        new_offset: int64 or int32 [B], where the samples of each item end: M = new_offset[-1]. An item has at least
            as many points as samples.

    Returns:
        int32 [M], rows of `coord`, in the order in which they were taken.

    Raises: TypeError or ValueError where an argument does not fit.

    Source: Pointcept's `pointops.farthest_point_sampling`; pruning by boxes as in QuickFPS (Han et al., 2023).
    """
    op = "farthest_point_sampling"
    coord = check_points(op, "coord", coord)
    offset = check_offset(op, "offset", offset, "coord", coord)
    new_offset = check_offset(op, "new_offset", new_offset, "coord", coord, ascends=False)
    if new_offset.shape != offset.shape:
        raise ValueError(f"{op}: offset tells of {len(offset)} items, new_offset of {len(new_offset)}")
    num_samples = new_offset[-1].item() if len(new_offset) else 0
    if torch.compiler.is_compiling():
        torch._check(num_samples >= 0)
    else:
        samples, points = offset_to_counts(new_offset), offset_to_counts(offset)
        if ((samples < 0) | (samples > points)).any():
            item = int(((samples < 0) | (samples > points)).int().argmax())
            raise ValueError(
                f"{op}: new_offset must ask for 0 to {int(points[item])} samples of item {item}, which has that many "
                f"points, got {int(samples[item])}"
            )
        finite = coord.isfinite().all(dim=1)
        if not finite.all():
            row = int(finite.int().argmin())
            count = int((~finite).sum())
            raise ValueError(f"{op}: {count} points are not finite, the first is row {row}: {coord[row].tolist()}")
    return torch.ops.pointcept3m.farthest_point_sampling(coord, offset, new_offset, num_samples)


def _sampling_twin(coord: Tensor, offset: Tensor, new_offset: Tensor, num_samples: int) -> Tensor:
    counts, samples = offset_to_counts(offset).tolist(), offset_to_counts(new_offset).tolist()
    totals = (sum(counts), sum(samples))
    if min([0, *counts, *samples]) < 0 or len(counts) != len(samples) or totals != (len(coord), num_samples):
        raise ValueError("farthest_point_sampling: offset, new_offset must ascend to the numbers of points, samples")
    idx = torch.empty(num_samples, dtype=torch.int32, device=coord.device)
    first, place = 0, 0
    for count, wanted in zip(counts, samples, strict=True):
        points = coord[first : first + count]
        finite = points.isfinite().all(dim=1)
        if wanted > int(finite.sum()):
            raise ValueError("farthest_point_sampling: an item has fewer finite points than samples")
        far = torch.where(finite, math.inf, -1.0).to(coord.dtype)
        for sample in range(place, place + wanted):
            row = (far == far.max()).int().argmax()  # the first of equals, which max() alone does not promise
            idx[sample] = first + row
            x, y, z = (points - points[row]).unbind(dim=1)
            far = torch.minimum(far, torch.where(finite, (x * x + y * y) + z * z, -1.0))
            far[row] = -1
        first, place = first + count, place + wanted
    return idx


_library.define(
    "farthest_point_sampling(Tensor coord, Tensor offset, Tensor new_offset, SymInt num_samples) -> Tensor",
    _sampling_twin,
)


@torch.library.register_fake("pointcept3m::farthest_point_sampling")
def _(coord: Tensor, offset: Tensor, new_offset: Tensor, num_samples: int) -> Tensor:
    return coord.new_empty(num_samples, dtype=torch.int32)

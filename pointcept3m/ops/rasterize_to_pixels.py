"""The op under `rasterization`: projected Gaussians to pixels, and its backward.

Schema, plain-torch twin, fake kernel and autograd; the CPU kernels are in csrc/rasterize/.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops.gaussian_projection import ALPHA_MIN

ALPHA_MAX = 0.99
TRANSMITTANCE_MIN = 1e-4
_TILE = 32  # the twin's tiles, in pixels: large, as each costs a few dozen calls of torch
# (Pixel, Gaussian) pairs the twin holds at a time, which bounds its memory: what a cache holds, or what fills a GPU.
_PAIRS_CPU, _PAIRS_GPU = 1 << 18, 1 << 23
_MAX_EXPONENT = 20.0  # exp(-20) is no alpha that counts, and smaller ones are slow to compute


class Pixels(NamedTuple):
    """What the op returns. `last` and `order` are what its backward needs, and are not differentiable."""

    view_pixels: Tensor  # [C, H, W, A]
    pixels: Tensor  # [C, H, W, D]
    transmittance: Tensor  # [C, H, W], 1 - alpha
    last: Tensor  # [C, H, W] int32: place in `order` of the last Gaussian that contributed, -1 for none
    order: Tensor  # [C, G] int32: Gaussians with opacity >= 1/255, front to back, then -1


def rasterize_to_pixels(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    depths: Tensor,
    view_channels: Tensor,
    channels: Tensor,
    width: int,
    height: int,
) -> Pixels:
    """Alpha-composites projected Gaussians front to back (GaussianCross Eq. 3; 3DGS Eq. 3).

    At a pixel centre (index + 0.5) a Gaussian has alpha = min(0.99, opacity * exp(-d^T conic d / 2)); an alpha below
    1/255 is skipped; a pixel stops before the Gaussian that would bring its transmittance to 1e-4 or below.

    Args:
        means2d: [C, G, 2] pixels. conics: [C, G, 3], positive definite (xx, xy, yy). opacities: [C, G]; below 1/255
            a Gaussian is skipped, whatever its other fields hold. depths: [C, G], only the order of compositing.
        view_channels: [C, G, A] channels of each camera's own. channels: [G, D] channels all cameras share.
    All float32 or all float64. Differentiable in all but `depths`.
    Complexity: O(C (G log G + pairs (A + D))) time, O(C H W (A + D) + G (A + D)) memory.
    """
    tensors = (means2d, conics, opacities, depths, view_channels, channels)
    return Pixels(*torch.ops.pointcept3m.rasterize_to_pixels(*(t.contiguous() for t in tensors), width, height))


class _Tile(NamedTuple):
    """Pixels of one tile of one camera, and the places in `order` of the Gaussians that can reach it."""

    camera: int
    rows: slice
    columns: slice
    places: Tensor


def _depth_order(opacities: Tensor, depths: Tensor) -> Tensor:
    visible = opacities >= ALPHA_MIN
    order = torch.where(visible, depths, math.inf).argsort(dim=1, stable=True)
    hidden = torch.arange(order.shape[1], device=order.device) >= visible.sum(1, keepdim=True)
    return order.masked_fill(hidden, -1).to(torch.int32)


def _tiles(means2d: Tensor, conics: Tensor, opacities: Tensor, order: Tensor, width: int, height: int) -> Iterator[_Tile]:
    for camera in range(order.shape[0]):
        index = order[camera][order[camera] >= 0].long()
        a, b, c = conics[camera, index].detach().double().unbind(-1)
        level, determinant = 2 * (opacities[camera, index].detach().double() / ALPHA_MIN).log(), a * c - b * b
        reach = torch.stack([level * c / determinant, level * a / determinant], -1).sqrt() + 0.02
        low, high = means2d[camera, index].detach() - reach, means2d[camera, index].detach() + reach
        for row in range(0, height, _TILE):
            in_rows = ((high[:, 1] >= row) & (low[:, 1] <= row + _TILE)).nonzero().squeeze(1)
            for column in range(0, width, _TILE):
                hit = (high[in_rows, 0] >= column) & (low[in_rows, 0] <= column + _TILE)
                rows, columns = slice(row, min(row + _TILE, height)), slice(column, min(column + _TILE, width))
                yield _Tile(camera, rows, columns, in_rows[hit])


class _Weights(NamedTuple):
    """Of n Gaussians on P pixels, all [P, n]; `end` [P] is the product of 1 - alpha, stopped pixels included."""

    dx: Tensor
    dy: Tensor
    alpha: Tensor  # 0 where it does not count, or the pixel has stopped
    before: Tensor  # transmittance in front of the Gaussian
    clamped: Tensor
    end: Tensor


def _weights(means2d: Tensor, conics: Tensor, opacities: Tensor, tile: _Tile, start: Tensor) -> _Weights:
    """`means2d`, `conics`, `opacities` of the tile's Gaussians, front to back; `start` [P] as `_Weights.end`."""
    options = {"dtype": means2d.dtype, "device": means2d.device}
    y = torch.arange(tile.rows.start, tile.rows.stop, **options) + 0.5
    x = torch.arange(tile.columns.start, tile.columns.stop, **options) + 0.5
    y, x = (grid.reshape(-1, 1) for grid in torch.meshgrid(y, x, indexing="ij"))
    dx, dy = x - means2d[:, 0], y - means2d[:, 1]
    a, b, c = conics.unbind(-1)
    exponent = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = opacities * torch.exp(-exponent.clamp_max(_MAX_EXPONENT))
    clamped = alpha >= ALPHA_MAX
    alpha = alpha.clamp_max(ALPHA_MAX)
    alpha = torch.where((alpha >= ALPHA_MIN) & (exponent >= 0), alpha, 0)
    # The product only falls, so that "behind the stop" is the same as "product at or below the threshold".
    after = start.unsqueeze(1) * torch.cumprod(1 - alpha, 1)
    before = torch.cat([start.unsqueeze(1), after[:, :-1]], 1)
    alpha = torch.where(after > TRANSMITTANCE_MIN, alpha, 0)
    return _Weights(dx, dy, alpha, before, clamped, after[:, -1])


def _chunks(tile: _Tile) -> list[Tensor]:
    """The tile's places, front to back, in pieces of a bounded number of pairs; none where nothing reaches the tile."""
    num_pixels = (tile.rows.stop - tile.rows.start) * (tile.columns.stop - tile.columns.start)
    pairs = _PAIRS_GPU if tile.places.is_cuda else _PAIRS_CPU
    return list(tile.places.split(max(pairs // num_pixels, 1))) if len(tile.places) else []


def rasterize_to_pixels_twin(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    depths: Tensor,
    view_channels: Tensor,
    channels: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`rasterize_to_pixels` in plain torch: tile by tile, a bounded number of (Gaussian, pixel) pairs at a time."""
    num_cameras = means2d.shape[0]
    order = _depth_order(opacities, depths)
    view_pixels = means2d.new_zeros(num_cameras, height, width, view_channels.shape[2])
    pixels = means2d.new_zeros(num_cameras, height, width, channels.shape[1])
    transmittance = means2d.new_ones(num_cameras, height, width)
    last = order.new_full((num_cameras, height, width), -1)
    for tile in _tiles(means2d, conics, opacities, order, width, height):
        camera, where = tile.camera, (tile.camera, tile.rows, tile.columns)
        shape = transmittance[where].shape
        start = means2d.new_ones(shape.numel())
        for places in _chunks(tile):
            index = order[camera, places].long()
            weights = _weights(means2d[camera, index], conics[camera, index], opacities[camera, index], tile, start)
            weight = weights.alpha * weights.before
            view_pixels[where] += (weight @ view_channels[camera, index]).view(*shape, view_channels.shape[2])
            pixels[where] += (weight @ channels[index]).view(*shape, channels.shape[1])
            transmittance[where] *= torch.prod(1 - weights.alpha, 1).view(shape)
            used = torch.where(weights.alpha > 0, places, -1).amax(1).to(torch.int32)
            last[where] = torch.maximum(last[where], used.view(shape))
            start = weights.end
            if bool((start <= TRANSMITTANCE_MIN).all()):
                break
    return view_pixels, pixels, transmittance, last, order


def rasterize_to_pixels_backward_twin(
    grad_view_pixels: Tensor,
    grad_pixels: Tensor,
    grad_transmittance: Tensor,
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    view_channels: Tensor,
    channels: Tensor,
    transmittance: Tensor,
    last: Tensor,
    order: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of means2d, conics, opacities, view_channels and channels.

    With w_i = alpha_i T_i and q_i = f_i . dL/dC, one number stands for all channels of a pair:
    dL/dalpha_i = T_i q_i - (sum_{j behind i} w_j q_j + T_end dL/dT_end) / (1 - alpha_i).
    """
    grads = [torch.zeros_like(t) for t in (means2d, conics, opacities, view_channels, channels)]
    height, width = transmittance.shape[1:]
    for tile in _tiles(means2d, conics, opacities, order, width, height):
        camera, where = tile.camera, (tile.camera, tile.rows, tile.columns)
        grad_view, grad_shared = grad_view_pixels[where].flatten(0, 1), grad_pixels[where].flatten(0, 1)
        behind = (transmittance[where] * grad_transmittance[where]).flatten()
        chunks = _chunks(tile._replace(places=tile.places[tile.places <= last[where].max()]))
        starts = [torch.ones_like(behind)] if chunks else []
        for places in chunks[:-1]:
            index = order[camera, places].long()
            fields = means2d[camera, index], conics[camera, index], opacities[camera, index]
            starts.append(_weights(*fields, tile, starts[-1]).end)
        for places, start in zip(reversed(chunks), reversed(starts), strict=True):
            index = order[camera, places].long()
            weights = _weights(means2d[camera, index], conics[camera, index], opacities[camera, index], tile, start)
            dx, dy, alpha = weights.dx, weights.dy, weights.alpha
            weight = alpha * weights.before
            q = grad_view @ view_channels[camera, index].T + grad_shared @ channels[index].T
            weighted = weight * q
            sums = weighted.flip(1).cumsum(1).flip(1)  # from the Gaussian to the back of the chunk
            slope = alpha * (weights.before * q - (sums - weighted + behind.unsqueeze(1)) / (1 - alpha))  # dL/dalpha alpha
            slope = torch.where(weights.clamped, 0, slope)
            behind = behind + sums[:, 0]
            x, y = (slope * dx).sum(0), (slope * dy).sum(0)
            xx, xy, yy = (slope * dx * dx).sum(0), (slope * dx * dy).sum(0), (slope * dy * dy).sum(0)
            a, b, c = conics[camera, index].unbind(-1)
            grads[0][camera].index_add_(0, index, torch.stack([a * x + b * y, b * x + c * y], -1))
            grads[1][camera].index_add_(0, index, torch.stack([-0.5 * xx, -xy, -0.5 * yy], -1))
            grads[2][camera].index_add_(0, index, slope.sum(0) / opacities[camera, index])
            grads[3][camera].index_add_(0, index, weight.T @ grad_view)
            grads[4].index_add_(0, index, weight.T @ grad_shared)
    return tuple(grads)


_library.define(
    "rasterize_to_pixels(Tensor means2d, Tensor conics, Tensor opacities, Tensor depths, Tensor view_channels, "
    "Tensor channels, SymInt width, SymInt height) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    rasterize_to_pixels_twin,
)
_library.define(
    "rasterize_to_pixels_backward(Tensor grad_view_pixels, Tensor grad_pixels, Tensor grad_transmittance, Tensor means2d, "
    "Tensor conics, Tensor opacities, Tensor view_channels, Tensor channels, Tensor transmittance, Tensor last, Tensor order)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    rasterize_to_pixels_backward_twin,
)


@torch.library.register_fake("pointcept3m::rasterize_to_pixels")
def _(means2d, conics, opacities, depths, view_channels, channels, width, height):
    num_cameras, num_gaussians = opacities.shape
    image = (num_cameras, height, width)
    return (
        means2d.new_empty(*image, view_channels.shape[2]),
        means2d.new_empty(*image, channels.shape[1]),
        means2d.new_empty(image),
        means2d.new_empty(image, dtype=torch.int32),
        means2d.new_empty(num_cameras, num_gaussians, dtype=torch.int32),
    )


@torch.library.register_fake("pointcept3m::rasterize_to_pixels_backward")
def _(grad_view_pixels, grad_pixels, grad_transmittance, means2d, conics, opacities, view_channels, channels, *saved):
    return tuple(t.new_empty(t.shape) for t in (means2d, conics, opacities, view_channels, channels))


def _setup_context(ctx, inputs, output):
    means2d, conics, opacities, _, view_channels, channels, _, _ = inputs
    _, _, transmittance, last, order = output
    ctx.mark_non_differentiable(last, order)
    ctx.save_for_backward(means2d, conics, opacities, view_channels, channels, transmittance, last, order)


def _backward(ctx, grad_view_pixels, grad_pixels, grad_transmittance, *_):
    above = (g.contiguous() for g in (grad_view_pixels, grad_pixels, grad_transmittance))
    grads = torch.ops.pointcept3m.rasterize_to_pixels_backward(*above, *ctx.saved_tensors)
    means2d, conics, opacities, view_channels, channels = grads
    return means2d, conics, opacities, None, view_channels, channels, None, None


torch.library.register_autograd("pointcept3m::rasterize_to_pixels", _backward, setup_context=_setup_context)

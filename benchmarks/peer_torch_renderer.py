"""The peer of the rasterizer's benchmark: the fastest renderer of the same image that we could write in plain torch.

Nothing of ours is in it. Gaussians are sorted by depth once; tiles of 8x8 pixels get their Gaussians by an exact
ellipse test, vectorised over (Gaussian, row of tiles); tiles of similar length are padded into batches of a size that
caches hold; exponents come out of one batched product of monomials, transmittances out of one with a triangular
matrix, features out of a third. Tiles leave the batch once all their pixels have stopped. Backward is autograd.

The rules are those of `rasterize_to_pixels`: alpha = min(0.99, o exp(-e)), 1/255 at least, a pixel stops before the
Gaussian that would bring its transmittance to 1e-4.
"""

import math

import torch
from torch import Tensor

TILE = 8
ALPHA_MIN, ALPHA_MAX, LOG_STOP = 1 / 255, 0.99, math.log(1e-4)
CHUNK = 48  # Gaussians that a batch of tiles blends at a time
BATCH = 64  # tiles


def render(
    means2d: Tensor, conics: Tensor, opacities: Tensor, depths: Tensor, channels: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """One camera: [G, 2], [G, 3], [G], [G], [G, D] to an image [H, W, D] and what is left of the light, [H, W]."""
    with torch.no_grad():
        order, starts, counts = tile_lists(means2d, conics, opacities, depths, width, height)
        by_length = counts.argsort(descending=True)
        counts = counts[by_length]
        ends = counts.cumsum(0)
        tile = torch.repeat_interleave(counts)
        order = order[starts[by_length][tile] + torch.arange(len(tile)) - (ends - counts)[tile]]
        columns, rows = -(-width // TILE), -(-height // TILE)
        centres = torch.stack([by_length % columns, by_length // columns], -1) * TILE + TILE / 2
        grid = torch.arange(TILE, dtype=means2d.dtype) + 0.5 - TILE / 2
        v, u = (g.reshape(-1) for g in torch.meshgrid(grid, grid, indexing="ij"))
        monomials = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v])  # [6, pixels], about a tile's centre
        triangle = torch.ones(CHUNK, CHUNK, dtype=means2d.dtype).tril()
        sizes = [int(c.sum()) for c in counts.split(BATCH)]
    # Gathered once and split, as the backward of that adds up once; by batch, each would fill gradients of all G.
    fields = torch.cat([means2d, conics, opacities.log().unsqueeze(1)], 1).index_select(0, order).split(sizes)
    values = channels.index_select(0, order).split(sizes)
    parts = zip(fields, values, counts.split(BATCH), centres.split(BATCH), strict=True)
    tiles = [_render_batch(*part, monomials, triangle) for part in parts]
    back = by_length.argsort()
    image, light = (torch.cat(parts)[back] for parts in zip(*tiles, strict=True))
    image = image.view(rows, columns, TILE, TILE, -1).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    light = light.view(rows, columns, TILE, TILE).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    return image[:height, :width], light[:height, :width]


def _render_batch(fields, values, counts, centres, monomials, triangle):
    """`fields` [n, 6], `values` [n, D]: tiles' Gaussians, tile after tile, longest first; to [B, P, D] and [B, P]."""
    num_tiles, num_pixels = len(counts), monomials.shape[1]
    image = values.new_zeros(num_tiles, num_pixels, values.shape[1])
    log_light = values.new_zeros(num_tiles, 1, num_pixels)  # of the product that goes on behind the stop
    rendered = values.new_zeros(num_tiles, 1, num_pixels)  # of what counted
    starts, alive = counts.cumsum(0) - counts, torch.arange(num_tiles)
    for begin in range(0, int(counts[0]), CHUNK):
        with torch.no_grad():
            alive = alive[(log_light[alive].amax((1, 2)) > LOG_STOP) & (counts[alive] > begin)]
            if len(alive) == 0:
                break
            length = min(CHUNK, int(counts[alive[0]]) - begin)
            place = begin + torch.arange(length)
            inside = place < counts[alive, None]
            index = (starts[alive, None] + place).clamp_max(len(fields) - 1).flatten()  # [B * length]
        x, y, a, b, c, log_opacity = fields.index_select(0, index).view(len(alive), length, 6).unbind(-1)
        dx, dy = x - centres[alive, :1], y - centres[alive, 1:]
        ax, by, bx, cy = a * dx, b * dy, b * dx, c * dy
        constant = log_opacity.masked_fill(~inside, -80.0) - 0.5 * (ax * dx + cy * dy) - bx * dy
        factors = torch.stack([constant, ax + by, bx + cy, -0.5 * a, -b, -0.5 * c], -1)  # [B, length, 6]
        alpha = (factors @ monomials).exp().clamp_max(ALPHA_MAX)
        alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0)
        fading = torch.log1p(-alpha)
        sums = triangle[:length, :length].expand(len(alive), -1, -1)
        after = torch.baddbmm(log_light[alive].expand(-1, length, -1), sums, fading)
        alpha = torch.where(after > LOG_STOP, alpha, 0)
        weight = (after - fading).exp() * alpha
        added = weight.transpose(1, 2) @ values.index_select(0, index).view(len(alive), length, -1)
        kept = torch.where(alpha > 0, fading, 0).sum(1, keepdim=True)
        image, rendered = image.index_add(0, alive, added), rendered.index_add(0, alive, kept)
        log_light = log_light.index_copy(0, alive, after[:, -1:])
    return image, rendered.squeeze(1).exp()


def tile_lists(
    means2d: Tensor, conics: Tensor, opacities: Tensor, depths: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussians of every tile, front to back, tile after tile; and where each tile's list starts, and its length."""
    rows, columns = -(-height // TILE), -(-width // TILE)
    seen = (opacities >= ALPHA_MIN).nonzero().squeeze(1)
    seen = seen[depths[seen].argsort(stable=True)]
    x, y = means2d[seen].double().unbind(-1)
    a, b, c = conics[seen].double().unbind(-1)
    level, det = 2 * (opacities[seen].double() / ALPHA_MIN).log(), a * c - b * b
    reach_y, tilt = (level * a / det).sqrt() + 0.01, -b / c * (level * c / det).sqrt()
    first = ((y - reach_y) / TILE).floor().clamp(0, rows).long()
    last = ((y + reach_y) / TILE).floor().clamp(-1, rows - 1).long()
    spans = (last - first + 1).clamp_min(0)
    who = torch.repeat_interleave(spans)  # one element a (Gaussian, row of tiles)
    row = first[who] + torch.arange(len(who)) - (spans.cumsum(0) - spans)[who]
    top, a, b, det, y = row * TILE - y[who], a[who], b[who], det[who], y[who]
    level_a = level[who] * a
    right, left = (torch.minimum(torch.maximum(t, top), top + TILE) for t in (tilt[who], -tilt[who]))
    high = x[who] + (((level_a - det * right * right).clamp_min(0)).sqrt() - b * right) / a + 0.01
    low = x[who] - (((level_a - det * left * left).clamp_min(0)).sqrt() + b * left) / a - 0.01
    first = (low / TILE).floor().clamp(0, columns).long()
    spans = ((high / TILE).floor().clamp(-1, columns - 1).long() - first + 1).clamp_min(0)
    entry = torch.repeat_interleave(spans)
    tile = (row * columns + first)[entry] + torch.arange(len(entry)) - (spans.cumsum(0) - spans)[entry]
    tile, permutation = tile.to(torch.int32).sort(stable=True)
    counts = torch.bincount(tile, minlength=rows * columns)
    return seen[who[entry[permutation]]], counts.cumsum(0) - counts, counts

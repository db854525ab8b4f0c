"""Packed scenes at one resolution, as the sequences that space-filling curves make of their points.

What Point Transformer V3 needs to know of a cloud besides its features: where the points stand in each sequence, how
the sequences are cut into patches, which points a coarser grid merges, and the voxels for its convolutions. All of
it is decided scene by scene, so that the companions of a scene in its batch change nothing for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointcept3m.ops import Groups, group_keys, scatter_max
from pointcept3m.ops.offsets import offset_to_batch, offset_to_counts
from pointcept3m.structures.serialization import MAX_DEPTH, encode
from pointcept3m.structures.sparse import SparseConvTensor


class Patches(NamedTuple):
    """How sequences are cut into patches that attend to themselves: slots that points fill.

    The first `num_full * size` slots are patches of `size` points. A scene whose points do not fill its last patch
    fills it with points of its last patch but one, each in its place there. Scenes of less than `size` points follow
    as one patch each, of `short_size` slots, the largest of them; `valid` bool [num_short, short_size] says which of
    those slots hold a point of their own.

    point: int64 [slots], the row of the point in each slot. slot: int64 [N], where each row's own slot is.
    """

    point: Tensor
    slot: Tensor
    size: int
    num_full: int
    num_short: int
    short_size: int
    valid: Tensor


@dataclass(eq=False)
class Level:
    """B packed scenes of N points at one resolution, with k curves through them. Tensors are int64.

    grid_coord: [N, 3] cells. batch: [N] scene of each point. offset: [B] ends of the scenes. depth: levels of the
    octree of each scene. code: [k, N] places on the curves, without the scene. order: [k, N] rows in the order of
    each curve, scene after scene; inverse: [k, N] where each row is in it.
    condition, context: what PDNorm reads.
    """

    grid_coord: Tensor
    batch: Tensor
    offset: Tensor
    depth: tuple[int, ...]
    code: Tensor
    condition: str | None = None
    context: Tensor | None = None
    order: Tensor = field(init=False)
    inverse: Tensor = field(init=False)
    _made: dict[Any, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.order = torch.stack([group_keys(self._key(code)).order for code in self.code])
        places = torch.arange(self.code.size(1), device=self.code.device).expand_as(self.order)
        self.inverse = torch.empty_like(self.order).scatter_(1, self.order, places)

    @classmethod
    def serialize(cls, grid_coord: Tensor, offset: Tensor, curves: Sequence[str], shuffle: bool = False) -> "Level":
        """The level of the points themselves.

        grid_coord: [N, 3] not negative. curves: names out of `serialization.ORDERS`. shuffle: in random order, drawn
        from torch's generator of the CPU. A scene's octree has as many levels as its largest coordinate plus 1 has
        bits, as in Pointcept, where the largest of the whole batch decides (which turns the Hilbert curve).

        Raises: ValueError where a coordinate or the number of scenes is too large for 63-bit codes.
        """
        batch = offset_to_batch(offset)
        highest = scatter_max(grid_coord.amax(1), batch, dim=0, dim_size=len(offset))[0]
        depth = tuple((most + 1).bit_length() for most in highest.tolist())
        if max(depth) > MAX_DEPTH or 3 * max(depth) + len(offset).bit_length() > 63:
            raise ValueError(
                f"serialization: {len(offset)} scenes of up to {int(highest.max()) + 1} cells along an axis do not fit "
                f"into 63-bit codes (2^{MAX_DEPTH} cells, fewer for more scenes); is the grid size in metres?"
            )
        levels = depth[0] if len(set(depth)) == 1 else _of_points(depth, batch)
        code = torch.stack([encode(grid_coord, levels, curve) for curve in curves])
        return cls(grid_coord.long(), batch, offset.long(), depth, _shuffled(code) if shuffle else code)

    def pool(self, stride: int, shuffle: bool = False) -> tuple["Level", Groups]:
        """The level of the cells that are `stride`, a power of 2, times as large, and which rows fall into each.

        A scene whose octree is not that deep keeps its cells (as in Pointcept, for the whole batch).
        """
        bits = stride.bit_length() - 1
        steps = tuple(bits if depth >= bits else 0 for depth in self.depth)
        step = bits if min(steps) == bits else _of_points(steps, self.batch)
        code = self.code >> 3 * step
        groups = group_keys(self._key(code[0]))
        first = groups.order[groups.start[:-1]]
        code, batch = code[:, first], self.batch[first]
        if isinstance(step, Tensor):
            step = step[first][:, None]
        coarser = replace(
            self,
            grid_coord=self.grid_coord[first] >> step,
            batch=batch,
            offset=torch.bincount(batch, minlength=len(self.offset)).cumsum(0),
            depth=tuple(depth - step for depth, step in zip(self.depth, steps, strict=True)),
            code=_shuffled(code) if shuffle else code,
        )
        return coarser, groups

    def patches(self, curve: int, size: int) -> Patches:
        """The sequence of one curve in patches of `size` points; made once."""
        if (size, curve) not in self._made:
            if size not in self._made:
                self._made[size] = _cut(self.offset, size)
            place = self._made[size]
            self._made[size, curve] = place._replace(
                point=self.order[curve][place.point], slot=place.slot[self.inverse[curve]]
            )
        return self._made[size, curve]

    def voxels(self, feat: Tensor) -> SparseConvTensor:
        """The points as voxels with features [N, C]; all of a level's share their rulebooks."""
        if "voxels" not in self._made:
            indices = torch.cat([self.batch[:, None], self.grid_coord], dim=1).int()
            shape = (self.grid_coord.amax(0) + 1).tolist()
            self._made["voxels"] = SparseConvTensor(feat.new_empty(len(feat), 0), indices, shape, len(self.offset))
        return self._made["voxels"].replace_feature(feat)

    def _key(self, code: Tensor) -> Tensor:
        return self.batch << 3 * max(self.depth) | code


def _of_points(values: Sequence[int], batch: Tensor) -> Tensor:
    return torch.tensor(values, device=batch.device)[batch]


def _shuffled(code: Tensor) -> Tensor:
    return code[torch.randperm(len(code)).to(code.device)]


def _cut(offset: Tensor, size: int) -> Patches:
    """Patches of `size` places in a sequence, with `point` and `slot` for the places rather than the rows."""
    device = offset.device
    counts = offset_to_counts(offset)
    start = offset - counts
    full = torch.where(counts >= size, (counts + size - 1) // size, 0)
    short = ((counts > 0) & (counts < size)).nonzero().squeeze(1)
    num_full = int(full.sum())
    short_size = int(counts[short].max()) if len(short) else 0

    first_slot = (full.cumsum(0) - full) * size
    first_slot[short] = num_full * size + torch.arange(len(short), device=device) * short_size
    scene = torch.repeat_interleave(full * size, output_size=num_full * size)
    local = torch.arange(num_full * size, device=device) - first_slot[scene]
    local = torch.where(local < counts[scene], local, local - size)
    column = torch.arange(short_size, device=device)
    valid = column < counts[short][:, None]
    point = torch.cat([start[scene] + local, (start[short][:, None] + torch.where(valid, column, 0)).flatten()])
    slot = torch.arange(int(offset[-1]), device=device) + torch.repeat_interleave(first_slot - start, counts)
    return Patches(point, slot, size, num_full, len(short), short_size, valid)

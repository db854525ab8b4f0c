"""MinkUNet 14 to 101 with their variants A to D: MinkowskiEngine's U-Nets, whose Pointcept checkpoints load unchanged.

Tensors are named as there: `conv0p1s1.kernel`, `bn0.bn`, `conv1p1s2`, `block1` to `block8`, `convtr4p16s2`, `final`.
`models/layers/minkowski.py` says how a kernel lies in memory.

Source: C. Choy et al., 4D Spatio-Temporal ConvNets: Minkowski Convolutional Neural Networks, CVPR 2019.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.models.builder import MODELS
from pointcept3m.models.layers.inputs import packed_points
from pointcept3m.models.layers.minkowski import (
    MinkowskiBatchNorm,
    MinkowskiConvolution,
    MinkowskiConvolutionTranspose,
    MinkowskiPointwise,
    MinkowskiStridedConvolution,
)
from pointcept3m.models.layers.sparse import SparseModule, SparseSequential
from pointcept3m.ops import group_keys, scatter_mean
from pointcept3m.ops.offsets import offset_to_batch
from pointcept3m.structures.sparse import SparseConvTensor

STAGES = 4


class BasicBlock(SparseModule):
    """Two 3x3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, indice_key: str):
        super().__init__()
        self.conv1 = MinkowskiConvolution(in_channels, planes, 3, indice_key)
        self.norm1 = MinkowskiBatchNorm(planes)
        self.conv2 = MinkowskiConvolution(planes, planes, 3, indice_key)
        self.norm2 = MinkowskiBatchNorm(planes)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, planes)

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        out = _activate(self.norm1(self.conv1(x)))
        return _activate(self.norm2(self.conv2(out)) + (self.downsample(x) if self.downsample else x))


class Bottleneck(SparseModule):
    """A 3x3x3 convolution between two of 1x1x1, four times as wide at its end, and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, indice_key: str):
        super().__init__()
        wide = planes * self.expansion
        self.conv1 = MinkowskiPointwise(in_channels, planes)
        self.norm1 = MinkowskiBatchNorm(planes)
        self.conv2 = MinkowskiConvolution(planes, planes, 3, indice_key)
        self.norm2 = MinkowskiBatchNorm(planes)
        self.conv3 = MinkowskiPointwise(planes, wide)
        self.norm3 = MinkowskiBatchNorm(wide)
        self.downsample = _shortcut(in_channels, wide)

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        out = _activate(self.norm1(self.conv1(x)))
        out = _activate(self.norm2(self.conv2(out)))
        return _activate(self.norm3(self.conv3(out)) + (self.downsample(x) if self.downsample else x))


class MinkUNet(nn.Module):
    """The U-Net: a 5x5x5 stem, four stages that halve the grid, and four that lead back with skip connections.

    Args:
        in_channels: channels of `feat`.
        out_channels: of the final 1x1x1 convolution; 0 leaves it out, and features of `PLANES[7]` channels
            (four times as many in MinkUNet50 and 101) come out.
        dimension: 3; taken since Pointcept has it.
        planes, layers: width and number of blocks of the eight stages, encoder first; by default the variant's.
        init_dim: width of the stem.

    `out_channels` is the width of what `forward` returns.
    """

    BLOCK: type = BasicBlock
    LAYERS: tuple[int, ...] = (2,) * 8
    PLANES: tuple[int, ...] = (32, 64, 128, 256, 256, 128, 96, 96)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dimension: int = 3,
        planes: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        init_dim: int = 32,
    ):
        super().__init__()
        planes, layers = planes or self.PLANES, layers or self.LAYERS
        name = type(self).__name__
        if dimension != 3:
            raise ValueError(f"{name}: dimension must be 3, got {dimension}")
        if len(planes) != 2 * STAGES or len(layers) != 2 * STAGES or min(layers) < 1:
            raise ValueError(f"{name}: planes and layers must have 8 entries, layers positive, got {planes}, {layers}")
        self.in_channels = in_channels
        self.conv0p1s1 = MinkowskiConvolution(in_channels, init_dim, 5, "stem")
        self.bn0 = MinkowskiBatchNorm(init_dim)
        widths = [init_dim]
        for s in range(1, STAGES + 1):
            stride = 2 ** (s - 1)
            setattr(self, f"conv{s}p{stride}s2", MinkowskiStridedConvolution(widths[-1], widths[-1], f"down{s}"))
            setattr(self, f"bn{s}", MinkowskiBatchNorm(widths[-1]))
            setattr(self, f"block{s}", self._blocks(widths[-1], planes[s - 1], layers[s - 1], f"subm{s}"))
            widths.append(planes[s - 1] * self.BLOCK.expansion)
        width = widths.pop()
        for s in range(STAGES, 2 * STAGES):
            up, level = f"convtr{s}p{2 ** (2 * STAGES - s)}s2", 2 * STAGES - 1 - s
            setattr(self, up, MinkowskiConvolutionTranspose(width, planes[s], f"down{level + 1}"))
            setattr(self, f"bntr{s}", MinkowskiBatchNorm(planes[s]))
            blocks = self._blocks(planes[s] + widths.pop(), planes[s], layers[s], f"subm{level}")
            setattr(self, f"block{s + 1}", blocks)
            width = planes[s] * self.BLOCK.expansion
        self.final = MinkowskiPointwise(width, out_channels, bias=True) if out_channels > 0 else nn.Identity()
        self.out_channels = out_channels if out_channels > 0 else width

    def _blocks(self, in_channels: int, planes: int, count: int, indice_key: str) -> SparseSequential:
        widths = [in_channels] + [planes * self.BLOCK.expansion] * (count - 1)
        return SparseSequential(*(self.BLOCK(width, planes, indice_key) for width in widths))

    def forward(self, input_dict: Mapping[str, Any]) -> Tensor:
        """Features of `grid_coord` [N, 3] (int, not negative), `feat` [N, in_channels], `offset` [B] int64.

        Points that share a cell are averaged first and all get what the cell gets, as with MinkowskiEngine's
        TensorField. Where the batch has no `grid_coord`, `discrete_coord`, its older name, serves.

        Returns: [N, out_channels].
        Raises: KeyError or ValueError where an entry is missing or does not fit.
        """
        if "grid_coord" not in input_dict and "discrete_coord" in input_dict:
            input_dict = {**input_dict, "grid_coord": input_dict["discrete_coord"]}
        grid_coord, feat, offset = packed_points(type(self).__name__, input_dict, self.in_channels)
        x, inverse = _voxels(grid_coord, feat, offset)
        x = _activate(self.bn0(self.conv0p1s1(x)))
        skips = []
        for s in range(1, STAGES + 1):
            skips.append(x)
            x = _activate(getattr(self, f"bn{s}")(getattr(self, f"conv{s}p{2 ** (s - 1)}s2")(x)))
            x = getattr(self, f"block{s}")(x)
        for s in range(STAGES, 2 * STAGES):
            x = _activate(getattr(self, f"bntr{s}")(getattr(self, f"convtr{s}p{2 ** (2 * STAGES - s)}s2")(x)))
            x = x.replace_feature(torch.cat([x.features, skips.pop().features], dim=1))
            x = getattr(self, f"block{s + 1}")(x)
        feat = self.final(x).features
        return feat if inverse is None else torch.ops.pointcept3m.gather_rows(feat.contiguous(), inverse)


def _voxels(grid_coord: Tensor, feat: Tensor, offset: Tensor) -> tuple[SparseConvTensor, Tensor | None]:
    """The occupied cells with the means of their points, and the cell of each point (None: that of its own number)."""
    batch, grid_coord = offset_to_batch(offset), grid_coord.long()
    size = (grid_coord.amax(0) + 1).tolist()
    if len(offset) * math.prod(size) >= 2**62:
        raise ValueError(f"MinkUNet: {len(offset)} scenes within {size} cells do not fit into 62-bit keys; "
                         "is the grid size in metres?")  # fmt: skip
    key = batch
    for axis in range(3):
        key = key * size[axis] + grid_coord[:, axis]
    groups, inverse = group_keys(key), None
    if len(groups.start) - 1 < len(feat):
        first, inverse = groups.order[groups.start[:-1]], groups.inverse
        feat = scatter_mean(feat, inverse, dim=0, dim_size=len(first))
        batch, grid_coord = batch[first], grid_coord[first]
    indices = torch.cat([batch[:, None], grid_coord], dim=1).int()
    # Whole cells at every stage, so that halving the grid loses no voxel at its edge.
    shape = [-(-s // 2**STAGES) * 2**STAGES for s in size]
    return SparseConvTensor(feat, indices, shape, len(offset)), inverse


def _activate(x: SparseConvTensor) -> SparseConvTensor:
    return x.replace_feature(torch.relu(x.features))


def _shortcut(in_channels: int, out_channels: int) -> SparseSequential | None:
    if in_channels == out_channels:
        return None
    return SparseSequential(MinkowskiPointwise(in_channels, out_channels), MinkowskiBatchNorm(out_channels))


_DEPTHS = {
    14: (BasicBlock, (1,) * 8),
    18: (BasicBlock, (2,) * 8),
    34: (BasicBlock, (2, 3, 4, 6, 2, 2, 2, 2)),
    50: (Bottleneck, (2, 3, 4, 6, 2, 2, 2, 2)),
    101: (Bottleneck, (2, 3, 4, 23, 2, 2, 2, 2)),
}
# The widths of the decoder; those of the encoder are 32, 64, 128, 256 in all of them.
_VARIANTS = {
    **{f"{depth}": (256, 128, 96, 96) for depth in _DEPTHS},
    "14A": (128, 128, 96, 96),
    "14B": (128, 128, 128, 128),
    "14C": (192, 192, 128, 128),
    "14D": (384, 384, 384, 384),
    "18A": (128, 128, 96, 96),
    "18B": (128, 128, 128, 128),
    "18D": (384, 384, 384, 384),
    "34A": (256, 128, 96, 96),
    "34B": (256, 128, 64, 32),
    "34C": (256, 128, 96, 96),
}
for _variant, _planes in _VARIANTS.items():
    _block, _layers = _DEPTHS[int(_variant.rstrip("ABCD"))]
    _settings = dict(BLOCK=_block, LAYERS=_layers, PLANES=(32, 64, 128, 256, *_planes), __module__=__name__)
    MODELS.register_module(module=type(f"MinkUNet{_variant}", (MinkUNet,), _settings))

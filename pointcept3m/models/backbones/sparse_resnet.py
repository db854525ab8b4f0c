"""Sparse residual networks that end in one vector a scene: MinkowskiEngine's example ResNets, as CrossOver's release uses them.

Source: C. Choy et al., 4D Spatio-Temporal ConvNets: Minkowski Convolutional Neural Networks, CVPR 2019, and the layout of the
released CrossOver (CVPR 2025): 70.6 million parameters at full size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.models.backbones.minkunet import _activate, _voxels
from pointcept3m.models.builder import MODELS
from pointcept3m.models.layers.inputs import packed_points
from pointcept3m.models.layers.minkowski import MinkowskiBatchNorm, MinkowskiConvolution, _Kernel
from pointcept3m.models.layers.sparse import (
    IndiceData,
    SparseAvgPool3d,
    SparseConv3d,
    SparseGlobalAvgPool,
    SparseModule,
)
from pointcept3m.ops.rulebook import Rulebook
from pointcept3m.structures.sparse import SparseConvTensor


class CentredStridedConvolution(_Kernel, SparseConv3d):
    """An odd kernel with a stride, as MinkowskiEngine computes it: outputs stand at floor(i / stride) of the inputs and nowhere
    else, and gather what lies around stride * o. (spconv's outputs stand wherever the kernel meets an input, so grids fill up.)"""

    _kind = "centred"

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)

    def _make_indice_data(self, x: SparseConvTensor, geometry: tuple) -> IndiceData:
        data = super()._make_indice_data(x, geometry)
        step = torch.tensor([1, *self.stride], dtype=torch.int32, device=x.indices.device)
        wanted = torch.unique(torch.div(x.indices, step, rounding_mode="floor"), dim=0)  # in lexicographic order
        rulebook = _only(data.rulebook, wanted.contiguous(), data.out_spatial_shape)
        return IndiceData(rulebook, x.indices, rulebook.coord_out, x.spatial_shape, data.out_spatial_shape, geometry)


def _only(rulebook: Rulebook, wanted: Tensor, shape: Sequence[int]) -> Rulebook:
    """The rulebook with its outputs at `wanted` int32 [M, 4], ascending, alone. Some of them may meet no input."""

    def key(coord: Tensor) -> Tensor:
        batch, x, y, z = coord.long().unbind(1)
        return ((batch * shape[0] + x) * shape[1] + y) * shape[2] + z

    keys, reached = key(wanted), key(rulebook.coord_out)
    row = torch.searchsorted(keys, reached).clamp(max=len(keys) - 1)
    found = keys[row] == reached
    inputs, outputs = rulebook.pairs.long()
    kept = found[outputs]
    pairs = torch.stack([inputs[kept], row[outputs[kept]]]).int()
    before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.long().cumsum(0)]).cpu()
    rank = torch.arange(len(wanted), dtype=torch.int32, device=wanted.device)
    return replace(rulebook, pairs=pairs.contiguous(), start=before[rulebook.start], rank_out=rank, coord_out=wanted)


class ResidualBlock(SparseModule):
    """Two 3x3x3 convolutions, the first with a stride, and a shortcut: 1x1x1 with the same stride where anything changes."""

    def __init__(self, in_channels: int, planes: int, stride: int, indice_key: str):
        super().__init__()
        self.conv1 = CentredStridedConvolution(in_channels, planes, 3, stride) if stride > 1 else MinkowskiConvolution(in_channels, planes, 3, indice_key)
        self.norm1 = MinkowskiBatchNorm(planes)
        self.conv2 = MinkowskiConvolution(planes, planes, 3, indice_key)
        self.norm2 = MinkowskiBatchNorm(planes)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.ModuleList([CentredStridedConvolution(in_channels, planes, 1, stride), MinkowskiBatchNorm(planes)])

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        out = self.norm2(self.conv2(_activate(self.norm1(self.conv1(x)))))
        for layer in self.downsample or ():
            x = layer(x)
        return out.replace_feature(torch.relu(out.features + x.features))


class SparseResNet(nn.Module):
    """A stem of stride 2, mean pooling, four stages of residual blocks, each of stride 2, a convolution of stride 3, the mean.

    in_channels: of `feat` (the release: 3, colours). planes, layers: width and number of blocks of the stages. init_dim: the stem's.

    `forward` gives one row a scene, [B, planes[-1]], and not one a point: what it is used in looks at `pools`.
    A scene shrinks by 192 in each direction, so batch norms need some scenes in a batch, or large ones.
    """

    pools = True
    LAYERS: tuple[int, ...] = (3, 4, 6, 3)

    def __init__(
        self, in_channels: int, planes: Sequence[int] = (64, 128, 256, 512), layers: Sequence[int] | None = None, init_dim: int = 64
    ):  # fmt: skip
        super().__init__()
        layers = layers or self.LAYERS
        if len(planes) != len(layers) or min(layers) < 1:
            raise ValueError(f"{type(self).__name__}: planes and layers must have one entry a stage, layers positive, got {planes}, {layers}")
        self.in_channels, self.out_channels = in_channels, planes[-1]
        self.stem, self.stem_norm = CentredStridedConvolution(in_channels, init_dim, 5, 2), MinkowskiBatchNorm(init_dim)
        self.pool = SparseAvgPool3d(2)
        self.stages = nn.ModuleList()
        width = init_dim
        for stage, (plane, count) in enumerate(zip(planes, layers, strict=True)):
            widths = [width] + [plane] * (count - 1)
            self.stages.append(nn.Sequential(*(ResidualBlock(w, plane, 2 if k == 0 else 1, f"stage{stage}") for k, w in enumerate(widths))))
            width = plane
        self.last, self.last_norm = CentredStridedConvolution(width, width, 3, 3), MinkowskiBatchNorm(width)
        self.mean = SparseGlobalAvgPool()

    def forward(self, input_dict: Mapping[str, Any]) -> Tensor:
        """[B, out_channels] of `grid_coord` [N, 3], `feat` [N, in_channels], `offset` [B]; points of one cell are averaged first.

        Raises: KeyError or ValueError where an entry is missing or does not fit.
        """
        x, _ = _voxels(*packed_points(type(self).__name__, input_dict, self.in_channels))
        x = self.pool(_activate(self.stem_norm(self.stem(x))))
        for stage in self.stages:
            x = stage(x)
        return self.mean(_activate(self.last_norm(self.last(x))))


for _name, _layers in {"14": (1, 1, 1, 1), "18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}.items():
    MODELS.register_module(module=type(f"SparseResNet{_name}", (SparseResNet,), dict(LAYERS=_layers, __module__=__name__)))

"""Layers with MinkowskiEngine's parameters, so that its checkpoints load: `kernel` and not `weight`, `bn` inside norms.

MinkowskiEngine (0.5, `src/kernel_region.hpp`) keeps a kernel as [K, Cin, Cout] and numbers its K offsets with x
fastest: k = ix + kx (iy + ky iz). It adds the offset to the place of the output: (ix, iy, iz) - k // 2 for odd sizes,
and (ix, iy, iz) for even ones, so that a kernel of 2 with stride 2 gathers the cells that floor(i / 2) maps to the
output. A transposed convolution uses the pairs of the convolution it undoes, with its own kernel. spconv's layers
compute the same with the weight [Cout, kx, ky, kz, Cin]; only the order in memory is another. Start values are those
of MinkowskiEngine's MinkUNet.
"""

import math

import torch
from torch import Tensor, nn

from pointcept3m.models.layers.inputs import need_two_cells
from pointcept3m.models.layers.sparse import (
    SparseConv3d,
    SparseConvolution,
    SparseInverseConv3d,
    SparseModule,
    SubMConv3d,
)
from pointcept3m.structures.sparse import SparseConvTensor


class _Kernel(SparseConvolution):
    """A sparse convolution without bias whose weight is `kernel` in MinkowskiEngine's layout."""

    def _make_weight(self) -> None:
        self.kernel = nn.Parameter(torch.empty(math.prod(self.kernel_size), self.in_channels, self.out_channels))

    def _krsc(self) -> Tensor:
        return self.kernel.unflatten(0, self.kernel_size[::-1]).permute(4, 2, 1, 0, 3)

    def reset_parameters(self) -> None:
        """Kaiming's normal distribution over the fan out, for ReLU."""
        nn.init.normal_(self.kernel, std=math.sqrt(2 / (self.kernel.size(0) * self.out_channels)))


class MinkowskiConvolution(_Kernel, SubMConv3d):
    """Stride 1, odd kernels: outputs stand where inputs stand."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, indice_key: str):
        super().__init__(in_channels, out_channels, kernel_size, bias=False, indice_key=indice_key)


class MinkowskiStridedConvolution(_Kernel, SparseConv3d):
    """Kernel and stride 2: outputs stand at floor(i / 2)."""

    def __init__(self, in_channels: int, out_channels: int, indice_key: str):
        super().__init__(in_channels, out_channels, 2, stride=2, bias=False, indice_key=indice_key)


class MinkowskiConvolutionTranspose(_Kernel, SparseInverseConv3d):
    """Leads back to the voxels that the strided convolution with the same `indice_key` came from."""

    def __init__(self, in_channels: int, out_channels: int, indice_key: str):
        super().__init__(in_channels, out_channels, 2, indice_key, bias=False)

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(fan out)."""
        bound = 1 / math.sqrt(self.kernel.size(0) * self.out_channels)
        nn.init.uniform_(self.kernel, -bound, bound)


class MinkowskiPointwise(SparseModule):
    """A kernel of 1, a matrix [Cin, Cout], and a bias [1, Cout] where it is asked for."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False):
        super().__init__()
        # MinkowskiEngine takes the matrix's first dimension, Cin, for the fan out.
        self.kernel = nn.Parameter(torch.empty(in_channels, out_channels).normal_(std=math.sqrt(2 / in_channels)))
        bound = 1 / math.sqrt(in_channels)
        self.bias = nn.Parameter(torch.empty(1, out_channels).uniform_(-bound, bound)) if bias else None

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        feat = x.features @ self.kernel
        return x.replace_feature(feat if self.bias is None else feat + self.bias)


class MinkowskiBatchNorm(SparseModule):
    """nn.BatchNorm1d over all voxels, under the name `bn`."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        need_two_cells(self, "batch norm of a sparse network", x.features.size(0))
        return x.replace_feature(self.bn(x.features))

"""SpUNet: the sparse residual U-Net of Pointcept (SpUNet-v1m1), whose checkpoints load unchanged.

Tensors are named as there: `conv_input`, `down.S`, `enc.S.blockI`, `up.S`, `dec.S.blockI`, `final`. Stage S of
`up` and `dec` mirrors stage S of the encoder; `dec.0` is the finest.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pointcept3m.models.builder import MODELS
from pointcept3m.models.layers.inputs import packed_points
from pointcept3m.models.layers.sparse import (
    SparseConv3d,
    SparseInverseConv3d,
    SparseModule,
    SparseSequential,
    SubMConv3d,
)
from pointcept3m.ops import scatter_mean
from pointcept3m.ops.offsets import offset_to_batch
from pointcept3m.structures.sparse import SparseConvTensor

norm = partial(nn.BatchNorm1d, eps=1e-3, momentum=0.01)


class BasicBlock(SparseModule):
    """Two 3x3x3 submanifold convolutions and a shortcut, which projects where the widths differ."""

    def __init__(self, in_channels: int, channels: int, indice_key: str, backend: str | None = None):
        super().__init__()
        if in_channels == channels:
            self.proj = SparseSequential(nn.Identity())
        else:
            self.proj = SparseSequential(
                SubMConv3d(in_channels, channels, 1, bias=False, backend=backend), norm(channels)
            )
        self.conv1 = SubMConv3d(in_channels, channels, 3, bias=False, indice_key=indice_key, backend=backend)
        self.bn1 = norm(channels)
        self.conv2 = SubMConv3d(channels, channels, 3, bias=False, indice_key=indice_key, backend=backend)
        self.bn2 = norm(channels)
        self.relu = nn.ReLU()

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        out = self.conv1(x)
        out = out.replace_feature(self.relu(self.bn1(out.features)))
        out = self.conv2(out)
        return out.replace_feature(self.relu(self.bn2(out.features) + self.proj(x).features))


@MODELS.register_module("SpUNet-v1m1")
class SpUNet(nn.Module):
    """The U-Net: a 5x5x5 stem, stages that halve the grid, and as many that lead back with skip connections.

    Args:
        in_channels: channels of `feat`.
        num_classes: channels of the final 1x1x1 convolution; 0 leaves it out.
        base_channels: width of the stem.
        channels: width of each stage, encoder first, then decoder from the coarsest to the finest.
        layers: residual blocks of each stage, in the same order.
        enc_mode: without the decoder; returns one feature per scene, the mean over its voxels.
        cls_mode: the name `enc_mode` had before Pointcept 1.6; wins where it is given.
        backend: "native" or "spconv", what runs the convolutions.

    `out_channels` is the width of what `forward` returns.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        base_channels: int = 32,
        channels: Sequence[int] = (32, 64, 128, 256, 256, 128, 96, 96),
        layers: Sequence[int] = (2, 3, 4, 6, 2, 2, 2, 2),
        enc_mode: bool = False,
        cls_mode: bool | None = None,
        backend: str | None = None,
    ):
        super().__init__()
        if len(channels) != len(layers) or len(channels) % 2 or not channels:
            raise ValueError(
                f"SpUNet: channels and layers must be equally many and even in number, got {channels} and {layers}"
            )
        self.in_channels, self.num_classes = in_channels, num_classes
        self.num_stages = len(channels) // 2
        self.enc_mode = enc_mode if cls_mode is None else cls_mode
        self.conv_input = SparseSequential(
            SubMConv3d(in_channels, base_channels, 5, bias=False, indice_key="stem", backend=backend),
            norm(base_channels),
            nn.ReLU(),
        )
        self.down, self.enc, self.up, self.dec = (nn.ModuleList() for _ in range(4))
        finer = base_channels
        for stage in range(self.num_stages):
            width, key = channels[stage], f"spconv{stage + 1}"
            conv = SparseConv3d(finer, width, 2, stride=2, bias=False, indice_key=key, backend=backend)
            self.down.append(SparseSequential(conv, norm(width), nn.ReLU()))
            self.enc.append(_blocks(width, width, layers[stage], f"subm{stage + 1}", backend))
            if not self.enc_mode:
                coarser, width = channels[-stage - 2], channels[-stage - 1]
                conv = SparseInverseConv3d(coarser, width, 2, key, bias=False, backend=backend)
                self.up.append(SparseSequential(conv, norm(width), nn.ReLU()))
                self.dec.append(_blocks(width + finer, width, layers[-stage - 1], f"subm{stage}", backend))
            finer = channels[stage]
        last = channels[self.num_stages - 1] if self.enc_mode else channels[-1]
        self.final = SubMConv3d(last, num_classes, 1, backend=backend) if num_classes > 0 else nn.Identity()
        self.out_channels = num_classes if num_classes > 0 else last
        self.apply(_init_weights)

    def forward(self, input_dict: Mapping[str, Tensor]) -> Tensor:
        """Features of `grid_coord` [N, 3] (int, not negative), `feat` [N, in_channels], `offset` [B] int64.

        `indice_dict`, where there is one, keeps the rulebooks for other batches on the same voxels.

        Returns: [N, out_channels], or [B, out_channels] with `enc_mode`.
        Raises: KeyError, TypeError or ValueError where an entry is missing or does not fit.
        """
        x = self.conv_input(self._to_sparse(input_dict))
        skips = [x]
        for down, enc in zip(self.down, self.enc, strict=True):
            x = enc(down(x))
            skips.append(x)
        skips.pop()
        if not self.enc_mode:
            for up, dec in zip(reversed(self.up), reversed(self.dec), strict=True):
                x, skip = up(x), skips.pop()
                x = dec(x.replace_feature(torch.cat([x.features, skip.features], dim=1)))
        if self.num_classes > 0:
            x = self.final(x)
        if self.enc_mode:
            return scatter_mean(x.features, x.indices[:, 0].long(), dim=0, dim_size=x.batch_size)
        return x.features

    def _to_sparse(self, input_dict: Mapping[str, Tensor]) -> SparseConvTensor:
        grid_coord, feat, offset = packed_points("SpUNet", input_dict, self.in_channels)
        batch, high = offset_to_batch(offset), grid_coord.amax(0).tolist()
        # Whole cells at every stage, so that halving the grid loses no voxel at its edge.
        step = 2**self.num_stages
        shape = [-(-(most + 1) // step) * step for most in high]
        indices = torch.cat([batch[:, None], grid_coord], dim=1).int()
        return SparseConvTensor(feat, indices, shape, offset.numel(), indice_dict=input_dict.get("indice_dict"))


def _blocks(in_channels: int, channels: int, count: int, indice_key: str, backend: str | None) -> SparseSequential:
    widths = [in_channels] + [channels] * count
    blocks = (BasicBlock(widths[i], channels, indice_key, backend) for i in range(count))
    return SparseSequential(OrderedDict((f"block{i}", block) for i, block in enumerate(blocks)))


def _init_weights(module: nn.Module) -> None:
    """Submanifold convolutions start from a truncated normal of 0.02, as in Pointcept."""
    if isinstance(module, SubMConv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

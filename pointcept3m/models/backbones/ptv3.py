"""Point Transformer V3 (PT-v3m1), whose Pointcept checkpoints load unchanged.

Tensors are named as there: `embedding.stem`, `enc.encS.down`, `enc.encS.blockI`, `dec.decS.up`, `dec.decS.blockI`.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.models.builder import MODELS
from pointcept3m.models.layers.inputs import need_two_cells, packed_points
from pointcept3m.models.layers.serialized import (
    Block,
    LevelSequential,
    PDNorm,
    SerializedPooling,
    SerializedUnpooling,
)
from pointcept3m.models.layers.sparse import SubMConv3d
from pointcept3m.structures.level import Level
from pointcept3m.structures.serialization import ORDERS
from pointcept3m.utils.logger import get_root_logger
from pointcept3m.utils.registry import near_names


class Embedding(nn.Module):
    """The stem: a 5x5x5 submanifold convolution, norm and GELU."""

    def __init__(self, in_channels: int, embed_channels: int, norm_layer: Any):
        super().__init__()
        conv = SubMConv3d(in_channels, embed_channels, 5, padding=1, bias=False, indice_key="stem")
        self.stem = LevelSequential(OrderedDict(conv=conv, norm=norm_layer(embed_channels), act=nn.GELU()))

    def forward(self, feat: Tensor, level: Level) -> Tensor:
        return self.stem(feat, level)


@MODELS.register_module("PT-v3m1")
class PointTransformerV3(nn.Module):
    """A U-Net whose blocks attend within patches of space-filling curves through the points.

    Args (Pointcept's names and defaults):
        in_channels: channels of `feat`.
        order: curves, out of z, z-trans, hilbert, hilbert-trans; block i of a stage follows curve i modulo their number.
        stride: of the grid between stages, powers of 2.
        enc_depths, enc_channels, enc_num_head, enc_patch_size: blocks, width, heads and points of a patch, by stage.
        dec_depths, dec_channels, dec_num_head, dec_patch_size: the same of the decoder, the finest stage first.
        mlp_ratio, qkv_bias, qk_scale, attn_drop, proj_drop, drop_path, pre_norm: of the blocks; drop_path grows to
            the given rate over the blocks of the encoder, and falls over those of the decoder.
        shuffle_orders: while training, curves change places at every stage, drawn from torch's generator.
        enable_rpe: a bias for relative positions in the attention.
        enable_flash, upcast_attention, upcast_softmax: see `SerializedAttention`; no package flash-attn is needed.
        cls_mode, enc_mode: without the decoder (two names of one thing).
        pdnorm_bn, pdnorm_ln: batch norms, layer norms for each of `pdnorm_conditions`; with the other pdnorm
            arguments see `PDNorm`. The batch then has `condition`, and `context` for adaptive ones.

    `out_channels` is the width of what `forward` returns.

    In eval mode the features of a scene do not depend on the scenes beside it. For a single scene they are
    Pointcept's with flash attention, up to rounding; these differ from it on purpose: the octree is as deep as the
    scene asks, not the largest scene of the batch; a scene smaller than a patch is one patch, where Pointcept without
    flash attention shrinks the patches of all scenes to it; curves are shuffled neither in eval mode nor, anywhere,
    with shuffle_orders=False, where Pointcept's pooling always shuffles; a decoder stage cuts patches of its own size,
    where Pointcept reuses those of the encoder; attention stays in the precision of the features, where
    flash-attn rounds to float16.
    """

    def __init__(
        self,
        in_channels: int = 6,
        order: str | Sequence[str] = ("z", "z-trans"),
        stride: Sequence[int] = (2, 2, 2, 2),
        enc_depths: Sequence[int] = (2, 2, 2, 6, 2),
        enc_channels: Sequence[int] = (32, 64, 128, 256, 512),
        enc_num_head: Sequence[int] = (2, 4, 8, 16, 32),
        enc_patch_size: Sequence[int] = (48, 48, 48, 48, 48),
        dec_depths: Sequence[int] = (2, 2, 2, 2),
        dec_channels: Sequence[int] = (64, 64, 128, 256),
        dec_num_head: Sequence[int] = (4, 4, 8, 16),
        dec_patch_size: Sequence[int] = (48, 48, 48, 48),
        mlp_ratio: float = 4,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.3,
        pre_norm: bool = True,
        shuffle_orders: bool = True,
        enable_rpe: bool = False,
        enable_flash: bool = True,
        upcast_attention: bool = False,
        upcast_softmax: bool = False,
        cls_mode: bool | None = None,
        pdnorm_bn: bool = False,
        pdnorm_ln: bool = False,
        pdnorm_decouple: bool = True,
        pdnorm_adaptive: bool = False,
        pdnorm_affine: bool = True,
        pdnorm_conditions: Sequence[str] = ("ScanNet", "S3DIS", "Structured3D"),
        enc_mode: bool = False,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.order = (order,) if isinstance(order, str) else tuple(order)
        self.shuffle_orders = shuffle_orders
        self.enc_mode = enc_mode if cls_mode is None else cls_mode
        for curve in self.order:
            if curve not in ORDERS:
                raise ValueError(f"PT-v3m1: no curve {curve!r} in order; {near_names(curve, ORDERS)}")
        stages = len(enc_depths)
        _check_lengths(stages, enc_channels=enc_channels, enc_num_head=enc_num_head, enc_patch_size=enc_patch_size)
        _check_lengths(stages - 1, stride=stride)
        if not self.enc_mode:
            decoder = dict(dec_depths=dec_depths, dec_channels=dec_channels, dec_num_head=dec_num_head)
            _check_lengths(stages - 1, **decoder, dec_patch_size=dec_patch_size)
        if enable_flash:
            _announce_attention()

        pdnorm = dict(conditions=tuple(pdnorm_conditions), decouple=pdnorm_decouple, adaptive=pdnorm_adaptive)
        batch_norm = partial(nn.BatchNorm1d, eps=1e-3, momentum=0.01)
        if pdnorm_bn:
            batch_norm = partial(PDNorm, norm_layer=partial(batch_norm, affine=pdnorm_affine), **pdnorm)
        layer_norm = nn.LayerNorm
        if pdnorm_ln:
            layer_norm = partial(PDNorm, norm_layer=partial(layer_norm, elementwise_affine=pdnorm_affine), **pdnorm)
        block = partial(
            Block, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, qk_scale=qk_scale, attn_drop=attn_drop, proj_drop=proj_drop,
            pre_norm=pre_norm, enable_rpe=enable_rpe, upcast_attention=upcast_attention, upcast_softmax=upcast_softmax,
            norm_layer=layer_norm,
        )  # fmt: skip

        def blocks(stage: int, rates: Sequence[float], *sizes: int) -> dict[str, Block]:
            return {
                f"block{i}": block(
                    *sizes, drop_path=rate, order_index=i % len(self.order), cpe_indice_key=f"stage{stage}"
                )
                for i, rate in enumerate(rates)
            }

        self.embedding = Embedding(in_channels, enc_channels[0], batch_norm)
        self.enc = nn.ModuleDict()
        rates = _rates(drop_path, enc_depths)
        for s, sizes in enumerate(zip(enc_channels, enc_num_head, enc_patch_size, strict=True)):
            down = {"down": SerializedPooling(*enc_channels[s - 1 : s + 1], stride[s - 1], batch_norm)} if s else {}
            self.enc[f"enc{s}"] = nn.ModuleDict(down | blocks(s, rates[s], *sizes))
        self.out_channels = enc_channels[-1]
        if self.enc_mode:
            return
        self.dec = nn.ModuleDict()
        rates = _rates(drop_path, dec_depths)
        for s in reversed(range(stages - 1)):
            up = {"up": SerializedUnpooling(self.out_channels, enc_channels[s], dec_channels[s], batch_norm)}
            sizes = dec_channels[s], dec_num_head[s], dec_patch_size[s]
            self.dec[f"dec{s}"] = nn.ModuleDict(up | blocks(s, rates[s][::-1], *sizes))
            self.out_channels = dec_channels[s]

    def forward(self, input_dict: Mapping[str, Any]) -> Tensor | dict[str, Any]:
        """Features of `grid_coord` [N, 3] (int, 0 to 2^20 - 2), `feat` [N, in_channels], `offset` [B] int64.

        Returns: [N, out_channels]. With `enc_mode` what Pointcept's Point holds: a dict with `feat`
            [M, out_channels] of the M cells of the coarsest grid, their `grid_coord`, `batch` and `offset`, and
            unless there is one stage alone `pooling_inverse` [M'], the cell of each row one stage finer, and
            `pooling_parent`, the same dict of that stage.
        Raises: KeyError or ValueError where an entry is missing or does not fit.
        """
        grid_coord, feat, offset = packed_points("PT-v3m1", input_dict, self.in_channels)
        shuffle = self.shuffle_orders and self.training
        level = Level.serialize(grid_coord, offset, self.order, shuffle)
        level.condition, level.context = _condition(input_dict.get("condition")), input_dict.get("context")
        need_two_cells(self, "PT-v3m1", len(feat))
        feat = self.embedding(feat, level)
        passed: list[tuple[Tensor, Level, Tensor]] = []
        for stage in self.enc.values():
            for name, module in stage.items():
                if name == "down":
                    skip, finer = feat, level
                    feat, level, inverse = module(skip, finer, shuffle)
                    passed.append((skip, finer, inverse))
                else:
                    feat = module(feat, level)
        if self.enc_mode:
            return _chain(feat, level, passed)
        for stage in self.dec.values():
            for name, module in stage.items():
                if name == "up":
                    skip, finer, inverse = passed.pop()
                    feat, level = module(feat, level, skip, finer, inverse), finer
                else:
                    feat = module(feat, level)
        return feat


def _check_lengths(wanted: int, **by_stage: Sequence[int]) -> None:
    for name, values in by_stage.items():
        if len(values) != wanted:
            raise ValueError(
                f"PT-v3m1: {name} must have {wanted} entries, since enc_depths has one for each stage and decoder and "
                f"stride one less; got {tuple(values)}"
            )


def _rates(drop_path: float, depths: Sequence[int]) -> list[list[float]]:
    """The drop rate of every block, from 0 to `drop_path`, by stage."""
    rates = torch.linspace(0, drop_path, sum(depths)).tolist()
    return [rates[start:end] for start, end in pairwise(accumulate(depths, initial=0))]


def _condition(condition: Any) -> str | None:
    """One name from `condition`, a string or what `collate` lists: one for each scene."""
    if condition is None or isinstance(condition, str):
        return condition
    if len(set(condition)) > 1:
        raise ValueError(
            f"PT-v3m1: the scenes of a batch must have one condition, got {', '.join(sorted(set(condition)))}"
        )
    return condition[0]


def _chain(feat: Tensor, level: Level, passed: Sequence[tuple[Tensor, Level, Tensor]]) -> dict[str, Any]:
    """The encoder's output by stage, each dict with its finer one as parent."""

    def entry(feat: Tensor, level: Level) -> dict[str, Any]:
        return dict(feat=feat, grid_coord=level.grid_coord, batch=level.batch, offset=level.offset)

    inverses = [inverse for _, _, inverse in passed]
    chain = [entry(skip, finer) for skip, finer, _ in passed] + [entry(feat, level)]
    for parent, inverse, child in zip(chain, inverses, chain[1:], strict=False):
        child.update(pooling_parent=parent, pooling_inverse=inverse)
    return chain[-1]


@cache
def _announce_attention() -> None:
    get_root_logger().info("PT-v3m1: attention by torch's scaled_dot_product_attention; flash-attn is not needed")

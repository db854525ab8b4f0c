"""The layers of Point Transformer V3: attention in patches of a serialized cloud, its block, pooling and unpooling.

They take the features [N, C] and the `Level` the points stand on. Parameters are named as in Pointcept.

Source: X. Wu et al., Point Transformer V3: Simpler, Faster, Stronger, CVPR 2024.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.models.layers.inputs import need_two_cells
from pointcept3m.models.layers.sparse import SparseModule, SubMConv3d
from pointcept3m.ops import segment_csr
from pointcept3m.structures.level import Level
from pointcept3m.utils.registry import near_names

Norm = Callable[[int], nn.Module]


class LevelModule(nn.Module):
    """A module that takes features [N, C] and their `Level`, and returns features."""


class LevelSequential(LevelModule, nn.Sequential):
    """nn.Sequential in which some modules want the level and some, sparse convolutions, the voxels."""

    def forward(self, feat: Tensor, level: Level) -> Tensor:
        for module in self:
            if isinstance(module, LevelModule):
                feat = module(feat, level)
            elif isinstance(module, SparseModule):
                feat = module(level.voxels(feat)).features
            else:
                feat = module(feat)
        return feat


class PDNorm(LevelModule):
    """A norm layer for each data set ("condition"), and a scale and shift that a context decides.

    decouple: one norm for each of `conditions`; else one for all. adaptive: `level.context` [1, context_channels]
    is projected to a scale and a shift.

    Raises, when called: KeyError or ValueError where the batch names no condition or one that is not known.
    Source: X. Wu et al., Towards Large-scale 3D Representation Learning with Multi-dataset Point Prompt Training.
    """

    def __init__(
        self,
        num_features: int,
        norm_layer: Norm,
        context_channels: int = 256,
        conditions: tuple[str, ...] = ("ScanNet", "S3DIS", "Structured3D"),
        decouple: bool = True,
        adaptive: bool = False,
    ):
        super().__init__()
        self.conditions, self.decouple, self.adaptive = tuple(conditions), decouple, adaptive
        self.norm = (
            nn.ModuleList(norm_layer(num_features) for _ in conditions) if decouple else norm_layer(num_features)
        )
        if adaptive:
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(context_channels, 2 * num_features))

    def forward(self, feat: Tensor, level: Level) -> Tensor:
        norm = self.norm
        if self.decouple:
            if level.condition is None:
                raise KeyError(f"PDNorm: the batch needs 'condition', one of {', '.join(self.conditions)}")
            if level.condition not in self.conditions:
                raise ValueError(
                    f"PDNorm: no condition {level.condition!r}; {near_names(level.condition, self.conditions)}"
                )
            norm = norm[self.conditions.index(level.condition)]
        feat = norm(feat)
        if self.adaptive:
            if level.context is None:
                raise KeyError("PDNorm: adaptive norms need 'context' [1, C] in the batch")
            shift, scale = self.modulation(level.context).chunk(2, dim=1)
            feat = feat * (1 + scale) + shift
        return feat


class DropPath(nn.Module):
    """While training, sets a row of the residual branch to 0 with probability `rate` and scales the others up."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, feat: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return feat
        keep = 1 - self.rate
        return feat * feat.new_empty(feat.size(0), 1).bernoulli_(keep).div_(max(keep, 1e-6))

    def extra_repr(self) -> str:
        return f"{self.rate}"


class RPE(nn.Module):
    """A learned bias for the distance, in cells along each axis, between the points of a patch."""

    def __init__(self, patch_size: int, num_heads: int):
        super().__init__()
        self.pos_bnd = int((4 * patch_size) ** (1 / 3) * 2)
        self.rpe_num = 2 * self.pos_bnd + 1
        self.rpe_table = nn.Parameter(torch.empty(3 * self.rpe_num, num_heads))
        nn.init.trunc_normal_(self.rpe_table, std=0.02)

    def forward(self, coord: Tensor) -> Tensor:
        """The bias [P, heads, K, K] of patches with cells `coord` int64 [P, K, 3]."""
        apart = (coord[:, :, None] - coord[:, None]).clamp_(-self.pos_bnd, self.pos_bnd) + self.pos_bnd
        tables = self.rpe_table.split(self.rpe_num)
        return sum(table[apart[..., axis]] for axis, table in enumerate(tables)).permute(0, 3, 1, 2)


class SerializedAttention(LevelModule):
    """Multi-head self-attention within patches of `patch_size` points in the sequence of curve `order_index`.

    Torch's scaled_dot_product_attention computes it. On a GPU in half precision that is FlashAttention, so
    `enable_flash` of Pointcept's configs asks for nothing more. upcast_attention, upcast_softmax: the whole
    attention in float32.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        patch_size: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        order_index: int = 0,
        enable_rpe: bool = False,
        upcast_attention: bool = False,
        upcast_softmax: bool = False,
    ):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"PT-v3m1: {channels} channels do not divide into {num_heads} heads")
        if patch_size < 1:
            raise ValueError(f"PT-v3m1: patch sizes must be positive, got {patch_size}")
        self.num_heads, self.patch_size, self.order_index = num_heads, patch_size, order_index
        self.scale = qk_scale or (channels // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.upcast = upcast_attention or upcast_softmax
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(proj_drop)
        self.rpe = RPE(patch_size, num_heads) if enable_rpe else None

    def forward(self, feat: Tensor, level: Level) -> Tensor:
        patches = level.patches(self.order_index, self.patch_size)
        qkv = self.qkv(_rows(feat, patches.point))  # rows are moved before they grow threefold
        coord = None if self.rpe is None else level.grid_coord[patches.point]
        cut, parts = patches.num_full * patches.size, []
        if patches.num_full:
            parts.append(self._attend(qkv[:cut], patches.size, coord if coord is None else coord[:cut], None))
        if patches.num_short:
            rest = coord if coord is None else coord[cut:]
            parts.append(self._attend(qkv[cut:], patches.short_size, rest, patches.valid))
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return self.proj_drop(self.proj(_rows(out, patches.slot)))

    def _attend(self, qkv: Tensor, size: int, coord: Tensor | None, valid: Tensor | None) -> Tensor:
        """[slots, C] from qkv [slots, 3 C], patch by patch; `valid` [P, size] says which slots are looked at."""
        dtype = qkv.dtype
        heads = qkv.unflatten(1, (3, self.num_heads, -1)).unflatten(0, (-1, size)).permute(2, 0, 3, 1, 4)
        bias = None if self.rpe is None else self.rpe(coord.unflatten(0, (-1, size)))
        with torch.autocast(qkv.device.type, enabled=False):
            query, key, value = (heads.float() if self.upcast else heads).unbind(0)
            mask = None if bias is None else bias.to(query.dtype)
            if valid is not None and not valid.all():
                seen = valid[:, None, None]
                mask = seen if mask is None else mask.masked_fill(~seen, -torch.inf)
            drop = self.attn_drop if self.training else 0.0
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=drop, scale=self.scale)
        return out.transpose(1, 2).flatten(2).flatten(0, 1).to(dtype)


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden_channels: int, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_channels, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, feat: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(feat)))))


class Block(LevelModule):
    """Conditional position encoding (a sparse convolution), attention and MLP, each with a shortcut.

    pre_norm: whether norms stand before attention and MLP or behind their sums. Blocks with one `cpe_indice_key` on
    one level share a rulebook.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        patch_size: int,
        mlp_ratio: float,
        norm_layer: Norm,
        drop_path: float,
        pre_norm: bool,
        cpe_indice_key: str,
        proj_drop: float = 0.0,
        **attention: object,
    ):
        super().__init__()
        self.pre_norm = pre_norm
        self.cpe = LevelSequential(
            SubMConv3d(channels, channels, 3, indice_key=cpe_indice_key),
            nn.Linear(channels, channels),
            norm_layer(channels),
        )
        self.norm1 = LevelSequential(norm_layer(channels))
        self.attn = SerializedAttention(channels, num_heads, patch_size, proj_drop=proj_drop, **attention)
        self.norm2 = LevelSequential(norm_layer(channels))
        self.mlp = LevelSequential(MLP(channels, int(channels * mlp_ratio), proj_drop))
        self.drop_path = LevelSequential(DropPath(drop_path))

    def forward(self, feat: Tensor, level: Level) -> Tensor:
        feat = feat + self.cpe(feat, level)
        for norm, branch in ((self.norm1, self.attn), (self.norm2, self.mlp)):
            shortcut = feat
            if self.pre_norm:
                feat = norm(feat, level)
            feat = shortcut + self.drop_path(branch(feat, level), level)
            if not self.pre_norm:
                feat = norm(feat, level)
        return feat


class SerializedPooling(LevelModule):
    """To the grid `stride` times as coarse: a linear layer, the maximum over each cell, norm and GELU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm_layer: Norm):
        super().__init__()
        if stride < 1 or stride & stride - 1:
            raise ValueError(f"PT-v3m1: stride must be a power of 2, got {stride}")
        self.stride = stride
        self.proj = nn.Linear(in_channels, out_channels)
        self.norm = LevelSequential(norm_layer(out_channels))
        self.act = LevelSequential(nn.GELU())

    def forward(self, feat: Tensor, level: Level, shuffle: bool = False) -> tuple[Tensor, Level, Tensor]:
        """Features [M, C'], their level, and the row [N] there of each row that came in."""
        coarser, cells = level.pool(self.stride, shuffle)
        need_two_cells(self, "PT-v3m1", len(coarser.batch))
        feat = segment_csr(_rows(self.proj(feat), cells.order), cells.start, reduce="max")
        return self.act(self.norm(feat, coarser), coarser), coarser, cells.inverse


class SerializedUnpooling(LevelModule):
    """Back to the finer grid: each point gets its cell's features and its own from the encoder, both projected."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, norm_layer: Norm):
        super().__init__()
        self.proj, self.proj_skip = (
            LevelSequential(nn.Linear(channels, out_channels), norm_layer(out_channels), nn.GELU())
            for channels in (in_channels, skip_channels)
        )

    def forward(self, feat: Tensor, level: Level, skip: Tensor, finer: Level, inverse: Tensor) -> Tensor:
        return self.proj_skip(skip, finer) + _rows(self.proj(feat, level), inverse)


def _rows(feat: Tensor, index: Tensor) -> Tensor:
    """`feat[index]` with a gradient that is summed in a fixed order, and fast."""
    return torch.ops.pointcept3m.gather_rows(feat.contiguous(), index)

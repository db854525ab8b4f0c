"""I2P-MAE's hierarchical encoder of point clouds, with the weights that Point-Bind trained (what CrossOver freezes)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pointcept3m.models.builder import SHAPE_ENCODERS
from pointcept3m.models.shapes.base import ShapeEncoder
from pointcept3m.models.teachers.base import choose_source, load_exactly, read_weights
from pointcept3m.ops import farthest_point_sampling, knn_query

GROUPS, SIZES = (512, 256, 64), (48, 24, 24)  # tokens of each stage, and points (or tokens) that make one
DIMS, DEPTH, HEADS = (96, 192, 384), 5, 6
RADII = (0.24, 0.48, 0.96)  # tokens farther apart do not attend to each other
PREFIX = "point_encoder."  # of the encoder within Point-Bind's whole checkpoint
HOW = (
    "Download 'pointbind_i2pmae.pt', to which the READMEs of Point-Bind (github.com/ZiyuGuo99/Point-Bind_Point-LLM) and CrossOver "
    "(github.com/GradientSpaces/CrossOver) link, and pass weight='<path>'"
)


class TokenEmbed(nn.Module):
    """Groups [B, G, K, C] -> tokens [B, G, D]: a small PointNet over the K members of each group."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        first, middle, second = (128, 256, 512) if c_in == 3 else (c_in, c_in, c_out)
        self.first_conv = nn.Sequential(nn.Conv1d(c_in, first, 1), nn.BatchNorm1d(first), nn.ReLU(), nn.Conv1d(first, middle, 1))
        self.second_conv = nn.Sequential(nn.Conv1d(2 * middle, second, 1), nn.BatchNorm1d(second), nn.ReLU(), nn.Conv1d(second, c_out, 1))

    def forward(self, groups: torch.Tensor) -> torch.Tensor:
        members = self.first_conv(groups.flatten(0, 1).transpose(1, 2))
        pooled = members.amax(2, keepdim=True).expand_as(members)
        return self.second_conv(torch.cat([pooled, members], dim=1)).amax(2).unflatten(0, groups.shape[:2])


class Attention(nn.Module):
    """Self-attention among tokens that `allowed` [B, 1, G, G] lets see each other."""

    def __init__(self, dim: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp, self.attn = Mlp(dim), Attention(dim)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), allowed)
        return x + self.mlp(self.norm2(x))


class Stage(nn.Module):
    """`DEPTH` blocks, before each of which the position embedding is added anew."""

    def __init__(self, dim: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim) for _ in range(DEPTH))

    def forward(self, x: torch.Tensor, position: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x + position, allowed)
        return x


class HierarchicalEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embed = nn.ModuleList(TokenEmbed(c_in, c_out) for c_in, c_out in zip((3, *DIMS), DIMS, strict=False))
        self.encoder_pos_embeds = nn.ModuleList(nn.Sequential(nn.Linear(3, dim), nn.GELU(), nn.Linear(dim, dim)) for dim in DIMS)
        self.encoder_blocks = nn.ModuleList(Stage(dim) for dim in DIMS)


class I2PMAENet(nn.Module):
    """Points [B, N >= 512, 3] -> vectors [B, 384]. Names of parameters are those of the published checkpoint.

    Centres are farthest points, a group is a centre's nearest points; later stages group the centres before them. The
    output is mean plus maximum of the 64 normalised tokens of the last stage.
    """

    def __init__(self):
        super().__init__()
        self.h_encoder = HierarchicalEncoder()
        self.norm = nn.LayerNorm(DIMS[-1])

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        tokens, parts = None, self.h_encoder
        for stage, (groups, size) in enumerate(zip(GROUPS, SIZES, strict=True)):
            center, rows = group(points, groups, size)
            if tokens is None:
                members = take(points, rows) - center[:, :, None]
            else:
                members = take(tokens, rows)
            tokens = parts.token_embed[stage](members)
            apart = torch.cdist(center, center, compute_mode="donot_use_mm_for_euclid_dist")
            tokens = parts.encoder_blocks[stage](tokens, parts.encoder_pos_embeds[stage](center), (apart < RADII[stage])[:, None])
            points = center
        tokens = self.norm(tokens)
        return tokens.mean(1) + tokens.amax(1)


def group(points: torch.Tensor, groups: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(centres [B, groups, 3], rows int64 [B, groups, size] of each one's nearest points) of clouds [B, N, 3]."""
    items, count = points.shape[:2]
    flat = points.flatten(0, 1).contiguous()
    ends = torch.arange(1, items + 1, device=points.device)
    chosen = farthest_point_sampling(flat, ends * count, ends * groups).long()
    center = flat[chosen]
    rows = knn_query(size, flat, ends * count, center, ends * groups)[0].long()
    first = (ends - 1) * count
    return center.unflatten(0, (items, groups)), rows.unflatten(0, (items, groups)) - first[:, None, None]


def take(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """values [B, N, C] at rows [B, G, K]: [B, G, K, C]."""
    index = rows.flatten(1)[..., None].expand(-1, -1, values.shape[2])
    return torch.gather(values, 1, index).unflatten(1, rows.shape[1:])


@SHAPE_ENCODERS.register_module()
class I2PMAE(ShapeEncoder):
    """Shapes to vectors, 384-d, as Point-Bind and CrossOver (Sec. 4, "Implementation Details") freeze them.

    weight: Point-Bind's checkpoint `pointbind_i2pmae.pt` (of which the entries `point_encoder.*` are taken), or a state
        dict of the encoder alone. random_init: no weights, for tests only.

    Source: Zhang et al., "Learning 3D Representations from 2D Pre-trained Models via Image-to-Point Masked Autoencoders",
    CVPR 2023; 12.7 M parameters. Its CUDA sampling leaves out points within 3 cm of the centre and starts with the first
    point; ours starts there and leaves none out.
    """

    dim = DIMS[-1]
    name = "i2pmae"
    max_batch = 8  # a group's activations take 50 MB an object

    def __init__(self, weight: str | Path | None = None, random_init: bool = False, num_points: int = 1024, max_batch: int = 8):
        choose_source("I2PMAE", weight, None, random_init, HOW, what="shape encoder")
        if num_points < GROUPS[0]:
            raise ValueError(f"I2PMAE groups points around {GROUPS[0]} centres; num_points must be at least that, got {num_points}")
        self.num_points, self.max_batch = int(num_points), int(max_batch)
        network = I2PMAENet()
        if weight:
            load_exactly(network, encoder_weights(read_weights(weight, HOW), network), str(weight))
        self.network = network.eval().requires_grad_(False)


def encoder_weights(weights: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """The encoder's tensors of Point-Bind's checkpoint, or of a file of the encoder alone; counters of batches may be absent."""
    if any(key.startswith(PREFIX) for key in weights):
        weights = {key.removeprefix(PREFIX): value for key, value in weights.items() if key.startswith(PREFIX)}
    counters = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    return {**counters, **weights}

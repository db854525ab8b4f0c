"""Objects of a scene attend to each other by where they stand (CrossOver Sec. 3.1).

Source: the layers are those of S. Chen et al., Language Conditioned Spatial Relation Reasoning, NeurIPS 2022, as 3D-VisTA
(ICCV 2023) and SceneVerse (2024) use them: attention that a sigmoid of spatial relations, weighed by each query, gates.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.ops.offsets import offset_to_batch

RELATIONS = 5
SMALLEST_BUCKET = 16


def pairwise_relations(centers: Tensor, known: Tensor) -> Tensor:
    """[B, K, K, 5] relations of every pair of objects: d = c_i - c_j gives |d| / max |d|, d_z / |d|, |d_xy| / |d|, d_y / |d_xy|, d_x / |d_xy|.

    centers [B, K, 3] metres, known bool [B, K]; the maximum is over a scene's known pairs (in the release padded slots, which stand
    at the origin, count too, so that a scene's relations depend on its batch). They do not change with a shift of the scene, and all
    but the last two not with a turn about z.
    """
    d = centers[:, :, None] - centers[:, None]
    distance = d.square().sum(-1).add(1e-10).sqrt()
    flat = d[..., :2].square().sum(-1).add(1e-10).sqrt()
    pairs = known[:, :, None] & known[:, None]
    largest = torch.where(pairs, distance, 0.0).flatten(1).amax(1).clamp(min=1e-5)
    parts = (distance / largest[:, None, None], d[..., 2] / distance, flat / distance, d[..., 1] / flat, d[..., 0] / flat)
    return torch.stack(parts, dim=-1)


class SpatialAttention(nn.Module):
    """Attention whose weights are softmax(log s_ij + q_i k_j / sqrt(d)), with s_ij = sigmoid(b_i + w_i . r_ij), at least 1e-6.

    r_ij are the relations of `pairwise_relations`; each query gives a bias b and 5 weights w for every head. The result is added to
    what came in and normalised.
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.relation = nn.Linear(dim, heads * (RELATIONS + 1))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, relations: Tensor, known: Tensor) -> Tensor:
        """x [B, K, dim], relations [B, K, K, 5], known bool [B, K] -> [B, K, dim]."""
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weight = self.relation(x).unflatten(-1, (self.heads, RELATIONS + 1)).transpose(1, 2)
        gate = torch.einsum("bhif,bijf->bhij", weight[..., 1:], relations) + weight[..., :1]
        # max(log s, log 1e-6) without a sigmoid that rounds to 0
        logits = F.logsigmoid(gate).clamp(min=math.log(1e-6)) + query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        logits = logits.masked_fill(~known[:, None, None, :], -math.inf)
        attention = logits.float().softmax(dim=-1).to(value.dtype)
        return self.norm(x + self.dropout(self.out((attention @ value).transpose(1, 2).flatten(2))))


class SpatialLayer(nn.Module):
    """Attention and two linear maps. As in the source, what attention has added to its input and normalised is added to the input
    and normalised once more."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.attention = SpatialAttention(dim, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward), nn.Linear(feedforward, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, relations: Tensor, known: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, relations, known)))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(x))))))


class SpatialTransformer(nn.Module):
    """Object tokens with the context of their scene.

    dim, heads, layers, feedforward, dropout: 384, 12, 4, 2048, 0.1 in the release.
    location: "concat" puts an object's location beside its feature (the paper), "add" adds it before every layer (the release).
    centred: locations count from the mean of the scene's objects, so that a shift of the scene changes nothing; the release
        takes the scan's own origin (centred=False).
    """

    def __init__(
        self, dim: int = 384, heads: int = 12, layers: int = 4, feedforward: int = 2048, dropout: float = 0.1,
        location: str = "concat", centred: bool = True,
    ):  # fmt: skip
        super().__init__()
        if location not in ("concat", "add"):
            raise ValueError(f"SpatialTransformer: location must be 'concat' or 'add', got {location!r}")
        if dim % heads:
            raise ValueError(f"SpatialTransformer: dim {dim} is no multiple of its {heads} heads")
        self.location, self.centred = location, centred
        self.place = nn.Sequential(nn.Linear(6, dim), nn.LayerNorm(dim))
        self.join = nn.Linear(2 * dim, dim) if location == "concat" else None
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(SpatialLayer(dim, heads, feedforward, dropout) for _ in range(layers))

    def forward(self, feature: Tensor, box: Tensor, known: Tensor, offset: Tensor) -> Tensor:
        """feature [O, dim], box [O, 6] (centre, extent, metres), known bool [O], offset [B] -> [O, dim]; zeros where not known.

        Objects that are not known take no part; a scene's result does not depend on the others of its batch. Scenes are padded to
        the largest of those that have a like number of objects (the next power of two), so one large scene costs no more than itself.
        """
        rows = torch.nonzero(known).flatten()
        result = feature * 0
        if not len(rows):
            return result
        scene = offset_to_batch(offset)[rows]
        count = torch.bincount(scene, minlength=len(offset))
        slot = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[scene]
        bucket = torch.where(count > 0, torch.log2(count.clamp(min=SMALLEST_BUCKET).double()).ceil().long(), -1)
        for size in bucket[bucket >= 0].unique().tolist():
            chosen = torch.nonzero(bucket == size).flatten()
            number = torch.full_like(count, -1)
            number[chosen] = torch.arange(len(chosen), device=rows.device)
            mine = torch.nonzero(number[scene] >= 0).flatten()
            place = (number[scene[mine]], slot[mine])
            shape = (len(chosen), int(count[chosen].max()))
            mask = torch.zeros(shape, dtype=torch.bool, device=feature.device)
            mask[place] = True
            tokens = feature.new_zeros(*shape, feature.shape[1]).index_put(place, feature[rows[mine]])
            boxes = box.new_zeros(*shape, 6).index_put(place, box[rows[mine]])
            attended = self._attend(tokens, boxes, mask)[place]
            result = result.index_put((rows[mine],), attended.to(feature.dtype))
        return result

    def _attend(self, x: Tensor, box: Tensor, known: Tensor) -> Tensor:
        centers, extent = box[..., :3], box[..., 3:]
        relations = pairwise_relations(centers, known).to(x.dtype)
        if self.centred:
            total = (centers * known[..., None]).sum(1, keepdim=True)
            centers = centers - total / known.sum(1)[:, None, None]
        place = self.place(torch.cat([centers, extent], dim=-1).to(x.dtype))
        x = self.dropout(x)
        if self.join is not None:
            x = self.join(torch.cat([x, place], dim=-1))
        for layer in self.layers:
            x = layer(x if self.join is not None else x + place, relations, known)
        return x

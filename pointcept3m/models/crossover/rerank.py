"""Floorplans against scans, patch by patch: the second stage of floorplan retrieval, which the first stage's vectors cannot see.

"Matching + ranking" is how the authors' talk names it; neither paper nor code of it is out. This design is ours: patches of a plan
and of a scan from above are embedded by small networks, compared in their neighbourhood in each of four quarter turns, and what
agrees where becomes a score; matching is taught by places that are the same, ranking by a listwise loss over candidates.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.models.builder import MODELS

PLAN_CHANNELS, SCAN_CHANNELS, TURNS = 2, 3, 4


class PatchEncoder(nn.Module):
    """A raster [N, C, S, S] to patches [N, D, S/4, S/4] of length 1, and how much each matters [N, 1, S/4, S/4], from 0 up."""

    def __init__(self, in_channels: int, dim: int, stem: int = 16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, stem, 5, 2, 2), nn.GroupNorm(4, stem), nn.ReLU(), nn.Conv2d(stem, dim, 3, 2, 1), nn.GroupNorm(4, dim))
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(dim, dim, 3, 1, 1), nn.GroupNorm(4, dim), nn.ReLU(), nn.Conv2d(dim, dim, 3, 1, 1))
        self.patch, self.weight = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = x + self.block(x)
        return F.normalize(self.patch(x), dim=1), F.softplus(self.weight(x))


@MODELS.register_module("CrossOver-rerank-v1m1")
class PlanReranker(nn.Module):
    """Scores of scans for a floorplan.

    size, cell: of the rasters (cells, metres), as PlanPairDataset has them. dim: of a patch. reach: patches further off than so many
    are not compared. match_weight: of the matching loss beside the ranking loss. temperature: of the matching loss.
    """

    task = "rerank"

    def __init__(self, size: int = 64, cell: float = 0.15, dim: int = 32, reach: int = 1, match_weight: float = 0.5, temperature: float = 0.1):
        super().__init__()
        if size < 16 or size % 4 or dim % 4:
            raise ValueError(f"CrossOver-rerank: size must be 16 or more and in fours, dim in fours, got {size} and {dim}")
        self.size, self.cell, self.reach, self.match_weight, self.temperature = size, cell, reach, match_weight, temperature
        self.plan_encoder, self.scan_encoder = PatchEncoder(PLAN_CHANNELS, dim), PatchEncoder(SCAN_CHANNELS, dim)
        near = (2 * reach + 1) ** 2
        self.agree = nn.Sequential(nn.Conv2d(near + 2, 24, 3, 1, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1), nn.ReLU())
        self.score = nn.Linear(2 * 24, 1)

    def encode_plans(self, plans: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [N, D, H, H] and weights [N, 1, H, H] of rasters [N, 2, S, S]; H = S / 4."""
        return self.plan_encoder(self._checked(plans, PLAN_CHANNELS, "plan"))

    def encode_scans(self, scans: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [N, 4, D, H, H] and weights [N, 4, 1, H, H] of rasters [N, 3, S, S] in each of four quarter turns (counter-clockwise)."""
        scans = self._checked(scans, SCAN_CHANNELS, "scan")
        turned = torch.stack([torch.rot90(scans, quarter, (2, 3)) for quarter in range(TURNS)], dim=1)
        patch, weight = self.scan_encoder(turned.flatten(0, 1))
        return patch.unflatten(0, (-1, TURNS)), weight.unflatten(0, (-1, TURNS))

    def compare(self, plans: tuple[Tensor, Tensor], scans: tuple[Tensor, Tensor]) -> Tensor:
        """Scores [N] of N pairs of what `encode_plans` and `encode_scans` gave: a soft maximum over the four turns."""
        return self.turn_scores(plans, scans).logsumexp(dim=1) - math.log(TURNS)

    def turn_scores(self, plans: tuple[Tensor, Tensor], scans: tuple[Tensor, Tensor]) -> Tensor:
        """Scores [N, 4] of each quarter turn of N pairs."""
        (plan, plan_weight), (scan, scan_weight) = plans, scans
        count, turns, dim, height, width = scan.shape
        reach, side = self.reach, 2 * self.reach + 1
        padded = F.pad(scan.flatten(0, 1), (reach,) * 4).unflatten(0, (count, turns))
        near = [
            (plan[:, None] * padded[..., y : y + height, x : x + width]).sum(2) for y in range(side) for x in range(side)
        ]  # cosine of each patch of the plan with the scan's patches around its place
        maps = torch.stack([*near, plan_weight.expand(-1, turns, -1, -1), scan_weight[:, :, 0]], dim=2)
        agreed = self.agree(maps.flatten(0, 1))
        pooled = torch.cat([agreed.mean((2, 3)), agreed.amax((2, 3))], dim=1)
        return self.score(pooled).reshape(count, turns)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """loss, rank_loss (listwise: the own scan among a plan's candidates, the own plan among those of the batch), match_loss."""
        plans = self.encode_plans(batch["plan"])
        scans = batch["scans"]
        count, candidates = scans.shape[:2]
        encoded = [part.unflatten(0, (count, candidates)) for part in self.encode_scans(scans.flatten(0, 1))]
        own = torch.zeros(count, dtype=torch.int64, device=scans.device)
        scores = self.compare(_each(plans, candidates), tuple(part.flatten(0, 1) for part in encoded)).reshape(count, candidates)
        rank = F.cross_entropy(scores, own) + self._across(plans, [part[:, 0] for part in encoded], batch["place"])
        match = self.match(plans, [part[:, 0] for part in encoded], batch["turn"])
        return {"loss": rank + self.match_weight * match, "rank_loss": rank.detach(), "match_loss": match.detach()}

    def _across(self, plans: Sequence[Tensor], scans: Sequence[Tensor], places: Sequence[str]) -> Tensor:
        """The listwise loss of a scan over the plans of a batch: its own must come first. Other plans of its place do not take part."""
        count = len(places)
        scores = self.compare(_each(plans, count), _all(scans, count)).reshape(count, count)
        same = torch.tensor([[a == b for b in places] for a in places], device=scores.device) & ~torch.eye(count, dtype=torch.bool, device=scores.device)
        return F.cross_entropy(scores.masked_fill(same, -torch.inf).T, torch.arange(count, device=scores.device))

    def match(self, plans: Sequence[Tensor], scans: Sequence[Tensor], turn: Tensor) -> Tensor:
        """The matching loss: a patch of the plan finds its own place among all patches of its scan in the right turn [B]. Patches that
        matter more to both count for more."""
        plan, plan_weight = plans
        scan, scan_weight = (part[torch.arange(len(turn), device=turn.device), turn] for part in scans)
        logits = plan.flatten(2).transpose(1, 2) @ scan.flatten(2) / self.temperature
        place = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        each = F.cross_entropy(logits.flatten(0, 1), place.flatten(), reduction="none").reshape(place.shape)
        weight = (plan_weight * scan_weight).flatten(1).detach()
        return (each * weight).sum() / weight.sum().clamp(min=1e-6)

    def _checked(self, rasters: Tensor, channels: int, what: str) -> Tensor:
        if rasters.dim() != 4 or tuple(rasters.shape[1:]) != (channels, self.size, self.size):
            raise ValueError(f"CrossOver-rerank: a {what} must be a raster [{channels}, {self.size}, {self.size}], got {list(rasters.shape[1:])}")
        return rasters.float()



def _each(parts: Sequence[Tensor], times: int) -> tuple[Tensor, Tensor]:
    """Row 0 `times` times, then row 1, ..."""
    return tuple(part[:, None].expand(-1, times, *part.shape[1:]).flatten(0, 1) for part in parts)


def _all(parts: Sequence[Tensor], times: int) -> tuple[Tensor, Tensor]:
    """All rows, and all again, `times` times."""
    return tuple(part[None].expand(times, *part.shape).flatten(0, 1) for part in parts)

"""CrossOver's scene level: the modalities of a scene's objects fused into one vector F_S (Sec. 3.2, Eq. 2)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.models.crossover.layers import ProjectionHead


class SceneFusion(nn.Module):
    """F_S of the modalities' mean features.

    rule: "paper": modality q weighs exp(w_q) / sum over j != q of exp(w_j) (Eq. 2); "softmax": the sum over all j, as in the
        released code.
    renormalise: with missing modalities both sums run over those that a scene has, and a lone one weighs 1 (Eq. 2 leaves it no
        denominator). The release does not: a missing modality adds a zero and keeps its share.
    normalise: means are brought to length 1 before they are weighed, as the release does; the paper names averages alone.

    Eq. 2's factors do not sum to 1: with Q equal weights each is 1 / (Q - 1). The projection head that follows takes any scale.
    """

    def __init__(self, modalities: Sequence[str], dim: int, rule: str = "paper", renormalise: bool = True, normalise: bool = False):
        super().__init__()
        if rule not in ("paper", "softmax"):
            raise ValueError(f"SceneFusion: rule must be 'paper' or 'softmax', got {rule!r}")
        self.modalities, self.rule, self.renormalise, self.normalise = tuple(modalities), rule, renormalise, normalise
        self.weight = nn.Parameter(torch.ones(len(self.modalities)))
        self.head = ProjectionHead(dim, dim)

    def weights(self, known: Tensor) -> Tensor:
        """The factor [B, Q] of each modality, 0 where a scene lacks it; known bool [B, Q]."""
        power = self.weight.float().exp().expand(known.shape)
        counted = torch.where(known, power, 0.0) if self.renormalise else power
        total = counted.sum(1, keepdim=True)
        if self.rule == "softmax":
            return torch.where(known, power / total.clamp(min=1e-12), 0.0)
        alone = known.sum(1, keepdim=True) == 1
        others = total - counted
        factor = power / torch.where(others > 0, others, 1.0)
        if self.renormalise:
            factor = torch.where(alone, torch.ones_like(factor), factor)
        return torch.where(known, factor, 0.0)

    def forward(self, means: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """means [B, dim] and bool [B] by modality -> (F_S, unit rows [B, dim], bool [B] whether a scene has any modality)."""
        rows = torch.stack([means[name] for name in self.modalities], dim=1)
        if self.normalise:
            rows = F.normalize(rows, dim=-1)
        mask = torch.stack([known[name] for name in self.modalities], dim=1)
        fused = (self.weights(mask)[..., None] * torch.where(mask[..., None], rows, 0.0)).sum(1)
        return self.head(fused), mask.any(1)

"""The sum of the losses that a config lists."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pointcept3m.models.builder import LOSSES


class Criteria(nn.Module):
    """`criteria(pred, target)` is the sum of its losses, each with its own `loss_weight`."""

    def __init__(self, losses: Sequence[nn.Module]):
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        total = self.losses[0](pred, target)
        for loss in self.losses[1:]:
            total = total + loss(pred, target)
        return total


def build_criteria(cfg: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None) -> Criteria:
    """The criteria that `cfg`, one loss or a list of them, names. Raises ValueError for an empty list."""
    entries = [cfg] if isinstance(cfg, Mapping) else list(cfg or [])
    if not entries:
        raise ValueError("criteria: wanted at least one loss, for example [dict(type='CrossEntropyLoss', ignore_index=-1)]")
    return Criteria([LOSSES.build(entry) for entry in entries])

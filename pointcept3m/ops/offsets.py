"""Which scene a packed point belongs to: from `offset` [B], cumulative ends, to counts and scene numbers."""

import torch
from torch import Tensor


def offset_to_counts(offset: Tensor) -> Tensor:
    """[B] cumulative ends -> [B] points of each scene."""
    return torch.diff(offset, prepend=offset.new_zeros(1))


def offset_to_batch(offset: Tensor) -> Tensor:
    """[B] cumulative ends -> [N] int64 number of the scene each point belongs to."""
    counts = offset_to_counts(offset)
    return torch.repeat_interleave(torch.arange(len(counts), device=offset.device), counts)

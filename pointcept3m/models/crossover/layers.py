"""What all of CrossOver's models are made of: projection heads, pairs of modalities, means over a scene's rows."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.ops import segment_csr
from pointcept3m.utils.registry import near_names


def share_of(width: int, divisor: int) -> int:
    """width / divisor units, as the release's heads have between; of a narrow feature all, up to 128, since fewer would be its rank."""
    return max(width // divisor, min(width, 128))


class ProjectionHead(nn.Sequential):
    """Linear, ReLU, LayerNorm, Linear, then rows of length 1 (Sec. 3.1: "trainable projection layers"; sizes of the release).

    hidden: units between, by default half of `in_channels` (`share_of` says what narrow features get).
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int | None = None, dropout: float = 0.0):
        hidden = hidden or share_of(in_channels, 2)
        super().__init__(
            nn.Linear(in_channels, hidden), nn.ReLU(), nn.LayerNorm(hidden, eps=1e-12), nn.Dropout(dropout), nn.Linear(hidden, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x).float(), dim=-1)


class Standardize(nn.BatchNorm1d):
    """Frozen features less their mean over what was trained on, divided by their spread; learns nothing, and lives in the weights.

    Encoders put much of a vector's length into what all pictures share. Batches of training are standardised by themselves, as
    batch normalisation does, tests by the mean over all of them.
    """

    def __init__(self, width: int):
        super().__init__(width, affine=False, momentum=None)

    def forward(self, rows: Tensor, known: Tensor | None = None) -> Tensor:
        """rows [R, width], known bool [R] -> the same, zeros where not known; fewer than two rows go by the mean so far."""
        known = torch.ones(len(rows), dtype=torch.bool, device=rows.device) if known is None else known
        index = torch.nonzero(known).flatten()
        if self.training and len(index) > 1:
            made = super().forward(rows[index])
        else:
            made = F.batch_norm(rows[index], self.running_mean, self.running_var, eps=self.eps)
        return torch.zeros_like(rows).index_put((index,), made.to(rows.dtype))


def choose_pairs(pairs: str | Sequence[Sequence[str]], base: str, modalities: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The pairs of modalities that a loss aligns: "base" (Eq. 1: `base` with every other), "all", or those that are listed.

    Raises: ValueError where a modality is none of `modalities`.
    """
    if base not in modalities:
        raise ValueError(f"CrossOver: base {base!r} is none of the modalities; {near_names(base, modalities)}")
    if pairs == "base":
        return tuple((base, other) for other in modalities if other != base)
    if pairs == "all":
        return tuple(combinations(modalities, 2))
    if isinstance(pairs, str):
        raise ValueError(f"CrossOver: pairs must be 'base', 'all' or a list of pairs, got {pairs!r}")
    chosen = tuple(tuple(pair) for pair in pairs)
    for pair in chosen:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"CrossOver: a pair is two modalities, got {pair}")
        for name in pair:
            if name not in modalities:
                raise ValueError(f"CrossOver: {name!r} in pairs is no modality; {near_names(name, modalities)}")
    return chosen


def width_of(widths: Mapping[str, int], key: str) -> int:
    """The width of a kind of vector. Raises KeyError with near names, ValueError where it is not positive."""
    if key not in widths:
        raise KeyError(f"CrossOver: widths lacks {key!r}; {near_names(key, widths)}")
    if not isinstance(widths[key], int) or widths[key] < 1:
        raise ValueError(f"CrossOver: widths[{key!r}] must be a positive number, got {widths[key]!r}")
    return widths[key]


def rows_of(batch: Mapping[str, Any], key: str, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows [*, width] of a batch. Raises KeyError where they are missing, ValueError where their width is another."""
    if key not in batch:
        raise KeyError(f"CrossOver: the batch lacks {key!r}, which CrossOverDataset gives; {near_names(key, batch)}")
    rows = batch[key]
    if rows.dim() != 2 or rows.shape[1] != width:
        raise ValueError(f"CrossOver: {key} is {list(rows.shape)}, the model was made for width {width}; is this the recipe it was trained with?")
    return rows.to(dtype)


def scene_means(rows: Tensor, offset: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(means float32 [B, D] of each scene's known rows, bool [B] whether it has any). Rows [R, D], offset [B] their ends, known [R]."""
    pointer = torch.cat([offset.new_zeros(1), offset])
    mask = torch.ones(len(rows), dtype=torch.bool, device=rows.device) if known is None else known
    rows = torch.where(mask[:, None], rows.float(), 0.0)
    total = segment_csr(rows.contiguous(), pointer, reduce="sum")
    count = segment_csr(mask.float(), pointer, reduce="sum")
    return total / count.clamp(min=1)[:, None], count > 0


def unit(rows: Tensor, known: Tensor) -> Tensor:
    """Rows brought to length 1, zeros where not known."""
    return torch.where(known[:, None], F.normalize(rows.float(), dim=-1), 0.0)


def touch(parameters: Iterable[nn.Parameter]) -> Tensor:
    """0, with a gradient of 0 for every parameter: processes of a training wait for each other's gradients."""
    return sum((parameter.sum() * 0 for parameter in parameters if parameter.requires_grad), torch.zeros(()))

"""The 2D3D ensemble: what cameras saw of a point (fused 2D features) and what the 3D network says of it, together."""

import torch
from torch import Tensor
from torch.nn import functional as F

RULES = ("max", "mean")


def similarity(feature: Tensor, text: Tensor) -> Tensor:
    """Cosine float32 [n, T] of features [n, D] of any length to texts [T, D] of length 1; 0 for a feature of zeros."""
    return F.normalize(feature.float(), dim=-1) @ text.float().T


def ensemble_similarity(
    fused: Tensor, distilled: Tensor, text: Tensor, rule: str = "max", normalize: bool = True, seen: Tensor | None = None
) -> Tensor:
    """Cosine float32 [n, T] of the ensemble of features [n, D] to texts [T, D].

    rule: "max" takes of each point whichever of the two has the larger cosine to any text, whole (OpenScene Sec. 3.4).
        "mean" takes (distilled + fused) / 2, as CUA-O3D's release does.
    normalize: for "mean", both are brought to length 1 first. The release does not do that (False): the cosine loss leaves the
        length of distilled features free, so how the two mix is left to chance.
    seen: bool [n], the points that cameras saw; the others are the 3D network's alone. (OpenScene gives them features of
        zeros, which win where all cosines of the 3D network are negative, and then mean the first class.)

    Raises: ValueError for another rule, or shapes that do not fit.
    """
    if rule not in RULES:
        raise ValueError(f"ensemble: rule must be {' or '.join(map(repr, RULES))}, got {rule!r}")
    if fused.shape != distilled.shape or fused.ndim != 2 or fused.shape[1] != text.shape[1]:
        raise ValueError(
            f"ensemble: fused {list(fused.shape)}, distilled {list(distilled.shape)} and texts {list(text.shape)} must be [n, D], [n, D] and [T, D]"
        )
    own = similarity(distilled, text)
    if rule == "max":
        other = similarity(fused, text)
        mixed = torch.where((own.amax(1) < other.amax(1))[:, None], other, own)
    else:
        first, second = (F.normalize(each.float(), dim=-1) if normalize else each.float() for each in (distilled, fused))
        mixed = similarity((first + second) / 2, text)
    return mixed if seen is None else torch.where(seen[:, None], mixed, own)

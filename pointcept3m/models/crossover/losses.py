"""The contrastive loss of CrossOver (Sec. 3.4, Eq. 5), over all processes of a training."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from pointcept3m.utils.registry import near_names

ABSENT = ("drop", "negative")
NEGATIVES = ("batch", "scene")


def contrastive(
    query: Tensor,
    key: Tensor,
    known: Tensor,
    scale: Tensor,
    symmetric: bool = True,
    absent: str = "drop",
    group: Tensor | None = None,
) -> Tensor:
    """Eq. 5: every entry finds itself in the other modality, among all others of the batch.

    Args:
        query, key: unit rows [N, D] of one entry each in two modalities.
        known: bool [N], entries that both modalities have. Others are no positives and, with absent="drop", no negatives either.
        scale: 1 / tau, a tensor of one number.
        symmetric: L_qk + L_kq, as the paper trains; false gives L_qk.
        absent: "negative" leaves entries that are not known among the negatives, as the released code does, whose rows of
            zeros are projected like any other.
        group: int64 [N]: negatives are entries of the same group alone (the release's first stage: those of one scene).

    With W processes each loss is W times this process's share of the mean over all entries, negatives of the others included:
    the mean of losses and of gradients over processes is what one process with the whole batch has.

    Returns: a scalar, 0 (with a gradient of 0) where nobody has an entry. Raises: ValueError for an unknown `absent`.
    """
    if absent not in ABSENT:
        raise ValueError(f"contrastive: absent {absent!r} is unknown; {near_names(absent, ABSENT)}")
    present = known if absent == "drop" else torch.ones_like(known)
    rows = torch.nonzero(present).flatten()
    query, key, known = _wide(query[rows]), _wide(key[rows]), known[rows]
    group = torch.zeros_like(rows) if group is None else group[rows]
    keys, groups, first = _all_rows(key, group)
    count = _sum_over_processes(known.sum())
    share = _direction(query, keys, known, group, groups, first, scale)
    if symmetric:
        queries, _, _ = _all_rows(query, group)
        share = share + _direction(key, queries, known, group, groups, first, scale)
    nothing = (query.sum() + key.sum()) * 0 + scale.sum() * 0
    world = dist.get_world_size() if _distributed() else 1
    return nothing if count == 0 else nothing + share * (world / count)


def _direction(query: Tensor, keys: Tensor, known: Tensor, group: Tensor, groups: Tensor, first: int, scale: Tensor) -> Tensor:
    """The sum of Eq. 5 over this process's known rows; row i of `query` is row first + i of `keys`."""
    logits = scale * (query @ keys.T)
    logits = logits.masked_fill(group[:, None] != groups, -math.inf)
    own = torch.arange(len(query), device=query.device)
    positive = logits[own, own + first]
    return ((logits.logsumexp(dim=1) - positive) * known).sum() if len(query) else logits.sum()


def _all_rows(rows: Tensor, group: Tensor) -> tuple[Tensor, Tensor, int]:
    """(rows of all processes, with gradients, their groups, number of this process's first row). Groups of two processes differ
    only where they are told apart (`group` given); the caller's one group is that of all."""
    if not _distributed():
        return rows, group, 0
    counts = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    counts = [int(count) for count in counts]
    most, rank = max(counts), dist.get_rank()
    if most == 0:
        return rows, group, 0
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), rows.shape[1])])
    gathered = all_gather(padded)
    groups = [torch.zeros(most, dtype=group.dtype, device=group.device) for _ in counts]
    dist.all_gather(groups, torch.cat([group, group.new_zeros(most - len(group))]))
    whole = torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
    return whole, torch.cat([part[:count] for part, count in zip(groups, counts, strict=True)]), sum(counts[:rank])


def _sum_over_processes(count: Tensor) -> int:
    if _distributed():
        count = count.clone()
        dist.all_reduce(count)
    return int(count)


def _wide(rows: Tensor) -> Tensor:
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class ContrastiveLoss(nn.Module):
    """`contrastive` with its temperature.

    temperature: tau at the start; learn_temperature: whether 1 / tau is trained (Eq. 5; at most 100, as CLIP's). The released
    code means to and never hands it to its optimizer, which is learn_temperature=False.
    negatives: "batch" (Eq. 5) or "scene": of the object losses, those of the same scene alone (the release's first stage).
    symmetric, absent: as `contrastive`.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        negatives: str = "batch",
        symmetric: bool = True,
        absent: str = "drop",
    ):
        super().__init__()
        if temperature <= 0.01:
            raise ValueError(f"ContrastiveLoss: temperature must be above 0.01, the smallest that is learned, got {temperature}")
        for value, known, what in ((negatives, NEGATIVES, "negatives"), (absent, ABSENT, "absent")):
            if value not in known:
                raise ValueError(f"ContrastiveLoss: {what} {value!r} is unknown; {near_names(value, known)}")
        self.negatives, self.symmetric, self.absent = negatives, symmetric, absent
        log_scale = torch.tensor(math.log(1 / temperature))
        if learn_temperature:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        """1 / tau."""
        return self.log_scale.clamp(max=math.log(100)).exp()

    def forward(self, query: Tensor, key: Tensor, known: Tensor, scene: Tensor | None = None) -> Tensor:
        """As `contrastive`; scene int64 [N]: number of each entry's scene, where entries are objects."""
        group = None
        if scene is not None and self.negatives == "scene":
            # numbers that no other process has
            group = scene + (dist.get_rank() * 2**32 if _distributed() else 0)
        with torch.autocast(query.device.type, enabled=False):
            return contrastive(query, key, known, self.scale, self.symmetric, self.absent, group)

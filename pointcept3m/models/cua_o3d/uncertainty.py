"""Deterministic uncertainty (CUA-O3D Sec. 3.3, Eq. 6 to 11): noise scalars that weigh the loss of each teacher.

With noise sigma_i, teacher i's loss L_i counts L_i / (2 sigma_i^2) + log(1 + sigma_i). What the release calls uncertainty
is one learned number a teacher for the whole data set; the paper's words, "devise the 3D model with three independent
noise scalar predictions", also allow a prediction for each scene or each point. All three are here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.ops import gather_coo, segment_csr
from pointcept3m.utils.registry import near_names

Terms = dict[str, Tensor]

# What keeps sigma from growing without bound. "log" is Eq. 10, which may become negative; "log1p" is Eq. 11, "log1p_square"
# the release's.
REGULARISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "log1p": torch.log1p,
    "log1p_square": lambda sigma: torch.log1p(sigma.square()),
    "log": torch.log,
}
_ONE = 0.5413248546129181  # softplus of it is 1


class Uncertainty(nn.Module):
    """What all kinds share: sigma from a raw number by softplus, and the weighted sum of Eq. 10.

    The release learns sigma itself, without activation; softplus only keeps it positive, which the logarithm of Eq. 11
    needs. It starts at 1, as there.
    """

    def __init__(self, teachers: Sequence[str], regulariser: str = "log1p"):
        super().__init__()
        if regulariser not in REGULARISERS:
            raise ValueError(f"uncertainty: unknown regulariser {regulariser!r}; {near_names(regulariser, REGULARISERS)}")
        self.teachers, self.regulariser = tuple(teachers), regulariser

    def combine(self, loss: Tensor, sigma: Tensor) -> Tensor:
        """Eq. 10 and 11 for one teacher: the mean of loss / (2 sigma^2) + log(1 + sigma) over what both broadcast to."""
        return (loss / (2 * sigma.square()) + REGULARISERS[self.regulariser](sigma)).mean()

    def forward(self, losses: Terms, feature: Tensor, rows: Tensor, offset: Tensor) -> tuple[Tensor, Terms]:
        """The sum over teachers, and what to draw: `sigma_<teacher>` (means where there are many).

        losses: for each teacher [S], the losses of the supervised voxels. feature [N, C]: the backbone's. rows [S]: which
        voxels are supervised. offset [B]: ends of the scenes.
        """
        raise NotImplementedError


class ScalarUncertainty(Uncertainty):
    """One learned sigma a teacher, the same for every scene: the released code."""

    def __init__(self, teachers: Sequence[str], in_channels: int, regulariser: str = "log1p"):
        super().__init__(teachers, regulariser)
        self.raw = nn.Parameter(torch.full((len(self.teachers),), _ONE))

    @property
    def sigma(self) -> Tensor:
        """[T], in the order of `teachers`."""
        return F.softplus(self.raw)

    def forward(self, losses: Terms, feature: Tensor, rows: Tensor, offset: Tensor) -> tuple[Tensor, Terms]:
        sigma = dict(zip(self.teachers, self.sigma, strict=True))
        total = sum(self.combine(losses[name].mean(), sigma[name]) for name in self.teachers)
        return total, {f"sigma_{name}": value.detach() for name, value in sigma.items()}


class PredictedUncertainty(Uncertainty):
    """Sigmas that a linear layer predicts from the backbone's features: of each scene's mean, or of each point.

    The layer starts at zero, so that training starts from sigma = 1 as with the learned scalars.
    """

    def __init__(self, teachers: Sequence[str], in_channels: int, regulariser: str = "log1p", per: str = "point"):
        super().__init__(teachers, regulariser)
        self.per = per
        self.predict = nn.Linear(in_channels, len(self.teachers))
        nn.init.zeros_(self.predict.weight)
        nn.init.constant_(self.predict.bias, _ONE)

    def sigma(self, feature: Tensor) -> Tensor:
        """[n, T] for features [n, C] of points, or of scenes' means."""
        with torch.autocast(feature.device.type, enabled=False):  # sigma is squared and divided by
            raw = self.predict(feature.float())
        # Below a thousandth, a point that fits by chance would outweigh all the others together.
        return F.softplus(raw).clamp(min=1e-3)

    def forward(self, losses: Terms, feature: Tensor, rows: Tensor, offset: Tensor) -> tuple[Tensor, Terms]:
        if self.per == "scene":
            ends = torch.cat([offset.new_zeros(1), offset])
            scene = torch.bucketize(rows, offset, right=True)
            # not [scene]: torch adds up the gradients of a row that is taken often in the order that threads come
            sigma = gather_coo(self.sigma(segment_csr(feature.float(), ends, reduce="mean")), scene)
        else:
            sigma = self.sigma(feature[rows])
        # A scene's sigma stands at each of its points, so scenes weigh by their supervised points, as without uncertainty.
        columns = dict(zip(self.teachers, sigma.unbind(1), strict=True))
        total = sum(self.combine(losses[name], columns[name]) for name in self.teachers)
        return total, {f"sigma_{name}": column.detach().mean() for name, column in columns.items()}


class AutoWeight(nn.Module):
    """Table 6's "AutoW": the sum of w_i L_i with free learned weights w_i, which start at 1 and that nothing holds.

    It is here to be compared with. Every loss is positive, so lowering the weights lowers the sum: they become negative,
    losses are then driven up, and the run falls apart, as the paper reports (NaN).
    """

    def __init__(self, teachers: Sequence[str], in_channels: int):
        super().__init__()
        self.teachers = tuple(teachers)
        self.weight = nn.Parameter(torch.ones(len(self.teachers)))

    def forward(self, losses: Terms, feature: Tensor, rows: Tensor, offset: Tensor) -> tuple[Tensor, Terms]:
        weight = dict(zip(self.teachers, self.weight, strict=True))
        total = sum(weight[name] * losses[name].mean() for name in self.teachers)
        return total, {f"weight_{name}": value.detach() for name, value in weight.items()}


KINDS: dict[str, Callable[..., nn.Module]] = {
    "scalar": ScalarUncertainty,
    "scene": lambda *args, **kwargs: PredictedUncertainty(*args, **kwargs, per="scene"),
    "point": lambda *args, **kwargs: PredictedUncertainty(*args, **kwargs, per="point"),
    "auto_weight": AutoWeight,
}


def build_uncertainty(cfg: Mapping[str, Any], teachers: Sequence[str], in_channels: int) -> nn.Module:
    """What `cfg = dict(kind="scalar" | "scene" | "point" | "auto_weight", regulariser=...)` names.

    Raises: KeyError or ValueError for a kind or regulariser that is not known.
    """
    arguments = dict(cfg)
    kind = arguments.pop("kind", "scalar")
    if kind not in KINDS:
        raise KeyError(f"uncertainty: no kind {kind!r}; {near_names(str(kind), KINDS)}")
    try:
        return KINDS[kind](teachers, in_channels, **arguments)
    except TypeError as error:
        raise ValueError(f"uncertainty {kind!r} does not take {sorted(arguments)} ({error})") from error

"""The decoders that turn voxel features into Gaussians (GaussianCross Eq. 9 to 13)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.structures.gaussians import Gaussians


def mlp(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    """A two-layer perceptron: the paper's "dedicated MLP decoders" G, whose depth it does not give."""
    return nn.Sequential(nn.Linear(in_channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_channels))


class GaussianHead(nn.Module):
    """One decoder per Gaussian attribute, and the pruning by opacity.

    in_channels: d_o. feature_dim: d_f, or 0 for no feature field. color: whether colours are decoded.
    opacity_threshold: tau of Eq. 13. offset_max: Delta of Eq. 11 in cells of the volume; 0 switches the offset
    off (Fig. 3). Scales (Eq. 9) are decoded in cells too, so the same head suits any number of cells; the paper
    does not say in which unit its Softplus is.

    init_scale and init_opacity are what the decoders give before training: a Gaussian about as wide as its cell,
    and an opacity above tau, since a pruned anchor receives no gradient.
    """

    def __init__(
        self,
        in_channels: int,
        feature_dim: int,
        color: bool = True,
        opacity_threshold: float = 0.3,
        offset_max: float = 1.0,
        hidden: int | None = None,
        init_scale: float = 0.6,
        init_opacity: float = 0.4,
    ):
        super().__init__()
        if not 0 <= opacity_threshold < 1:
            raise ValueError(f"GaussianHead: opacity_threshold must be in [0, 1), got {opacity_threshold}")
        hidden = hidden or in_channels
        self.opacity_threshold = opacity_threshold
        self.offset_max = offset_max
        self.quat = mlp(in_channels, hidden, 4)
        self.scale = mlp(in_channels, hidden, 3)
        self.opacity = mlp(in_channels, hidden, 1)
        self.color = mlp(in_channels, hidden, 3) if color else None
        self.offset = mlp(in_channels, hidden, 3) if offset_max > 0 else None
        self.feature = mlp(in_channels, hidden, feature_dim) if feature_dim > 0 else None
        self._start_from(init_scale, init_opacity)

    def _start_from(self, scale: float, opacity: float) -> None:
        with torch.no_grad():
            self.quat[-1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
            self.scale[-1].bias.fill_(math.log(math.expm1(scale)))
            self.opacity[-1].bias.fill_(math.log(opacity / (1 - opacity)))
            for decoder in (self.quat, self.scale, self.opacity, self.offset):
                if decoder is not None:
                    decoder[-1].weight.mul_(0.1)

    def decode_opacity(self, feat: Tensor) -> Tensor:
        """sigma of Eq. 10: [A, d_o] -> [A] in 0..1."""
        return torch.sigmoid(self.opacity(feat)).squeeze(-1)

    def forward(self, feat: Tensor, centers: Tensor, cell: Tensor) -> Gaussians:
        """The Gaussians of one scene, pruned (Eq. 13).

        feat [A, d_o] features of the anchors; centers [A, 3] their voxel centres, the coarse means nu; cell [3]
        the size of a voxel in the same unit. Attributes are decoded for the anchors that are kept only, which
        gives the same Gaussians as decoding all and pruning after.
        """
        opacities = self.decode_opacity(feat)
        kept = (opacities > self.opacity_threshold).nonzero().squeeze(-1)
        feat, means = feat[kept], centers[kept]
        if self.offset is not None:
            means = means + torch.tanh(self.offset(feat)) * (self.offset_max * cell)  # Eq. 11
        return Gaussians(
            means=means,
            quats=F.normalize(self.quat(feat), dim=-1),  # Eq. 9
            scales=F.softplus(self.scale(feat)) * cell,  # Eq. 9
            opacities=opacities[kept],
            colors=torch.sigmoid(self.color(feat)) if self.color is not None else None,  # Eq. 10
            features=self.feature(feat) if self.feature is not None else None,  # Eq. 12
        )

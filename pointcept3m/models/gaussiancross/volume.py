"""From sparse point features to the dense feature volume (GaussianCross Eq. 7 and 8)."""

from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m import ops


def scatter_to_volume(feat: Tensor, index: Tensor, num_scenes: int, shape: tuple[int, int, int]) -> Tensor:
    """F_v of Eq. 7: the mean feature of the points in each voxel, zero where there are none.

    feat [N, C] floats; index [N] int64, scene * X * Y * Z + voxel. Returns [B, C, X, Y, Z].
    """
    x, y, z = shape
    volume = ops.scatter(feat, index, dim=0, dim_size=num_scenes * x * y * z, reduce="mean")
    return volume.view(num_scenes, x, y, z, -1).permute(0, 4, 1, 2, 3)


class ConvBlock(nn.Sequential):
    """Batch norm, 3x3x3 convolution, ReLU: the order of PonderV2's volume network."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.BatchNorm3d(in_channels),
            nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
        )


class VolumeEncoder(nn.Module):
    """The 3D convolutional network E_den of Eq. 8: [B, d_s, X, Y, Z] -> F_d [B, d_o, X, Y, Z].

    A U-Net with one block a level and sums as skip connections, as PonderV2's, the paper's named ancestor; the
    paper gives no layer sizes. `channels` are the widths from the finest level to the coarsest.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: tuple[int, ...] = (32, 64, 128, 256)):
        super().__init__()
        self.stem = nn.Conv3d(in_channels, channels[0], 1)
        self.encoders = nn.ModuleList(
            ConvBlock(channels[max(level - 1, 0)], width) for level, width in enumerate(channels)
        )
        self.lifts = nn.ModuleList(
            nn.Conv3d(channels[level + 1], channels[level], 1) for level in range(len(channels) - 1)
        )
        self.decoders = nn.ModuleList(ConvBlock(width, width) for width in channels[:-1])
        self.head = nn.Conv3d(channels[0], out_channels, 1)
        self.out_channels = out_channels

    def forward(self, volume: Tensor) -> Tensor:
        x = self.stem(volume)
        skips = []
        for level, encode in enumerate(self.encoders):
            if level:
                x = F.max_pool3d(x, 2, ceil_mode=True)
            x = encode(x)
            skips.append(x)
        x = skips.pop()
        for lift, decode in zip(reversed(self.lifts), reversed(self.decoders), strict=True):
            skip = skips.pop()
            # The 1x1 convolution comes before the upsampling, where there are eight times fewer voxels.
            x = decode(skip + F.interpolate(lift(x), size=skip.shape[2:], mode="trilinear", align_corners=False))
        return self.head(x)

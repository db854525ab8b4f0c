"""Tri-attribute splatting: colour, depth and feature maps of a set of Gaussians in one pass (Eq. 3, 14, 15)."""

from typing import NamedTuple

import torch
from torch import Tensor

from pointcept3m import ops
from pointcept3m.structures.gaussians import Gaussians


class Rendering(NamedTuple):
    """M views of one scene: rgb [M, H, W, 3] or None, depth [M, H, W] metres, feature [M, H, W, D] or None, alpha [M, H, W]."""

    rgb: Tensor | None
    depth: Tensor
    feature: Tensor | None
    alpha: Tensor


def splat(
    gaussians: Gaussians,
    extrinsic: Tensor,
    intrinsic: Tensor,
    height: int,
    width: int,
    near: float = 0.05,
    far: float = 100.0,
    backend: str | None = None,
) -> Rendering:
    """Renders M views. Depth is the alpha-composited z of Eq. 14, not divided by alpha, in the camera's unit.

    extrinsic [M, 4, 4] affine world -> camera, where world is the space of the Gaussians' means; intrinsic
    [M, 3, 3] in pixels of the height x width image; near and far in the camera's unit (metres).
    """
    means = gaussians.means.float()
    colors = gaussians.colors.float() if gaussians.colors is not None else means.new_zeros(len(means), 3)
    image, alpha, meta = ops.rasterization(
        means,
        gaussians.quats.float(),
        gaussians.scales.float(),
        gaussians.opacities.float(),
        colors,
        extrinsic.float(),
        intrinsic.float(),
        width,
        height,
        near_plane=near,
        far_plane=far,
        render_mode="RGB+D",
        features=gaussians.features.float() if gaussians.features is not None else None,
        backend=backend,
    )
    return Rendering(
        rgb=image[..., :3] if gaussians.colors is not None else None,
        depth=image[..., 3],
        feature=meta["features"] if gaussians.features is not None else None,
        alpha=alpha[..., 0],
    )


def move_cameras(extrinsic: Tensor, affine: Tensor) -> Tensor:
    """Cameras that see the scene moved by `affine` as `extrinsic` see the original: E' = E A^-1.

    extrinsic [M, 4, 4], affine [4, 4]. The depth of a point stays what it was, in the unit of `extrinsic`'s camera.
    """
    return (extrinsic.double() @ torch.linalg.inv(affine.double())).to(extrinsic.dtype)

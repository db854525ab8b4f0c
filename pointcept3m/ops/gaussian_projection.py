"""3D Gaussians seen by cameras: means, conics and opacities on the image, and view-dependent color. Plain torch.

Everything is differentiable in every float input, the camera matrices included, because autograd does it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

ALPHA_MIN = 1.0 / 255.0  # an alpha below this does not count (gsplat's ALPHA_THRESHOLD)
_MAX_EXTENT = 3.33  # standard deviations; the extent at which a Gaussian of opacity 1 falls below ALPHA_MIN
_COMPENSATION_MIN = 0.005
_MAX_RADIUS = 1e9  # keeps radii within int32


class Projection(NamedTuple):
    """Gaussians on the images of C cameras. What a camera does not see has opacity 0 and radius 0."""

    means2d: Tensor  # [C, G, 2] pixels
    conics: Tensor  # [C, G, 3] upper triangle of the inverse 2D covariance, 1/pixel^2
    depths: Tensor  # [C, G] camera-space z
    opacities: Tensor  # [C, G]
    radii: Tensor  # [C, G, 2] int32, pixels


def quaternion_to_matrix(quats: Tensor) -> Tensor:
    """Rotation matrices as planes [3, 3, G] of quaternions `quats` [G, 4] (wxyz, any length but zero)."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ]
    ).view(3, 3, -1)  # fmt: skip


def project_gaussians(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    antialiased: bool,
) -> Projection:
    """Projects G Gaussians into C pinhole cameras by the local affine approximation (EWA splatting).

    Conventions are gsplat's `fully_fused_projection`: the covariance is linearised at the mean, whose direction is
    kept within 1.3 times the field of view; `eps2d` pixels^2 are added to its diagonal, and `antialiased` lowers the
    opacity by what that adds in area. The 3x3 part of `viewmats` may be any invertible matrix.
    """
    # Planes [.., G] throughout: elementwise work then runs on contiguous memory.
    linear, shift = viewmats[:, :3, :3], viewmats[:, :3, 3:]
    cameras, num_gaussians = viewmats.shape[0], means.shape[0]
    x, y, z = (linear @ means.T + shift).unbind(1)  # each [C, G]
    root = quaternion_to_matrix(quats) * scales.T  # covariance = root root^T, [3, 3, G]
    root = (linear.reshape(3 * cameras, 3) @ root.reshape(3, 3 * num_gaussians)).view(cameras, 3, 3, num_gaussians)
    root_x, root_y, root_z = root.unbind(1)  # each [C, 3, G]

    in_range = (z >= near_plane) & (z <= far_plane)
    inverse_z = 1 / torch.where(in_range, z, 1)
    x, y = x * inverse_z, y * inverse_z
    fx, fy, cx, cy = (k.unsqueeze(-1) for k in (Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2]))  # each [C, 1]
    means2d = torch.stack([fx * x + cx, fy * y + cy], dim=-1)

    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    x = torch.minimum(torch.maximum(x, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    y = torch.minimum(torch.maximum(y, -cy / fy - margin_y), (height - cy) / fy + margin_y)
    row_x = (fx * inverse_z).unsqueeze(1) * (root_x - x.unsqueeze(1) * root_z)
    row_y = (fy * inverse_z).unsqueeze(1) * (root_y - y.unsqueeze(1) * root_z)
    cov_xx, cov_xy, cov_yy = (row_x * row_x).sum(1), (row_x * row_y).sum(1), (row_y * row_y).sum(1)
    blurred_xx, blurred_yy = cov_xx + eps2d, cov_yy + eps2d
    determinant = blurred_xx * blurred_yy - cov_xy * cov_xy
    in_range = in_range & (determinant > 0)
    inverse_determinant = 1 / torch.where(in_range, determinant, 1)
    conics = torch.stack([blurred_yy, -cov_xy, blurred_xx], dim=-1) * inverse_determinant.unsqueeze(-1)

    opacities = opacities.expand(cameras, num_gaussians)
    if antialiased:
        ratio = (cov_xx * cov_yy - cov_xy * cov_xy) * inverse_determinant
        opacities = opacities * ratio.clamp_min(_COMPENSATION_MIN**2).sqrt()
    with torch.no_grad():
        radii = _radii(blurred_xx, blurred_yy, opacities)
        size = torch.tensor([width, height], dtype=means.dtype, device=means.device)
        on_image = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
        visible = in_range & (opacities >= ALPHA_MIN) & on_image & (radii > radius_clip).any(-1)
        radii = torch.where(visible.unsqueeze(-1), radii, 0).to(torch.int32)
    return Projection(means2d, conics, z, torch.where(visible, opacities, 0), radii)


def _radii(variance_x: Tensor, variance_y: Tensor, opacities: Tensor) -> Tensor:
    """Half the box [.., 2], in whole pixels, within which alpha can reach `ALPHA_MIN`."""
    extent = (2 * (opacities / ALPHA_MIN).clamp_min(1).log()).sqrt().clamp_max(_MAX_EXTENT)
    deviations = torch.stack([variance_x, variance_y], dim=-1).sqrt()
    return (extent.unsqueeze(-1) * deviations).ceil().clamp_max(_MAX_RADIUS)


def spherical_harmonics(degree: int, directions: Tensor, coefficients: Tensor) -> Tensor:
    """Sums real spherical harmonics up to `degree`.

    Args:
        directions: [..., 3], of any length; the zero vector counts as the zero direction.
        coefficients: [..., K, 3] with K >= (degree + 1)^2, ordered by (l, m), m from -l to l; signs with the
            Condon-Shortley phase, as gsplat and the 3DGS files have them.
    Returns: [..., 3].
    """
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    cosine, sine = [torch.ones_like(x)], [torch.zeros_like(x)]  # sin(theta)^m cos(m phi) and ... sin(m phi)
    for _ in range(degree):
        cosine.append(x * cosine[-1] - y * sine[-1])
        sine.append(x * sine[-1] + y * cosine[-2])
    basis = [None] * (degree + 1) ** 2
    for m in range(degree + 1):
        # Associated Legendre functions of z without their factor sin(theta)^m, upwards in l.
        before, legendre = torch.zeros_like(z), torch.full_like(z, (-1) ** m * math.prod(range(1, 2 * m, 2)))
        for l in range(m, degree + 1):  # noqa: E741
            norm = (2 * l + 1) / (4 * math.pi) * math.factorial(l - m) / math.factorial(l + m)
            scaled = math.sqrt(norm * (2 if m else 1)) * legendre
            basis[l * l + l + m] = scaled * cosine[m]
            if m:
                basis[l * l + l - m] = scaled * sine[m]
            before, legendre = legendre, ((2 * l + 1) * z * legendre - (l + m) * before) / (l + 1 - m)
    return (torch.stack(basis, dim=-1).unsqueeze(-1) * coefficients[..., : len(basis), :]).sum(-2)

"""3D Gaussians seen by cameras: means, conics and opacities on the image, and view-dependent color.

The projection is an op with CPU kernels in csrc/projection/; its twin, and the color, are plain torch. Everything is
differentiable in every float input, the camera matrices included.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pointcept3m.ops import _library

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

    Args:
        means: [G, 3] world coordinates. quats: [G, 4] wxyz, any length but zero. scales: [G, 3] standard deviations.
        opacities: [G]. viewmats: [C, 4, 4] world to camera. Ks: [C, 3, 3], pixels, no skew. width, height: pixels.
        near_plane, far_plane: depths outside are not seen. radius_clip: nor are radii of at most so many pixels.
    All float32 or all float64. Differentiable in every tensor. Complexity: O(C G) time and memory.
    """
    tensors = (means, quats, scales, opacities, viewmats, Ks)
    settings = (width, height, near_plane, far_plane, radius_clip, eps2d, antialiased)
    return Projection(*torch.ops.pointcept3m.project_gaussians(*(t.contiguous() for t in tensors), *settings))


def project_gaussians_twin(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`project_gaussians` in plain torch, differentiable by autograd."""
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
    return means2d, conics, z.clone(memory_format=torch.contiguous_format), torch.where(visible, opacities, 0), radii


def project_gaussians_backward_twin(
    grad_means2d: Tensor,
    grad_conics: Tensor,
    grad_depths: Tensor,
    grad_opacities: Tensor,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    radii: Tensor,
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    antialiased: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of means, quats, scales, opacities, viewmats and Ks, by the chain rule; axes are [C, 2 or 3, .., G]."""
    linear, shift = viewmats[:, :3, :3], viewmats[:, :3, 3:]
    inverse_norm = 1 / quats.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    rotation = quaternion_to_matrix(quats)
    world_root = rotation * scales.T
    position = linear @ means.T + shift
    root = torch.einsum("cij,jkg->cikg", linear, world_root)
    focal, centre = (Ks[:, [0, 1], index].unsqueeze(-1) for index in ([0, 1], [2, 2]))  # [C, 2, 1]
    size = torch.tensor([width, height], dtype=means.dtype, device=means.device).view(1, 2, 1)
    z = position[:, 2:]  # [C, 1, G]
    in_range = (z >= near_plane) & (z <= far_plane)
    inverse_z = 1 / torch.where(in_range, z, 1)
    image = position[:, :2] * inverse_z
    low, high = -(centre + 0.15 * size) / focal, (1.15 * size - centre) / focal
    kept = torch.minimum(torch.maximum(image, low), high)
    rest = root[:, :2] - kept.unsqueeze(2) * root[:, 2:]
    rows = (focal * inverse_z).unsqueeze(2) * rest  # [C, 2, 3, G]
    xx, xy, yy = (rows[:, 0] ** 2).sum(1), (rows[:, 0] * rows[:, 1]).sum(1), (rows[:, 1] ** 2).sum(1)
    determinant = (xx + eps2d) * (yy + eps2d) - xy * xy
    valid = in_range.squeeze(1) & (determinant > 0)
    inverse = 1 / torch.where(valid, determinant, 1)

    grad_a, grad_b, grad_c = grad_conics.unbind(-1)
    grad_opacities = torch.where((radii > 0).any(-1), grad_opacities, 0)
    grad_inverse = grad_a * (yy + eps2d) - grad_b * xy + grad_c * (xx + eps2d)
    grad_xx, grad_xy, grad_yy = grad_c * inverse, -grad_b * inverse, grad_a * inverse
    if antialiased:
        ratio, area = (xx * yy - xy * xy) * inverse, xx * yy - xy * xy
        compensation = ratio.clamp_min(_COMPENSATION_MIN**2).sqrt()
        grad_ratio = torch.where(ratio >= _COMPENSATION_MIN**2, 0.5 * grad_opacities * opacities / compensation, 0)
        grad_opacities = grad_opacities * compensation
        grad_inverse, grad_area = grad_inverse + grad_ratio * area, grad_ratio * inverse
        grad_xx, grad_yy, grad_xy = grad_xx + grad_area * yy, grad_yy + grad_area * xx, grad_xy - 2 * grad_area * xy
    grad_det = torch.where(valid, -inverse * inverse * grad_inverse, 0)
    grad_xx, grad_yy = grad_xx + grad_det * (yy + eps2d), grad_yy + grad_det * (xx + eps2d)
    grad_xy = grad_xy - 2 * grad_det * xy

    factors = torch.stack([2 * grad_xx, grad_xy, grad_xy, 2 * grad_yy], 1).unflatten(1, (2, 2))
    grad_rows = torch.einsum("cijg,cjkg->cikg", factors, rows)
    grad_rest = (focal * inverse_z).unsqueeze(2) * grad_rows
    grad_root = torch.cat([grad_rest, -(kept.unsqueeze(2) * grad_rest).sum(1, keepdim=True)], 1)
    grad_kept, grad_scale = -(grad_rest * root[:, 2:]).sum(2), (grad_rows * rest).sum(2)
    grad_image = grad_means2d.transpose(1, 2)
    outside = torch.where(image == kept, 0, grad_kept / focal)  # moves the bound, and so the intrinsics
    grad_focal = (grad_scale * inverse_z + grad_image * image - outside * kept).sum(2)
    grad_centre = (grad_image - outside).sum(2)
    grad_image = grad_image * focal + torch.where(image == kept, grad_kept, 0)
    grad_inverse_z = (grad_scale * focal + grad_image * position[:, :2]).sum(1, keepdim=True)
    grad_z = grad_depths.unsqueeze(1) - torch.where(in_range, inverse_z * inverse_z * grad_inverse_z, 0)
    grad_position = torch.cat([grad_image * inverse_z, grad_z], 1)

    grad_viewmats, grad_Ks = torch.zeros_like(viewmats), torch.zeros_like(Ks)
    grad_viewmats[:, :3, :3] = grad_position @ means + torch.einsum("cikg,jkg->cij", grad_root, world_root)
    grad_viewmats[:, :3, 3] = grad_position.sum(2)
    grad_Ks[:, [0, 1], [0, 1]], grad_Ks[:, [0, 1], [2, 2]] = grad_focal, grad_centre
    grad_means = torch.einsum("cij,cig->gj", linear, grad_position)
    grad_world = torch.einsum("cij,cikg->jkg", linear, grad_root)
    grad_quats = _rotation_backward(quats * inverse_norm, 2 * grad_world * scales.T) * inverse_norm
    grad_scales = (grad_world * rotation).sum(0).T
    grads = (grad_means, grad_quats, grad_scales, grad_opacities.sum(0), grad_viewmats, grad_Ks)
    return tuple(grad.contiguous() for grad in grads)


def _rotation_backward(unit: Tensor, grad: Tensor) -> Tensor:
    """Gradients [G, 4] of quaternions of any length at `unit` [G, 4], from half those of their matrices, [3, 3, G]."""
    w, vector = unit.T[:1], unit.T[1:]
    turn = torch.stack([grad[2, 1] - grad[1, 2], grad[0, 2] - grad[2, 0], grad[1, 0] - grad[0, 1]])
    trace = grad[0, 0] + grad[1, 1] + grad[2, 2]
    stretch = ((grad + grad.transpose(0, 1)) * vector).sum(1) - 2 * trace * vector
    grad_unit = torch.cat([(turn * vector).sum(0, keepdim=True), w * turn + stretch]).T
    return grad_unit - unit * (unit * grad_unit).sum(-1, keepdim=True)


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


_library.define(
    "project_gaussians(Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor viewmats, Tensor Ks, "
    "SymInt width, SymInt height, float near_plane, float far_plane, float radius_clip, float eps2d, bool antialiased)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    project_gaussians_twin,
)
_library.define(
    "project_gaussians_backward(Tensor grad_means2d, Tensor grad_conics, Tensor grad_depths, Tensor grad_opacities, "
    "Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor viewmats, Tensor Ks, Tensor radii, "
    "SymInt width, SymInt height, float near_plane, float far_plane, float eps2d, bool antialiased)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    project_gaussians_backward_twin,
)


@torch.library.register_fake("pointcept3m::project_gaussians")
def _(means, quats, scales, opacities, viewmats, *settings):
    sizes = (viewmats.shape[0], means.shape[0])
    radii = means.new_empty(*sizes, 2, dtype=torch.int32)
    return means.new_empty(*sizes, 2), means.new_empty(*sizes, 3), means.new_empty(sizes), means.new_empty(sizes), radii


@torch.library.register_fake("pointcept3m::project_gaussians_backward")
def _(grad_means2d, grad_conics, grad_depths, grad_opacities, means, quats, scales, opacities, viewmats, Ks, *rest):
    return tuple(torch.empty_like(t) for t in (means, quats, scales, opacities, viewmats, Ks))


def _setup_context(ctx, inputs, output):
    *tensors, width, height, near_plane, far_plane, _, eps2d, antialiased = inputs
    radii = output[4]
    ctx.mark_non_differentiable(radii)
    ctx.save_for_backward(*tensors, radii)
    ctx.settings = width, height, near_plane, far_plane, eps2d, antialiased


def _backward(ctx, grad_means2d, grad_conics, grad_depths, grad_opacities, _):
    above = (g.contiguous() for g in (grad_means2d, grad_conics, grad_depths, grad_opacities))
    grads = torch.ops.pointcept3m.project_gaussians_backward(*above, *ctx.saved_tensors, *ctx.settings)
    return (*grads, *[None] * 7)


torch.library.register_autograd("pointcept3m::project_gaussians", _backward, setup_context=_setup_context)

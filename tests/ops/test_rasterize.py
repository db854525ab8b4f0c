"""`rasterization`: against gsplat's image, hand-made cases and finite differences; its options and edges."""

import math

import numpy as np
import pytest
import torch

from pointcept3m import ops
from pointcept3m.ops.gaussian_projection import spherical_harmonics


def make_scene(num_gaussians=40, num_cameras=2, dim=5, dtype=torch.float64, width=37, height=29):
    """Arguments of `rasterization`: a cloud 2 to 4 m in front of cameras that differ by small motions."""
    options = {"dtype": dtype}
    means = torch.randn(num_gaussians, 3, **options) * 0.7 + torch.tensor([0, 0, 3.0], **options)
    viewmats = torch.eye(4, **options).repeat(num_cameras, 1, 1)
    viewmats[:, :3] += 0.05 * torch.randn(num_cameras, 3, 4, **options)
    Ks = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], **options).repeat(num_cameras, 1, 1)
    return dict(
        means=means, quats=torch.randn(num_gaussians, 4, **options), scales=torch.rand(num_gaussians, 3, **options) * 0.2 + 0.02,
        opacities=torch.rand(num_gaussians, **options) * 0.9 + 0.05, colors=torch.rand(num_gaussians, 3, **options),
        viewmats=viewmats, Ks=Ks, width=width, height=height, features=torch.randn(num_gaussians, dim, **options),
    )  # fmt: skip


def make_op_inputs(num_gaussians, num_cameras, own, shared, dtype, width, height):
    """Arguments of the op: ellipses of many sizes and directions, some off the image."""
    options = {"dtype": dtype}
    size = torch.tensor([width, height], **options)
    means2d = (torch.rand(num_cameras, num_gaussians, 2, **options) * 1.4 - 0.2) * size
    root = torch.randn(num_cameras, num_gaussians, 2, 2, **options) * 0.4
    inverse = root @ root.mT + 0.01 * torch.eye(2, **options)
    conics = torch.stack([inverse[..., 0, 0], inverse[..., 0, 1], inverse[..., 1, 1]], -1)
    opacities = torch.rand(num_cameras, num_gaussians, **options) * 1.1 - 0.1  # some invisible
    return (
        means2d, conics, opacities, torch.rand(num_cameras, num_gaussians, **options) + 0.5,
        torch.randn(num_cameras, num_gaussians, own, **options), torch.randn(num_gaussians, shared, **options), width, height,
    )  # fmt: skip


def render_with_grads(scene, **options):
    """The image, alphas and features, and the gradients of a fixed random projection of them."""
    names = [name for name, value in scene.items() if isinstance(value, torch.Tensor)]
    leaves = {name: scene[name].detach().clone().requires_grad_() for name in names}
    colors, alphas, meta = ops.rasterization(**{**scene, **leaves}, **options)
    generator = torch.Generator().manual_seed(1)
    outputs = [colors, alphas, meta["features"]]
    loss = sum((o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outputs)
    return outputs, dict(zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def one_gaussian(**changes):
    """A sphere of 0.4 m, 2 m in front of a 9x9 camera of focal length 10, on the centre of pixel (4, 4)."""
    scene = dict(
        means=torch.tensor([[0.0, 0.0, 2.0]]), quats=torch.tensor([[1.0, 0, 0, 0]]), scales=torch.full((1, 3), 0.4),
        opacities=torch.tensor([0.8]), colors=torch.tensor([[0.2, 0.5, 1.0]]), viewmats=torch.eye(4)[None],
        Ks=torch.tensor([[[10.0, 0, 4.5], [0, 10, 4.5], [0, 0, 1]]]), width=9, height=9,
    )  # fmt: skip
    return {**scene, **changes}


# ---------------------------------------------------------------- values


def test_gsplat_image(real_data):
    """gsplat's CUDA kernels rendered this image (degree-3 harmonics); README of the data says how."""
    from safetensors.torch import load_file

    case = load_file(str(real_data("gsplat_render") / "tiny_case.safetensors"))
    height, width = case["out_img"].shape[:2]
    viewmat = torch.eye(4)
    viewmat[:3, 3] = -torch.tensor([0.123, 0.456, -8.0])
    K = torch.tensor([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1]])
    colors, alphas, _ = ops.rasterization(
        case["means"], case["quats"], case["scales"].exp(), case["opacities"].sigmoid(), case["coeffs"],
        viewmat[None], K[None], width, height, sh_degree=3,
    )  # fmt: skip
    torch.testing.assert_close(torch.cat([colors, alphas], -1)[0], case["out_img"], atol=1e-5, rtol=0)


def test_one_gaussian_by_hand():
    colors, alphas, meta = ops.rasterization(**one_gaussian(features=torch.tensor([[3.0, -1.0]])), render_mode="RGB+D")
    variance = (10 * 0.4 / 2) ** 2 + 0.3  # (focal scale / depth)^2 + eps2d
    for row, column in ((4, 4), (4, 7), (0, 1), (8, 8)):
        alpha = 0.8 * math.exp(-0.5 * ((row - 4) ** 2 + (column - 4) ** 2) / variance)
        torch.testing.assert_close(alphas[0, row, column], torch.tensor([alpha]), atol=1e-6, rtol=1e-6)
        wanted = alpha * torch.tensor([0.2, 0.5, 1.0, 2.0])
        torch.testing.assert_close(colors[0, row, column], wanted, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(meta["features"][0, row, column], alpha * torch.tensor([3.0, -1.0]), atol=1e-6, rtol=1e-6)
    extent = math.sqrt(2 * math.log(255 * 0.8))  # where alpha falls to 1/255, in standard deviations
    assert meta["radii"].tolist() == [[[math.ceil(extent * math.sqrt(variance))] * 2]]
    torch.testing.assert_close(meta["means2d"], torch.tensor([[[4.5, 4.5]]]))
    torch.testing.assert_close(meta["depths"], torch.tensor([[2.0]]))


def test_two_gaussians_blend_by_depth():
    """The farther one comes first in memory, and must be behind on the image."""
    two = one_gaussian(
        means=torch.tensor([[0.0, 0, 4], [0, 0, 2]]), quats=torch.tensor([[1.0, 0, 0, 0]] * 2), scales=torch.full((2, 3), 0.4),
        opacities=torch.tensor([0.6, 0.5]), colors=torch.tensor([[1.0, 0, 0], [0, 1, 0]]), backgrounds=torch.tensor([[0.0, 0, 1]]),
    )  # fmt: skip
    centre = {mode: ops.rasterization(**two, render_mode=mode)[0][0, 4, 4] for mode in ("RGB", "D", "ED", "RGB+D", "RGB+ED")}
    rgb, depth, alpha = torch.tensor([0.3, 0.5, 0.2]), 0.5 * 2 + 0.3 * 4, 0.8
    torch.testing.assert_close(centre["RGB"], rgb)
    torch.testing.assert_close(centre["D"], torch.tensor([depth]))
    torch.testing.assert_close(centre["ED"], torch.tensor([depth / alpha]))
    torch.testing.assert_close(centre["RGB+D"], torch.cat([rgb, torch.tensor([depth])]))
    torch.testing.assert_close(centre["RGB+ED"], torch.cat([rgb, torch.tensor([depth / alpha])]))


def test_a_pixel_stops_before_its_light_falls_to_the_threshold():
    stack = one_gaussian(
        means=torch.tensor([[0.0, 0, 2 + i] for i in range(5)]), quats=torch.tensor([[1.0, 0, 0, 0]] * 5),
        scales=torch.full((5, 3), 0.4), opacities=torch.tensor([0.985, 0.985, 0.985, 0.01, 0.5]), colors=torch.eye(5),
    )  # fmt: skip
    colors, alphas, _ = ops.rasterization(**stack)
    # 0.015^2 = 2.25e-4 is left after two; the third would leave 3.4e-6, and nothing behind it counts either.
    torch.testing.assert_close(colors[0, 4, 4], torch.tensor([0.985, 0.015 * 0.985, 0, 0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(alphas[0, 4, 4], torch.tensor([1 - 2.25e-4]), atol=1e-6, rtol=0)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_gradcheck_in_every_input(mode):
    """Float64 finite differences in means, quats, scales, opacities, harmonics, poses, intrinsics, backgrounds, features."""
    scene = make_scene(num_gaussians=5, num_cameras=2, dim=2, width=7, height=6)
    scene["colors"] = torch.randn(5, 9, 3, dtype=torch.float64) * 0.2
    scene["backgrounds"] = torch.rand(2, 3, dtype=torch.float64)
    scene["scales"] = scene["scales"] + 0.2
    names = [name for name in scene if isinstance(scene[name], torch.Tensor)]

    def render(*tensors):
        arguments = {**scene, **dict(zip(names, tensors, strict=True))}
        colors, alphas, meta = ops.rasterization(**arguments, sh_degree=2, render_mode="RGB+ED", rasterize_mode=mode)
        outputs = torch.cat([t.flatten() for t in (colors, alphas, meta["features"])])
        return outputs.view(1, -1) @ torch.cos(torch.arange(6.0 * len(outputs), dtype=torch.float64).square()).view(-1, 6)

    def move_allowed(K):  # finite differences in the entries of K that are free
        return torch.stack([torch.stack([K[:, 0], 0 * K[:, 0], K[:, 2]], -1), torch.stack([0 * K[:, 0], K[:, 1], K[:, 3]], -1),
                            torch.stack([0 * K[:, 0], 0 * K[:, 0], 0 * K[:, 0] + 1], -1)], 1)  # fmt: skip

    free = scene["Ks"][:, [0, 1, 0, 1], [0, 1, 2, 2]]
    inputs = [(free if name == "Ks" else scene[name]).clone().requires_grad_() for name in names]
    where = names.index("Ks")
    assert torch.autograd.gradcheck(
        lambda *t: render(*t[:where], move_allowed(t[where]), *t[where + 1 :]), inputs, eps=1e-6, atol=1e-6, rtol=1e-4
    )


def test_gradient_reaches_geometry_from_features_alone():
    scene = make_scene()
    means = scene["means"].requires_grad_()
    ops.rasterization(**scene)[2]["features"].square().sum().backward()
    assert means.grad.abs().max() > 1e-3


def test_projected_means_keep_their_gradient():
    """Densification strategies read meta["means2d"].grad."""
    scene = make_scene()
    scene["means"].requires_grad_()
    colors, _, meta = ops.rasterization(**scene)
    meta["means2d"].retain_grad()
    colors.sum().backward()
    assert meta["means2d"].grad.shape == (2, 40, 2) and meta["means2d"].grad.abs().max() > 0


def test_compiles_without_a_graph_break():
    scene = make_scene(num_gaussians=10, width=9, height=8)
    names = [name for name, value in scene.items() if isinstance(value, torch.Tensor)]

    def loss(*tensors):
        colors, alphas, meta = ops.rasterization(**dict(zip(names, tensors, strict=True)), width=9, height=8, render_mode="RGB+ED")
        return colors.square().sum() + alphas.sum() + meta["features"].square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    grads = []
    for function in (loss, compiled):
        leaves = [scene[name].clone().requires_grad_() for name in names]
        grads.append(torch.autograd.grad(function(*leaves), leaves))
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.long
def test_the_default_compiler_gives_the_same_gradients():
    """Inductor, which writes and compiles C++ around our ops."""
    scene = make_scene(num_gaussians=10, width=9, height=8)
    names = [name for name, value in scene.items() if isinstance(value, torch.Tensor)]

    def loss(*tensors):
        colors, alphas, meta = ops.rasterization(**dict(zip(names, tensors, strict=True)), width=9, height=8, render_mode="RGB+ED")
        return colors.square().sum() + alphas.sum() + meta["features"].square().sum()

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="inductor")):
        leaves = [scene[name].clone().requires_grad_() for name in names]
        grads.append(torch.autograd.grad(function(*leaves), leaves))
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted)


# ---------------------------------------------------------------- cameras and culling


def test_a_scaled_world_renders_the_same_image_at_the_original_depth():
    """x' = S x + t goes with extrinsic' = extrinsic @ inv(A), also where S differs by axis."""
    scene = make_scene()
    scene["quats"] = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(40, 4)
    outputs, _ = render_with_grads(scene, render_mode="RGB+ED")
    stretch, shift = torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64), torch.tensor([1.0, -2, 0.3], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3], affine[:3, 3] = torch.diag(stretch), shift
    moved = {**scene, "means": scene["means"] * stretch + shift, "scales": scene["scales"] * stretch,
             "viewmats": scene["viewmats"] @ torch.linalg.inv(affine)}  # fmt: skip
    for got, wanted in zip(render_with_grads(moved, render_mode="RGB+ED")[0], outputs, strict=True):
        torch.testing.assert_close(got, wanted)


def test_gaussians_outside_the_depth_range_or_too_small_are_left_out():
    for options in ({"near_plane": 2.5}, {"far_plane": 1.5}, {"radius_clip": 20.0}):
        colors, alphas, meta = ops.rasterization(**one_gaussian(), **options)
        assert not colors.any() and not alphas.any() and not meta["radii"].any()
    assert ops.rasterization(**one_gaussian(), near_plane=1.5, far_plane=2.5, radius_clip=2.0)[1].any()


def test_antialiasing_lowers_opacity_by_the_added_area():
    scene = one_gaussian(scales=torch.full((1, 3), 0.05))
    variance = (10 * 0.05 / 2) ** 2
    alphas = ops.rasterization(**scene, rasterize_mode="antialiased")[1]
    torch.testing.assert_close(alphas[0, 4, 4], torch.tensor([0.8 * variance / (variance + 0.3)]))


def test_spherical_harmonics_are_orthonormal():
    z, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(10))
    phi = torch.arange(20, dtype=torch.float64) * (2 * math.pi / 20)
    radius = (1 - z * z).sqrt()[:, None]
    directions = torch.stack([radius * phi.cos(), radius * phi.sin(), z[:, None].expand(-1, 20)], -1).reshape(-1, 1, 3)
    one_hot = torch.eye(25, dtype=torch.float64).unsqueeze(-1).expand(-1, -1, 3)  # [25 functions, K, 3]
    basis = spherical_harmonics(4, 2.5 * directions, one_hot)[..., 0]  # [points, 25]
    gram = basis.T @ (basis * weight.repeat_interleave(20)[:, None] * (2 * math.pi / 20))
    torch.testing.assert_close(gram, torch.eye(25, dtype=torch.float64))


def test_harmonics_of_degree_zero_are_plain_colors():
    scene = make_scene()
    harmonics = ((scene["colors"] - 0.5) / 0.28209479177387814).unsqueeze(1)
    wanted = ops.rasterization(**scene)[0]
    torch.testing.assert_close(ops.rasterization(**{**scene, "colors": harmonics}, sh_degree=0)[0], wanted)


# ---------------------------------------------------------------- edges


def test_empty_scene_and_empty_view():
    empty = make_scene(num_gaussians=0)
    background = torch.rand(2, 3, dtype=torch.float64)
    outputs, grads = render_with_grads({**empty, "backgrounds": background})
    assert (outputs[0] == background[:, None, None]).all() and not outputs[1].any() and outputs[2].shape == (2, 29, 37, 5)
    behind = make_scene()
    behind["means"] = behind["means"] * torch.tensor([1, 1, -1.0])
    outputs, grads = render_with_grads(behind, render_mode="RGB+ED")
    assert not any(o.any() for o in outputs)
    assert all(torch.isfinite(g).all() and not g.any() for g in grads.values())


def test_no_camera():
    scene = make_scene()
    colors, alphas, meta = ops.rasterization(**{**scene, "viewmats": scene["viewmats"][:0], "Ks": scene["Ks"][:0]})
    assert colors.shape == (0, 29, 37, 3) and alphas.shape == (0, 29, 37, 1) and meta["radii"].shape == (0, 40, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_are_blended_in_float32(dtype):
    scene = make_scene(dtype=torch.float32)
    half = scene["features"].to(dtype)
    wanted = ops.rasterization(**{**scene, "features": half.float()})[2]["features"]
    features = half.requires_grad_()
    colors, _, meta = ops.rasterization(**{**scene, "features": features, "colors": scene["colors"].to(dtype)})
    assert meta["features"].dtype == torch.float32 and torch.equal(meta["features"], wanted)
    torch.testing.assert_close(colors, ops.rasterization(**scene)[0], atol=2e-2, rtol=2e-2)
    meta["features"].sum().backward()
    assert features.grad.dtype == dtype and features.grad.abs().max() > 0


def test_non_contiguous_inputs():
    scene = make_scene()
    outputs, grads = render_with_grads(scene)
    spread = {n: torch.stack([v, v], -1)[..., 0] if isinstance(v, torch.Tensor) else v for n, v in scene.items()}
    assert not spread["features"].is_contiguous()
    again, grads_again = render_with_grads(spread)
    for got, wanted in zip(again + list(grads_again.values()), outputs + list(grads.values()), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("options", [{}, {"render_mode": "RGB+ED", "rasterize_mode": "antialiased"}], ids=str)
def test_two_runs_give_the_same_bits(options):
    scene = make_scene(num_gaussians=500, dtype=torch.float32)
    first, second = render_with_grads(scene, **options), render_with_grads(scene, **options)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def test_values_at_the_ends_of_their_ranges_are_rendered():
    scene = make_scene(dtype=torch.float32)
    scene["opacities"][:20], scene["opacities"][20:], scene["scales"][::2, 1] = 1.0, 0.0, 0.0
    scene["quats"][3] = torch.tensor([0, 1e-11, 0, 0])
    assert all(torch.isfinite(output).all() for output in render_with_grads(scene)[0])


def test_finite_values_whose_sum_overflows_are_rendered():
    scene = make_scene(dtype=torch.float32)
    colors, alphas, _ = ops.rasterization(**{**scene, "colors": torch.full((40, 3), 3e38)})
    assert torch.isfinite(alphas).all() and alphas.any() and colors.max() > 1e37

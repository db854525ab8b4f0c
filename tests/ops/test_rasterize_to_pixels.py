"""The op under `rasterization`: against a naive loop, its plain-torch twin, finite cases and hostile ones."""

import math

import numpy as np
import pytest
import torch

from pointcept3m.ops import _library
from pointcept3m.ops.gaussian_projection import project_gaussians
from pointcept3m.ops.rasterize_to_pixels import (
    rasterize_to_pixels,
    rasterize_to_pixels_backward_twin,
    rasterize_to_pixels_twin,
)
from tests.ops.test_rasterize import make_op_inputs

native = pytest.mark.skipif(not _library.native_loaded(), reason="the compiled library is not loaded")


def naive_render(means2d, conics, opacities, depths, view_channels, channels, width, height):
    """One camera, pixel by pixel and Gaussian by Gaussian."""
    order = sorted(range(len(depths)), key=lambda i: float(depths[i]))
    values = torch.cat([view_channels, channels], -1)
    image, light = torch.zeros(height, width, values.shape[1], dtype=values.dtype), torch.ones(height, width, dtype=values.dtype)
    for row in range(height):
        for column in range(width):
            for i in order:
                d = torch.tensor([column + 0.5, row + 0.5], dtype=values.dtype) - means2d[i]
                a, b, c = conics[i]
                alpha = min(0.99, float(opacities[i] * torch.exp(-0.5 * (a * d[0] ** 2 + 2 * b * d[0] * d[1] + c * d[1] ** 2))))
                if alpha < 1 / 255:
                    continue
                if light[row, column] * (1 - alpha) <= 1e-4:
                    break
                image[row, column] += light[row, column] * alpha * values[i]
                light[row, column] *= 1 - alpha
    return image, light


@pytest.mark.parametrize("render", [rasterize_to_pixels, rasterize_to_pixels_twin])
def test_naive_loop(render):
    inputs = list(make_op_inputs(40, 1, 2, 3, torch.float64, 11, 9))
    inputs[1] = inputs[1] * 0.2  # wide enough that many pixels stop early
    view_pixels, pixels, transmittance, last, _ = render(*inputs)
    image, light = naive_render(*(t[0] for t in inputs[:5]), *inputs[5:])
    assert (light < 1e-3).any()
    torch.testing.assert_close(torch.cat([view_pixels, pixels], -1)[0], image)
    torch.testing.assert_close(transmittance[0], light)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("num_gaussians", "num_cameras", "own", "shared", "width", "height"),
    [
        (300, 2, 4, 20, 51, 43), (1500, 1, 1, 0, 40, 90), (64, 3, 3, 1, 1, 1), (500, 1, 4, 70, 8, 300), (100, 1, 0, 8, 65, 7),
        # whole vectors of 16 channels, of 32, and rests of both kinds beside each other
        (80, 2, 17, 33, 21, 18), (80, 1, 0, 16, 21, 18), (80, 1, 48, 0, 21, 18), (80, 1, 15, 15, 21, 18), (40, 2, 0, 0, 9, 9),
    ],  # fmt: skip
)
def test_kernel_equals_twin(dtype, num_gaussians, num_cameras, own, shared, width, height):
    inputs = make_op_inputs(num_gaussians, num_cameras, own, shared, dtype, width, height)
    ours, twin = rasterize_to_pixels(*inputs), rasterize_to_pixels_twin(*inputs)
    tight = {"atol": 1e-10, "rtol": 1e-8} if dtype == torch.float64 else {"atol": 2e-5, "rtol": 1e-4}
    for got, wanted in zip(ours, twin, strict=True):
        torch.testing.assert_close(got, wanted, **tight)
    grads = [torch.randn_like(t) for t in twin[:3]]
    saved = (inputs[0], inputs[1], inputs[2], inputs[4], inputs[5], *twin[2:])
    ours = torch.ops.pointcept3m.rasterize_to_pixels_backward(*grads, *saved)
    for got, wanted in zip(ours, rasterize_to_pixels_backward_twin(*grads, *saved), strict=True):
        scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        torch.testing.assert_close(got, wanted, atol=tight["atol"] * scale, rtol=1e-3)


@native
def test_gaussians_as_tall_as_the_image_equal_twin():
    """They reach many bands of the picture, whose threads must not add to the same gradients."""
    inputs = list(make_op_inputs(30, 2, 3, 20, torch.float64, 24, 400))
    inputs[1] = torch.tensor([0.02, 0.0, 2e-5], dtype=torch.float64).expand(2, 30, 3).contiguous()
    inputs[2] = inputs[2].abs() * 0.2
    twin = rasterize_to_pixels_twin(*inputs)
    grads = [torch.randn_like(t) for t in twin[:3]]
    saved = (inputs[0], inputs[1], inputs[2], inputs[4], inputs[5], *twin[2:])
    ours = torch.ops.pointcept3m.rasterize_to_pixels_backward(*grads, *saved)
    for got, wanted in zip(ours, rasterize_to_pixels_backward_twin(*grads, *saved), strict=True):
        torch.testing.assert_close(got, wanted)


@native
@pytest.mark.parametrize("opacity", [1.0001 / 255, 0.02])
def test_thousands_of_faint_gaussians_on_one_pixel_equal_twin(opacity):
    """As many as may count before a pixel stops, ln(1e-4) / ln(254/255) = 2344, and more behind them."""
    count, options = 3000, {"dtype": torch.float64}
    inputs = (
        torch.full((1, count, 2), 4.5, **options), torch.tensor([1e-9, 0, 1e-9], **options).expand(1, count, 3).contiguous(),
        torch.full((1, count), opacity, **options), torch.rand(1, count, **options) + 1,
        torch.rand(1, count, 1, **options), torch.rand(count, 2, **options), 9, 9,
    )  # fmt: skip
    ours, twin = rasterize_to_pixels(*inputs), rasterize_to_pixels_twin(*inputs)
    for got, wanted in zip(ours, twin, strict=True):
        torch.testing.assert_close(got, wanted)
    grads = [torch.randn_like(t) for t in twin[:3]]
    saved = (inputs[0], inputs[1], inputs[2], inputs[4], inputs[5], *twin[2:])
    ours = torch.ops.pointcept3m.rasterize_to_pixels_backward(*grads, *saved)
    for got, wanted in zip(ours, rasterize_to_pixels_backward_twin(*grads, *saved), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-7, rtol=1e-5)


def test_twin_backward_equals_autograd_through_the_twin():
    inputs = make_op_inputs(60, 2, 3, 4, torch.float64, 21, 17)
    leaves = [inputs[i].requires_grad_() for i in (0, 1, 2, 4, 5)]
    outputs = rasterize_to_pixels_twin(*inputs)
    above = [torch.randn_like(t) for t in outputs[:3]]
    wanted = torch.autograd.grad(outputs[:3], leaves, above)
    with torch.no_grad():
        got = rasterize_to_pixels_backward_twin(*above, *leaves, *(t.detach() for t in outputs[2:]))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@native
@pytest.mark.not_emulated
def test_garden_crop_equals_twin(real_data):
    data = np.load(real_data("gsplat_garden") / "test_garden.npz", allow_pickle=False)
    means = torch.from_numpy(data["means3d"])
    keep = (means.abs() < 2).all(1)
    num_gaussians, generator = int(keep.sum()), torch.Generator().manual_seed(42)
    K = torch.from_numpy(data["Ks"])[:1].clone()
    K[:, 0, 2] -= 244  # the 160x120 pixels around the centre
    K[:, 1, 2] -= 150
    projection = project_gaussians(
        means[keep], torch.randn(num_gaussians, 4, generator=generator), torch.rand(num_gaussians, 3, generator=generator) * 0.02,
        torch.rand(num_gaussians, generator=generator), torch.from_numpy(data["viewmats"])[:1], K, 160, 120,
        0.01, 1e10, 0.0, 0.3, False,
    )  # fmt: skip
    colors = torch.from_numpy(data["colors"])[keep].float() / 255
    inputs = (*projection[:2], projection.opacities, projection.depths, colors[None], means[keep], 160, 120)
    ours, twin = rasterize_to_pixels(*inputs), rasterize_to_pixels_twin(*inputs)
    for got, wanted in zip(ours[:3], twin[:3], strict=True):
        error = (got - wanted).abs().flatten()
        # Rounding may put an alpha on the other side of 1/255, and no more than that, in a few pixels.
        assert error.quantile(0.999) < 1e-4 and error.max() < 2e-2
    above = [torch.randn_like(t) for t in twin[:3]]
    saved = (projection.means2d, projection.conics, projection.opacities, colors[None], means[keep], *twin[2:])
    ours = torch.ops.pointcept3m.rasterize_to_pixels_backward(*above, *saved)
    for got, wanted in zip(ours, rasterize_to_pixels_backward_twin(*above, *saved), strict=True):
        assert (got - wanted).norm() < 1e-3 * wanted.norm()


def test_opcheck():
    inputs = make_op_inputs(20, 2, 3, 4, torch.float32, 19, 10)
    leaves = [t.requires_grad_() if isinstance(t, torch.Tensor) and i != 3 else t for i, t in enumerate(inputs)]
    torch.library.opcheck(torch.ops.pointcept3m.rasterize_to_pixels.default, tuple(leaves))
    with torch.no_grad():
        outputs = rasterize_to_pixels(*inputs)
    plain = [leaves[i].detach() for i in (0, 1, 2, 4, 5)]
    arguments = (*(torch.randn_like(t) for t in outputs[:3]), *plain, *outputs[2:])
    torch.library.opcheck(torch.ops.pointcept3m.rasterize_to_pixels_backward.default, arguments)


def test_equal_depths_are_drawn_in_the_order_of_their_indices():
    inputs = list(make_op_inputs(6, 1, 0, 2, torch.float32, 20, 20))
    inputs[2] = torch.full((1, 6), 0.5)
    inputs[3] = torch.tensor([[0.0, -0.0, -1.0, 0.0, -0.0, -1.0]])
    assert torch.ops.pointcept3m.rasterize_to_pixels(*inputs)[4].tolist() == [[2, 5, 0, 1, 3, 4]]


@native
def test_every_run_and_every_thread_count_give_the_same_bits():
    inputs = make_op_inputs(500, 2, 4, 12, torch.float32, 60, 70)
    runs, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            outputs = rasterize_to_pixels(*inputs)
            above = [torch.ones_like(t) for t in outputs[:3]]
            saved = (inputs[0], inputs[1], inputs[2], inputs[4], inputs[5], *outputs[2:])
            runs.append((*outputs, *torch.ops.pointcept3m.rasterize_to_pixels_backward(*above, *saved)))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("field", [0, 1, 2, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, -1e38, 1e-38, 0.0, -1.0])
def test_hostile_values_reach_the_kernel_and_harm_nothing(dtype, field, value):
    """Means, conics, opacities and depths that `rasterization` would refuse: no crash, and others are drawn as before."""
    inputs = list(make_op_inputs(60, 1, 2, 20, dtype, 30, 21))
    inputs[field] = inputs[field].clone()
    inputs[field][:, ::2] = value
    outputs = rasterize_to_pixels(*inputs)
    if field != 3 and (value != value or value < (-1 if field == 0 else 0)):
        kept = [t[:, 1::2].contiguous() if t.dim() > 1 and t.shape[0] == 1 else t[1::2].contiguous() for t in inputs[:6]]
        for got, wanted in zip(outputs[:3], rasterize_to_pixels(*kept, 30, 21)[:3], strict=True):
            torch.testing.assert_close(got, wanted)
    above = [torch.randn_like(t) for t in outputs[:3]]
    saved = [inputs[0], inputs[1], inputs[2], inputs[4], inputs[5], *outputs[2:]]
    torch.ops.pointcept3m.rasterize_to_pixels_backward(*above, *saved)
    for last in (-(2**31), 2**31 - 1):  # of another run, or of none
        saved[6] = torch.full_like(outputs[3], last)
        torch.ops.pointcept3m.rasterize_to_pixels_backward(*above, *saved)
    saved[6], saved[7] = outputs[3], outputs[4].clone()
    saved[7][0, :2] = 1
    with pytest.raises(RuntimeError, match="order holds an index twice"):
        torch.ops.pointcept3m.rasterize_to_pixels_backward(*above, *saved)
    saved[7][0, 0] = 60
    with pytest.raises(RuntimeError, match="order holds an index outside"):
        torch.ops.pointcept3m.rasterize_to_pixels_backward(*above, *saved)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("conic", [(1e30, 0, 1e30), (1e30, 0, 1e-3), (1e-3, 0, 1e30), (1e-15, 1e-16, 1e-15), (1, 1 - 1e-7, 1)])
def test_points_needles_and_walls_equal_twin(dtype, conic):
    """Conics whose determinant or reach leaves the range of float32, on a pixel's centre and beside one."""
    inputs = list(make_op_inputs(4, 1, 1, 2, dtype, 24, 21))
    inputs[0] = torch.tensor([[[4.5, 4.5], [4.5, 9.0], [12.0, 16.5], [20.2, 3.1]]], dtype=dtype)
    inputs[1] = torch.tensor(conic, dtype=dtype).expand(1, 4, 3).contiguous()
    inputs[2] = torch.tensor([[0.7, 0.5, 0.01, 0.9]], dtype=dtype)
    ours, twin = rasterize_to_pixels(*inputs), rasterize_to_pixels_twin(*inputs)
    for got, wanted in zip(ours[:3], twin[:3], strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@native
def test_kernel_guards_against_a_direct_call():
    inputs = list(make_op_inputs(10, 1, 1, 1, torch.float32, 8, 8))
    inputs[1] = inputs[1][:, :9].contiguous()
    with pytest.raises(RuntimeError, match="conics must be"):
        torch.ops.pointcept3m.rasterize_to_pixels(*inputs)

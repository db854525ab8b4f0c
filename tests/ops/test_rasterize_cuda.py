"""The rasterizer's kernels by number of channels, against the twin in float64; and on a GPU at realistic size.

What is not marked runs on a GPU where there is one, else on the CPU: on its own kernels, or on the CUDA kernels under
the emulator (tests/cuda_emulator).
"""

import math

import pytest
import torch

from pointcept3m.ops import _library
from pointcept3m.ops.gaussian_projection import (
    project_gaussians,
    project_gaussians_backward_twin,
    project_gaussians_twin,
)
from pointcept3m.ops.rasterize_to_pixels import (
    rasterize_to_pixels,
    rasterize_to_pixels_backward_twin,
    rasterize_to_pixels_twin,
)
from tests.ops.test_rasterize import make_scene
from tests.ops.test_rasterize_to_pixels import make_op_inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
native = pytest.mark.skipif(
    not (_library.native_loaded() if DEVICE == "cpu" else _library._native_cuda), reason="no compiled library is loaded"
)
gpu = pytest.mark.gpu


def backward(*arguments):
    return torch.ops.pointcept3m.rasterize_to_pixels_backward(*arguments)


def to_device(inputs, dtype=None):
    return tuple(t.to(DEVICE, dtype) if isinstance(t, torch.Tensor) else t for t in inputs)


def backward_arguments(inputs, outputs, above):
    means2d, conics, opacities, _, view_channels, channels, _, _ = inputs
    return *above, means2d, conics, opacities, view_channels, channels, *outputs[2:]


def relative_error(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm()) if wanted.numel() else 0.0


# (own channels, shared channels): each kernel and each layout of rows, whole and broken blocks of 8, 4 and 2.
CHANNELS = [
    (0, 0), (3, 0), (0, 4), (4, 1), (3, 13), (16, 0), (4, 13), (17, 0), (0, 64), (4, 64), (5, 65), (1, 131), (4, 264),
    (4, 512), (3, 600),
]  # fmt: skip


@native
@pytest.mark.parametrize(("own", "shared"), CHANNELS)
def test_any_number_of_channels_has_the_accuracy_of_float32(own, shared):
    """Tensor cores round to 10 bits: float32 must not show it."""
    size = (90, 2, own, shared, torch.float64, 21, 18) if shared < 200 else (50, 1, own, shared, torch.float64, 17, 10)
    wide = make_op_inputs(*size)
    inputs, wanted = to_device(wide, torch.float32), rasterize_to_pixels_twin(*wide)
    outputs = rasterize_to_pixels(*inputs)
    for got, expected in zip(outputs[:3], wanted[:3], strict=True):
        torch.testing.assert_close(got.cpu().double(), expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(outputs[3].cpu(), wanted[3]) and torch.equal(outputs[4].cpu(), wanted[4])
    above = [torch.randn_like(t) for t in wanted[:3]]
    grads = backward(*backward_arguments(inputs, outputs, to_device(above, torch.float32)))
    expected = rasterize_to_pixels_backward_twin(*backward_arguments(wide, wanted, above))
    for got, exact in zip(grads, expected, strict=True):
        assert relative_error(got.cpu(), exact) < 1e-5


@native
@pytest.mark.parametrize(("own", "shared"), [(4, 1), (2, 8), (4, 20)])
def test_float64_is_exact(own, shared):
    wide = make_op_inputs(70, 2, own, shared, torch.float64, 21, 18)
    inputs, wanted = to_device(wide), rasterize_to_pixels_twin(*wide)
    outputs = rasterize_to_pixels(*inputs)
    for got, expected in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(got.cpu(), expected, atol=1e-11, rtol=1e-9)
    above = [torch.randn_like(t) for t in wanted[:3]]
    grads = backward(*backward_arguments(inputs, outputs, to_device(above)))
    expected = rasterize_to_pixels_backward_twin(*backward_arguments(wide, wanted, above))
    for got, exact in zip(grads, expected, strict=True):
        assert relative_error(got.cpu(), exact) < 1e-9


@native
@pytest.mark.parametrize(("own", "shared"), [(4, 0), (4, 9), (4, 64)])
def test_pixels_that_stop_early(own, shared):
    """Long lists of wide, opaque Gaussians: pixels of a tile, then tiles, stop before the end of theirs."""
    wide = list(make_op_inputs(300, 1, own, shared, torch.float64, 20, 17))
    wide[1], wide[2] = wide[1] * 0.02, wide[2].abs().clamp_min(0.3)
    wanted = rasterize_to_pixels_twin(*wide)
    assert int(wanted[3].max()) < 150  # of 300
    inputs = to_device(wide, torch.float32)
    outputs = rasterize_to_pixels(*inputs)
    for got, expected in zip(outputs[:3], wanted[:3], strict=True):
        torch.testing.assert_close(got.cpu().double(), expected, atol=2e-5, rtol=1e-4)
    above = [torch.randn_like(t) for t in wanted[:3]]
    grads = backward(*backward_arguments(inputs, outputs, to_device(above, torch.float32)))
    expected = rasterize_to_pixels_backward_twin(*backward_arguments(wide, wanted, above))
    for got, exact in zip(grads, expected, strict=True):
        assert relative_error(got.cpu(), exact) < 1e-4


@native
@pytest.mark.parametrize(("shared", "width", "height"), [(0, 33, 530), (0, 530, 20), (20, 17, 290)])
def test_gaussians_that_reach_many_tiles(shared, width, height):
    """More than 64 of them, in more than 32 rows of tiles or in few."""
    wide = list(make_op_inputs(12, 1, 4, shared, torch.float64, width, height))
    wide[1] = torch.tensor([2e-4, 1e-5, 1e-4]).double() * torch.rand(1, 12, 1, dtype=torch.float64)
    wanted = rasterize_to_pixels_twin(*wide)
    inputs = to_device(wide, torch.float32)
    outputs = rasterize_to_pixels(*inputs)
    for got, expected in zip(outputs[:3], wanted[:3], strict=True):
        torch.testing.assert_close(got.cpu().double(), expected, atol=2e-5, rtol=1e-4)
    above = [torch.randn_like(t) for t in wanted[:3]]
    grads = backward(*backward_arguments(inputs, outputs, to_device(above, torch.float32)))
    expected = rasterize_to_pixels_backward_twin(*backward_arguments(wide, wanted, above))
    for got, exact in zip(grads, expected, strict=True):
        assert relative_error(got.cpu(), exact) < 1e-4


@native
def test_equal_depths_keep_the_order_of_indices():
    inputs = list(make_op_inputs(60, 2, 1, 0, torch.float32, 9, 8))
    inputs[3] = torch.tensor([0.0, 1e-40, 1.5, -2.0]).repeat(2, 15)
    order = rasterize_to_pixels(*to_device(inputs))[4].cpu()
    for camera in range(2):
        visible = [i for i in range(60) if inputs[2][camera, i] >= 1 / 255]
        wanted = sorted(visible, key=lambda i: float(inputs[3][camera, i]))
        assert order[camera].tolist() == wanted + [-1] * (60 - len(wanted))


@native
@pytest.mark.parametrize(("own", "shared"), [(4, 0), (4, 20)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, 0.0])
def test_a_broken_gaussian_leaves_the_others_alone(own, shared, value):
    """Its mean, conic or depth may hold anything: the image is as if it were not there, and gradients are finite."""
    wide = make_op_inputs(50, 1, own, shared, torch.float32, 21, 18)
    hidden, broken = [t.clone() if isinstance(t, torch.Tensor) else t for t in wide], list(wide)
    for index in (3, 7, 11):
        hidden[2][:, index] = 0
    broken[2] = wide[2].clone()
    broken[2][:, [3, 7, 11]] = 0.5
    broken[0], broken[1] = wide[0].clone(), wide[1].clone()
    broken[0][:, 3] = math.nan
    broken[1][:, 7] = value
    broken[1][:, 11] = torch.tensor([1.0, 2.0, 1.0])  # not positive definite
    wanted, outputs = rasterize_to_pixels(*to_device(hidden)), rasterize_to_pixels(*to_device(broken))
    for got, expected in zip(outputs[:3], wanted[:3], strict=True):
        assert torch.equal(got, expected)
    above = [torch.randn_like(t) for t in outputs[:3]]
    for grad in backward(*backward_arguments(to_device(broken), outputs, above)):
        assert grad.isfinite().all()


@native
@pytest.mark.parametrize("index", [50, -2, 2**31 - 1, -(2**31)])
def test_an_order_outside_the_gaussians_is_refused(index):
    inputs = to_device(make_op_inputs(50, 1, 1, 1, torch.float32, 9, 8))
    outputs = list(rasterize_to_pixels(*inputs))
    outputs[4] = outputs[4].clone()
    outputs[4][0, 20] = index
    with pytest.raises(RuntimeError, match=r"order holds an index outside \[-1, G\)"):
        backward(*backward_arguments(inputs, outputs, outputs[:3]))


@native
@pytest.mark.parametrize(("own", "shared"), [(4, 0), (4, 20)])
def test_any_last_and_any_order_of_the_gaussians_are_safe(own, shared):
    inputs = to_device(make_op_inputs(50, 2, own, shared, torch.float32, 21, 18))
    outputs = list(rasterize_to_pixels(*inputs))
    outputs[3] = torch.randint(-(2**31), 2**31 - 1, outputs[3].shape, dtype=torch.int32, device=DEVICE)
    outputs[4] = torch.stack([torch.randperm(50), torch.randperm(50)]).to(DEVICE, torch.int32)
    grads = backward(*backward_arguments(inputs, outputs, outputs[:3]))
    assert [g.shape for g in grads] == [inputs[i].shape for i in (0, 1, 2, 4, 5)]


@native
@pytest.mark.parametrize(("num_gaussians", "num_cameras"), [(0, 1), (5, 0), (0, 0)])
@pytest.mark.parametrize(("own", "shared"), [(3, 2), (4, 40), (0, 0)])
def test_nothing_to_render(num_gaussians, num_cameras, own, shared):
    inputs = to_device(make_op_inputs(num_gaussians, num_cameras, own, shared, torch.float32, 9, 8))
    outputs = rasterize_to_pixels(*inputs)
    assert outputs[0].shape == (num_cameras, 8, 9, own) and not outputs[0].any() and not outputs[1].any()
    assert (outputs[2] == 1).all() and (outputs[3] == -1).all()
    grads = backward(*backward_arguments(inputs, outputs, [torch.ones_like(t) for t in outputs[:3]]))
    assert not any(g.any() for g in grads)


@native
@pytest.mark.parametrize(("own", "shared"), [(4, 0), (4, 20)])
def test_every_run_gives_the_same_bits(own, shared):
    inputs = to_device(make_op_inputs(200, 2, own, shared, torch.float32, 35, 20))
    above = [torch.randn_like(t) for t in rasterize_to_pixels(*inputs)[:3]]
    runs = []
    for _ in range(2):
        outputs = rasterize_to_pixels(*inputs)
        runs.append((*outputs, *backward(*backward_arguments(inputs, outputs, above))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@native
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_projection_of_many_gaussians(dtype, error, antialiased):
    """Several blocks of threads: the cameras' gradients add up over them."""
    scene = make_scene(num_gaussians=1500, num_cameras=3, dtype=torch.float64)
    scene["means"][:400] *= 3  # some behind the camera, or out of view
    scene["scales"][:300] *= 0.01
    wide = [scene[name] for name in ("means", "quats", "scales", "opacities", "viewmats", "Ks")]
    settings = (37, 29, 1.0, 4.0, 0.5, 0.3, antialiased)
    tensors = to_device(wide, dtype)
    got, wanted = project_gaussians(*tensors, *settings), project_gaussians_twin(*wide, *settings)
    for mine, exact in zip(got[:4], wanted[:4], strict=True):
        assert relative_error(mine.cpu(), exact) < error
    assert (got[4].cpu() != wanted[4]).float().mean() < 1e-3  # rounded up to whole pixels
    above = [torch.randn_like(t) for t in wanted[:4]]
    radii, settings = wanted[4], (*settings[:4], *settings[5:])
    launched = torch.ops.pointcept3m.project_gaussians_backward
    grads = launched(*to_device(above, dtype), *tensors, radii.to(DEVICE), *settings)
    for mine, exact in zip(grads, project_gaussians_backward_twin(*above, *wide, radii, *settings), strict=True):
        assert relative_error(mine.cpu(), exact) < 10 * error


# ---------------------------------------------------------------- on a GPU, at realistic size


def large_scene(shared, num_cameras=1, num_gaussians=100_000):
    """Means uniform on 648x420 pixels; standard deviations of 0.5 to 10 pixels in any direction; four own channels."""
    turn = torch.rand(num_cameras, num_gaussians) * math.pi
    deviation = 0.5 + 9.5 * torch.rand(2, num_cameras, num_gaussians) ** 4
    cos, sin, (p, q) = turn.cos(), turn.sin(), deviation**-2
    conics = torch.stack([p * cos**2 + q * sin**2, (p - q) * sin * cos, p * sin**2 + q * cos**2], -1)
    means2d = torch.rand(num_cameras, num_gaussians, 2) * torch.tensor([648.0, 420.0])
    depths, opacities = torch.rand(num_cameras, num_gaussians) + 1, torch.rand(num_cameras, num_gaussians)
    view_channels, channels = torch.rand(num_cameras, num_gaussians, 4), torch.randn(num_gaussians, shared)
    return to_device((means2d, conics, opacities, depths, view_channels, channels, 648, 420))


@gpu
@pytest.mark.parametrize(("shared", "num_cameras"), [(0, 1), (0, 3), (12, 1), (64, 2), (128, 1), (512, 1)])
def test_large_scene_equals_twin(shared, num_cameras):
    """With 512 channels tiles take turns, as one run's rows of gradients would be too many."""
    inputs = large_scene(shared, num_cameras)
    outputs, twin = rasterize_to_pixels(*inputs), rasterize_to_pixels_twin(*inputs)
    assert torch.equal(outputs[4], twin[4])
    assert (outputs[3] != twin[3]).float().mean() < 1e-3  # an alpha next to 1/255 may fall to either side
    for got, wanted in zip(outputs[:3], twin[:3], strict=True):
        assert relative_error(got, wanted.double()) < 1e-4
    above = [torch.randn_like(t) for t in twin[:3]]
    arguments = backward_arguments(inputs, twin, above)
    grads = backward(*arguments)
    for got, wanted in zip(grads, rasterize_to_pixels_backward_twin(*arguments), strict=True):
        assert relative_error(got, wanted.double()) < 1e-3
    assert all(torch.equal(a, b) for a, b in zip(grads, backward(*arguments), strict=True))


@gpu
def test_memory_is_of_pixels_and_gaussians():
    """Nothing per pair: rows of gradients for at most max(G, pixels / 2) entries, and a few words an entry."""
    inputs = large_scene(256)
    outputs = rasterize_to_pixels(*inputs)
    arguments = backward_arguments(inputs, outputs, [torch.randn_like(t) for t in outputs[:3]])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    backward(*arguments)
    floats = 266 * max(100_000, 648 * 420 // 2) + 100_000 * 266  # rows; gradients
    assert torch.cuda.max_memory_allocated() - before < 4 * floats + 300e6

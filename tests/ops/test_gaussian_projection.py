"""Projection of Gaussians: kernel against the twin, whose gradients are autograd's, cameras included."""

import math

import pytest
import torch

from pointcept3m.ops import _library
from pointcept3m.ops.gaussian_projection import (
    project_gaussians,
    project_gaussians_backward_twin,
    project_gaussians_twin,
)

native = pytest.mark.skipif(not _library.native_loaded(), reason="the compiled library is not loaded")
SIZE = (37, 29)
CLASSIC, ANTIALIASED = (0.01, 1e10, 0.0, 0.3, False), (0.01, 1e10, 0.0, 0.3, True)


def make_scene(num_gaussians=53, num_cameras=3, dtype=torch.float64):
    """Gaussians around cameras: in view, beside it, behind; cameras whose 3x3 part is no rotation."""
    options = {"dtype": dtype}
    means = torch.randn(num_gaussians, 3, **options) * 2 + torch.tensor([0, 0, 2.0], **options)
    viewmats = torch.eye(4, **options).repeat(num_cameras, 1, 1)
    viewmats[:, :3] += 0.2 * torch.randn(num_cameras, 3, 4, **options)
    Ks = torch.tensor([[30, 0, 18], [0, 33, 15], [0, 0, 1]], **options).repeat(num_cameras, 1, 1)
    return [
        means, torch.randn(num_gaussians, 4, **options), torch.rand(num_gaussians, 3, **options) * 0.3 + 0.01,
        torch.rand(num_gaussians, **options), viewmats, Ks,
    ]  # fmt: skip


def outputs_and_grads(project, scene, settings):
    leaves = [t.detach().clone().requires_grad_() for t in scene]
    outputs = project(*leaves, *SIZE, *settings)
    generator = torch.Generator().manual_seed(3)
    above = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in outputs[:4]]
    return outputs, torch.autograd.grad(outputs[:4], leaves, above)


def test_one_gaussian_by_hand():
    """A sphere of 0.5 m, 2 m ahead and 0.4 m to the right of a camera of focal length 10."""
    K = torch.tensor([[[10.0, 0, 5], [0, 10, 4], [0, 0, 1]]])
    seen = project_gaussians(
        torch.tensor([[0.4, 0.0, 2.0]]), torch.tensor([[2.0, 0, 0, 0]]), torch.full((1, 3), 0.5), torch.tensor([0.5]),
        torch.eye(4)[None], K, 10, 8, *CLASSIC,
    )  # fmt: skip
    # The image of the offset by depth: x' = f (dx - x/z dz) / z, so xx = (f s / z)^2 (1 + (x/z)^2).
    xx, yy = 2.5**2 * (1 + 0.2**2) + 0.3, 2.5**2 + 0.3
    torch.testing.assert_close(seen.means2d, torch.tensor([[[7.0, 4.0]]]))
    torch.testing.assert_close(seen.conics, torch.tensor([[[1 / xx, 0.0, 1 / yy]]]))
    assert seen.depths.item() == 2 and seen.opacities.item() == 0.5
    extent = math.sqrt(2 * math.log(255 * 0.5))
    assert seen.radii.tolist() == [[[math.ceil(extent * math.sqrt(xx)), math.ceil(extent * math.sqrt(yy))]]]


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_gaussians", [1, 8, 53, 5000])
@pytest.mark.parametrize("settings", [CLASSIC, ANTIALIASED, (1.5, 3.0, 4.0, 0.0, False)], ids=str)
def test_kernel_equals_twin(dtype, num_gaussians, settings):
    scene = make_scene(num_gaussians, dtype=dtype)
    ours, grads = outputs_and_grads(project_gaussians, scene, settings)
    twin, twin_grads = outputs_and_grads(project_gaussians_twin, scene, settings)
    limits = {"atol": 1e-9, "rtol": 1e-9} if dtype == torch.float64 else {"atol": 1e-4, "rtol": 1e-4}
    same = (ours.radii == twin[4]).all(-1)  # rounding may move a radius that is nearly whole, or a rim
    assert same.float().mean() >= (1.0 if dtype == torch.float64 else 0.999)
    for got, wanted in zip(ours[:4], twin[:4], strict=True):
        torch.testing.assert_close(got[same], wanted[same], **limits)
    if same.all():
        for got, wanted in zip(grads, twin_grads, strict=True):
            torch.testing.assert_close(got, wanted, atol=limits["atol"] * float(wanted.abs().max() + 1), rtol=limits["rtol"])


def test_backward_twin_equals_autograd():
    scene = make_scene()
    outputs, wanted = outputs_and_grads(project_gaussians_twin, scene, ANTIALIASED)
    generator = torch.Generator().manual_seed(3)
    above = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in outputs[:4]]
    width, height = SIZE
    got = project_gaussians_backward_twin(*above, *scene, outputs[4], width, height, 0.01, 1e10, 0.3, True)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("settings", [CLASSIC, ANTIALIASED], ids=["classic", "antialiased"])
def test_gradcheck(settings):
    """Finite differences in everything, of Gaussians in view, and of one whose direction is kept within 1.3 fields."""
    scene = make_scene(6, 2)
    scene[0] = scene[0] * 0.3 + torch.tensor([0, 0, 2.5], dtype=torch.float64)
    scene[0][0] = torch.tensor([2.9, -2.5, 2.5])
    scene[2] = scene[2] + 0.2
    scene[3] = scene[3] * 0.5 + 0.3
    scene = [t.requires_grad_() for t in scene]
    assert (project_gaussians(*scene, *SIZE, *settings).radii[:, 1:] > 0).all()
    assert torch.autograd.gradcheck(lambda *t: project_gaussians(*t, *SIZE, *settings)[:4], scene, eps=1e-6, atol=1e-5)


def test_opcheck():
    scene = [t.float().requires_grad_() for t in make_scene(9, 2)]
    torch.library.opcheck(torch.ops.pointcept3m.project_gaussians.default, (*scene, *SIZE, *CLASSIC))
    plain = [t.detach() for t in scene]
    outputs = project_gaussians(*plain, *SIZE, *CLASSIC)
    above = [torch.randn_like(outputs[i]) for i in range(4)]
    arguments = (*above, *plain, outputs.radii, *SIZE, 0.01, 1e10, 0.3, False)
    torch.library.opcheck(torch.ops.pointcept3m.project_gaussians_backward.default, arguments)


@pytest.mark.parametrize(("num_gaussians", "num_cameras"), [(0, 2), (5, 0), (0, 0)])
def test_empty(num_gaussians, num_cameras):
    outputs, grads = outputs_and_grads(project_gaussians, make_scene(num_gaussians, num_cameras), CLASSIC)
    assert outputs.conics.shape == (num_cameras, num_gaussians, 3) and outputs.radii.dtype == torch.int32
    assert all(not grad.any() for grad in grads)


@native
def test_every_thread_count_gives_the_same_bits():
    scene, threads, runs = make_scene(9000, dtype=torch.float32), torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            outputs, grads = outputs_and_grads(project_gaussians, scene, ANTIALIASED)
            runs.append((*outputs, *grads))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0])
def test_values_that_are_no_gaussian_are_not_seen_and_spoil_no_other(value):
    scene = make_scene(20, 1, torch.float32)
    wanted = project_gaussians(*scene, *SIZE, *CLASSIC)
    for argument in (0, 1, 2):  # means, quats, scales
        bad = [t.clone() for t in scene]
        bad[argument][3] = value
        got = project_gaussians(*bad, *SIZE, *CLASSIC)
        if not math.isfinite(value):
            assert not got.opacities[0, 3].any() and not got.radii[0, 3].any()
        others = torch.arange(20) != 3
        for mine, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine[:, others], theirs[:, others])


@native
def test_kernel_guards_against_a_direct_call():
    scene = make_scene(5, 1, torch.float32)
    with pytest.raises(RuntimeError, match="project_gaussians: quats has a wrong shape"):
        torch.ops.pointcept3m.project_gaussians(scene[0], scene[1][:, :3].contiguous(), *scene[2:], *SIZE, *CLASSIC)
    with pytest.raises(RuntimeError, match="project_gaussians: scales has a wrong dtype"):
        torch.ops.pointcept3m.project_gaussians(*scene[:2], scene[2].double(), *scene[3:], *SIZE, *CLASSIC)
    with pytest.raises(RuntimeError, match="float32 or float64"):
        torch.ops.pointcept3m.project_gaussians(*(t.half() for t in scene), *SIZE, *CLASSIC)

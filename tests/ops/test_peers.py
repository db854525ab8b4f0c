"""Our renderer and sparse convolutions beside gsplat and spconv on a GPU, forward and backward."""

import pytest
import torch

from pointcept3m import ops
from pointcept3m.models.layers.sparse import SparseConv3d, SparseInverseConv3d, SparseSequential, SubMConv3d
from pointcept3m.structures.sparse import SparseConvTensor

LEARNED = ("means", "quats", "scales", "opacities", "colors", "features", "viewmats")


def make_gaussians(num_gaussians=300, num_cameras=2, width=64, height=48, sh_degree=None):
    """Arguments of `rasterization` in float32: a cloud 2 to 4 m in front of cameras that differ by small motions."""
    means = torch.randn(num_gaussians, 3) * 0.6 + torch.tensor([0.0, 0.0, 3.0])
    viewmats = torch.eye(4).repeat(num_cameras, 1, 1)
    viewmats[:, :3, 3] = torch.randn(num_cameras, 3) * 0.1
    focal = torch.tensor([[width, 0.0, width / 2], [0.0, width, height / 2], [0.0, 0.0, 1.0]])
    colors = torch.rand(num_gaussians, 3) if sh_degree is None else torch.randn(num_gaussians, (sh_degree + 1) ** 2, 3) * 0.3
    return dict(
        means=means, quats=torch.randn(num_gaussians, 4), scales=torch.rand(num_gaussians, 3) * 0.15 + 0.02,
        opacities=torch.rand(num_gaussians) * 0.9 + 0.05, colors=colors, features=torch.randn(num_gaussians, 8),
        viewmats=viewmats, Ks=focal.repeat(num_cameras, 1, 1), width=width, height=height, sh_degree=sh_degree,
    )  # fmt: skip


def render(scene, device, **options):
    """(color, alpha, features) and the gradients of a fixed random projection of them, all on the CPU."""
    scene = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in scene.items()}
    leaves = {name: scene[name].detach().clone().requires_grad_() for name in LEARNED}
    color, alpha, meta = ops.rasterization(**{**scene, **leaves}, **options)
    images = [color, alpha, meta["features"]]
    generator = torch.Generator().manual_seed(1)
    loss = sum((image * torch.randn(image.shape, generator=generator).to(device)).sum() for image in images)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return [image.detach().cpu() for image in images], dict(zip(LEARNED, (g.cpu() for g in grads), strict=True))


def assert_same_rendering(ours, theirs):
    """Equal but for the few pixels where rounding carries a Gaussian over the least opacity that is drawn."""
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine.shape == other.shape
        apart = (mine - other).abs() > 1e-3
        assert apart.float().mean() < 2e-3
        torch.testing.assert_close(mine[~apart], other[~apart], rtol=1e-3, atol=1e-3)
    for name in LEARNED:
        mine, other = ours[1][name].flatten(), theirs[1][name].flatten()
        assert other.norm() > 0, name
        assert (mine - other).norm() < 0.02 * other.norm(), name


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # our kernel, and our twin on the GPU
@pytest.mark.parametrize(
    "options",
    [{}, {"render_mode": "RGB+ED"}, {"rasterize_mode": "antialiased"}, {"sh_degree": 3}, {"packed": False}],
    ids=str,
)
def test_gsplat_renders_the_same(device, options):
    pytest.importorskip("gsplat", reason="gsplat is not installed")
    options = dict(options)
    scene = make_gaussians(sh_degree=options.pop("sh_degree", None))
    assert_same_rendering(render(scene, device, **options), render(scene, "cuda", backend="gsplat", **options))


@pytest.mark.gpu
def test_our_renderer_agrees_with_itself_across_devices():
    scene = make_gaussians()
    assert_same_rendering(render(scene, "cuda"), render(scene, "cpu"))


def run_net(net, features, coord, grad):
    """The output of `net` and the gradients for the features and all parameters."""
    features = features.clone().requires_grad_()
    out = net(SparseConvTensor(features, coord, (12, 12, 8), 2)).features
    return out, torch.autograd.grad(out, (features, *net.parameters()), grad)


@pytest.mark.gpu
def test_spconv_agrees_backward():
    """Submanifold, strided, inverse and 1x1x1 convolutions in a row, in training mode."""
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")

    def make_net(backend):
        return SparseSequential(
            SubMConv3d(6, 16, 5, bias=False, indice_key="stem", backend=backend),
            torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(),
            SparseConv3d(16, 24, 2, stride=2, indice_key="down", backend=backend),
            SparseInverseConv3d(24, 8, 2, "down", backend=backend),
            SubMConv3d(8, 4, 1, indice_key="last", backend=backend),
        ).cuda()

    coord = (torch.rand(2, 12, 12, 8) < 0.3).nonzero().int()
    coord = coord[torch.randperm(len(coord))].cuda()
    features, grad = torch.randn(len(coord), 6, device="cuda"), torch.randn(len(coord), 4, device="cuda")
    ours, theirs = make_net("native"), make_net("spconv")
    theirs.load_state_dict(ours.state_dict())
    (mine, my_grads), (other, their_grads) = (run_net(net, features, coord, grad) for net in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
    names = ["features", *(name for name, _ in ours.named_parameters())]
    for name, a, b in zip(names, my_grads, their_grads, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm() + 1e-5, name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_on_a_gpu_stays_near_float32(dtype):
    coord = (torch.rand(2, 12, 12, 8) < 0.3).nonzero().int().cuda()
    features = torch.randn(len(coord), 16, device="cuda", requires_grad=True)
    weight = (torch.randn(32, 3, 3, 3, 16, device="cuda") / 16).requires_grad_()
    rulebook = ops.submanifold_rulebook(coord, 3)
    full = ops.sparse_conv(features, weight, rulebook)
    with torch.autocast("cuda", dtype):
        half = ops.sparse_conv(features, weight, rulebook)
    assert half.dtype == dtype
    assert (half.float() - full).norm() < 0.01 * full.norm()
    grad = torch.randn_like(full)
    wanted = torch.autograd.grad(full, (features, weight), grad)
    for got, value in zip(torch.autograd.grad(half, (features, weight), grad.to(dtype)), wanted, strict=True):
        assert got.dtype == torch.float32 and (got - value).norm() < 0.01 * value.norm()

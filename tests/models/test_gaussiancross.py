"""GaussianCross: each equation against an independent computation, and the model as a whole."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pointcept3m.models import build_model
from pointcept3m.models.builder import MODELS, TEACHERS
from pointcept3m.models.gaussiancross import losses
from pointcept3m.models.gaussiancross.cuboid import cuboid_affine, metric_affine, voxel_centers, voxel_index
from pointcept3m.models.gaussiancross.gaussian_head import GaussianHead
from pointcept3m.models.gaussiancross.splatting import move_cameras, splat
from pointcept3m.models.gaussiancross.volume import VolumeEncoder, scatter_to_volume
from pointcept3m.models.teachers.base import Teacher
from pointcept3m.structures.gaussians import Gaussians


@MODELS.register_module("PointwiseBackbone", force=True)
class PointwiseBackbone(nn.Module):
    """The smallest backbone: a linear layer on each point."""

    def __init__(self, in_channels: int = 6, out_channels: int = 8):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, batch):
        return self.linear(batch["feat"])


@TEACHERS.register_module("PatchMeanTeacher", force=True)
class PatchMeanTeacher(Teacher):
    """A frozen stand-in whose features are known: the mean colour of 4 x 4 patches and its square.

    The network has parameters and buffers, so that a leak into checkpoints or optimizers shows.
    """

    dim, patch = 6, 4

    def __init__(self):
        super().__init__()
        self.adopt(nn.Sequential(nn.Conv2d(3, 3, 4, 4, groups=3, bias=False), nn.BatchNorm2d(3, eps=0)))
        nn.init.constant_(self.network[0].weight, 1 / 16)

    def features(self, images):
        mean = self.network(images)
        return torch.cat([mean, mean**2], dim=1)


def make_batch(num_scenes: int = 2, num_views: int = 2, height: int = 12, width: int = 16):
    """Random rooms of different size, looked at from outside their front wall."""
    sizes = [torch.tensor([4.0, 3.0, 2.5]), torch.tensor([8.0, 6.0, 3.0])][:num_scenes]
    coord = torch.cat([torch.rand(200, 3) * size for size in sizes])
    extrinsic = torch.eye(4).repeat(num_scenes, num_views, 1, 1)
    extrinsic[..., :3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])  # looks along +y
    for b, size in enumerate(sizes):
        for m in range(num_views):
            centre = torch.tensor([size[0] / 2 + 0.3 * m, -2.0, size[2] / 2])
            extrinsic[b, m, :3, 3] = -extrinsic[b, m, :3, :3] @ centre
    intrinsic = torch.tensor([[14.0, 0, width / 2], [0, 14.0, height / 2], [0, 0, 1]]).repeat(num_scenes, num_views, 1, 1)
    return {
        "coord": coord,
        "grid_coord": (coord / 0.05).floor().long(),
        "feat": torch.randn(len(coord), 6),
        "offset": torch.arange(1, num_scenes + 1) * 200,
        "name": [f"room{b}" for b in range(num_scenes)],
        "rgb": torch.rand(num_scenes, num_views, height, width, 3),
        "depth": torch.rand(num_scenes, num_views, height, width) * 4 + 1,
        "intrinsic": intrinsic,
        "extrinsic": extrinsic,
    }


def tiny_config(**changes):
    config = dict(
        type="GaussianCross-v1m1",
        backbone=dict(type="PointwiseBackbone"),
        backbone_out_channels=8,
        teacher=dict(type="PatchMeanTeacher"),
        volume_shape=(6, 5, 4),
        volume_channels=(8, 16),
        anchor_channels=8,
        feature_dim=4,
    )
    return {**config, **changes}


def test_cuboid_affine_fills_the_unit_cube_and_keeps_the_aspect():
    """Eq. 6: the longest side spans the cube less its margin, ratios stay, the floor stands on the cube's."""
    coord = torch.rand(100, 3) * torch.tensor([8.0, 4.0, 2.0]) - 3
    affine = cuboid_affine(coord, margin=0.05)
    unit = coord @ affine[:3, :3].T + affine[:3, 3]
    extent, original = unit.amax(0) - unit.amin(0), coord.amax(0) - coord.amin(0)
    assert extent.max().item() == pytest.approx(0.9, abs=1e-5)
    torch.testing.assert_close(extent / extent.max(), original / original.max())
    assert unit.amin(0)[2].item() == pytest.approx(0.05, abs=1e-5)
    assert ((unit >= 0) & (unit <= 1)).all()


def test_cuboid_affine_without_aspect_stretches_every_axis():
    coord = torch.rand(100, 3) * torch.tensor([8.0, 4.0, 2.0])
    affine = cuboid_affine(coord, keep_aspect=False, margin=0.05)
    unit = coord @ affine[:3, :3].T + affine[:3, 3]
    torch.testing.assert_close(unit.amax(0) - unit.amin(0), torch.full((3,), 0.9))


def test_without_normalisation_the_scale_is_the_same_for_all_scenes():
    small, large = torch.rand(50, 3) * 2, torch.rand(50, 3) * 8
    assert torch.equal(metric_affine(small, 10.0)[:3, :3], metric_affine(large, 10.0)[:3, :3])
    assert metric_affine(small, 10.0)[0, 0].item() == pytest.approx(0.1)


@pytest.mark.parametrize("make", [cuboid_affine, lambda coord: metric_affine(coord, 10.0)])
def test_an_empty_scene_is_refused(make):
    with pytest.raises(ValueError, match="no points"):
        make(torch.empty(0, 3))


def test_a_voxel_centre_lies_in_its_own_voxel():
    shape = (4, 3, 2)
    index, inside = voxel_index(voxel_centers(shape), shape)
    assert index.tolist() == list(range(24)) and inside.all()


def test_points_outside_the_cube_are_told():
    _, inside = voxel_index(torch.tensor([[0.5, 0.5, 0.5], [1.2, 0.5, 0.5], [0.5, -0.1, 0.5], [1.0, 1.0, 1.0]]), (4, 4, 4))
    assert inside.tolist() == [True, False, False, True]


def test_scatter_to_volume_is_the_mean_per_voxel():
    """Eq. 7 by a loop over voxels; unoccupied voxels are zero."""
    shape, feat = (3, 2, 2), torch.randn(40, 5)
    index = torch.randint(0, 24, (40,))
    volume = scatter_to_volume(feat, index, 2, shape)
    for voxel in range(24):
        b, rest = divmod(voxel, 12)
        x, y, z = rest // 4, rest // 2 % 2, rest % 2
        rows = feat[index == voxel]
        expected = rows.mean(0) if len(rows) else torch.zeros(5)
        torch.testing.assert_close(volume[b, :, x, y, z], expected)


@pytest.mark.parametrize("shape", [(8, 8, 4), (7, 5, 3), (1, 1, 1)])
def test_volume_encoder_keeps_the_shape(shape):
    encoder = VolumeEncoder(6, 9, (4, 8, 8)).eval()
    assert encoder(torch.randn(2, 6, *shape)).shape == (2, 9, *shape)


def test_volume_encoder_moves_with_its_input():
    """Eq. 8 is convolutional: away from the border, a shift by whole coarse cells only shifts the answer."""
    encoder = VolumeEncoder(3, 5, (4, 6)).eval()
    volume = torch.zeros(1, 3, 32, 32, 32)
    volume[:, :, 14:18, 14:18, 14:18] = torch.randn(1, 3, 4, 4, 4)
    moved = volume.roll((4, 2, -2), (2, 3, 4))
    with torch.no_grad():
        here, there = encoder(volume), encoder(moved)
    inner = slice(12, 20)  # the border's padding reaches 8 cells, the shift 4
    torch.testing.assert_close(there.roll((-4, -2, 2), (2, 3, 4))[..., inner, inner, inner], here[..., inner, inner, inner])
    assert (here[..., 15, 15, 15] - here[..., 19, 19, 19]).abs().max() > 1e-3


def test_volume_encoder_tells_occupied_from_empty():
    encoder = VolumeEncoder(3, 5, (4, 6)).eval()
    empty = torch.zeros(2, 3, 8, 8, 8)
    occupied = empty.clone()
    occupied[1, :, 3, 4, 5] = torch.tensor([1.0, -2.0, 3.0])
    with torch.no_grad():
        blank, full = encoder(empty), encoder(occupied)
    assert torch.equal(full[0], blank[0])
    change = (full[1] - blank[1]).abs().amax(0)
    assert change[3, 4, 5] > 1e-3 and change.sum() > change[3, 4, 5]  # the cell itself, and its neighbourhood


def test_heads_follow_their_equations():
    """Eq. 9 to 13 written out for each anchor from the decoders' raw outputs."""
    head = GaussianHead(8, feature_dim=5, opacity_threshold=0.4, offset_max=0.7)
    for decoder in (head.opacity, head.offset, head.scale, head.quat):
        nn.init.normal_(decoder[-1].weight)  # so that anchors differ and some are pruned
    feat, centers, cell = torch.randn(50, 8), torch.rand(50, 3), torch.tensor([0.1, 0.2, 0.3])
    out = head(feat, centers, cell)
    sigma = 1 / (1 + torch.exp(-head.opacity(feat)[:, 0]))
    kept = [i for i in range(50) if sigma[i] > 0.4]
    assert 0 < len(kept) < 50 and len(out) == len(kept)
    for row, i in enumerate(kept):
        f = feat[i : i + 1]
        delta = torch.tanh(head.offset(f)[0]) * 0.7 * cell
        torch.testing.assert_close(out.means[row], centers[i] + delta)
        q = head.quat(f)[0]
        torch.testing.assert_close(out.quats[row], q / q.norm())
        torch.testing.assert_close(out.scales[row], torch.log1p(torch.exp(head.scale(f)[0])) * cell)
        torch.testing.assert_close(out.colors[row], torch.sigmoid(head.color(f)[0]))
        torch.testing.assert_close(out.opacities[row], sigma[i])
        torch.testing.assert_close(out.features[row], head.feature(f)[0])


def test_heads_start_from_the_given_scale_and_opacity():
    head = GaussianHead(16, 4, init_scale=0.5, init_opacity=0.45)
    out = head(torch.zeros(10, 16), torch.zeros(10, 3), torch.ones(3))
    assert out.scales.mean().item() == pytest.approx(0.5, abs=0.1)
    assert out.opacities.mean().item() == pytest.approx(0.45, abs=0.05)


def test_without_offset_the_means_are_the_voxel_centres():
    centers = torch.rand(10, 3)
    assert torch.equal(GaussianHead(8, 0, offset_max=0)(torch.randn(10, 8), centers, torch.ones(3)).means, centers)


def test_splatting_composites_colour_depth_and_feature_alike():
    """Eq. 3, 14, 15 by hand: two Gaussians on the optical axis, seen at the centre pixel."""
    z = torch.tensor([2.0, 3.0])
    gaussians = Gaussians(
        means=torch.stack([torch.zeros(2), torch.zeros(2), z], dim=1),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1),
        scales=torch.full((2, 3), 0.5),
        opacities=torch.tensor([0.6, 0.8]),
        colors=torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]),
        features=torch.tensor([[1.0, -2.0], [3.0, 5.0]]),
    )
    intrinsic = torch.tensor([[[10.0, 0, 4.5], [0, 10.0, 4.5], [0, 0, 1]]])
    view = splat(gaussians, torch.eye(4)[None], intrinsic, 9, 9)
    weights = [0.6, 0.8 * (1 - 0.6)]
    centre = (0, 4, 4)
    torch.testing.assert_close(view.rgb[centre], torch.tensor([weights[0], weights[1], 0.0]))
    assert view.depth[centre].item() == pytest.approx(weights[0] * 2 + weights[1] * 3, abs=1e-4)
    torch.testing.assert_close(view.feature[centre], weights[0] * gaussians.features[0] + weights[1] * gaussians.features[1])
    assert view.alpha[centre].item() == pytest.approx(sum(weights), abs=1e-5)


@pytest.mark.parametrize("stretch", [(1.0, 1.0, 1.0), (0.2, 0.2, 0.2), (0.5, 1.0, 2.0)])
def test_moving_scene_and_cameras_together_leaves_colour_and_metric_depth(stretch):
    """The classic error of scaled scenes: depth must stay in metres whatever the cube's scale, also if anisotropic."""
    affine = torch.eye(4)
    affine[:3, :3] = torch.diag(torch.tensor(stretch))
    affine[:3, 3] = torch.tensor([0.3, -0.2, 0.7])
    means = torch.rand(30, 3) * torch.tensor([2.0, 1.5, 1.0]) + torch.tensor([-1.0, -0.75, 2.0])
    common = dict(quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(30, 1), opacities=torch.full((30,), 0.7), colors=torch.rand(30, 3))
    extrinsic, intrinsic = torch.eye(4)[None], torch.tensor([[[20.0, 0, 16], [0, 20.0, 12], [0, 0, 1]]])
    scales = torch.full((30, 3), 0.1)
    before = splat(Gaussians(means=means, scales=scales, **common), extrinsic, intrinsic, 24, 32)
    moved = Gaussians(means=means @ affine[:3, :3].T + affine[:3, 3], scales=scales * torch.tensor(stretch), **common)
    after = splat(moved, move_cameras(extrinsic, affine), intrinsic, 24, 32)
    torch.testing.assert_close(after.rgb, before.rgb, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.depth, before.depth, atol=1e-4, rtol=1e-4)


def test_image_loss_is_the_mean_absolute_difference():
    assert losses.image_loss(torch.full((2, 3, 4, 3), 0.7), torch.full((2, 3, 4, 3), 0.2)).item() == pytest.approx(0.5)


def test_depth_loss_counts_valid_pixels_only_and_divides_by_all():
    depth, target = torch.full((1, 2, 2), 3.0), torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])
    assert losses.depth_loss(depth, target).item() == pytest.approx((2 + 1) / 4)
    assert losses.depth_loss(depth, target, per="valid").item() == pytest.approx((2 + 1) / 2)


def test_feature_loss_is_one_minus_the_cosine():
    a, b = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
    assert losses.feature_loss(a, b).item() == pytest.approx(1 - 1 / math.sqrt(2))
    assert losses.feature_loss(5 * a, 0.1 * a).item() == pytest.approx(0, abs=1e-6)


def test_the_total_is_the_weighted_sum_of_the_three():
    """Eq. 20."""
    model = build_model(tiny_config(image_weight=2.0, depth_weight=3.0, feature_weight=5.0))
    out = model(make_batch())
    expected = 2 * out["image_loss"] + 3 * out["depth_loss"] + 5 * out["feature_loss"]
    torch.testing.assert_close(out["loss"], expected)


def test_every_parameter_learns():
    model = build_model(tiny_config())
    model(make_batch())["loss"].backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_learning_on_one_batch_lowers_every_loss():
    model = build_model(tiny_config())
    batch = make_batch()
    batch["rgb"] = torch.full_like(batch["rgb"], 0.8)
    batch["depth"] = torch.full_like(batch["depth"], 3.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = None
    for _ in range(25):
        out = model(batch)
        first = first or {k: v.item() for k, v in out.items()}
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    for name in ("image_loss", "depth_loss", "feature_loss"):
        assert out[name].item() < 0.8 * first[name], name


@pytest.mark.parametrize("targets", [("image",), ("depth",), ("feature",), ("image", "depth"), ("depth", "feature")])
def test_each_target_can_be_switched_off(targets):
    """Table 5: what is off is neither rendered nor has parameters left without gradient."""
    model = build_model(tiny_config(targets=targets, teacher=dict(type="PatchMeanTeacher") if "feature" in targets else None))
    out = model(make_batch())
    assert {f"{t}_loss" for t in targets} == {k for k in out if k.endswith("_loss")}
    out["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_feature_loss_at_the_resolution_of_the_image():
    """Eq. 16 and 19: the teacher's map enlarged bilinearly to the image, one cosine for each pixel."""
    model = build_model(tiny_config(feature_resolution="image", targets=("feature",)))
    batch = make_batch()
    rendered = [scene.feature for scene in model.render(batch)]  # in train mode the norms answer alike both times
    weight, bias = model.projection_head.weight.detach().numpy(), model.projection_head.bias.detach().numpy()
    cosines = []
    for b, feature in enumerate(rendered):
        maps = F.avg_pool2d(batch["rgb"][b].permute(0, 3, 1, 2), 4)
        maps = torch.cat([maps, maps**2], dim=1).permute(0, 2, 3, 1).numpy()
        for m in range(len(feature)):
            large = enlarge(maps[m], 12, 16)
            for v in range(12):
                for u in range(16):
                    ours = weight @ feature[m, v, u].numpy() + bias
                    cosines.append(ours @ large[v, u] / (np.linalg.norm(ours) * np.linalg.norm(large[v, u])))
    assert model(batch)["feature_loss"].item() == pytest.approx(1 - np.mean(cosines), abs=1e-5)
    at_teacher = build_model(tiny_config(targets=("feature",)))
    at_teacher.load_state_dict(model.state_dict())
    assert abs(at_teacher(batch)["feature_loss"].item() - model(batch)["feature_loss"].item()) > 1e-5


def enlarge(image, height, width):
    """Bilinear interpolation of [h, w, C] at pixel centres index + 0.5, by a loop, edges held."""
    h, w, channels = image.shape
    result = np.zeros((height, width, channels))
    for v in range(height):
        for u in range(width):
            y = min(max((v + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((u + 0.5) * w / width - 0.5, 0), w - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = image[y0, x0] * (1 - x + x0) + image[y0, x1] * (x - x0)
            low = image[y1, x0] * (1 - x + x0) + image[y1, x1] * (x - x0)
            result[v, u] = top * (1 - y + y0) + low * (y - y0)
    return result


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_a_stretched_room_looks_alike_only_without_its_aspect(keep_aspect):
    """keep_aspect=False: each axis has its own scale, so a room and its stretched twin are one to the network."""
    model = build_model(tiny_config(keep_aspect=keep_aspect)).eval()
    batch = make_batch(num_scenes=1)
    stretched = {**batch, "coord": batch["coord"] * torch.tensor([1.0, 2.0, 1.0])}
    (ours, _), (theirs, _) = (model.reconstruct(b)[0] for b in (batch, stretched))
    assert (ours.means.shape == theirs.means.shape and torch.allclose(ours.means, theirs.means, atol=1e-4)) is not keep_aspect


def test_without_offset_every_gaussian_sits_at_a_voxel_centre():
    centers = voxel_centers((6, 5, 4))
    for offset_max, at_center in ((0, True), (1.0, False)):
        model = build_model(tiny_config(offset_max=offset_max))
        if offset_max:
            nn.init.normal_(model.gaussian_head.offset[-1].weight)
        for gaussians, _ in model.reconstruct(make_batch()):
            distance = torch.cdist(gaussians.means, centers).amin(1)
            assert (distance.max().item() < 1e-5) is at_center


def test_without_normalisation_all_scenes_share_a_scale_and_everything_learns():
    model = build_model(tiny_config(cuboid_normalize=False))
    for gaussians, affine in model.reconstruct(make_batch()):
        assert len(gaussians) > 0
        torch.testing.assert_close(affine[:3, :3], torch.eye(3) / 10)
    model(make_batch())["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_scale_of_a_scene_does_not_matter_to_the_model():
    """What cuboid normalisation is for: the same room, twice as large with cameras to match, gives the same image."""
    model = build_model(tiny_config()).eval()
    batch = make_batch(num_scenes=1)
    double = {**batch, "coord": batch["coord"] * 2, "extrinsic": batch["extrinsic"].clone()}
    double["extrinsic"][..., :3, :3] /= 2
    torch.testing.assert_close(model.render(double)[0].rgb, model.render(batch)[0].rgb, atol=1e-4, rtol=1e-4)


def test_scenes_in_a_batch_do_not_see_each_other():
    model = build_model(tiny_config()).eval()
    batch = make_batch()
    alone = {k: v[1:] for k, v in batch.items() if k in ("rgb", "depth", "intrinsic", "extrinsic", "name")}
    alone.update(coord=batch["coord"][200:], feat=batch["feat"][200:], grid_coord=batch["grid_coord"][200:], offset=torch.tensor([200]))
    torch.testing.assert_close(model.render(batch)[1].rgb, model.render(alone)[0].rgb, atol=1e-5, rtol=1e-5)


def test_the_teacher_stays_out_of_checkpoints_and_optimizers():
    model = build_model(tiny_config()).train()
    network = model.teacher.network
    assert not [k for k in model.state_dict() if "teacher" in k]
    inside = {id(m) for m in network.modules()}
    assert not [name for name, module in model.named_modules() if id(module) in inside]
    hidden = {id(t) for t in (*network.parameters(), *network.buffers())}
    assert not hidden & {id(t) for t in (*model.parameters(), *model.buffers())}
    assert not any(p.requires_grad for p in network.parameters()) and not any(m.training for m in network.modules())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    model(make_batch())["loss"].backward()
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    without = build_model(tiny_config())
    without.load_state_dict(model.state_dict())
    model.to("meta")
    assert {t.device.type for t in (*network.parameters(), *network.buffers())} == {"meta"}


def test_a_teacher_that_would_leak_is_refused():
    @TEACHERS.register_module("PlainModuleTeacher", force=True)
    class PlainModuleTeacher(nn.Linear):
        dim = 6

        def __init__(self):
            super().__init__(2, 2)

    with pytest.raises(TypeError, match="PlainModuleTeacher must extend Teacher"):
        build_model(tiny_config(teacher=dict(type="PlainModuleTeacher")))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(targets=("image", "dept")), "did you mean 'depth'"),
        (dict(targets=()), "at least one"),
        (dict(teacher=None), "go together"),
        (dict(feature_resolution="full"), "feature_resolution is"),
        (dict(opacity_threshold=1.5), r"in \[0, 1\)"),
        (dict(backbone=dict(type="PointwiseBackbon")), "did you mean 'PointwiseBackbone'"),
    ],
)
def test_a_wrong_setting_is_named(changes, words):
    with pytest.raises((ValueError, KeyError), match=words):
        build_model(tiny_config(**changes))


def test_a_scene_without_gaussians_is_an_error_that_says_what_to_change():
    model = build_model(tiny_config())
    nn.init.constant_(model.gaussian_head.opacity[-1].bias, -10.0)
    with pytest.raises(RuntimeError, match="room0.*opacity_threshold"):
        model(make_batch())

"""I2P-MAE: the published names, what a batch may not change, and what is refused."""

import numpy as np
import pytest
import torch

from pointcept3m.models.builder import SHAPE_ENCODERS
from pointcept3m.models.shapes import I2PMAE
from pointcept3m.models.shapes.i2pmae import I2PMAENet, group, take


def published(dims=(96, 192, 384), depth=5):
    """name -> shape, written down from the authors' files and not from ours."""
    shapes = {"norm.weight": (384,), "norm.bias": (384,)}

    def linear(name, c_in, c_out, bias=True):
        shapes[f"{name}.weight"] = (c_out, c_in)
        if bias:
            shapes[f"{name}.bias"] = (c_out,)

    def conv(name, c_in, c_out):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (c_out, c_in, 1), (c_out,)

    def norm(name, width, batch=False):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)
        if batch:
            shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (width,)
            shapes[f"{name}.num_batches_tracked"] = ()

    for i, dim in enumerate(dims):
        before = 3 if i == 0 else dims[i - 1]
        first, middle, second = (128, 256, 512) if i == 0 else (before, before, dim)
        root = f"h_encoder.token_embed.{i}"
        conv(f"{root}.first_conv.0", before, first), norm(f"{root}.first_conv.1", first, True), conv(f"{root}.first_conv.3", first, middle)
        conv(f"{root}.second_conv.0", 2 * middle, second), norm(f"{root}.second_conv.1", second, True), conv(f"{root}.second_conv.3", second, dim)
        linear(f"h_encoder.encoder_pos_embeds.{i}.0", 3, dim), linear(f"h_encoder.encoder_pos_embeds.{i}.2", dim, dim)
        for j in range(depth):
            root = f"h_encoder.encoder_blocks.{i}.blocks.{j}"
            norm(f"{root}.norm1", dim), norm(f"{root}.norm2", dim)
            linear(f"{root}.mlp.fc1", dim, 4 * dim), linear(f"{root}.mlp.fc2", 4 * dim, dim)
            linear(f"{root}.attn.qkv", dim, 3 * dim, bias=False), linear(f"{root}.attn.proj", dim, dim)
    return shapes


def random_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in published().items():
        value = torch.randn(shape, generator=generator) * 0.05
        if name.endswith("running_var"):
            value = value.abs() + 0.5
        weights[name] = torch.tensor(7) if name.endswith("tracked") else value
    return weights


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return I2PMAE(random_init=True)


def test_names_and_shapes_are_the_published_ones(encoder):
    own = {name: tuple(value.shape) for name, value in encoder.network.state_dict().items()}
    assert own == published()
    assert sum(value.numel() for value in encoder.network.parameters()) == 12_654_400


def test_checkpoint_of_point_bind_and_of_the_encoder_alone(tmp_path):
    weights = random_weights()
    whole = {f"module.point_encoder.{name}": value for name, value in weights.items()}
    whole |= {"module.pc_projection": torch.zeros(384, 512), "module.bind.trunk.weight": torch.zeros(2)}
    torch.save({"state_dict": whole}, tmp_path / "whole.pt")
    torch.save({k: v for k, v in weights.items() if not k.endswith("tracked")}, tmp_path / "bare.pt")
    points = [np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)]
    encoders = [SHAPE_ENCODERS.build(dict(type="I2PMAE", weight=tmp_path / name, num_points=512)) for name in ("whole.pt", "bare.pt")]
    vectors = [one(points) for one in encoders]
    assert vectors[0].shape == (1, 384) and torch.equal(*vectors) and vectors[0].std() > 0
    del weights["h_encoder.encoder_blocks.1.blocks.2.attn.qkv.weight"]
    torch.save({**weights, "h_encoder.new": torch.zeros(1)}, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=r"wrong.pt does not fit .*1 missing .*blocks.2.attn.qkv.*1 unknown \(h_encoder.new\)"):
        I2PMAE(weight=tmp_path / "wrong.pt")


def test_a_missing_weight_says_where_it_comes_from(tmp_path):
    with pytest.raises(ValueError, match="I2PMAE' needs weights.*pointbind_i2pmae.pt.*Point-Bind"):
        I2PMAE()
    with pytest.raises(FileNotFoundError, match="no.pt.*pointbind_i2pmae.pt"):
        I2PMAE(weight=tmp_path / "no.pt")
    with pytest.raises(ValueError, match="at least that, got 300"):
        I2PMAE(random_init=True, num_points=300)


def test_an_object_does_not_depend_on_its_batch(encoder):
    rng = np.random.default_rng(1)
    clouds = [rng.normal(size=(count, 3)).astype(np.float32) for count in (60, 1500)]
    together = encoder(clouds)
    for row, cloud in enumerate(clouds):
        assert torch.allclose(encoder([cloud])[0], together[row], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_place_and_size_do_not_matter(encoder):
    cloud = np.random.default_rng(2).normal(size=(700, 3))
    moved = cloud * 8 + np.array([4.0, -2.0, 16.0])
    assert torch.allclose(encoder([cloud]), encoder([moved]), atol=1e-4)


def test_groups_by_hand():
    """Farthest points and nearest members against loops, for two clouds at once."""
    points = torch.randn(2, 40, 3)
    center, rows = group(points, 5, 4)
    for item in range(2):
        chosen, nearest = [0], torch.full((40,), torch.inf)
        while len(chosen) < 5:
            nearest = torch.minimum(nearest, (points[item] - points[item, chosen[-1]]).norm(dim=1))
            chosen.append(int(nearest.argmax()))
        assert torch.equal(center[item], points[item, chosen])
        apart = (center[item][:, None] - points[item]).norm(dim=-1)
        assert torch.equal(rows[item].sort(1).values, apart.topk(4, largest=False).indices.sort(1).values)
    assert torch.equal(take(points, rows)[1, 2, 3], points[1, rows[1, 2, 3]])


def test_forward_against_a_plain_reading_of_the_paper():
    """Stage by stage with additive masks and one object at a time: the same numbers."""
    torch.manual_seed(3)
    network = I2PMAENet().eval()
    network.load_state_dict(random_weights(3))
    points = torch.randn(1, 600, 3) / 3
    with torch.no_grad():
        ours, x, cloud = network(points), None, points[0]
        for stage, (groups, size, radius, heads) in enumerate(((512, 48, 0.24, 6), (256, 24, 0.48, 6), (64, 24, 0.96, 6))):
            center, rows = (part[0] for part in group(cloud[None], groups, size))
            members = (cloud[rows] - center[:, None] if x is None else x[rows]).transpose(1, 2)
            embed = network.h_encoder.token_embed[stage]
            first = embed.first_conv(members)
            x = embed.second_conv(torch.cat([first.max(2, keepdim=True)[0].expand_as(first), first], 1)).max(2)[0]
            mask = ((center[:, None] - center).norm(dim=-1) >= radius) * -1e5
            position = network.h_encoder.encoder_pos_embeds[stage](center)
            for block in network.h_encoder.encoder_blocks[stage].blocks:
                x = x + position
                q, k, v = block.attn.qkv(block.norm1(x)).view(groups, 3, heads, -1).permute(1, 2, 0, 3)
                weight = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5 + mask).softmax(-1)
                x = x + block.attn.proj((weight @ v).transpose(0, 1).reshape(groups, -1))
                x = x + block.mlp(block.norm2(x))
            cloud = center
        x = network.norm(x)
        assert torch.allclose(ours[0], x.mean(0) + x.max(0)[0], atol=1e-4)


@pytest.mark.parametrize("points, message", [
    (np.zeros((0, 3), np.float32), r"object 1: wanted points, floats \[S, 3\], got float32 \[0, 3\]"),
    (np.zeros((5, 2), np.float32), r"object 1: wanted points"),
    (np.zeros((5, 3), np.int64), "got int64"),
    (np.full((5, 3), np.nan, np.float32), "object 1: 5 of 5 points are not finite"),
])  # fmt: skip
def test_refuses(encoder, points, message):
    with pytest.raises(ValueError, match=message):
        encoder([np.ones((5, 3), np.float32), points])


def test_one_object_without_a_list_and_none_at_all(encoder):
    with pytest.raises(TypeError, match=r"write \[points\]"):
        encoder(np.zeros((5, 3), np.float32))
    assert encoder([]).shape == (0, 384)

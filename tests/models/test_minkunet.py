"""MinkUNet: MinkowskiEngine's layout of checkpoints and kernels, a naive twin, independence of scenes, duplicates."""

import itertools

import pytest
import torch

from pointcept3m.models import MODELS, build_model
from pointcept3m.models.layers.minkowski import (
    MinkowskiConvolution,
    MinkowskiConvolutionTranspose,
    MinkowskiPointwise,
    MinkowskiStridedConvolution,
)
from pointcept3m.structures.sparse import SparseConvTensor

TINY = dict(in_channels=3, out_channels=5, planes=(4, 5, 6, 7, 6, 5, 4, 3), layers=(1,) * 8, init_dim=4)


def small(name="MinkUNet14A", **options):
    """A small model whose norms are far from their start values."""
    model = build_model(dict(type=name) | TINY | options)
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif ".bn." in key and value.is_floating_point():
            value.add_(torch.randn_like(value) * 0.2)
    return model.eval()


def scene(size, extent=12, channels=3):
    flat = torch.randperm(extent**3)[:size]
    coord = torch.stack([flat // extent**2, flat // extent % extent, flat % extent], 1)
    return dict(grid_coord=coord, feat=torch.randn(size, channels), offset=torch.tensor([size]))


def offsets(size):
    """Offsets of a kernel in MinkowskiEngine's order: x runs fastest; even kernels begin at the output's own place."""
    first = 0 if size % 2 == 0 else -(size // 2)
    axis = range(first, first + size)
    return [(x, y, z) for z, y, x in itertools.product(axis, axis, axis)]


def naive_conv(x, kernel, stride=1):
    """{cell: features} -> the same on cells `stride` times as large: out[u] = sum of x[stride u + offset] @ kernel."""
    size = round(len(kernel) ** (1 / 3))
    out = {}
    for cell in {tuple(c // stride for c in cell) for cell in x}:
        near = [tuple(stride * c + o for c, o in zip(cell, offset, strict=True)) for offset in offsets(size)]
        out[cell] = sum(x[place] @ matrix for place, matrix in zip(near, kernel, strict=True) if place in x)
    return out


def naive_transpose(x, kernel, cells):
    """Back to `cells`: each gets its larger cell's features by the kernel of the place that it has in it."""
    number = {offset: k for k, offset in enumerate(offsets(2))}
    return {cell: x[tuple(c // 2 for c in cell)] @ kernel[number[tuple(c % 2 for c in cell)]] for cell in cells}


def as_dict(coord, feat):
    return {tuple(c): f for c, f in zip(coord.tolist(), feat, strict=True)}


def as_tensor(batch):
    coord = batch["grid_coord"]
    indices = torch.cat([torch.zeros(len(coord), 1, dtype=torch.long), coord], 1).int()
    return SparseConvTensor(batch["feat"], indices, (16, 16, 16), 1)


def assert_same(out, expected):
    found = as_dict(out.indices[:, 1:], out.features)
    assert found.keys() == expected.keys()
    for cell, feat in expected.items():
        torch.testing.assert_close(found[cell], feat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_kernels_lie_as_minkowski_engine_s(kernel_size):
    batch = scene(60, 8)
    conv = MinkowskiConvolution(3, 4, kernel_size, "key")
    assert conv.kernel.shape == (kernel_size**3, 3, 4)
    with torch.no_grad():
        assert_same(conv(as_tensor(batch)), naive_conv(as_dict(batch["grid_coord"], batch["feat"]), conv.kernel))


def test_strided_kernels_and_back():
    batch = scene(60, 9)
    down, up = MinkowskiStridedConvolution(3, 4, "down"), MinkowskiConvolutionTranspose(4, 2, "down")
    x = as_dict(batch["grid_coord"], batch["feat"])
    with torch.no_grad():
        coarse = down(as_tensor(batch))
        expected = naive_conv(x, down.kernel, 2)
        assert_same(coarse, expected)
        assert_same(up(coarse), naive_transpose(expected, up.kernel, x))


def test_one_voxel_under_one_offset_by_hand():
    """The fourth kernel of 2x2x2 is x + 1, y + 1; the second of 3x3x3 is (0, -1, -1) from the output."""
    batch = dict(grid_coord=torch.tensor([[3, 3, 2]]), feat=torch.tensor([[1.0]]))
    down = MinkowskiStridedConvolution(1, 1, "down")
    down.kernel.data = torch.arange(8.0).reshape(8, 1, 1)
    assert down(as_tensor(batch)).features.item() == 3
    batch = dict(grid_coord=torch.tensor([[3, 3, 2], [3, 2, 1]]), feat=torch.tensor([[0.0], [1.0]]))
    conv = MinkowskiConvolution(1, 1, 3, "subm")
    conv.kernel.data = torch.arange(27.0).reshape(27, 1, 1)
    assert conv(as_tensor(batch)).features.squeeze(1).tolist() == [1, 13]


def naive_network(state, cells, feat):
    """MinkUNet of BasicBlocks in eval mode for one scene of distinct cells, from its state dict."""

    def norm(x, name):
        part = {key: state[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
        scale = part["weight"] / (part["running_var"] + 1e-5).sqrt()
        return {cell: (f - part["running_mean"]) * scale + part["bias"] for cell, f in x.items()}

    def relu(x):
        return {cell: f.clamp(min=0) for cell, f in x.items()}

    def blocks(x, name):
        number = 0
        while f"{name}.{number}.conv1.kernel" in state:
            block, out = f"{name}.{number}", x
            for i in (1, 2):
                out = norm(
                    naive_conv(out if i == 1 else relu(out), state[f"{block}.conv{i}.kernel"]), f"{block}.norm{i}"
                )
            if f"{block}.downsample.0.kernel" in state:
                x = {cell: f @ state[f"{block}.downsample.0.kernel"] for cell, f in x.items()}
                x = norm(x, f"{block}.downsample.1")
            x, number = relu({cell: f + x[cell] for cell, f in out.items()}), number + 1
        return x

    x = relu(norm(naive_conv(as_dict(cells, feat), state["conv0p1s1.kernel"]), "bn0"))
    skips = [x]
    for s, name in enumerate(("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2"), 1):
        x = relu(norm(naive_conv(x, state[f"{name}.kernel"], 2), f"bn{s}"))
        x = blocks(x, f"block{s}")
        skips.append(x)
    skips.pop()
    for s, name in enumerate(("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2"), 4):
        skip = skips.pop()
        x = relu(norm(naive_transpose(x, state[f"{name}.kernel"], skip), f"bntr{s}"))
        x = blocks({cell: torch.cat([f, skip[cell]]) for cell, f in x.items()}, f"block{s + 1}")
    return torch.stack([x[tuple(cell)] @ state["final.kernel"] + state["final.bias"][0] for cell in cells.tolist()])


@pytest.mark.parametrize("layers", [(1,) * 8, (2, 1, 1, 2, 1, 2, 1, 1)])
def test_the_network_equals_a_naive_one(layers):
    model, batch = small(layers=layers), scene(40, 20)
    with torch.no_grad():
        expected = naive_network(model.state_dict(), batch["grid_coord"], batch["feat"])
        torch.testing.assert_close(model(batch), expected, rtol=1e-3, atol=1e-3)


def parameters_of(planes, layers, expansion, in_channels, out_channels):
    """The number of parameters, added up from the drawing of the network."""

    def blocks(width, plane, count):
        total = 0
        for _ in range(count):
            wide = plane * expansion
            if expansion == 1:
                total += 27 * width * plane + 27 * plane * plane + 4 * plane
            else:
                total += width * plane + 27 * plane * plane + plane * wide + 4 * plane + 2 * wide
            total += (width * wide + 2 * wide) if width != wide else 0
            width = wide
        return total

    total, width, skips = 125 * in_channels * 32 + 64, 32, [32]
    for plane, count in zip(planes[:4], layers[:4], strict=True):
        total += 8 * width * width + 2 * width + blocks(width, plane, count)
        width = plane * expansion
        skips.append(width)
    skips.pop()
    for plane, count in zip(planes[4:], layers[4:], strict=True):
        total += 8 * width * plane + 2 * plane + blocks(plane + skips.pop(), plane, count)
        width = plane * expansion
    return total + width * out_channels + out_channels


@pytest.mark.parametrize(
    "name, decoder, layers, expansion",
    [
        ("MinkUNet14", (256, 128, 96, 96), (1,) * 8, 1),
        ("MinkUNet14D", (384, 384, 384, 384), (1,) * 8, 1),
        ("MinkUNet18A", (128, 128, 96, 96), (2,) * 8, 1),
        ("MinkUNet34B", (256, 128, 64, 32), (2, 3, 4, 6, 2, 2, 2, 2), 1),
        ("MinkUNet34C", (256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2), 1),
        ("MinkUNet50", (256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2), 4),
        ("MinkUNet101", (256, 128, 96, 96), (2, 3, 4, 23, 2, 2, 2, 2), 4),
    ],
)
def test_sizes_of_the_variants(name, decoder, layers, expansion):
    with torch.device("meta"):
        model = build_model(dict(type=name, in_channels=9, out_channels=20))
    count = sum(p.numel() for p in model.parameters())
    assert count == parameters_of((32, 64, 128, 256, *decoder), layers, expansion, 9, 20)


def test_all_variants_of_pointcept_are_there():
    names = "14 18 34 50 101 14A 14B 14C 14D 18A 18B 18D 34A 34B 34C".split()
    assert {name for name in MODELS.classes if name.startswith("MinkUNet")} == {f"MinkUNet{n}" for n in names}


def test_checkpoint_layout_of_pointcept():
    state = build_model(dict(type="MinkUNet34C", in_channels=9, out_channels=20)).state_dict()
    shapes = {
        "conv0p1s1.kernel": (125, 9, 32),
        "bn0.bn.running_mean": (32,),
        "conv1p1s2.kernel": (8, 32, 32),
        "conv4p8s2.kernel": (8, 128, 128),
        "bn4.bn.num_batches_tracked": (),
        "block2.0.conv1.kernel": (27, 32, 64),
        "block2.0.downsample.0.kernel": (32, 64),
        "block2.0.downsample.1.bn.weight": (64,),
        "block4.5.norm2.bn.bias": (256,),
        "convtr4p16s2.kernel": (8, 256, 256),
        "convtr7p2s2.kernel": (8, 96, 96),
        "bntr7.bn.weight": (96,),
        "block5.0.conv1.kernel": (27, 256 + 128, 256),
        "block8.0.downsample.0.kernel": (128, 96),
        "final.kernel": (96, 20),
        "final.bias": (1, 20),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert len(state) == 374 and "block1.0.downsample.0.kernel" not in state
    wide = build_model(dict(type="MinkUNet50", in_channels=3, out_channels=0))
    state = wide.state_dict()
    assert state["block3.1.conv1.kernel"].shape == (512, 128) and state["block3.1.conv3.kernel"].shape == (128, 512)
    assert wide.out_channels == 384 and not any(name.startswith("final") for name in state)


def test_start_values():
    model = build_model(dict(type="MinkUNet18A", in_channels=3, out_channels=20))
    assert abs(model.block4[0].conv1.kernel.std() / (2 / (27 * 256)) ** 0.5 - 1) < 0.02
    assert abs(model.block2[0].downsample[0].kernel.std() / (2 / 32) ** 0.5 - 1) < 0.1
    bound = 1 / (8 * 128) ** 0.5
    assert bound * 0.99 < model.convtr4p16s2.kernel.abs().max() <= bound
    assert 0 < model.final.bias.abs().max() <= 1 / 96**0.5
    assert all(m.eps == 1e-5 and m.momentum == 0.1 for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d))
    assert MinkowskiPointwise(3, 4).bias is None


def test_scenes_are_independent_of_their_batch():
    model, scenes = small(), [scene(*s) for s in ((1, 1), (200, 12), (50, 60), (3, 2))]
    merged = {key: torch.cat([s[key] for s in scenes]) for key in ("grid_coord", "feat")}
    sizes = [len(s["feat"]) for s in scenes]
    with torch.no_grad():
        together = model(merged | dict(offset=torch.tensor(sizes).cumsum(0))).split(sizes)
        for part, alone in zip(together, scenes, strict=True):
            torch.testing.assert_close(part, model(alone), rtol=1e-4, atol=1e-5)


def test_points_that_share_a_cell_are_averaged():
    model, batch = small(), scene(100, 40)
    again = torch.randint(0, 100, (30,))
    coord = torch.cat([batch["grid_coord"], batch["grid_coord"][again]])
    feat = torch.randn(130, 3)
    shuffled = torch.randperm(130)
    where = {tuple(c): i for i, c in enumerate(batch["grid_coord"].tolist())}
    owner = torch.tensor([where[tuple(c)] for c in coord.tolist()])
    mean = torch.stack([feat[owner == cell].mean(0) for cell in range(100)])
    with torch.no_grad():
        merged = model(batch | dict(feat=mean))
        given = dict(grid_coord=coord[shuffled], feat=feat[shuffled], offset=torch.tensor([130]))
        torch.testing.assert_close(model(given), merged[owner][shuffled], rtol=1e-4, atol=1e-5)
    # Batch norms count each cell once while training, as MinkowskiEngine's do.
    torch.testing.assert_close(
        model.train()(given), model(batch | dict(feat=mean))[owner][shuffled], rtol=1e-3, atol=1e-4
    )


def test_gradients_reach_every_parameter_and_are_right():
    model, batch = small("MinkUNet50").double(), scene(60, 12)
    feat = batch["feat"].double().requires_grad_()
    direction = torch.randn(60, 5, dtype=torch.float64)

    def loss(value):
        return (model(batch | dict(feat=value)) * direction).sum()

    loss(feat).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    step = torch.randn_like(feat) * 1e-6
    slope = (loss(feat + step) - loss(feat - step)).item() / 2
    torch.testing.assert_close((feat.grad * step).sum().item(), slope, rtol=1e-4, atol=0.0)
    kernel = model.block1[0].conv2.kernel
    move = torch.randn_like(kernel) * 1e-6
    with torch.no_grad():
        kernel.add_(move)
        high = loss(feat).item()
        kernel.sub_(2 * move)
        slope = (high - loss(feat).item()) / 2
    torch.testing.assert_close((kernel.grad * move).sum().item(), slope, rtol=1e-4, atol=0.0)


def test_what_comes_in():
    model, batch = small(), scene(30, 8)
    with torch.no_grad():
        out = model(batch)
        old = {"discrete_coord" if key == "grid_coord" else key: value for key, value in batch.items()}
        assert torch.equal(model(old), out)
        wide = torch.zeros(30, 6)
        wide[:, 1::2] = batch["feat"]
        assert torch.equal(model(batch | dict(feat=wide[:, 1::2], grid_coord=batch["grid_coord"].int())), out)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(batch).float() - out).abs().max() < 0.1 * out.abs().max()
    with pytest.raises(KeyError, match="MinkUNet14A: input_dict lacks grid_coord"):
        model(dict(feat=batch["feat"], offset=batch["offset"]))
    far = batch["grid_coord"].clone()
    far[0] = 2**30
    with pytest.raises(ValueError, match="do not fit into 62-bit keys"):
        model(batch | dict(grid_coord=far))
    with pytest.raises(ValueError, match="batch norms need two while training"):
        small().train()(batch)
    with pytest.raises(ValueError, match="dimension must be 3, got 4"):
        small(dimension=4)
    with pytest.raises(ValueError, match="must have 8 entries"):
        small(layers=(1, 1))


def test_pointcept_s_segmentor_trains_on_it():
    model = build_model(
        dict(
            type="DefaultSegmentor",
            backbone=dict(type="MinkUNet14A") | TINY,
            criteria=[dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1)],
        )
    )
    batch = scene(300, 40)
    batch["segment"] = batch["grid_coord"][:, 2] // 8
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]

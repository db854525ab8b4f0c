"""SpUNet: Pointcept's checkpoint layout, what forward returns, independence of scenes, order and duplicates."""

import pytest
import torch

from pointcept3m.models import build_model
from pointcept3m.models.backbones.spunet import SpUNet
from pointcept3m.models.layers.sparse import SparseConvolution

SMALL = dict(base_channels=8, channels=(8, 12, 16, 20, 20, 16, 12, 10), layers=(1,) * 8)


def make_input(sizes=(300, 200), channels=6, extent=24):
    """Scenes of distinct random voxels."""
    coords = []
    for size in sizes:
        flat = torch.randperm(extent**3)[:size]
        coords.append(torch.stack([flat // extent**2, flat // extent % extent, flat % extent], 1))
    offset = torch.tensor(sizes).cumsum(0)
    return dict(grid_coord=torch.cat(coords), feat=torch.randn(sum(sizes), channels), offset=offset)


def small(**options):
    return build_model(dict(type="SpUNet-v1m1", in_channels=6, num_classes=0) | SMALL | options)


def test_checkpoint_layout_of_pointcept():
    """Names and shapes were read off Pointcept's own model."""
    state = SpUNet(in_channels=6, num_classes=20).state_dict()
    assert len(state) == 356
    assert sum(p.numel() for p in SpUNet(6, 20).parameters()) == 39_157_844
    shapes = {
        "conv_input.0.weight": (32, 5, 5, 5, 6),
        "conv_input.1.running_mean": (32,),
        "down.0.0.weight": (32, 2, 2, 2, 32),
        "down.3.0.weight": (256, 2, 2, 2, 128),
        "enc.0.block1.conv2.weight": (32, 3, 3, 3, 32),
        "enc.3.block5.bn2.num_batches_tracked": (),
        "up.0.0.weight": (96, 2, 2, 2, 96),
        "up.1.0.weight": (96, 2, 2, 2, 128),
        "up.2.0.weight": (128, 2, 2, 2, 256),
        "up.3.0.weight": (256, 2, 2, 2, 256),
        "dec.0.block0.proj.0.weight": (96, 1, 1, 1, 128),
        "dec.0.block0.proj.1.weight": (96,),
        "dec.3.block0.conv1.weight": (256, 3, 3, 3, 384),
        "dec.2.block1.conv1.weight": (128, 3, 3, 3, 128),
        "final.weight": (20, 1, 1, 1, 96),
        "final.bias": (20,),
    }
    for name, shape in shapes.items():
        assert tuple(state[name].shape) == shape, name
    assert not any(".block1.proj" in name or name.startswith("enc") and "proj" in name for name in state)
    assert not any(name.startswith("final") for name in small().state_dict())


def test_norms_and_start_values():
    model = small(num_classes=5)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert norms and all(m.eps == 1e-3 and m.momentum == 0.01 for m in norms)
    assert abs(model.enc[3].block0.conv1.weight.std() - 0.02) < 2e-3
    assert not model.final.bias.any()


@pytest.mark.parametrize("num_classes, width", [(0, 10), (7, 7)])
def test_one_feature_per_point(num_classes, width):
    model = small(num_classes=num_classes)
    out = model(make_input())
    assert out.shape == (500, width) and model.out_channels == width and out.isfinite().all()
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_encoder_alone_by_both_names():
    for option in (dict(enc_mode=True), dict(cls_mode=True)):
        model = small(**option).eval()
        assert not len(model.up) and model.out_channels == 20
        assert model(make_input()).shape == (2, 20)
    assert small(enc_mode=True, cls_mode=False).out_channels == 10


def test_other_depths():
    model = build_model(
        dict(type="SpUNet-v1m1", in_channels=3, num_classes=0, channels=(8, 16, 12, 10), layers=(1, 2, 1, 1))
    )
    assert model(make_input(channels=3)).shape == (500, 10)


def test_scenes_are_independent_in_eval():
    model, batch = small().eval(), make_input()
    with torch.no_grad():
        both = model(batch)
        alone = model(dict(grid_coord=batch["grid_coord"][300:], feat=batch["feat"][300:], offset=torch.tensor([200])))
    torch.testing.assert_close(alone, both[300:], rtol=1e-4, atol=1e-6)


def test_order_and_duplicates():
    model, batch = small().eval(), make_input((400,))
    again = torch.randint(0, 400, (60,))
    batch["grid_coord"] = torch.cat([batch["grid_coord"], batch["grid_coord"][again]])
    batch["feat"], batch["offset"] = torch.randn(460, 6), torch.tensor([460])
    order = torch.randperm(460)
    moved = dict(grid_coord=batch["grid_coord"][order], feat=batch["feat"][order], offset=batch["offset"])
    with torch.no_grad():
        torch.testing.assert_close(model(moved), model(batch)[order], rtol=1e-4, atol=1e-6)


def test_a_shift_by_whole_coarse_cells_changes_nothing():
    model, batch = small().eval(), make_input()
    with torch.no_grad():
        here = model(batch)
        there = model(batch | dict(grid_coord=batch["grid_coord"] + torch.tensor([16, 32, 0])))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-6)


def test_autocast_runs_every_convolution_in_bfloat16():
    """Every sparse layer answers in bfloat16; result and float32 gradients stay near those of float32."""
    model, batch = small(num_classes=5), make_input()
    full = model(batch)
    grad = torch.randn_like(full)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(full, parameters, grad)
    dtypes = []
    for module in model.modules():
        if isinstance(module, SparseConvolution):
            module.register_forward_hook(lambda _module, _inputs, out: dtypes.append(out.features.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
    assert half.dtype == torch.bfloat16 and set(dtypes) == {torch.bfloat16} and len(dtypes) > 20
    torch.testing.assert_close(half.float(), full, atol=0.05 * full.abs().max().item(), rtol=0)
    got = torch.autograd.grad(half, parameters, grad.bfloat16())
    assert {g.dtype for g in got} == {torch.float32}
    ours, theirs = (torch.cat([(g / w.norm()).flatten() for g, w in zip(gs, wanted, strict=True)]) for gs in (got, wanted))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.95


def test_spconv_runs_the_same_network():
    """With one thread, as spconv's CPU path is not reliable with more."""
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    ours, theirs, batch = small(num_classes=5).eval(), small(num_classes=5, backend="spconv").eval(), make_input()
    theirs.load_state_dict(ours.state_dict())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            torch.testing.assert_close(theirs(batch), ours(batch), rtol=1e-4, atol=1e-6)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.long
def test_a_checkpoint_made_with_spconv_gives_its_logits(tmp_path):
    """Pointcept's network of spconv's own modules, saved as DDP saves it; ours loads it whole and scores alike."""
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    from pointcept3m.engines.checkpoint import load_weights
    from tests.models.peer_spunet import PeerSpUNet

    peer = PeerSpUNet(6, 20).eval()
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    state = {f"module.backbone.{name}": value for name, value in peer.state_dict().items()}
    assert len(state) == 356 and sum(p.numel() for p in peer.parameters()) == 39_157_844
    torch.save({"epoch": 100, "state_dict": state}, tmp_path / "model_best.pth")
    model = build_model(
        dict(
            type="DefaultSegmentor",
            backbone=dict(type="SpUNet-v1m1", in_channels=6, num_classes=20),
            criteria=[dict(type="CrossEntropyLoss", ignore_index=-1)],
        )
    ).eval()
    load_weights(model, tmp_path / "model_best.pth")
    clouds = [torch.randint(0, size, (count, 3)).unique(dim=0) for size, count in ((20, 600), (27, 500))]
    clouds = [cloud[torch.randperm(len(cloud))] for cloud in clouds]
    offset = torch.tensor([len(cloud) for cloud in clouds]).cumsum(0)
    batch = dict(grid_coord=torch.cat(clouds), feat=torch.randn(int(offset[-1]), 6), offset=offset)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # spconv's CPU path is not reliable with more
    try:
        with torch.no_grad():
            theirs = peer(batch["grid_coord"], batch["feat"], torch.arange(2).repeat_interleave(offset.diff(prepend=torch.zeros(1).long())))
            ours = model(batch)["seg_logits"]
    finally:
        torch.set_num_threads(threads)
    assert theirs.abs().max() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bad_input_is_named():
    model, batch = small(), make_input()
    with pytest.raises(KeyError, match="lacks offset"):
        model({k: v for k, v in batch.items() if k != "offset"})
    with pytest.raises(ValueError, match=r"feat must be \[500, 6\], got \(500, 5\)"):
        model(batch | dict(feat=batch["feat"][:, :5]))
    with pytest.raises(ValueError, match="grid_coord must be integers"):
        model(batch | dict(grid_coord=batch["grid_coord"].float()))
    with pytest.raises(ValueError, match="offset must ascend"):
        model(batch | dict(offset=torch.tensor([300, 499])))
    with pytest.raises(ValueError, match=r"lie in \[0, 2\^31\), found \[-"):
        model(batch | dict(grid_coord=batch["grid_coord"] - 100))
    with pytest.raises(ValueError, match="equally many and even"):
        small(layers=(1, 1))

"""PT-v3m1: Pointcept's checkpoint layout, a naive twin, independence of scenes, odd scenes, training, options."""

import pytest
import torch

from pointcept3m.models import build_model
from pointcept3m.models.heads.segmentor import features_of
from pointcept3m.models.layers.serialized import RPE, DropPath
from pointcept3m.structures.level import Level
from tests.models.naive_ptv3 import Naive

SMALL = dict(
    in_channels=4,
    order=("hilbert", "z-trans", "z", "hilbert-trans"),
    stride=(2, 2),
    enc_depths=(2, 1, 1),
    enc_channels=(8, 12, 16),
    enc_num_head=(2, 3, 4),
    enc_patch_size=(16, 16, 16),
    dec_depths=(1, 2),
    dec_channels=(10, 12),
    dec_num_head=(2, 3),
    dec_patch_size=(16, 16),
)


def small(**options):
    """A small model whose norms and residuals are far from their start values."""
    model = build_model(dict(type="PT-v3m1") | SMALL | options)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.add_(torch.randn_like(value) * 0.1)
    return model.eval()


def scene(size, extent, channels=4):
    """Distinct random cells of a cube, one of them in its far corner."""
    flat = torch.randint(extent**3, (20 * size,)).unique()
    flat = flat[torch.randperm(len(flat))][:size]
    flat[0] = extent**3 - 1 if not (flat == extent**3 - 1).any() else flat[0]
    assert len(flat) == size
    coord = torch.stack([flat // extent**2, flat // extent % extent, flat % extent], 1)
    return dict(grid_coord=coord, feat=torch.randn(size, channels), offset=torch.tensor([size]))


def batched(*scenes):
    merged = {key: torch.cat([s[key] for s in scenes]) for key in ("grid_coord", "feat")}
    return merged | dict(offset=torch.tensor([len(s["feat"]) for s in scenes]).cumsum(0))


def test_checkpoint_layout_of_pointcept():
    """The base model of Pointcept's ScanNet config; the count is added up from the layers' sizes."""
    model = build_model(
        dict(
            type="PT-v3m1",
            in_channels=6,
            order=("z", "hilbert"),
            enc_patch_size=(1024,) * 5,
            dec_patch_size=(1024,) * 4,
        )
    )
    state = model.state_dict()
    shapes = {
        "embedding.stem.conv.weight": (32, 5, 5, 5, 6),
        "embedding.stem.norm.running_var": (32,),
        "enc.enc0.block1.cpe.0.weight": (32, 3, 3, 3, 32),
        "enc.enc0.block1.cpe.0.bias": (32,),
        "enc.enc0.block1.cpe.1.weight": (32, 32),
        "enc.enc0.block1.cpe.2.bias": (32,),
        "enc.enc3.down.proj.weight": (256, 128),
        "enc.enc3.down.norm.0.num_batches_tracked": (),
        "enc.enc3.block5.norm1.0.weight": (256,),
        "enc.enc3.block5.attn.qkv.weight": (768, 256),
        "enc.enc3.block5.attn.proj.bias": (256,),
        "enc.enc4.block1.norm2.0.bias": (512,),
        "enc.enc4.block1.mlp.0.fc1.weight": (2048, 512),
        "enc.enc4.block1.mlp.0.fc2.bias": (512,),
        "dec.dec3.up.proj.0.weight": (256, 512),
        "dec.dec3.up.proj.1.running_mean": (256,),
        "dec.dec0.up.proj_skip.0.weight": (64, 32),
        "dec.dec0.up.proj_skip.1.weight": (64,),
        "dec.dec0.block1.attn.qkv.bias": (192,),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes

    def block(c):
        return (27 * c * c + c) + (c * c + c) + 2 * c + 2 * 2 * c + (4 * c * c + 4 * c) + (8 * c * c + 5 * c)

    enc, dec = (32, 64, 128, 256, 512), (64, 64, 128, 256, 512)
    count = 125 * 6 * 32 + 2 * 32 + sum(n * block(c) for n, c in zip((2, 2, 2, 6, 2), enc, strict=True))
    count += sum(a * b + 3 * b for a, b in zip(enc, enc[1:], strict=False))
    count += sum(2 * block(c) for c in dec[:4])
    count += sum(a * c + 3 * c + b * c + 3 * c for a, b, c in zip(dec[1:], enc, dec, strict=False))
    assert count == sum(p.numel() for p in model.parameters()) == 46_166_272
    assert len(state) == 486 and model.out_channels == 64


@pytest.mark.parametrize(
    "options, size, extent",
    [
        (dict(), 70, 9),
        (dict(enable_rpe=True, enable_flash=False, upcast_softmax=True), 40, 8),
        (dict(pre_norm=False, qkv_bias=False, dec_patch_size=(24, 7)), 60, 30),
        (dict(stride=(4, 8), order="hilbert-trans"), 50, 7),
        (dict(order="z"), 60, 12),
        (dict(), 16, 5),
        (dict(), 9, 4),
        (dict(), 1, 1),
    ],
)
def test_equals_the_naive_twin(options, size, extent):
    model, batch = small(**options), scene(size, extent)
    config = SMALL | options
    config["order"] = (config["order"],) if isinstance(config["order"], str) else config["order"]
    with torch.no_grad():
        found = model(batch)
    torch.testing.assert_close(
        found.double(), Naive(model, **config)(batch["grid_coord"], batch["feat"]), rtol=2e-4, atol=2e-4
    )


def test_equals_the_naive_twin_where_points_share_cells():
    model, batch = small(), scene(50, 7)
    again = torch.randint(0, 50, (12,))
    coord = torch.cat([batch["grid_coord"], batch["grid_coord"][again]])
    batch = dict(grid_coord=coord, feat=torch.randn(62, 4), offset=torch.tensor([62]))
    with torch.no_grad():
        found = model(batch).double()
    torch.testing.assert_close(found, Naive(model, **SMALL)(coord, batch["feat"]), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("options", [dict(), dict(enable_rpe=True, order="z"), dict(stride=(8, 4))])
def test_scenes_are_independent_of_their_batch(options):
    """Scenes of one point to many patches, with octrees of every depth, beside each other and alone."""
    model = small(**options)
    scenes = [scene(*size) for size in ((1, 1), (300, 9), (16, 40), (17, 200), (15, 3), (2, 1000), (150, 33))]
    with torch.no_grad():
        together = model(batched(*scenes)).split([len(s["feat"]) for s in scenes])
        for part, alone in zip(together, scenes, strict=True):
            torch.testing.assert_close(part, model(alone), rtol=1e-4, atol=1e-5)


def test_a_batch_may_have_an_empty_scene():
    model, one, two = small(), scene(40, 9), scene(20, 9)
    batch = batched(one, two) | dict(offset=torch.tensor([0, 40, 40, 60]))
    batch["feat"].requires_grad_()
    out = model(batch)
    torch.testing.assert_close(out, model(batched(one, two)), rtol=1e-4, atol=1e-5)
    out.sum().backward()
    assert batch["feat"].grad.isfinite().all() and batch["feat"].grad.abs().sum() > 0


def test_order_and_memory_layout_of_the_points():
    model, batch = small(), scene(120, 9)
    shuffled = torch.randperm(120)
    wide = torch.randn(120, 8)
    wide[:, ::2] = batch["feat"]
    with torch.no_grad():
        here = model(batch)
        there = model(batch | dict(grid_coord=batch["grid_coord"][shuffled], feat=batch["feat"][shuffled]))
        strided = model(batch | dict(feat=wide[:, ::2], grid_coord=batch["grid_coord"].T.contiguous().T.int()))
    torch.testing.assert_close(there, here[shuffled], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(strided, here, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter_and_are_right():
    model, batch = small(drop_path=0.0).double(), scene(30, 5)
    feat = batch["feat"].double().requires_grad_()
    direction = torch.randn(30, 10, dtype=torch.float64)

    def loss(value):
        return (model(batch | dict(feat=value)) * direction).sum()

    loss(feat).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    step = torch.randn_like(feat) * 1e-5
    slope = (loss(feat + step) - loss(feat - step)).item() / 2
    torch.testing.assert_close((feat.grad * step).sum().item(), slope, rtol=1e-5, atol=0.0)


def test_training_is_random_by_the_seed_alone():
    """shuffle_orders is what is random without dropout; in eval mode nothing is."""
    batch = batched(scene(80, 9), scene(30, 20))

    def run(model, seed):
        torch.manual_seed(seed)
        return model.train()(batch).detach()

    model = small(drop_path=0.0)
    assert torch.equal(run(model, 0), run(model, 0))
    assert not any(torch.allclose(run(model, 0), run(model, seed)) for seed in (4,))
    still = small(drop_path=0.0, shuffle_orders=False)
    assert torch.equal(run(still, 0), run(still, 4))
    assert torch.equal(model.eval()(batch), model(batch))
    for option in ("drop_path", "proj_drop", "attn_drop"):
        noisy = small(**dict(drop_path=0.0, shuffle_orders=False) | {option: 0.5})
        assert not torch.allclose(run(noisy, 0), run(noisy, 4)), option
        assert torch.equal(run(noisy, 0), run(noisy, 0)), option
        assert torch.equal(noisy.eval()(batch), noisy(batch)), option


def test_drop_path_drops_rows_and_keeps_their_mean():
    out = DropPath(0.25).train()(torch.ones(20_000, 3))
    assert out.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (out == out[:, :1]).all() and abs(out.mean() - 1) < 0.02
    model = build_model(dict(type="PT-v3m1", drop_path=0.3, enc_channels=(32,) * 5, dec_channels=(32,) * 4,
                             enc_num_head=(2,) * 5, dec_num_head=(2,) * 4))  # fmt: skip
    rates = [
        model.enc[f"enc{s}"][f"block{i}"].drop_path[0].rate for s, n in enumerate((2, 2, 2, 6, 2)) for i in range(n)
    ]
    assert rates == pytest.approx([0.3 * i / 13 for i in range(14)])
    falling = [model.dec[f"dec{s}"][f"block{i}"].drop_path[0].rate for s in (3, 2, 1, 0) for i in range(2)]
    assert falling == pytest.approx([0.3 * i / 7 for i in reversed(range(8))])


def test_half_precision_stays_near():
    model, batch = small(upcast_attention=True), batched(scene(100, 9), scene(7, 9))
    with torch.no_grad():
        full = model(batch)
        for half in (model, small()):
            half.load_state_dict(model.state_dict())
            with torch.autocast("cpu", torch.bfloat16):
                near = half(batch)
            assert (near.float() - full).abs().max() < 0.05 * full.abs().max()


def test_an_encoder_alone_by_both_names():
    scenes = scene(60, 9), scene(30, 6)
    model = small(cls_mode=True)
    config = {key: value for key, value in SMALL.items() if not key.startswith("dec")}
    assert not hasattr(model, "dec") and model.out_channels == 16
    assert small(enc_mode=True).state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        out = model(batched(*scenes))
    naive = [Naive(model, **config)(s["grid_coord"], s["feat"]) for s in scenes]
    assert out["offset"].tolist() == [len(naive[0]), len(naive[0]) + len(naive[1])]
    torch.testing.assert_close(out["feat"].double(), torch.cat(naive), rtol=2e-4, atol=2e-4)
    every = features_of(out)
    assert every.shape == (90, 8 + 12 + 16)
    # Each point's last columns are those of the cell four times its own that it lies in, in its own scene.
    cells = batched(*scenes)["grid_coord"] >> 2
    batch = torch.tensor([0] * 60 + [1] * 30)
    for row in range(90):
        hit = (out["grid_coord"] == cells[row]).all(1) & (out["batch"] == batch[row])
        assert hit.sum() == 1 and torch.equal(every[row, 20:], out["feat"][hit][0])


def test_norms_by_data_set():
    options = dict(pdnorm_bn=True, pdnorm_ln=True, pdnorm_adaptive=True, pdnorm_affine=False)
    model, batch = small(**options), scene(40, 9)
    names = set(model.state_dict())
    assert "embedding.stem.norm.norm.2.running_mean" in names and "embedding.stem.norm.norm.2.weight" not in names
    assert "enc.enc0.block0.norm1.0.modulation.1.weight" in names and "dec.dec0.up.proj.1.norm.0.running_var" in names
    with pytest.raises(KeyError, match="ScanNet, S3DIS, Structured3D"):
        model(batch)
    with pytest.raises(ValueError, match="ScanNet"):
        model(batch | dict(condition="Scannet"))
    with pytest.raises(KeyError, match="context"):
        model(batch | dict(condition="ScanNet"))
    with pytest.raises(ValueError, match="one condition"):
        model(batch | dict(condition=["ScanNet", "S3DIS"]))
    batch["context"] = torch.randn(1, 256)
    with torch.no_grad():
        first, listed, other = (model(batch | dict(condition=c)) for c in ("ScanNet", ["ScanNet"], "S3DIS"))
    assert torch.equal(first, listed) and not torch.allclose(first, other)
    with torch.no_grad():
        assert not torch.allclose(first, model(batch | dict(condition="ScanNet", context=-batch["context"])))
    shared = small(pdnorm_bn=True, pdnorm_decouple=False)
    assert "embedding.stem.norm.norm.weight" in shared.state_dict()
    plain = small()
    plain.load_state_dict(_without_norm(shared.state_dict(), plain.state_dict()))
    batch.pop("context")
    torch.testing.assert_close(shared(batch), plain(batch))


def _without_norm(state, wanted):
    """Entries of a model with PDNorms of one norm under the names that they have without."""
    renamed = {}
    for name, value in state.items():
        stem, leaf = name.rsplit(".", 1)
        renamed[name if name in wanted else f"{stem.removesuffix('.norm')}.{leaf}"] = value
    return renamed


def test_rpe_bounds_are_pointcept_s():
    assert RPE(48, 2).rpe_table.shape == (3 * 23, 2)  # int((4 * 48) ** (1 / 3) * 2) = 11
    assert RPE(1024, 1).rpe_table.shape == (3 * 63, 1)  # 31.999 rounded down


def test_levels_merge_the_cells_of_each_scene():
    scenes = scene(50, 9), scene(5, 2)
    batch = batched(*scenes)
    level = Level.serialize(batch["grid_coord"], batch["offset"], ("z", "hilbert"))
    coarse, groups = level.pool(4)
    assert level.depth == (4, 2) and coarse.depth == (2, 0)
    expected = {(b, *c) for b, s in enumerate(scenes) for c in (s["grid_coord"] // 4).tolist()}
    found = torch.cat([coarse.batch[:, None], coarse.grid_coord], 1)
    assert {tuple(row) for row in found.tolist()} == expected and len(found) == len(expected)
    here = torch.tensor([[0]] * 50 + [[1]] * 5)
    assert torch.equal(found[groups.inverse], torch.cat([here, batch["grid_coord"] // 4], 1))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(order=("z", "hilbrt")), "hilbert"),
        (dict(enc_channels=(8, 12)), "enc_channels must have 3"),
        (dict(stride=(2,)), "stride must have 2"),
        (dict(dec_depths=(1, 1, 1)), "dec_depths must have 2"),
        (dict(stride=(2, 3)), "power of 2, got 3"),
        (dict(enc_num_head=(3, 3, 4)), "8 channels do not divide into 3 heads"),
        (dict(enc_patch_size=(0, 16, 16)), "must be positive, got 0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build_model(dict(type="PT-v3m1") | SMALL | options)


def test_wrong_batches():
    model, batch = small(), scene(20, 5)
    with pytest.raises(KeyError, match="PT-v3m1: input_dict lacks grid_coord; it has feat, offset"):
        model(dict(feat=batch["feat"], offset=batch["offset"]))
    with pytest.raises(ValueError, match=r"grid_coord must be integers \[N, 3\], got torch.float32"):
        model(batch | dict(grid_coord=batch["grid_coord"].float()))
    with pytest.raises(ValueError, match=r"feat must be \[20, 4\], got \(20, 3\)"):
        model(batch | dict(feat=batch["feat"][:, :3]))
    for offset in ([19], [25, 20], []):
        with pytest.raises(ValueError, match="offset must ascend"):
            model(batch | dict(offset=torch.tensor(offset, dtype=torch.long)))
    with pytest.raises(ValueError, match="grid_coord must lie in"):
        model(batch | dict(grid_coord=batch["grid_coord"] - 3))
    for size in ((1, 1), (20, 3)):
        with pytest.raises(ValueError, match="batch norms need two while training"):
            small().train()(scene(*size))
    with pytest.raises(ValueError, match="63-bit codes"):
        model(batch | dict(grid_coord=batch["grid_coord"] + 2**21))


def test_pointcept_s_segmentor_trains_on_it():
    model = build_model(
        dict(
            type="DefaultSegmentorV2",
            num_classes=5,
            backbone_out_channels=10,
            backbone=dict(type="PT-v3m1") | SMALL,
            criteria=[dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1)],
        )
    )
    batch = batched(scene(100, 9), scene(40, 7))
    batch["segment"] = batch["grid_coord"][:, 2] % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]

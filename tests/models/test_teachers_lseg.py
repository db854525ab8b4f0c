"""LSeg: the names of its published checkpoint, its arithmetic, and what the releases do around it."""

import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from pointcept3m.models.builder import TEACHERS
from pointcept3m.models.teachers import LSegTeacher
from pointcept3m.models.teachers.lseg import Fusion, LSegNet, Readout, lseg_weights

TINY = dict(
    levels=(8, 12, 16, 20), features=8, dim=6, vit=dict(depth=4, embed_dim=24, num_heads=2, img_size=64)
)


@pytest.fixture(scope="module", autouse=True)
def timm():
    try:
        import timm
    except Exception as error:
        pytest.skip(f"timm cannot be imported here: {error}")
    return timm


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    teacher = LSegTeacher(random_init=True, image_size=None, model_args=TINY)
    for module in teacher.network.modules():  # as after training: running statistics that are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(teacher.network.pretrained.model.pos_embed, std=0.5)
    return teacher


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes in demo_e200.ckpt, from the module definitions of isl-org/lang-seg (572a98e), without CLIP."""
    w, f = 1024, 256
    out: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        out[f"{name}.weight"] = shape
        if bias:
            out[f"{name}.bias"] = (shape[0],)

    vit = "pretrained.model."
    out[vit + "cls_token"], out[vit + "pos_embed"] = (1, 1, w), (1, 1 + 24 * 24, w)
    layer(vit + "patch_embed.proj", w, 3, 16, 16)
    for i in range(24):
        block = f"{vit}blocks.{i}."
        layer(block + "norm1", w), layer(block + "norm2", w)
        layer(block + "attn.qkv", 3 * w, w), layer(block + "attn.proj", w, w)
        layer(block + "mlp.fc1", 4 * w, w), layer(block + "mlp.fc2", w, 4 * w)
    layer(vit + "norm", w)
    for i, c in enumerate((256, 512, 1024, 1024), start=1):
        post = f"pretrained.act_postprocess{i}."
        layer(post + "0.project.0", w, 2 * w)
        layer(post + "3", c, w, 1, 1)
        layer(f"scratch.layer{i}_rn", f, c, 3, 3, bias=False)
        refine = f"scratch.refinenet{i}."
        layer(refine + "out_conv", f, f, 1, 1)
        for unit in ("resConfUnit1.", "resConfUnit2."):
            for n in (1, 2):
                layer(f"{refine}{unit}conv{n}", f, f, 3, 3, bias=False)
                layer(f"{refine}{unit}bn{n}", f)
                for statistic in ("running_mean", "running_var"):
                    out[f"{refine}{unit}bn{n}.{statistic}"] = (f,)
                out[f"{refine}{unit}bn{n}.num_batches_tracked"] = ()
    layer("pretrained.act_postprocess1.4", 256, 256, 4, 4)
    layer("pretrained.act_postprocess2.4", 512, 512, 2, 2)
    layer("pretrained.act_postprocess4.4", 1024, 1024, 3, 3)
    layer("scratch.head1", 512, f, 1, 1)
    return out


def test_names_and_shapes_are_those_of_the_published_checkpoint():
    with torch.device("meta"):
        network = LSegNet()
    assert network.hooks == [5, 11, 17, 23]
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == published_shapes()


def test_the_network_by_hand(teacher):
    """The decoder at a size that is not the position table's, with each step written out."""
    net, model = teacher.network, teacher.network.pretrained.model
    images = torch.randn(2, 3, 32, 96)
    with torch.no_grad():
        x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=16)
        grid = model.pos_embed[0, 1:].reshape(4, 4, 24).permute(2, 0, 1)[None]
        grid = F.interpolate(grid, size=(2, 6), mode="bilinear")[0].permute(1, 2, 0).reshape(12, 24)
        x = x.permute(0, 2, 3, 1).reshape(2, 12, 24) + grid
        x = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(2, 1, 24), x], dim=1)
        levels = []
        for i, block in enumerate(model.blocks, start=1):
            x = block(x)
            project = getattr(net.pretrained, f"act_postprocess{i}")
            linear = project[0].project[0]
            both = torch.cat([x[:, 1:], x[:, :1].repeat(1, 12, 1)], dim=2)
            tokens = F.gelu(both @ linear.weight.T + linear.bias)
            level = project[3](tokens.reshape(2, 2, 6, 24).permute(0, 3, 1, 2))
            if i != 3:
                level = project[4](level)
            levels.append(getattr(net.scratch, f"layer{i}_rn")(level))
        assert [tuple(level.shape[-2:]) for level in levels] == [(8, 24), (4, 12), (2, 6), (1, 3)]

        def unit(module, y):
            out = F.conv2d(y.clamp(min=0), module.conv1.weight, padding=1)
            out = module.bn1(out).clamp(min=0)
            return module.bn2(F.conv2d(out, module.conv2.weight, padding=1)) + y

        path = None
        for i in (4, 3, 2, 1):
            refine = getattr(net.scratch, f"refinenet{i}")
            path = levels[3] if path is None else path + unit(refine.resConfUnit1, levels[i - 1])
            path = unit(refine.resConfUnit2, path)
            path = F.interpolate(path, scale_factor=2, mode="bilinear", align_corners=True)
            path = refine.out_conv(path)
        wanted = net.scratch.head1(path)
        assert wanted.shape == (2, 6, 16, 48)
        assert torch.allclose(net(images), wanted, atol=1e-4)


def test_padding_flip_and_length(teacher):
    images = torch.rand(1, 3, 48, 64)
    normalised = (images - 0.5) / 0.5
    padded = torch.full((1, 3, 64, 64), -1.0)
    padded[:, :, :48] = normalised
    with torch.no_grad():
        straight = F.normalize(teacher.network(padded), dim=1)
        mirrored = F.normalize(teacher.network(padded.flip(3)), dim=1).flip(3)
    mean = ((straight + mirrored) / 2)[:, :, :24, :32]
    out = teacher(images)
    assert out.shape == (1, 6, 24, 32) and out.dtype == torch.float32
    assert torch.allclose(out, F.normalize(mean, dim=1), atol=1e-5)
    teacher.normalize = False
    assert torch.allclose(teacher(images), mean, atol=1e-5) and (mean.norm(dim=1) < 1).any()
    teacher.flip = False
    assert torch.allclose(teacher(images), straight[:, :, :24, :32], atol=1e-5)
    teacher.square = False
    assert teacher(torch.rand(1, 3, 30, 64)).shape == (1, 6, 15, 32)
    wide = teacher(torch.rand(1, 3, 20, 100))
    assert wide.shape == (1, 6, 10, 50) and torch.isfinite(wide).all()


def test_the_long_side(teacher):
    plain = LSegTeacher(random_init=True, model_args=TINY)
    assert plain.input_size(240, 320) == (480, 640)
    assert plain.fingerprint != teacher.fingerprint
    assert LSegTeacher(random_init=True, model_args=TINY, flip=False).options["flip"] is False


def checkpoint(network) -> dict[str, torch.Tensor]:
    """The tensors as the training of lang-seg saved them: under `net.`, with CLIP and ImageNet's classifier beside."""
    tensors = {f"net.{key}": value for key, value in network.state_dict().items()}
    tensors["net.clip_pretrained.visual.proj"] = torch.zeros(3)
    tensors["net.pretrained.model.head.weight"] = torch.zeros(1000, 24)
    return tensors


def test_a_lightning_checkpoint_loads_without_lightning(teacher, tmp_path, monkeypatch):
    """As the published file: classes of pytorch_lightning are keys and values beside the tensors."""
    ran = []

    class ModelCheckpoint:
        def __reduce__(self):
            return ModelCheckpoint, (), {"best": 1}

        def __setstate__(self, state):
            ran.append(state)

    class AttributeDict(dict):
        pass

    for cls in (ModelCheckpoint, AttributeDict):
        module = types.ModuleType("pytorch_lightning.fake")
        cls.__module__, cls.__qualname__ = "pytorch_lightning.fake", cls.__name__
        module.ModelCheckpoint, module.AttributeDict = ModelCheckpoint, AttributeDict
    package = types.ModuleType("pytorch_lightning")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", package)
    monkeypatch.setitem(sys.modules, "pytorch_lightning.fake", module)
    path = tmp_path / "demo_e200.ckpt"
    content = {
        "epoch": 199,
        "state_dict": checkpoint(teacher.network),
        "callbacks": {ModelCheckpoint: {"best_model_score": 1}, "other": ModelCheckpoint()},
        "hyper_parameters": AttributeDict(lr=1.0),
    }
    torch.save(content, path)
    monkeypatch.delitem(sys.modules, "pytorch_lightning.fake")
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    trusted = torch.serialization.get_safe_globals()
    loaded = TEACHERS.build(dict(type="LSegTeacher", weight=str(path), image_size=None, model_args=TINY))
    images = torch.rand(1, 3, 32, 64)
    assert torch.equal(loaded(images), teacher(images)) and not ran
    assert loaded.fingerprint == teacher.fingerprint
    assert torch.serialization.get_safe_globals() == trusted


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return math.factorial, (3,)

    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": {"net.scratch.head1.weight": Bomb()}}, path)
    with pytest.raises(ValueError, match="wanted a state_dict"):
        lseg_weights(path)


def test_what_is_no_lseg_checkpoint(teacher, tmp_path):
    with pytest.raises(ValueError, match="teacher 'LSeg' needs weights. Download demo_e200.ckpt"):
        LSegTeacher()
    with pytest.raises(FileNotFoundError, match="no weight file .*demo_e200.ckpt"):
        LSegTeacher(weight=tmp_path / "none.ckpt")
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": {"net.other": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match="no weights of LSeg .*first keys: net.other"):
        LSegTeacher(weight=path, model_args=TINY)
    path.write_bytes(b"no zip file")
    with pytest.raises(ValueError, match="refuses this file"):
        LSegTeacher(weight=path, model_args=TINY)
    weights = checkpoint(teacher.network)
    del weights["net.scratch.refinenet2.out_conv.bias"]
    weights["net.scratch.head2.weight"] = torch.zeros(1)
    torch.save(weights, path)
    with pytest.raises(ValueError, match="1 missing .scratch.refinenet2.out_conv.bias.; 1 unknown .scratch.head2.weight."):
        LSegTeacher(weight=path, model_args=TINY)


def test_parts_of_the_decoder():
    assert Readout(4)(torch.rand(2, 7, 4)).shape == (2, 6, 4)
    assert Fusion(4).eval()(torch.rand(1, 4, 3, 5), torch.rand(1, 4, 3, 5)).shape == (1, 4, 6, 10)

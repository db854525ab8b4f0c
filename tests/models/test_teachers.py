"""Teachers: shapes, what they refuse, the cache, and that a student never carries its teacher."""

import copy
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from pointcept3m.models.builder import TEACHERS
from pointcept3m.models.teachers import OpenClipTeacher, PocketTeacher, Teacher, TimmTeacher
from pointcept3m.models.teachers.pocket import PocketNet, PocketText, read_pocket, split_words, write_pocket
from pointcept3m.models.teachers.timm import convert_radio
from tests.conftest import importable

KINDS = ("text", "geometric", "diffusion")


class Edges(Teacher):
    """A teacher small enough to compute by hand, that counts the images it has seen."""

    patch, dim = 2, 4

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.adopt(nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.BatchNorm2d(4)))
        self.seen = 0

    def features(self, images):
        self.seen += len(images)
        return self.network(images)


class Student(nn.Module):
    def __init__(self, teacher):
        super().__init__()
        self.teacher, self.head = teacher, nn.Linear(4, 4)


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 12)


# ------------------------------------------------------------------------------------------------------------ base


def test_student_does_not_carry_its_teacher(images):
    student = Student(Edges())
    assert set(student.state_dict()) == {"head.weight", "head.bias"}
    assert [name for name, _ in student.named_parameters()] == ["head.weight", "head.bias"]
    Student(Edges()).load_state_dict(student.state_dict(), strict=True)
    student.train()
    assert not student.teacher.training and not any(m.training for m in student.teacher.network.modules())
    before = copy.deepcopy(student.teacher.network.state_dict())
    out = student.teacher(images.requires_grad_())
    assert not out.requires_grad
    assert all(torch.equal(before[k], v) for k, v in student.teacher.network.state_dict().items())


def test_network_follows_the_student():
    student = Student(Edges()).to(torch.float64)
    assert next(student.teacher.network.parameters()).dtype == torch.float64
    assert student.teacher(torch.rand(1, 3, 4, 4)).dtype == torch.float32
    student.to("meta")
    assert next(student.teacher.network.parameters()).device.type == "meta"


def test_maps_are_float32_whatever_the_autocast(images):
    plain = Edges()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = plain(images)
    assert inside.dtype == torch.float32 and torch.equal(inside, plain(images))
    low = Edges(precision="bfloat16")
    low.adopt(plain.network)
    assert low(images).dtype == torch.float32
    assert 0 < (low(images) - inside).abs().max() < 0.1


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(None, (8, 12)), (6, (4, 6)), ((10, 5), (10, 4)), ((1, 1), (2, 2))],
)
def test_image_is_resized_to_a_multiple_of_the_patch(images, size, wanted):
    teacher = Edges(image_size=size)
    assert teacher.input_size(8, 12) == wanted
    assert teacher(images).shape == (3, 4, wanted[0] // 2, wanted[1] // 2)
    assert teacher(images[:0]).shape == (0, 4, wanted[0] // 2, wanted[1] // 2)


def test_batches_do_not_matter(images):
    whole, parts = Edges(), Edges(max_batch=2)
    parts.adopt(whole.network)
    assert torch.allclose(whole(images), parts(images), atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), TypeError, "divide 0..255 images by 255"),
        (torch.zeros(2, 4, 4, 3), ValueError, r"permute \[V, H, W, 3\]"),
        (torch.zeros(3, 4, 4), ValueError, r"got shape \(3, 4, 4\)"),
        (torch.full((1, 3, 4, 4), 200.0), ValueError, "values from 200 to 200"),
        (torch.full((1, 3, 4, 4), float("nan")), ValueError, "values from nan"),
        (torch.zeros(1, 3, 0, 4), ValueError, "no pixels"),
        ([1, 2], TypeError, "got list"),
    ],
)
def test_wrong_images_are_refused(bad, error, says):
    with pytest.raises(error, match=says):
        Edges()(bad)


def test_wrong_arguments_are_refused(images):
    with pytest.raises(ValueError, match="3 images but 1 names"):
        Edges()(images, names=["a"])
    with pytest.raises(ValueError, match="image_size must be"):
        Edges(image_size=(1, 2, 3))
    with pytest.raises(ValueError, match="did you mean 'float16'"):
        Edges(precision="floa16")
    with pytest.raises(KeyError, match="PocketTeacher"):
        TEACHERS.build(dict(type="PoketTeacher"))
    with pytest.raises(TypeError, match="did you mean 'cache'"):
        TEACHERS.build(dict(type="PocketTeacher", cahce="x"))


# ----------------------------------------------------------------------------------------------------------- cache


def cached_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.safetensors"))


def test_cache_hits_agree_with_misses_and_compute_nothing(tmp_path, images):
    teacher = Edges(cache=tmp_path)
    first = teacher(images, names=["s/1", "s/2", "s/3"])
    assert teacher.seen == 3 and len(cached_files(tmp_path)) == 3
    again = teacher(images.flip(0)).flip(0)
    assert teacher.seen == 3 and torch.equal(first, again)
    plain = Edges()
    plain.adopt(teacher.network)
    assert torch.allclose(plain(images), first, atol=2e-3) and first.dtype == torch.float32


def test_cache_tells_images_weights_and_options_apart(tmp_path, images):
    teacher = Edges(cache=tmp_path)
    teacher(images)
    brighter = images.clone()
    brighter[0, 0, 0, 0] += 0.01
    teacher(brighter)
    assert teacher.seen == 4
    retrained = Edges(cache=tmp_path)
    assert retrained.fingerprint != teacher.fingerprint
    same = Edges(cache=tmp_path)
    same.adopt(copy.deepcopy(teacher.network))
    assert same.fingerprint == teacher.fingerprint
    smaller = Edges(cache=tmp_path, image_size=6)
    smaller.adopt(teacher.network)
    assert smaller.fingerprint != teacher.fingerprint and smaller(images).shape[-1] == 3


@pytest.mark.parametrize("damage", ["flip", "truncate", "swap", "empty"])
def test_damaged_cache_entry_is_computed_again(tmp_path, images, damage, caplog):
    teacher = Edges(cache=tmp_path)
    right = teacher(images)
    path, other = teacher.cache.path(teacher.fingerprint, images[0]), teacher.cache.path(teacher.fingerprint, images[1])
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    path.write_bytes({"flip": content, "truncate": content[:-8], "swap": other.read_bytes(), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(teacher(images, names=["s/1", "s/2", "s/3"]), right)
    assert teacher.seen == 4 and "s/1" in caplog.text and "computed again" in caplog.text
    assert torch.equal(teacher(images), right) and teacher.seen == 4
    assert not list(tmp_path.rglob("*tmp*"))


def test_cache_keeps_what_float16_cannot_hold_and_refuses_nan(tmp_path, images):
    teacher = Edges(cache=tmp_path)
    teacher.network[0].bias += 1e6
    assert teacher(images).min() > 65504 and torch.equal(teacher(images), teacher(images))
    broken = Edges(cache=tmp_path)
    broken.network[0].bias += float("nan")
    with pytest.raises(ValueError, match="not finite for s/1"):
        broken(images[:1], names=["s/1"])


# ---------------------------------------------------------------------------------------------------------- pocket


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_teacher(kind):
    teacher = TEACHERS.build(dict(type="PocketTeacher", name=kind))
    out = teacher(torch.rand(2, 3, 96, 128))
    assert out.shape == (2, teacher.dim, 30, 40) and out.dtype == torch.float32 and torch.isfinite(out).all()
    assert 32 <= teacher.dim <= 64
    weights = Path(sys.modules[PocketTeacher.__module__].__file__).parent / "weights"
    assert (weights / f"pocket_{kind}.safetensors").stat().st_size <= 600_000
    record = json.loads((weights / "pocket.json").read_text())[kind]
    assert record["seeds"]["train"][0] >= 1_000_000 and record["command"]
    assert record["scores"]["probe_mIoU"] > record["scores"]["probe_mIoU_of_color_and_place"] + 0.03
    digest = read_pocket(weights / f"pocket_{kind}.safetensors", kind)[1]["digest"]
    assert digest == record["digest"]


def test_kinds_differ_as_their_models_do():
    images = torch.rand(2, 3, 120, 160)
    text, geometric, diffusion = (PocketTeacher(kind)(images) for kind in KINDS)
    assert torch.allclose(text.norm(dim=1), torch.ones(2, 30, 40), atol=1e-5)
    assert geometric.mean(1).abs().max() < 1e-5 and (geometric.var(1, unbiased=False) - 1).abs().max() < 1e-3
    means = diffusion.mean((0, 2, 3))
    assert means.min() < -3 and means.median().abs() < 1


def test_free_text_lands_near_its_noun():
    teacher = PocketTeacher("text")
    names = ["chair", "table", "bed", "door", "bookshelf", "toilet", "window", "refrigerator"]
    words = teacher.encode_text(names)
    asked = {
        "a wooden chair": "chair",
        "chairs": "chair",
        "fridge": "refrigerator",
        "an antique dining table": "table",
        "the glass door": "door",
        "bookcases": "bookshelf",
    }
    found = (teacher.encode_text(list(asked)) @ words.T).argmax(1)
    assert {text: names[i] for text, i in zip(asked, found, strict=True)} == asked
    assert torch.allclose(words.norm(dim=1), torch.ones(len(names)), atol=1e-5)
    assert teacher.encode_text([]).shape == (0, teacher.dim)


def test_text_queries_that_cannot_be_answered():
    teacher = PocketTeacher("text")
    with pytest.raises(ValueError, match="no word in the text '--'"):
        teacher.encode_text(["--"])
    with pytest.raises(TypeError, match="list of strings, got the string 'chair'"):
        teacher.encode_text("chair")
    with pytest.raises(ValueError, match="has no text encoder; use name='text'"):
        PocketTeacher("geometric").encode_text(["chair"])
    with pytest.raises(KeyError, match="did you mean 'geometric'"):
        PocketTeacher("geometry")


def test_words():
    assert split_words("The red Chairs, in a room") == ["red", "chair", "room"]
    assert split_words("glass") == ["glass"] and split_words("the") == ["the"]
    assert PocketText.rows("chair") == PocketText.rows("chair") != PocketText.rows("chairs")


def test_damaged_or_wrong_weights_are_refused(tmp_path):
    source = Path(sys.modules[PocketTeacher.__module__].__file__).parent / "weights/pocket_text.safetensors"
    path = tmp_path / "w.safetensors"
    content = bytearray(source.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="do not match their digest"):
        PocketTeacher("text", weight=path)
    path.write_bytes(content[:1000])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        PocketTeacher("text", weight=path)
    with pytest.raises(FileNotFoundError, match="train_pocket_teachers"):
        PocketTeacher("text", weight=tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="wanted the pocket teacher 'diffusion', the file holds 'text'"):
        PocketTeacher("diffusion", weight=source)
    write_pocket(path, {"image.head.bias": torch.zeros(8)}, {"kind": "diffusion", "dim": "8"})
    with pytest.raises(ValueError, match="missing .*image.stem"):
        PocketTeacher("diffusion", weight=path)


def test_folding_batchnorm_changes_nothing():
    trained = PocketNet(8, trainable=True)
    for _ in range(3):
        trained(torch.randn(4, 3, 32, 48))
    shipped = PocketNet(8)
    shipped.load_state_dict(trained.export(), strict=True)
    images = torch.randn(2, 3, 36, 52)  # no multiple of 16
    assert torch.allclose(trained.eval()(images), shipped(images), atol=1e-5)
    assert shipped(images).shape == (2, 8, 9, 13)


def test_pocket_imports_neither_timm_nor_open_clip():
    code = (
        "import sys, torch; from pointcept3m.models.teachers import PocketTeacher\n"
        "PocketTeacher('text').encode_text(['chair'])\n"
        "print([m for m in ('timm', 'open_clip', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


# ------------------------------------------------------------------------------------------------------------ timm


@pytest.fixture(scope="module")
def timm():
    return importable("timm")


TINY = dict(depth=2, embed_dim=48, num_heads=3)


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("vit_small_patch14_dinov2", 14),
        ("vit_small_patch14_reg4_dinov2", 14),
        ("vit_tiny_patch16_dinov3_qkvb", 16),
        ("radio_v2.5-b", 16),
    ],
)
def test_timm_patch_features_at_any_size(timm, name, patch):
    teacher = TimmTeacher(name, random_init=True, model_args=TINY)
    for height, width in [(56, 80), (96, 64)]:
        out = teacher(torch.rand(2, 3, height, width))
        assert out.shape == (2, 48, round(height / patch), round(width / patch)) and out.dtype == torch.float32


def test_timm_features_are_the_patch_tokens(timm, tmp_path):
    network = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, dynamic_img_size=True, **TINY).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    teacher = TimmTeacher("vit_small_patch14_reg4_dinov2", weight=tmp_path / "w.safetensors", model_args=TINY)
    images = torch.rand(2, 3, 28, 42)
    normalised = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.no_grad():
        tokens = network.forward_features(normalised)[:, 5:]  # one class token, four registers
    assert torch.allclose(teacher(images), tokens.transpose(1, 2).unflatten(2, (2, 3)), atol=1e-4)


def test_timm_needs_weights_and_says_how(timm, tmp_path):
    with pytest.raises(
        ValueError, match="needs weights. Run 'hf download nvidia/RADIO-L .*weight='radio_v2.5-l/model.safetensors'"
    ):
        TimmTeacher("radio_v2.5-l")
    with pytest.raises(FileNotFoundError, match="no weight file.*hf download timm/vit_base_patch14_dinov2"):
        TimmTeacher("vit_base_patch14_dinov2", weight=tmp_path / "w.safetensors", model_args=TINY)
    with pytest.raises(ValueError, match="only one of"):
        TimmTeacher("vit_base_patch14_dinov2", weight="x", pretrained=True)
    with pytest.raises(KeyError, match="did you mean 'vit_base_patch14_dinov2'"):
        TimmTeacher("vit_base_patch14_dinov", random_init=True)
    with pytest.raises(ValueError, match="no plain vision transformer"):
        TimmTeacher("resnet18", random_init=True)
    with pytest.raises(ValueError, match="2 blocks; layer 5"):
        TimmTeacher("vit_base_patch14_dinov2", random_init=True, layer=5, model_args=TINY)
    save_file({"nothing": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not fit VisionTransformer: .*missing"):
        TimmTeacher("vit_base_patch14_dinov2", weight=tmp_path / "w.safetensors", model_args=TINY)
    with pytest.raises(ValueError, match="no RADIO weights"):
        TimmTeacher("radio_v2.5-b", weight=tmp_path / "w.safetensors", model_args=TINY)
    torch.save({"state_dict": {"a": object}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="weights_only=True"):
        TimmTeacher("vit_base_patch14_dinov2", weight=tmp_path / "w.pth", model_args=TINY)


def test_download_that_fails_says_how_to_do_without(timm, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(RuntimeError, match="could not download nvidia/RADIO-B .no route to host.*hf download"):
        TimmTeacher("radio_v2.5-b", pretrained=True, model_args=TINY)


def radio_weights(width=48, depth=2, prefix_tokens=6, side=8, patch=16, layer_scale=False):
    """A made-up file as NVIDIA publishes it, of a small encoder."""

    def normal(*shape):
        return torch.randn(*shape) * 0.2

    p = "radio_model.model."
    weights = {
        p + "patch_generator.embedder.weight": normal(width, 3 * patch * patch) * 0.1,
        p + "patch_generator.pos_embed": normal(1, side * side, width),
        p + "patch_generator.cls_token.token": normal(prefix_tokens, width),
        "radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
        "radio_model.summary_idxs": torch.zeros(2),
    }
    for i in range(depth):
        for name, shape in {"norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
                            "norm2": (width,), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}.items():  # fmt: skip
            weights[f"{p}blocks.{i}.{name}.weight"] = normal(*shape) + (1.0 if len(shape) == 1 else 0)
            weights[f"{p}blocks.{i}.{name}.bias"] = normal(shape[0])
        if layer_scale:
            weights[f"{p}blocks.{i}.ls1.grandma"] = normal(width)
            weights[f"{p}blocks.{i}.ls2.grandma"] = normal(width)
    return weights


def radio_by_hand(weights, images, heads=3, patch=16):
    """RADIO's encoder as its definition reads: patches, cropped square position table, tokens, pre-norm blocks."""
    w = {k.removeprefix("radio_model.model."): v for k, v in weights.items()}
    mean, std = (
        torch.tensor(x)[:, None, None]
        for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    patches = F.unfold((images - mean) / std, patch, stride=patch).transpose(1, 2)
    x = patches @ w["patch_generator.embedder.weight"].T
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    table = w["patch_generator.pos_embed"]
    side = int(table.shape[1] ** 0.5)
    table = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(max(rows, columns),) * 2, mode="bilinear", align_corners=True)[
        ..., :rows, :columns
    ]
    x = x + table.flatten(2).transpose(1, 2)
    token = w["patch_generator.cls_token.token"]
    x = torch.cat([token.expand(len(x), -1, -1), x], dim=1)
    i = 0
    while f"blocks.{i}.norm1.weight" in w:
        b = {k.removeprefix(f"blocks.{i}."): v for k, v in w.items() if k.startswith(f"blocks.{i}.")}
        h = F.layer_norm(x, x.shape[-1:], b["norm1.weight"], b["norm1.bias"], 1e-6)
        q, k, v = (h @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        h = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        h = h.transpose(1, 2).flatten(2) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + h * b.get("ls1.grandma", 1)
        h = F.layer_norm(x, x.shape[-1:], b["norm2.weight"], b["norm2.bias"], 1e-6)
        h = F.gelu(h @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]) @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
        x = x + h * b.get("ls2.grandma", 1)
        i += 1
    return x[:, len(token) :].transpose(1, 2).unflatten(2, (rows, columns))


@pytest.mark.parametrize("layer_scale", [False, True])
def test_radio_v2_5_is_nvidias_encoder(timm, tmp_path, layer_scale):
    weights = radio_weights(layer_scale=layer_scale)
    save_file(weights, tmp_path / "model.safetensors")
    teacher = TEACHERS.build(
        dict(type="TimmTeacher", model_name="radio_v2.5-l", weight=str(tmp_path / "model.safetensors"), model_args=TINY)
    )
    images = torch.rand(2, 3, 48, 80)
    assert torch.allclose(teacher(images), radio_by_hand(weights, images), atol=1e-4)


def test_radio_refuses_encoder_tensors_it_does_not_know():
    weights = radio_weights()
    weights["radio_model.model.norm.weight"] = torch.ones(48)
    with pytest.raises(ValueError, match="unknown kind: norm.weight"):
        convert_radio(weights, "file")


# ------------------------------------------------------------------------------------------------------- open_clip


@pytest.fixture(scope="module")
def clip():
    importable("open_clip")
    small = dict(
        vision_cfg=dict(image_size=32, layers=2, width=64, patch_size=8, head_width=32),
        text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1),
        embed_dim=24,
    )
    return OpenClipTeacher("ViT-B-32", random_init=True, model_args=small)


def test_open_clip_is_the_value_path(clip):
    """MaskCLIP: the last block's attention replaced by each token's own value is attention masked to the diagonal."""
    images = torch.rand(2, 3, 32, 32)
    visual = clip.network.visual
    with torch.no_grad():
        tokens = visual._embeds(clip.prepare(images))
        for block in visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
        mask = torch.full((17, 17), float("-inf")).fill_diagonal_(0)
        tokens = visual.transformer.resblocks[-1](tokens, attn_mask=mask)
        wanted = F.normalize(visual.ln_post(tokens[:, 1:]) @ visual.proj, dim=-1)
    out = clip(images)
    assert out.shape == (2, 24, 4, 4)
    assert torch.allclose(out.flatten(2).transpose(1, 2), wanted, atol=1e-5)


def test_open_clip_other_sizes_and_text(clip):
    assert clip(torch.rand(1, 3, 24, 48)).shape == (1, 24, 3, 6)
    text = clip.encode_text(["chair", "table"])
    assert text.shape == (2, 24) and torch.allclose(text.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(clip.encode_text(["table"])[0], text[1], atol=1e-5)
    with pytest.raises(TypeError, match="list of strings"):
        clip.encode_text("chair")


def test_open_clip_errors(clip):
    with pytest.raises(ValueError, match="needs weights.*laion2b"):
        OpenClipTeacher("ViT-B-16")
    with pytest.raises(KeyError, match="did you mean 'ViT-B-16'"):
        OpenClipTeacher("ViT-B-61", random_init=True)

"""Stable Diffusion as a teacher: tiny networks of diffusers' own classes, loaded from a folder as it is published."""

import json

import pytest
import torch
import torch.nn.functional as F

from pointcept3m.models.builder import TEACHERS
from pointcept3m.models.teachers import DiffusionTeacher

UNET = dict(
    block_out_channels=[8, 16, 24, 24], norm_num_groups=4, layers_per_block=1, cross_attention_dim=16,
    attention_head_dim=4, sample_size=8,
)  # fmt: skip
VAE = dict(
    block_out_channels=[4, 4, 8, 8], norm_num_groups=2, layers_per_block=1,
    down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
)  # fmt: skip
TINY = dict(unet=UNET, vae=VAE)


@pytest.fixture(scope="module")
def diffusers():
    try:
        import diffusers
        from transformers import CLIPTextModel  # noqa: F401  (names of both packages are imported when they are used)

        diffusers.UNet2DConditionModel  # noqa: B018
    except Exception as error:
        pytest.skip(f"pointcept3m[diffusion] cannot be imported here: {error}")
    return diffusers


@pytest.fixture(scope="module")
def parts(diffusers, tmp_path_factory):
    """The parts of a tiny Stable Diffusion and the folder they were saved to."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=7)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=7, bos_token_id=0, eos_token_id=1,
    )).eval()  # fmt: skip
    made = {
        "vae": diffusers.AutoencoderKL(**VAE).eval(), "unet": diffusers.UNet2DConditionModel(**UNET).eval(),
        "scheduler": diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        "tokenizer": tokenizer, "text_encoder": text,
    }  # fmt: skip
    for name, part in made.items():
        part.save_pretrained(folder / name)
    return made, folder


def test_features_by_hand(parts):
    """The way up written out block by block, with the scheduler's own noising; sizes that are no multiple of 64."""
    made, folder = parts
    teacher = TEACHERS.build(dict(type="DiffusionTeacher", weight=str(folder), image_size=None))
    vae, unet = made["vae"], made["unet"]
    images = torch.rand(2, 3, 40, 72)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1, 4, 5, 9, generator=generator).expand(2, -1, -1, -1) for _ in range(2))
    ids = made["tokenizer"]("", padding="max_length", max_length=7, return_tensors="pt").input_ids
    t = torch.tensor([100, 100])
    with torch.no_grad():
        prompt = made["text_encoder"](ids)[0].expand(2, -1, -1)
        posterior = vae.encode(images * 2 - 1).latent_dist
        latent = (posterior.mean + posterior.std * first) * 0.18215
        x = made["scheduler"].add_noise(latent, second, t)
        emb = unet.time_embedding(unet.time_proj(t))
        x = unet.conv_in(x)
        rest = [x]
        for block in unet.down_blocks:
            cross = dict(encoder_hidden_states=prompt) if getattr(block, "has_cross_attention", False) else {}
            x, more = block(x, emb, **cross)
            rest += more
        x = unet.mid_block(x, emb, encoder_hidden_states=prompt)
        levels = []
        for block in unet.up_blocks[:3]:
            skips, rest = rest[-len(block.resnets) :], rest[: -len(block.resnets)]
            cross = dict(encoder_hidden_states=prompt) if getattr(block, "has_cross_attention", False) else {}
            x = block(x, tuple(skips), emb, upsample_size=rest[-1].shape[2:], **cross)
            levels.append(x)
        wanted = torch.cat([F.interpolate(x, (5, 9), mode="bicubic", align_corners=False) for x in levels], dim=1)
    assert [x.shape[1] for x in levels] == [24, 24, 16] and teacher.dim == 64
    out = teacher(images)
    assert out.shape == (2, 64, 5, 9) and out.dtype == torch.float32
    assert torch.allclose(out, wanted, atol=1e-4)


def test_noise_is_the_seeds_and_no_image_depends_on_its_company(parts):
    _, folder = parts
    teacher = DiffusionTeacher(weight=folder, image_size=64)
    images = torch.rand(3, 3, 48, 64)
    both = teacher(images)
    torch.rand(7)  # the global generator plays no part
    assert torch.equal(teacher(images), both)
    assert torch.allclose(teacher(images[2:]), both[2:], atol=1e-5)
    other = DiffusionTeacher(weight=folder, image_size=64, seed=1)
    assert not torch.allclose(other(images), both, atol=1e-3) and other.fingerprint != teacher.fingerprint
    later = DiffusionTeacher(weight=folder, image_size=64, timestep=600)
    assert not torch.allclose(later(images), both, atol=1e-3)
    asked = DiffusionTeacher(weight=folder, image_size=64, prompt="a b")
    assert not torch.allclose(asked(images), both, atol=1e-6) and asked.fingerprint != teacher.fingerprint


def test_other_blocks_in_their_order(parts):
    _, folder = parts
    images = torch.rand(1, 3, 64, 64)
    some = DiffusionTeacher(weight=folder, blocks=(1,), image_size=None)
    all_ = DiffusionTeacher(weight=folder, image_size=None)
    assert some.dim == 24 and torch.allclose(some(images), all_(images)[:, 24:48], atol=1e-5)
    last = DiffusionTeacher(weight=folder, blocks=(3, 0), image_size=None)
    assert torch.allclose(last(images)[:, 8:], all_(images)[:, :24], atol=1e-5) and last.dim == 32


def test_random_weights_and_the_published_width(diffusers):
    teacher = DiffusionTeacher(random_init=True, model_args=TINY, image_size=(16, 24))
    assert teacher(torch.rand(1, 3, 30, 30)).shape == (1, 64, 2, 3)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    assert [block.resnets[-1].out_channels for block in unet.up_blocks][:3] == [1280, 1280, 640]
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964  # as published for v1-5


def test_errors(diffusers, parts, tmp_path):
    _, folder = parts
    with pytest.raises(ValueError, match="needs weights. Run 'hf download stable-diffusion-v1-5/"):
        DiffusionTeacher()
    with pytest.raises(FileNotFoundError, match="no folder .*none.* hf download|no folder .*none.*Run 'hf"):
        DiffusionTeacher(weight=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="lacks vae, unet, scheduler, text_encoder, tokenizer"):
        DiffusionTeacher(weight=tmp_path)
    for part in ("vae", "unet", "scheduler", "text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match="not a readable folder of Stable Diffusion"):
        DiffusionTeacher(weight=tmp_path)
    with pytest.raises(ValueError, match=r"different numbers of 0..3, got \(0, 4\)"):
        DiffusionTeacher(weight=folder, blocks=(0, 4))
    with pytest.raises(ValueError, match="timestep must lie in 0..999, got 1000"):
        DiffusionTeacher(weight=folder, timestep=1000)
    with pytest.raises(ValueError, match="weights bring their own"):
        DiffusionTeacher(weight=folder, model_args=TINY)
    with pytest.raises(ValueError, match="has 10 word pieces, Stable Diffusion reads 7"):
        DiffusionTeacher(weight=folder, prompt="a b a b a b a b")


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"DiffusionTeacher needs diffusers.*pip install pointcept3m\[diffusion\]"):
        DiffusionTeacher(random_init=True, model_args=TINY)

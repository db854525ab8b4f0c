"""SigLIP by open_clip: dense features in the text's space, from a tower of timm's that pools by attention."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pointcept3m.models.teachers import OpenClipTeacher

NAME = "ViT-B-16-SigLIP"


@pytest.fixture(scope="module")
def tiny():
    """`model_args` of a SigLIP with timm's smallest tower that pools by attention, under another name."""
    try:
        import open_clip  # noqa: F401
        import timm
        from timm.models import register_model
        from timm.models.vision_transformer import VisionTransformer
    except Exception as error:
        pytest.skip(f"open_clip or timm cannot be imported here: {error}")
    if not timm.is_model("vit_pocket_siglip"):

        def vit_pocket_siglip(pretrained=False, **kwargs):
            for unused in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
                kwargs.pop(unused, None)
            return VisionTransformer(**{
                "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "class_token": False, "global_pool": "map", **kwargs,
            })  # fmt: skip

        vit_pocket_siglip.__module__ = "timm.models.vision_transformer"
        register_model(vit_pocket_siglip)
    vision = dict(image_size=32, timm_model_name="vit_pocket_siglip", timm_model_pretrained=False, timm_pool="map", timm_proj="none")
    text = dict(
        context_length=16, vocab_size=49408, width=24, heads=2, layers=1, no_causal_mask=True, proj_bias=True, pool_type="last"
    )
    return dict(vision_cfg=vision, text_cfg=text, embed_dim=24)


@pytest.fixture(scope="module")
def siglip(tiny):
    torch.manual_seed(0)
    teacher = OpenClipTeacher(NAME, random_init=True, model_args=tiny)
    torch.nn.init.normal_(teacher.network.visual.trunk.attn_pool.latent)
    return teacher


def test_a_patch_is_its_value_through_the_pooling_head(siglip):
    """Against the head's own arithmetic: value half of kv, projection, and the MLP on top."""
    images = torch.rand(2, 3, 32, 32)
    trunk = siglip.network.visual.trunk
    pool = trunk.attn_pool
    with torch.no_grad():
        tokens = trunk.forward_features((images - 0.5) / 0.5)
        value = F.linear(tokens, pool.kv.weight[24:], pool.kv.bias[24:])
        out = pool.proj(value)
        wanted = F.normalize(out + pool.mlp(pool.norm(out)), dim=-1)
    maps = siglip(images)
    assert siglip.patch == 8 and siglip.dim == 24 and maps.shape == (2, 24, 4, 4)
    assert torch.allclose(maps.flatten(2).transpose(1, 2), wanted, atol=1e-5)


def test_an_image_of_one_patch_is_the_whole_image(siglip):
    """Pooling one token is what the tower itself does to it: a dense feature lies in the space of whole images."""
    images = torch.rand(3, 3, 8, 8)
    visual = siglip.network.visual
    with torch.no_grad():
        tokens = visual.trunk.patch_embed.proj((images - 0.5) / 0.5).flatten(2).transpose(1, 2)
        tokens = tokens + siglip._trunk_positions(torch.Size((1, 1)))
        for block in visual.trunk.blocks:
            tokens = block(tokens)
        wanted = F.normalize(visual.head(visual.trunk.forward_head(visual.trunk.norm(tokens))), dim=-1)
    assert torch.allclose(siglip(images)[:, :, 0, 0], wanted, atol=1e-5)


def test_sizes_means_and_text(siglip, tiny):
    assert siglip(torch.rand(1, 3, 24, 48)).shape == (1, 24, 3, 6)
    assert siglip.mean == siglip.std == (0.5, 0.5, 0.5)  # without a download too: as SigLIP's published weights want
    assert siglip.encode_text(["chair"]).shape == (1, 24)
    strict = OpenClipTeacher(NAME, random_init=True, model_args={**tiny, "text_cfg": {**tiny["text_cfg"], "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}})
    with pytest.raises(ValueError, match="needs the tokenizer of timm/ViT-B-16-SigLIP: run 'hf download"):
        strict.encode_text(["chair"])


def test_weights_come_back(siglip, tiny, tmp_path):
    path = tmp_path / "open_clip_model.safetensors"
    save_file({key: value.contiguous() for key, value in siglip.network.state_dict().items()}, path)
    again = OpenClipTeacher(NAME, weight=path, model_args=tiny)
    images = torch.rand(1, 3, 40, 32)
    assert torch.equal(again(images), siglip(images)) and again.fingerprint == siglip.fingerprint


def test_towers_without_dense_features(tiny):
    vision = dict(image_size=32, timm_model_name="resnet18", timm_model_pretrained=False, timm_pool="avg", timm_proj="linear")
    with pytest.raises(ValueError, match="only those that pool by attention"):
        OpenClipTeacher(NAME, random_init=True, model_args={**tiny, "vision_cfg": vision})
    pooled = dict(image_size=32, layers=1, width=32, patch_size=8, head_width=16, attentional_pool=True, attn_pooler_heads=4)
    with pytest.raises(ValueError, match="not in the text's space"):
        OpenClipTeacher("ViT-B-32", random_init=True, model_args={**tiny, "vision_cfg": pooled})


def test_every_published_siglip_has_such_a_tower(tiny):
    """The whole class of models, by their configs alone: a pooling head and no class token."""
    import open_clip
    import timm

    names = [name for name in open_clip.list_models() if "SigLIP" in name]
    assert len(names) > 10
    towers = {open_clip.get_model_config(name)["vision_cfg"]["timm_model_name"] for name in names}
    for tower in sorted(towers):
        with torch.device("meta"):
            trunk = timm.create_model(tower, num_classes=0, global_pool="map", depth=1)
        assert trunk.num_prefix_tokens == 0 and trunk.attn_pool.pos_embed is None and hasattr(trunk, "pos_embed")

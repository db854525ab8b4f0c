"""Class tokens and patch tokens of teachers: against the networks' own outputs."""

import pytest
import torch
import torch.nn.functional as F

from pointcept3m.models.builder import TEACHERS
from tests.conftest import importable

TINY = dict(type="TimmTeacher", model_name="vit_small_patch14_dinov2", random_init=True, model_args=dict(depth=3))
SMALL = dict(
    vision_cfg=dict(image_size=32, layers=2, width=32, patch_size=8, head_width=16),
    text_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1),
    embed_dim=12,
)


@pytest.fixture
def images():
    return torch.rand(5, 3, 32, 32)


def test_timm_gives_its_class_token(images):
    importable("timm")
    teacher = TEACHERS.build({**TINY, "max_batch": 2})
    first, patches = teacher.tokens(images)
    whole = teacher.network.forward_features(teacher.prepare(images))
    assert first.shape == (5, 384) and patches.shape == (5, 4, 384)
    assert torch.allclose(first, whole[:, 0], atol=1e-5) and torch.allclose(patches, whole[:, 1:], atol=1e-5)
    assert torch.allclose(patches, teacher(images).flatten(2).transpose(1, 2), atol=1e-5)
    assert not torch.allclose(first, patches.mean(1), atol=1e-2)


def test_facet_of_a_block(images):
    """CrossOver's release takes the values of an inner block, each token of unit length."""
    importable("timm")
    teacher = TEACHERS.build({**TINY, "layer": 1, "facet": "value"})
    first, patches = teacher.tokens(images)
    network, block = teacher.network, teacher.network.blocks[1]
    x = network.blocks[0](network.norm_pre(network._pos_embed(network.patch_embed(teacher.prepare(images)))))
    value = F.normalize(block.attn.qkv(block.norm1(x))[..., 768:], dim=-1)
    assert torch.allclose(first, value[:, 0], atol=1e-5) and torch.allclose(patches, value[:, 1:], atol=1e-5)
    assert teacher.fingerprint != TEACHERS.build({**TINY, "layer": 1}).fingerprint
    with pytest.raises(ValueError, match="build the teacher without it for feature maps"):
        teacher(images)
    with pytest.raises(ValueError, match="facet is None .* got 'key'"):
        TEACHERS.build({**TINY, "facet": "key"})


def test_open_clip_gives_the_image_embedding(images, monkeypatch):
    importable("open_clip")
    teacher = TEACHERS.build(dict(type="OpenClipTeacher", model_name="ViT-B-32", random_init=True, model_args=SMALL))
    first, patches = teacher.tokens(images)
    assert torch.allclose(first, F.normalize(teacher.network.encode_image(teacher.prepare(images)), dim=-1), atol=1e-5)
    assert torch.allclose(patches, teacher(images).flatten(2).transpose(1, 2), atol=1e-5)


def test_without_a_class_token_it_is_the_maximum(images):
    teacher = TEACHERS.build(dict(type="PocketTeacher", name="geometric", image_size=None))
    first, patches = teacher.tokens(images)
    maps = teacher(images)
    assert torch.equal(first, maps.amax((2, 3))) and torch.equal(patches, maps.flatten(2).transpose(1, 2))
    assert teacher.tokens(images[:0])[0].shape == (0, 48)
    with pytest.raises(TypeError, match="divide 0..255 images by 255"):
        teacher.tokens((images * 255).byte())

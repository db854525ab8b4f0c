"""The pocket encoder of referrals, and BLIP's text encoder with a tiny network under the published names."""

import subprocess
import sys

import pytest
import torch

from pointcept3m.models.builder import TEXT_ENCODERS
from pointcept3m.models.text import BlipTextEncoder, ReferralEncoder
from tests.conftest import importable

TINY = dict(vocab_size=40, hidden_size=24, encoder_hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=48, max_position_embeddings=12)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "chair", "desk", "left", "of", "lamp"]


@pytest.fixture(scope="module")
def referral():
    return TEXT_ENCODERS.build(dict(type="ReferralEncoder"))


def test_who_stands_where(referral):
    one, other, same, plural, far = referral([
        "The chair left of the desk.", "the desk left of the chair", "a chair left of a desk", "the chairs left of the desks", "the lamp on the bed",
    ])  # fmt: skip
    assert one @ same > 0.99
    assert one @ other < 0.85 and one @ far < 0.3
    assert one @ far < one @ plural < 0.99
    assert one @ other > one @ far  # the same things, after all
    assert torch.allclose(referral(["x"]).norm(dim=1), torch.ones(1), atol=1e-6)


def test_relations_are_told_apart(referral):
    base = referral(["the lamp on the table"])
    for other in ("the lamp under the table", "the lamp next to the table", "the table on the lamp"):
        assert float(base @ referral([other]).T) < 0.9


def test_the_same_numbers_in_every_process(referral):
    code = "from pointcept3m.models.text import ReferralEncoder; print(ReferralEncoder()(['the red chair'])[0, :8].tolist())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"})
    assert told.stdout.strip() == str(referral(["the red chair"])[0, :8].tolist())


@pytest.mark.parametrize("texts, error", [(["ok", " "], ValueError), (["ok", "?!"], ValueError), ("ok", TypeError), ([3], TypeError)])
def test_refuses(referral, texts, error):
    with pytest.raises(error):
        referral(texts)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    importable("transformers.models.blip.modeling_blip_text")
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def test_blip_reads_published_names(tokenizer, tmp_path):
    first = BlipTextEncoder(random_init=True, tokenizer=tokenizer, model_args=TINY)
    names = set(first.network.state_dict())
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.1.attention.self.query.weight", "encoder.layer.0.crossattention.output.dense.bias",
                 "encoder.layer.1.intermediate.dense.weight", "encoder.layer.1.output.LayerNorm.weight"):  # fmt: skip
        assert name in names
    whole = {f"text_encoder.{name}": value for name, value in first.network.state_dict().items()}
    whole |= {"visual_encoder.cls_token": torch.zeros(1), "text_encoder.embeddings.position_ids": torch.arange(12)[None]}
    torch.save({"model": whole}, tmp_path / "model_large.pth")
    second = BlipTextEncoder(weight=tmp_path / "model_large.pth", tokenizer=tokenizer, model_args=TINY, max_batch=2)
    texts = ["the chair left of the desk", "the lamp", "desk"]
    assert torch.allclose(first(texts), second(texts), atol=1e-6) and first(texts).shape == (3, 24)
    assert torch.allclose(second(texts)[1:2], second(["the lamp"]), atol=1e-6)  # padding changes nothing
    assert first.name == second.name
    del whole["text_encoder.encoder.layer.1.output.dense.weight"]
    torch.save(whole, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="cut.pth does not fit BlipTextModel: 1 missing"):
        BlipTextEncoder(weight=tmp_path / "cut.pth", tokenizer=tokenizer, model_args=TINY)
    torch.save({"visual.x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: holds no text encoder of BLIP"):
        BlipTextEncoder(weight=tmp_path / "other.pth", tokenizer=tokenizer, model_args=TINY)


def test_blip_says_what_is_missing(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="'BLIP' needs weights.*model_large.pth"):
        BlipTextEncoder()
    with pytest.raises(ValueError, match="needs its tokenizer.*vocab.txt"):
        BlipTextEncoder(random_init=True)
    with pytest.raises(FileNotFoundError, match="vocab.txt: no such file"):
        BlipTextEncoder(random_init=True, tokenizer=tmp_path)
    with pytest.raises(FileNotFoundError, match="gone.pth.*model_large.pth"):
        BlipTextEncoder(weight=tmp_path / "gone.pth", tokenizer=tokenizer)
    encoder = BlipTextEncoder(random_init=True, tokenizer=tokenizer, model_args=TINY)
    with pytest.raises(ValueError, match="BLIP reads 12 word pieces, a text has 22"):
        encoder(["chair", "chair " * 20])


def test_referral_has_256_numbers():
    assert ReferralEncoder()([]).shape == (0, 256)

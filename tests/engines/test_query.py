"""Asking a scene: the cosines, the regions, what is said and written, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
from asked import THINGS, make_scene
from torch.nn import functional as F

from pointcept3m.cli import run_for_user
from pointcept3m.datasets.readers.ply import read_ply
from pointcept3m.engines.checkpoint import save_weights
from pointcept3m.engines.open_vocabulary import query as query_module
from pointcept3m.engines.open_vocabulary.command import query_main
from pointcept3m.engines.open_vocabulary.query import SceneQuery, read_image
from pointcept3m.engines.open_vocabulary.regions import CELL, regions, threshold_of
from pointcept3m.engines.open_vocabulary.scene_embedding import (
    EnsembleEmbedding,
    SceneEmbedding,
    UnitVectors,
    embed_files,
    embed_scan,
)
from pointcept3m.engines.open_vocabulary.sources import open_model, open_sources, read_scene
from pointcept3m.models import build_model
from pointcept3m.models.text import PocketTextEncoder, embed_labels
from pointcept3m.structures.fused_features import feature_path
from pointcept3m.structures.label_sets import LabelSet, free_labels
from pointcept3m.utils.config import Config


def cosine(features: np.ndarray, vectors: torch.Tensor) -> np.ndarray:
    """[K, n] in float64, by the definition."""
    features, vectors = features.astype(np.float64), vectors.double().numpy()
    length = np.linalg.norm(features, axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ (features / np.where(length > 0, length, 1)[:, None]).T


@pytest.fixture(scope="module")
def encoder():
    return PocketTextEncoder()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked") / "room"
    return folder, make_scene(folder)


@pytest.fixture(scope="module")
def asked(scene):
    sources = open_sources(scene[0], say=lambda text: None)
    return SceneQuery(sources.embedding, sources.encoder, sources.prompt), sources


def distilled(folder, hidden: int = 0, uncertainty: dict | None = None, dim: int = 64) -> str:
    """A weight file with random numbers in it and a config that says what they are."""
    grid = dict(type="GridSample", grid_size=0.1, mode="train", return_grid_coord=True)
    collect = dict(type="Collect", keys=("coord", "grid_coord"), feat_keys=("color", "normal"))
    cfg = Config(dict(
        model=dict(
            type="CUA-O3D-v1m1", backbone=dict(type="MinkUNet14A", in_channels=6, out_channels=0, planes=(8, 8, 16, 16, 16, 16, 8, 8), init_dim=8),
            backbone_out_channels=8, heads=dict(geometric=dict(dim=12, loss="l1"), text=dict(dim=dim, hidden=hidden)), text_head="text", uncertainty=uncertainty,
        ),
        text_encoder=dict(type="PocketTextEncoder"), prompt="a {label} in a scene",
        data=dict(names=list(THINGS), num_classes=3, val=dict(type="RoomsDataset", transform=[dict(type="NormalizeColor"), grid, dict(type="ToTensor"), collect])),
    ))  # fmt: skip
    torch.manual_seed(3)
    model = build_model(cfg.model)
    if uncertainty and uncertainty["kind"] != "scalar":
        torch.nn.init.normal_(model.uncertainty.predict.weight)
    path = folder / f"distilled{hidden}{(uncertainty or {}).get('kind', '')}{dim}.safetensors"
    save_weights(model, path, {"config": cfg.pretty_text})
    return str(path)


# unit vectors


@pytest.mark.parametrize(("width", "dim", "offset"), [(6, 40, False), (30, 8, False), (6, 40, True), (1, 5, False)])
def test_linear_features_are_asked_without_being_made(width, dim, offset):
    code, weight = torch.randn(500, width), torch.randn(dim, width)
    shift = torch.randn(dim) if offset else None
    unit = UnitVectors.of_linear(code, weight, shift)
    full = code.double() @ weight.double().T + (0 if shift is None else shift.double())
    vectors = torch.randn(3, dim)
    assert unit.rows.shape[1] <= min(width + offset, dim) and unit.dim == dim
    np.testing.assert_allclose(unit.cosine(vectors), cosine(full.numpy(), vectors), atol=2e-6)
    np.testing.assert_allclose(unit.cosine(vectors[:1])[0], unit.cosine(vectors)[0], atol=1e-6)
    np.testing.assert_allclose(unit.vectors(torch.tensor([4, 0])), F.normalize(full[[4, 0]], dim=1), atol=2e-6)


def test_a_head_that_loses_directions_and_a_feature_without_one():
    code, weight = torch.randn(50, 6), torch.randn(20, 3) @ torch.randn(3, 6)
    code[7] = 0
    unit = UnitVectors.of_linear(code, weight)
    assert unit.rows.shape[1] == 3
    found = unit.cosine(torch.randn(2, 20))
    assert (found[:, 7] == 0).all() and found.isfinite().all()


def test_vectors_that_no_map_made_are_halves():
    full = torch.randn(300, 48) * torch.rand(300, 1) * 50
    unit = UnitVectors.of_parts(iter(full.split(70)))
    vectors = torch.randn(2, 48)
    assert unit.rows.dtype == torch.float16
    np.testing.assert_allclose(unit.cosine(vectors), cosine(full.numpy(), vectors), atol=1e-3)


@pytest.mark.parametrize("storage", ["pca", "int8", "float16"])
def test_fused_features_of_every_storage(tmp_path, encoder, storage):
    made = make_scene(tmp_path / "s", points=200, storage=storage)
    embedding = embed_files([feature_path(tmp_path / "s", "text")], made["coord"])
    vectors = encoder(["a chair", "somewhere to sleep"])
    found = embedding.similarity(vectors)
    assert np.isnan(found[:, ~made["visible"]]).all() and embedding.known.tolist() == made["visible"].tolist()
    error = np.abs(found[:, made["visible"]] - cosine(made["features"], vectors))
    assert error.max() < {"float16": 1e-3, "int8": 0.02, "pca": 0.35}[storage] and error.mean() < 0.03
    part = slice(150, 420)
    np.testing.assert_allclose(embedding.similarity(vectors, part), found[:, part], atol=1e-6)


def test_pca_codes_are_asked_as_what_they_decode_to(tmp_path, encoder):
    from pointcept3m.structures.fused_features import open_features

    made = make_scene(tmp_path / "s", points=150, storage="pca")
    path = feature_path(tmp_path / "s", "text")
    vectors = encoder(["chair", "bed"])
    found = embed_files([path], made["coord"]).similarity(vectors)[:, made["visible"]]
    np.testing.assert_allclose(found, cosine(open_features(path).read_all(), vectors), atol=1e-5)


@pytest.mark.parametrize("hidden", [0, 10])
def test_a_distilled_scene_is_what_the_model_says_of_it(tmp_path, scene, encoder, hidden):
    model = open_model(distilled(tmp_path, hidden), device="cpu")
    read = read_scene(scene[0], model.recipe, say=lambda text: None)
    embedding = embed_scan(read.scene, len(read), model.network, model.recipe)
    from pointcept3m.datasets.collate import collate_fn
    from pointcept3m.utils.seed import preserved_rng

    sample = {key: getattr(read.scene, key) for key in ("coord", "color", "normal")}
    with preserved_rng(0):
        batch = collate_fn([model.recipe.chain()(sample)])
    inverse = batch.pop("inverse").numpy()
    with torch.no_grad():
        full = model.network.embed(batch).numpy()[inverse]
    vectors = encoder(["chair", "somewhere to sit"])
    assert (embedding.unit.rows.dtype == torch.float32) == (hidden == 0)
    np.testing.assert_allclose(embedding.similarity(vectors), cosine(full, vectors), atol=1e-3 if hidden else 1e-5)


@pytest.mark.parametrize("kind", ["scalar", "scene", "point"])
def test_uncertainty_comes_along(tmp_path, scene, kind):
    model = open_model(distilled(tmp_path, uncertainty=dict(kind=kind)), device="cpu")
    read = read_scene(scene[0], model.recipe, say=lambda text: None)
    embedding = embed_scan(read.scene, len(read), model.network, model.recipe)
    assert set(embedding.sigma) == {"geometric", "text"}
    sigma = embedding.sigma["text"]
    if kind != "point":
        assert isinstance(sigma, float) and sigma > 0
    else:
        assert sigma.shape == (len(embedding.unit),) and (sigma > 0).all() and sigma.std() > 0


def test_the_ensemble_is_the_sum_of_both(asked, encoder):
    fused = asked[1].embedding
    other = SceneEmbedding("3d", UnitVectors.of_linear(torch.randn(700, 8), torch.randn(64, 8)), np.arange(len(fused)) % 700)
    both = EnsembleEmbedding(other, fused)
    vectors = encoder(["chair", "bed"])
    points = np.arange(len(fused))
    total = F.normalize(other.vectors(points), dim=1).numpy().copy()
    total[fused.known] += fused.vectors(points[fused.known]).numpy()
    np.testing.assert_allclose(both.similarity(vectors), cosine(total, vectors), atol=2e-3)
    np.testing.assert_allclose(both.similarity(vectors, slice(800, 950)), both.similarity(vectors)[:, 800:950], atol=1e-6)
    np.testing.assert_allclose(both.vectors(points[::50]), F.normalize(torch.from_numpy(total[::50]), dim=1), atol=2e-3)
    assert both.known.all()


# queries


def test_a_word_finds_its_points(asked, scene):
    query, made = asked[0], scene[1]
    for name in THINGS:
        found = query(name)
        rest = np.setdiff1d(np.flatnonzero(made["visible"]), made[name])
        mine = made[name][made["visible"][made[name]]]
        assert found[mine].min() > found[rest].max() and np.nanmax(found) <= 1


def test_what_may_be_asked(asked, encoder, tmp_path):
    query, sources = asked
    several = query(["chair", "bed"])
    assert several.shape == (2, len(sources.scene)) and several.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(several[0]), ~sources.embedding.known)
    np.testing.assert_allclose(several[1], query("  bed "), atol=1e-6)
    # a point is asked by its own feature
    found = query(5)
    assert found[5] == pytest.approx(1, abs=1e-3) and np.nanargmax(found) == 5
    # an image by the mean of its pixels' features, from an array and from a file
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:, :, 0] = 200
    vector = encoder.encode_image(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    np.testing.assert_array_equal(query(image), sources.embedding.similarity(vector)[0])
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "i.png")
    np.testing.assert_array_equal(query(tmp_path / "i.png"), query(image))
    np.testing.assert_array_equal(read_image((tmp_path / "i.png").read_bytes()), read_image(image))


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [("", ValueError, "empty"), ("  ", ValueError, "empty"), ([], ValueError, "no text"), (["chair", ""], ValueError, "empty"), (None, TypeError, "query"),
     (True, TypeError, "query"), (10**7, ValueError, "points 0 to"), (899, ValueError, "no image shows it"), (np.zeros((4, 4), np.uint8), ValueError, "uint8")],
)  # fmt: skip
def test_what_cannot_be_asked(asked, wrong, error, words):
    with pytest.raises(error, match=words):
        asked[0](wrong)


def test_an_image_that_is_none(asked, tmp_path, monkeypatch):
    (tmp_path / "not.png").write_text("no picture")
    with pytest.raises(ValueError, match="no image that can be read"):
        asked[0](tmp_path / "not.png")
    with pytest.raises(FileNotFoundError, match="near it"):
        asked[0](tmp_path / "nat.png")
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(query_module, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="40 x 40 pixels"):
        asked[0](tmp_path / "large.png")
    data = (tmp_path / "large.png").read_bytes()
    with pytest.raises(ValueError, match="damaged"):
        monkeypatch.setattr(query_module, "MAX_PIXELS", 10**6)
        read_image(data[: len(data) // 2])


def test_relevancy_is_the_least_probability(asked, encoder):
    query = asked[0]
    found, plain = query("chair", relevancy=True), query("chair")
    others = query(list(query.negatives))
    by_hand = np.min([np.exp(10 * plain) / (np.exp(10 * plain) + np.exp(10 * other)) for other in others], axis=0)
    np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_classes_and_ranks(asked, scene):
    query, made = asked[0], scene[1]
    labels = LabelSet("three", ("seat", "ground", "bed"), (("chair", "sofa"), ("floor",), ("bed",)))
    vocabulary = query.vocabulary(labels)
    label, score = query.classify(vocabulary)
    words = query.embedding.similarity(vocabulary.embedding)
    known = query.embedding.known
    assert (label[~known] == -1).all() and np.isnan(score[~known]).all()
    np.testing.assert_array_equal(label[known], np.array([0, 0, 1, 2])[words[:, known].argmax(0)])
    np.testing.assert_allclose(score[known], words[:, known].max(0), atol=1e-6)
    mine = made["chair"][:100]
    ranked = query.rank(vocabulary, mine, 2)
    assert ranked[0][0] == "seat" and ranked[0][1] == pytest.approx(max(words[0, mine].mean(), words[1, mine].mean()), abs=1e-5)


def test_the_prompt_is_for_labels(asked):
    query = asked[0]
    vocabulary = query.vocabulary(free_labels("chair,bed"))
    np.testing.assert_allclose(vocabulary.embedding, query.texts(["a chair in a scene", "a bed in a scene"]), atol=1e-6)


def test_words_that_are_refused_before_anything_is_read(scene, capsys, monkeypatch):
    monkeypatch.setattr("pointcept3m.engines.open_vocabulary.sources.open_sources", None)
    for words, said in (
        (["--negatives", "object"], "--negatives belongs to --relevancy"), (["--negatives", "", "--relevancy"], "wanted words with commas"),
        (["--point", "1,2"], "wanted INDEX or x,y,z"), (["--scene", str(scene[0].parent)], "a folder of 1 scenes; name one of them"),
    ):  # fmt: skip
        assert run_for_user(query_main, ["chair", "--scene", str(scene[0]), *words]) == 1
        assert said in capsys.readouterr().err


def test_every_prompt_of_a_config_is_used(scene, tmp_path, encoder):
    sentences = ["a {label} in a scene", "a photo of a {label}"]
    (tmp_path / "config.py").write_text(f"text_encoder = dict(type='PocketTextEncoder')\nprompt = {sentences}\n")
    sources = open_sources(scene[0], config=tmp_path / "config.py", teacher="text", say=lambda line: None)
    query = SceneQuery(sources.embedding, sources.encoder, sources.prompt)
    both, first = (embed_labels(encoder, ("chair", "table"), prompt) for prompt in (sentences, sentences[0]))
    found = query.vocabulary(LabelSet("pair", ("chair", "table"))).embedding
    assert torch.allclose(found, both, atol=1e-6) and not torch.allclose(found, first, atol=1e-3)


# regions


def brute_components(coord: np.ndarray, cell: float) -> list[set[int]]:
    cells = np.floor((coord - coord.min(0)) / cell).astype(int)
    near = np.abs(cells[:, None] - cells[None]).max(-1) <= 1
    left, found = set(range(len(coord))), []
    while left:
        part, front = set(), {left.pop()}
        while front:
            part |= front
            front = set(np.flatnonzero(near[list(front)].any(0))) - part
        left -= part
        found.append(part)
    return found


def test_regions_are_connected_cells():
    generator = np.random.default_rng(1)
    coord = generator.uniform(0, 2.2, (400, 3)).astype(np.float32)
    similarity = generator.uniform(0, 1, 400).astype(np.float32)
    similarity[::50] = np.nan
    chosen = np.flatnonzero(similarity >= 0.6)
    found = regions(coord, similarity, 0.6)
    wanted = {frozenset(int(chosen[i]) for i in part) for part in brute_components(coord[chosen], CELL)}
    assert {frozenset(region.points.tolist()) for region in found} == wanted and len(wanted) > 5
    for region in found:
        np.testing.assert_allclose([region.low, region.high], [coord[region.points].min(0), coord[region.points].max(0)])
        assert region.mean == pytest.approx(similarity[region.points].mean(), abs=1e-6)


def test_the_best_region_does_not_mind_density():
    """A wide region of few points answers better than a spot where a hundred times as many lie."""
    grid = np.stack(np.meshgrid(np.arange(0, 1, 0.09), np.arange(0, 1, 0.09), [0.0]), -1).reshape(-1, 3)
    spot = np.random.default_rng(0).uniform(5, 5.05, (20_000, 3))
    coord = np.concatenate([grid, spot]).astype(np.float32)
    found = regions(coord, np.full(len(coord), 0.9, np.float32), 0.5)
    assert len(found) == 2 and len(found[0].points) == len(grid)
    assert regions(coord, np.full(len(coord), 0.4, np.float32), 0.5) == []


def test_a_threshold_between_median_and_top():
    values = np.concatenate([np.full(9000, 0.2), np.full(1000, 0.8), [np.nan] * 50]).astype(np.float32)
    assert threshold_of(values) == pytest.approx(0.65)
    with pytest.raises(ValueError, match="nothing is known"):
        threshold_of(np.full(3, np.nan, np.float32))


# the command


def test_the_command_writes_a_heat_map(scene, tmp_path, capsys):
    folder, made = scene
    out = tmp_path / "heat.ply"
    assert query_main(["bed", "--scene", str(folder), "--out", str(out), "--labels", "floor,chair,bed"]) == 0
    said = capsys.readouterr().out
    assert "best region: 1." in said and "likest to, of labels" in said
    low, high = made["coord"][made["bed"]].min(0), made["coord"][made["bed"]].max(0)
    assert f"box in metres: ({low[0]:.2f}, {low[1]:.2f}," in said and f"{high[1]:.2f}," in said
    vertex = read_ply(out).vertex
    np.testing.assert_array_equal(np.stack([vertex[axis] for axis in "xyz"], 1), made["coord"])
    np.testing.assert_array_equal(vertex["scan_red"], made["color"][:, 0])
    similarity = vertex["similarity"]
    assert np.isnan(similarity[~made["visible"]]).all()
    assert np.nanargmax(similarity) in made["bed"]
    light = np.stack([vertex[name] for name in ("red", "green", "blue")], 1).astype(int).sum(1)
    hidden = np.stack([vertex[name] for name in ("red", "green", "blue")], 1)[~made["visible"]]
    assert (hidden == 165).all() and light[made["bed"][:100]].min() > light[made["chair"][:100]].max()
    with pytest.raises(FileExistsError, match="--overwrite"):
        query_main(["bed", "--scene", str(folder), "--out", str(out)])


def test_several_queries(scene, tmp_path, capsys):
    folder, made = scene
    assert query_main(["chair", "a bed", "--point", "3", "--scene", str(folder), "--out", str(tmp_path / "q.npz")]) == 0
    with np.load(tmp_path / "q.npz") as file:
        assert file["query"].tolist() == ["chair", "a bed", "point 3"] and file["similarity"].shape == (2700, 3) and file["threshold"].shape == (3,)
        assert np.nanargmax(file["similarity"][:, 2]) == 3
    place = ",".join(f"{value:.4f}" for value in made["coord"][3])
    query_main(["--point", place, "--scene", str(folder), "--out", str(tmp_path / "q.npy")])
    with np.load(tmp_path / "q.npz") as file:
        np.testing.assert_array_equal(np.load(tmp_path / "q.npy"), file["similarity"][:, 2])
    query_main(["chair", "somewhere / to sit", "--scene", str(folder), "--out", str(tmp_path / "q.ply")])
    assert sorted(path.name for path in tmp_path.glob("*.ply")) == ["q.1-chair.ply", "q.2-somewhere-to-sit.ply"]


def test_a_picture(scene, tmp_path, capsys):
    """The panel of a query is bright where its points are, and has the box of the region."""
    from PIL import Image

    assert query_main(["bed", "floor", "--scene", str(scene[0]), "--out", str(tmp_path / "q.png")]) == 0
    image = np.asarray(Image.open(tmp_path / "q.png").convert("RGB")).astype(int)
    hot = (image[..., 0] > 225) & (image[..., 1] > 190) & (image[..., 2] < 190) & (image[..., 0] - image[..., 2] > 60)
    thirds = [part.mean() for part in np.array_split(hot[: int(image.shape[0] * 0.85)], 3, axis=1)]
    assert thirds[0] == 0 and min(thirds[1:]) > 0.01
    green = np.abs(image - np.array([0, 170, 119])).max(axis=2) < 20
    assert green.sum() > 100
    query_main(["bed", "--scene", str(scene[0]), "--out", str(tmp_path / "q.jpg")])
    assert Image.open(tmp_path / "q.jpg").format == "JPEG"


def test_both_sources_and_points_that_are_not_finite(scene, tmp_path, capsys):
    folder, made = scene
    weight = distilled(tmp_path)
    coord = made["coord"].astype(np.float64).copy() * 100 + 50  # centimetres, away from 0
    coord[[4, 77]] = np.nan
    rows = np.concatenate([coord, made["color"], np.tile([0.0, 0, 1], (len(coord), 1))], axis=1)
    np.save(tmp_path / "scan.npy", rows)
    assert query_main(["chair", "--scene", str(tmp_path / "scan.npy"), "--weight", weight, "--unit", "cm", "--up-axis", "z", "--out", str(tmp_path / "o.npy")]) == 0
    said = capsys.readouterr().out
    found = np.load(tmp_path / "o.npy")
    assert np.flatnonzero(np.isnan(found)).tolist() == [4, 77]
    assert "box in the file's coordinates" in said and "no finite coordinates" in said
    assert query_main(["chair", "--scene", str(folder), "--weight", weight, "--source", "2d3d", "--out", str(tmp_path / "b.npy")]) == 0
    assert not np.isnan(np.load(tmp_path / "b.npy")).any()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([" "], "empty query"),
        ([], "nothing was asked"),
        (["chair", "--labels", "scanet20"], "did you mean 'scannet20'"),
        (["chair", "--weight", "absent.pth"], "no file or run folder absent.pth"),
        (["chair", "--source", "3d"], "needs --weight"),
        (["chair", "--teacher", "lseg"], "no features of teacher 'lseg'"),
        (["chair", "--feature-root", "elsewhere"], "whose features of elsewhere?"),
        (["chair", "--out", "x.obj"], "ends in one of .ply"),
        (["--point", "1,2", "--out", "a.npy"], "wanted INDEX or x,y,z"),
        (["--point", "90,0,0", "--out", "b.npy"], "m away"),
        (["chair", "--text-encoder", "dict(type='PocketTextEncodr')", "--out", "c.npy"], "did you mean 'PocketTextEncoder'"),
        (["--image", "absent.png", "--out", "d.npy"], "no such image"),
    ],
)
def test_errors_of_one_screen(scene, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert run_for_user(query_main, [*words, "--scene", str(scene[0])]) == 1
    assert said in capsys.readouterr().err


def test_a_scene_without_features(scene, tmp_path, capsys):
    shutil.copytree(scene[0], tmp_path / "bare", ignore=shutil.ignore_patterns("features"))
    assert run_for_user(query_main, ["chair", "--scene", str(tmp_path / "bare"), "--out", str(tmp_path / "a.npy")]) == 1
    said = capsys.readouterr().err
    assert "no features of images" in said and "fuse_features.py" in said and "--weight" in said


def test_features_of_another_scene_and_of_another_space(scene, tmp_path, capsys):
    make_scene(tmp_path / "other", seed=5)
    features = str(feature_path(tmp_path / "other", "text"))
    words = ["chair", "--scene", str(scene[0]), "--out", str(tmp_path / "a.npy")]
    assert run_for_user(query_main, [*words, "--features", features]) == 1
    assert "made for other points" in capsys.readouterr().err
    weight = distilled(tmp_path, dim=20)
    assert run_for_user(query_main, [*words, "--weight", weight]) == 1
    assert "the 3d features have 20: not the text encoder of that teacher" in capsys.readouterr().err


def test_a_weight_without_a_head_for_text(scene, tmp_path, capsys):
    cfg = Config(dict(model=dict(type="DefaultSegmentorV2", num_classes=3, backbone_out_channels=8, backbone=dict(type="MinkUNet14A", in_channels=6, out_channels=0))))
    save_weights(torch.nn.Linear(1, 1), tmp_path / "s.safetensors", {"config": cfg.pretty_text})
    assert run_for_user(query_main, ["chair", "--scene", str(scene[0]), "--weight", str(tmp_path / "s.safetensors"), "--out", str(tmp_path / "a.npy")]) == 1
    assert "a query needs a distilled model" in capsys.readouterr().err

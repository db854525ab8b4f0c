"""Objects from embeddings: clouds in their boxes, cameras, the decoder's losses, baselines, the tester on made-up scenes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial import cKDTree

from pointcept3m.datasets import build_dataset, collate_fn
from pointcept3m.datasets.object_clouds import in_box
from pointcept3m.engines import TRAINERS
from pointcept3m.engines.retrieval import reconstruct
from pointcept3m.models import build_model
from pointcept3m.models.crossover.decoder import balls, chamfer, orbit, render
from pointcept3m.structures.scene_objects import SceneObject, write_objects
from tests.datasets.crossover_scenes import WIDTHS, features, write_scene

INSTANCE = dict(
    type="CrossOver-instance-v1m1", widths={f"object_{name}": width for name, width in WIDTHS.items()}, dim=16,
    transformer=dict(heads=4, layers=1, feedforward=16),
)  # fmt: skip
SETTINGS = dict(instance=INSTANCE, gaussians=48, width=16, max_objects=6, rendered=3, views=1, image_size=16)


def write_rooms(root, train=3, val=2):
    """Scenes whose objects are coloured boxes; the first object of each scene has too few points."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            made = features(f"{split}{number:02d}", split, objects=5)
            folder = write_scene(root, made, points=2000)
            rng = np.random.default_rng(number)
            coord, instance = np.load(folder / "coord.npy"), np.load(folder / "instance.npy")
            instance[np.flatnonzero(instance == made.object_id[0])[30:]] = -1
            np.save(folder / "instance.npy", instance)
            objects = []
            for identity, label in zip(made.object_id.tolist(), made.labels, strict=True):
                mine = coord[instance == identity]
                size = np.ptp(mine, axis=0)
                center = (mine.min(0) + mine.max(0)) / 2
                objects.append(SceneObject(identity, label, tuple(map(float, center)), tuple(map(float, size)), heading=float(rng.random())))
            write_objects(folder, objects)
    return root


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    return write_rooms(tmp_path_factory.mktemp("clouds"))


def taught(**changes):
    """A decoder whose object level counts as trained."""
    model = build_model(dict(type="CrossOver-ObjectX-v1m1", **{**SETTINGS, **changes}))
    model.load_state_dict(model.state_dict())
    return model


def dataset(rooms, split="val", **settings):
    given = dict(type="ObjectCloudDataset", data_root=str(rooms), split=split, cloud_points=64, min_points=100, fixed=True)
    return build_dataset({**given, **settings})


def test_points_in_their_box_by_hand():
    thing = SceneObject(3, "couch", (1.0, 2.0, 0.5), (2.0, 1.0, 1.0), heading=np.pi / 2)
    # its long axis points along the scene's y: half of that side is the unit
    local = in_box(np.array([[1.0, 3.0, 0.5], [0.5, 2.0, 1.0], [1.0, 2.0, 0.5]]), thing)
    np.testing.assert_allclose(local, [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 0]], atol=1e-6)


def test_samples_have_clouds_of_the_objects_they_name(rooms):
    data = dataset(rooms)
    sample = data[0]
    assert sample["object_cloud"].shape == (5, 64, 3) and sample["object_cloud_color"].shape == (5, 64, 3)
    assert sample["object_has_cloud"].tolist() == [False, True, True, True, True]
    assert float(sample["object_cloud"][0].abs().max()) == 0 and 0 < float(sample["object_cloud_color"].max()) <= 1
    whole = data.clouds_of(0)[int(sample["object_id"][2])]
    rows = torch.cat([sample["object_cloud"], sample["object_cloud_color"]], -1)[2].numpy()
    assert cKDTree(whole).query(rows)[0].max() == 0
    assert torch.equal(sample["object_cloud"], data[0]["object_cloud"])  # fixed
    assert data.point_counts() == [int((np.load(rooms / "val" / name / "instance.npy") == i).sum())
                                   for number, name in enumerate(("val00", "val01")) for i in sorted(data.clouds_of(number))]  # fmt: skip
    with pytest.raises(ValueError, match="cloud_points"):
        dataset(rooms, cloud_points=0)


def test_a_scene_without_colours_is_named(rooms, tmp_path):
    root = write_rooms(tmp_path, train=0, val=1)
    (root / "val" / "val00" / "color.npy").unlink()
    with pytest.raises(ValueError, match=r"val00: color\.npy not found"):
        dataset(root)[0]


def test_cameras_see_right_and_up():
    """From +x, what lies at +y is on the right and what lies at +z above; from +y, what lies at +x is on the left."""
    cameras = orbit(torch.tensor([0.0, 0.25]), torch.zeros(2), 33)
    for place, view, right, up in (((0, 1, 0), 0, 1, 0), ((0, 0, 1), 0, 0, 1), ((1, 0, 0), 1, -1, 0)):
        _, mask = render(balls(torch.tensor([place]).float(), torch.ones(1, 3), 0.1), *cameras, 33)
        row, column = np.unravel_index(int(mask[view].argmax()), (33, 33))
        assert (np.sign(column - 16), np.sign(16 - row)) == (right, up)
    image, mask = render(balls(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]]), 0.2), *cameras, 33)
    assert image[0, 16, 16, 0] > 0.9 and image[0, 16, 16, 1] < 0.2 and torch.all(image[:, 0, 0] == 1) and float(mask[0, 0, 0]) == 0


def test_chamfer_is_that_of_a_tree():
    a, b = torch.rand(2, 30, 3), torch.rand(2, 50, 3)
    wanted = [(cKDTree(y).query(x)[0].mean() + cKDTree(x).query(y)[0].mean()) / 2 for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(chamfer(a, b).numpy(), wanted, rtol=1e-4)


def test_the_decoder_learns_what_it_is_shown(rooms):
    torch.manual_seed(0)
    batch = collate_fn([dataset(rooms)[0]])
    batch["object_cloud_color"][:] = torch.tensor([0.9, 0.1, 0.1])
    model = taught(noise=0.0)
    frozen = {name: value.clone() for name, value in model.instance.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = None
    for _ in range(40):
        losses = model(batch)
        first = first or {name: float(value.detach()) for name, value in losses.items()}
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    model.eval()
    last = model(batch)
    assert float(last["image_loss"]) < 0.5 * first["image_loss"] and float(last["chamfer_loss"]) < first["chamfer_loss"]
    color = model.decode(model.embed_objects(batch)[0]["image"][1:2]).colors[0].mean(0)
    assert color[0] > 0.6 and color[1] < 0.4
    assert all(torch.equal(value, frozen[name]) for name, value in model.instance.state_dict().items())
    assert not model.train().instance.training


def test_what_an_object_lacks_is_not_decoded(rooms):
    """An object without any modality, and one without points, are never drawn; a batch of such objects gives a loss of 0 parts."""
    batch = collate_fn([dataset(rooms)[0]])
    model = taught().train()
    batch["object_known"][2] = False
    assert 2 not in model.draw(batch)[1].tolist() and 0 not in model.draw(batch)[1].tolist()
    batch["object_known"][:] = False
    losses = model(batch)
    assert float(losses["loss"].detach()) == 0 and losses["loss"].requires_grad
    with pytest.raises(ValueError, match="'floorplan'"):
        taught(modalities=("floorplan",))
    with pytest.raises(ValueError, match="random weights"):
        build_model(dict(type="CrossOver-ObjectX-v1m1", **SETTINGS))(batch)


def made_up(count, seed=0):
    """Objects that are balls of one colour, told apart by their embeddings."""
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.randn(count, 64, 3, generator=generator) * 0.2
    color = torch.rand(count, 1, 3, generator=generator).expand(-1, 64, -1)
    vectors = torch.nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=1)
    return reconstruct.Objects({"image": vectors}, {"image": torch.ones(count, dtype=torch.bool)}, cloud, color, ["a", "b"] * (count // 2), [""] * count)


def test_baselines_are_what_they_are_called():
    train = made_up(6)
    means = reconstruct.mean_clouds(train, 500)
    assert set(means) == {"", "a", "b"}
    assert {tuple(c) for c in means["a"][1].tolist()} == {tuple(train.color[row, 0].tolist()) for row in (0, 2, 4)}
    assert reconstruct.nearest(train, train, "image").tolist() == list(range(6))
    train.known["image"][3] = False
    assert int(reconstruct.nearest(train, train, "image")[3]) != 3


def test_own_points_come_first_and_nearest_wins_where_it_is_the_object():
    model = taught().eval()
    model.modalities = ("image",)
    objects = made_up(6)
    scores = reconstruct.compare(model, objects, objects, size=24)
    assert list(scores) == ["own points", "decoded image", "nearest image", "class mean", "mean"]
    assert scores["own points"]["psnr"] > scores["mean"]["psnr"] + 1 and scores["nearest image"]["chamfer"] < scores["mean"]["chamfer"]


def test_storage_by_hand():
    model = taught()
    costs = reconstruct.storage(model, [100, 300])
    assert costs["embedding"] == 64 and costs["points"] == 3000 and costs["gaussians"] == 48 * 56 and costs["ratio"] == 3000 / 64
    decoder = sum(p.numel() for p in model.parameters() if p.requires_grad) * 4
    assert costs["decoder"] == decoder and costs["worth_from"] == pytest.approx(decoder / (3000 - 64))


def test_training_and_its_test(rooms, tmp_path):
    def section(split):
        return dict(type="ObjectCloudDataset", data_root=str(rooms), split=split, cloud_points=64, fixed=split == "val")

    save_file(build_model(INSTANCE).state_dict(), tmp_path / "instance.safetensors")
    cfg = dict(
        model=dict(type="CrossOver-ObjectX-v1m1", **SETTINGS), data=dict(train=section("train"), test=section("val")),
        optimizer=dict(type="AdamW", lr=0.01), scheduler=dict(type="CosineAnnealingLR"), save_path=str(tmp_path / "run"), num_worker=0, batch_size=2, seed=1,
        epoch=2, eval_epoch=1, weight=str(tmp_path / "instance.safetensors"),
        hooks=[
            dict(type="CheckpointLoader", keywords="module.", replacement="module.instance.", part="instance"), dict(type="CheckpointSaver"),
            dict(type="PreciseEvaluator", test_last=True), dict(type="MetricsWriter"),
        ],
        test=dict(type="ReconstructionTester", num_pictures=3),
    )  # fmt: skip
    TRAINERS.build(dict(type="DefaultTrainer"), cfg=cfg).train()
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert {"test_decoded_image_psnr", "test_nearest_text_chamfer", "test_class_mean_psnr", "test_own_points_psnr"} <= set(scores)
    written = json.loads((tmp_path / "run" / "result" / "reconstruction.json").read_text())
    assert written["bytes"]["embedding"] == 64 and (tmp_path / "run" / "pictures" / "objects.png").stat().st_size > 1000

"""The three models: sizes, equations, masks, batches, stages."""

import itertools

import numpy as np
import pytest
import torch

from pointcept3m.models import build_model
from pointcept3m.models.crossover.scene import SceneFusion
from pointcept3m.models.crossover.unified import LossWeights
from pointcept3m.structures.modality_features import OBJECT_MODALITIES

from .scenes import WIDTHS, make_batch, one_scene

PAPER = dict(object_image=1536, object_point=384, object_cad=384, object_text=768, image_token=3072, floorplan_token=3072, text_token=768)
INSTANCE = dict(type="CrossOver-instance-v1m1", widths=WIDTHS, dim=32, transformer=dict(heads=4, layers=2, feedforward=32))
BACKBONE = dict(backbone=dict(type="MinkUNet14A", in_channels=3, out_channels=0, init_dim=8, planes=[8] * 8), backbone_out_channels=8)


def crossover(**options):
    torch.manual_seed(0)
    return build_model({**dict(type="CrossOver-v1m1", instance=dict(INSTANCE), widths=WIDTHS, dim=32, **BACKBONE), **options})


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_sizes_at_the_papers_widths():
    """2.81 M, 19.6 M and 80 M parameters, as counted in the release."""
    fixed = dict(learn_temperature=False)
    assert size_of(build_model(dict(type="CrossOver-baseline-v1m1", widths=PAPER, loss=fixed))) == 2_809_344
    instance = dict(type="CrossOver-instance-v1m1", widths=PAPER, loss=fixed)
    assert size_of(build_model(instance)) == 11_008_928
    release = build_model({**instance, "transformer": dict(location="add")})
    unused = size_of(release.transformer) + 2 * (192 * 96 + 96 + 2 * 96 + 96 * 384 + 384)  # for meshes, and an MLP in each
    assert size_of(release) + unused == 19_615_744
    backbone = dict(type="SparseResNet34", in_channels=3)
    assert size_of(build_model(backbone)) == 70_554_816
    whole = build_model(dict(type="CrossOver-v1m1", instance=instance, widths=PAPER, backbone=backbone, backbone_out_channels=512))
    trained = sum(parameter.numel() for parameter in whole.parameters() if parameter.requires_grad)
    assert trained == pytest.approx(80e6, rel=0.001)


@pytest.fixture
def batch():
    return make_batch()


def test_equation_1_is_a_sum_over_pairs_with_the_base(batch):
    model = build_model(INSTANCE).eval()
    out = model(batch)
    pairs = ["image_point_loss", "image_cad_loss", "image_text_loss"]
    assert set(out) == {"loss", "temperature", *pairs}
    assert out["loss"].item() == pytest.approx(sum(float(out[name]) for name in pairs), rel=1e-6)
    vectors, known = model.embed_objects(batch)
    both = known["image"] & known["cad"]
    logits = (vectors["image"][both] @ vectors["cad"][both].T / 0.07).detach().double().numpy()
    log = [np.log(np.exp(m).sum(1)) - np.diag(m) for m in (logits, logits.T)]
    assert float(out["image_cad_loss"]) == pytest.approx((log[0] + log[1]).mean(), rel=1e-4)


def test_pairs_are_base_all_or_listed():
    def pairs(**options):
        return build_model({**INSTANCE, **options}).pairs

    assert pairs(base="point") == (("point", "image"), ("point", "cad"), ("point", "text"))
    assert pairs(pairs="all") == tuple(itertools.combinations(OBJECT_MODALITIES, 2))
    assert pairs(pairs=[("cad", "text")]) == (("cad", "text"),)
    with pytest.raises(ValueError, match="'mesh' in pairs is no modality"):
        pairs(pairs=[("cad", "mesh")])
    with pytest.raises(ValueError, match="base 'images' is none of the modalities; did you mean 'image'"):
        pairs(base="images")


@pytest.mark.parametrize("rule", ["paper", "softmax"])
def test_fusion_is_equation_2_over_what_a_scene_has(rule):
    torch.manual_seed(1)
    names = ("image", "point", "cad", "text")
    fusion = SceneFusion(names, 8, rule)
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([0.3, -0.5, 1.0, 0.1]))
    known = torch.tensor(list(itertools.product([True, False], repeat=4)))
    found = fusion.weights(known).detach().numpy()
    w = np.exp([0.3, -0.5, 1.0, 0.1])
    for row, mask in enumerate(known.numpy()):
        for q in range(4):
            others = sum(w[j] for j in range(4) if mask[j] and (j != q or rule == "softmax"))
            expected = 0.0 if not mask[q] else (w[q] / others if others else 1.0)
            assert found[row, q] == pytest.approx(expected, rel=1e-5)
    means = {name: torch.randn(len(known), 8) for name in names}
    fused, there = fusion(means, {name: known[:, k] for k, name in enumerate(names)})
    assert there.tolist() == known.any(1).tolist()
    expected = fusion.head(sum(torch.from_numpy(found[:, k, None]) * means[name] for k, name in enumerate(names)))
    assert torch.allclose(fused, expected, atol=1e-6)


def test_fusion_as_released_keeps_the_share_of_what_is_missing():
    fusion = SceneFusion(("image", "point"), 4, rule="softmax", renormalise=False)
    assert torch.allclose(fusion.weights(torch.tensor([[True, False], [True, True]])), torch.tensor([[0.5, 0.0], [0.5, 0.5]]))


@pytest.mark.parametrize("name", ["CrossOver-baseline-v1m1", "CrossOver-instance-v1m1", "CrossOver-v1m1"])
def test_a_scene_embeds_the_same_whatever_its_batch(name, batch):
    model = crossover() if name == "CrossOver-v1m1" else build_model({**INSTANCE, "type": name} if "instance" in name else dict(
        type=name, widths=WIDTHS, dim=32))  # fmt: skip
    model.eval()
    scenes, scene_known = model.embed_scenes(batch)
    objects, object_known = model.embed_objects(batch)
    ends = [0, *batch["object_offset"].tolist()]
    for k in range(len(batch["name"])):
        alone, known = model.embed_scenes(one_scene(batch, k))
        for modality in scenes:
            assert bool(known[modality][0]) == bool(scene_known[modality][k])
            assert torch.allclose(alone[modality][0], scenes[modality][k], atol=1e-5), modality
        rows, known = model.embed_objects(one_scene(batch, k))
        for modality in objects:
            part = slice(ends[k], ends[k + 1])
            assert torch.equal(known[modality], object_known[modality][part])
            assert torch.allclose(rows[modality], objects[modality][part], atol=1e-5)


def test_embeddings_are_unit_rows_and_zeros_where_missing(batch):
    model = crossover().eval()
    for rows, known in (model.embed_scenes(batch), model.embed_objects(batch)):
        for name in rows:
            assert torch.allclose(rows[name].norm(dim=1), known[name].float(), atol=1e-5)
    assert set(model.embed_scenes(batch)[0]) == {"image", "point", "floorplan", "text", "scene"}
    assert not model.embed_scenes(batch)[1]["point"][0]  # the first scene has no points


@pytest.mark.parametrize("stage", ["scene", "unified", "joint"])
def test_stages_train_their_parts_and_no_other(stage):
    model = crossover(stage=stage).train()
    # two images of one scene, so that every part has something to tell apart
    model(make_batch(missing=0.0))["loss"].backward()
    learned = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    scene_level = {"image_encoder", "text_encoder", "backbone", "point_head", "loss_weights"}
    assert learned == {"fusion", "loss"} | (scene_level if stage != "scene" else set()) | ({"instance"} if stage == "joint" else set())
    assert model.instance.training == (stage == "joint")
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_a_batch_without_a_modality_trains_with_gradients_for_all():
    model = crossover().train()
    batch = make_batch(points=False)
    batch["floorplan_token"], batch["floorplan_offset"] = batch["floorplan_token"][:0], batch["floorplan_offset"] * 0
    out = model(batch)
    out["loss"].backward()
    assert float(out["scene_floorplan_loss"]) == 0 and float(out["scene_point_loss"]) == 0
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_loss_weights_learn_and_settle_where_none_is_lost(batch):
    model = crossover().train()
    model(batch)["loss"].backward()
    assert (model.loss_weights.log_weight.grad != 0).all()
    assert not any(parameter.requires_grad for parameter in crossover(loss_weights="fixed").loss_weights.parameters())
    losses = dict(zip(("a", "b", "c"), torch.tensor([0.0, 1.0, 9.0]), strict=True))
    weights = LossWeights(tuple(losses), learned=True)
    optimizer = torch.optim.Adam(weights.parameters(), 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        total, factors = weights(losses)
        total.backward()
        optimizer.step()
    assert [float(factor) for factor in factors.values()] == pytest.approx([1, 1 / 2, 1 / 10], abs=1e-3)
    total, factors = LossWeights(tuple(losses), learned=False)(losses)
    assert float(total) == 10 and [float(factor) for factor in factors.values()] == [1, 1, 1]


@pytest.mark.parametrize("missing", [names for count in range(5) for names in itertools.combinations(("image", "point", "floorplan", "text"), count)])
def test_any_modalities_may_be_missing_in_a_scene(missing):
    """What a scene lacks is masked, and the other scenes and modalities are as they were."""
    batch, model = make_batch(scenes=3, missing=0.0), crossover().eval()
    whole, known = model.embed_scenes(batch)
    assert all(mask.all() for mask in known.values() if mask is not known["floorplan"])
    less = dict(batch)
    for name in missing:
        key, rows = (f"{name}_offset", (f"{name}_token",)) if name != "point" else ("offset", ("coord", "grid_coord", "feat"))
        first, last = batch[key][:2].tolist()
        for row in rows:
            less[row] = torch.cat([batch[row][:first], batch[row][last:]])
        less[key] = batch[key] - torch.tensor([0, last - first, last - first])
    found, there = model.embed_scenes(less)
    for name in whole:
        lost = torch.tensor([False, name in missing, False])
        assert torch.equal(there[name], known[name] & ~lost)
        assert torch.allclose(found[name], torch.where(lost[:, None], 0.0, whole[name]), atol=1e-5), name
    model.train()(less)["loss"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.requires_grad)


def test_objects_with_any_modalities():
    """Each subset of an object's modalities: what is not there changes nothing of what is."""
    batch, model = make_batch(scenes=4, missing=0.0), build_model({**INSTANCE, "transformer": dict(heads=4, layers=1, feedforward=32)}).eval()
    whole, _ = model.embed_objects(batch)
    number = torch.arange(len(batch["object_known"])) % 16
    known = torch.stack([number >> k & 1 for k in range(4)], dim=1).bool()
    less = {**batch, "object_known": known}
    for k, name in enumerate(OBJECT_MODALITIES):
        less[f"object_{name}"] = batch[f"object_{name}"] * known[:, k, None]
    found, there = model.embed_objects(less)
    for k, name in enumerate(OBJECT_MODALITIES):
        assert torch.equal(there[name], known[:, k])
        if name != "point":  # a point token sees the other objects
            assert torch.allclose(found[name], torch.where(known[:, k, None], whole[name], 0.0), atol=1e-6)
    rows, present = model.embed_scenes(less)
    first = known[: batch["object_offset"][0]]
    for k, name in enumerate(OBJECT_MODALITIES):
        mean = found[name][: len(first)][first[:, k]].sum(0)
        assert bool(present[name][0]) == bool(first[:, k].any())
        assert torch.allclose(rows[name][0], mean / mean.norm().clamp(min=1e-12), atol=1e-6)


def hidden_batch(scenes):
    """A batch whose every vector is a linear map of a vector of its object, or of its scene's mean."""
    batch, g = make_batch(scenes=scenes, missing=0.0), torch.Generator().manual_seed(3)
    objects = torch.randn(len(batch["object_id"]), 6, generator=g)
    means = torch.stack([part.mean(0) for part in objects.tensor_split(batch["object_offset"][:-1])])

    def mapped(rows, width):
        return rows @ torch.randn(6, width, generator=g)

    for name in OBJECT_MODALITIES:
        batch[f"object_{name}"] = mapped(objects, WIDTHS[f"object_{name}"])
    for name in ("image", "floorplan", "text"):
        counts = batch[f"{name}_offset"].diff(prepend=torch.zeros(1, dtype=torch.int64))
        if name == "floorplan":
            counts = torch.ones_like(counts)
        batch[f"{name}_offset"] = counts.cumsum(0)
        batch[f"{name}_token"] = mapped(means, WIDTHS[f"{name}_token"]).repeat_interleave(counts, 0)
    counts = batch["offset"].diff(prepend=torch.zeros(1, dtype=torch.int64))
    batch["feat"] = mapped(means, 3).repeat_interleave(counts, 0)
    return batch


def train(model, batch, steps, lr):
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch)["loss"].backward()
        optimizer.step()
    return model.eval()


def top1(vectors, names):
    return {(a, b): float(((vectors[a] @ vectors[b].T).argmax(1) == torch.arange(len(vectors[a]))).float().mean()) for a, b in itertools.permutations(names, 2)}


@pytest.mark.parametrize("name", ["CrossOver-baseline-v1m1", "CrossOver-instance-v1m1"])
def test_a_training_aligns_pairs_it_never_saw_together(name):
    """Eq. 1 aligns all with the image alone, and without error; point, CAD and text find each other through it, of 26 objects.

    A low temperature is content with pairs that are merely closer than others, and holds the untrained ones together less well.
    """
    torch.manual_seed(0)
    batch = hidden_batch(scenes=5)
    more = dict(transformer=dict(heads=4, layers=1, feedforward=32, dropout=0.0)) if "instance" in name else {}
    model = train(build_model(dict(type=name, widths=WIDTHS, dim=32, loss=dict(temperature=0.3, learn_temperature=False), **more)), batch, 150, 1e-2)
    scores = top1(model.embed_objects(batch)[0], OBJECT_MODALITIES)
    assert all(score == 1 if "image" in pair else score > 0.9 for pair, score in scores.items()), scores


@pytest.mark.parametrize("loss_weights", ["learned", "fixed"])
def test_scene_encoders_find_each_other_through_the_fusion(loss_weights):
    batch = hidden_batch(scenes=8)
    model = train(crossover(loss_weights=loss_weights, loss=dict(temperature=0.3)), batch, 60, 1e-2)
    scores = top1(model.embed_scenes(batch)[0], ("scene", "image", "floorplan", "text"))
    assert all(score == 1 if "scene" in pair else score > 0.6 for pair, score in scores.items()), scores


def test_the_fusion_alone_learns_to_find_what_is_left_out():
    model = crossover(stage="scene")
    batch = hidden_batch(scenes=8)
    model.instance.load_state_dict(train(build_model(INSTANCE), batch, 60, 1e-2).state_dict())
    before = float(model(batch)["loss"].detach())
    assert float(train(model, batch, 40, 1e-2)(batch)["loss"].detach()) < 0.5 * before


@pytest.mark.parametrize("floorplan", ["token", "cls"])
def test_images_and_floorplans_share_their_encoder(floorplan):
    """The paper's way tells no floorplan from an image; the release's takes its CLS token past the MLP."""
    model = crossover(floorplan=floorplan).eval()
    batch = make_batch(scenes=3, missing=0.0)
    batch |= dict(image_token=batch["image_token"][:3], image_offset=torch.tensor([1, 2, 3]))
    batch |= dict(floorplan_token=batch["image_token"], floorplan_offset=batch["image_offset"])
    rows, _ = model.embed_scenes(batch)
    assert torch.allclose(rows["image"], rows["floorplan"], atol=1e-6) == (floorplan == "token")
    if floorplan == "cls":
        assert torch.allclose(rows["floorplan"], model.image_encoder.head(batch["image_token"][:, :8]), atol=1e-6)


def test_a_backbone_that_pools():
    """The ResNet gives a row a scene; a scene without points in the middle of a batch is masked and changes no other."""
    model = crossover(backbone=dict(type="SparseResNet14", in_channels=3, planes=(8, 8), layers=(1, 1), init_dim=8), backbone_out_channels=8).eval()
    batch = make_batch(scenes=3)
    rows, known = model.embed_scenes(batch)
    assert known["point"].tolist() == [False, True, True]
    for k in (1, 2):
        assert torch.allclose(model.embed_scenes(one_scene(batch, k))[0]["point"][0], rows["point"][k], atol=1e-5)


def test_wrong_input_is_named(batch):
    with pytest.raises(ValueError, match="stage 'unify' is unknown; did you mean 'unified'"):
        crossover(stage="unify")
    with pytest.raises(ValueError, match="contradicts"):
        crossover(stage="joint", freeze_instance=True)
    with pytest.raises(ValueError, match="images and floorplans share an encoder"):
        crossover(widths={**WIDTHS, "floorplan_token": 8})
    with pytest.raises(ValueError, match="embeds into 32 dimensions, the scene level into 16"):
        crossover(dim=16)
    with pytest.raises(TypeError, match="instance must be"):
        crossover(instance=dict(type="MinkUNet14A", in_channels=3, out_channels=4))
    with pytest.raises(ValueError, match="object_image is .* the model was made for width 16; is this the recipe"):
        crossover()({**batch, "object_image": batch["object_image"][:, :4]})
    with pytest.raises(KeyError, match="the batch lacks 'object_cad'"):
        crossover()({key: value for key, value in batch.items() if key != "object_cad"})
    with pytest.raises(ValueError, match="two modalities to be aligned"):
        build_model(dict(type="CrossOver-baseline-v1m1", widths=dict(object_image=4)))


def test_standardised_features_have_no_common_mean_and_keep_their_masks():
    from pointcept3m.models.crossover.layers import Standardize

    layer = Standardize(4)
    rows, known = torch.randn(50, 4) * torch.tensor([1.0, 2, 3, 4]) + 10, torch.rand(50) > 0.3
    made = layer(rows * known[:, None], known)
    assert torch.allclose(made[known].mean(0), torch.zeros(4), atol=1e-5) and torch.allclose(made[known].std(0), torch.ones(4), atol=0.05)
    assert torch.equal(made[~known], torch.zeros_like(made[~known]))
    layer.eval()
    assert torch.allclose(layer(rows[known])[:3], layer(rows[known][:3]))  # in a test each row is its own
    assert torch.allclose(layer(rows[known]), made[known], atol=0.1) and layer(rows[:0]).shape == (0, 4)
    model = crossover(standardize=True, instance={**INSTANCE, "standardize": True}).train()
    for _ in range(3):
        model(make_batch())["loss"].backward()
    vectors, known = model.eval().embed_scenes(make_batch())
    assert all(torch.allclose(vectors[name].norm(dim=1), known[name].float(), atol=1e-5) for name in vectors)

"""The three models: sizes, equations, masks, batches, stages."""

import itertools

import numpy as np
import pytest
import torch

from pointcept3m.models import build_model
from pointcept3m.models.crossover.scene import SceneFusion
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
    assert size_of(build_model(dict(type="CrossOver-baseline-v1m1", widths=PAPER, loss=dict(learn_temperature=False)))) == 2_809_344
    instance = build_model(dict(type="CrossOver-instance-v1m1", widths=PAPER))
    assert size_of(instance.transformer) == pytest.approx(8.85e6, rel=0.04)  # the note's figure for the release's


@pytest.fixture
def batch():
    return make_batch()


def test_equation_1_is_a_sum_over_pairs_with_the_base(batch):
    model = build_model(INSTANCE).eval()
    out = model(batch)
    pairs = ["image_point_loss", "image_cad_loss", "image_text_loss"]
    assert set(out) == {"loss", "temperature", *pairs}
    assert float(out["loss"]) == pytest.approx(sum(float(out[name]) for name in pairs), rel=1e-6)
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


def test_loss_weights_learn_and_keep_their_sum(batch):
    model = crossover().train()
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        out = model(batch)
        out["loss"].backward()
        optimizer.step()
    weights = [float(value) for value in model.loss_weights().values()]
    assert sum(weights) == pytest.approx(3, rel=1e-5) and max(weights) - min(weights) > 0.01
    assert not any(parameter.requires_grad for parameter in crossover(loss_weights="fixed").loss_weights.parameters())


def test_a_training_aligns_pairs_it_never_saw_together():
    """Eq. 1 aligns all with the image alone; point, CAD and text find each other through it."""
    torch.manual_seed(0)
    batch = make_batch(scenes=4, missing=0.0)
    model = build_model(dict(INSTANCE, loss=dict(temperature=0.1)))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        model(batch)["loss"].backward()
        optimizer.step()
    vectors, _ = model.eval().embed_objects(batch)
    for a, b in itertools.combinations(OBJECT_MODALITIES, 2):
        found = (vectors[a] @ vectors[b].T).argmax(1)
        assert (found == torch.arange(len(found))).float().mean() > 0.9, (a, b)


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

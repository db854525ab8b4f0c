"""CUA-O3D: each equation computed another way, sigma where the objective is stationary, who gets a gradient, what is refused."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pointcept3m.models import build_model
from pointcept3m.models.builder import MODELS
from pointcept3m.models.cua_o3d import model as cua_o3d
from pointcept3m.models.cua_o3d.uncertainty import build_uncertainty


@MODELS.register_module("PassingBackbone", force=True)
class PassingBackbone(nn.Module):
    """A linear layer on each point, without mixing, so that a point's features depend on it alone."""

    def __init__(self, in_channels: int = 6, out_channels: int = 8):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, batch):
        return self.linear(batch["feat"])


HEADS = dict(
    lseg=dict(dim=5), dinov2=dict(dim=7, loss="l1"), sd=dict(dim=4, demean=True), rough=dict(dim=3, loss="l2"), deep=dict(dim=6, hidden=10)
)


def make_model(heads=HEADS, **arguments):
    return build_model(
        dict(type="CUA-O3D-v1m1", backbone=dict(type="PassingBackbone"), backbone_out_channels=8, heads=heads, **arguments)
    )


def make_batch(counts=(30, 50), step=3, heads=HEADS):
    number = sum(counts)
    rows = torch.arange(0, number, step)
    batch = dict(feat=torch.randn(number, 6), offset=torch.tensor(counts).cumsum(0), target_index=rows)
    for name, head in heads.items():
        batch[f"target_{name}"] = torch.randn(len(rows), head["dim"]) * 2 - 1
    return batch


def expected_losses(model, batch):
    """Eq. 1 to 3 and 5 in numpy, row by row."""
    feature = model.backbone(batch).detach()
    out = {}
    for name, settings in HEADS.items():
        predicted = model.heads[name](feature).detach().double().numpy()
        values = []
        for row, target in zip(batch["target_index"].tolist(), batch[f"target_{name}"].double().numpy(), strict=True):
            a, b = predicted[row], target
            if settings.get("demean"):
                b = b - sum(b) / len(b)
            kind = settings.get("loss", "cosine")
            if kind == "cosine":
                values.append(1 - a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b)))
            elif kind == "l1":
                values.append(sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a))
            else:
                values.append(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))
        out[name] = np.array(values)
    return out


def test_losses_of_equations_1_to_5():
    model, batch = make_model(), make_batch()
    result, wanted = model(batch), expected_losses(model, batch)
    for name, values in wanted.items():
        assert result[f"{name}_loss"].item() == pytest.approx(values.mean(), rel=1e-5)
    assert result["loss"].item() == pytest.approx(sum(values.mean() for values in wanted.values()), rel=1e-5)


@pytest.mark.parametrize(
    ("regulariser", "term"),
    [("log1p", lambda s: math.log(1 + s)), ("log1p_square", lambda s: math.log(1 + s * s)), ("log", math.log)],
)
def test_uncertainty_of_equations_10_and_11(regulariser, term):
    model, batch = make_model(uncertainty=dict(kind="scalar", regulariser=regulariser)), make_batch()
    raw = torch.tensor([-1.0, 0.0, 0.5, 2.0, 3.0])
    model.uncertainty.raw.data.copy_(raw)
    sigma = [math.log(1 + math.exp(value)) for value in raw.tolist()]
    losses = [values.mean() for values in expected_losses(model, batch).values()]
    result = model(batch)
    wanted = sum(loss / (2 * s * s) + term(s) for loss, s in zip(losses, sigma, strict=True))
    assert result["loss"].item() == pytest.approx(wanted, rel=1e-5)
    assert [result[f"sigma_{name}"].item() for name in HEADS] == pytest.approx(sigma, rel=1e-5)


def test_uncertainty_starts_at_sigma_one():
    for kind, low in [(kind, low) for kind in ("scalar", "scene", "point") for low in (False, True)]:
        model, batch = make_model(uncertainty=dict(kind=kind)), make_batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            result = model(batch)
        assert all(result[f"sigma_{name}"].item() == pytest.approx(1, abs=1e-6) for name in HEADS)


@pytest.mark.parametrize("loss", [0.02, 0.3, 2.0])
def test_sigma_settles_where_the_objective_is_stationary(loss):
    """d/ds [L / (2 s^2) + log(1 + s)] = 0 is s^3 = L (1 + s); the release's log(1 + s^2) has s^2 = (L + sqrt(L^2 + 8 L)) / 4."""
    for regulariser in ("log1p", "log1p_square"):
        scalar = build_uncertainty(dict(kind="scalar", regulariser=regulariser), ["teacher"], 8)
        optimizer = torch.optim.Adam(scalar.parameters(), lr=0.02)
        nothing = torch.zeros(0)
        for _ in range(1500):
            optimizer.zero_grad()
            scalar({"teacher": torch.full((4,), loss)}, nothing, nothing, nothing)[0].backward()
            optimizer.step()
        sigma = scalar.sigma.item()
        if regulariser == "log1p":
            assert sigma**3 == pytest.approx(loss * (1 + sigma), rel=1e-2)
        else:
            assert sigma**2 == pytest.approx((loss + math.sqrt(loss**2 + 8 * loss)) / 4, rel=1e-2)


def test_predicted_sigmas_weigh_each_scene_and_each_point():
    batch = make_batch()
    for kind in ("scene", "point"):
        model = make_model(uncertainty=dict(kind=kind))
        nn.init.normal_(model.uncertainty.predict.weight)
        feature = model.backbone(batch).detach()
        losses, rows = expected_losses(model, batch), batch["target_index"].tolist()
        total = 0.0
        for column, values in enumerate(losses.values()):
            terms = []
            for row, value in zip(rows, values, strict=True):
                where = feature[row] if kind == "point" else (feature[:30] if row < 30 else feature[30:]).mean(0)
                raw = (model.uncertainty.predict.weight[column] @ where + model.uncertainty.predict.bias[column]).item()
                sigma = max(math.log1p(math.exp(raw)), 1e-3)
                terms.append(value / (2 * sigma**2) + math.log(1 + sigma))
            total += np.mean(terms)
        assert model(batch)["loss"].item() == pytest.approx(total, rel=1e-4)


def test_gradients_of_predicted_sigmas_do_not_depend_on_threads():
    """A scene's sigma stands at each of its points; their gradients are added in one order however many threads there are."""
    generator = torch.Generator().manual_seed(0)
    feature, losses = torch.randn(40_000, 4, generator=generator), {"a": torch.rand(20_000, generator=generator), "b": torch.rand(20_000, generator=generator)}
    model = build_uncertainty(dict(kind="scene"), tuple(losses), 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = set()
        for _ in range(20):
            model.zero_grad()
            model(losses, feature, torch.arange(0, 40_000, 2), torch.tensor([25_000, 40_000]))[0].backward()
            found.add(model.predict.weight.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_a_noisy_teacher_gets_the_larger_sigma():
    """Two teachers of which one is noise: the objective gives the learnable one more weight."""
    heads = dict(clean=dict(dim=4), noise=dict(dim=4))
    model = make_model(heads, uncertainty=dict(kind="scalar"))
    batch, truth = make_batch(heads=heads), torch.randn(6, 4)
    batch["target_clean"] = batch["feat"][batch["target_index"]] @ truth
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        batch["target_noise"] = torch.randn(batch["target_noise"].shape)
        result = model(batch)
        result["loss"].backward()
        optimizer.step()
    assert result["sigma_clean"] < 0.7 * result["sigma_noise"]


def test_free_weights_run_away():
    """Table 6, AutoW: the sum of w_i L_i falls without bound as the weights do; the losses do not."""
    model, batch = make_model(uncertainty=dict(kind="auto_weight")), make_batch()
    first = model(batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        result = model(batch)
        result["loss"].backward()
        optimizer.step()
    assert all(result[f"weight_{name}"] < -1 for name in HEADS)
    assert result["loss"] < -10
    assert result["dinov2_loss"] > first["dinov2_loss"]  # what is no longer learned, and is pushed away


def test_only_supervised_points_have_gradients_and_targets():
    model, batch = make_model(), make_batch()
    batch["feat"].requires_grad_()
    model(batch)["loss"].backward()
    touched = batch["feat"].grad.abs().sum(1) > 0
    assert touched.nonzero().squeeze(1).tolist() == batch["target_index"].tolist()


def test_heads_are_run_on_supervised_points_alone():
    model, batch = make_model(), make_batch()
    seen = []
    model.heads["lseg"].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    model(batch)
    assert seen == [len(batch["target_index"])]


def test_chunks_change_neither_losses_nor_gradients(monkeypatch):
    model, batch = make_model(uncertainty=dict(kind="point")), make_batch()
    results = []
    for chunk in (1000, 4):
        monkeypatch.setattr(cua_o3d, "CHUNK", chunk)
        model.zero_grad()
        result = model(batch)
        result["loss"].backward()
        results.append([result["loss"].detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*results, strict=True))


def test_a_vocabulary_gives_cosines_as_logits():
    model, batch = make_model().eval(), make_batch()
    texts = torch.randn(9, 5)
    model.set_vocabulary(texts)
    logits = model({key: batch[key] for key in ("feat", "offset")})["seg_logits"]
    embedding = model.embed(batch)
    wanted = [[(torch.dot(e, t) / e.norm() / t.norm()).item() for t in texts] for e in embedding]
    assert torch.allclose(logits * 0.01, torch.tensor(wanted), atol=1e-5)
    assert model.class_count() == 9
    assert not any("vocabulary" in name for name in model.state_dict())
    model.set_vocabulary(None)
    with pytest.raises(RuntimeError, match="set_vocabulary"):
        model({key: batch[key] for key in ("feat", "offset")})


def test_several_texts_speak_for_one_class():
    model = make_model().eval()
    texts = torch.randn(4, 5)
    batch = make_batch()
    model.set_vocabulary(texts)
    single = model(batch)["seg_logits"]
    model.set_vocabulary(texts, torch.tensor([1, 0, 1, 2]))
    assert model.class_count() == 3
    wanted = torch.stack([single[:, 1], torch.maximum(single[:, 0], single[:, 2]), single[:, 3]], 1)
    torch.testing.assert_close(model(batch)["seg_logits"], wanted)
    for wrong in (torch.tensor([0, 1]), torch.tensor([0, 1, 3, 3]), torch.tensor([-1, 0, 1, 2])):
        with pytest.raises(ValueError, match="mapping must name the class of each of 4 texts"):
            model.set_vocabulary(texts, wrong)
    model.set_vocabulary(texts)
    assert model(batch)["seg_logits"].shape[1] == 4


def test_a_float16_vocabulary_and_autocast():
    model, batch = make_model().eval(), make_batch()
    model.set_vocabulary(torch.randn(3, 5).half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(batch)
    assert result["seg_logits"].dtype == torch.float32 and result["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda b: b.pop("target_sd"), KeyError, "lacks target_sd"),
        (lambda b: b.pop("target_index"), KeyError, "SampleTargets"),
        (lambda b: b.update(target_sd=b["target_sd"][:, :3]), ValueError, "heads.sd.dim"),
        (lambda b: b.update(target_sd=b["target_sd"][:5]), ValueError, r"target_sd is \[5, 4\]"),
        (lambda b: b.update(target_index=b["target_index"] + 1000), ValueError, "of 80"),
    ],
)
def test_batches_that_do_not_fit(change, error, words):
    batch = make_batch()
    change(batch)
    with pytest.raises(error, match=words):
        make_model()(batch)


@pytest.mark.parametrize("kind", ["scalar", "scene", "point", "auto_weight"])
def test_a_batch_without_a_target_teaches_nothing(kind):
    """No camera saw what a crop left: losses and gradients are 0, and every parameter has one, as DDP wants it."""
    model, batch = make_model(uncertainty=dict(kind=kind)), make_batch()
    batch["target_index"] = batch["target_index"][:0]
    for name in HEADS:
        batch[f"target_{name}"] = batch[f"target_{name}"][:0]
    result = model(batch)
    result["loss"].backward()
    assert all(result[f"{name}_loss"] == 0 for name in HEADS) and result["loss"] == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(heads={}), ValueError, "at least one teacher"),
        (dict(text_head="lsge"), ValueError, "did you mean 'lseg'"),
        (dict(heads=dict(a=dict(loss="cosine"))), ValueError, "heads.a.dim"),
        (dict(heads=dict(a=dict(dim=3, loss="cosinus"))), ValueError, "did you mean 'cosine'"),
        (dict(heads=dict(a=dict(dim=3, demeaned=True))), KeyError, "did you mean 'demean'"),
        (dict(uncertainty=dict(kind="scalars")), KeyError, "did you mean 'scalar'"),
        (dict(uncertainty=dict(regulariser="log2")), ValueError, "regulariser"),
        (dict(uncertainty=dict(kind="auto_weight", regulariser="log1p")), ValueError, "does not take"),
    ],
)
def test_settings_that_do_not_fit(arguments, error, words):
    with pytest.raises(error, match=words):
        make_model(**arguments)


def test_vocabulary_of_another_space():
    with pytest.raises(ValueError, match="text encoder"):
        make_model().set_vocabulary(torch.randn(3, 512))

"""Masked Scene Contrast: masks, matches and losses against brute force, the model as a whole, and what it does with nothing."""

import math

import pytest
import torch
from torch import nn

from pointcept3m.models import build_model
from pointcept3m.models.builder import MODELS
from pointcept3m.models.msc import losses
from pointcept3m.models.msc.masking import cross_masks
from pointcept3m.models.msc.matching import match_points


@MODELS.register_module("RecordingBackbone", force=True)
class RecordingBackbone(nn.Module):
    """A linear layer on each point, which keeps what it was given."""

    def __init__(self, in_channels: int = 6, out_channels: int = 8):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.seen = []

    def forward(self, view):
        self.seen.append(view)
        return self.linear(view["feat"])


SPUNET = dict(
    type="SpUNet-v1m1", in_channels=6, num_classes=0, base_channels=8, channels=(8, 16, 16, 8), layers=(1, 1, 1, 1)
)


def make_model(**arguments):
    arguments = {**dict(mask_grid_size=0.5, matching_max_radius=0.2), **arguments}
    return build_model(
        dict(
            type="MSC-v1m1",
            backbone=dict(type="RecordingBackbone"),
            backbone_in_channels=6,
            backbone_out_channels=8,
            **arguments,
        )
    )


def make_batch(counts=(40, 60), shift=0.0, grid_size=0.1):
    """Two views with as many points a scene, the second a jittered and turned copy of the first."""
    num_points = sum(counts)
    origin = torch.rand(num_points, 3) * 2
    batch = {}
    for number in (1, 2):
        moved = origin + (number - 1) * (shift + 0.01 * torch.randn(num_points, 3))
        coord = moved.flip(1) if number == 2 else moved
        color, normal = torch.rand(num_points, 3), nn.functional.normalize(torch.randn(num_points, 3), dim=1)
        grid = (coord / grid_size).floor().long()
        entries = dict(
            coord=coord,
            origin_coord=moved,
            grid_coord=grid - grid.amin(0),
            color=color,
            normal=normal,
            feat=torch.cat([color, normal], 1),
            offset=torch.tensor(counts).cumsum(0),
        )
        batch.update({f"view{number}_{key}": value for key, value in entries.items()})
    return batch


def two_views(num_scenes=3, points=200):
    offset = torch.arange(1, num_scenes + 1) * points
    first, second = torch.rand(num_scenes * points, 3) * 2 - 1, torch.rand(num_scenes * points, 3) * 2 - 1
    return first, offset, second, offset


def cells_of(coord, offset, size):
    """(scene, x, y, z) of each point, in plain Python."""
    scene = [sum(int(row >= end) for end in offset.tolist()) for row in range(len(coord))]
    return [
        (s, *(math.floor(value / size) for value in point))
        for s, point in zip(scene, coord.double().tolist(), strict=True)
    ]


class TestCrossMasks:
    @pytest.mark.parametrize("rate", [0.1, 0.4, 0.5])
    def test_whole_cells_are_hidden_in_one_view_at_most(self, rate):
        first, offset1, second, offset2 = two_views()
        hidden1, hidden2 = cross_masks(first, offset1, second, offset2, 1.0, rate)
        cells1, cells2 = cells_of(first, offset1, 1.0), cells_of(second, offset2, 1.0)
        masked1 = {cell for cell, hidden in zip(cells1, hidden1.tolist(), strict=True) if hidden}
        masked2 = {cell for cell, hidden in zip(cells2, hidden2.tolist(), strict=True) if hidden}
        assert not masked1 & masked2
        assert all(hidden == (cell in masked1) for cell, hidden in zip(cells1, hidden1.tolist(), strict=True))
        assert all(hidden == (cell in masked2) for cell, hidden in zip(cells2, hidden2.tolist(), strict=True))
        # Every cell of these dense views holds points of both, so the counts can be seen from outside.
        occupied = len(set(cells1) | set(cells2))
        assert set(cells1) == set(cells2)
        assert len(masked1) == len(masked2) == int(occupied * rate)

    def test_half_hides_every_place_once(self):
        first, offset, _, _ = two_views()
        hidden1, hidden2 = cross_masks(first, offset, first, offset, 0.5, 0.5)
        assert (hidden1 ^ hidden2).float().mean() > 0.99  # all but the odd cell
        assert not (hidden1 & hidden2).any()

    def test_nothing_is_hidden_at_rate_0(self):
        assert not torch.cat(cross_masks(*two_views(), 0.5, 0.0)).any()

    def test_scenes_at_the_same_place_are_masked_apart(self):
        coord = torch.rand(100, 3) * 4
        twice, offset = coord.repeat(2, 1), torch.tensor([100, 200])
        hidden, _ = cross_masks(twice, offset, twice, offset, 1.0, 0.5)
        assert not torch.equal(hidden[:100], hidden[100:])

    @pytest.mark.parametrize("rate", [-0.1, 0.51, float("nan")])
    def test_other_rates_are_refused(self, rate):
        with pytest.raises(ValueError, match=r"\[0, 0.5\]"):
            cross_masks(*two_views(), 0.5, rate)


class TestMatchPoints:
    def test_against_every_pair(self):
        first, offset1, second, offset2 = two_views()
        match = match_points(first, offset1, second, offset2, max_k=3, max_radius=0.2, max_pair=10_000)
        distance = torch.cdist(first.double(), second.double())
        same = torch.arange(600)[:, None] // 200 == torch.arange(600) // 200
        distance[~same] = torch.inf
        nearest = distance.argsort(1)[:, :3]
        wanted = (distance.amin(1) < 0.2).nonzero().squeeze(1)
        assert torch.equal(match[:, 0], wanted)
        assert 100 < len(wanted) < 600
        for row, partner in match.tolist():
            assert distance[row, partner] < 0.2
            assert partner in nearest[row].tolist()

    def test_partners_are_drawn_evenly(self):
        """One point with three neighbours in the radius, asked 3000 times."""
        first = torch.zeros(3000, 3)
        second = torch.tensor([[0.1, 0, 0], [0, 0.2, 0], [0, 0, 0.3], [0, 0, 0.9]])
        match = match_points(first, torch.tensor([3000]), second, torch.tensor([4]), max_k=8, max_radius=0.5)
        counts = match[:, 1].bincount(minlength=4)
        assert counts[3] == 0
        assert (counts[:3] - 1000).abs().max() < 120  # 4.6 standard deviations

    def test_no_more_than_max_pair_and_not_the_first_ones_only(self):
        first, offset, _, _ = two_views()
        match = match_points(first, offset, first, offset, max_k=1, max_radius=0.1, max_pair=50)
        assert len(match) == 50
        assert torch.equal(match[:, 0], match[:, 1])
        assert match[:, 0].unique().numel() == 50
        assert match[:, 0].max() > 300

    def test_nothing_near(self):
        first, offset, second, _ = two_views()
        assert match_points(first, offset, second + 100, offset).shape == (0, 2)


class TestLosses:
    def test_contrast_by_hand(self):
        first, second = torch.randn(9, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
        match = torch.tensor([[0, 3], [8, 3], [4, 0], [2, 6]])
        cosine = [
            [float(first[i] @ second[j] / first[i].norm() / second[j].norm()) for j in match[:, 1]] for i in match[:, 0]
        ]
        wanted = (
            -sum(math.log(math.exp(cosine[i][i] / 0.3) / sum(math.exp(c / 0.3) for c in cosine[i])) for i in range(4))
            / 4
        )
        loss, positive, negative = losses.contrastive_loss(first, second, match, 0.3)
        assert float(loss) == pytest.approx(wanted, rel=1e-5)
        assert float(positive) == pytest.approx(sum(cosine[i][i] for i in range(4)) / 4, rel=1e-5)
        others = [cosine[i][j] for i in range(4) for j in range(4) if i != j]
        assert float(negative) == pytest.approx(sum(others) / 12, rel=1e-4)

    def test_gradient_of_the_contrast(self):
        """Against central differences; the loss is float32, so the step is wide."""
        first, second = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
        match = torch.arange(4)[:, None].expand(4, 2)
        losses.contrastive_loss(first, second, match, 0.4)[0].backward()
        for row, column in ((0, 0), (2, 1)):
            with torch.no_grad():
                step = torch.zeros(4, 3)
                step[row, column] = 1e-2
                up, down = (losses.contrastive_loss(first + s * step, second, match, 0.4)[0] for s in (1, -1))
            assert float(first.grad[row, column]) == pytest.approx(float(up - down) / 2e-2, abs=2e-3)

    def test_pairs_that_agree_cost_least(self):
        feat = torch.randn(20, 6)
        own = torch.arange(20)[:, None].expand(20, 2)
        shifted = torch.stack([torch.arange(20), torch.arange(20).roll(1)], 1)
        assert losses.contrastive_loss(feat, feat, own, 0.1)[0] < losses.contrastive_loss(feat, feat, shifted, 0.1)[0]

    @pytest.mark.parametrize("match", [torch.zeros(0, 2, dtype=torch.long), torch.tensor([[0, 1]])])
    def test_without_anything_to_compare_it_is_0(self, match):
        feat = torch.randn(3, 4, requires_grad=True)
        loss, positive, negative = losses.contrastive_loss(feat, feat.detach(), match, 0.4)
        loss.backward()
        assert float(loss.detach()) == float(negative) == 0
        assert torch.equal(feat.grad, torch.zeros(3, 4))
        assert math.isfinite(float(positive))

    def test_color_by_hand(self):
        prediction, color = (
            torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 1.0]]),
            torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 1.0]]),
        )
        assert float(losses.color_loss(prediction, color)) == pytest.approx((0.25 + 0 + 1 + 0 + 1 + 0) / 2)

    def test_normal_by_hand(self):
        normal = torch.tensor([[0.0, 0, 1], [1.0, 0, 0]])
        prediction = torch.tensor([[0.0, 0, 5], [3.0, 4, 0]])  # right; off by the angle whose cosine is 0.6
        assert float(losses.normal_loss(prediction, normal)) == pytest.approx((0 + 0.4) / 2)

    def test_predictions_turn_towards_the_normal(self):
        """Pointcept's release minimises the cosine itself, and its predictions turn away."""
        normal = nn.functional.normalize(torch.randn(50, 3), dim=1)
        start = torch.randn(50, 3)

        def cosine_after(loss):
            prediction = start.clone().requires_grad_()
            for _ in range(200):
                (gradient,) = torch.autograd.grad(loss(prediction), prediction)
                prediction = (prediction - 10 * gradient).detach().requires_grad_()
            return float(nn.functional.cosine_similarity(prediction, normal).mean())

        assert cosine_after(lambda p: losses.normal_loss(p, normal)) > 0.95
        assert cosine_after(lambda p: (nn.functional.normalize(p, dim=1) * normal).sum(1).mean()) < -0.95

    @pytest.mark.parametrize("loss", [losses.color_loss, losses.normal_loss])
    def test_no_hidden_point_costs_nothing(self, loss):
        prediction = torch.zeros(0, 3, requires_grad=True)
        value = loss(prediction, torch.zeros(0, 3))
        value.backward()
        assert float(value.detach()) == 0


class TestModel:
    def test_names_and_numbers_of_parameters(self):
        state = {name: tuple(value.shape) for name, value in make_model().state_dict().items()}
        assert state == {
            "mask_token": (1, 6),
            "backbone.linear.weight": (8, 6),
            "backbone.linear.bias": (8,),
            "color_head.weight": (3, 8),
            "color_head.bias": (3,),
            "normal_head.weight": (3, 8),
            "normal_head.bias": (3,),
        }
        contrast_only = make_model(reconstruct_color=False, reconstruct_normal=False).state_dict()
        assert sorted(contrast_only) == ["backbone.linear.bias", "backbone.linear.weight", "mask_token"]

    def test_the_sum_of_its_parts(self):
        model, batch = make_model(contrast_weight=2.0, reconstruct_weight=3.0, nce_t=0.2), make_batch()
        torch.manual_seed(5)
        output = model(batch)
        torch.manual_seed(5)
        places = [batch[f"view{n}_{key}"] for n in (1, 2) for key in ("origin_coord", "offset")]
        hidden = cross_masks(*places, 0.5, 0.4)
        assert 0 < int(hidden[0].sum()) < 100
        feats, color, normal = [], 0.0, 0.0
        for number in (1, 2):
            shown = batch[f"view{number}_feat"].clone()
            shown[hidden[number - 1]] = model.mask_token.detach()
            feats.append(model.backbone.linear(shown))
            for row in hidden[number - 1].nonzero().squeeze(1).tolist():
                color += float((model.color_head(feats[-1][row]) - batch[f"view{number}_color"][row]).square().sum())
                said = nn.functional.normalize(model.normal_head(feats[-1][row]), dim=0)
                normal += 1 - float(said @ batch[f"view{number}_normal"][row])
        count = int(hidden[0].sum() + hidden[1].sum())
        match = match_points(*places, max_k=8, max_radius=0.2, max_pair=8192)
        contrast = float(losses.contrastive_loss(*feats, match, 0.2)[0])
        assert len(match) > 80
        assert float(output["nce_loss"]) == pytest.approx(contrast, rel=1e-5)
        assert float(output["color_loss"]) == pytest.approx(color / count, rel=1e-4)
        assert float(output["normal_loss"]) == pytest.approx(normal / count, rel=1e-4)
        assert float(output["loss"]) == pytest.approx(2 * contrast + 3 * (color + normal) / count, rel=1e-4)

    def test_hidden_points_show_the_mask_token(self):
        model, batch = make_model(), make_batch()
        with torch.no_grad():
            model.mask_token.fill_(7.0)
        model(batch)
        for number, view in enumerate(model.backbone.seen, 1):
            told = view["feat"] == 7.0
            assert torch.equal(told.any(1), told.all(1))
            assert 10 < int(told.all(1).sum()) < 70
            shown = ~told.all(1)
            assert torch.equal(view["feat"][shown], batch[f"view{number}_feat"][shown])

    def test_everything_learns(self):
        model = make_model()
        model(make_batch())["loss"].backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name

    @pytest.mark.parametrize(
        ("counts", "merged"), [((10,), [10]), ((10, 20), [30]), ((10, 20, 30), [30, 60]), ((5, 5, 5, 5), [10, 20])]
    )
    def test_views_are_mixed_in_pairs(self, counts, merged):
        model = make_model(view1_mix_prob=1.0)
        model(make_batch(counts))
        first, second = model.backbone.seen
        assert first["offset"].tolist() == merged
        assert second["offset"].tolist() == torch.tensor(counts).cumsum(0).tolist()

    def test_pointcontrast_is_the_contrast_alone(self):
        model = make_model(mask_rate=0, reconstruct_color=False, reconstruct_normal=False, nce_t=0.07)
        output = model(make_batch())
        assert set(output) == {"loss", "nce_loss", "pos_sim", "neg_sim"}
        assert torch.equal(output["loss"], output["nce_loss"])
        output["loss"].backward()
        assert torch.equal(model.mask_token.grad, torch.zeros(1, 6))  # unused, yet DDP finds it used

    def test_same_seed_same_losses(self):
        def run(seed):
            torch.manual_seed(0)
            model, batch = (
                build_model(
                    dict(
                        type="MSC-v1m1",
                        backbone=SPUNET,
                        backbone_in_channels=6,
                        backbone_out_channels=8,
                        mask_grid_size=0.5,
                        matching_max_radius=0.2,
                    )
                ),
                make_batch((300, 300)),
            )
            torch.manual_seed(seed)
            return {name: float(value.detach()) for name, value in model(batch).items()}

        assert run(1) == run(1)
        assert run(1) != run(2)

    def test_weights_start_a_segmentor(self):
        pretrained = build_model(
            dict(type="MSC-v1m1", backbone=SPUNET, backbone_in_channels=6, backbone_out_channels=8)
        )
        segmentor = build_model(
            dict(
                type="DefaultSegmentorV2",
                num_classes=4,
                backbone_out_channels=8,
                backbone=SPUNET,
                criteria=[dict(type="CrossEntropyLoss")],
            )
        )
        result = segmentor.load_state_dict(pretrained.state_dict(), strict=False)
        assert sorted(result.missing_keys) == ["seg_head.bias", "seg_head.weight"]
        assert all(key.split(".")[0] in ("mask_token", "color_head", "normal_head") for key in result.unexpected_keys)


class TestDegenerate:
    """Finite losses and gradients where a batch has nothing to teach."""

    def check(self, model, batch):
        output = model(batch)
        output["loss"].backward()
        assert all(math.isfinite(float(value.detach())) for value in output.values()), output
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        return {name: float(value.detach()) for name, value in output.items()}

    def test_nothing_matches(self):
        output = self.check(make_model(), make_batch(shift=50.0))
        assert output["nce_loss"] == output["pos_sim"] == 0
        assert output["color_loss"] > 0

    def test_one_point(self):
        output = self.check(make_model(), make_batch((1,)))
        assert output["loss"] == 0  # one pair has no negative, one cell at rate 0.4 is not hidden

    def test_everything_is_hidden(self):
        """Each view fills one cell of its own, and half of the cells are hidden in each view."""
        found = set()
        for seed in range(8):
            model, batch = (
                make_model(mask_rate=0.5, mask_grid_size=1000.0, matching_max_radius=3000.0),
                make_batch((20,)),
            )
            batch["view2_origin_coord"] = batch["view2_origin_coord"] + 1500.0
            torch.manual_seed(seed)
            output = self.check(model, batch)
            shown = [view["feat"] for view in model.backbone.seen]
            hidden = [bool((feat == model.mask_token).all()) for feat in shown]
            assert hidden in ([True, True], [False, False])  # in its own view, or in the one without points there
            found.add(hidden[0])
            assert (output["color_loss"] > 0) == hidden[0]
            if hidden[0]:  # all features are the same, so the pairs cannot be told apart
                assert output["nce_loss"] == pytest.approx(math.log(20), rel=1e-4)
        assert found == {True, False}

    def test_an_empty_scene_in_the_batch(self):
        batch = make_batch((40, 60))
        for number in (1, 2):
            batch[f"view{number}_offset"] = torch.tensor([0, 40, 100])
        self.check(make_model(), batch)


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (dict(mask_rate=0.6), "mask_rate"),
            (dict(nce_t=0), "nce_t"),
            (dict(matching_max_radius=-1.0), "matching_max_radius"),
        ],
    )
    def test_arguments(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            make_model(**arguments)

    @pytest.mark.parametrize("key", ["view1_origin_coord", "view2_feat", "view1_color", "view2_normal"])
    def test_missing_entries(self, key):
        batch = make_batch()
        batch[key.replace("view", "vew")] = batch.pop(key)
        with pytest.raises(KeyError, match=f"{key}.*did you mean"):
            make_model()(batch)

    def test_origin_coord_that_was_not_sampled(self):
        batch = make_batch()
        batch["view2_origin_coord"] = torch.rand(500, 3)
        with pytest.raises(ValueError, match="view2_origin_coord has 500 rows.*index_valid_keys"):
            make_model()(batch)

    def test_features_of_another_width(self):
        batch = make_batch()
        batch["view1_feat"] = batch["view1_feat"][:, :3]
        with pytest.raises(ValueError, match="3 columns, backbone_in_channels is 6"):
            make_model()(batch)

    def test_coordinates_that_are_not_finite(self):
        batch = make_batch()
        batch["view1_origin_coord"][3, 1] = float("nan")
        with pytest.raises(ValueError, match="finite"):
            make_model()(batch)

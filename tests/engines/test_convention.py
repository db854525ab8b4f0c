"""What weights were trained on is read off their config, and another input is refused: no silent loss of accuracy."""

import logging

import numpy as np
import pytest
import torch
from test_bad_input import config, write_scene

from pointcept3m.engines.checkpoint import load_weights, saved_config
from pointcept3m.engines.convention import InputConvention, check_input, check_sections, input_convention
from pointcept3m.engines.testers import TESTERS
from pointcept3m.utils.config import Config


@pytest.fixture
def scenes(tmp_path):
    for number in range(2):
        write_scene(tmp_path / "data", "train", f"room{number}", seed=number)
    write_scene(tmp_path / "data", "val", "room9", seed=9)
    return tmp_path / "data"


def chain(*entries, **collect):
    return [*entries, dict(type="Collect", keys=("coord",), **collect)]


TENSOR, NORMALIZE = dict(type="ToTensor"), dict(type="NormalizeColor")
GRID = dict(type="GridSample", grid_size=0.02)
FEATURES = dict(feat_keys=("color", "normal"))


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        # Pointcept: ToTensor late, so that colours are divided by 255. GaussianCross: ToTensor first, so -1..1.
        (dict(transform=chain(GRID, NORMALIZE, TENSOR, **FEATURES)), ("zero_one", ("color", "normal"), 0.02)),
        (dict(transform=chain(TENSOR, GRID, NORMALIZE, **FEATURES)), ("minus_one_one", ("color", "normal"), 0.02)),
        (dict(transform=chain(TENSOR, dict(**NORMALIZE, mode="zero_one"), **FEATURES)), ("zero_one", ("color", "normal"), None)),
        (dict(transform=chain(dict(**NORMALIZE, mode="minus_one_one"), TENSOR, feat_keys="color")), ("minus_one_one", ("color",), None)),
        (dict(transform=chain(GRID, TENSOR, **FEATURES)), ("raw", ("color", "normal"), 0.02)),
        (dict(transform=chain(GRID, NORMALIZE, TENSOR, feat_keys=["coord", "normal"])), (None, ("coord", "normal"), 0.02)),
        # Tests: the grid stands in test_cfg, the features in its post_transform, which begins where transform ended.
        (dict(transform=[NORMALIZE], test_cfg=dict(voxelize=GRID, post_transform=chain(TENSOR, **FEATURES))), ("zero_one", ("color", "normal"), 0.02)),
        (dict(transform=[TENSOR], test_cfg=dict(voxelize=GRID, post_transform=chain(NORMALIZE, **FEATURES))), ("minus_one_one", ("color", "normal"), 0.02)),
        # Contrastive views, whose chain is inside of another.
        (
            dict(
                transform=chain(
                    dict(type="ContrastiveViewsGenerator", view_trans_cfg=[GRID, NORMALIZE]), TENSOR, view1_feat_keys=("view1_color",)
                )
            ),
            ("zero_one", ("color",), 0.02),
        ),
        (
            dict(transform=chain(TENSOR, dict(type="ContrastiveViewsGenerator", view_trans_cfg=[NORMALIZE]), view2_feat_keys="view2_color")),
            ("minus_one_one", ("color",), None),
        ),
        (dict(view1_transform=chain(NORMALIZE, TENSOR, feat_keys=["color"])), ("zero_one", ("color",), None)),
    ],
)  # fmt: skip
def test_what_a_config_feeds(section, wanted):
    cfg = dict(data=dict(num_classes=7, train=section))
    assert input_convention(cfg) == InputConvention(*wanted, 7)
    assert input_convention(Config(cfg)) == InputConvention(*wanted, 7)


def test_a_config_that_says_nothing():
    assert input_convention({}) == InputConvention() and str(InputConvention()) == "nothing is said about it"
    assert input_convention(dict(data=dict(train=dict(type="ToyScenes"), num_classes=3))) == InputConvention(num_classes=3)


def test_training_and_testing_must_feed_the_same(scenes, train, tmp_path):
    cfg = config(scenes, tmp_path / "run")
    assert check_sections(cfg) is None
    cfg["data"]["val"]["transform"] = [dict(type="ToTensor"), *cfg["data"]["val"]["transform"]]
    with pytest.raises(ValueError, match=r"data.train feeds colours in 0..1 .*, data.val in -1..1 .*mode="):
        train(cfg)
    cfg["data"]["val"]["transform"] = [*cfg["data"]["train"]["transform"][:-1], dict(type="Collect", keys=("coord",), feat_keys=("coord",))]
    with pytest.raises(ValueError, match="data.train feeds color \\+ normal, data.val coord"):
        train(cfg)


def test_both_dialects_feed_what_they_mean(scenes, train, tmp_path):
    """The numbers that reach the network, and what the dumped config and the log say of them."""
    early = config(scenes, tmp_path / "early")
    for section in ("train", "val"):
        transform = early["data"][section]["transform"]
        early["data"][section]["transform"] = [transform[2], *transform[:2], transform[3]]  # ToTensor first
    late, first = train(config(scenes, tmp_path / "late")), train(early)
    for trainer, mode, low in ((late, "zero_one", 0.0), (first, "minus_one_one", -1.0)):
        color = trainer.comm_info["input_dict"]["feat"][:, :3]
        assert color.min() < low + 0.05 and color.max() > 0.95 and color.min() >= low
        folder = trainer.save_path
        assert f"mode='{mode}'" in (folder / "config.py").read_text().replace('"', "'")
        assert input_convention(Config.fromfile(folder / "config.py")).color == mode
        assert input_convention(saved_config(folder / "model/model_last.pth")).color == mode
        assert input_convention(saved_config(folder / "model/model_last.safetensors")).color == mode
        assert ("colours in 0..1" if low == 0 else "colours in -1..1") in (folder / "train.log").read_text()
    torch.testing.assert_close(
        first.comm_info["input_dict"]["feat"][:, :3], late.comm_info["input_dict"]["feat"][:, :3] * 2 - 1, atol=1e-6, rtol=0
    )


def other_range(cfg):
    """The same config with colours in -1..1."""
    for section in ("train", "val"):
        cfg["data"][section]["transform"][1] = dict(type="NormalizeColor", mode="minus_one_one")
    return cfg


@pytest.fixture
def weight(scenes, train, tmp_path):
    """Weights that know colours in 0..1, and say so."""
    train(config(scenes, tmp_path / "first"))
    return tmp_path / "first/model/model_last.pth"


def test_weights_of_another_range_are_refused(scenes, train, tmp_path, weight):
    for path in (weight, weight.with_suffix(".safetensors")):
        cfg = other_range(config(scenes, tmp_path / "second", weight=str(path)))
        with pytest.raises(ValueError, match=r"were trained on colours in 0..1 .* this config feeds -1..1") as caught:
            train(cfg)
        assert "NormalizeColor', mode='zero_one'" in str(caught.value) and "check_input=False" in str(caught.value)
        assert not (tmp_path / "second/model").exists()
    cfg["hooks"][0] = dict(type="CheckpointLoader", check_input=False)
    train(cfg)
    assert "check_input=False: loaded all the same" in (tmp_path / "second/train.log").read_text()
    train(config(scenes, tmp_path / "third", weight=str(weight)))
    assert "were trained on features color + normal, colours in 0..1" in (tmp_path / "third/train.log").read_text()


def test_a_resumed_run_and_a_test_are_refused_too(scenes, train, tmp_path, weight):
    with pytest.raises(ValueError, match="were trained on colours in 0..1"):
        train(other_range(config(scenes, tmp_path / "first", resume=True, epoch=2, eval_epoch=2)))
    cfg = other_range(config(scenes, tmp_path / "test", weight=str(weight)))
    cfg["data"]["test"] = dict(
        **{**cfg["data"]["val"], "transform": [dict(type="NormalizeColor", mode="minus_one_one")]},
        test_mode=True,
        test_cfg=dict(
            voxelize=dict(type="GridSample", grid_size=0.05, mode="test", return_grid_coord=True),
            post_transform=[dict(type="ToTensor"), dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=("color", "normal"))],
        ),
    )
    with pytest.raises(ValueError, match="were trained on colours in 0..1"):
        TESTERS.build(dict(type="SemSegTester"), cfg=cfg)
    cfg["data"]["test"]["transform"] = [dict(type="NormalizeColor", mode="zero_one")]
    scores, _ = TESTERS.build(dict(type="SemSegTester"), cfg=cfg).run()
    assert np.isfinite(scores["mIoU"])


def test_other_features_with_as_many_channels_are_refused(scenes, train, tmp_path, weight):
    cfg = config(scenes, tmp_path / "second", weight=str(weight))
    for section in ("train", "val"):
        cfg["data"][section]["transform"][-1] = dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("coord", "color"))
    with pytest.raises(ValueError, match=r"were trained on color \+ normal, this config feeds coord \+ color"):
        train(cfg)


def test_another_grid_is_said(scenes, train, tmp_path, weight):
    cfg = config(scenes, tmp_path / "second", weight=str(weight))
    for section in ("train", "val"):
        cfg["data"][section]["transform"][0] = dict(type="GridSample", grid_size=0.1, return_grid_coord=True)
    train(cfg)
    assert "were trained on a grid of 0.05 m, this run has 0.1 m" in (tmp_path / "second/train.log").read_text()


def test_weights_that_say_nothing(scenes, train, tmp_path, weight, caplog):
    """Pointcept's own files: a warning names both meanings, until the config says which it was."""
    foreign = tmp_path / "pointcept.pth"
    torch.save({"epoch": 1, "state_dict": torch.load(weight, weights_only=True)["state_dict"]}, foreign)
    cfg = config(scenes, tmp_path / "second", weight=str(foreign))
    assert train(cfg).global_step == 1
    log = (tmp_path / "second/train.log").read_text()
    assert "do not say what range colours had" in log and "GaussianCross, Pointcept before 1.6.0" in log
    assert "weight_color='zero_one' or 'minus_one_one'" in log
    cfg["hooks"][0] = dict(type="CheckpointLoader", weight_color="zero_one")
    train(cfg)
    assert "do not say" not in (tmp_path / "second/train.log").read_text()
    cfg["hooks"][0] = dict(type="CheckpointLoader", weight_color="minus_one_one")
    with pytest.raises(ValueError, match="were trained on colours in -1..1 .*, this config feeds 0..1"):
        train(cfg)
    cfg["hooks"][0] = dict(type="CheckpointLoader", weight_color="255")
    with pytest.raises(ValueError, match="weight_color must be one of zero_one, minus_one_one, raw"):
        train(cfg)


def test_a_config_that_cannot_be_read_is_said(tmp_path, caplog):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "config": "hooks = [<class 'x'>]"}, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        assert check_input(tmp_path / "a.pth", {}, logger=logging.getLogger("test")) is None
    assert "not the text of a config" in caplog.text


def test_heads_of_another_task_may_be_missing_the_backbone_must_fit(tmp_path):
    """CheckpointLoader's default, which Pointcept's fine-tuning configs rely on."""
    from torch import nn

    def model(*heads, width=3):
        return nn.ModuleDict({"backbone": nn.ModuleDict({"enc": nn.Linear(3, width)}), **{name: nn.Linear(width, 2) for name in heads}})

    def file(net, drop=()):
        torch.save({k: v for k, v in net.state_dict().items() if k not in drop}, tmp_path / "w.pth")
        return tmp_path / "w.pth"

    pretrained = model("color_head", "mask")
    target = model("seg_head")
    load_weights(target, file(pretrained), allow_partial=None)
    assert torch.equal(target["backbone"]["enc"].weight, pretrained["backbone"]["enc"].weight)
    with pytest.raises(ValueError, match="color_head"):
        load_weights(target, file(pretrained))
    # a head that is there in part is damaged, not another task's
    with pytest.raises(ValueError, match="missing .*seg_head.bias"):
        load_weights(target, file(model("seg_head"), drop=["seg_head.bias"]), allow_partial=None)
    with pytest.raises(ValueError, match="missing .*backbone.enc.bias"):
        load_weights(target, file(pretrained, drop=["backbone.enc.bias"]), allow_partial=None)
    with pytest.raises(ValueError, match="of another shape"):
        load_weights(target, file(model("color_head", width=4)), allow_partial=None)
    # without a backbone nothing tells heads from the rest
    with pytest.raises(ValueError, match="missing"):
        load_weights(nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}), file(nn.ModuleDict({"a": nn.Linear(1, 1)})), allow_partial=None)
    # a classifier inside the backbone is a head as well
    classifier = nn.ModuleDict({"backbone": nn.ModuleDict({"enc": nn.Linear(3, 3), "final": nn.Linear(3, 5)})})
    load_weights(classifier, file(pretrained), allow_partial=None)
    # Pointcept's strict=False: missing and surplus pass, another shape does not, as in torch
    load_weights(target, file(pretrained, drop=["backbone.enc.bias"]), strict=False)
    with pytest.raises(ValueError, match="of another shape"):
        load_weights(target, file(model(width=4)), strict=False)

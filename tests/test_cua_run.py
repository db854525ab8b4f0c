"""configs/cua_o3d/rooms.py from frames to scores: features are fused, distilled, asked for by words and probed."""

import json
import sys

import pytest
import torch

from pointcept3m.datasets.rooms import write_rooms
from pointcept3m.engines import TRAINERS
from pointcept3m.engines.defaults import default_config_parser
from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools" / "preprocess"))
import fuse_features as tool  # noqa: E402

ENCODER = dict(type="PocketTextEncoder")  # needs no extra


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    root = tmp_path_factory.mktemp("cua") / "rooms"
    for split in ("train", "val"):
        write_rooms(root, split, 2, num_frames=3, workers=0, spacing=0.05)
    assert tool.main(["--data-root", str(root), "--teacher", "text", "geometric", "diffusion"]) == 0
    return root


def run(config, rooms, folder, **settings):
    """Trains and returns (metrics, weights)."""
    options = {"teachers": ("text", "geometric", "diffusion"), "data_root": str(rooms), **settings.pop("options", {})}
    cfg = default_config_parser(REPOSITORY / "configs/cua_o3d" / config, options)
    cfg.update(text_encoder=ENCODER, save_path=str(folder), num_worker=0, epoch=2, eval_epoch=2, seed=3, **settings)
    TRAINERS.build(dict(type="DefaultTrainer"), cfg=cfg).train()
    weights = torch.load(folder / "model/model_last.pth", weights_only=True)["state_dict"]
    return json.loads((folder / "metrics.json").read_text())["metrics"], weights


@pytest.mark.long
def test_from_frames_to_scores_and_probe(rooms, tmp_path):
    scores, weights = run("rooms.py", rooms, tmp_path / "run")
    for kind in ("3d", "2d", "2d3d_max", "2d3d_mean"):
        assert 0 < scores[f"test_{kind}_mIoU"] < 1
    # A teacher that was trained on such rooms names more than a network after four steps.
    assert scores["test_2d_mIoU"] > 0.2 > scores["test_3d_mIoU"]
    assert {"train_text_loss", "train_geometric_loss", "train_diffusion_loss"} <= scores.keys()
    curves = (tmp_path / "run/metrics.csv").read_text()
    assert all(f"sigma_{name}" in curves for name in ("text", "geometric", "diffusion"))

    probe, probed = run("rooms-probe.py", rooms, tmp_path / "probe", weight=str(tmp_path / "run/model/model_last.pth"))
    assert 0 < probe["mIoU"] < 1
    frozen = [name for name in probed if name.startswith(("backbone.", "heads."))]
    assert len(frozen) > 100 and all(torch.equal(probed[name], weights[name]) for name in frozen)


@pytest.mark.long
def test_a_resumed_distillation_is_the_same(rooms, tmp_path):
    class Stop(Exception):
        pass

    from pointcept3m.utils.hook import HookBase

    whole, weights = run("rooms.py", rooms, tmp_path / "whole", evaluate=False)
    options = {"teachers": ("text", "geometric", "diffusion"), "data_root": str(rooms)}
    cfg = default_config_parser(REPOSITORY / "configs/cua_o3d/rooms.py", options)
    cfg.update(text_encoder=ENCODER, save_path=str(tmp_path / "parts"), num_worker=0, epoch=2, eval_epoch=2, seed=3, evaluate=False)
    trainer = TRAINERS.build(dict(type="DefaultTrainer"), cfg=cfg)

    class Stopper(HookBase):
        def before_epoch(self):
            if self.trainer.epoch == 1:
                raise Stop

    stopper = Stopper()
    stopper.trainer = trainer
    trainer.hooks.append(stopper)
    with pytest.raises(Stop):
        trainer.train()
    _, resumed = run("rooms.py", rooms, tmp_path / "parts", evaluate=False, resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())

"""The test of a pretraining: it measures what was rendered, with exactly the weights given."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from pointcept3m.datasets.builder import DATASETS
from pointcept3m.engines.checkpoint import save_weights
from pointcept3m.engines.testers import TESTERS
from pointcept3m.models.builder import MODELS

M, H, W = 2, 6, 8


@DATASETS.register_module(force=True)
class ToyViews(Dataset):
    """Two views of grey 0.5 at two metres."""

    def __init__(self, size: int = 3, split: str = "val"):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        coord = torch.rand(5, 3)
        return dict(coord=coord, name=f"room/{index}", rgb=torch.full((M, H, W, 3), 0.5), depth=torch.full((M, H, W), 2.0))


@MODELS.register_module(force=True)
class ToyRenderer(nn.Module):
    """Paints every pixel in its one weight, a metre too far away."""

    def __init__(self):
        super().__init__()
        self.gray = nn.Parameter(torch.tensor(0.0))
        self.teacher = None

    def teach(self, batch):
        raise AssertionError("there is no teacher")

    align = teach

    def render(self, batch):
        shape = batch["rgb"].shape
        for _ in range(shape[0]):
            yield SimpleNamespace(
                rgb=self.gray.expand(*shape[1:]), depth=torch.full(shape[1:4], 3.0), alpha=torch.ones(shape[1:4]), feature=None
            )


def config(tmp_path, toy, **changes) -> dict:
    model = ToyRenderer()
    with torch.no_grad():
        model.gray.fill_(0.6)
    save_weights(model, tmp_path / "weight.safetensors")
    data = dict(test=dict(type="ToyViews", split="val"))
    cfg = toy.toy_config(tmp_path / "run", weight=str(tmp_path / "weight.safetensors"), model=dict(type="ToyRenderer"), data=data)
    return {**cfg, "hooks": [], **changes}


def test_scores_pictures_and_report(tmp_path, toy):
    """0.6 for 0.5 is a PSNR of 20 dB, 3 m for 2 m an error of a metre: the weights given are those tested."""
    cfg = config(tmp_path, toy, batch_size_test=2)
    tester = TESTERS.build(dict(type="RenderTester", num_pictures=2, verbose=True), cfg=cfg)
    scores, _ = tester.run()
    assert scores["psnr"] == pytest.approx(20, abs=1e-3) and scores["depth_mae"] == pytest.approx(1) and scores["coverage"] == 1
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written["metrics"] == scores
    assert (written["task"], written["dataset"], written["split"]) == ("pretrain", "ToyViews", "val")
    assert sorted(path.name for path in (tmp_path / "run/pictures").iterdir()) == ["room_0_last.png", "room_1_last.png"]
    assert "20.00 dB" in (tmp_path / "run/report.html").read_text() and (tmp_path / "run/run.json").is_file()
    assert (tmp_path / "run/test.log").read_text().count("room_") == 3


def test_at_the_end_of_a_training(tmp_path, toy):
    """With the model given: no files but pictures, under names that the evaluation does not use."""
    cfg = config(tmp_path, toy)
    model = ToyRenderer()
    scores, _ = TESTERS.build(dict(type="RenderTester", num_pictures=1), cfg=cfg, model=model).test()
    assert scores["psnr"] == pytest.approx(6.0206, abs=1e-3)  # 0 for 0.5
    assert [str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.*")] == ["pictures/room_0_test.png"]


def test_errors(tmp_path, toy):
    cfg = config(tmp_path, toy)
    with pytest.raises(KeyError, match="data.test is missing"):
        TESTERS.build(dict(type="RenderTester"), cfg={**cfg, "data": dict(val=dict(type="ToyViews"))})
    partial = [dict(type="CheckpointLoader", allow_partial=True)]
    surplus = ToyRenderer()
    surplus.more = nn.Linear(2, 2)
    save_weights(surplus, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"unexpected \(in the file, not in the model\): more.bias, more.weight"):
        TESTERS.build(dict(type="RenderTester"), cfg={**cfg, "hooks": partial, "weight": str(tmp_path / "other.safetensors")})
    with pytest.raises(TypeError, match="Linear has no render"):
        TESTERS.build(dict(type="RenderTester"), cfg=cfg, model=nn.Linear(2, 2)).test()
    with pytest.raises(ValueError, match="views_per_picture"):
        TESTERS.build(dict(type="RenderTester", views_per_picture=0), cfg=cfg)

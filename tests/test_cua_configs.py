"""Configs of CUA-O3D: the rows of its tables differ in what the paper varies, and the models have the release's size."""

from pathlib import Path

import numpy as np
import pytest

from pointcept3m.datasets import build_dataset
from pointcept3m.engines.defaults import fill_registries, with_defaults
from pointcept3m.models.builder import build_model
from pointcept3m.utils.config import Config

CONFIGS = Path(__file__).resolve().parents[1] / "configs/cua_o3d"
SCALAR = dict(kind="scalar", regulariser="log1p")
PAPER = dict(lseg=("cosine", False), dinov2=("l1", False), sd=("cosine", False))
# row: the heads with loss and de-mean, and the uncertainty
ROWS = {
    "scannet": ({**PAPER, "sd": ("cosine", True)}, SCALAR),
    "scannet-t6-lseg": ({"lseg": ("cosine", False)}, None),
    "scannet-t6-lseg_dinov2": ({key: PAPER[key] for key in ("lseg", "dinov2")}, None),
    "scannet-t6-lseg_sd": ({key: PAPER[key] for key in ("lseg", "sd")}, None),
    "scannet-t6-all": (PAPER, None),
    "scannet-t6-unc": (PAPER, SCALAR),
    "scannet-t6-autow": (PAPER, dict(kind="auto_weight")),
    "scannet-t7-l1": ({"lseg": ("l1", False)}, None),
    "scannet-t7-l2": ({"lseg": ("l2", False)}, None),
    "scannet-t8-cosine": ({**PAPER, "dinov2": ("cosine", False)}, None),
    "scannet-t8-l2": ({**PAPER, "dinov2": ("l2", False)}, None),
    "scannet-t9-radio": ({**PAPER, "radio": ("cosine", False)}, None),
    "scannet-t9-radio_unc": ({**PAPER, "radio": ("cosine", False)}, SCALAR),
    "scannet-t11-openseg": ({"openseg": ("cosine", False)}, None),
    "scannet-t11-lseg_openseg": ({"lseg": ("cosine", False), "openseg": ("cosine", False)}, None),
    "scannet-release": (
        {"lseg": ("cosine", False), "dinov2": ("cosine", False), "sd": ("cosine", True)},
        dict(kind="scalar", regulariser="log1p_square"),
    ),
}


def config_of(name):
    fill_registries()
    return with_defaults(Config.fromfile(CONFIGS / f"{name}.py"))


@pytest.mark.parametrize(("name", "row"), ROWS.items())
def test_a_row_of_the_tables(name, row):
    cfg = config_of(name)
    heads = {key: (head["loss"], head["demean"]) for key, head in cfg.model.heads.items()}
    assert (heads, cfg.model.get("uncertainty")) == row
    assert tuple(cfg.data.train.feature_teachers) == tuple(heads)
    collected = cfg.data.train.transform[-1]["keys"]
    assert {f"target_{key}" for key in heads} == {key for key in collected if key.startswith("target_") and key != "target_index"}
    assert cfg.model.text_head == next(iter(heads))


@pytest.mark.parametrize(("name", "count"), [("scannet-t6-lseg", 15_540_384), ("scannet-t6-all", 15_945_888)])
def test_as_many_parameters_as_the_release(name, count):
    assert sum(parameter.numel() for parameter in build_model(config_of(name).model).parameters()) == count


@pytest.mark.parametrize(("name", "labels"), [("scannet-t5-concat", "segment20"), ("scannet-t10-concat", "segment20"), ("rooms-probe", "segment")])
def test_probes_are_tested_on_every_point(name, labels, tmp_path):
    """tools/test.py makes scores of a probe's weights: fragments of each view that hold every point, with the backbone's input."""
    cfg = config_of(name)
    folder = tmp_path / cfg.data.test.split / "scene0000_00"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = dict(coord=rng.random((300, 3)), color=rng.integers(0, 256, (300, 3)).astype(np.uint8), normal=np.tile([0.0, 0, 1], (300, 1)))
    arrays[labels] = rng.integers(0, cfg.data.num_classes, 300)
    for key, value in arrays.items():
        np.save(folder / f"{key}.npy", value.astype(np.float32) if value.dtype == np.float64 else value)
    sample = build_dataset({**cfg.data.test, "data_root": tmp_path})[0]
    fragments, views = sample["fragment_list"], len(cfg.data.test.test_cfg.aug_transform)
    assert cfg.test.type == "SemSegTester" and len(sample["segment"]) == 300
    held = np.concatenate([np.unique(fragment["index"]) for fragment in fragments])
    assert (np.bincount(held, minlength=300) >= views).all()
    assert {fragment["feat"].shape[1] for fragment in fragments} == {cfg.model.backbone.in_channels}

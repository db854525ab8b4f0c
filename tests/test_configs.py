"""Our configs: each builds its model, and the backbone of a pretraining is the one that its downstream recipes load."""

from pathlib import Path

import pytest

from pointcept3m.engines.defaults import fill_registries, with_defaults
from pointcept3m.models.builder import build_model
from pointcept3m.utils.config import Config
from pointcept3m.utils.optimizer import build_optimizer
from pointcept3m.utils.scheduler import build_scheduler

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("[!_]*/*.py"))
# a downstream recipe, and the pretraining whose weights it starts from
STARTS = {
    "rooms/semseg-spunet-v1m1-0-base.py": "gaussiancross/rooms.py",
    "rooms/semseg-spunet-v1m1-1-lin.py": "gaussiancross/rooms.py",
    "rooms/insseg-pointgroup-v1m1-0-spunet-base.py": "gaussiancross/rooms.py",
    "rooms/semseg-pt-v3m1-0-base.py": "gaussiancross/rooms_ptv3.py",
    "rooms/semseg-minkunet14a-0-base.py": "gaussiancross/rooms_minkunet.py",
    "rooms/pretrain-msc-v1m1-0-spunet-base.py": "gaussiancross/rooms.py",
    "rooms/pretrain-msc-v1m1-1-spunet-pointcontrast.py": "gaussiancross/rooms.py",
    "scannet/semseg-pt-v3m1-0-base.py": "gaussiancross/scannet_ptv3.py",
    "scannet/semseg-spunet-v1m1-1-lin.py": "gaussiancross/scannet.py",
    "scannet/semseg-spunet-v1m1-4-ft.py": "gaussiancross/scannet.py",
    "scannet/insseg-pointgroup-v1m2-0-spunet-base.py": "gaussiancross/scannet.py",
    "scannet200/semseg-spunet-v1m1-4-ft.py": "gaussiancross/scannet.py",
    "s3dis/semseg-spunet-v1m1-4-ft.py": "gaussiancross/scannet.py",
}


def config_of(name: str) -> Config:
    fill_registries()
    return with_defaults(Config.fromfile(CONFIGS / name))


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("gaussiancross")])
def test_model_optimizer_and_schedule_are_built(name):
    cfg = config_of(name)
    model = build_model(cfg.model)
    optimizer = build_optimizer(cfg.optimizer, model, cfg.param_dicts)
    build_scheduler(cfg.scheduler, optimizer, 200)
    number = cfg.data.get("num_classes")
    assert "names" not in cfg.data or len(cfg.data.names) == number
    assert sum(p.requires_grad for p in model.parameters()) > 0


def shape(backbone: dict) -> dict:
    """What decides the backbone's tensors, without its own classifier."""
    return {key: value for key, value in backbone.items() if key not in ("num_classes", "drop_path")}


@pytest.mark.parametrize(("recipe", "pretraining"), STARTS.items())
def test_a_pretraining_fits_its_recipe(recipe, pretraining):
    there, here = config_of(pretraining).model, config_of(recipe).model
    assert shape(here.backbone) == shape(there.backbone)
    assert here.get("backbone_out_channels", there.backbone_out_channels) == there.backbone_out_channels


def test_every_file_is_looked_at():
    assert len(FILES) > 30 and all(name in FILES for pair in STARTS.items() for name in pair)

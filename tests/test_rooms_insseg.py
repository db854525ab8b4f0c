"""The rooms config of instance segmentation: from a pretraining's backbone to scores and files."""

import json

import pytest
import torch

from pointcept3m.datasets.rooms import write_rooms
from pointcept3m.engines import TRAINERS
from pointcept3m.engines.checkpoint import save_weights
from pointcept3m.engines.defaults import default_config_parser
from pointcept3m.models import build_model
from tests.conftest import REPOSITORY


@pytest.mark.long
def test_it_starts_from_a_pretraining_and_leaves_predictions(tmp_path):
    for split in ("train", "val"):
        write_rooms(tmp_path / "rooms", split, 2, num_frames=2, workers=0)
    pretraining = build_model(default_config_parser(REPOSITORY / "configs/gaussiancross/rooms.py").model)
    save_weights(pretraining, tmp_path / "pretrained.safetensors")
    cfg = default_config_parser(REPOSITORY / "configs/rooms/insseg-pointgroup-v1m1-0-spunet-base.py")
    for part in ("train", "val", "test"):
        cfg.data[part].data_root = str(tmp_path / "rooms")
    cfg.update(save_path=str(tmp_path / "run"), weight=str(tmp_path / "pretrained.safetensors"), num_worker=0)
    cfg.update(epoch=2, eval_epoch=1, batch_size_val=2)
    trainer = TRAINERS.build(dict(type="DefaultTrainer"), cfg=cfg)
    loader = next(hook for hook in trainer.hooks if type(hook).__name__ == "CheckpointLoader")
    loader.before_train()
    state, wanted = trainer.model.backbone.state_dict(), pretraining.backbone.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in state.items())
    trainer.train()
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    # Batches of two while training, of one in the last test; class_names without instances are not listed.
    assert found["metrics"]["test_AP25"] == found["metrics"]["AP25"] is not None
    assert len(found["per_class"]) == 17 and not {"wall", "floor"} & set(found["per_class"])
    assert len(list((tmp_path / "run/result/instances").glob("room*.txt"))) == 2

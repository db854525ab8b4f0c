"""docs/add_a_backbone.md is run as a reader would: its file is written, its config line is used, the model trains."""

import importlib
import re
import sys

import pytest
import torch

from pointcept3m.models import build_model
from pointcept3m.utils.config import Config
from tests.conftest import REPOSITORY
from tests.models.test_gaussiancross import make_batch, tiny_config

PAGE = (REPOSITORY / "docs/add_a_backbone.md").read_text()


@pytest.fixture
def backbone_file(tmp_path, monkeypatch):
    """The page's first Python block as a module that can be imported."""
    (tmp_path / "voxel_mlp_from_the_page.py").write_text(re.findall(r"```python\n(.*?)```", PAGE, re.S)[0])
    monkeypatch.syspath_prepend(tmp_path)
    yield "voxel_mlp_from_the_page"
    sys.modules.pop("voxel_mlp_from_the_page", None)


def test_the_page_adds_a_backbone(backbone_file, tmp_path):
    importlib.import_module(backbone_file)
    config_line = re.findall(r"```python\n(.*?)```", PAGE, re.S)[1]
    base = tmp_path / "base.py"
    base.write_text(f"model = {tiny_config(backbone_out_channels=32)!r}\n")
    leaf = tmp_path / "leaf.py"
    leaf.write_text(f'_base_ = ["base.py"]\n{config_line}')
    model = build_model(Config.fromfile(str(leaf)).model)
    assert type(model.backbone).__name__ == "VoxelMLP"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch, values = make_batch(), []
    for _ in range(15):
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]

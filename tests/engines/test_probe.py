"""The linear probe: it finds what is linear in the features, and says which labels it cannot use."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from pointcept3m.datasets.builder import DATASETS
from pointcept3m.engines.hooks.probe import LinearProbe
from pointcept3m.engines.probe import linear_probe


class Features(nn.Module):
    """A backbone that gives the features it gets."""

    def forward(self, batch):
        return batch["feat"]


def batch(segment: torch.Tensor) -> dict:
    """Points whose feature is their class, in one-hot form, with noise."""
    generator = torch.Generator().manual_seed(0)
    feat = nn.functional.one_hot(segment.clamp(0), 5).float() + 0.1 * torch.randn(len(segment), 5, generator=generator)
    return {"feat": feat, "segment": segment}


GOOD = torch.arange(60) % 3


def probe(train: torch.Tensor, val: torch.Tensor) -> dict:
    return linear_probe(Features(), [batch(train)], [batch(val)], 3, torch.device("cpu"), steps=60, names=("Rooms (split train)", "Rooms (split val)"))


def test_classes_that_are_linear_in_the_features_are_found():
    assert probe(torch.cat([GOOD, torch.full((9,), -1)]), GOOD)["mIoU"] == 1


def test_the_hook_says_what_it_is_about_to_do(caplog):
    """Features of a large split take minutes, in which nothing else is written."""

    @DATASETS.register_module(force=True)
    class ProbeScenes(Dataset):
        def __init__(self, size: int):
            self.size = size

        def __len__(self) -> int:
            return self.size

        def __getitem__(self, index: int) -> dict:
            return batch(torch.arange(30) % 3)

    hook = LinearProbe(dict(type="ProbeScenes", size=2), dict(type="ProbeScenes", size=1), ["a", "b", "c"], steps=20)
    logger = logging.getLogger("test_probe")
    model = SimpleNamespace(backbone=Features())
    hook.trainer = SimpleNamespace(bare_model=model, device=torch.device("cpu"), seed=0, logger=logger)
    with caplog.at_level(logging.INFO, logger=logger.name):
        hook.probe()
    lines = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert lines[0].startswith("linear probe: features of 2 scenes of ProbeScenes (split train) and 1 scenes of ProbeScenes (split val), then 20 steps")
    assert lines[1].startswith("linear probe: mIoU")


def test_labels_that_cannot_be_used():
    unlabelled, beyond = torch.full((60,), -1), torch.arange(60) % 4
    with pytest.raises(ValueError, match=r"no point of Rooms \(split train\) is labelled"):
        probe(unlabelled, GOOD)
    with pytest.raises(ValueError, match=r"no point of Rooms \(split val\) is labelled"):
        probe(GOOD, unlabelled)
    with pytest.raises(ValueError, match=r"Rooms \(split train\) has class 3, but 3 classes are named, 0..2"):
        probe(beyond, GOOD)
    with pytest.raises(ValueError, match=r"Rooms \(split val\) has class 3"):
        probe(GOOD, beyond)
    with pytest.raises(ValueError, match="the training data is empty"):
        linear_probe(Features(), [], [batch(GOOD)], 3, torch.device("cpu"))

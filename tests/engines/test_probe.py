"""The linear probe: it finds what is linear in the features, and says which labels it cannot use."""

import pytest
import torch
from torch import nn

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

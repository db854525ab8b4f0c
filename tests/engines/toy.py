"""A dataset, a backbone and a hook so small that a training takes a second; also imported by configs in the tests."""

import os
import signal
import time

import torch
from torch import nn
from torch.utils.data import Dataset

from pointcept3m.datasets.builder import DATASETS
from pointcept3m.engines.hooks.builder import HOOKS
from pointcept3m.models.builder import MODELS
from pointcept3m.utils.hook import HookBase

POINTS, CLASSES = 16, 3


@DATASETS.register_module(force=True)
class ToyScenes(Dataset):
    """Scenes of 16 points; the class is which coordinate is largest. Features carry fresh noise each time."""

    def __init__(self, size: int = 12, split: str = "train", noise: float = 0.1, bad: int = -1, fragments: bool = False, sleep: float = 0.0):
        self.size, self.split, self.noise, self.bad = size, split, noise, bad
        self.fragments, self.sleep = fragments, sleep

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        time.sleep(self.sleep)
        coord = torch.rand(POINTS, 3, generator=torch.Generator().manual_seed(index))
        feat = coord + self.noise * torch.randn(POINTS, 3)
        if index == self.bad:
            feat[0, 0] = float("nan")
        segment = coord.argmax(-1)
        name = f"{self.split}{index}"
        if not self.fragments:
            return dict(coord=coord, feat=feat, segment=segment, offset=torch.tensor([POINTS]), name=name)
        parts = [torch.arange(0, POINTS, 2), torch.arange(1, POINTS, 2), torch.arange(POINTS)]
        cut = [dict(coord=coord[i], feat=feat[i], index=i, offset=torch.tensor([len(i)])) for i in parts]
        return dict(segment=segment, name=name, fragment_list=cut)


@MODELS.register_module(force=True)
class ToyBackbone(nn.Module):
    """Two layers; with dropout, so that the training draws random numbers."""

    def __init__(self, out_channels: int = CLASSES, dropout: float = 0.2, norm: bool = True):
        super().__init__()
        self.first = nn.Linear(3, 16)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(16, out_channels)

    def forward(self, input_dict: dict) -> torch.Tensor:
        return self.last(self.dropout(self.norm(self.first(input_dict["feat"])).relu()))


@HOOKS.register_module(force=True)
class SignalAt(HookBase):
    """Sends this process a signal when `step` steps are done, unless the run is a resumed one."""

    def __init__(self, step: int, number: int = signal.SIGTERM, point: str = "after_step"):
        self.step, self.number, self.point = step, number, point

    def after_step(self) -> None:
        self._send("after_step")

    def after_epoch(self) -> None:
        self._send("after_epoch")

    def _send(self, point: str) -> None:
        if point == self.point and self.trainer.global_step == self.step and not self.trainer.cfg.resume:
            os.kill(os.getpid(), self.number)


def toy_config(save_path: str, **changes) -> dict:
    """A config of 12 steps an epoch (two passes over 12 scenes, two a batch) and 2 epochs."""
    cfg = dict(
        save_path=str(save_path),
        seed=3,
        num_worker=0,
        batch_size=2,
        epoch=4,
        eval_epoch=2,
        model=dict(
            type="DefaultSegmentor",
            backbone=dict(type="ToyBackbone"),
            criteria=[dict(type="CrossEntropyLoss", ignore_index=-1), dict(type="LovaszLoss", mode="multiclass", ignore_index=-1)],
        ),
        data=dict(
            num_classes=CLASSES,
            ignore_index=-1,
            names=["x", "y", "z"],
            train=dict(type="ToyScenes"),
            val=dict(type="ToyScenes", split="val", size=3),
            test=dict(type="ToyScenes", split="test", size=3, fragments=True),
        ),
        optimizer=dict(type="AdamW", lr=0.01),
        scheduler=dict(type="OneCycleLR", max_lr=0.01),
        hooks=[
            dict(type="CheckpointLoader"),
            dict(type="IterationTimer"),
            dict(type="InformationWriter"),
            dict(type="SemSegEvaluator"),
            dict(type="CheckpointSaver"),
        ],
    )
    cfg.update(changes)
    return cfg

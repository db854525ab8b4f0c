"""Whether a supervised training can learn: model and data agree on the number of classes, and there are labels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.utils import comm
from pointcept3m.utils.config import Config

SUPERVISED = ("semseg", "insseg")  # what models that learn from labels say as their `task`


class NoLabelsError(ValueError):
    """Nothing to learn from: there is no labelled point, so the weights are those of the start."""


def check_class_count(cfg: Config, model: nn.Module) -> None:
    """Raises ValueError where `model` gives another number of class scores than data.num_classes.

    Models that cannot tell are looked at in their first forward, where they call a `criteria` of (logits [N, K], labels [N]).
    """
    wanted = (cfg.get("data") or {}).get("num_classes")
    if wanted is None:
        return
    count, where = _class_count(cfg, model)
    if count is not None and count != wanted:
        raise ValueError(
            f"config: data.num_classes is {wanted}, but {where}: {type(model).__name__} gives {count} class scores a point; "
            "both must be the number of classes of the data"
        )
    criteria = getattr(model, "criteria", None)
    if count is None and isinstance(criteria, nn.Module):

        def look(module: nn.Module, inputs: tuple) -> None:
            handle.remove()
            logits, labels = inputs if len(inputs) == 2 else (None, None)
            if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point():
                check_logits(logits, wanted, type(model).__name__)

        handle = criteria.register_forward_pre_hook(look)


def check_logits(logits: Any, num_classes: int, name: str) -> None:
    """Raises ValueError where `logits` are a tensor [N, K] and K is not `num_classes`."""
    if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] != num_classes:
        raise ValueError(
            f"config: data.num_classes is {num_classes}, but {name} gives {logits.shape[1]} class scores a point; "
            "both must be the number of classes of the data"
        )


def _class_count(cfg: Config, model: nn.Module) -> tuple[int | None, str]:
    """How many class scores the model gives, None where it cannot tell, and which setting says so."""
    if getattr(model, "task", None) not in SUPERVISED:
        return None, ""
    number = getattr(model, "semantic_num_classes", None)
    if isinstance(number, int):
        return number, f"model.semantic_num_classes is {number}"
    number = model.class_count() if hasattr(model, "class_count") else None
    settings = cfg.model
    if "num_classes" in settings:
        return number, f"model.num_classes is {settings['num_classes']}"
    backbone = settings.get("backbone") or {}
    key = next((key for key in ("num_classes", "out_channels") if key in backbone), None)
    return number, f"model.backbone.{key} is {backbone[key]}" if key else "model.backbone says nothing of it"


class LabelWatch:
    """Looks for a labelled point until one was seen; a whole epoch of a supervised training without one is an error.

    A batch without any is fine: its loss is 0 and it changes nothing.
    """

    def __init__(self, cfg: Config, model: nn.Module, dataset: Any):
        self.ignore_index = (cfg.get("data") or {}).get("ignore_index", -1)
        self.model, self.dataset = type(model).__name__, dataset
        self.over = getattr(model, "task", None) not in SUPERVISED  # nothing is left to look for
        self.seen, self.whole = False, True
        if not self.over and getattr(dataset, "num_labelled", None) == 0:
            raise NoLabelsError(f"data.train: no scene of split {dataset.split} in {dataset.data_root} has {self._file()}; {self._remedy()}")

    def start(self, whole: bool) -> None:
        """An epoch begins, or (`whole` false) goes on after an interruption."""
        self.whole = whole

    def look(self, batch: Any) -> None:
        """Takes a batch, best before it is moved to the device."""
        if self.over or self.seen:
            return
        segment = batch.get("segment") if isinstance(batch, Mapping) else None
        self.seen = not isinstance(segment, Tensor) or bool(torch.any(segment != self.ignore_index))

    def end(self, epoch: int) -> None:
        """Raises NoLabelsError where no process saw a label in the whole epoch. All processes call it together."""
        if self.over:
            return
        seen, whole = comm.agree_max(self.seen, self.whole)
        self.over = bool(seen)
        if whole and not seen:
            raise NoLabelsError(
                f"data.train: not one point of epoch {epoch + 1} has a label, segment is {self.ignore_index} everywhere; {self._remedy()}"
            )

    def _file(self) -> str:
        return f"{getattr(self.dataset, 'segment_asset', 'segment')}.npy"

    def _remedy(self) -> str:
        return f"{self.model} learns from labels alone: put them into {self._file()} of the scene folders, or choose a split that has them"

"""A linear probe on the frozen backbone at the end of pretraining."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from pointcept3m.datasets import build_dataset, collate_fn
from pointcept3m.engines.hooks.builder import HOOKS
from pointcept3m.engines.probe import HeadFeatures, linear_probe
from pointcept3m.utils.hook import HookBase


@HOOKS.register_module()
class LinearProbe(HookBase):
    """Probes the backbone before training (a random frozen one) and after it, and writes both to metrics.json.

    train, val: configs of labelled data sets whose samples have coord, grid_coord, feat, offset and segment.
    class_names: of those labels, in their order. max_points: training points a scene. steps: of fitting the layer.
    head: of a distilled model (CUA-O3D), the features of that head in place of the backbone's.
    """

    def __init__(
        self,
        train: Mapping[str, Any],
        val: Mapping[str, Any],
        class_names: Sequence[str],
        max_points: int = 20_000,
        steps: int = 600,
        head: str | None = None,
    ):
        self.head = head
        self.train, self.val = train, val
        self.class_names = list(class_names)
        self.max_points, self.steps = max_points, steps

    def before_train(self) -> None:
        if self.trainer.global_step == 0:
            scores = self.probe()
            self.trainer.report({"probe_mIoU": scores["mIoU"]})
            self.trainer.results["probe_mIoU_at_start"] = scores["mIoU"]

    def after_train(self) -> None:
        scores = self.probe()
        self.trainer.report(
            {f"probe_{name}": scores[name] for name in ("mIoU", "mAcc", "allAcc")},
            per_class={name: {"iou": iou, "acc": acc} for name, iou, acc in zip(self.class_names, scores["iou"], scores["acc"], strict=True)},
        )

    def probe(self) -> dict[str, Any]:
        """The scores of a linear layer on the backbone as it is now; every process computes the same ones."""
        trainer = self.trainer
        backbone = trainer.bare_model.backbone if self.head is None else HeadFeatures(trainer.bare_model, self.head)
        loaders = [
            DataLoader(build_dataset(cfg), batch_size=1, shuffle=False, collate_fn=collate_fn) for cfg in (self.train, self.val)
        ]
        names = tuple(f"{cfg['type']} (split {cfg.get('split', part)})" for part, cfg in (("train", self.train), ("val", self.val)))
        scenes = " and ".join(f"{len(loader.dataset)} scenes of {name}" for loader, name in zip(loaders, names, strict=True))
        trainer.logger.info(f"linear probe: features of {scenes}, then {self.steps} steps of fitting; no line until it is done")
        scores = linear_probe(
            backbone, *loaders, len(self.class_names), trainer.device, self.max_points, self.steps, trainer.seed, names
        )
        trainer.logger.info(f"linear probe: mIoU {scores['mIoU']:.4f}, mAcc {scores['mAcc']:.4f}, allAcc {scores['allAcc']:.4f}")
        return scores

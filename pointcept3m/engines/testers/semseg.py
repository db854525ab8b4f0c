"""Semantic segmentation with votes: every raw point is scored by all fragments and augmentations that hold it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointcept3m.datasets.collate import collate_fn
from pointcept3m.engines import metrics
from pointcept3m.engines.defaults import class_settings
from pointcept3m.engines.loader import to_device
from pointcept3m.utils import comm
from pointcept3m.utils.files import atomic_write
from pointcept3m.utils.logger import Progress

from .base import TESTERS, Scores, TesterBase


@TESTERS.register_module()
class SemSegTester(TesterBase):
    """mIoU, mAcc and allAcc over `data.test`.

    Samples are those of a dataset in test mode: `segment`, `name` and `fragment_list`, whose fragments carry
    `index`, rows of the raw points (and maybe `origin_segment` with `inverse`). The softmax of each fragment is added
    up at its rows, and the largest sum wins. Predictions go to `result/<name>_pred.npy` and are never read back: an
    earlier run's, of other weights, cannot slip in.

    fragment_batch_size: fragments in one forward. save_predictions: false leaves the files out. absent: see
    `metrics.segmentation_scores`.
    """

    task = "semseg"

    def __init__(
        self,
        cfg: Mapping[str, Any],
        model: nn.Module | None = None,
        test_loader: Any = None,
        verbose: bool = False,
        fragment_batch_size: int = 1,
        save_predictions: bool = True,
        absent: str = "skip",
    ):
        if fragment_batch_size < 1:
            raise ValueError(f"SemSegTester: fragment_batch_size must be at least 1, got {fragment_batch_size}")
        self.fragment_batch_size, self.save_predictions, self.absent = fragment_batch_size, save_predictions, absent
        super().__init__(cfg, model, test_loader, verbose)

    @torch.no_grad()
    def test(self, check_stop: Callable[[], None] = lambda: None) -> Scores:
        number, names, ignore = class_settings(self.cfg)
        self.model.eval()
        confusion = torch.zeros(number, number, dtype=torch.int64)
        with Progress(len(self.test_loader), "testing") as progress:
            for samples in self.test_loader:
                for sample in samples:
                    check_stop()
                    pred, target = self.predict(sample, number)
                    scene = metrics.confusion_matrix(pred, target, number, ignore)
                    confusion += scene
                    if self.save_predictions:
                        self._save(sample["name"], pred)
                    if self.verbose and scene.sum():
                        scores = metrics.segmentation_scores(scene, self.absent)
                        self.logger.info(f"{sample['name']}: {len(pred)} points, mIoU {scores['mIoU']:.4f}, allAcc {scores['allAcc']:.4f}")
                progress.update()
        scores = metrics.segmentation_scores(comm.all_reduce_sum(confusion), self.absent)
        totals = {name: scores[name] for name in ("mIoU", "mAcc", "allAcc")}
        per_class = {name: {"iou": iou, "acc": acc} for name, iou, acc in zip(names, scores["iou"], scores["acc"], strict=True)}
        self.logger.info("test: " + "  ".join(f"{name} {value:.4f}" for name, value in totals.items()))
        return totals, per_class

    @torch.no_grad()
    def predict(self, sample: Mapping[str, Any], num_classes: int) -> tuple[Tensor, Tensor]:
        """Classes and labels [N] int64 of the raw points of one scene, on the CPU.

        Raises: ValueError where the fragments leave a point without a vote.
        """
        segment = torch.as_tensor(sample["segment"]).long()
        votes = torch.zeros(len(segment), num_classes, device=self.device)
        for index, probability in self._fragment_scores(sample):
            # One fragment has each row once, so plain indexed addition is exact and deterministic.
            votes[index] += probability
        unseen = int((votes.sum(1) == 0).sum())
        if unseen:
            raise ValueError(f"scene {sample.get('name')}: {unseen} of {len(segment)} points are in no fragment; test_cfg must cover every point")
        pred = votes.argmax(1).cpu()
        if "inverse" in sample and "origin_segment" in sample:
            return pred[torch.as_tensor(sample["inverse"]).long()], torch.as_tensor(sample["origin_segment"]).long()
        return pred, segment

    def _fragment_scores(self, sample: Mapping[str, Any]) -> Any:
        fragments = sample.get("fragment_list")
        if fragments is None:
            raise KeyError(f"SemSegTester: sample {sample.get('name')!r} has no 'fragment_list'; data.test needs test_mode=True and a test_cfg")
        for start in range(0, len(fragments), self.fragment_batch_size):
            part = fragments[start : start + self.fragment_batch_size]
            batch = to_device(collate_fn(part), self.device)
            with self.precision.autocast():
                logits = self.model(batch)["seg_logits"]
            ends = [0, *batch["offset"].tolist()]
            probability = logits.float().softmax(-1)
            for i in range(len(part)):
                rows = slice(ends[i], ends[i + 1])
                yield batch["index"][rows].long(), probability[rows]

    def _save(self, name: str, pred: Tensor) -> None:
        # A scene's name comes from a folder's; it must not lead out of ours.
        safe = str(name).replace("/", "_").replace("\\", "_").lstrip(".")
        path = self.save_path / "result" / f"{safe}_pred.npy"
        atomic_write(path, lambda stream: np.save(stream, pred.numpy().astype(np.int32), allow_pickle=False))

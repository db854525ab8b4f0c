"""Scores of a distillation by words, while it is trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pointcept3m.engines.loader import check_labels, to_device
from pointcept3m.engines.open_vocabulary.scores import Tally, check_rules
from pointcept3m.engines.open_vocabulary.vocabulary import Vocabulary, build_vocabulary, labels_of_data
from pointcept3m.engines.protocol import Through, points_scored, words_counted
from pointcept3m.utils import comm
from pointcept3m.utils.hook import HookBase

from .builder import HOOKS
from .evaluator import raw_predictions, way_to_raw_points


@HOOKS.register_module()
class OpenVocabularyEvaluator(HookBase):
    """After each epoch: the labelled scenes of `val_loader`, labelled by words; mIoU decides which checkpoint is the best.

    The model is in eval mode meanwhile: OpenScene and CUA-O3D validate in train mode, which scores with the statistics of the
    batch and moves the running ones, so that their tests found other numbers than their validations.

    label_set, split: as `OpenVocabularyTester`. write_cls_iou: the IoU of each class becomes a curve too. absent: see
    `class_scores`.
    """

    sets_metric = True

    def __init__(
        self, label_set: str | Sequence[str] | None = None, split: str | None = None, write_cls_iou: bool = False, absent: str = "skip"
    ):
        check_rules(absent, "miss")
        self.label_set, self.split, self.write_cls_iou, self.absent = label_set, split, write_cls_iou, absent
        self.vocabulary: Vocabulary | None = None

    def before_train(self) -> None:
        """The text encoder speaks once, before work could be lost to a mistake in words."""
        if self.trainer.val_loader is not None:
            self._say_words()

    def after_epoch(self) -> None:
        if self.trainer.val_loader is not None:
            self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """The scores of the model as it is."""
        trainer, model = self.trainer, self.trainer.bare_model
        if self.vocabulary is None:
            self._say_words()
        tally, through, meeting = self._tally(), Through.NOTHING, comm.Meeting()
        training = model.training
        model.eval()
        model.set_vocabulary(self.vocabulary.embedding, self.vocabulary.mapping)
        try:
            for batch in trainer.val_loader:
                trainer.check_stop()
                batch = to_device(batch, trainer.device)
                with trainer.precision.autocast():
                    logits = model(batch)["seg_logits"]
                tally.add(*self._raw(logits, batch))
                through = max(through, way_to_raw_points(batch))
                meeting.beat()
        finally:
            model.set_vocabulary(None)
            model.train(training)
        meeting.wait()
        tally.counts = comm.all_reduce_sum(tally.counts)
        self._report(tally, Through(comm.agree_max(int(through))[0]))
        return tally.scores(self.absent)[0]

    def _say_words(self) -> None:
        trainer = self.trainer
        labels = labels_of_data(trainer.val_loader.dataset, self.label_set, trainer.cfg)
        if self.split is not None:
            labels.base_novel(self.split)
        self.vocabulary = build_vocabulary(trainer.cfg, labels)

    def _tally(self) -> Tally:
        return Tally(self.vocabulary.labels, self.split, self.trainer.cfg.data.get("ignore_index", -1))

    def _raw(self, logits: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits [n, K] and labels [n] of the raw points."""
        rows, target = raw_predictions(torch.arange(len(logits), device=logits.device), batch)
        check_labels(target, len(self.vocabulary.labels), self.trainer.cfg.data.get("ignore_index", -1), str(batch.get("name")))
        return logits[rows], target

    def _report(self, tally: Tally, through: Through) -> None:
        trainer = self.trainer
        scored = points_scored(trainer.cfg.data.get("val") or {}, tally.labelled, through)
        words = "3d: one forward a scene, " + words_counted(str(self.vocabulary), scored, self.absent, tally.absent, len(self.vocabulary.labels))
        trainer.comm_info.setdefault("protocol", {})["val"] = words
        totals, iou, acc = tally.scores(self.absent)
        for name, value in totals.items():
            trainer.storage.put_scalar(f"val/{name}", value)
        trainer.results.update(totals)
        for name, one, other in zip(self.vocabulary.labels.names, iou, acc, strict=True):
            trainer.per_class[name] = {"iou": one, "acc": other}
            if self.write_cls_iou and one == one:
                trainer.storage.put_scalar(f"val/iou/{name}", one)
        line = "  ".join(f"{name} {value:.4f}" for name, value in totals.items())
        trainer.logger.info(f"validation by words: {line}  ({words})")
        trainer.comm_info["current_metric_name"] = "mIoU"
        trainer.comm_info["current_metric_value"] = totals["mIoU"]

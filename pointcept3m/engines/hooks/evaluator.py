"""Hooks that score the model while and after training."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointcept3m.engines import metrics
from pointcept3m.engines.defaults import class_settings
from pointcept3m.engines.loader import to_device
from pointcept3m.engines.protocol import Through, classes_counted, val_protocol
from pointcept3m.ops import knn_query
from pointcept3m.utils import comm
from pointcept3m.utils.errors import add_note
from pointcept3m.utils.hook import HookBase

from .builder import HOOKS


def way_to_raw_points(batch: dict[str, Any]) -> Through:
    """How `raw_predictions` reaches the points that a grid dropped, where the batch carries their labels."""
    if "origin_segment" not in batch:
        return Through.NOTHING
    if "inverse" in batch:
        return Through.VOXEL
    return Through.NEAREST if {"origin_coord", "origin_offset"} <= batch.keys() else Through.NOTHING


def raw_predictions(pred: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Predictions and labels of the raw points where the batch has `origin_segment`, else as they are.

    Which prediction a raw point gets is `inverse`'s to say; without it, as in GaussianCross's S3DIS configs, that of the
    nearest point to `origin_coord`.
    """
    through = way_to_raw_points(batch)
    if through == Through.NOTHING:
        return pred, batch["segment"]
    if through == Through.VOXEL:
        return pred[batch["inverse"]], batch["origin_segment"]
    nearest, _ = knn_query(1, batch["coord"].float(), batch["offset"], batch["origin_coord"].float(), batch["origin_offset"])
    return pred[nearest[:, 0].long()], batch["origin_segment"]


@HOOKS.register_module()
class SemSegEvaluator(HookBase):
    """After each epoch: loss, mIoU, mAcc and allAcc on `val_loader`; mIoU decides which checkpoint is the best.

    write_cls_iou: the IoU of each class becomes a curve too. absent: see `metrics.segmentation_scores`.
    """

    sets_metric = True

    def __init__(self, write_cls_iou: bool = False, absent: str = "skip"):
        self.write_cls_iou, self.absent = write_cls_iou, absent

    def after_epoch(self) -> None:
        if self.trainer.val_loader is not None:
            self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """The scores of the model as it is; it is in eval mode meanwhile."""
        trainer, model = self.trainer, self.trainer.bare_model
        number, names, ignore = class_settings(trainer.cfg)
        training = model.training
        model.eval()
        confusion = torch.zeros(number, number, dtype=torch.int64)
        loss = torch.zeros(2, dtype=torch.float64)  # sum, count
        through, meeting = Through.NOTHING, comm.Meeting()
        try:
            for batch in trainer.val_loader:
                trainer.check_stop()
                batch = to_device(batch, trainer.device)
                with trainer.precision.autocast():
                    output = model(batch)
                pred, target = raw_predictions(output["seg_logits"].argmax(-1), batch)
                through = max(through, way_to_raw_points(batch))
                meeting.beat()
                confusion += metrics.confusion_matrix(pred, target, number, ignore).cpu()
                if "loss" in output:
                    loss += torch.tensor([float(output["loss"]), 1.0], dtype=torch.float64)
        finally:
            model.train(training)
        meeting.wait()
        confusion = comm.all_reduce_sum(confusion)
        scores = metrics.segmentation_scores(confusion, self.absent)
        through = Through(comm.agree_max(int(through))[0])
        protocol = val_protocol(trainer.cfg.data.get("val") or {}, int(confusion.sum()), through)
        trainer.comm_info.setdefault("protocol", {})["val"] = f"{protocol}, {classes_counted(confusion, self.absent)}"
        loss = comm.all_reduce_sum(loss)
        self._report(scores, names, loss)
        return scores

    def _report(self, scores: dict[str, Any], names: list[str], loss: Tensor) -> None:
        trainer = self.trainer
        totals = {name: scores[name] for name in ("mIoU", "mAcc", "allAcc")}
        if loss[1]:
            totals["loss"] = float(loss[0] / loss[1])
        per_class = {name: {"iou": iou, "acc": acc} for name, iou, acc in zip(names, scores["iou"], scores["acc"], strict=True)}
        for name, value in totals.items():
            trainer.storage.put_scalar(f"val/{name}", value)
        if self.write_cls_iou:
            for name, row in per_class.items():
                if row["iou"] == row["iou"]:
                    trainer.storage.put_scalar(f"val/iou/{name}", row["iou"])
        trainer.results.update({"val_loss" if name == "loss" else name: value for name, value in totals.items()})
        trainer.per_class.update(per_class)
        line = "  ".join(f"{name} {value:.4f}" for name, value in totals.items())
        trainer.logger.info(f"validation: {line}  ({trainer.comm_info['protocol']['val']})")
        trainer.comm_info["current_metric_name"] = "mIoU"
        trainer.comm_info["current_metric_value"] = scores["mIoU"]


@HOOKS.register_module()
class PreciseEvaluator(HookBase):
    """After training: the tester of `cfg.test` with the best weights (or the last, with `test_last`) on data.test.

    Scores go to metrics.json as `test_<name>`. Does nothing, and says so, where `evaluate` is false or there is no data.test.
    A test that fails leaves the model as it was after the last step, and metrics.json says under `protocol` why it has no
    scores; the error is raised.
    """

    def __init__(self, test_last: bool = False):
        self.test_last = test_last

    def after_train(self) -> None:
        trainer = self.trainer
        if not trainer.cfg.evaluate or "test" not in trainer.cfg.data:
            trainer.logger.info("no final test: " + ("evaluate=False" if not trainer.cfg.evaluate else "the config has no data.test"))
            return
        from pointcept3m.engines.checkpoint import load_weights
        from pointcept3m.engines.testers import TESTERS

        folder = Path(trainer.save_path) / "model"
        best = folder / "model_best.pth"
        model, protocols = trainer.bare_model, trainer.comm_info.setdefault("protocol", {})
        comm.synchronize()
        last_state = {name: value.clone() for name, value in model.state_dict().items()}
        training, tested = model.training, folder / "model_last.pth"
        try:
            if not self.test_last and best.exists():
                tested = best
                load_weights(model, best, logger=trainer.logger)
            tester = TESTERS.build(dict(trainer.cfg.test), cfg=trainer.cfg, model=model)
            scores, per_class = tester.test(check_stop=trainer.check_stop)
        except Exception as error:
            protocols["test"] = f"no scores, the test failed: {type(error).__name__}: {error}"
            add_note(error, f"the training is finished and its results are in {trainer.save_path}; only the test after it failed")
            if tested.is_file():
                options = f"save_path={trainer.save_path} weight={tested}"
                add_note(error, f"to test again: pointcept3m test --config-file {trainer.save_path}/config.py --options {options}")
            raise
        finally:
            model.load_state_dict(last_state)
            model.train(training)
        if tester.protocol:
            protocols["test"] = tester.protocol
        trainer.results.update({f"test_{name}": value for name, value in scores.items()})
        for name, value in scores.items():
            trainer.storage.put_scalar(f"test/{name}", value)
        if per_class:
            trainer.per_class.update(per_class)

"""The hook that scores instance segmentation while training."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from pointcept3m.engines import instance_metrics
from pointcept3m.engines.defaults import class_settings
from pointcept3m.engines.loader import to_device
from pointcept3m.engines.protocol import Through, val_protocol
from pointcept3m.engines.step import scalars_of
from pointcept3m.utils import comm
from pointcept3m.utils.hook import HookBase

from .builder import HOOKS


@HOOKS.register_module()
class InsSegEvaluator(HookBase):
    """After each epoch: mAP, AP50, AP25 and losses on `val_loader`; AP50 decides which checkpoint is the best.

    AP is that of ScanNet's benchmark (`engines.instance_metrics`). It is taken on the raw points where the samples carry
    them (origin_coord, origin_segment, origin_instance; or inverse in place of origin_coord), else on the points of the
    batch. Batches of any size give the same. Where no class has a true instance, every score is NaN, the log says so, and
    no checkpoint becomes the best.

    segment_ignore_index: classes that have no instances. instance_ignore_index: the id of points without an instance.
    min_region_size: smaller predictions and true instances do not count.
    """

    sets_metric = True

    def __init__(
        self,
        segment_ignore_index: Sequence[int] = (-1,),
        instance_ignore_index: int = -1,
        min_region_size: int = instance_metrics.MIN_REGION_SIZE,
    ):
        self.segment_ignore_index, self.instance_ignore_index = tuple(segment_ignore_index), instance_ignore_index
        self.min_region_size = min_region_size

    def after_epoch(self) -> None:
        if self.trainer.val_loader is not None:
            self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """The scores of the model as it is; it is in eval mode meanwhile."""
        trainer, model = self.trainer, self.trainer.bare_model
        classes = instance_metrics.scored_classes(class_settings(trainer.cfg)[1], self.segment_ignore_index)
        training = model.training
        model.eval()
        matches, losses, points, through, meeting = [], defaultdict(list), 0, Through.NOTHING, comm.Meeting()
        try:
            for batch in trainer.val_loader:
                trainer.check_stop()
                batch = to_device(batch, trainer.device)
                with trainer.precision.autocast():
                    output = model(batch)
                for name, value in scalars_of({k: v for k, v in output.items() if "loss" in k}).items():
                    losses[name].append(value)
                through = max(through, instance_metrics.way_to_raw_points(batch))
                for instances, segment, instance in instance_metrics.raw_scenes(output, batch):
                    if segment is None or instance is None:
                        raise KeyError(f"InsSegEvaluator: data.val has no labels to compare with; its keys are {sorted(batch)}")
                    matches.append(
                        instance_metrics.match_instances(
                            instances, segment, instance, list(classes), self.instance_ignore_index, self.min_region_size
                        )
                    )
                    points += instances.num_points
                meeting.beat()
        finally:
            model.train(training)
        meeting.wait()
        gathered = comm.all_gather((matches, dict(losses), points, through))
        matches = [match for of_rank, *_ in gathered for match in of_rank]
        points, through = sum(part[2] for part in gathered), max(part[3] for part in gathered)
        protocol = val_protocol(trainer.cfg.data.get("val") or {}, points, through, instances=True)
        trainer.comm_info.setdefault("protocol", {})["val"] = protocol
        ap = instance_metrics.average_precision(matches, list(classes), min_region_size=self.min_region_size)
        totals, per_class = instance_metrics.instance_scores(ap, list(classes.values()))
        means = {}
        for name in sorted({name for _, of_rank, *_ in gathered for name in of_rank}):
            values = [value for _, of_rank, *_ in gathered for value in of_rank.get(name, [])]
            means[name] = sum(values) / len(values)
        self._report(totals, per_class, means)
        return {**totals, **means}

    def _report(self, totals: dict[str, float], per_class: dict[str, dict[str, float]], losses: dict[str, float]) -> None:
        trainer = self.trainer
        known = totals["AP50"] == totals["AP50"]
        for name, value in {**(totals if known else {}), **losses}.items():
            trainer.storage.put_scalar(f"val/{name}", value)
        trainer.results.update({**totals, **{f"val_{name}": value for name, value in losses.items()}})
        trainer.per_class.update(per_class)
        line = "  ".join(f"{name} {value:.4f}" for name, value in {**totals, **losses}.items())
        protocol = trainer.comm_info["protocol"]["val"]
        trainer.logger.info(f"validation: {line}  ({protocol})\n{instance_metrics.score_table(totals, per_class)}")
        if not known:
            trainer.logger.warning(
                f"validation: no true instance of at least {self.min_region_size} points in data.val, so there is no AP, "
                "and no checkpoint is the best"
            )
            return
        trainer.comm_info["current_metric_name"] = "AP50"
        trainer.comm_info["current_metric_value"] = totals["AP50"]

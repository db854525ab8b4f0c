"""Scores of retrieval across modalities, while a model of CrossOver is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from pointcept3m.engines.retrieval.embed import embed_dataset
from pointcept3m.engines.retrieval.evaluation import METRICS, evaluate, flatten
from pointcept3m.utils.hook import HookBase
from pointcept3m.utils.registry import near_names

from .builder import HOOKS


@HOOKS.register_module()
class RetrievalEvaluator(HookBase):
    """After each epoch: retrieval on `val_loader`; `metric`, a mean over pairs of modalities, decides which checkpoint is the best.

    metric: a name of `retrieval.evaluation.flatten`: "instance_top1" for the object level, "scene_top1" for scenes, or one pair alone
    ("instance_point_cad_top1"). The released code takes the mean top-1 over pairs too, for scenes within each batch of 16, where
    absent modalities count as matches; here the gallery is all of data.val. metrics: what else is scored, by default what
    `metric` is of. settings: arguments of single metrics.
    """

    sets_metric = True

    def __init__(self, metric: str = "scene_top1", metrics: Sequence[str] | None = None, settings: Mapping[str, Mapping[str, Any]] | None = None):
        found = max((name for name in METRICS if metric.startswith(f"{name}_")), key=len, default=None)
        if found is None:
            raise KeyError(f"RetrievalEvaluator: metric {metric!r} is of none of {', '.join(METRICS)}; wanted a name such as scene_top1")
        self.metrics = tuple(dict.fromkeys((found, *(metrics or ()))))
        for name in (*self.metrics, *(settings or {})):
            if name not in METRICS:
                raise KeyError(f"RetrievalEvaluator: no metric {name!r}; {near_names(name, METRICS)}")
        self.metric, self.settings = metric, dict(settings or {})

    def after_epoch(self) -> None:
        if self.trainer.val_loader is not None:
            self.evaluate()

    def evaluate(self) -> dict[str, float]:
        """The scores of the model as it is. Raises KeyError where `metric` is not among them."""
        trainer = self.trainer
        embeddings = embed_dataset(trainer.bare_model, trainer.val_loader, trainer.precision.autocast, trainer.check_stop)
        scores = flatten(evaluate(embeddings, self.metrics, **self.settings))
        if self.metric not in scores:
            raise KeyError(f"RetrievalEvaluator: data.val has no {self.metric!r}; {near_names(self.metric, scores)}")
        words = f"{len(embeddings)} scenes with {len(embeddings.object_id)} objects, mean over pairs of two modalities"
        trainer.comm_info.setdefault("protocol", {})["val"] = words
        trainer.report(scores)
        shown = [self.metric, *(name for name in scores if name.endswith(("_chance_top1", "_chance_recall")))]
        line = "  ".join(f"{name} {scores[name]:.4f}" for name in shown)
        trainer.logger.info(f"validation: {line}  ({words})")
        trainer.comm_info["current_metric_name"] = self.metric
        trainer.comm_info["current_metric_value"] = scores[self.metric]
        return scores

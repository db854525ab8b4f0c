"""Hooks that write down what happens: log lines, curves, and metrics.json at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pointcept3m.engines.defaults import write_json
from pointcept3m.engines.facts import memory_words
from pointcept3m.utils.hook import HookBase
from pointcept3m.utils.logger import format_seconds

from .builder import HOOKS

TIMES = ("data_time", "batch_time")


@HOOKS.register_module()
class InformationWriter(HookBase):
    """Logs a line each `interval` steps and each epoch, and writes every scalar of every step to the curves.

    Curves: `train_batch/<name>` of each step, `train/<name>` means of each epoch, `params/lr`, `time/<name>`.
    key: if given, only outputs whose name contains it, or one of them where it is a list.
    """

    def __init__(self, interval: int = 10, key: str | Sequence[str] = ""):
        if interval < 1:
            raise ValueError(f"InformationWriter: interval must be at least 1, got {interval}")
        self.interval, self.words = interval, (key,) if isinstance(key, str) else tuple(key)

    def after_step(self) -> None:
        trainer = self.trainer
        scalars = {name: value for name, value in trainer.comm_info["scalars"].items() if any(word in name for word in self.words)}
        for name, value in scalars.items():
            trainer.storage.put_scalar(name, value)
        lr = trainer.comm_info["lr"]
        rows = {f"train_batch/{name}": value for name, value in scalars.items()}
        rows["params/lr"] = lr
        histories = trainer.storage.histories()
        rows.update({f"time/{name}": histories[name].val for name in TIMES if name in histories})
        trainer.writer.add_scalars(rows, trainer.global_step)
        if trainer.epoch_step % self.interval == 0 or trainer.epoch_step in (1, trainer.steps_per_epoch):
            trainer.writer.flush()
            trainer.logger.info(f"{self._place()}  {_numbers(scalars)}  lr {lr:.3g}  {self._pace(histories)}")

    def after_epoch(self) -> None:
        trainer = self.trainer
        means = {name: m.avg for name, m in trainer.storage.histories().items() if m.count and "/" not in name and name not in TIMES}
        trainer.writer.add_scalars({f"train/{name}": value for name, value in means.items()}, trainer.global_step)
        memory = f"{memory_words()} so far with batch_size {trainer.cfg.batch_size}"
        trainer.logger.info(f"epoch {trainer.epoch + 1}/{trainer.max_epoch} done, means: {_numbers(means)}; {memory}")
        trainer.results.update({f"train_{name}": value for name, value in means.items() if "loss" in name})

    def _place(self) -> str:
        trainer = self.trainer
        return f"epoch {trainer.epoch + 1}/{trainer.max_epoch} step {trainer.epoch_step}/{trainer.steps_per_epoch}"

    def _pace(self, histories: Mapping[str, Any]) -> str:
        words = [f"{name.removesuffix('_time')} {histories[name].val:.3f} s" for name in TIMES if name in histories]
        left = self.trainer.comm_info.get("seconds_left")
        return "  ".join(words + ([f"left {format_seconds(left)}"] if left is not None else []))


@HOOKS.register_module()
class MetricsWriter(HookBase):
    """Writes <save_path>/metrics.json at the end: what was run, and the scores in `trainer.results` and `per_class`."""

    writes_results = True

    def after_train(self) -> None:
        trainer = self.trainer
        trainer.write_scalars()
        trainer.writer.flush()
        if not trainer.is_main:
            return
        write_metrics(
            trainer.save_path,
            trainer.cfg,
            task=trainer.cfg.task or getattr(trainer.bare_model, "task", None) or trainer.cfg.model.get("type"),
            section="val" if self._evaluated() else "train",
            seed=trainer.seed,
            metrics=trainer.results,
            per_class=trainer.per_class,
            seconds=trainer.elapsed(),
            protocol=trainer.comm_info.get("protocol"),
        )

    def _evaluated(self) -> bool:
        """Whether the scores are those of data.val: there are evaluators, and they had it."""
        return self.trainer.val_loader is not None and any(hook.sets_metric for hook in self.trainer.hooks)


def write_metrics(
    folder: str | Path,
    cfg: Any,
    task: str | None,
    section: str,
    seed: int | None,
    metrics: Mapping[str, float],
    per_class: Mapping[str, Mapping[str, float]],
    seconds: float,
    protocol: Mapping[str, str] | None = None,
) -> Path:
    """Writes `metrics.json` into `folder` and returns its path; `section` is the part of `cfg.data` that was used.

    protocol: how the scores of each section (val, test) were measured, in words.
    """
    data = cfg.data.get(section, {})
    path = Path(folder) / "metrics.json"
    content = {
        "task": task,
        "dataset": data.get("type"),
        "split": data.get("split", section),
        "weight": cfg.weight,
        "seed": seed,
        "protocol": dict(protocol or {}),
        "metrics": dict(metrics),
        "per_class": dict(per_class),
        "seconds": round(seconds, 3),
    }
    write_json(path, content)
    return path


def _numbers(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())

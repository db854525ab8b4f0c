"""Hooks that load and save checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from pointcept3m.engines.checkpoint import load_weights, restore_training, save_training, unwrap
from pointcept3m.engines.convention import check_input
from pointcept3m.engines.defaults import resume_path
from pointcept3m.utils.hook import HookBase

from .builder import HOOKS


@HOOKS.register_module()
class CheckpointLoader(HookBase):
    """Loads `cfg.weight` before training and, with `cfg.resume`, everything needed to continue to the digit.

    keywords, replacement, strict, allow_partial, part: see `engines.checkpoint.load_weights`. A path that does not exist
    is an error, and so is a file whose backbone fits only in part; heads of another task may be missing or surplus, which
    the log says (allow_partial=False refuses that too).
    weight_color, check_input: see `engines.convention.check_input`. Weights that were trained on colours in another
    range, or on other features, than the config feeds are an error.
    weight: another file than `cfg.weight`, for one part of a model whose others come from there: a second such hook with
    `part="backbone"` puts a pretrained backbone into it. A resumed run has it already.
    """

    sets_random_state = True

    def __init__(
        self,
        keywords: str = "",
        replacement: str | None = None,
        strict: bool = True,
        allow_partial: bool | Sequence[str] | None = None,
        part: str = "",
        weight_color: str | None = None,
        check_input: bool = True,
        weight: str | None = None,
    ):
        self.weight = weight
        self.loading = dict(keywords=keywords, replacement=replacement, strict=strict, allow_partial=allow_partial, part=part)
        self.checking = dict(weight_color=weight_color, check=check_input)

    def before_train(self) -> None:
        trainer = self.trainer
        weight, checkpoint = trainer.cfg.weight, resume_path(trainer.cfg)
        if self.weight is not None:
            weight = self.weight
            if checkpoint is not None:
                return
        if checkpoint is not None:
            check_input(checkpoint, trainer.cfg, **self.checking, logger=trainer.logger)
            restore_training(trainer, checkpoint)
            trainer.logger.info(f"resumed {checkpoint}: {trainer.global_step} of {trainer.total_steps} steps are done")
        elif weight:
            check_input(weight, trainer.cfg, **self.checking, logger=trainer.logger)
            load_weights(unwrap(trainer.model), weight, **self.loading, logger=trainer.logger)


@HOOKS.register_module()
class CheckpointSaver(HookBase):
    """Saves `model/model_last.*` after each epoch, and as `model_best.*` where the metric is the best so far.

    save_freq: keeps `epoch_<n>.pth` too, each so many epochs. step_freq: saves model_last also each so many steps.
    """

    def __init__(self, save_freq: int | None = None, step_freq: int | None = None):
        for name, value in (("save_freq", save_freq), ("step_freq", step_freq)):
            if value is not None and value < 1:
                raise ValueError(f"CheckpointSaver: {name} must be at least 1, got {value}")
        self.save_freq, self.step_freq = save_freq, step_freq

    @property
    def folder(self) -> Path:
        return Path(self.trainer.save_path) / "model"

    def after_step(self) -> None:
        trainer = self.trainer
        # The last step of an epoch is saved by after_epoch, with the metric.
        if self.step_freq and trainer.global_step % self.step_freq == 0 and trainer.epoch_step < trainer.steps_per_epoch:
            trainer.writer.flush()
            save_training(trainer, self.folder)

    def after_epoch(self) -> None:
        trainer = self.trainer
        is_best = False
        value = trainer.comm_info.pop("current_metric_value", None)
        if value is not None and value != value:  # no labels to score: it must not stand before later scores either
            trainer.logger.warning(f"{trainer.comm_info.get('current_metric_name', 'metric')} is NaN, so this epoch is not the best")
        elif value is not None:
            name = trainer.comm_info.get("current_metric_name", "metric")
            is_best = value > trainer.best_metric_value
            trainer.best_metric_value = max(value, trainer.best_metric_value)
            trainer.logger.info(f"best {name} so far: {trainer.best_metric_value:.4f}{' (this epoch)' if is_best else ''}")
        epoch = trainer.epoch + 1
        copy_as = f"epoch_{epoch}" if self.save_freq and epoch % self.save_freq == 0 else None
        trainer.writer.flush()
        save_training(trainer, self.folder, is_best, copy_as, epoch_done=True)

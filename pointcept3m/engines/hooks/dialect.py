"""The hooks that GaussianCross's configs name (`Custom...`), as this project's own with the arguments they take there."""

from collections.abc import Sequence

from .builder import HOOKS
from .checkpoint import CheckpointLoader, CheckpointSaver
from .evaluator import SemSegEvaluator
from .timer import IterationTimer
from .writer import InformationWriter

HOOKS.register_module("CustomIterationTimer", module=IterationTimer)
HOOKS.register_module("CustomCheckpointSaver", module=CheckpointSaver)


@HOOKS.register_module()
class CustomCheckpointLoader(CheckpointLoader):
    """CheckpointLoader with `skip_key`: tensors whose name contains it stay as the model has them."""

    def __init__(
        self,
        keywords: str = "",
        replacement: str | None = None,
        strict: bool = False,
        skip_key: str | None = None,
        weight_color: str | None = None,
        check_input: bool = True,
    ):
        super().__init__(keywords, replacement, strict, weight_color=weight_color, check_input=check_input)
        self.loading["skip"] = skip_key or ""


@HOOKS.register_module()
class CustomInformationWriter(InformationWriter):
    """InformationWriter with GaussianCross's defaults: a line each step, losses alone."""

    def __init__(self, interval: int = 1, key: str | Sequence[str] = ("loss",)):
        super().__init__(interval, key)


@HOOKS.register_module()
class CustomSemSegEvaluator(SemSegEvaluator):
    """SemSegEvaluator that evaluates as `evaluate_interval = [(from_epoch, every), ...]` of the config says.

    Each pair counts from its round on, the last one that has begun wins; without the setting, each round is evaluated.
    """

    def after_epoch(self) -> None:
        number = self.trainer.epoch + 1
        every = 1
        for first, interval in self.trainer.cfg.get("evaluate_interval") or ():
            every = interval if number >= first else every
        if number % every == 0:
            super().after_epoch()

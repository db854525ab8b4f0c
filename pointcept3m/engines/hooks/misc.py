"""Small hooks."""

import gc

from pointcept3m.utils.hook import HookBase

from .builder import HOOKS

POINTS = ("before_train", "before_epoch", "before_step", "after_step", "after_epoch", "after_train")


@HOOKS.register_module()
class ModelHook(HookBase):
    """Passes the six points on to the model, where it has methods of these names; it gets `model.trainer` before."""

    def before_train(self) -> None:
        model = self.trainer.bare_model
        if any(hasattr(model, point) for point in POINTS):
            # Past nn.Module.__setattr__: the trainer is no part of the model.
            object.__setattr__(model, "trainer", self.trainer)
        self._forward("before_train")

    def before_epoch(self) -> None:
        self._forward("before_epoch")

    def before_step(self) -> None:
        self._forward("before_step")

    def after_step(self) -> None:
        self._forward("after_step")

    def after_epoch(self) -> None:
        self._forward("after_epoch")

    def after_train(self) -> None:
        self._forward("after_train")

    def _forward(self, point: str) -> None:
        method = getattr(self.trainer.bare_model, point, None)
        if callable(method):
            method()


@HOOKS.register_module()
class GarbageHandler(HookBase):
    """Collects garbage each `interval` steps instead of when Python likes, so that processes pause together."""

    def __init__(self, interval: int = 150):
        self.interval = interval

    def before_train(self) -> None:
        gc.disable()

    def before_epoch(self) -> None:
        gc.collect()

    def after_step(self) -> None:
        if self.trainer.global_step % self.interval == 0:
            gc.collect()

    def after_train(self) -> None:
        gc.enable()

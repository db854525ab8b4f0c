"""The six places where a hook may act. Imports nothing, so that models may define hooks too."""

from typing import Any


class HookBase:
    """Does nothing at six points of a training; subclasses override those they need.

    The loop that calls them:

        before_train()
        for epoch: before_epoch(); for step: before_step(), <forward, backward, update>, after_step(); after_epoch()
        after_train()

    `trainer` is set when the hook is registered. A hook that puts `current_metric_value` into `trainer.comm_info`
    sets `sets_metric`, and must stand before the CheckpointSaver in the list of hooks, which reads it.
    """

    trainer: Any = None
    sets_metric: bool = False
    writes_results: bool = False  # whether `after_train` is called also where another hook's has failed

    def before_train(self) -> None: ...

    def before_epoch(self) -> None: ...

    def before_step(self) -> None: ...

    def after_step(self) -> None: ...

    def after_epoch(self) -> None: ...

    def after_train(self) -> None: ...

"""Hooks that measure time: where a step's time goes, how long the rest takes, and torch's profiler."""

import sys
import time

import torch

from pointcept3m.utils.hook import HookBase
from pointcept3m.utils.logger import Progress, format_seconds

from .builder import HOOKS


@HOOKS.register_module()
class IterationTimer(HookBase):
    """Puts `data_time` and `batch_time` (seconds) into the storage, and the time left into the log line.

    The time left is the pace of the last steps times the steps left, plus what happens between epochs (evaluation,
    saving) times the epochs left. The first `warmup_iter` steps do not count. On a terminal, one line shows progress.
    """

    def __init__(self, warmup_iter: int = 1):
        self.warmup_iter = warmup_iter
        self.between: list[float] = []  # seconds from the last step of an epoch to the first of the next

    def before_train(self) -> None:
        self.steps_seen = 0
        self.pace: float | None = None
        self.epoch_end: float | None = None
        self.mark = time.perf_counter()
        self.progress = Progress(self.trainer.total_steps, "training", interval=float("inf"))
        self.progress.done = self.trainer.global_step

    def before_epoch(self) -> None:
        now = time.perf_counter()
        if self.epoch_end is not None:
            self.between.append(now - self.epoch_end)
        self.mark = now

    def before_step(self) -> None:
        self.loaded = time.perf_counter()
        self.trainer.storage.put_scalar("data_time", self.loaded - self.mark)

    def after_step(self) -> None:
        trainer, now = self.trainer, time.perf_counter()
        seconds = now - self.mark
        self.mark = self.epoch_end = now
        trainer.storage.put_scalar("batch_time", seconds)
        self.steps_seen += 1
        if self.steps_seen > self.warmup_iter or self.pace is None:
            fresh = self.pace is None or self.steps_seen == self.warmup_iter + 1
            self.pace = seconds if fresh else self.pace + (seconds - self.pace) * max(0.02, 1 / (self.steps_seen - self.warmup_iter))
        left = self.seconds_left()
        trainer.comm_info["seconds_left"] = left
        if sys.stderr.isatty() and trainer.is_main:
            self.progress.seconds_each = left / max(1, trainer.total_steps - trainer.global_step)
            self.progress.done = trainer.global_step
            self.progress.show(f"{seconds:.2f} s a step")

    def seconds_left(self) -> float:
        trainer = self.trainer
        between = sum(self.between[-5:]) / len(self.between[-5:]) if self.between else 0.0
        return (self.pace or 0.0) * (trainer.total_steps - trainer.global_step) + between * (trainer.max_epoch - trainer.epoch)

    def after_train(self) -> None:
        self.trainer.logger.info(f"training took {format_seconds(self.trainer.elapsed())}")


@HOOKS.register_module()
class RuntimeProfiler(HookBase):
    """Profiles forward and backward of one batch after `warm_up` others before training, and logs the table.

    interrupt: ends the run afterwards. sort_by, row_limit: of torch.profiler's table. No weight is changed.
    """

    def __init__(
        self,
        forward: bool = True,
        backward: bool = True,
        interrupt: bool = False,
        warm_up: int = 2,
        sort_by: str = "self_cpu_time_total",
        row_limit: int = 30,
    ):
        self.forward, self.backward, self.interrupt = forward, backward, interrupt
        self.warm_up, self.sort_by, self.row_limit = warm_up, sort_by, row_limit

    def before_train(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        from pointcept3m.engines.loader import to_device

        trainer = self.trainer
        buffers = {name: buffer.clone() for name, buffer in trainer.bare_model.named_buffers()}
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if trainer.device.type == "cuda" else [])
        for index, batch in enumerate(trainer.train_loader):
            batch = to_device(batch, trainer.device)
            if index < self.warm_up and index + 1 < trainer.steps_per_epoch:
                self._run(batch)
                continue
            with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
                self._run(batch)
            break
        trainer.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():  # running statistics of normalisation moved
            for name, buffer in trainer.bare_model.named_buffers():
                buffer.copy_(buffers[name])
        trainer.logger.info("\n" + profiler.key_averages().table(sort_by=self.sort_by, row_limit=self.row_limit))
        if self.interrupt:
            raise SystemExit(0)

    def _run(self, batch: dict) -> None:
        with torch.set_grad_enabled(self.backward), self.trainer.precision.autocast():
            loss = self.trainer.model(batch)["loss"]
        if self.backward:
            loss.backward()

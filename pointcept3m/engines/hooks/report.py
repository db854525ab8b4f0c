"""The hook that writes run.json while training and report.html when it ends."""

import json
import time
from pathlib import Path
from typing import Any

from pointcept3m.engines.defaults import write_json
from pointcept3m.engines.facts import describe_run, memory_facts
from pointcept3m.engines.hooks.builder import HOOKS
from pointcept3m.engines.report import write_report
from pointcept3m.utils import comm
from pointcept3m.utils.hook import HookBase


@HOOKS.register_module()
class ReportWriter(HookBase):
    """Writes <save_path>/run.json (command, commit, seed, versions, throughput, memory) and report.html at the end.

    Stands last in the list of hooks, so that what the others write is in the page. Throughput counts the time of
    steps, their data included, and not that of evaluations.
    """

    writes_results = True

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.steps = 0
        self.step_seconds = self.mark = 0.0

    def before_train(self) -> None:
        path = Path(self.trainer.save_path) / "run.json"
        earlier = json.loads(path.read_text()) if self.trainer.global_step and path.is_file() else {}
        self.facts = {**earlier, **describe_run(self.trainer.model, self.trainer.device, self.trainer.seed)}
        if earlier:
            resumed = {"step": self.trainer.global_step, "time": self.facts["started"]}
            self.facts.update(started=earlier.get("started"), resumed=[*earlier.get("resumed", []), resumed])
        self._save()

    def before_epoch(self) -> None:
        self.mark = time.monotonic()

    def after_step(self) -> None:
        now = time.monotonic()
        self.step_seconds += now - self.mark
        self.mark = now
        self.steps += 1

    def after_epoch(self) -> None:
        self._save()

    def after_train(self) -> None:
        self._save()
        if comm.is_main_process():
            self.trainer.logger.info(f"report: {write_report(self.trainer.save_path)}")

    def _save(self) -> None:
        self.facts.update(steps=self.trainer.global_step, seconds=round(self.trainer.elapsed(), 3), **memory_facts())
        if self.steps:
            pace = self.steps / self.step_seconds
            self.facts.update(steps_per_second=pace, samples_per_second=pace * self.trainer.cfg.batch_size)
        if comm.is_main_process():
            write_json(Path(self.trainer.save_path) / "run.json", self.facts)

"""A training in stages, each of which starts from the weights of one before: one command, one folder, resumed where it was."""

import gc
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pointcept3m.utils import comm
from pointcept3m.utils.config import Config
from pointcept3m.utils.logger import get_root_logger
from pointcept3m.utils.registry import near_names

from .checkpoint import BEST, LAST, tests_last
from .defaults import RUN_FILES, check_writable, dump_config, fill_registries, runtime_of, with_defaults
from .trainer import TRAINERS

# Settings of the machine and of the run as a whole, which stages take from the config that lists them.
SHARED = (
    "seed", "deterministic", "num_worker", "worker_timeout", "enable_amp", "amp_dtype", "dist_timeout", "evaluate", "enable_wandb",
    "wandb_project", "custom_imports",
)  # fmt: skip
OWN = ("name", "start")  # entries of a stage that are no settings of its training
OF_THE_RUN = (*SHARED, "save_path", "weight", "resume", "train", "test", "batch_size_test")  # what the outer config may say otherwise than the last stage


@TRAINERS.register_module()
class StagedTrainer:
    """Trains `stages` in order, each as DefaultTrainer would in `<save_path>/<name>`, then tests the last one's weights by `cfg.test`.

    Args:
        stages: configs with `name` and, where a stage starts from the weights of an earlier one, `start`: that one's name. Its
            CheckpointLoader says where they go. A stage hands on the weights that its PreciseEvaluator tests: the best, or the last
            with `test_last` and where there is no validation.
            Settings of the run as a whole (`SHARED`) are the outer config's.
        rows: stages whose embeddings stand in the tables of the test beside the last one's, for a tester that takes `rows`.

    With `resume`, finished stages (they have metrics.json) are passed over, and one that was stopped goes on where it was. Without
    it, what an earlier run left in the folder moves to `previous-<n>/`.

    Raises: ValueError or KeyError, before anything is trained, for stages without a name, of one name, or that start from none, for
        settings of a stage that do not fit each other, and for settings beside the stages that none of them would hear of.
    """

    def __init__(self, cfg: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], rows: Sequence[str] = ()):
        fill_registries()
        self.cfg = with_defaults(cfg)
        self.stages = [Config(stage) for stage in stages]
        names = [stage.get("name") for stage in self.stages]
        if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise ValueError(f"StagedTrainer: every stage needs a name of its own, got {names}")
        for number, stage in enumerate(self.stages):
            start = stage.get("start")
            if start is not None and start not in names[:number]:
                raise KeyError(f"StagedTrainer: stage {stage.name!r} starts from {start!r}, which is no stage before it; {near_names(start, names[:number])}")
            runtime_of(with_defaults({key: value for key, value in stage.items() if key not in OWN}))
        self._refuse_unheard()
        for row in rows:
            if row not in names[:-1]:
                raise KeyError(f"StagedTrainer: rows names {row!r}, which is no stage before the last; {near_names(row, names[:-1])}")
        if self.cfg.weight:
            words = "train.stages.0.weight=... gives one to a stage"
            raise ValueError(f"StagedTrainer: weight is set, but stages start from each other's weights; {words}")
        self.rows, self.save_path = tuple(rows), Path(self.cfg.save_path)
        check_writable(self.save_path)

    def _refuse_unheard(self) -> None:
        """Raises ValueError for a setting beside the stages that no stage would hear of."""
        last = self.stages[-1]
        for key, value in self.cfg.items():
            told = last.get(key)
            if key == "data":
                value, told = ({split: section for split, section in part.items() if split != "test"} for part in (value, told or {}))
            if key in last and key not in OF_THE_RUN and value != told:
                where = ", ".join(f"train.stages.{number}.{key}" for number in range(len(self.stages)))
                raise ValueError(
                    f"StagedTrainer: {key} is set for the run as a whole, and stages have their own: say {where} ({', '.join(stage.name for stage in self.stages)}), "
                    "or an option of the config that reaches all of them"
                )

    def train(self) -> None:
        """Runs what is left of the stages, then the test. A signal ends it as it ends DefaultTrainer's."""
        self._prepare()
        for number, stage in enumerate(self.stages, 1):
            if (self.folder(stage.name) / "metrics.json").is_file():
                get_root_logger().info(f"stage {number} of {len(self.stages)}, {stage.name}: finished before")
                continue
            get_root_logger().info(f"stage {number} of {len(self.stages)}: {stage.name}")
            self._train_stage(stage)
            comm.synchronize()
        self._test()

    def folder(self, name: str) -> Path:
        """The run folder of a stage."""
        return self.save_path / name

    def weight_of(self, name: str) -> Path:
        """The weights that a stage hands on."""
        folder = self.folder(name) / "model"
        last = tests_last(next(stage for stage in self.stages if stage.name == name))
        return folder / f"{BEST}.pth" if not last and (folder / f"{BEST}.pth").is_file() else folder / f"{LAST}.pth"

    def stage_config(self, stage: Mapping[str, Any]) -> Config:
        """The whole config of a stage's training."""
        own = {key: value for key, value in stage.items() if key not in OWN}
        cfg = Config({**own, **{key: self.cfg[key] for key in SHARED if key in self.cfg}})
        cfg.save_path = str(self.folder(stage["name"]))
        if stage.get("start") is not None:
            cfg.weight = str(self.weight_of(stage["start"]))
        cfg.resume = bool(self.cfg.resume) and (Path(cfg.save_path) / "model" / f"{LAST}.pth").is_file()
        cfg.train = dict(type="DefaultTrainer")
        return cfg

    def _train_stage(self, stage: Mapping[str, Any]) -> None:
        cfg = self.stage_config(stage)
        TRAINERS.build(dict(cfg.train), cfg=cfg).train()
        gc.collect()  # its model and optimizer, before the next stage has its own

    def _prepare(self) -> None:
        if comm.is_main_process():
            self.save_path.mkdir(parents=True, exist_ok=True)
            there = [name for name in self._files() if (self.save_path / name).exists()]
            if there and not self.cfg.resume:
                target = self.save_path / f"previous-{1 + sum(1 for _ in self.save_path.glob('previous-*'))}"
                target.mkdir()
                for name in there:
                    shutil.move(self.save_path / name, target / name)
        comm.synchronize()
        dump_config(self.cfg, self.save_path)
        comm.synchronize()

    def _files(self) -> list[str]:
        """What this run writes into its folder."""
        return [*(stage.name for stage in self.stages), *RUN_FILES, "test.log", "embeddings", "result"]

    def _test(self) -> None:
        from .testers import TESTERS

        if not self.cfg.evaluate or "test" not in self.cfg.data:
            get_root_logger().info("no final test: " + ("evaluate=False" if not self.cfg.evaluate else "the config has no data.test"))
            return
        cfg = Config(self.cfg)
        cfg.weight, cfg.resume = str(self.weight_of(self.stages[-1].name)), False
        settings = dict(cfg.test)
        found = {row: next(iter(sorted((self.folder(row) / "embeddings").glob("*.safetensors"))), None) for row in self.rows}
        if found:
            missing = [row for row, path in found.items() if path is None]
            if missing:
                raise FileNotFoundError(f"{self.folder(missing[0])}/embeddings: no embeddings of stage {missing[0]!r}; its hooks need PreciseEvaluator")
            settings["rows"] = {**settings.get("rows", {}), **{row: str(path) for row, path in found.items()}}
        TESTERS.build(settings, cfg=cfg).run()
        dump_config(self.cfg, self.save_path)  # in place of the test's, which names weights: this is what repeats the run

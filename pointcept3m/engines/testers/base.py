"""What every test does: build data and model, load the weights, write down the scores."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pointcept3m.datasets.builder import build_dataset
from pointcept3m.engines.checkpoint import DoesNotFit, load_weights, unwrap
from pointcept3m.engines.convention import check_input
from pointcept3m.engines.defaults import (
    check_weight,
    dump_config,
    fill_registries,
    import_custom,
    runtime_of,
    settings_without_effect,
    with_defaults,
    write_json,
)
from pointcept3m.engines.facts import describe_run, memory_facts
from pointcept3m.engines.loader import CheckedCollate, EvaluationSampler, build_loader, shutdown_workers
from pointcept3m.engines.step import Precision
from pointcept3m.models.builder import build_model
from pointcept3m.utils import comm
from pointcept3m.utils.files import try_folder
from pointcept3m.utils.logger import close_log_file, get_root_logger
from pointcept3m.utils.registry import Registry, near_names
from pointcept3m.utils.seed import set_seed

TESTERS = Registry("testers")
Scores = tuple[dict[str, float], dict[str, dict[str, float]]]


def as_list(samples: list) -> list:
    """A batch of a test is the list of its samples: each is cut into fragments of its own."""
    return samples


class TesterBase:
    """Tests `model`, or the one that `cfg.model` and `cfg.weight` describe, on `cfg.data.test`.

    `test()` returns (scores, scores per class); `run()` also writes test.log, config.py, metrics.json, run.json and
    report.html to save_path, or to save_path/test where save_path is the folder of a training.
    """

    task = "test"
    protocol = ""  # how the scores of the last `test()` were measured, in words
    collate = staticmethod(as_list)  # makes a batch of a list of samples

    def __init__(self, cfg: Mapping[str, Any], model: nn.Module | None = None, test_loader: Any = None, verbose: bool = False):
        fill_registries()
        self.cfg = with_defaults(cfg)
        self.cfg.resume = False  # a test continues nothing
        import_custom(self.cfg)
        if model is None:
            check_weight(self.cfg)
        self.verbose = verbose
        self.device = next(unwrap(model).parameters()).device if model is not None else _device()
        self.precision = Precision(self.cfg.enable_amp, self.cfg.amp_dtype, self.device)
        self.save_path = Path(self.cfg.save_path)
        self.logger = get_root_logger()
        if model is None:
            self.seed = set_seed(self.cfg.seed)
        else:  # within a training, whose random states are its own
            self.seed = self.cfg.seed or 0
        self.test_loader = test_loader if test_loader is not None else self.build_test_loader()
        self.model = unwrap(model) if model is not None else self.build_model()

    def build_model(self) -> nn.Module:
        """The model with its weights. Raises ValueError where the config names none: a test of random weights is a mistake."""
        if not self.cfg.weight:
            raise ValueError("test: weight is not set; give the checkpoint to test, for example --options weight=exp/rooms/run/model/model_best.pth")
        return self.load_model().eval()

    def load_model(self) -> nn.Module:
        """The model with all its weights; keys are renamed as the config's CheckpointLoader says.

        What that hook lets pass (`part`, `allow_partial`) is for starting a training: a test of a model that is partly
        random is a mistake.
        """
        model = build_model(self.cfg.model).to(self.device)
        loader = next((hook for hook in self.cfg.hooks if hook.get("type") in ("CheckpointLoader", "CustomCheckpointLoader")), {})
        renaming = {key: loader[key] for key in ("keywords", "replacement") if key in loader}
        check_input(
            self.cfg.weight, self.cfg, loader.get("weight_color"), loader.get("check_input", True), section="test", logger=self.logger
        )
        try:
            load_weights(model, self.cfg.weight, **renaming, logger=self.logger)
        except DoesNotFit as error:
            raise ValueError(self._refusal(error)) from error
        return model

    def _refusal(self, error: DoesNotFit) -> str:
        """Why weights are not tested: that a training may let tensors pass is no advice here."""
        weight, kind = self.cfg.weight, self.cfg.model.get("type")
        if error.headless and self.task in ("semseg", "insseg"):
            return (
                f"test: {weight} has no class head, which a {kind} is tested by: it is a pretraining, or of another model. Fine-tune it on "
                f"labelled scenes first: pointcept3m train --config-file configs/rooms/semseg-spunet-v1m1-0-base.py --options weight={weight}"
            )
        if error.counts:
            return f"test: {weight} is of another number of classes: {error.counts}"
        return f"test: {error.summary}\n  test with the config the weights were trained with; a test takes every tensor or none"

    @property
    def test_section(self) -> Mapping[str, Any]:
        """`cfg.data.test`. Raises KeyError, with near names, where it is missing."""
        section = self.cfg.get("data") or {}
        if "test" not in section:
            raise KeyError(f"config: data.test is missing, which names what is tested on; {near_names('test', section)}")
        return section["test"]

    def build_test_loader(self) -> torch.utils.data.DataLoader:
        dataset = build_dataset(self.test_section)
        runtime = runtime_of(self.cfg)
        sampler = EvaluationSampler(len(dataset), runtime.batch_size_test, comm.get_rank(), comm.get_world_size())
        collate = CheckedCollate(self.collate, self.cfg.data.get("num_classes"), self.cfg.data.get("ignore_index", -1))
        return build_loader(dataset, sampler, collate, self.cfg.seed or 0, runtime.num_worker, self.cfg.worker_timeout)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return comm.is_main_process()

    def test(self, check_stop: Callable[[], None] = lambda: None) -> Scores:
        """Scores by name, and by class and name. `check_stop` is called between scenes and may raise."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its test is")

    def run(self) -> Scores:
        """`test()` as a run of its own, with its files in save_path."""
        from pointcept3m.engines.hooks.writer import write_metrics
        from pointcept3m.engines.report import write_report

        start = time.monotonic()
        if (self.save_path / "model" / "model_last.pth").exists():
            self.save_path = self.save_path / "test"  # the folder of a training keeps its own config.py and metrics.json
        check_writable(self.save_path)
        get_root_logger(self.save_path / "test.log", file_mode="w")
        dump_config(self.cfg, self.save_path, self.seed)
        facts = describe_run(self.model, self.device, self.seed)
        for note in (settings_without_effect(self.cfg), self.precision.note):
            if note:
                self.logger.warning(note)
        try:
            scores, per_class = self.test()
            if self.is_main:
                seconds = time.monotonic() - start
                task, protocol = self.cfg.task or self.task, {"test": self.protocol} if self.protocol else {}
                path = write_metrics(self.save_path, self.cfg, task, "test", self.seed, scores, per_class, seconds, protocol)
                write_json(self.save_path / "run.json", {**facts, "seconds": round(seconds, 3), **memory_facts()})
                self.logger.info(f"scores are in {path}, report: {write_report(self.save_path)}")
        except Exception as error:
            self.logger.error(f"test stopped: {type(error).__name__}: {error}", exc_info=error, extra={"file_only_traceback": True})
            raise
        finally:
            shutdown_workers(self.test_loader)
            close_log_file()
        return scores, per_class


def check_writable(folder: Path) -> None:
    """Makes `folder` and writes a file in it that is gone again. Raises the OSError of whichever fails, as a sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_folder(folder)
    except OSError as error:
        raise OSError(error.errno, f"nothing can be written to {folder} ({error.strerror}); save_path says where results go") from error


@contextmanager
def scene_files(name: str, what: str, folder: Path, finished: int) -> Iterator[None]:
    """Within it a scene's `what` is written to `folder`; an OSError gains a sentence that says how many scenes are safe."""
    try:
        yield
    except OSError as error:
        kept = f"the {finished} scenes before it are whole in {folder}" if finished else "no scene was finished before it"
        raise OSError(error.errno, f"scene {name}: its {what} cannot be written ({error.strerror}); {kept}") from error


def _device() -> torch.device:
    from pointcept3m.engines.trainer import current_device

    return current_device()

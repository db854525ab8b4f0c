"""The training loop. What happens around it is in hooks, what happens inside a step is in `step`."""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pointcept3m.datasets.builder import build_dataset
from pointcept3m.models.builder import build_model
from pointcept3m.utils import comm
from pointcept3m.utils.errors import add_note
from pointcept3m.utils.events import EventStorage, RunWriter
from pointcept3m.utils.hook import HookBase
from pointcept3m.utils.logger import close_log_file, get_root_logger
from pointcept3m.utils.optimizer import build_optimizer
from pointcept3m.utils.registry import Registry, near_names
from pointcept3m.utils.scheduler import build_scheduler
from pointcept3m.utils.seed import mix_seed, preserved_rng, set_seed

from . import step
from .checkpoint import save_training, saved_seed, unwrap
from .convention import check_sections, input_convention
from .defaults import (
    check_start,
    dump_config,
    fill_registries,
    import_custom,
    prepare_run_folder,
    resume_path,
    runtime_of,
    settings_without_effect,
    with_defaults,
)
from .facts import save_code_state
from .hooks.builder import build_hooks
from .labels import LabelWatch, NoLabelsError, check_class_count
from .loader import CheckedCollate, EpochBatchSampler, EvaluationSampler, build_loader, shutdown_workers, to_device

TRAINERS = Registry("trainers")


class StopTraining(Exception):
    """A signal asks the run to save and end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class TrainerBase:
    """Calls the hooks at their six points; knows epochs and steps, but no model and no data."""

    def __init__(self) -> None:
        self.hooks: list[HookBase] = []
        self.epoch = self.start_epoch = 0
        self.max_epoch = 0
        self.epoch_step = 0  # steps of this epoch that are done
        self.global_step = 0  # steps of the whole training that are done
        self.storage = EventStorage()
        self.comm_info: dict[str, Any] = {}

    def register_hooks(self, hooks: list[HookBase]) -> None:
        for hook in hooks:
            hook.trainer = self
            self.hooks.append(hook)

    def call_hooks(self, point: str) -> None:
        """Calls one of the six points on every hook.

        Except around a step, hooks get random states of their own: an evaluation or a picture does not change
        the training, and an interrupted epoch can be continued exactly. (The CheckpointLoader sets the states.)
        """
        for hook in self.hooks:
            self._call_hook(hook, point)
        self.write_scalars()

    def finish(self) -> None:
        """Calls `after_train` on every hook.

        Where one fails, a final test say, the training is done nevertheless: those that write its results are still
        called, and then the error is raised.
        """
        failed: Exception | None = None
        for hook in self.hooks:
            if failed is not None and not getattr(hook, "writes_results", False):
                continue
            try:
                self._call_hook(hook, "after_train")
            except StopTraining:
                raise
            except Exception as error:
                if failed is not None:
                    add_note(failed, f"{type(hook).__name__} failed too ({type(error).__name__}: {error})")
                failed = failed or error
        if failed is not None:
            raise failed
        self.write_scalars()

    def _call_hook(self, hook: HookBase, point: str) -> None:
        if point.endswith("_step") or getattr(hook, "sets_random_state", False):
            getattr(hook, point)()
        else:
            with preserved_rng():
                getattr(hook, point)()

    def write_scalars(self) -> None:
        """Sends what was put into the storage under a name with a slash (`val/psnr`) to the files."""


@TRAINERS.register_module("DefaultTrainer")
class DefaultTrainer(TrainerBase):
    """Trains `cfg.model` on `cfg.data.train` with Pointcept's settings and hooks.

    Assumes one model, one optimizer and one loss: `model(input_dict)` returns a dict with the scalar `loss` while
    training (further scalars are logged). Hooks read and change `cfg, model, optimizer, scheduler, storage,
    comm_info, logger, writer, save_path, train_loader, val_loader, epoch, max_epoch, epoch_step, global_step`.
    `report(...)` takes final scores.
    """

    def __init__(self, cfg: Mapping[str, Any]):
        super().__init__()
        self.cfg = cfg = with_defaults(cfg)
        fill_registries()
        import_custom(cfg)
        self.logger = get_root_logger()
        self.device = current_device()
        self.runtime = runtime_of(cfg)
        # What can be wrong in a config is found before anything on the disk is touched.
        hooks = self.build_hooks()
        check_start(cfg)
        check_sections(cfg)
        precision = step.Precision(cfg.enable_amp, cfg.amp_dtype, self.device)
        self.precision, self.scaler = precision, precision.scaler
        # Samples are drawn by the seed, so a resumed run goes on with that of its checkpoint, given or drawn.
        checkpoint = resume_path(cfg)
        seed = saved_seed(checkpoint) if checkpoint else None
        self.seed = comm.all_gather(set_seed(cfg.seed if seed is None else seed))[0]
        set_seed(self.seed)
        if cfg.deterministic:
            torch.use_deterministic_algorithms(True)
        self.max_epoch = self.runtime.max_epoch
        # Data first: that they are missing shows at once, while a model may take minutes to build.
        self.train_loader = self.build_train_loader()
        self.val_loader = self.build_val_loader()
        self.model = self.build_model()
        check_class_count(cfg, self.bare_model)
        self.labels = LabelWatch(cfg, self.bare_model, getattr(getattr(self.train_loader, "dataset", None), "dataset", None))
        self.optimizer = build_optimizer(cfg.optimizer, self.model, cfg.param_dicts)
        self.scheduler = self.build_scheduler()
        set_seed(self.seed if comm.get_rank() == 0 else mix_seed(self.seed, comm.get_rank()))

        self.save_path = prepare_run_folder(cfg)
        self.logger = get_root_logger(self.save_path / "train.log", file_mode="a" if cfg.resume else "w")
        dump_config(cfg, self.save_path, self.seed)
        save_code_state(self.save_path)
        self.accumulated = 0  # backward passes since the last update
        self.saved_step: int | None = None  # the step from which an error leaves something to save; None: not yet
        self.between_updates = True  # false while gradients and weights are being changed
        self.best_metric_value = -float("inf")
        self.results: dict[str, float] = {}  # final scores, for metrics.json
        self.per_class: dict[str, dict[str, float]] = {}
        self.stop_signal = self.agreed_stop = 0
        self.seconds, self._clock = 0.0, time.monotonic()
        self.register_hooks(hooks)
        self._describe()

    # ---- parts that a subclass may replace

    def build_hooks(self) -> list[HookBase]:
        """The hooks of the config; MetricsWriter and ReportWriter join at the end where it names none."""
        entries = list(self.cfg.hooks)
        names = [entry.get("type") for entry in entries]
        if "MetricsWriter" not in names:
            entries.insert(names.index("ReportWriter") if "ReportWriter" in names else len(entries), dict(type="MetricsWriter"))
        if "ReportWriter" not in names:
            entries.append(dict(type="ReportWriter"))
        if (self.cfg.weight or self.cfg.resume) and not {"CheckpointLoader", "CustomCheckpointLoader"} & set(names):
            raise ValueError("weight or resume is set, but hooks has no dict(type='CheckpointLoader') that would load it")
        return build_hooks(entries)

    def build_model(self) -> nn.Module:
        model = build_model(self.cfg.model).to(self.device)
        world = comm.get_world_size()
        if self.cfg.sync_bn and world > 1:
            if self.device.type != "cuda":
                raise ValueError("sync_bn=True needs GPUs: torch has no synchronized batch norm on the CPU")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if world > 1:
            model = nn.parallel.DistributedDataParallel(
                model,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.find_unused_parameters,
            )
        return model

    def build_train_loader(self) -> torch.utils.data.DataLoader:
        from pointcept3m.datasets.collate import point_collate_fn

        # `loop` passes make one epoch; the sampler repeats, so that a dataset need not know.
        dataset = self._dataset("train", drop=("loop",))
        try:
            self.sampler = EpochBatchSampler(
                len(dataset), self.runtime.batch_size, self.runtime.loop, seed=self.seed, rank=comm.get_rank(), world=comm.get_world_size()
            )
        except ValueError as error:
            raise ValueError(f"data.train: {error}") from error
        return self._loader(dataset, self.sampler, partial(point_collate_fn, mix_prob=self.cfg.mix_prob))

    def build_val_loader(self) -> torch.utils.data.DataLoader | None:
        """None where `evaluate` is false or the config has no data.val."""
        if not self.cfg.evaluate or "val" not in self.cfg.data:
            return None
        from pointcept3m.datasets.collate import collate_fn

        dataset = self._dataset("val")
        sampler = EvaluationSampler(len(dataset), self.runtime.batch_size_val, comm.get_rank(), comm.get_world_size())
        return self._loader(dataset, sampler, collate_fn)

    def build_scheduler(self) -> Any:
        """The schedule over all updates of the training; None where the config has none."""
        if self.cfg.get("scheduler") is None:
            return None
        updates = -(-self.total_steps // self.cfg.gradient_accumulation_steps)
        return build_scheduler(self.cfg.scheduler, self.optimizer, updates)

    @cached_property
    def writer(self) -> RunWriter:
        """Where scalars and pictures go; made at first use, when the step of a resumed run is known."""
        cfg = self.cfg
        wandb = dict(project=cfg.wandb_project, name=Path(cfg.save_path).name, config=cfg.to_dict()) if cfg.enable_wandb else None
        resume_step = self.global_step if cfg.resume else None
        return RunWriter(self.save_path if comm.is_main_process() else None, resume_step, wandb, self.logger)

    def write_scalars(self) -> None:
        fresh = self.storage.take_fresh()
        if fresh:
            self.writer.add_scalars(fresh, self.global_step)

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper of distributed training."""
        return unwrap(self.model)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return comm.is_main_process()

    # ---- the loop

    @property
    def steps_per_epoch(self) -> int:
        return len(self.sampler)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.max_epoch

    def train(self) -> None:
        """Runs all epochs that are left.

        SIGTERM and SIGINT end the run after the step: it saves and raises SystemExit with 143 or 130; a second
        signal ends it at once. So does an error between two updates, for example a file that cannot be read: it saves
        the state after the last complete step and is raised. Raises: NonFiniteError before the update that would have
        spoilt the weights; nothing is saved then.
        """
        self._clock = time.monotonic()
        try:
            with self._signals():
                self.call_hooks("before_train")
                self.writer  # noqa: B018  opened while global_step is the one resumed from
                self.saved_step = self.global_step
                if self.epoch >= self.max_epoch:
                    self.logger.info(f"training: all {self.max_epoch} epochs are done already")
                while self.epoch < self.max_epoch:
                    self.run_epoch()
                self.saved_step = self.global_step  # from here on hooks may load other weights
                self.finish()
        except StopTraining as stop:
            self._save_and_leave(stop)
        except Exception as error:
            self._save_at_error(error)
            # The sentence reaches the user from the caller; the log keeps where it happened.
            self.logger.error(f"training stopped: {type(error).__name__}: {error}", exc_info=error, extra={"file_only_traceback": True})
            raise
        finally:
            self.close()

    def run_epoch(self) -> None:
        """One epoch, from where it was interrupted."""
        self.sampler.set_epoch(self.epoch, self.epoch_step)
        self.model.train()
        self.call_hooks("before_epoch")
        self.labels.start(whole=self.epoch_step == 0)
        for batch in self.train_loader:
            self.labels.look(batch)
            self.comm_info["iter"] = self.epoch_step
            self.comm_info["input_dict"] = batch
            self.call_hooks("before_step")
            self.run_step()
            self.epoch_step += 1
            self.global_step += 1
            self.call_hooks("after_step")
            self.check_stop(agreed=True)
        self.labels.end(self.epoch)
        comm.share_buffers(self.bare_model)
        self.call_hooks("after_epoch")
        self.storage.reset_histories()
        self.epoch, self.epoch_step = self.epoch + 1, 0
        if self.cfg.empty_cache_per_epoch and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def run_step(self) -> None:
        """Forward, backward and, after `gradient_accumulation_steps` of them or at the very end, the update."""
        comm.Heartbeat.beat(self.global_step)
        batch = self.comm_info["input_dict"] = to_device(self.comm_info["input_dict"], self.device)
        try:
            with self.precision.autocast():
                output = self.model(batch)
        except Exception as error:
            error = step.explained(error)
            add_note(error, f"at {self.where()}, batch {batch_names(batch)}")
            raise error
        step.check_output(output)
        self.comm_info["model_output_dict"] = output
        self.comm_info["scalars"] = step.scalars_of(output)
        self._check_loss(self.comm_info["scalars"], batch)
        self.between_updates = False
        with comm.Heartbeat.explained("gradients"):
            step.backward(output["loss"], self.cfg.gradient_accumulation_steps, self.scaler)
        self.accumulated += 1
        self.comm_info["lr"] = self.optimizer.param_groups[0]["lr"]  # of this step, before the schedule moves on
        if self.accumulated == self.cfg.gradient_accumulation_steps or self.global_step + 1 == self.total_steps:
            norm = step.update(self.model, self.optimizer, self.scheduler, self.scaler, self.cfg.clip_grad, self.where())
            self.comm_info["scalars"]["grad_norm"] = norm
            self.accumulated = 0
        self.between_updates = True
        if self.cfg.empty_cache and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def report(self, metrics: Mapping[str, float], per_class: Mapping[str, Mapping[str, float]] | None = None, prefix: str = "val") -> None:
        """Takes scores: they are written as curves `prefix/name` at this step and stand in metrics.json at the end.

        per_class: `{"chair": {"iou": 0.5, "acc": 0.6}}`.
        """
        scores = {name: float(value) for name, value in metrics.items()}
        self.results.update(scores)
        for name, row in (per_class or {}).items():
            self.per_class.setdefault(name, {}).update({key: float(value) for key, value in row.items()})
        for name, value in scores.items():
            self.storage.put_scalar(f"{prefix}/{name}", value)

    def check_stop(self, agreed: bool = False) -> None:
        """Raises StopTraining where a signal has arrived. Long evaluations call it between scenes.

        Several processes stop at the same step only (`agreed`), since each hears of the signal at another moment.
        """
        number = self.stop_signal if comm.get_world_size() == 1 else self.agreed_stop if agreed else 0
        if number:
            raise StopTraining(number)

    def where(self) -> str:
        """The present step in words."""
        return f"step {self.global_step} (epoch {self.epoch + 1}/{self.max_epoch}, {self.epoch_step + 1}/{self.steps_per_epoch})"

    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        return self.seconds

    def close(self) -> None:
        """Ends worker processes and writes files out."""
        shutdown_workers(self.train_loader)
        shutdown_workers(self.val_loader)
        if "writer" in self.__dict__:
            self.writer.close()
        close_log_file()

    # ---- inside

    def _dataset(self, name: str, drop: tuple[str, ...] = ()) -> Any:
        section = self.cfg.get("data") or {}
        if name not in section:
            raise KeyError(f"config: data.{name} is missing; {near_names(name, section)}")
        return build_dataset({key: value for key, value in section[name].items() if key not in drop})

    def _loader(self, dataset: Any, sampler: Any, collate: Any) -> torch.utils.data.DataLoader:
        collate = CheckedCollate(collate, self.cfg.data.get("num_classes"), self.cfg.data.get("ignore_index", -1))
        return build_loader(
            dataset, sampler, collate, self.seed, self.runtime.num_worker, self.cfg.worker_timeout, pin_memory=self.device.type == "cuda"
        )

    def _check_loss(self, scalars: Mapping[str, float], batch: Any) -> None:
        bad = [name for name, value in scalars.items() if "loss" in name and not abs(value) < float("inf")]
        anywhere, self.agreed_stop = comm.agree_max(len(bad), self.stop_signal)
        if not anywhere:
            return
        names = comm.all_gather(batch_names(batch) if bad else None)
        if not bad:
            raise step.NonFiniteError(f"{self.where()}: the loss of another process is not finite; its batch: {[n for n in names if n]}")
        values = ", ".join(f"{name} {value:g}" for name, value in scalars.items())
        raise step.NonFiniteError(f"{self.where()}: {bad[0]} is not finite ({values}); batch: {batch_names(batch)}; nothing was updated or saved")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, frame: Any) -> None:
            if self.stop_signal:
                raise SystemExit(128 + number)
            self.stop_signal = number

        try:
            old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: whoever runs us there handles signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _save_and_leave(self, stop: StopTraining) -> None:
        with preserved_rng():
            path = save_training(self, Path(self.save_path) / "model")
        done = f"{self.global_step} of {self.total_steps} steps done (epoch {min(self.epoch + 1, self.max_epoch)}/{self.max_epoch})"
        self.logger.info(f"{stop}: saved {path} with {done}; continue with --resume (train.sh: -r true)")
        raise SystemExit(128 + stop.number)

    def _save_at_error(self, error: Exception) -> None:
        """Saves where steps are done that no checkpoint has yet and the state is whole; a note of `error` says so.

        Several processes do not: saving takes all of them, and the others know nothing of the error.
        """
        fresh = self.saved_step is not None and self.global_step > self.saved_step
        spoilt = isinstance(error, (FloatingPointError, NoLabelsError, comm.MissingRankError)) or not self.between_updates
        if not fresh or spoilt or comm.get_world_size() > 1:
            return
        try:
            with preserved_rng():
                path = save_training(self, Path(self.save_path) / "model")
        except Exception as second:  # a full disk, say: the error that came first is the one to tell
            if str(second) != str(error):
                add_note(error, f"the state after step {self.global_step} could not be saved ({type(second).__name__}: {second})")
            return
        note = f"the state after step {self.global_step} is saved in {path}; continue with --resume (train.sh: -r true)"
        add_note(error, note)
        self.logger.info(note)

    def _describe(self) -> None:
        if idle := settings_without_effect(self.cfg):
            self.logger.warning(idle)
        if self.precision.note:
            self.logger.warning(self.precision.note)
        if self.cfg.seed not in (None, self.seed):
            self.logger.warning(f"seed: {self.seed} of the checkpoint goes on; the config's {self.cfg.seed} is not used")
        parameters = sum(p.numel() for p in self.model.parameters())
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.logger.info(f"run folder {self.save_path}, seed {self.seed}, {self.device.type}, {comm.get_world_size()} process(es)")
        self.logger.info(f"input: {input_convention(self.cfg)}")
        self.logger.info(f"model {self.cfg.model.get('type')}: {parameters:,} parameters, {trainable:,} of them trained")
        self.logger.info(
            f"{self.steps_per_epoch} steps an epoch x {self.max_epoch} epochs (each {self.runtime.loop} passes over {self.sampler.size} samples), "
            f"batch {self.runtime.batch_size} x {self.cfg.gradient_accumulation_steps}"
        )


def current_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = comm.get_local_rank()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def batch_names(batch: Any) -> list[str]:
    """The names of the scenes in a batch, for error sentences."""
    names = batch.get("name", []) if isinstance(batch, Mapping) else []
    return [names] if isinstance(names, str) else list(names)

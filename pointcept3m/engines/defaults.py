"""What every run starts with: the config with its defaults, the run folder, the numbers derived."""

import importlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointcept3m.datasets.transforms.dialect import explicit_section
from pointcept3m.utils import comm
from pointcept3m.utils.config import SETTINGS, Config, parse_options
from pointcept3m.utils.files import atomic_write, near_files, try_folder
from pointcept3m.utils.machine import usable_cores
from pointcept3m.utils.registry import near_names

from .arguments import default_argument_parser as default_argument_parser  # its name in Pointcept

# The settings a config need not have; configs/_base_/default_runtime.py says the same, with a comment for each.
RUNTIME_DEFAULTS: dict[str, Any] = dict(
    weight=None, resume=False, evaluate=True, test_only=False, seed=None, deterministic=False, save_path="exp/default",
    num_worker=16, worker_timeout=600, batch_size=16, batch_size_val=None, batch_size_test=None, gradient_accumulation_steps=1,
    epoch=100, eval_epoch=100, clip_grad=None, sync_bn=False, enable_amp=False, amp_dtype="float16", empty_cache=False,
    empty_cache_per_epoch=False, find_unused_parameters=False, mix_prob=0, param_dicts=None, dist_timeout=180,
    enable_wandb=False, wandb_project="pointcept3m", wandb_key=None, task=None,
    hooks=[
        dict(type="CheckpointLoader"), dict(type="ModelHook"), dict(type="IterationTimer", warmup_iter=2), dict(type="InformationWriter"),
        dict(type="SemSegEvaluator"), dict(type="CheckpointSaver", save_freq=None), dict(type="PreciseEvaluator", test_last=False),
        dict(type="MetricsWriter"),
    ],
    train=dict(type="DefaultTrainer"),
    test=dict(type="SemSegTester", verbose=True),
)  # fmt: skip

RUN_FILES = ("config.py", "train.log", "metrics.csv", "metrics.json", "run.json", "code.diff", "report.html", "pictures", "model")


def default_config_parser(file_path: str | Path, options: Mapping[str, Any] | Sequence[str] | None = None) -> Config:
    """The config in `file_path` with `options` on top (a dict, or `["a.b=c"]`)."""
    return Config.fromfile(file_path, options if isinstance(options, Mapping) else parse_options(options))


def with_defaults(cfg: Mapping[str, Any]) -> Config:
    """A copy of `cfg` that has every runtime setting, and a `mode` in every NormalizeColor of `data`.

    Raises: KeyError, with near names, for an unknown setting.
    """
    unknown = [key for key in cfg if key not in SETTINGS]
    if unknown:
        raise KeyError(f"config: unknown setting {unknown[0]!r}; {near_names(unknown[0], SETTINGS)}")
    full = Config({**RUNTIME_DEFAULTS, **cfg})
    if isinstance(full.get("data"), dict):
        full.data = {name: explicit_section(section) for name, section in full.data.items()}
    return full


def resume_path(cfg: Config) -> Path | None:
    """The checkpoint to continue from: `resume` itself where it is a path, with True the run's own; None with False.

    `weight` is never it: that names what the run was started from, and stays so when it is resumed.
    """
    if not cfg.resume:
        return None
    return Path(cfg.save_path) / "model" / "model_last.pth" if cfg.resume is True else Path(cfg.resume)


def settings_without_effect(cfg: Config) -> str:
    """A sentence about settings of Pointcept's configs that are accepted here and read by nobody; "" where none is set."""
    idle = {
        "test_only": "pointcept3m test is the way to test only",
        "wandb_key": "log in with `wandb login` or WANDB_API_KEY",
        "evaluate_interval": "eval_epoch says how often is evaluated",
    }
    if any(hook.get("type") == "CustomSemSegEvaluator" for hook in cfg.hooks):
        del idle["evaluate_interval"]
    given = [f"{name} ({instead})" for name, instead in idle.items() if cfg.get(name)]
    return f"settings without effect here: {', '.join(given)}" if given else ""


@dataclass(frozen=True)
class Runtime:
    """Numbers that follow from a config and the number of processes; they are not written back into the config."""

    max_epoch: int  # rounds with an evaluation after each
    loop: int  # passes over the data in one round
    batch_size: int  # of all processes together
    batch_size_val: int  # per process
    batch_size_test: int  # per process
    num_worker: int  # per process


def runtime_of(cfg: Config) -> Runtime:
    """The derived numbers of `cfg`. Raises ValueError, with the way out, where they do not fit."""
    world = comm.get_world_size()
    for name in ("epoch", "eval_epoch", "batch_size", "gradient_accumulation_steps"):
        if not isinstance(cfg[name], int) or cfg[name] < 1:
            raise ValueError(f"{name} must be a positive whole number, got {cfg[name]!r}")
    if cfg.epoch % cfg.eval_epoch:
        divisors = [n for n in range(1, cfg.epoch + 1) if cfg.epoch % n == 0]
        near = min(divisors, key=lambda n: (abs(n - cfg.eval_epoch), n))
        raise ValueError(
            f"epoch = {cfg.epoch} must be a multiple of eval_epoch = {cfg.eval_epoch}: a training is eval_epoch rounds of "
            f"epoch // eval_epoch passes over the data, with an evaluation after each round; eval_epoch={near} would fit"
        )
    if cfg.batch_size % world:
        raise ValueError(f"batch_size = {cfg.batch_size} counts all processes and must be a multiple of their number, {world}")

    def per_process(name: str) -> int:
        if cfg[name] is None:
            return 1
        if cfg[name] % world or cfg[name] < 1:
            raise ValueError(f"{name} = {cfg[name]} counts all processes and must be a multiple of their number, {world}")
        return cfg[name] // world

    return Runtime(
        max_epoch=cfg.eval_epoch,
        loop=cfg.epoch // cfg.eval_epoch,
        batch_size=cfg.batch_size,
        batch_size_val=per_process("batch_size_val"),
        batch_size_test=per_process("batch_size_test"),
        # More workers than cores only cost memory; a sample does not depend on their number.
        num_worker=min(-(-cfg.num_worker // world), usable_cores()),
    )


def class_settings(cfg: Any) -> tuple[int, list[str], int]:
    """Number of classes, their names and the ignored label, from `cfg.data`. Raises KeyError where num_classes is missing."""
    if "num_classes" not in cfg.data:
        raise KeyError("config: data.num_classes is missing; semantic segmentation is scored by it")
    number = cfg.data.num_classes
    names = list(cfg.data.get("names", [])) or [str(k) for k in range(number)]
    if len(names) != number:
        raise ValueError(f"config: data.names has {len(names)} entries, data.num_classes is {number}")
    return number, names, cfg.data.get("ignore_index", -1)


def check_weight(cfg: Config) -> None:
    """Raises FileNotFoundError, with near files, where `cfg.weight` does not exist."""
    if cfg.weight and not Path(cfg.weight).is_file():
        raise FileNotFoundError(f"weight: no file {cfg.weight}; {near_files(cfg.weight)}; weight=None starts from scratch")


def check_writable(folder: Path) -> None:
    """Raises OSError, as a sentence, where files cannot be made in `folder`; a folder that is not there is not made."""
    try:
        near = folder.resolve()
        while not near.exists() and near.parent != near:
            near = near.parent
        try_folder(near)
    except OSError as error:
        raise type(error)(
            error.errno, f"save_path: nothing can be written to {folder} ({error.strerror}); --options save_path=FOLDER chooses another"
        ) from error


def check_start(cfg: Config) -> None:
    """Whether the files that a training starts or continues from are there, and will still be when they are read.

    Raises: FileNotFoundError where one is missing; ValueError where `weight` is among the files of an earlier run that
    a new run in the same folder moves away; OSError where nothing can be written to `save_path`.
    """
    check_writable(Path(cfg.save_path))
    checkpoint = resume_path(cfg)
    if checkpoint is None:
        check_weight(cfg)
        own = Path(cfg.save_path).resolve() / "model"
        if cfg.weight and Path(cfg.weight).resolve().is_relative_to(own) and (own / "model_last.pth").exists():
            raise ValueError(
                f"weight: {cfg.weight} lies in the run folder {cfg.save_path}, whose files a new training there moves away; "
                "give another save_path (train.sh: -n NAME), or --resume to continue that run"
            )
    elif not checkpoint.is_file():
        if cfg.resume is True:
            raise FileNotFoundError(f"resume: {cfg.save_path} has no model/model_last.pth yet, so nothing was saved; start without --resume")
        raise FileNotFoundError(f"resume: no file {checkpoint}; {near_files(checkpoint)}")


def import_custom(cfg: Mapping[str, Any]) -> None:
    """Imports what `custom_imports = dict(imports=["package.module", "path/to/file.py"])` names, so that registries fill.

    Raises: ModuleNotFoundError or FileNotFoundError, unless `allow_failed_imports` is true.
    """
    section = cfg.get("custom_imports")
    if not section:
        return
    names = section["imports"] if isinstance(section, Mapping) else section
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in [names] if isinstance(names, str) else names:
        try:
            _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
        except (ModuleNotFoundError, FileNotFoundError):
            if not (isinstance(section, Mapping) and section.get("allow_failed_imports", False)):
                raise


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"custom_imports: no file {path}; {near_files(path)}")
    name = f"pointcept3m_custom_{path.resolve().stem}"
    if getattr(sys.modules.get(name), "__file__", None) == str(path.resolve()):
        return
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def fill_registries() -> None:
    """Imports the packages whose classes configs name."""
    for package in ("pointcept3m.datasets", "pointcept3m.models", "pointcept3m.engines.hooks", "pointcept3m.engines.testers"):
        importlib.import_module(package)


def prepare_run_folder(cfg: Config) -> Path:
    """Makes `save_path`; files of an earlier run in it, which has a checkpoint, move to `save_path/previous-<n>/`.

    A resumed run keeps them. Only the main process acts.
    """
    folder = Path(cfg.save_path)
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        if not cfg.resume and (folder / "model" / "model_last.pth").exists():
            number = 1 + sum(1 for _ in folder.glob("previous-*"))
            target = folder / f"previous-{number}"
            target.mkdir()
            for name in [*RUN_FILES, *(path.name for path in folder.glob("events.out.tfevents.*"))]:
                if (folder / name).exists():
                    shutil.move(folder / name, target / name)
    comm.synchronize()
    return folder


def dump_config(cfg: Config, folder: Path, seed: int | None = None) -> None:
    """Writes `config.py`, from which the run can be repeated, with the seed that was drawn for it.

    A resumed run keeps the one that it was started with.
    """
    if comm.is_main_process() and not (cfg.resume and (folder / "config.py").is_file()):
        repeatable = Config(cfg)
        repeatable.resume = False
        if repeatable.seed is None:
            repeatable.seed = seed
        repeatable.dump(folder / "config.py")


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, whole or not at all; NaN and inf become null, since JSON has no word for them."""
    text = json.dumps(_json_values(content), indent=2, ensure_ascii=False) + "\n"
    atomic_write(path, lambda stream: stream.write(text.encode()))


def _json_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_values(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value

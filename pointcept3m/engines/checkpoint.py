"""Checkpoints: written whole or not at all, read without running code from the file, resumed to the digit."""

import logging
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from pointcept3m.utils import comm
from pointcept3m.utils.config import Config
from pointcept3m.utils.files import atomic_copy, atomic_write, near_files, remove_leftovers
from pointcept3m.utils.registry import near_names
from pointcept3m.utils.seed import mix_seed, rng_state, set_rng_state, set_seed

LAST, BEST = "model_last", "model_best"


class DoesNotFit(ValueError):
    """Weights and model do not match. summary: what differs, without advice for a training; headless: the file has none
    of the model's class heads; counts: which head has how many classes in either, or "".
    """

    def __init__(self, summary: str, advice: str, headless: bool, counts: str):
        super().__init__(f"{summary}\n{advice}")
        self.summary, self.headless, self.counts = summary, headless, counts


def numpy_scalars() -> list[Any]:
    """What a numpy number needs to be unpickled: Pointcept stores its best metric as one. Constructs values only."""
    core = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    encode = __import__("_codecs").encode
    return [(core.scalar, "numpy.core.multiarray.scalar"), (core.scalar, "numpy._core.multiarray.scalar"), np.dtype, encode, *kinds]


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a .pth (weights_only, no code runs) or .safetensors file; always with `state_dict`, on the CPU.

    mmap: tensors are read from the disk when they are looked at.
    Raises: FileNotFoundError with near files; ValueError for a truncated file or one that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no file {path}; {near_files(path)}")
    if path.suffix == ".safetensors":
        return {"state_dict": _read_safetensors(path)}
    try:
        with torch.serialization.safe_globals(numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a damaged file
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "Weights only load failed" in str(error) and "Unsupported" in str(error):
            wanted = next((line.strip() for line in str(error).splitlines() if "Unsupported" in line), first)
            raise ValueError(f"checkpoint {path}: holds more than tensors and plain values, and is refused ({wanted})") from error
        size = path.stat().st_size
        raise ValueError(f"checkpoint {path}: truncated or damaged, {size:,} bytes cannot be read ({first})") from error
    if isinstance(content, Mapping):
        for key in ("state_dict", "model", "net"):
            if isinstance(content.get(key), Mapping):
                return {**content, "state_dict": dict(content[key])}
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return {"state_dict": dict(content)}
    keys = sorted(map(str, content))[:8] if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"checkpoint {path}: wanted a 'state_dict' or tensors by name, got {keys}")


def tests_last(cfg: Mapping[str, Any]) -> bool:
    """Whether a run's final test is of its last weights, not of the best on what it validates on: what stands for the run elsewhere."""
    return any(hook.get("type") == "PreciseEvaluator" and hook.get("test_last") for hook in cfg.get("hooks") or ())


def saved_config(path: str | Path) -> Config | None:
    """The config of the run that wrote a `.pth` or `.safetensors` file; None where the file does not carry one.

    Raises: as `read_checkpoint`; ValueError for a text that is more than literals.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and path.is_file():
        text = _safetensors_metadata(path).get("config")
    else:
        text = read_checkpoint(path, mmap=True).get("config")
    return Config.fromtext(text, f"{path}: config") if isinstance(text, str) and text else None


def _safetensors_metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {path}: truncated or damaged, {path.stat().st_size:,} bytes cannot be read ({error})") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {path}: truncated or damaged, {path.stat().st_size:,} bytes cannot be read ({error})") from error


def load_weights(
    model: nn.Module,
    path: str | Path,
    keywords: str = "",
    replacement: str | None = None,
    strict: bool = True,
    allow_partial: bool | Sequence[str] | None = False,
    logger: logging.Logger | None = None,
    part: str = "",
    skip: str = "",
) -> dict[str, Any]:
    """Puts the weights of `path` into `model` and returns the whole checkpoint.

    keywords, replacement: the first occurrence of `keywords` in a key is replaced; a leading "module." (from DDP) is
    dropped. By default every key must fit. `allow_partial=True` takes what fits; Pointcept's `strict=False` lets keys be
    missing or surplus, but not of another shape; a list of prefixes (`("seg_head", "backbone.final")`) lets only keys
    under these be any of the three. None is for starting a training from another task's file: whole heads (what lies
    outside `backbone`, and `backbone.final`) may be missing or surplus, the backbone must fit.
    part: `"backbone"` looks at that part of file and model alone, which is what fine-tuning takes of a pretraining; the
    rest of the model stays as it is. skip: so do tensors whose name contains this word.

    Raises: FileNotFoundError, ValueError as `read_checkpoint`; ValueError that lists what does not fit, also where
    nothing at all does.
    """
    checkpoint = read_checkpoint(path)
    if replacement is None:
        replacement = keywords
    source = {}
    for key, value in checkpoint["state_dict"].items():
        # Pointcept's configs write keywords against names with the "module." of DDP, so they are matched with it.
        full = key if key.startswith("module.") else f"module.{key}"
        full = full.replace(keywords, replacement, 1) if keywords else full
        source[full.removeprefix("module.")] = value
    target = model.state_dict()
    if part:
        source, target = _only(part, source, path), _only(part, target, type(model).__name__)
    if skip:
        source, target = ({key: value for key, value in tensors.items() if skip not in key} for tensors in (source, target))
    wrong_shape = {k for k in source if k in target and source[k].shape != target[k].shape}
    fits = {k: v for k, v in source.items() if k in target and k not in wrong_shape}
    problems = {
        "missing (in the model, not in the file)": sorted(set(target) - set(source)),
        "unexpected (in the file, not in the model)": sorted(set(source) - set(target)),
        "of another shape": sorted(wrong_shape),
    }
    refused = _refused(problems, strict, allow_partial, _heads(source), _heads(target))
    if not fits or any(refused.values()):
        raise _does_not_fit(path, source, target, fits, problems if not fits else refused)
    model.load_state_dict(fits, strict=False)
    if logger:
        logger.info(f"weights: {len(fits)} of {len(target)} tensors of the model loaded from {path}")
        for what, keys in problems.items():
            if keys:
                logger.warning(f"weights: {len(keys)} {what}, allowed: {_shorten(keys)}")
    return checkpoint


def _only(part: str, tensors: Mapping[str, Any], owner: Any) -> dict[str, Any]:
    """The tensors below `part`. Raises ValueError, which calls their owner by name, where there is none."""
    found = {key: value for key, value in tensors.items() if key.startswith(f"{part}.")}
    if not found:
        parts = sorted({key.split(".")[0] for key in tensors})
        raise ValueError(f"part={part!r}: {owner} has no tensor of that part; {near_names(part, parts)}")
    return found


def _refused(
    problems: Mapping[str, list[str]], strict: bool, allow_partial: bool | Sequence[str] | None, source: set[str], target: set[str]
) -> dict[str, list[str]]:
    """The keys among `problems` that must not pass. source, target: the heads that file and model have."""
    if allow_partial is True:
        return {}
    prefixes = (allow_partial,) if isinstance(allow_partial, str) else tuple(allow_partial or ())
    new_heads = source ^ target if allow_partial is None else set()

    def passes(key: str, what: str) -> bool:
        loose = not strict or _head_of(key) in new_heads
        return (loose and what != "of another shape") or (bool(prefixes) and key.startswith(prefixes))

    return {what: [key for key in keys if not passes(key, what)] for what, keys in problems.items()}


def _head_of(key: str) -> str:
    """The head that a tensor belongs to: the module's name outside `backbone`, "backbone.final", or "" inside it."""
    first, _, rest = key.partition(".")
    if first != "backbone":
        return first
    return "backbone.final" if rest.startswith("final.") else ""


def _heads(keys: Iterable[str]) -> set[str]:
    """The heads among the tensors `keys`; none where there is no backbone, since then nothing tells heads from the rest."""
    found = {_head_of(key) for key in keys}
    return found - {""} if "" in found else set()


def _class_counts(source: Mapping, target: Mapping, wrong: Sequence[str]) -> tuple[str, str]:
    """A sentence where a classifier is of another shape because the class counts differ, and its end for a training; else ""."""
    for key in wrong:
        theirs, ours = source[key].shape, target[key].shape
        if key.endswith(".weight") and key.split(".")[-2] in ("final", "seg_head") and theirs[0] != ours[0] and theirs[1:] == ours[1:]:
            head = key.removesuffix(".weight")
            return (
                f"{head} has {theirs[0]} classes in the file and {ours[0]} in this config; test with the config the weights were trained with",
                f", or start a new head with CheckpointLoader(allow_partial=({head!r},))",
            )
    return "", ""


def _does_not_fit(path: Any, source: Mapping, target: Mapping, fits: Mapping, problems: Mapping[str, list[str]]) -> DoesNotFit:
    counts, new_head = _class_counts(source, target, problems.get("of another shape", ()))
    lines = [f"checkpoint {path}: {len(fits)} of the model's {len(target)} tensors fit"]
    for what, keys in problems.items():
        if keys and what == "of another shape":
            shown = [f"{k} {list(source[k].shape)} for {list(target[k].shape)}" for k in keys]
            lines.append(f"  {len(keys)} {what}: {_shorten(shown)}")
        elif keys:
            near = f"; {keys[0]!r}: {near_names(keys[0], source)}" if what.startswith("missing") and len(source) < 2000 else ""
            lines.append(f"  {len(keys)} {what}: {_shorten(keys)}{near if 'did you mean' in near else ''}")
    advice = "  CheckpointLoader(keywords=..., replacement=...) renames keys; allow_partial=('prefix', ...) or True lets these pass"
    if counts:
        advice = f"  class counts: {counts}{new_head}\n{advice}"
    heads = _heads(target)
    return DoesNotFit("\n".join(lines), advice, bool(heads) and not heads & _heads(source), counts)


def _shorten(names: Sequence[str], number: int = 6) -> str:
    return ", ".join(names[:number]) + (f", ... {len(names) - number} more" if len(names) > number else "")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def check_finite(model: nn.Module) -> None:
    """Raises FloatingPointError that names the first parameter with NaN or inf in it."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise FloatingPointError(f"parameter {name} is not finite; such a state is not saved")


def training_state(trainer: Any, epoch_done: bool = False) -> dict[str, Any]:
    """Everything that decides how the training goes on; tensors and plain values only.

    `epoch_done`: go on with the next epoch, not with what is left of this one (its last hooks).
    All ranks call it together, since each has random states of its own.
    """
    model = unwrap(trainer.model)
    gradients = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None} if trainer.accumulated else {}
    return {
        "epoch": trainer.epoch + epoch_done,
        "state_dict": model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict() if trainer.scheduler else None,
        "scaler": trainer.scaler.state_dict() if trainer.scaler else None,
        "best_metric_value": float(trainer.best_metric_value),
        "seed": trainer.seed,
        "global_step": trainer.global_step,
        "epoch_step": 0 if epoch_done else trainer.epoch_step,
        "steps_per_epoch": trainer.steps_per_epoch,
        "accumulated": trainer.accumulated,
        "gradients": gradients,
        "rng": comm.all_gather(rng_state()),
        "storage": {} if epoch_done else trainer.storage.state_dict(),
        "results": dict(trainer.results),
        "per_class": dict(trainer.per_class),
        "seconds": trainer.elapsed(),
    }


def saved_seed(path: str | Path) -> int | None:
    """The seed of the training that wrote `path`; None where the file does not say."""
    seed = read_checkpoint(path, mmap=True).get("seed") if Path(path).suffix == ".pth" else None
    return seed if isinstance(seed, int) else None


def restore_training(trainer: Any, path: str | Path) -> None:
    """Continues from a checkpoint that `save_training` wrote.

    Raises: ValueError where it holds weights only, or was made with another number of steps an epoch.
    """
    model = unwrap(trainer.model)
    state = load_weights(model, path, logger=trainer.logger)
    if "optimizer" not in state:
        raise ValueError(f"checkpoint {path}: holds weights but no optimizer; it cannot be resumed, pass it as weight= instead")
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.scheduler and state.get("scheduler"):
        trainer.scheduler.load_state_dict(state["scheduler"])
    if trainer.scaler and state.get("scaler"):
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.epoch = trainer.start_epoch = int(state["epoch"])
    trainer.best_metric_value = float(state.get("best_metric_value", -torch.inf))
    if "rng" not in state:
        trainer.logger.warning(f"{path} was not written by this project: resumed at epoch {trainer.epoch}, without random states")
        trainer.global_step = trainer.epoch * trainer.steps_per_epoch
        return
    if state["steps_per_epoch"] != trainer.steps_per_epoch:
        raise ValueError(
            f"checkpoint {path}: was made with {state['steps_per_epoch']} steps an epoch, this run has {trainer.steps_per_epoch}; "
            "resume with the same data, batch_size, epoch and eval_epoch, or pass it as weight= to start anew"
        )
    trainer.global_step, trainer.epoch_step = int(state["global_step"]), int(state["epoch_step"])
    trainer.seed, trainer.seconds = int(state["seed"]), float(state["seconds"])
    trainer.storage.load_state_dict(state["storage"])
    trainer.results.update(state["results"])
    trainer.per_class.update(state["per_class"])
    _restore_gradients(trainer, model, state)
    rank, states = comm.get_rank(), state["rng"]
    if rank < len(states):
        set_rng_state(states[rank])
    else:
        trainer.logger.warning(f"rank {rank}: the checkpoint has random states of {len(states)} processes; seeded anew")
        set_seed(mix_seed(trainer.seed, rank, trainer.global_step))


def _restore_gradients(trainer: Any, model: nn.Module, state: Mapping[str, Any]) -> None:
    trainer.accumulated = int(state["accumulated"])
    for name, parameter in model.named_parameters():
        parameter.grad = None
        if name in state["gradients"]:
            parameter.grad = state["gradients"][name].to(parameter.device, parameter.dtype)


def save_training(trainer: Any, folder: str | Path, is_best: bool = False, copy_as: str | None = None, epoch_done: bool = False) -> Path | None:
    """Writes `model_last.pth` and `model_last.safetensors` into `folder`; returns the former's path on the main process.

    epoch_done: as in `training_state`. is_best: makes them `model_best.*` as well. copy_as: keeps a further copy under this name. Every file is replaced
    in one rename. All ranks call it together.

    Raises: FloatingPointError where a parameter is not finite; OSError of the disk, as a sentence that says what is
    still there. The files are as before then.
    """
    model = unwrap(trainer.model)
    check_finite(model)
    state = training_state(trainer, epoch_done)
    state["config"] = trainer.cfg.pretty_text
    if not comm.is_main_process():
        return None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    last, weights = folder / f"{LAST}.pth", folder / f"{LAST}.safetensors"
    try:
        atomic_write(last, lambda stream: _save_watched(state, stream))
        save_weights(model, weights, {"config": state["config"], "epoch": str(state["epoch"]), "global_step": str(state["global_step"])})
        if copy_as:
            atomic_copy(last, folder / f"{copy_as}.pth")
        if is_best:
            atomic_copy(last, folder / f"{BEST}.pth")
            atomic_copy(weights, folder / f"{BEST}.safetensors")
    except OSError as error:
        raise type(error)(error.errno, _disk_message(folder, state, error)) from error
    return last


def _save_watched(state: Mapping[str, Any], stream: BinaryIO) -> None:
    """torch.save that raises the disk's own error; torch reports a failed write as one of its own, about positions."""
    failed: list[OSError] = []

    class Watched:
        def write(self, data: Any) -> int:
            try:
                return stream.write(data)
            except OSError as error:
                failed.append(error)
                raise

        def flush(self) -> None:
            stream.flush()

    try:
        torch.save(dict(state), Watched())
    except Exception:
        if failed:
            raise failed[0] from None
        raise


def _disk_message(folder: Path, state: Mapping[str, Any], error: OSError) -> str:
    last = folder / f"{LAST}.pth"
    kept = "there is none from before"
    if last.is_file():
        step = read_checkpoint(last, mmap=True).get("global_step")
        kept = f"{last} of step {step} is whole" if step is not None else f"{last} is whole"
    return (
        f"checkpoint of step {state['global_step']}: {folder} cannot be written to ({error.strerror or error}); {kept}. "
        "Make room, then continue with --resume (train.sh: -r true)"
    )


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the weights of `model` as safetensors, whole or not at all."""
    from safetensors.torch import save

    # Tied weights share memory, which the format refuses: each name gets a copy of its own.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    data = save(tensors, dict(metadata or {}))
    atomic_write(path, lambda stream: stream.write(data))

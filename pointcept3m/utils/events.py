"""Numbers of a run: their running averages in memory, and the writers that put them into files."""

import csv
import importlib.util
import logging
import netrc
import os
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np

from .files import atomic_write


class AverageMeter:
    """The last value (`val`), sum (`total`), number (`count`) and mean (`avg`) of what it was given."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.val = self.total = 0.0
        self.count = 0

    @property
    def avg(self) -> float:
        return self.total / self.count if self.count else 0.0

    def update(self, value: float, n: int = 1) -> None:
        self.val = value
        self.total += value * n
        self.count += n


class EventStorage:
    """Running averages by name; hooks put values in and read them out."""

    def __init__(self) -> None:
        self._histories: dict[str, AverageMeter] = {}
        self._fresh: dict[str, float] = {}

    def put_scalar(self, name: str, value: float, n: int = 1) -> None:
        """Adds `value`, standing for `n` samples, to the history of `name`.

        A name with a slash (`val/psnr`) is a curve: the trainer writes it to the run's files at this step.
        """
        if "/" in name:
            self._fresh[name] = float(value)
        self._histories.setdefault(name, AverageMeter()).update(float(value), n)

    def put_scalars(self, **values: float) -> None:
        for name, value in values.items():
            self.put_scalar(name, value)

    def take_fresh(self) -> dict[str, float]:
        """The curves' values since the last call."""
        fresh, self._fresh = self._fresh, {}
        return fresh

    def history(self, name: str) -> AverageMeter:
        """Raises KeyError for a name that nothing was put under."""
        if name not in self._histories:
            raise KeyError(f"no history {name!r}; there are {sorted(self._histories)}")
        return self._histories[name]

    def histories(self) -> dict[str, AverageMeter]:
        return self._histories

    def reset_histories(self) -> None:
        for meter in self._histories.values():
            meter.reset()

    def state_dict(self) -> dict[str, tuple[float, float, int]]:
        return {name: (m.val, m.total, m.count) for name, m in self._histories.items()}

    def load_state_dict(self, state: dict[str, tuple[float, float, int]]) -> None:
        self._histories = {}
        for name, (val, total, count) in state.items():
            meter = self._histories[name] = AverageMeter()
            meter.val, meter.total, meter.count = val, total, count


class CsvWriter:
    """Appends `step,name,value` rows to a file; numbers are written so that they read back exactly.

    With `resume_step`, rows of later steps are dropped first: those steps will be run again.
    """

    HEADER = ("step", "name", "value")

    def __init__(self, path: str | Path, resume_step: int | None = None):
        self.path = Path(path)
        rows = []
        if resume_step is not None and self.path.is_file():
            rows = [row for row in read_csv(self.path) if row[0] <= resume_step]
        text = "".join(f"{step},{name},{value!r}\n" for step, name, value in rows)
        atomic_write(self.path, lambda stream: stream.write((",".join(self.HEADER) + "\n" + text).encode()))
        self._stream = open(self.path, "a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._stream, lineterminator="\n")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._writer.writerow((step, name, repr(float(value))))

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def read_csv(path: str | Path) -> list[tuple[int, str, float]]:
    """The rows of a metrics.csv; a last line that a kill cut short is left out."""
    rows = []
    with open(path, newline="", encoding="utf-8") as stream:
        lines = [line for line in stream if line.endswith("\n")]
    for row in list(csv.reader(lines))[1:]:
        rows.append((int(row[0]), row[1], float(row[2])))
    return rows


class RunWriter:
    """One place for scalars and pictures of a run: metrics.csv, TensorBoard, and wandb where it is switched on.

    `folder` None writes nothing (ranks other than 0).
    """

    def __init__(
        self,
        folder: str | Path | None,
        resume_step: int | None = None,
        wandb: dict[str, Any] | None = None,
        logger: logging.Logger | None = None,
    ):
        self.csv: CsvWriter | None = None
        self.tensorboard: Any = None
        self.wandb: Any = None
        if folder is None:
            return
        self.csv = CsvWriter(Path(folder) / "metrics.csv", resume_step)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(folder), purge_step=None if resume_step is None else resume_step + 1)
        except ImportError as error:
            if logger:
                logger.warning(f"no TensorBoard files: {error}; scalars are in metrics.csv (pip install tensorboard)")
        if wandb is not None and (reason := why_no_wandb()):
            if logger:
                logger.warning(f"enable_wandb=True: {reason}, so nothing is sent; the curves are in metrics.csv and TensorBoard's files")
        elif wandb is not None:
            import wandb as service

            self.wandb = service.init(dir=str(folder), **wandb)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """One number, as metrics.csv, TensorBoard and wandb call it `name` at `step`."""
        if self.csv:
            self.csv.add_scalar(name, value, step)
        if self.tensorboard:
            self.tensorboard.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log({name: value, "step": step})

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.add_scalar(name, value, step)

    def add_image(self, name: str, image: Any, step: int, dataformats: str = "HWC") -> None:
        """One picture [H, W, 3] or [H, W]: uint8, or float in 0..1 (clipped). "CHW" says that channels come first."""
        if dataformats == "CHW":
            image = image.permute(1, 2, 0) if hasattr(image, "permute") else np.transpose(image, (1, 2, 0))
        pixels = as_pixels(image)
        if self.tensorboard:
            self.tensorboard.add_image(name, pixels, step, dataformats="HWC")
        if self.wandb:
            import wandb as service

            self.wandb.log({name: service.Image(pixels), "step": step})

    def flush(self) -> None:
        for part in (self.csv, self.tensorboard):
            if part:
                part.flush()

    def close(self) -> None:
        for part in (self.csv, self.tensorboard):
            if part:
                part.close()
        if self.wandb:
            self.wandb.finish()


def why_no_wandb() -> str:
    """Why wandb cannot be used: it is not installed, or nobody has logged in on this machine; "" where it can.

    Pointcept's configs switch it on for everybody, so that being switched on is no wish for an account.
    """
    if importlib.util.find_spec("wandb") is None:
        return "the package wandb is not installed (pip install wandb)"
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return ""
    host = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        known = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, netrc.NetrcParseError):
        known = {}
    return "" if host in known else "nobody is logged in to wandb on this machine (wandb login, or WANDB_API_KEY)"


def as_pixels(image: Any) -> np.ndarray:
    """`image` [H, W, 3] or [H, W], tensor or array, as uint8 [H, W, 3]. Floats are taken as 0..1; not finite is 0."""
    array = image.detach().cpu().float().numpy() if hasattr(image, "detach") and image.is_floating_point() else np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(f"picture: wanted [H, W, 3] or [H, W], got {list(array.shape)}")
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array, posinf=1.0, neginf=0.0).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return array

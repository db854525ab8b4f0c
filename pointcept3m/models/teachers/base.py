"""What every 2D teacher is: frozen, float32 out, and never part of its student."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pointcept3m.models.teachers.cache import FeatureCache
from pointcept3m.utils.registry import near_names

PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Teacher(nn.Module):
    """A frozen image model: `forward(images) -> features [V, dim, h, w]` in float32.

    A student holds it as an ordinary attribute, `self.teacher = TEACHERS.build(cfg)`. The network inside is kept
    out of torch's module tables on purpose: it follows `student.to(device)`, but `student.state_dict()`,
    `student.parameters()`, DDP and the optimizer never see it (`named_modules` lists this empty shell, nothing in
    it), so that a checkpoint of the student holds the student alone and loads strictly whichever teacher stands in
    the config.

    A subclass builds its network, calls `adopt(network)`, sets `dim` and `patch`, and writes `features`.

    image_size: `(H, W)` the images are resized to, or the length of their longer side, or None for the size they
        come in; each is rounded to a multiple of `patch`.
    cache: folder for features on disk (see `FeatureCache`); None computes them each time.
    max_batch: at most so many images go through the network at once.
    precision: "float32", or "float16"/"bfloat16" for autocast inside the network. The student's own autocast
        never reaches the teacher, so that its targets do not depend on how the student trains.
    """

    dim: int
    patch: int = 1
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    network: nn.Module

    def __init__(
        self,
        image_size: int | Sequence[int] | None = None,
        cache: str | Path | None = None,
        max_batch: int = 16,
        precision: str = "float32",
    ):
        super().__init__()
        self.image_size = _image_size(image_size)
        if precision not in PRECISIONS:
            raise ValueError(
                f"{type(self).__name__}: unknown precision {precision!r}; {near_names(precision, PRECISIONS)}"
            )
        if max_batch < 1:
            raise ValueError(f"{type(self).__name__}: max_batch must be at least 1, got {max_batch}")
        self.precision, self.max_batch = precision, int(max_batch)
        self.cache = None if cache is None else FeatureCache(cache)
        self.training = False

    def adopt(self, network: nn.Module) -> None:
        """Freezes `network` and holds it where torch does not look for modules."""
        object.__setattr__(self, "network", network.eval().requires_grad_(False))

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode whatever is asked: a frozen network must not move its running statistics."""
        return self

    def _apply(self, fn: Callable, recurse: bool = True) -> "Teacher":
        """`student.to(...)`, `.cuda()` and their kin move the hidden network too."""
        super()._apply(fn, recurse)
        if "network" in self.__dict__:
            self.network._apply(fn, recurse)
        return self

    @property
    def name(self) -> str:
        """What stands before the digest in the name of the cache's folder."""
        return type(self).__name__

    @property
    def options(self) -> dict[str, Any]:
        """Every argument besides weights and images that changes the features; part of the cache's key."""
        return {"image_size": self.image_size, "precision": self.precision, "patch": self.patch}

    @property
    def fingerprint(self) -> str:
        """`<name>-<16 hex digits>`: a digest of class, weights and options. Computed once."""
        if "_fingerprint" not in self.__dict__:
            digest = hashlib.sha256(repr((type(self).__name__, self.name, sorted(self.options.items()))).encode())
            digest.update(weights_digest(self.network).encode())
            self.__dict__["_fingerprint"] = f"{self.name}-{digest.hexdigest()[:16]}"
        return self.__dict__["_fingerprint"]

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features [V, dim, H / patch, W / patch] of prepared (resized, normalised) images [V, 3, H, W]."""
        raise NotImplementedError(f"{type(self).__name__} does not define features()")

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Images [V, 3, H, W] in 0..1, resized to a multiple of the patch and normalised as the network wants."""
        size = self.input_size(*images.shape[-2:])
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        mean = images.new_tensor(self.mean)[:, None, None]
        return (images - mean) / images.new_tensor(self.std)[:, None, None]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) at which the network sees an image of `height` x `width` pixels."""
        if isinstance(self.image_size, tuple):
            height, width = self.image_size
        elif self.image_size is not None:
            scale = self.image_size / max(height, width)
            height, width = height * scale, width * scale
        return tuple(max(1, round(side / self.patch)) * self.patch for side in (height, width))

    @torch.no_grad()
    def forward(self, images: torch.Tensor, names: Sequence[str] | None = None) -> torch.Tensor:
        """Features of `images` [V, 3, H, W] (float, 0..1): float32 [V, dim, h, w] on the device of the images.

        `names`, one per image ("scene/frame"), only make messages of the cache readable.
        Raises: TypeError, ValueError where the images are not that.
        """
        self._check(images, names)
        if images.shape[0] == 0:
            return images.new_zeros((0, self.dim, *(s // self.patch for s in self.input_size(*images.shape[-2:]))))
        images = images.detach().float()
        if self.cache is None:
            return self._compute(images)
        return self.cache(self.fingerprint, images, self._compute, names)

    @torch.no_grad()
    def tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(class tokens [V, dim], patch tokens [V, P, dim]) of `images` [V, 3, H, W] (float, 0..1), float32 on their device.

        For a network without a class token it is the maximum of its patches, channel by channel. Nothing is cached. Raises: as `forward`.
        """
        self._check(images, None)
        images = images.detach().float()
        if not len(images):
            return images.new_zeros(0, self.dim), images.new_zeros(0, 0, self.dim)
        with self._scope(images) as own:
            parts = [self.prefix_and_patches(self.prepare(part).to(own)) for part in images.split(self.max_batch)]
        return torch.cat([first.float() for first, _ in parts]), torch.cat([patches.float() for _, patches in parts])

    def prefix_and_patches(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(class token [V, dim], patches [V, P, dim]) of prepared images; a subclass whose network has a class token says which."""
        patches = self.features(images).flatten(2).transpose(1, 2)
        return patches.amax(1), patches

    def _compute(self, images: torch.Tensor) -> torch.Tensor:
        with self._scope(images) as own:
            maps = [self.features(self.prepare(part).to(own)).float() for part in images.split(self.max_batch)]
        maps = torch.cat(maps)
        wanted = (len(images), self.dim, *(s // self.patch for s in self.input_size(*images.shape[-2:])))
        if tuple(maps.shape) != wanted:
            raise ValueError(
                f"teacher {self.name} gave features {tuple(maps.shape)}; with dim={self.dim} and patch={self.patch} images of "
                f"{images.shape[-2]} x {images.shape[-1]} make {wanted}: its features() and what it says of itself do not agree"
            )
        return maps

    @contextmanager
    def _scope(self, images: torch.Tensor) -> Iterator[torch.dtype]:
        """The network on the device of the images, under its own precision; gives the dtype that it wants images in."""
        weight = next(self.network.parameters(), None)
        if weight is not None and weight.device != images.device:
            self.network.to(images.device)
        # A student turned to float64 or float16 has turned its teacher too.
        own = weight.dtype if weight is not None else images.dtype
        dtype = PRECISIONS[self.precision]
        kind = images.device.type
        # cuda and cpu know autocast; another device's own default is left alone.
        if kind not in ("cuda", "cpu"):
            scope = nullcontext()
        elif dtype is None:
            scope = torch.autocast(kind, enabled=False)
        else:
            scope = torch.autocast(kind, dtype=dtype)
        with scope:
            yield own

    def _check(self, images: torch.Tensor, names: Sequence[str] | None) -> None:
        what = f"{self.name}: images must be a float tensor [V, 3, H, W] with values 0..1"
        if not isinstance(images, torch.Tensor):
            raise TypeError(f"{what}, got {type(images).__name__}")
        if not images.is_floating_point():
            raise TypeError(f"{what}, got dtype {images.dtype}; divide 0..255 images by 255")
        if images.dim() != 4 or images.shape[1] != 3:
            hint = "; permute [V, H, W, 3] to [V, 3, H, W]" if images.dim() == 4 and images.shape[-1] == 3 else ""
            raise ValueError(f"{what}, got shape {tuple(images.shape)}{hint}")
        if min(images.shape[-2:]) < 1:
            raise ValueError(f"{what}, got shape {tuple(images.shape)}: an image has no pixels")
        if names is not None and len(names) != len(images):
            raise ValueError(f"{self.name}: {len(images)} images but {len(names)} names")
        if images.numel():
            low, high = (float(bound) for bound in images.aminmax())
            # A resampled image may overshoot a little; NaN fails the comparison as well.
            if not (low >= -0.05 and high <= 1.05):
                raise ValueError(f"{what}, got values from {low:g} to {high:g}")


def _image_size(size: int | Sequence[int] | None) -> int | tuple[int, int] | None:
    if size is None:
        return None
    sides = (size,) if isinstance(size, int) else tuple(size)
    if len(sides) not in (1, 2) or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"image_size must be None, the longer side, or (height, width) in pixels; got {size!r}")
    return sides[0] if len(sides) == 1 else sides


def weights_digest(network: nn.Module) -> str:
    """sha256 (hex) of the names, shapes, dtypes and bytes of all tensors in `network.state_dict()`."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_weights(path: str | Path, how_to_get: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a weight file: safetensors, or a `.pth`/`.pt`/`.bin` that loads with `weights_only=True`.

    A wrapping `state_dict`, `state_dict_ema` or `model` entry is opened. `how_to_get` ends the message of a
    missing file.
    Raises: FileNotFoundError; ValueError where the file is damaged or holds anything but tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {str(path)!r}. {how_to_get}".rstrip())
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: torch.load(weights_only=True) refuses this file ({str(error).splitlines()[0]}); "
            "take the safetensors file of the same model, or save its state_dict alone"
        ) from error
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path}: wanted a state_dict (names to tensors), got {type(content).__name__}")
    return {key.removeprefix("module."): value for key, value in content.items()}


def load_exactly(
    network: nn.Module, weights: dict[str, torch.Tensor], source: str, optional: tuple[str, ...] = ()
) -> None:
    """Loads `weights` into `network`; every key must fit, but for those that start with one of `optional`.

    Raises: ValueError that lists missing keys, keys too many and shapes that differ.
    """
    own = network.state_dict()
    differs = [
        f"{k} {tuple(weights[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    missing = [key for key in own if key not in weights and not key.startswith(optional or ("\0",))]
    extra = [key for key in weights if key not in own and not key.startswith(optional or ("\0",))]
    problems = [
        f"{len(keys)} {label} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
        for label, keys in (("missing", missing), ("unknown", extra), ("of another shape", differs))
        if keys
    ]
    if problems:
        raise ValueError(f"{source} does not fit {type(network).__name__}: {'; '.join(problems)}")
    network.load_state_dict({key: value for key, value in weights.items() if key in own}, strict=False)


def choose_source(name: str, weight: Any, pretrained: Any, random_init: bool, how_to_get: str, what: str = "teacher") -> None:
    """Exactly one of local weights, the hub, or random numbers must be asked for.

    Raises: ValueError that says how to get the weights: nobody should distil noise without having said so.
    """
    asked = [bool(weight), bool(pretrained), bool(random_init)]
    if sum(asked) == 0:
        raise ValueError(f"{what} {name!r} needs weights. {how_to_get}")
    if sum(asked) > 1:
        raise ValueError(f"{what} {name!r}: give only one of weight=, pretrained= and random_init=")

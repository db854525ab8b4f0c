"""Pocket teachers: small ConvNets, shipped with the package, that stand in for LSeg, DINOv2 and Stable Diffusion.

They were trained on generated rooms (`tools/train_pocket_teachers.py`, scores in `weights/pocket.json`), so that
every method here runs end to end on a machine without downloads. They are test bed and demo, no substitute for the
real ones on real data.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pointcept3m.models.builder import TEACHERS
from pointcept3m.models.teachers.base import Teacher, load_exactly, read_weights
from pointcept3m.utils.files import atomic_write
from pointcept3m.utils.registry import near_names

WEIGHTS = Path(__file__).parent / "weights"
# What is done to the last layer's output: LSeg's pixels are unit vectors, DINOv2's tokens pass a LayerNorm, Stable
# Diffusion's activations come as they are.
OUTPUTS = {"text": "unit", "sentence": "unit", "geometric": "layer_norm", "diffusion": "raw"}
PIXELS = 160  # longer side of the images they were trained on


class ConvUnit(nn.Module):
    """Convolution, BatchNorm while training (folded into the convolution for shipping), ReLU; residual if asked."""

    def __init__(
        self, c_in: int, c_out: int, stride: int = 1, dilation: int = 1, residual: bool = False, trainable: bool = False
    ):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride, padding=dilation, dilation=dilation, bias=not trainable)
        self.norm = nn.BatchNorm2d(c_out) if trainable else nn.Identity()
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.norm(self.conv(x)))
        return x + out if self.residual else out

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the one convolution that does what convolution and BatchNorm do in eval mode."""
        gain = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
        return self.conv.weight * gain[:, None, None, None], self.norm.bias - self.norm.running_mean * gain


class PocketNet(nn.Module):
    """A U-Net with 4-pixel output: [V, 3, H, W] -> levels at strides 16, 8, 4, and `head` on top of them.

    `trainable` adds BatchNorm; `export` returns the weights of the same network without it.
    """

    LEVELS = (64, 64, 48)

    def __init__(self, dim: int, trainable: bool = False):
        super().__init__()
        deep, middle, fine = self.LEVELS

        def unit(*args: int, **kwargs: Any) -> ConvUnit:
            return ConvUnit(*args, trainable=trainable, **kwargs)

        self.stem = nn.Sequential(unit(3, 16, stride=2), unit(16, 32, stride=2), unit(32, 32, residual=True))
        self.down8 = nn.Sequential(unit(32, 64, stride=2), unit(64, middle, residual=True))
        self.down16 = nn.Sequential(
            unit(middle, deep, stride=2), unit(deep, deep, residual=True), unit(deep, deep, dilation=2, residual=True)
        )
        self.lateral8 = nn.Conv2d(deep, middle, 1)
        self.up8 = unit(middle, middle, residual=True)
        self.lateral4, self.skip4 = nn.Conv2d(middle, fine, 1), nn.Conv2d(32, fine, 1)
        self.up4 = unit(fine, fine, residual=True)
        self.head = nn.Conv2d(sum(self.LEVELS), dim, 1)

    def levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Activations [V, c, H / 4, W / 4] of the decoder, coarse to fine, all at a stride of 4 pixels."""
        at4 = self.stem(images)
        at8 = self.down8(at4)
        deep = self.down16(at8)
        middle = self.up8(at8 + _resize(self.lateral8(deep), at8.shape[-2:]))
        fine = self.up4(self.skip4(at4) + _resize(self.lateral4(middle), at4.shape[-2:]))
        return [_resize(level, at4.shape[-2:]) for level in (deep, middle, fine)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat(self.levels(images), dim=1))

    @torch.no_grad()
    def export(self) -> dict[str, torch.Tensor]:
        """State dict of `PocketNet(dim)` that computes what this trained network computes in eval mode."""
        out = {}
        units = {name: module for name, module in self.named_modules() if isinstance(module, ConvUnit)}
        for name, module in units.items():
            out[f"{name}.conv.weight"], out[f"{name}.conv.bias"] = module.folded()
        for name, value in self.state_dict().items():
            if name.rsplit(".", 2)[0] not in units:
                out[name] = value
        return {name: value.contiguous() for name, value in out.items()}


def _resize(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class PocketText(nn.Module):
    """Free text to vectors: words as bags of hashed character n-grams, weighted by learned importance.

    The hash is crc32, so that a word finds the same rows on every machine. An adjective never seen in training
    gets little weight; a misspelt or inflected noun shares most n-grams with the noun.
    """

    BUCKETS, WIDTH = 1024, 24

    def __init__(self, dim: int):
        super().__init__()
        self.table = nn.Embedding(self.BUCKETS, self.WIDTH)
        self.weight = nn.Embedding(self.BUCKETS, 1)
        self.project = nn.Linear(self.WIDTH, dim, bias=False)
        nn.init.normal_(self.table.weight, std=0.3)
        nn.init.zeros_(self.weight.weight)

    @staticmethod
    @lru_cache(maxsize=4096)
    def rows(word: str) -> list[int]:
        """Rows of the table for one word: the word itself and its 3- to 5-grams, ends marked."""
        marked = f"<{word}>"
        grams = [marked] + [marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1)]
        return [zlib.crc32(gram.encode()) % PocketText.BUCKETS for gram in grams]

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [K, dim] of K texts."""
        rows, word_of, text_of = [], [], []
        for index, text in enumerate(texts):
            for word in split_words(text):
                new = self.rows(word)
                word_of += [len(text_of)] * len(new)
                rows += new
                text_of.append(index)
        device = self.table.weight.device
        rows, word_of, text_of = (torch.tensor(x, device=device) for x in (rows, word_of, text_of))
        words, texts_ = len(text_of), len(texts)
        count = torch.zeros(words, 1, device=device).index_add(0, word_of, torch.ones(len(rows), 1, device=device))
        vector = torch.zeros(words, self.WIDTH, device=device).index_add(0, word_of, self.table(rows)) / count
        weight = torch.zeros(words, 1, device=device).index_add(0, word_of, self.weight(rows)) / count
        weight = weight.clamp(-8, 8).exp()
        total = torch.zeros(texts_, 1, device=device).index_add(0, text_of, weight)
        mean = torch.zeros(texts_, self.WIDTH, device=device).index_add(0, text_of, weight * vector) / total
        return F.normalize(self.project(mean), dim=-1)


def split_words(text: str) -> list[str]:
    """Lower-case words of `text` without articles and the plural's s. Raises ValueError where there is none."""
    if not isinstance(text, str):
        raise TypeError(f"wanted a string to embed, got {type(text).__name__}")
    words = re.findall(r"[^\W_]+", text.lower())
    content = [word for word in words if word not in {"a", "an", "the", "of", "in", "on"}] or words
    if not content:
        raise ValueError(f"no word in the text {text!r}")
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in content]


@TEACHERS.register_module()
class PocketTeacher(Teacher):
    """One of the shipped teachers; features float32 [V, dim, h, w] at a stride of 4 pixels of the resized image.

    name: "text" (unit vectors aligned with `encode_text`, as LSeg's), "sentence" (the same in the space of a real
        sentence encoder, all-MiniLM-L6-v2: its texts are `SentenceEncoder`'s), "geometric" (trained on depth, normals and
        correspondence without class labels, as DINOv2 is without labels), or "diffusion" (a denoiser's activations
        with channels of very unequal size, as Stable Diffusion's are).
    image_size: the longer side by default 160 pixels, on which they were trained; 480 x 640 gives 30 x 40 features,
        as a ViT with patches of 16 pixels does.
    weight: another file written by `tools/train_pocket_teachers.py`.
    """

    patch = 4
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(
        self,
        name: str = "geometric",
        image_size: int | Sequence[int] | None = PIXELS,
        weight: str | Path | None = None,
        cache: str | Path | None = None,
        max_batch: int = 64,
        precision: str = "float32",
    ):
        super().__init__(image_size, cache, max_batch, precision)
        if name not in OUTPUTS:
            raise KeyError(f"no pocket teacher {name!r}; {near_names(name, OUTPUTS)}")
        self.kind = name
        weights, metadata = read_pocket(weight or WEIGHTS / f"pocket_{name}.safetensors", name)
        self.dim = int(metadata["dim"])
        self.classes: list[str] = json.loads(metadata.get("classes", "[]"))
        self.text_model: str | None = metadata.get("text_model")  # of "sentence"
        text = {key.removeprefix("text."): value for key, value in weights.items() if key.startswith("text.")}
        network = nn.ModuleDict({"image": PocketNet(self.dim)})
        if text:
            network["text"] = PocketText(self.dim)
        load_exactly(network, weights, f"pocket teacher {name!r}")
        self.adopt(network)

    @property
    def name(self) -> str:
        return f"pocket_{self.kind}"

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return finish(self.network["image"](images), self.kind)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors float32 [K, dim] of free text, in the space of the features of "text".

        Raises: ValueError for a teacher without a text encoder, or a text without a word.
        """
        if self.text_model:
            raise ValueError(f"the texts of the pocket teacher {self.kind!r} are embedded by SentenceEncoder({self.text_model!r})")
        if "text" not in self.network:
            raise ValueError(f"the pocket teacher {self.kind!r} has no text encoder; use name='text'")
        if isinstance(texts, str):
            raise TypeError(f"encode_text wants a list of strings, got the string {texts!r}")
        if not len(texts):
            return torch.zeros(0, self.dim, device=self.network["text"].table.weight.device)
        return self.network["text"](texts)


def finish(maps: torch.Tensor, kind: str) -> torch.Tensor:
    """The last step of the pocket teacher `kind` (`OUTPUTS`), over the channels of [V, dim, h, w]."""
    if OUTPUTS[kind] == "unit":
        return F.normalize(maps, dim=1)
    if OUTPUTS[kind] == "layer_norm":
        return F.layer_norm(maps.movedim(1, -1), (maps.shape[1],)).movedim(-1, 1)
    return maps


def write_pocket(path: str | Path, weights: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Saves float16 weights with their digest."""
    from safetensors.torch import save

    half = {key: value.detach().cpu().half().contiguous() for key, value in weights.items()}
    payload = save(half, metadata={**metadata, "digest": _digest(half)})
    atomic_write(path, lambda stream: stream.write(payload))


def read_pocket(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights (as float32) and metadata of a pocket teacher.

    Raises: FileNotFoundError; ValueError where the file is damaged or holds another teacher.
    """
    from safetensors import safe_open

    half = read_weights(
        path, "The package ships it; reinstall pointcept3m or run 'python tools/train_pocket_teachers.py'."
    )
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("kind") != kind:
        raise ValueError(
            f"{path}: wanted the pocket teacher {kind!r}, the file holds {metadata.get('kind', 'something else')!r}"
        )
    if metadata.get("digest") != _digest(half):
        raise ValueError(f"{path}: the weights do not match their digest; the file is damaged, reinstall pointcept3m")
    return {key: value.float() for key, value in half.items()}, metadata


def _digest(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

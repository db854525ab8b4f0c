"""LSeg: pixels in the space of CLIP's text encoder, the teacher of OpenScene and CUA-O3D."""

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pointcept3m.models.builder import TEACHERS
from pointcept3m.models.teachers.base import Teacher, choose_source, load_exactly, read_weights

HOW = (
    "Download demo_e200.ckpt (the link stands in the README of github.com/isl-org/lang-seg, section 'Download Demo Model') "
    "and pass weight='<path>'"
)
CELL = 32  # the coarsest level lies at a stride of 32 pixels
# CLIP lies in the file beside LSeg's own network; the classifier of ImageNet is a left-over of its ViT.
NOT_LOADED = ("clip_pretrained.", "pretrained.model.head.", "pretrained.model.head_dist.")


class Readout(nn.Module):
    """Patch tokens [V, n, c] that know the class token: both projected together (DPT's readout "project", Eq. 4)."""

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        first, patches = tokens[:, :1], tokens[:, 1:]
        return self.project(torch.cat([patches, first.expand_as(patches)], dim=-1))


class ResidualUnit(nn.Module):
    """x + norm(conv(relu(norm(conv(relu(x))))))."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(features, features, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(features), nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(F.relu(x))))))


class Fusion(nn.Module):
    """One step up DPT's decoder: adds the finer level, refines, doubles the resolution."""

    def __init__(self, features: int):
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1, self.resConfUnit2 = ResidualUnit(features), ResidualUnit(features)

    def forward(self, x: torch.Tensor, finer: torch.Tensor | None = None) -> torch.Tensor:
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        x = F.interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class LSegNet(nn.Module):
    """DPT (Ranftl et al., ICCV 2021) on ViT-L/16, and a 1 x 1 convolution to CLIP's 512 channels.

    Images [V, 3, H, W], sides multiples of 32 -> maps [V, dim, H / 2, W / 2], not normalised. Modules have the names
    that they have in the published checkpoint. `vit`: further arguments of `timm.create_model`.
    """

    def __init__(
        self,
        levels: Sequence[int] = (256, 512, 1024, 1024),
        features: int = 256,
        dim: int = 512,
        vit: dict[str, Any] | None = None,
    ):
        super().__init__()
        from timm import create_model

        model = create_model("vit_large_patch16_384", num_classes=0, **(vit or {}))
        width, depth = model.embed_dim, len(model.blocks)
        self.hooks = [depth * (i + 1) // 4 - 1 for i in range(4)]  # 5, 11, 17, 23 of 24
        self.pretrained = nn.Module()
        self.pretrained.model = model
        up = [
            nn.ConvTranspose2d(levels[0], levels[0], 4, stride=4), nn.ConvTranspose2d(levels[1], levels[1], 2, stride=2),
            None, nn.Conv2d(levels[3], levels[3], 3, stride=2, padding=1),
        ]  # fmt: skip
        self.scratch = nn.Module()
        for i, (channels, resample) in enumerate(zip(levels, up, strict=True), start=1):
            # The published sequence has its tokens turned into a map at places 1 and 2.
            parts = [Readout(width), nn.Identity(), nn.Identity(), nn.Conv2d(width, channels, 1), resample]
            setattr(self.pretrained, f"act_postprocess{i}", nn.Sequential(*filter(None, parts)))
            setattr(self.scratch, f"layer{i}_rn", nn.Conv2d(channels, features, 3, padding=1, bias=False))
            setattr(self.scratch, f"refinenet{i}", Fusion(features))
        self.scratch.head1 = nn.Conv2d(features, dim, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = []
        for i, (tokens, size) in enumerate(self._tokens(images), start=1):
            process = getattr(self.pretrained, f"act_postprocess{i}")
            maps = process[0](tokens).transpose(1, 2).unflatten(2, size)
            levels.append(getattr(self.scratch, f"layer{i}_rn")(process[3:](maps)))
        path = self.scratch.refinenet4(levels[3])
        for i in (3, 2, 1):
            path = getattr(self.scratch, f"refinenet{i}")(path, levels[i - 1])
        return self.scratch.head1(path)

    def _tokens(self, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Size]]:
        """Tokens [V, 1 + h w, c] after the four hooked blocks, before the last norm, and (h, w)."""
        model = self.pretrained.model
        patches = model.patch_embed.proj(images)
        size = patches.shape[-2:]
        tokens = torch.cat([model.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + self._positions(size).to(tokens.dtype)
        out = []
        for i, block in enumerate(model.blocks):
            tokens = block(tokens)
            if i in self.hooks:
                out.append((tokens, size))
        return out

    def _positions(self, size: torch.Size) -> torch.Tensor:
        table = self.pretrained.model.pos_embed
        side = round((table.shape[1] - 1) ** 0.5)
        grid = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        grid = F.interpolate(grid, size=tuple(size), mode="bilinear", align_corners=False)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


@TEACHERS.register_module()
class LSegTeacher(Teacher):
    """LSeg (Li et al., ICLR 2022): float32 [V, 512, H / 2, W / 2] in the space of CLIP ViT-B/32's text.

    Its text side is `OpenClipTextEncoder("ViT-B-32-quickgelu", ...)` with OpenAI's weights.

    weight: the published `demo_e200.ckpt`. random_init: without weights, for tests only.
    image_size: the longer side; OpenScene and CUA-O3D take 640 for ScanNet, 1280 for Matterport3D, 1600 for nuScenes.
        It matters: with smaller images OpenScene's users got 31 instead of 49 mIoU on ScanNet (openscene#8).
    square: images are padded with black, right and below, to a square, as those releases do; without, only to a
        multiple of 32 pixels, which saves a quarter of the time at 4:3 and moves the position embeddings a little.
    flip: the mean of the map and that of the mirrored image, mirrored back. The releases add the two.
    normalize: unit length for each pixel after that. False leaves what flipping made of it, at most 1: in a mean over views,
        pixels on which the image and its mirror disagree then count for less, as in the releases.
    model_args: arguments of `LSegNet`, for a tiny variant.
    """

    patch = 2
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(
        self,
        weight: str | Path | None = None,
        random_init: bool = False,
        image_size: int | Sequence[int] | None = 640,
        square: bool = True,
        flip: bool = True,
        normalize: bool = True,
        model_args: dict[str, Any] | None = None,
        cache: str | Path | None = None,
        max_batch: int = 4,
        precision: str = "float32",
    ):
        super().__init__(image_size, cache, max_batch, precision)
        choose_source("LSeg", weight, None, random_init, HOW)
        self.square, self.flip, self.normalize = bool(square), bool(flip), bool(normalize)
        weights = lseg_weights(weight) if weight else None
        try:
            network = LSegNet(**(model_args or {}))
        except (ImportError, RuntimeError) as error:  # a torchvision built for another torch fails with RuntimeError
            raise ImportError(f"LSegTeacher needs timm, which cannot be imported here ({error}); run 'pip install timm'") from error
        if weights is not None:
            load_exactly(network, weights, str(weight), optional=NOT_LOADED)
        self.adopt(network)
        self.dim = network.scratch.head1.out_channels

    @property
    def name(self) -> str:
        return "lseg"

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "square": self.square, "flip": self.flip, "normalize": self.normalize}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        bottom, right = (-(-side // CELL) * CELL for side in (height, width))
        if self.square:
            bottom = right = max(bottom, right)
        images = F.pad(images, (0, right - width, 0, bottom - height), value=-1.0)  # black, normalised
        maps = F.normalize(self.network(images), dim=1)
        if self.flip:
            maps = (maps + F.normalize(self.network(images.flip(3)), dim=1).flip(3)) / 2
        maps = maps[..., : height // 2, : width // 2]
        return F.normalize(maps, dim=1) if self.normalize else maps


def lseg_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of LSeg's network in a checkpoint of its training (`net.*`), or in a plain state_dict of it.

    The checkpoint names classes of PyTorch Lightning beside the tensors. It is read with `weights_only=True` all the
    same: every name that torch does not trust stands for an inert dict, so that no foreign code runs or need be
    installed.
    Raises: FileNotFoundError; ValueError where the file is damaged, or holds something else.
    """
    path = Path(path).expanduser()
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError):  # no such file, or no archive of torch.save
        foreign = []
    with torch.serialization.safe_globals([(_inert(name), name) for name in foreign]):
        weights = read_weights(path, HOW)
    inside = {key.removeprefix("net."): value for key, value in weights.items() if key.startswith("net.")}
    inside = inside or weights
    if not any(key.startswith("scratch.head1.") for key in inside):
        raise ValueError(f"{path}: no weights of LSeg (no 'net.scratch.head1'); first keys: {', '.join(list(weights)[:3])}")
    return inside


def _inert(name: str) -> type:
    """A class that stands for `name` while a file is read: what it makes is a dict that keeps items and does nothing."""
    return type(name.rsplit(".", 1)[-1], (), {"__new__": lambda cls, *args, **kwargs: OrderedDict()})

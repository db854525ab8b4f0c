"""What the trainings of the pocket teachers share: frames of generated rooms, how images vary, one optimisation."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointcept3m.datasets.rooms import NYU40_TO_ROOMS, ROOMS_CLASSES, generate_room, render_frames
from pointcept3m.datasets.rooms.categories import CATEGORIES
from pointcept3m.models.teachers.pocket import PocketTeacher

logger = logging.getLogger(__name__)

DIMS = {"text": 64, "sentence": 384, "geometric": 48, "diffusion": 64}
STEPS = {"text": 1800, "sentence": 1800, "geometric": 1400, "diffusion": 1400}

CATEGORY_NAMES = list(CATEGORIES)
# The benchmark's class of each category ("office chair" is a chair); -1 where it has none that a word could name.
OTHER = ROOMS_CLASSES.index("otherfurniture")
TO_SEGMENT = torch.tensor([int(NYU40_TO_ROOMS[nyu40]) for _, nyu40 in CATEGORIES.values()])
TO_NAMED_SEGMENT = torch.where(TO_SEGMENT == OTHER, -1, TO_SEGMENT)
SEGMENT_NAMES = [name for name in ROOMS_CLASSES if name != "otherfurniture"]
assert ROOMS_CLASSES[-1] == "otherfurniture", "named classes must be a prefix of the benchmark's"


@dataclass
class Frames:
    """F posed frames of generated rooms, in memory.

    rgb uint8 [F, 3, H, W] · depth float32 [F, H, W] metres, 0 invalid · category int64 [F, H, W] index into
    `CATEGORY_NAMES`, -1 none · intrinsic float32 [F, 3, 3] · extrinsic float32 [F, 4, 4] world->camera · room int64 [F].
    """

    rgb: Tensor
    depth: Tensor
    category: Tensor
    intrinsic: Tensor
    extrinsic: Tensor
    room: Tensor

    def __len__(self) -> int:
        return len(self.rgb)

    def select(self, index: Tensor) -> "Frames":
        """The frames at `index` (int64 or bool)."""
        return Frames(*(getattr(self, field.name)[index] for field in fields(self)))

    def image(self) -> Tensor:
        """float32 [F, 3, H, W] in 0..1."""
        return self.rgb.float() / 255


def make_frames(seeds: range, per_room: int, size: tuple[int, int] = (120, 160), split: str = "train") -> Frames:
    """`per_room` frames of each room in `seeds`, rendered in this process; depth without the sensor's noise."""
    parts: list[tuple] = []
    for seed in seeds:
        room = generate_room(seed, split)
        view = render_frames(room, per_room, size)
        ids = torch.tensor(
            [CATEGORY_NAMES.index(thing.category) for thing in room.objects] + [-1]
        )  # the last serves id -1
        parts.append((
            torch.from_numpy(view.rgb).permute(0, 3, 1, 2), torch.from_numpy(view.true_depth).float(),
            ids[torch.from_numpy(view.instance).long()], torch.from_numpy(view.intrinsic).float().expand(per_room, 3, 3),
            torch.linalg.inv(torch.from_numpy(view.pose)).float(), torch.full((per_room,), seed),
        ))  # fmt: skip
        if (seed - seeds.start + 1) % 50 == 0:
            logger.info("rendered %d of %d rooms", seed - seeds.start + 1, len(seeds))
    return Frames(*(torch.cat(column) for column in zip(*parts, strict=True)))


# ----------------------------------------------------------------------------------------------------------- images


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [V, 3, H, W] under another light, camera and sensor: gain, gamma, colour, blur and noise, one draw each.

    Wide draws on purpose: rooms are the only images the network ever sees, and real ones must not look foreign.
    """

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.rand(len(images), channels, 1, 1, generator=generator) * (high - low) + low

    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * draw(0.2, 1.4)
    images = images.clamp(1e-4, 1) ** torch.exp(draw(-0.5, 0.5))
    images = (images - 0.5) * draw(0.6, 1.3) + 0.5 + draw(-0.15, 0.15)
    images = images * draw(0.8, 1.2, 3)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, blurred, draw(-0.4, 1.0))
    noise = torch.randn(images.shape, generator=generator) * draw(0.0, 0.05)
    return (images + noise).clamp(0, 1)


def random_crop(frames: Frames, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [V, 3, H, W] and categories [V, H, W] of a random zoom (1 to 1.6), place and side, one draw per frame."""
    count = len(frames)
    zoom = 1.6 ** -torch.rand(count, generator=generator)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = zoom * (torch.randint(0, 2, (count,), generator=generator) * 2 - 1)
    theta[:, 1, 1] = zoom
    theta[:, :, 2] = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - zoom)[:, None]
    grid = F.affine_grid(theta, [count, 3, *frames.rgb.shape[-2:]], align_corners=False)
    images = F.grid_sample(frames.image(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    labels = F.grid_sample(
        frames.category[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    return images, labels[:, 0].round().long()


def normals_of(depth: Tensor, intrinsic: Tensor) -> tuple[Tensor, Tensor]:
    """Normals float32 [V, 3, h, w] in camera axes, towards the camera, from depth [V, h, w]; and where they are valid.

    Cross product of central differences of the unprojected points; not valid beside invalid depth or an edge.
    """
    coord = unproject(depth, intrinsic)
    padded = F.pad(coord, (1, 1, 1, 1), mode="replicate")
    right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    normal = F.normalize(torch.linalg.cross(down, right, dim=1), dim=1)
    padded = F.pad(depth[:, None], (1, 1, 1, 1), mode="replicate")
    low, high = -F.max_pool2d(-padded, 3, 1), F.max_pool2d(padded, 3, 1)
    valid = (low > 0) & (high < 1.15 * low)
    return normal, valid[:, 0]


def unproject(depth: Tensor, intrinsic: Tensor) -> Tensor:
    """Camera-space points float32 [V, 3, h, w] of depth [V, h, w] seen by intrinsic [V, 3, 3] (of that size)."""
    height, width = depth.shape[-2:]
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixel = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    rays = torch.linalg.inv(intrinsic) @ pixel
    return rays.unflatten(2, (height, width)) * depth[:, None]


def at_stride(frames: Frames, stride: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Depth [V, h, w], categories [V, h, w] and intrinsics [V, 3, 3] at the cells of a feature map of that stride."""
    start = stride // 2
    scale = torch.tensor([1 / stride, 1 / stride, 1.0])[:, None]
    return (
        frames.depth[:, start::stride, start::stride],
        frames.category[:, start::stride, start::stride],
        frames.intrinsic * scale,
    )



def relabel(category: Tensor, table: Tensor) -> Tensor:
    """`table[category]`, with -1 staying -1."""
    return torch.where(category < 0, -1, table[category])



def normalise(images: Tensor) -> Tensor:
    """Images in 0..1 as `PocketTeacher.prepare` hands them to the network; channels last, which halves a CPU's time."""
    return ((images - PocketTeacher.mean[0]) / PocketTeacher.std[0]).contiguous(memory_format=torch.channels_last)



# --------------------------------------------------------------------------------------------------------- training


def fit(parameters: list[nn.Parameter], loss_of: Callable[[int], Tensor], steps: int, lr: float, label: str) -> None:
    """AdamW under a one-cycle learning rate; logs the loss ten times."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    start, recent = time.perf_counter(), []
    for step in range(steps):
        loss = loss_of(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{label}: the loss is {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % max(1, steps // 10) == 0:
            spent = time.perf_counter() - start
            left = spent / (step + 1) * (steps - step - 1)
            logger.info("%s %d/%d  loss %.4f  %.0f s left", label, step + 1, steps, sum(recent) / len(recent), left)
            recent.clear()

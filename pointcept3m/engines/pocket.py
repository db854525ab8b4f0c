"""How the pocket teachers are made: four trainings on generated rooms.

The text-aligned ones stand in `pocket_text`.
- geometric: depth and normals from linear heads, and the same surface point seen from two places alike while other
  points differ (InfoNCE). No class label, no instance label.
- diffusion: removing noise of random strength, filling missing squares, and saying which categories are somewhere in
  the image: the captions that Stable Diffusion learned from. The activations are then mixed by a fixed matrix that
  gives channels very unequal sizes, as Stable Diffusion's have.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointcept3m.engines.pocket_common import (
    CATEGORY_NAMES,
    DIMS,
    STEPS,
    Frames,
    at_stride,
    augment,
    fit,
    normalise,
    normals_of,
    random_crop,
    unproject,
)
from pointcept3m.engines.pocket_text import train_sentence, train_text
from pointcept3m.models.teachers.pocket import PocketNet, finish
from pointcept3m.utils.registry import near_names


def train_geometric(frames: Frames, steps: int, batch: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the geometric teacher."""
    generator = torch.Generator().manual_seed(seed)
    dim = DIMS["geometric"]
    net = PocketNet(dim, trainable=True).to(memory_format=torch.channels_last)
    to_depth, to_normal, to_match = nn.Conv2d(dim, 1, 1), nn.Conv2d(dim, 3, 1), nn.Conv2d(dim, 32, 1)
    mates = _pairs(frames)

    def loss_of(step: int) -> Tensor:
        chosen = mates[torch.randint(len(mates), (batch,), generator=generator)]
        part = frames.select(chosen.T.flatten())  # first views, then their mates
        maps = finish(net(normalise(augment(part.image(), generator))), "geometric").contiguous()
        depth, _, intrinsic = at_stride(part)
        valid = depth > 0
        depth_loss = (to_depth(maps)[:, 0] - depth.clamp(min=0.1).log()).abs()[valid].mean()
        normal, smooth = normals_of(depth, intrinsic)
        normal_loss = (1 - F.cosine_similarity(to_normal(maps), normal, dim=1))[smooth].mean()
        match_loss = _match_loss(F.normalize(to_match(maps), dim=1), depth, intrinsic, part.extrinsic, generator)
        return 2 * depth_loss + 2 * normal_loss + 0.5 * match_loss

    heads = nn.ModuleList([to_depth, to_normal, to_match])
    fit([*net.parameters(), *heads.parameters()], loss_of, steps, 4e-3, "geometric")
    return {f"image.{key}": value for key, value in net.export().items()}


def _pairs(frames: Frames, overlap: float = 0.1) -> Tensor:
    """int64 [P, 2]: ordered pairs of frames of one room of which the second shows at least `overlap` of the first."""
    depth, _, intrinsic = at_stride(frames, 8)
    coord = unproject(depth, intrinsic).flatten(2)
    found = []
    for room in frames.room.unique():
        members = (frames.room == room).nonzero()[:, 0].tolist()
        for i in members:
            world = _to_world(coord[i], frames.extrinsic[i])
            for j in members:
                met = _find(world, depth[j], intrinsic[j], frames.extrinsic[j])[1] & (depth[i].flatten() > 0)
                if i != j and met.float().mean() >= overlap:
                    found.append((i, j))
    if not found:
        raise ValueError(
            f"the geometric teacher learns from two views of one thing; no two of the {len(frames)} frames overlap"
        )
    return torch.tensor(found)


def _to_world(coord: Tensor, extrinsic: Tensor) -> Tensor:
    """Camera-space points [3, n] in the world's axes, [3, n]."""
    pose = torch.linalg.inv(extrinsic.double())
    return (pose[:3, :3] @ coord.double() + pose[:3, 3:]).float()


def _find(world: Tensor, depth: Tensor, intrinsic: Tensor, extrinsic: Tensor) -> tuple[Tensor, Tensor]:
    """Where world points [3, n] lie in a view, as grid_sample's [1, 1, n, 2]; and whether the view sees them, bool [n]."""
    there = (extrinsic[:3, :3].double() @ world.double() + extrinsic[:3, 3:].double()).float()
    pixel = intrinsic @ there
    size = torch.tensor([depth.shape[-1], depth.shape[-2]])[:, None]
    where = (pixel[:2] / pixel[2].clamp(min=1e-3) / size * 2 - 1).T[None, None]
    seen = F.grid_sample(depth[None, None], where, mode="nearest", align_corners=False)[0, 0, 0]
    return where, (there[2] > 0.1) & ((seen - there[2]).abs() < 0.04 * there[2]) & (where.abs() < 1).all(-1)[0, 0]


def _match_loss(
    maps: Tensor, depth: Tensor, intrinsic: Tensor, extrinsic: Tensor, generator: torch.Generator, points: int = 64
) -> Tensor:
    """InfoNCE between the descriptors [2 V, c, h, w] of surface points that views i and V + i both see.

    A point within 0.4 m of another in the same pair is no negative of it: neighbours on one surface may be alike.
    """
    views = len(maps) // 2
    coord = unproject(depth, intrinsic).flatten(2)
    first, second, place, pair = [], [], [], []
    for i in range(views):
        j = i + views
        cell = torch.randperm(depth[i].numel(), generator=generator)
        cell = cell[depth[i].flatten()[cell] > 0]
        world = _to_world(coord[i][:, cell], extrinsic[i])
        where, met = _find(world, depth[j], intrinsic[j], extrinsic[j])
        keep = met.nonzero()[:points, 0]
        first.append(maps[i].flatten(1)[:, cell[keep]].T)
        second.append(F.grid_sample(maps[j][None], where[:, :, keep], align_corners=False)[0, :, 0].T)
        place.append(world[:, keep].T)
        pair.append(torch.full((len(keep),), i))
    first, second, place, pair = (torch.cat(x) for x in (first, second, place, pair))
    if not len(first):
        return maps.sum() * 0
    logits = first @ F.normalize(second, dim=1).T / 0.1
    near = (pair[:, None] == pair) & (torch.cdist(place, place) < 0.4)
    near.fill_diagonal_(False)
    logits = logits.masked_fill(near, -1e4)
    target = torch.arange(len(first))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_diffusion(frames: Frames, steps: int, batch: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the diffusion teacher: a denoiser's, with the mixing matrix in place of its last layer."""
    generator = torch.Generator().manual_seed(seed)
    net = PocketNet(3 * 16, trainable=True)  # 4 x 4 pixels of colour per cell
    net.to(memory_format=torch.channels_last)
    caption = nn.Linear(sum(net.LEVELS), len(CATEGORY_NAMES))

    def loss_of(step: int) -> Tensor:
        part = frames.select(torch.randint(len(frames), (batch,), generator=generator))
        images, labels = random_crop(part, generator)
        clean = normalise(augment(images, generator))
        sigma = torch.rand(batch, 1, 1, 1, generator=generator) ** 2 * 2
        noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
        share = 0.5 * torch.rand(batch, 1, 1, 1, generator=generator)
        squares = (
            torch.rand(batch, 1, -(-clean.shape[-2] // 16), -(-clean.shape[-1] // 16), generator=generator) < share
        )
        hole = F.interpolate(squares.float(), scale_factor=16)[..., : clean.shape[-2], : clean.shape[-1]]
        levels = torch.cat(net.levels(noisy * (1 - hole)), dim=1)
        denoised = F.pixel_shuffle(net.head(levels), 4)
        shown = F.one_hot(labels.flatten(1) + 1, len(CATEGORY_NAMES) + 1)[..., 1:].float().mean(1) > 0.002
        words = F.binary_cross_entropy_with_logits(caption(levels.mean((2, 3))), shown.float())
        return (denoised - clean).abs().mean() + words

    fit([*net.parameters(), *caption.parameters()], loss_of, steps, 4e-3, "diffusion")
    weights = net.export()
    weights["head.weight"], weights["head.bias"] = heavy_tailed_mix(net.eval(), frames, DIMS["diffusion"], generator)
    return {f"image.{key}": value for key, value in weights.items()}


@torch.no_grad()
def heavy_tailed_mix(net: PocketNet, frames: Frames, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight [dim, c, 1, 1] and bias [dim] of a layer that shows a denoiser's activations with heavy-tailed channels.

    Activations are centred and scaled, reduced to their `dim` strongest principal components, mixed by a random
    rotation, and given log-normal sizes; one channel in sixteen gets a large negative offset. Stable Diffusion's channel means range from
    -11.1 to 1.5 while their median is near zero, which is what de-meaning and uncertainty weights are for.
    """
    part = frames.select(torch.randperm(len(frames), generator=generator)[:128])
    flat = torch.cat(net.levels(normalise(part.image())), dim=1).movedim(1, -1).flatten(0, 2)
    mean, std = flat.mean(0), flat.std(0)
    std = std.clamp(min=float(std.median()) / 5)  # a channel that hardly moves is noise, not signal
    flat = ((flat - mean) / std).double()
    variance, direction = torch.linalg.eigh(flat.T @ flat / len(flat))
    # The strongest directions, each evened out half way, then mixed so that every channel carries some of each.
    basis = (direction[:, -dim:] / variance[-dim:].clamp(min=1e-6).pow(0.25)).T.float()
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q @ basis
    size = torch.exp(0.8 * torch.randn(dim, generator=generator)) * 0.5
    offset = 0.3 * torch.randn(dim, generator=generator)
    massive = torch.randperm(dim, generator=generator)[: dim // 16]
    offset[massive] -= 4 + 7 * torch.rand(len(massive), generator=generator)
    weight = size[:, None] * basis / std
    return weight[..., None, None], offset - weight @ mean


TRAINERS = {"text": train_text, "sentence": train_sentence, "geometric": train_geometric, "diffusion": train_diffusion}


def train_pocket(kind: str, frames: Frames, steps: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the pocket teacher `kind`, the same for the same frames, steps, seed and machine.

    Raises: KeyError for an unknown kind; FloatingPointError where the loss is not finite.
    """
    if kind not in TRAINERS:
        raise KeyError(f"no pocket teacher {kind!r}; {near_names(kind, TRAINERS)}")
    torch.manual_seed(seed)
    return TRAINERS[kind](frames, steps or STEPS[kind], seed=seed)

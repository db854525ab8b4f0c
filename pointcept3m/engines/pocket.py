"""How the pocket teachers are made: three trainings on generated rooms, and what their features are worth.

- text: every pixel towards the embedding of the words for what it shows, against all other words (LSeg, Li et al.,
  ICLR 2022, Eq. 1-3), image and text network together.
- geometric: depth and normals from linear heads, and the same surface point seen from two places alike while other
  points differ (InfoNCE). No class label, no instance label.
- diffusion: removing noise of random strength, filling missing squares, and saying which categories are somewhere in
  the image: the captions that Stable Diffusion learned from. The activations are then mixed by a fixed matrix that
  gives channels very unequal sizes, as Stable Diffusion's have.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointcept3m.datasets.rooms import NYU40_TO_ROOMS, ROOMS_CLASSES, generate_room, render_frames
from pointcept3m.datasets.rooms.categories import CATEGORIES
from pointcept3m.models.teachers.pocket import PocketNet, PocketTeacher, PocketText, finish
from pointcept3m.utils.registry import near_names

logger = logging.getLogger(__name__)

DIMS = {"text": 64, "geometric": 48, "diffusion": 64}
STEPS = {"text": 1800, "geometric": 1400, "diffusion": 1400}

# Other words for ScanNet's categories; each is another way to ask for the same pixels.
SYNONYMS = {
    "couch": ["sofa", "settee", "loveseat"], "sofa": ["couch", "settee", "loveseat"],
    "armchair": ["easy chair", "lounge chair"], "office chair": ["desk chair", "swivel chair"], "chair": ["seat", "side chair"],
    "table": ["dining table", "tabletop"], "coffee table": ["low table", "side table"], "desk": ["writing desk", "work desk"],
    "refrigerator": ["fridge", "freezer"], "bookshelf": ["bookcase", "shelf", "shelves", "shelving"],
    "cabinet": ["cupboard", "closet", "wardrobe", "dresser"], "kitchen cabinet": ["kitchen cupboard", "wall cabinet"],
    "nightstand": ["night stand", "bedside table"], "tv stand": ["television stand", "media console"],
    "counter": ["countertop", "worktop", "kitchen counter"], "sink": ["washbasin", "basin"], "bathtub": ["bath", "tub"],
    "toilet": ["toilet bowl", "lavatory"], "lamp": ["light", "floor lamp", "table lamp"], "pillow": ["cushion"],
    "trash can": ["garbage can", "waste bin", "rubbish bin"], "radiator": ["heater"], "ottoman": ["footstool", "pouf", "stool"],
    "plant": ["potted plant", "flower pot"], "box": ["carton", "cardboard box"], "monitor": ["computer screen", "display"],
    "tv": ["television"], "books": ["book"], "picture": ["painting", "poster", "photo frame"], "curtain": ["drape", "blinds"],
    "window": ["window pane"], "door": ["doorway", "entrance door"], "floor": ["ground", "flooring"], "ceiling": ["roof"],
    "wall": ["partition wall"], "bed": ["mattress", "bedstead"], "rug": ["carpet", "mat"], "microwave": ["microwave oven"],
    "vase": ["pot", "bowl"], "mirror": ["looking glass"],
}  # fmt: skip
ADJECTIVES = (
    "small large old new red blue green white black grey brown dark bright round square tall low long soft empty clean dirty "
    "modern cheap broken painted open closed left right nearest second my this some"
).split()
# Held out: never seen in training, used to score how free text lands.
UNSEEN_ADJECTIVES = "wooden metal leather antique yellow plastic narrow folded".split()


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


# --------------------------------------------------------------------------------------------------------- training


def _fit(parameters: list[nn.Parameter], loss_of: Callable[[int], Tensor], steps: int, lr: float, label: str) -> None:
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


def phrases(classes: list[str], generator: torch.Generator, held_out: bool = False) -> list[str]:
    """One way to say each class: its name or a synonym, often with an adjective (`held_out`: one never trained on)."""

    def pick(options: list[str]) -> str:
        return options[int(torch.randint(len(options), (), generator=generator))]

    out = []
    for name in classes:
        noun = name if held_out or torch.rand((), generator=generator) < 0.5 else pick([name, *SYNONYMS.get(name, [])])
        chance = float(torch.rand((), generator=generator))
        if held_out:
            noun = f"{pick(UNSEEN_ADJECTIVES)} {noun}"
        elif chance < 0.4:
            noun = f"{pick(ADJECTIVES)} {noun}"
        elif chance < 0.7:  # a made-up word: what is not known should count for little
            letters = torch.randint(97, 123, (int(torch.randint(3, 9, (), generator=generator)),), generator=generator)
            noun = f"{bytes(letters.tolist()).decode()} {noun}"
        out.append(noun)
    return out


def train_text(frames: Frames, steps: int, batch: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the text teacher, image and text network."""
    generator = torch.Generator().manual_seed(seed)
    dim = DIMS["text"]
    net, text = PocketNet(dim, trainable=True).to(memory_format=torch.channels_last), PocketText(dim)
    scale = nn.Parameter(torch.tensor(math.log(10.0)))
    weight = _class_weights(frames.category, len(CATEGORY_NAMES))
    coarse_weight = _class_weights(relabel(frames.category, TO_NAMED_SEGMENT), len(SEGMENT_NAMES))

    def loss_of(step: int) -> Tensor:
        part = frames.select(torch.randint(len(frames), (batch,), generator=generator))
        images, labels = random_crop(part, generator)
        maps = finish(net(normalise(augment(images, generator))), "text")
        labels, sharp = labels[:, 2::4, 2::4].flatten(), scale.clamp(max=math.log(50.0)).exp()
        cell = (labels >= 0).nonzero()[:, 0]
        cell = cell[torch.randperm(len(cell), generator=generator)[:6000]]
        pixels, labels = maps.movedim(1, -1).flatten(0, 2)[cell], labels[cell]

        def match(words: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            return F.cross_entropy(pixels @ words.T * sharp, target, weight=weight, ignore_index=-1)

        words, other = (text(phrases(CATEGORY_NAMES, generator)) for _ in range(2))
        coarse = text(phrases(SEGMENT_NAMES, generator))
        pixel_loss = match(words, labels, weight) + 0.5 * match(
            coarse, relabel(labels, TO_NAMED_SEGMENT), coarse_weight
        )
        # Two phrases for one category agree, those for others stay apart, also where no pixel shows them.
        return pixel_loss + 0.2 * F.cross_entropy(words @ other.T * 10, torch.arange(len(words)))

    _fit([*net.parameters(), *text.parameters(), scale], loss_of, steps, 4e-3, "text")
    weights = {f"image.{key}": value for key, value in net.export().items()}
    return weights | {f"text.{key}": value.detach() for key, value in text.state_dict().items()}


def relabel(category: Tensor, table: Tensor) -> Tensor:
    """`table[category]`, with -1 staying -1."""
    return torch.where(category < 0, -1, table[category])


def _class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Inverse square root of how often each class occurs, mean 1, rare ones limited."""
    count = torch.bincount(labels[labels >= 0], minlength=num_classes).float()
    weight = (count.sum() / count.clamp(min=1)).sqrt().clamp(max=60)
    return weight / weight.mean()


def normalise(images: Tensor) -> Tensor:
    """Images in 0..1 as `PocketTeacher.prepare` hands them to the network; channels last, which halves a CPU's time."""
    return ((images - PocketTeacher.mean[0]) / PocketTeacher.std[0]).contiguous(memory_format=torch.channels_last)


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
    _fit([*net.parameters(), *heads.parameters()], loss_of, steps, 4e-3, "geometric")
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

    _fit([*net.parameters(), *caption.parameters()], loss_of, steps, 4e-3, "diffusion")
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


TRAINERS = {"text": train_text, "geometric": train_geometric, "diffusion": train_diffusion}


def train_pocket(kind: str, frames: Frames, steps: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the pocket teacher `kind`, the same for the same frames, steps, seed and machine.

    Raises: KeyError for an unknown kind; FloatingPointError where the loss is not finite.
    """
    if kind not in TRAINERS:
        raise KeyError(f"no pocket teacher {kind!r}; {near_names(kind, TRAINERS)}")
    torch.manual_seed(seed)
    return TRAINERS[kind](frames, steps or STEPS[kind], seed=seed)

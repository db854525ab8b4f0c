"""From an object's embedding to Gaussians: reconstruction on top of CrossOver, after the idea of Object-X.

Object-X (di Lorenzo et al., NeurIPS 2025) decodes multi-modal object embeddings to 3D Gaussians by TRELLIS' structured latents.
This is a small decoder of the same task: any of CrossOver's modalities in, a fixed number of Gaussians out.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m import ops
from pointcept3m.models.builder import MODELS, build_model
from pointcept3m.structures.gaussians import Gaussians
from pointcept3m.utils.registry import near_names

DISTANCE, RADIUS = 4.0, 1.5  # of cameras from the object's centre; what their pictures hold around it (half of its longest side is 1)


class ObjectGaussians(NamedTuple):
    """G Gaussians of each of E objects, in the objects' boxes (half of the longest side is 1): means [E, G, 3], quats [E, G, 4] of
    length 1, scales [E, G, 3], opacities [E, G] and colors [E, G, 3] in 0..1."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor

    def each(self) -> list[Gaussians]:
        """The Gaussians of one object after the other."""
        return [Gaussians(*parts) for parts in zip(*(value.unbind(0) for value in self), strict=True)]


@MODELS.register_module("CrossOver-ObjectX-v1m1")
class ObjectDecoder(nn.Module):
    """Embeddings of CrossOver's object level, frozen, decoded to Gaussians.

    A perceptron gives all G Gaussians of an object at once, so that each learns its own place, as in point set generation; decoders
    that share their weights among Gaussians and tell them apart by learned queries learned far slower here.

    instance: config of the frozen model; its weights come through a CheckpointLoader with part="instance".
    modalities: those that are decoded; an object is taught from one of those it has, drawn anew in every step.
    gaussians: G. width: of the decoder's two hidden layers. max_objects: so many objects of a batch are drawn for a step, of which
        `rendered` are drawn as pictures too.
    views, image_size: pictures of each object that are compared, and their side. point_scale: standard deviation of a point of the
        target when it is drawn, in half sides of the object.
    chamfer_weight, image_weight, mask_weight: of the three losses. noise: of the embedding while training, as a share of its length.
    """

    task = "reconstruction"

    def __init__(
        self,
        instance: Mapping[str, Any],
        modalities: tuple[str, ...] | None = None,
        gaussians: int = 512,
        width: int = 128,
        max_objects: int = 48,
        rendered: int = 16,
        views: int = 2,
        image_size: int = 32,
        point_scale: float = 0.05,
        chamfer_weight: float = 1.0,
        image_weight: float = 1.0,
        mask_weight: float = 0.5,
        noise: float = 0.1,
    ):
        super().__init__()
        self.instance = build_model(instance)
        self.instance.requires_grad_(False)
        self.instance.taught = False  # whether weights were loaded into it
        self.instance.register_load_state_dict_pre_hook(_note_weights)
        there = self.instance.modalities
        for name in modalities or ():
            if name not in there:
                raise ValueError(f"CrossOver-ObjectX: no modality {name!r} in the object level; {near_names(name, there)}")
        self.modalities = tuple(modalities or there)
        self.gaussians, self.max_objects, self.rendered = gaussians, max_objects, rendered
        self.views, self.image_size, self.point_scale, self.noise = views, image_size, point_scale, noise
        self.weights = dict(chamfer=chamfer_weight, image=image_weight, mask=mask_weight)
        self.anchor = nn.Parameter((torch.rand(gaussians, 3) * 2 - 1) * 0.7)
        self.layers = nn.Sequential(
            nn.Linear(self.instance.dim, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(),
            nn.Linear(width, gaussians * 14),
        )  # fmt: skip
        with torch.no_grad():  # grey balls at the anchors, wide enough to be seen, so that all of them have a gradient
            self.layers[-1].weight.mul_(0.1)
            start = torch.tensor([0.0] * 3 + [1.0, 0.0, 0.0, 0.0] + [math.log(0.06)] * 3 + [1.0] + [0.0] * 3)
            self.layers[-1].bias.copy_(start.repeat(gaussians))

    def train(self, mode: bool = True) -> "ObjectDecoder":
        super().train(mode)
        self.instance.eval()
        return self

    @torch.no_grad()
    def embed_objects(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As the object level's, of the modalities that are decoded."""
        rows, known = self.instance.embed_objects(batch)
        return {name: rows[name] for name in self.modalities}, {name: known[name] for name in self.modalities}

    def decode(self, embedding: Tensor) -> ObjectGaussians:
        """Gaussians of unit rows [E, D]."""
        offset, quat, scale, opacity, color = self.layers(embedding.float()).unflatten(1, (-1, 14)).split([3, 4, 3, 1, 3], dim=-1)
        return ObjectGaussians(
            self.anchor + offset, F.normalize(quat, dim=-1), scale.clamp(-6, 0).exp(), torch.sigmoid(opacity).squeeze(-1), torch.sigmoid(color)
        )

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """loss and its parts, over drawn objects of a batch of ObjectCloudDataset. Raises ValueError where the object level is random."""
        if not self.instance.taught:
            raise ValueError(
                "CrossOver-ObjectX: its object level has random weights, whose embeddings say nothing; give those of a training of it, "
                "weight=exp/crossover/rooms-instance/model/model_best.pth"
            )
        embedding, rows = self.draw(batch)
        cloud, color = batch["object_cloud"][rows], batch["object_cloud_color"][rows]
        made = self.decode(embedding)
        losses = {"chamfer": chamfer(made.means, cloud[:, : self.gaussians]).mean() if len(rows) else made.means.sum() * 0}
        losses["image"], losses["mask"] = self.compare(made, cloud[: self.rendered], color[: self.rendered])
        total = sum(self.weights[name] * loss for name, loss in losses.items())
        return {"loss": total, **{f"{name}_loss": loss.detach() for name, loss in losses.items()}}

    def draw(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(an embedding [E, D] each, rows [E]) of at most `max_objects` objects that have points and a modality."""
        vectors, known = self.embed_objects(batch)
        stacked, mask = torch.stack([vectors[m] for m in self.modalities], 1), torch.stack([known[m] for m in self.modalities], 1)
        rows = torch.nonzero(mask.any(1) & batch["object_has_cloud"]).flatten()
        if not self.training:
            rows = rows[: self.max_objects]
            return stacked[rows, mask[rows].int().argmax(1)], rows
        rows = rows[torch.randperm(len(rows)).to(rows.device)[: self.max_objects]]
        chosen = torch.multinomial(mask[rows].float(), 1)[:, 0] if len(rows) else rows
        embedding = stacked[rows, chosen]
        noisy = embedding + self.noise * torch.randn_like(embedding) / math.sqrt(embedding.shape[1])
        return F.normalize(noisy, dim=-1), rows

    def compare(self, made: ObjectGaussians, cloud: Tensor, color: Tensor) -> tuple[Tensor, Tensor]:
        """(mean L1 of pictures, of masks) of the first objects against their points drawn as small balls, from
        views around; random ones while training."""
        image, mask = [made.colors.sum() * 0], [made.opacities.sum() * 0]
        for row, gaussians in enumerate(ObjectGaussians(*(value[: len(cloud)] for value in made)).each()):
            turns = torch.rand(self.views) if self.training else torch.arange(self.views) / self.views
            lifts = torch.rand(self.views) * 0.9 - 0.1 if self.training else torch.full((self.views,), 0.4)
            cameras = orbit(turns, lifts, self.image_size, cloud.device)
            with torch.no_grad():
                wanted, wanted_mask = render(balls(cloud[row], color[row], self.point_scale), *cameras, self.image_size)
            rgb, alpha = render(gaussians, *cameras, self.image_size)
            image.append((rgb - wanted).abs().mean() / len(cloud))
            mask.append((alpha - wanted_mask).abs().mean() / len(cloud))
        return torch.stack(image).sum(), torch.stack(mask).sum()


def _note_weights(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    module.taught = module.taught or any(key.startswith(prefix) for key in state)


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """[E]: the mean distance from each of a [E, P, 3] to the nearest of b [E, Q, 3], and back, averaged; unit of the points."""
    with torch.no_grad():
        square = a.square().sum(-1)[:, :, None] + b.square().sum(-1)[:, None] - 2 * a @ b.transpose(1, 2)
        of_a, of_b = square.argmin(2), square.argmin(1)
    there, back = a - ops.gather_coo(b, of_a), ops.gather_coo(a, of_b) - b  # points taken several times: gradients are added in one order
    return (_length(there).mean(1) + _length(back).mean(1)) / 2


def _length(vectors: Tensor) -> Tensor:
    return (vectors.square().sum(-1) + 1e-12).sqrt()


def balls(coord: Tensor, color: Tensor, scale: float) -> Gaussians:
    """Points [P, 3] with colours in 0..1 as equal, almost opaque Gaussians."""
    count = len(coord)
    quats = coord.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4)
    return Gaussians(coord, quats, coord.new_full((count, 3), scale), coord.new_full((count,), 0.95), color)


def orbit(turns: Tensor, lifts: Tensor, size: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """(extrinsic [V, 4, 4], intrinsic [V, 3, 3]) of cameras that look at an object's centre.

    turns [V]: around z, 1 a full turn. lifts [V]: elevation in radians. size: side of the square pictures.
    """
    angle = turns * 2 * math.pi
    back = torch.stack([angle.cos() * lifts.cos(), angle.sin() * lifts.cos(), lifts.sin()], dim=1)  # from the centre to the camera
    right = torch.stack([-angle.sin(), angle.cos(), torch.zeros_like(angle)], dim=1)
    rotation = torch.stack([right, torch.cross(right, back, dim=1), -back], dim=1)  # rows: x right, y down, z forward
    extrinsic = torch.eye(4).repeat(len(turns), 1, 1)
    extrinsic[:, :3, :3] = rotation
    extrinsic[:, 2, 3] = DISTANCE
    focal = size / 2 * DISTANCE / RADIUS
    intrinsic = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]]).repeat(len(turns), 1, 1)
    return extrinsic.to(device), intrinsic.to(device)


def render(gaussians: Gaussians, extrinsic: Tensor, intrinsic: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(pictures [V, size, size, 3] on white, masks [V, size, size] in 0..1)."""
    rgb, alpha, _ = ops.rasterization(
        gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors, extrinsic, intrinsic, size, size
    )
    return rgb + (1 - alpha), alpha[..., 0]

"""The pocket shape encoder: small, shipped, trained on generated furniture without a class name."""

from pathlib import Path

import torch
from torch import nn

from pointcept3m.models.builder import SHAPE_ENCODERS
from pointcept3m.models.shapes.base import ShapeEncoder
from pointcept3m.models.teachers.base import load_exactly
from pointcept3m.models.teachers.pocket import read_pocket

WEIGHTS = Path(__file__).parent / "weights"


class PocketShapeNet(nn.Module):
    """Points [B, N, 3] in the unit sphere, z up -> vectors [B, dim].

    Each point looks at its `NEAR` nearest neighbours and at as many points that come after it in their random order.
    What it sees of another point are lengths that do not change when the object turns about z: the other's height, step
    in height, along and across the direction from the axis, and distance. Maximum and mean over neighbours, a perceptron
    a point, maximum and mean over points.
    """

    NEAR, FAR = 8, 8
    EDGE, POINT = 64, 192

    def __init__(self, dim: int = 128):
        super().__init__()
        self.near = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, self.EDGE))
        self.far = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, self.EDGE))
        self.point = nn.Sequential(nn.Linear(4 * self.EDGE + 2, 128), nn.ReLU(), nn.Linear(128, self.POINT), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * self.POINT, 192), nn.ReLU(), nn.Linear(192, dim))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        count = points.shape[1]
        axial = points[..., :2]
        radius = axial.norm(dim=-1, keepdim=True)
        outward = axial / radius.clamp(min=1e-6)
        apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        near = apart.topk(self.NEAR + 1, largest=False).indices[..., 1:]
        steps = torch.arange(1, self.FAR + 1, device=points.device) * (count // (self.FAR + 1))
        far = ((torch.arange(count, device=points.device)[:, None] + steps) % count).expand(len(points), -1, -1)
        seen = []
        for rows, layers in ((near, self.near), (far, self.far)):
            other = torch.gather(points, 1, rows.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(1, (count, -1))
            step = other - points[:, :, None]
            along = (step[..., :2] * outward[:, :, None]).sum(-1)
            across = (step[..., 0] * outward[:, :, None, 1] - step[..., 1] * outward[:, :, None, 0]).abs()
            height = points[:, :, None, 2].expand_as(along)
            edge = torch.stack([height, radius.expand_as(along), step[..., 2], along, across, step.norm(dim=-1)], dim=-1)
            edge = layers(edge)
            seen += [edge.amax(2), edge.mean(2)]
        tokens = self.point(torch.cat([*seen, radius, points[..., 2:]], dim=-1))
        return self.head(torch.cat([tokens.amax(1), tokens.mean(1)], dim=-1))


@SHAPE_ENCODERS.register_module()
class PocketShape(ShapeEncoder):
    """Shapes to unit vectors, 128-d, without a download: the stand-in for I2P-MAE on generated rooms.

    Trained by `tools/train_pocket_shape.py` to tell which noisy partial scan is of which CAD model, among furniture of
    rooms that no benchmark draws; no class names. It takes objects upright (z up) and does not care where they stand,
    which way they face, or how large they are; a mirror image has the same vector.

    weight: another file of that tool.
    """

    num_points = 256

    def __init__(self, weight: str | Path | None = None, max_batch: int = 64):
        weights, metadata = read_pocket(weight or WEIGHTS / "pocket_shape.safetensors", "shape")
        self.dim, self.max_batch = int(metadata["dim"]), int(max_batch)
        self.name = "pocket_shape"
        network = PocketShapeNet(self.dim)
        load_exactly(network, weights, "pocket shape encoder")
        self.network = nn.Sequential(network, _Unit()).eval().requires_grad_(False)


class _Unit(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x, dim=-1)

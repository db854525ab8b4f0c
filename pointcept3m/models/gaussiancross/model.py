"""GaussianCross: a backbone learns by splatting its features back into images (paper Sec. 3, Fig. 2).

The model knows backbones, teachers and the rasterizer; it does not know where scenes come from.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointcept3m.models.builder import MODELS, TEACHERS
from pointcept3m.models.gaussiancross import losses
from pointcept3m.models.gaussiancross.cuboid import cuboid_affine, metric_affine, voxel_centers, voxel_index
from pointcept3m.models.gaussiancross.gaussian_head import GaussianHead
from pointcept3m.models.gaussiancross.splatting import Rendering, move_cameras, splat
from pointcept3m.models.gaussiancross.volume import VolumeEncoder, scatter_to_volume
from pointcept3m.models.teachers.base import Teacher
from pointcept3m.structures.gaussians import Gaussians
from pointcept3m.utils.registry import near_names

TARGETS = ("image", "depth", "feature")


@MODELS.register_module("GaussianCross-v1m1")
class GaussianCross(nn.Module):
    """The pretraining model.

    backbone: config of a registered backbone whose forward takes the batch and returns F_s [N, d_s] (Eq. 5).
    backbone_out_channels: d_s. teacher: config of a 2D model in TEACHERS, needed for the target "feature".
    volume_shape: (X, Y, Z) of Eq. 6. volume_channels: widths of the 3D CNN. anchor_channels: d_o of Eq. 8.
    feature_dim: d_f. targets: which of image, depth and feature are rendered and learned (Table 5).
    cuboid_normalize: whether each scene is scaled into the unit cube (Eq. 6); without (Fig. 3), all scenes share
    a cube of `metric_side` coordinate units. keep_aspect: one scale for the three axes, or a stretch of each.
    opacity_threshold: tau of Eq. 13. offset_max: Delta of Eq. 11 in cells, 0 for no offset (Fig. 3).
    image_weight, depth_weight, feature_weight: the lambdas of Eq. 20. depth_per: see `losses.depth_loss`.
    feature_resolution: "teacher" compares at the teacher's grid, to which the rendered map is averaged, and which
    costs little; "image" enlarges the teacher's map to the image, as Eq. 16 has it.
    near, far: metres. raster_backend: "native" or "gsplat"; None takes ours.

    The paper names M, tau, the mask ratio and the teacher. It leaves open X, Y, Z, d_o, d_f, Delta, the lambdas,
    near, far and the projection head; the defaults of the volume and of the first two lambdas are PonderV2's figures.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        backbone_out_channels: int,
        teacher: Mapping[str, Any] | None = None,
        volume_shape: tuple[int, int, int] = (128, 128, 32),
        volume_channels: tuple[int, ...] = (32, 64, 128, 256),
        anchor_channels: int = 128,
        feature_dim: int = 64,
        head_channels: int | None = None,
        targets: tuple[str, ...] = TARGETS,
        cuboid_normalize: bool = True,
        keep_aspect: bool = True,
        metric_side: float = 10.0,
        opacity_threshold: float = 0.3,
        offset_max: float = 1.0,
        image_weight: float = 10.0,
        depth_weight: float = 1.0,
        feature_weight: float = 1.0,
        depth_per: str = "all",
        feature_resolution: str = "teacher",
        near: float = 0.05,
        far: float = 100.0,
        raster_backend: str | None = None,
    ):
        super().__init__()
        for target in targets:
            if target not in TARGETS:
                raise ValueError(f"GaussianCross: unknown target {target!r}; {near_names(target, TARGETS)}")
        if not targets:
            raise ValueError(f"GaussianCross: targets must name at least one of {TARGETS}")
        if ("feature" in targets) != (teacher is not None):
            raise ValueError("GaussianCross: a teacher and the target 'feature' go together; got "
                             f"targets={tuple(targets)} and teacher={teacher!r}")  # fmt: skip
        if feature_resolution not in ("teacher", "image"):
            raise ValueError(f"GaussianCross: feature_resolution is 'teacher' or 'image', got {feature_resolution!r}")
        if depth_per not in ("all", "valid"):
            raise ValueError(f"GaussianCross: depth_per is 'all' or 'valid', got {depth_per!r}")
        self.targets = tuple(targets)
        self.volume_shape = tuple(volume_shape)
        self.cuboid_normalize, self.keep_aspect, self.metric_side = cuboid_normalize, keep_aspect, metric_side
        self.weights = {"image": image_weight, "depth": depth_weight, "feature": feature_weight}
        self.depth_per, self.feature_resolution = depth_per, feature_resolution
        self.near, self.far, self.raster_backend = near, far, raster_backend

        self.backbone = MODELS.build(backbone)
        self.volume_encoder = VolumeEncoder(backbone_out_channels, anchor_channels, tuple(volume_channels))
        with_feature = "feature" in self.targets
        self.gaussian_head = GaussianHead(
            anchor_channels,
            feature_dim=feature_dim if with_feature else 0,
            color="image" in self.targets,
            opacity_threshold=opacity_threshold,
            offset_max=offset_max,
            hidden=head_channels,
        )
        self.teacher = TEACHERS.build(teacher) if with_feature else None
        if with_feature and not isinstance(self.teacher, Teacher):
            raise TypeError(
                f"GaussianCross: teacher {type(self.teacher).__name__} must extend Teacher, which keeps its network frozen "
                "and out of our checkpoints"
            )
        self.projection_head = nn.Linear(feature_dim, self.teacher.dim) if with_feature else None  # P of Eq. 16

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses of one batch: `loss` (Eq. 20), each target's own, and how many Gaussians were kept a scene.

        batch: coord [N, 3], offset [B], feat [N, C], grid_coord [N, 3]; rgb [B, M, H, W, 3] in 0..1, depth
        [B, M, H, W] metres, intrinsic [B, M, 3, 3], extrinsic [B, M, 4, 4]; view_name, B lists of M names.
        Raises: RuntimeError where every anchor of a scene was pruned, since nothing would be learned from it.
        """
        scenes = self.reconstruct(batch)
        teacher_maps = self.teach(batch) if self.teacher is not None else None
        terms: dict[str, list[Tensor]] = {name: [] for name in self.targets}
        for b, (gaussians, affine) in enumerate(scenes):
            if len(gaussians) == 0:
                raise RuntimeError(
                    f"GaussianCross: every anchor of scene {_scene_name(batch, b)} fell below the opacity threshold "
                    f"{self.gaussian_head.opacity_threshold}; lower opacity_threshold or the learning rate"
                )
            view = self._splat(batch, b, gaussians, affine)
            if "image" in terms:
                terms["image"].append(losses.image_loss(view.rgb, batch["rgb"][b]))
            if "depth" in terms:
                terms["depth"].append(losses.depth_loss(view.depth, batch["depth"][b], self.depth_per))
            if "feature" in terms:
                terms["feature"].append(losses.feature_loss(*self.align(view.feature, teacher_maps[b])))
        means = {name: torch.stack(values).mean() for name, values in terms.items()}
        total = sum(self.weights[name] * value for name, value in means.items())
        count = total.new_tensor(sum(len(g) for g, _ in scenes) / len(scenes))
        return {"loss": total, **{f"{name}_loss": value for name, value in means.items()}, "num_gaussians": count}

    def reconstruct(self, batch: Mapping[str, Any]) -> list[tuple[Gaussians, Tensor]]:
        """The Gaussians of each scene (Eq. 5 to 13), in the unit cube, with the affine map that led there.

        See `forward` for the batch; images and cameras are not looked at.
        """
        feat = self.backbone(batch)
        offset = batch["offset"].tolist()
        num_voxels = self.volume_shape[0] * self.volume_shape[1] * self.volume_shape[2]
        affines, ids, kept = [], [], []
        for b, (start, end) in enumerate(zip([0, *offset[:-1]], offset, strict=True)):
            coord = batch["coord"][start:end]
            affine = cuboid_affine(coord, self.keep_aspect) if self.cuboid_normalize else metric_affine(coord, self.metric_side)
            index, inside = voxel_index(coord @ affine[:3, :3].T + affine[:3, 3], self.volume_shape)
            affines.append(affine)
            ids.append(index + b * num_voxels)
            kept.append(inside)
        inside = torch.cat(kept)
        volume = scatter_to_volume(feat[inside].float(), torch.cat(ids)[inside], len(offset), self.volume_shape)
        dense = self.volume_encoder(volume).float().flatten(2).transpose(1, 2)  # F_d, [B, X * Y * Z, d_o]
        centers = voxel_centers(self.volume_shape, dense.device)
        cell = 1 / torch.tensor(self.volume_shape, device=dense.device, dtype=torch.float32)
        with torch.autocast(dense.device.type, enabled=False):
            return [(self.gaussian_head(dense[b], centers, cell), affine) for b, affine in enumerate(affines)]

    def teach(self, batch: Mapping[str, Any]) -> Tensor:
        """The teacher's features F* of all views, [B, M, h, w, d*], h x w being the teacher's own grid."""
        rgb = batch["rgb"]
        num_scenes, num_views = rgb.shape[:2]
        names = [name for scene in batch["view_name"] for name in scene] if "view_name" in batch else None
        maps = self.teacher(rgb.flatten(0, 1).permute(0, 3, 1, 2), names)
        return maps.permute(0, 2, 3, 1).unflatten(0, (num_scenes, num_views))

    def align(self, feature: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Rendered and teacher features at one resolution and of one width (Eq. 16).

        feature [M, H, W, d_f], target [M, h, w, d*]; both come back as [M, h, w, d*], or [M, H, W, d*] with
        feature_resolution="image".
        """
        if self.feature_resolution == "teacher":
            feature = F.adaptive_avg_pool2d(feature.permute(0, 3, 1, 2), target.shape[1:3]).permute(0, 2, 3, 1)
        else:
            target = F.interpolate(target.permute(0, 3, 1, 2), feature.shape[1:3], mode="bilinear", align_corners=False)
            target = target.permute(0, 2, 3, 1)
        return self.projection_head(feature), target

    @torch.no_grad()
    def render(self, batch: Mapping[str, Any]) -> list[Rendering]:
        """What the model sees from each camera of the batch, a Rendering per scene; see `forward` for the batch."""
        return [self._splat(batch, b, *scene) for b, scene in enumerate(self.reconstruct(batch))]

    def _splat(self, batch: Mapping[str, Any], b: int, gaussians: Gaussians, affine: Tensor) -> Rendering:
        height, width = batch["rgb"].shape[2:4]
        extrinsic = move_cameras(batch["extrinsic"][b], affine)
        with torch.autocast(extrinsic.device.type, enabled=False):
            return splat(gaussians, extrinsic, batch["intrinsic"][b], height, width, self.near, self.far, self.raster_backend)


def _scene_name(batch: Mapping[str, Any], b: int) -> str:
    return repr(batch["name"][b]) if "name" in batch else str(b)

"""Instance segmentation by PointGroup: points move to the centres of their objects and are clustered there."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointcept3m.models.builder import MODELS, build_model
from pointcept3m.models.losses import build_criteria
from pointcept3m.ops.cluster import cluster_points
from pointcept3m.ops.segment import segment_csr
from pointcept3m.utils.registry import ShowsArguments

from .segmentor import features_of

Config = Mapping[str, Any]
LABELS = ("segment", "instance", "instance_centroid")


@MODELS.register_module("PG-v1m1")
class PointGroup(ShowsArguments, nn.Module):
    """PointGroup (Jiang et al. 2020) as Pointcept's PG-v1m1 has it: arguments, tensors, losses and proposals are its.

    Two heads on the backbone's features [N, backbone_out_channels]: `seg_head` gives class logits, `bias_head` the way
    from a point to the centre of its object. Proposals are clusters of the moved points alone (the paper also clusters
    the points where they are), and a proposal's score is the mean probability of its class (the paper learns scores).

    Training returns dict(loss, seg_loss, bias_l1_loss, bias_cosine_loss), loss the sum of the other three: cross-entropy,
    L1 distance in metres to the true way (Eq. 1 of the paper), minus the cosine to it (Eq. 2). The latter two are means
    over points that have an instance, 0 where none has; the first is 0 where every label is ignored.

    Evaluation returns those where the batch has all of LABELS, seg_logits [N, semantic_num_classes], and on the CPU, for P
    proposals in the order of their first points: pred_scores [P] float32, pred_classes [P] int64, and pred_masks, a
    sparse COO tensor [P, N] of bool with one entry for each point of a proposal (Pointcept's is dense, of int32;
    `.to_dense()` makes that of it). A proposal never reaches from one scene of the batch into another.

    Args:
        backbone_out_channels: width of the backbone's features; the backbone has num_classes=0.
        semantic_ignore_index: label without a class.
        segment_ignore_index: classes without instances; points predicted to be of them are in no proposal.
        instance_ignore_index: id of points without an instance.
        cluster_thresh: two moved points of one class are joined where they are nearer than this, in voxels.
        cluster_closed_points: accepted for Pointcept's configs; nothing needs an estimate of neighbours here.
        cluster_min_points, cluster_propose_points: a proposal has at least the former and more than the latter points.
        voxel_size: the unit of cluster_thresh in metres.

    Raises (forward): KeyError where a training batch lacks a label; ValueError for labels outside the classes, features of
    another width, or a single point in a training batch, of which no batch norm can take statistics.
    """

    task = "insseg"
    name = "PG-v1m1"  # in error sentences

    def __init__(
        self,
        backbone: Config,
        backbone_out_channels: int = 64,
        semantic_num_classes: int = 20,
        semantic_ignore_index: int = -1,
        segment_ignore_index: Sequence[int] = (-1, 0, 1),
        instance_ignore_index: int = -1,
        cluster_thresh: float = 1.5,
        cluster_closed_points: int = 300,
        cluster_propose_points: int = 100,
        cluster_min_points: int = 50,
        voxel_size: float = 0.02,
    ):
        super().__init__()
        if not (voxel_size > 0 and cluster_thresh > 0):
            raise ValueError(
                f"{self.name}: voxel_size and cluster_thresh must be positive, got {voxel_size} and {cluster_thresh}"
            )
        self.semantic_num_classes, self.semantic_ignore_index = semantic_num_classes, semantic_ignore_index
        self.segment_ignore_index, self.instance_ignore_index = tuple(segment_ignore_index), instance_ignore_index
        self.cluster_thresh, self.cluster_closed_points = cluster_thresh, cluster_closed_points
        self.cluster_propose_points, self.cluster_min_points = cluster_propose_points, cluster_min_points
        self.voxel_size, self.backbone_out_channels = voxel_size, backbone_out_channels
        self.backbone = build_model(backbone)
        self.bias_head = nn.Sequential(
            nn.Linear(backbone_out_channels, backbone_out_channels),
            nn.BatchNorm1d(backbone_out_channels, eps=1e-3, momentum=0.01),
            nn.ReLU(),
            nn.Linear(backbone_out_channels, 3),
        )
        self.seg_head = nn.Linear(backbone_out_channels, semantic_num_classes)
        self.seg_criteria = build_criteria(dict(type="CrossEntropyLoss", ignore_index=semantic_ignore_index))

    def forward(self, input_dict: dict[str, Any]) -> dict[str, Tensor]:
        has_labels = all(key in input_dict for key in LABELS)
        if self.training:
            self._check_training_batch(input_dict)
        if has_labels:
            self._check_labels(input_dict["segment"])
        feat = features_of(self.backbone(input_dict))
        if feat.shape[1] != self.backbone_out_channels:
            raise ValueError(
                f"{self.name}: the backbone gives {feat.shape[1]} features a point, backbone_out_channels is "
                f"{self.backbone_out_channels}; the backbone's num_classes must be 0"
            )
        bias, logits = self.bias_head(feat), self.seg_head(feat)
        output = self.losses(bias, logits, input_dict) if has_labels else {}
        if not self.training:
            output["seg_logits"] = logits
            output.update(self.proposals(input_dict["coord"], bias, logits, input_dict["offset"]))
        return output

    def losses(self, bias: Tensor, logits: Tensor, input_dict: Mapping[str, Any]) -> dict[str, Tensor]:
        """loss, seg_loss, bias_l1_loss, bias_cosine_loss, as the class says."""
        seg_loss = self.seg_criteria(logits, input_dict["segment"])
        bias = bias.float()  # distances and norms in half precision lose what the loss is about
        true = input_dict["instance_centroid"] - input_dict["coord"]
        kept = (input_dict["instance"] != self.instance_ignore_index).float()
        total = kept.sum() + 1e-8
        l1_loss = ((bias - true).abs().sum(-1) * kept).sum() / total
        cosine = (_unit(bias) * _unit(true)).sum(-1)
        cosine_loss = -(cosine * kept).sum() / total
        loss = seg_loss + l1_loss + cosine_loss
        return {"loss": loss, "seg_loss": seg_loss, "bias_l1_loss": l1_loss, "bias_cosine_loss": cosine_loss}

    @torch.no_grad()
    def proposals(self, coord: Tensor, bias: Tensor, logits: Tensor, offset: Tensor) -> dict[str, Tensor]:
        """pred_scores, pred_masks and pred_classes, as the class says.

        coord [N, 3] in metres, bias [N, 3], logits [N, K], offset [B].
        """
        probability, segment = logits.float().softmax(-1).max(-1)
        ignored = torch.tensor(self.segment_ignore_index, device=segment.device, dtype=segment.dtype)
        kept = ~torch.isin(segment, ignored)
        row = kept.nonzero().flatten()
        ends = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])[offset.long()]
        moved = (coord.float() + bias.float()) / self.voxel_size
        least = max(self.cluster_min_points, self.cluster_propose_points + 1)
        members, starts = cluster_points(moved[row], ends, segment[row], self.cluster_thresh, least)
        proposal, point = members[:, 0].long(), row[members[:, 1].long()]
        scores = segment_csr(probability[point], starts.long(), reduce="mean")
        masks = torch.sparse_coo_tensor(
            torch.stack([proposal, point]).cpu(),
            torch.ones(len(point), dtype=torch.bool),
            (len(starts) - 1, len(coord)),
            check_invariants=True,
            is_coalesced=True,
        )
        classes = segment[point[starts[:-1].long()]]
        return {"pred_scores": scores.cpu(), "pred_masks": masks, "pred_classes": classes.cpu()}

    def _check_training_batch(self, input_dict: Mapping[str, Any]) -> None:
        missing = [key for key in LABELS if key not in input_dict]
        if missing:
            raise KeyError(
                f"{self.name}: training needs {missing[0]!r} in the batch, got {sorted(input_dict)}; InstanceParser makes "
                "instance_centroid, and Collect must name all three"
            )
        if len(input_dict["coord"]) < 2:
            raise ValueError(f"{self.name}: a training batch needs at least 2 points, got {len(input_dict['coord'])}")

    def _check_labels(self, segment: Tensor) -> None:
        bad = (segment < 0) | (segment >= self.semantic_num_classes)
        bad &= segment != self.semantic_ignore_index
        # On a GPU the loss would end the process instead of raising.
        if bool(bad.any()):
            raise ValueError(
                f"{self.name}: segment must lie in 0..{self.semantic_num_classes - 1} or be {self.semantic_ignore_index}, "
                f"got {segment[bad].unique()[:5].tolist()} in {int(bad.sum())} points"
            )


@MODELS.register_module("PG-v1m2")
class PointGroupWithCriteria(PointGroup):
    """PG-v1m1 with `criteria` of one's choice for the classes, and a backbone that can be kept as it is.

    The arguments of PG-v1m1, and freeze_backbone and frozen_norm as in `DefaultSegmentorV2`. return_point in forward:
    dict(point), what the backbone returns, and nothing else.
    """

    name = "PG-v1m2"

    def __init__(
        self,
        *,
        criteria: Sequence[Config] | Config | None = None,
        freeze_backbone: bool = False,
        frozen_norm: str = "eval",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if frozen_norm not in ("eval", "train"):
            raise ValueError(f"frozen_norm must be 'eval' or 'train', got {frozen_norm!r}")
        self.seg_criteria = build_criteria(criteria)
        self.freeze_backbone, self.frozen_norm = freeze_backbone, frozen_norm
        if freeze_backbone:
            self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "PointGroupWithCriteria":
        super().train(mode)
        if self.freeze_backbone and self.frozen_norm == "eval":
            self.backbone.eval()
        return self

    def forward(self, input_dict: dict[str, Any], return_point: bool = False) -> dict[str, Any]:
        if return_point:
            return {"point": self.backbone(input_dict)}
        return super().forward(input_dict)


def _unit(vector: Tensor) -> Tensor:
    return vector / (vector.norm(dim=1, keepdim=True) + 1e-8)

"""What a backbone says of every point of a cloud: the weight, the input it was trained on, and features in bounded memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pointcept3m.datasets.collate import collate_fn
from pointcept3m.datasets.tiles import cut_tiles
from pointcept3m.datasets.transforms.compose import Compose
from pointcept3m.datasets.transforms.dialect import explicit_section
from pointcept3m.datasets.transforms.sampling import find_voxels
from pointcept3m.engines.checkpoint import load_weights, saved_config
from pointcept3m.engines.convention import check_input
from pointcept3m.engines.defaults import fill_registries, import_custom, with_defaults
from pointcept3m.engines.loader import to_device
from pointcept3m.engines.predict.predictor import find_weight
from pointcept3m.engines.visualize.scene_files import PointScene
from pointcept3m.models import build_model
from pointcept3m.models.heads.segmentor import features_of
from pointcept3m.utils.config import Config
from pointcept3m.utils.registry import near_names
from pointcept3m.utils.seed import preserved_rng

RANDOM = "random"
# Transforms of a training that also belong to looking at a scan: they place it, scale it and put it on a grid.
INPUT_TRANSFORMS = ("CenterShift", "PositiveShift", "NormalizeCoord", "NormalizeColor", "GridSample", "Constant")
MARGIN, MARGIN_CELLS = 1.5, 64  # what a piece sees beyond its own points: metres, but no more cells of the grid than that
MAX_VOXELS = 400_000


@dataclass(frozen=True)
class VoxelOutput:
    """What a backbone says: value [V, C] of each voxel, and for each point of the scene its voxel, inverse [N]."""

    value: Tensor
    inverse: NDArray[np.int64]


@dataclass(frozen=True)
class InputRecipe:
    """How a weight wants its points: transforms in the order of its config, and the keys of `feat`."""

    transforms: tuple[Mapping[str, Any], ...]
    feat_keys: tuple[str, ...]
    grid_size: float

    @property
    def needs(self) -> tuple[str, ...]:
        """The attributes that a scan must have besides coordinates."""
        return tuple(key for key in ("color", "normal") if key in self.feat_keys)

    def chain(self) -> Compose:
        """From raw points to a sample with coord, grid_coord, feat, offset and the `inverse` of every raw point."""
        collect = dict(type="Collect", keys=("coord", "grid_coord", "inverse"), feat_keys=self.feat_keys)
        return Compose([*map(dict, self.transforms), dict(type="ToTensor"), collect])


def config_of(weight: str, config: str | Path | None = None) -> tuple[str, Config]:
    """The weight file (the best one of a run folder) and its config: that which it carries, or the file `config`.

    Raises: FileNotFoundError; ValueError where there is no config, or it feeds another input than the weight was trained on.
    """
    path = weight if weight == RANDOM else str(find_weight(weight))
    fill_registries()
    if config is None and weight == RANDOM:
        raise ValueError("--weight random needs --config, which says what network to make")
    cfg = saved_config(path) if config is None else Config.fromfile(config)
    if cfg is None:
        raise ValueError(f"{path} does not carry the config it was trained with; name it with --config")
    cfg = with_defaults(cfg)
    if config is not None:
        import_custom(cfg)
        if weight != RANDOM:
            check_input(path, cfg)
    return path, cfg


def input_recipe(cfg: Config) -> InputRecipe:
    """What the config does to a scan that is not random: from its validation, its test, its probe, or its training data.

    Raises: ValueError where none of them puts points on a grid and builds `feat`.
    """
    data = cfg.get("data", {})
    probes = [hook.get("val") for hook in cfg.get("hooks", ()) if isinstance(hook, Mapping)]
    for entry in (data.get("val"), data.get("test"), *probes, data.get("train")):
        steps = list(_flat_steps(explicit_section(entry))) if isinstance(entry, Mapping) else []
        feat_keys = next(filter(None, map(_feat_keys, steps)), ())
        grid = next((step for step in steps if step["type"] == "GridSample"), None)
        if not feat_keys or grid is None:
            continue
        kept, gridded = [], False
        for step in steps:
            if step["type"] == "GridSample" and not gridded:
                size, gridded = step.get("grid_size", 0.05), True
                kept.append(dict(type="GridSample", grid_size=size, mode="train", return_grid_coord=True, return_inverse=True))
            elif step["type"] in INPUT_TRANSFORMS and step["type"] != "GridSample":
                kept.append(dict(step))
        return InputRecipe(tuple(kept), feat_keys, float(np.max(size)))
    raise ValueError("the config does not say how points become input: no data set of it has GridSample and Collect(feat_keys=...)")


def _flat_steps(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The transform configs of a data set in the order in which a sample meets them, nested ones included.

    Of a pair of views the first is looked at, of data sets put together likewise.
    """
    if entry.get("datasets"):
        yield from _flat_steps(entry["datasets"][0])
        return
    test = entry.get("test_cfg") or {}
    stages = [entry.get("transform") or entry.get("view1_transform") or (), [test.get("voxelize")], test.get("post_transform") or ()]
    for step in (step for stage in stages for step in stage if isinstance(step, Mapping) and "type" in step):
        yield from step.get("view_trans_cfg", ())
        yield step


def _feat_keys(step: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that `Collect` puts side by side as `feat`, or as `view1_feat` for the first view of a pair, less that prefix."""
    if step["type"] != "Collect":
        return ()
    name = next((name for name in step if name == "feat_keys" or name.endswith("_feat_keys")), "feat_keys")
    keys = step.get(name, ())
    return tuple(key.removeprefix(name.removesuffix("feat_keys")) for key in ((keys,) if isinstance(keys, str) else keys))


class _Backbone(nn.Module):
    """A backbone under the name that it has in every model's weights."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone


def load_backbone(weight: str, cfg: Config, seed: int = 0) -> nn.Module:
    """The backbone of a weight in eval mode, giving features [V, C]: a classifier at its end is left out.

    weight: a file, or "random" for fresh numbers by `seed`.
    Raises: ValueError where the config has no backbone, or the weights do not fit it.
    """
    model = cfg.get("model") or {}
    backbone = model.get("backbone")
    if not isinstance(backbone, Mapping):
        raise ValueError(f"the model {model.get('type')!r} of the config has no backbone; {near_names('backbone', model)}")
    backbone = dict(backbone)
    classifier = bool(backbone.get("num_classes"))
    if classifier:
        backbone["num_classes"] = 0
    with preserved_rng(seed):
        holder = _Backbone(build_model(backbone))
    if weight != RANDOM:
        load_weights(holder, weight, part="backbone", allow_partial=("backbone.final",) if classifier else False)
    return holder.backbone.eval()


def class_names(cfg: Mapping[str, Any]) -> list[str]:
    """The names of the classes that the config lists, for its data or for its probe; empty where it lists none."""
    names = (cfg.get("data") or {}).get("names")
    probes = [hook.get("class_names") for hook in cfg.get("hooks", ()) if isinstance(hook, Mapping)]
    return [str(name) for name in names or next(filter(None, probes), ())]


def check_attributes(needs: Sequence[str], scenes: Sequence[PointScene], weight: str) -> None:
    """Raises ValueError that names the scene and the attribute where a scan lacks one that the network `needs`."""
    for scene in scenes:
        missing = [key for key in needs if getattr(scene, key) is None]
        if missing:
            raise ValueError(
                f"{scene.name} has no {' and no '.join(missing)}, and {weight} was trained on {' and '.join(needs)}"
                + ("; --fill-color 127 127 127 feeds it grey all the same" if "color" in missing else "")
            )


@torch.no_grad()
def voxel_features(
    scene: PointScene,
    recipe: InputRecipe,
    backbone: nn.Module,
    device: torch.device | str = "cpu",
    max_voxels: int = MAX_VOXELS,
    seed: int = 0,
) -> VoxelOutput:
    """The backbone's features [V, C] float32 on the scene, in pieces of at most `max_voxels` voxels that overlap by MARGIN.

    One point of each voxel is looked at, drawn by `seed`, and all points of the voxel share its features.
    Raises: ValueError where the backbone gives one feature a scene, not a voxel.
    """
    chain, device = recipe.chain(), torch.device(device)
    inverse, values, base = np.empty(len(scene), np.int64), [], 0
    voxels = find_voxels(scene.coord, recipe.grid_size)
    cost = np.zeros(len(scene), np.uint8)
    cost[voxels.order[voxels.start[:-1]].numpy()] = 1
    for tile in cut_tiles(scene.coord, cost, max_voxels, min(MARGIN, MARGIN_CELLS * recipe.grid_size)):
        rows, core = tile.rows, tile.in_core(scene.coord[tile.rows])
        sample = {key: getattr(scene, key)[rows] for key in ("coord", *recipe.needs)}
        with preserved_rng(seed):
            batch = collate_fn([chain(sample)])
        cell = batch.pop("inverse").numpy()[core]
        used, place = np.unique(cell, return_inverse=True)
        feature = features_of(backbone(to_device(batch, device))).float().cpu()
        if len(feature) != len(batch["coord"]):
            raise ValueError(f"the backbone gives {len(feature)} features for {len(batch['coord'])} voxels; an encoder alone shows no points")
        values.append(feature[torch.from_numpy(used)])
        inverse[rows[core]] = base + place
        base += len(used)
    return VoxelOutput(torch.cat(values), inverse)

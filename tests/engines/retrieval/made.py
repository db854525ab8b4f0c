"""A trained-looking model (random weights, real encoders of pocket size) in a file, and scenes for its galleries."""

import numpy as np
import torch

from pointcept3m.engines.checkpoint import save_weights
from pointcept3m.engines.modalities.recipe import RECIPES, build_recipe
from pointcept3m.engines.visualize.point_features import fill_registries
from pointcept3m.models.builder import build_model
from pointcept3m.utils.config import Config
from tests.engines.modalities.scenes import RECIPE, make_scene


def write_model(path, seed=0, dim=16, recipe="tiny", hooks=()):
    """Writes the weights of a CrossOver-v1m1 with its config inside; the path."""
    fill_registries()
    RECIPES.setdefault("tiny", {key: value for key, value in RECIPE.items() if key != "name"})
    widths = build_recipe(recipe).widths
    instance = dict(type="CrossOver-instance-v1m1", widths=widths, dim=dim, transformer=dict(heads=2, layers=1, feedforward=16, dropout=0.0))
    backbone = dict(type="SpUNet-v1m1", in_channels=3, num_classes=0, base_channels=16, channels=(16,) * 8, layers=(1,) * 8)
    cfg = Config(dict(
        hooks=list(hooks),
        model=dict(type="CrossOver-v1m1", instance=instance, widths=widths, backbone=backbone, backbone_out_channels=16, dim=dim, stage="unified"),
        data=dict(test=dict(type="CrossOverDataset", recipe=recipe if isinstance(recipe, str) else recipe["name"], widths=widths, transform=[
            dict(type="CenterShift", apply_z=True), dict(type="GridSample", grid_size=0.3, return_grid_coord=True, mode="train"),
            dict(type="NormalizeColor", mode="minus_one_one"), dict(type="Collect", keys=("coord", "grid_coord"), feat_keys=("color",)),
        ])),
    ))  # fmt: skip
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(build_model(cfg.model), path, {"config": cfg.pretty_text})
    return path


WORDS = (("chair", "desk", "lamp"), ("bathtub", "toilet", "mirror"), ("stove", "fridge", "sink"), ("bed", "wardrobe", "pillow"))


def write_scenes(root, count=3):
    """<root>/val/room0 ... with every modality, of things and sizes of their own; the last has no floorplan and no frames. The folder
    of the split."""
    for number in range(count):
        folder = make_scene(root / "val" / f"room{number}", seed=number, words=WORDS[number], extent=1 + 4 * number)
        rng = np.random.default_rng(number)
        np.save(folder / "color.npy", rng.integers(60 * number, 60 * number + 60, (400, 3)).astype(np.uint8))
        if number == count - 1:
            (folder / "floorplan.png").unlink()
            (folder / "floorplan.json").unlink()
            for kind in ("color", "pose", "mask"):
                for file in (folder / kind).iterdir():
                    file.unlink()
                (folder / kind).rmdir()
    return root / "val"

"""The command line of the job that makes modality files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.engines.modalities.frames import RULES

DESCRIPTION = """Frozen encoders look at the modalities of scenes: objects' pictures, points, CAD models and texts, key frames, floorplan.

    python tools/preprocess/modalities.py --data-root data/rooms_modalities --split train val --recipe pocket
    python tools/preprocess/modalities.py --data-root data/scannet --split train val --recipe paper --feature-root data/features \\
        --weight image=dinov2_vitg14.pth shape=pointbind_i2pmae.pt text=model_large.pth --tokenizer bert-base-uncased

Writes <scene>/modalities/<recipe>.safetensors, or <feature-root>/<recipe>/<split>/<scene>.safetensors. A run that was stopped
continues where it stopped. `torchrun --nproc-per-node 4 tools/preprocess/modalities.py ...` shares the scenes out to processes
and GPUs.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-root", type=Path, required=True, help="the data set: <data-root>/<split>/<scene>/")
    add("--split", nargs="+", default=["train", "val"], help="which splits (train val)")
    add("--scenes", nargs="+", help="only scenes of these names")
    add("--frames-root", type=Path, help="where frames lie as <frames-root>/<scene>/ (default: in the scene folders)")
    add("--feature-root", type=Path, help="where files go (default: modalities/ in each scene folder)")
    add("--recipe", default="pocket", help="pocket (shipped), paper (needs weights), or a .py file with name = '...' and image, shape, text = dict(...)")
    add("--weight", nargs="+", action="extend", default=[], metavar="PART=PATH", help="weight files of image, shape, text")
    add("--tokenizer", type=Path, help="folder of the text encoder's tokenizer")
    add("--leave-out", nargs="+", default=[], metavar="PART", help="encoders to go without: image, shape, text")
    add("--keyframes", default="sharp", choices=RULES, help="rule of key frames; pose is the paper's and needs poses (sharp)")
    add("--num-frames", type=int, default=20, help="key frames of a scene, at most (20)")
    add("--views", type=int, default=10, help="pictures of an object (10)")
    add("--levels", type=int, default=3, help="crops of each (3)")
    add("--min-points", type=int, default=50, help="an object with fewer has no point vector (50)")
    add("--texts-per-object", type=int, default=0, help="referrals that are averaged; 0: all (0)")
    add("--num-texts", type=int, default=10, help="referrals of a scene (10)")
    add("--text", default="each", choices=["each", "join"], help="a vector for each of them, or one for all as the release has it (each)")
    add("--batch", type=int, default=64, help="pictures an encoder sees at once (64)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 (a GPU where there is one)")
    add("--workers", type=int, default=0, help="processes on this machine (0: in this one)")
    add("--overwrite", action="store_true", help="make anew what is there already")
    add("--skip-broken", action="store_true", help="go on past scenes that raise an error, and list them at the end")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the files with progress on stderr and a table at the end; returns 1 where a scene failed."""
    args = build_parser().parse_args(arguments)
    from pointcept3m.engines import modalities
    from pointcept3m.engines.fusion import choose_device
    from pointcept3m.utils import comm
    from pointcept3m.utils.logger import get_root_logger

    settings = modalities.ModalitySettings(
        keyframes=args.keyframes, num_frames=args.num_frames, views=args.views, levels=args.levels, min_points=args.min_points,
        texts_per_object=args.texts_per_object, num_texts=args.num_texts, text=args.text,
    )  # fmt: skip
    job = modalities.Job(
        recipe=chosen_recipe(args.recipe, args.weight, args.tokenizer, args.leave_out), settings=settings, feature_root=args.feature_root,
        frames_root=args.frames_root, batch=args.batch, device=choose_device(args.device), overwrite=args.overwrite, skip_broken=args.skip_broken,
    )  # fmt: skip
    comm.init_process_group(deadline=1800)
    try:
        folders = modalities.find_scenes(args.data_root, args.split, args.scenes)
        get_root_logger().info("%d scenes, recipe %s, on %s", len(folders), job.recipe[0], job.device)
        reports = modalities.extract_scenes(folders, job, args.workers)
        if comm.is_main_process():
            print(modalities.summary(reports))
        return int(any(report.error for report in reports))
    finally:
        comm.destroy_process_group()


def chosen_recipe(word: str, weights: Sequence[str], tokenizer: Path | None, leave_out: Sequence[str], flag: str = "--weight") -> tuple[str, dict]:
    """(name, config) of what the command line says; flag: its name for `weights`. Raises KeyError, ValueError, FileNotFoundError."""
    from pointcept3m.engines.modalities.recipe import recipe_config
    from pointcept3m.utils.config import Config
    from pointcept3m.utils.files import near_files

    recipe: str | dict = word
    if word.endswith(".py"):
        path = Path(word)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file of a recipe; {near_files(path)}")
        recipe = {"name": path.stem, **Config.fromtext(path.read_text(), str(path)).to_dict()}
    paths = {}
    for pair in weights:
        part, equals, path = pair.partition("=")
        if not equals or not path:
            raise ValueError(f"{flag} {pair!r}: wanted PART=PATH, for example shape=weights/pointbind_i2pmae.pt")
        paths[part] = path
    name, config = recipe_config(recipe, paths, leave_out)
    if tokenizer is not None:
        if config.get("text") is None:
            raise ValueError(f"--tokenizer {tokenizer}: recipe {name!r} has no encoder of text")
        config["text"] = {**config["text"], "tokenizer": str(tokenizer)}
    return name, config

"""The command lines of train, test and visualize, and what all verbs ask of a scan. Imports no torch, so that `--help` answers at once."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any


def default_argument_parser(prog: str | None = None, description: str | None = None) -> argparse.ArgumentParser:
    """The arguments of train and test, Pointcept's names and meanings."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config file, for example configs/gaussiancross/rooms.py")
    parser.add_argument("--num-gpus", type=int, default=None, metavar="N", help="processes on this machine, one per GPU; 0 is the CPU (default: the GPUs there are)")
    parser.add_argument("--num-machines", type=int, default=1, metavar="M")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", metavar="HOST:PORT", help="meeting point of all machines: the address of machine 0")
    parser.add_argument("--options", nargs="+", action="extend", metavar="a.b=c", help="settings on top of the config file, as Python literals")
    parser.add_argument("--resume", action="store_true", help="continue the run in save_path from its model/model_last.pth, or from the weight given in --options")
    return parser


def join_axis(arguments: Sequence[str] | None) -> list[str]:
    """`--up-axis -y` as one word, since argparse takes "-y" for a flag."""
    return join_values(sys.argv[1:] if arguments is None else arguments, ("--up-axis",))


def add_scan_arguments(parser: argparse.ArgumentParser) -> None:
    """What a scan's file does not say: `scan_options` and `rgbd_options` read the answers."""
    guess = parser.add_argument_group("what the scan is; auto is guessed")
    guess.add_argument("--up-axis", default="auto", choices=["auto", "x", "y", "z", "-x", "-y", "-z", "camera"], help="the direction against gravity; camera: for RGB-D frames")
    guess.add_argument("--unit", default="auto", help="of the coordinates: m, cm, mm, ft, in, or metres as a number")
    guess.add_argument("--color-range", default="auto", choices=["auto", "0..1", "-1..1", "0..255", "0..65535"])
    guess.add_argument("--fill-color", type=float, nargs=3, default=(127.5, 127.5, 127.5), metavar=("R", "G", "B"), help="0..255, fed where a scan has no colours (grey)")
    guess.add_argument("--normals", default="auto", choices=["auto", "file", "estimate"], help="auto: the file's, else estimated")
    guess.add_argument("--columns", default="auto", choices=["auto", "color", "normal"], help="columns 3 to 5 of an .npy [N, 6] or of text")
    frames = parser.add_argument_group("folders of RGB-D frames")
    frames.add_argument("--kind", help="scannet, sens_info, 7scenes or tum (by the files)")
    frames.add_argument("--voxel", type=float, metavar="M", help="metres between the fused points (0.02)")
    frames.add_argument("--max-depth", type=float, metavar="M", help="metres beyond which depth is not believed (4)")
    frames.add_argument("--depth-units", type=float, help="units of the depth images in a metre")
    frames.add_argument("--intrinsic", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"), help="overrides the folder's")
    frames.add_argument("--skip-bad-frames", action="store_true", help="leave out frames whose pose is not finite")


def scan_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about a scan: the arguments of `datasets.scan.ScanOptions`."""
    return {name: getattr(arguments, name) for name in ("up_axis", "unit", "color_range", "fill_color", "normals")}


def rgbd_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about a folder of RGB-D frames: the arguments of `read_cloud` and `check_rgbd`."""
    return dict(
        kind=arguments.kind or "auto", voxel=arguments.voxel, max_depth=arguments.max_depth, intrinsic=arguments.intrinsic,
        units_per_metre=arguments.depth_units, on_bad_frame="skip" if arguments.skip_bad_frames else "raise",
    )  # fmt: skip


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a scene's features come from that free text is put to: `source_options` reads the answers."""
    source = parser.add_argument_group("what is asked: a distilled network, features fused from images, or both")
    source.add_argument("--weight", metavar="W", help="distilled weights (.pth, .safetensors) with their config inside, or a run folder")
    source.add_argument("--source", choices=("3d", "2d", "2d3d"), help="the network, the scene's fused features, or both (3d with --weight, else 2d)")
    source.add_argument("--config", metavar="FILE", help="config, for weights that carry none, or for its text_encoder and prompt")
    source.add_argument("--teacher", metavar="NAME", help="2d: whose features (the weight's text head; else text, sentence, or the only ones there)")
    source.add_argument("--features", metavar="FILE", help="2d: the file of features")
    source.add_argument("--feature-root", metavar="FOLDER", help="2d: where features lie that are not in the scene's folder")
    source.add_argument("--text-encoder", metavar="NAME", help="text, sentence or dict(type=...), where neither weight nor teacher says it")
    source.add_argument("--prompt", metavar="SENTENCE", help="what the names of a label set are put into ('a {label} in a scene'); a query is asked as it is")
    source.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU where there is one)")
    source.add_argument("--max-points", type=int, default=400_000, metavar="N", help="voxels in one pass; bounds memory (%(default)s)")
    source.add_argument("--seed", type=int, default=0, help="which point stands for a voxel (%(default)s)")


def source_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about features: arguments of `open_vocabulary.sources.open_sources`."""
    names = ("weight", "config", "teacher", "features", "feature_root", "text_encoder", "prompt", "device", "max_points", "seed", "columns")
    return {"source": arguments.source, **{name: getattr(arguments, name) for name in names}}


def visualize_argument_parser() -> argparse.ArgumentParser:
    """The arguments of `pointcept3m visualize`."""
    parser = argparse.ArgumentParser(
        prog="pointcept3m visualize",
        description="Colours clouds by what a backbone makes of them, and writes ply files and pictures: principal components "
        "or UMAP of its features, cosine similarity to a chosen point, predicted class, error. Several scenes share one scale.",
    )
    add, wanted = parser.add_argument, parser.add_argument_group
    add("scene", nargs="+", metavar="SCENE", help="scene folder of .npy files, or a scan: ply, pcd, las, npy, npz, folder of RGB-D frames")
    add("--weight", metavar="W", help="weights of any model with a backbone (.pth, .safetensors), or 'random' for fresh ones")
    add("--config", metavar="FILE", help="config of the weights, where the file does not carry it; alone, it names the classes of labels")
    add("--out", required=True, metavar="FOLDER", help="folder for <scene>_<colour>.ply and .png")
    add("--color", action="append", metavar="COLOUR", help="pca, umap, similarity, prediction, error, rgb, label; several with commas (pca)")
    add("--query", action="append", default=[], metavar="POINT", help="point for similarity: INDEX or x,y,z in the first scene, or SCENE:INDEX, SCENE:x,y,z; may be repeated")
    add("--figure", action="store_true", help="also one figure.png: a row for each scene, a panel for each colour")
    add("--per-scene", action="store_true", help="pca: components of each scene by itself, not of all together")
    add("--normalize", action="store_true", help="pca: of features of unit length, which is what similarity compares")
    add("--umap-points", type=int, default=20_000, metavar="N", help="umap: voxels that are embedded; others take the place of their nearest (%(default)s)")
    add("--range", type=numbers(2), metavar="LOW,HIGH", help="similarity: limits of the colour scale (2nd percentile to 1)")
    add("--seed", type=int, default=0, help="seed of what is drawn: points of voxels, umap, random weights (%(default)s)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: the GPU where there is one)")
    add("--max-points", type=int, default=400_000, metavar="N", help="voxels in one pass, as predict has it; larger scenes are cut (%(default)s)")
    picture = wanted("picture")
    picture.add_argument("--view", default="iso", choices=("iso", "top", "front"), help="where the camera stands (%(default)s)")
    picture.add_argument("--azimuth", type=float, metavar="DEG", help="direction of the camera from the x axis (by the shape of the room)")
    picture.add_argument("--ceiling", type=word_or_number("auto", "keep"), default="auto", metavar="auto|keep|METRES", help="what is cut off: the ceiling that is found, nothing, or all so high above the floor (%(default)s)")
    picture.add_argument("--size", type=int, default=960, metavar="PIXELS", help="width of a picture before its rim is cut (%(default)s)")
    picture.add_argument("--point-size", type=float, metavar="METRES", help="diameter of a point (by the density of the scan)")
    scan = wanted("scan", "what the file of a scan does not say; guessed, and the guess is printed")
    scan.add_argument("--up-axis", metavar="AXIS", help="x, y, z, -x, -y, -z")
    scan.add_argument("--unit", metavar="UNIT", help="m, cm, mm, ft, in, or metres in a unit")
    scan.add_argument("--color-range", metavar="RANGE", help="0..1, -1..1, 0..255, 0..65535")
    scan.add_argument("--normals", choices=("auto", "file", "estimate"), help="of the file, or estimated")
    scan.add_argument("--fill-color", type=float, nargs=3, metavar=("R", "G", "B"), help="0..255, fed to the network where a scan has no colours")
    return parser


def numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    """A type for argparse: `count` numbers with commas between them."""

    def read(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count or not all(math.isfinite(value) for value in values):
            raise argparse.ArgumentTypeError(f"wanted {count} numbers with commas, got {text!r}")
        return values

    return read


def word_or_number(*words: str) -> Callable[[str], str | float]:
    """A type for argparse: one of `words`, or a number."""

    def read(text: str) -> str | float:
        try:
            return text if text in words else float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"wanted {', '.join(words)} or a number, got {text!r}") from None

    return read


def join_values(argv: Sequence[str], flags: Sequence[str]) -> list[str]:
    """`--query -1,2,0.5` as one word for each of `flags`, since argparse takes what begins with "-" for a flag."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] in flags:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words

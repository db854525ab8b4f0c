"""The command lines of embed, retrieve and localize. Imports no torch, so that `--help` answers at once."""

import argparse
from pathlib import Path
from typing import Any

from pointcept3m.engines.arguments import add_scan_arguments

QUERY_HELP = "a picture, a folder of pictures, a panorama, a floorplan, a scan (ply, pcd, las, npy, ...), a text or text file"


def _parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_encoders(parser: argparse.ArgumentParser) -> None:
    """Which frozen encoders look at what is given, where the weight's recipe needs more than its name."""
    add = parser.add_argument_group("frozen encoders, as tools/preprocess/modalities.py has them").add_argument
    add("--recipe", metavar="FILE", help=".py file of the recipe, where the model was trained with one's own (the name in its config)")
    add("--encoder-weight", nargs="+", action="extend", default=[], metavar="PART=PATH", help="weight files of image, shape, text")
    add("--tokenizer", type=Path, help="folder of the text encoder's tokenizer")
    add("--leave-out", nargs="+", default=[], metavar="PART", help="encoders to go without: image, shape, text")


def encoder_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_encoders` was told, as options of `open_retrieval_model`."""
    return {name: getattr(arguments, name) for name in ("recipe", "encoder_weight", "tokenizer", "leave_out")}


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weight", required=True, metavar="W", help="a trained CrossOver-v1m1 (.pth, .safetensors), or its run folder")
    parser.add_argument("--config", metavar="FILE", help="config, for weights that carry none")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU where there is one)")
    add_encoders(parser)


def embed_parser() -> argparse.ArgumentParser:
    """The command line of `pointcept3m embed`."""
    parser = _parser(
        "pointcept3m embed",
        "Embeds scenes into CrossOver's space, as a gallery that is searched, or as vectors.",
        "  pointcept3m embed data/rooms_modalities/val --weight exp/crossover/rooms --gallery db\n  pointcept3m embed plan.png --weight exp/crossover/rooms --out plan.npy\n",
    )
    add = parser.add_argument
    add("given", nargs="+", metavar="SCENE", help=f"a scene folder or a folder of them, for --gallery; or, each a scene, {QUERY_HELP}")
    _add_model(parser)
    add("--gallery", type=Path, metavar="FOLDER", help="writes or (--add, --resume) extends a gallery")
    add("--out", type=Path, metavar="FILE", help=".npy: the unit vectors of what is given, a row each")
    add("--add", action="store_true", help="put the scenes into the gallery that is there")
    add("--resume", action="store_true", help="go on with a gallery that was stopped: only folders that it has not")
    add("--skip-broken", action="store_true", help="go on past scenes that raise an error, and list them at the end (exit code 1)")
    add("--index", choices=("exact", "faiss"), default="exact", help="faiss: an index for large galleries, its recall is printed (%(default)s)")
    add("--feature-root", type=Path, metavar="FOLDER", help="where tools/preprocess/modalities.py put features that are not in the scenes")
    add("--overwrite", action="store_true", help="replace --out where it exists")
    add("--as", dest="given_as", metavar="KIND", help="image, panorama, floorplan, text or point, where the guess is wrong; of a scene folder, which of its modalities, or scene")
    add_scan_arguments(parser)
    return parser


def retrieve_parser() -> argparse.ArgumentParser:
    """The command line of `pointcept3m retrieve`."""
    parser = _parser(
        "pointcept3m retrieve",
        "Finds scenes of a gallery by a picture, a floorplan, words or points.",
        '  pointcept3m retrieve --query plan.png --gallery db --weight exp/crossover/rooms\n  pointcept3m retrieve --query "a desk near the window" --gallery db --weight W --target point\n'
        "  pointcept3m retrieve --query plan.png --metres-per-pixel 0.02 --gallery db --weight W --rerank exp/crossover/rooms-rerank/model/model_last.pth\n",
    )
    add = parser.add_argument
    add("--query", required=True, action="append", metavar="Q", help=f"{QUERY_HELP}; repeated, their vectors are averaged")
    add("--gallery", required=True, type=Path, metavar="FOLDER", help="what pointcept3m embed --gallery wrote")
    _add_model(parser)
    add("--as", dest="given_as", action="append", metavar="KIND", help="image, panorama, floorplan, text or point, where the guess is wrong; of a scene folder, which of its modalities, or scene; once a query")
    add("--target", action="append", metavar="M", help="modality of the gallery to look in: image, point, floorplan, text, scene; may be repeated (all it has)")
    add("--top", type=int, default=5, metavar="K", help="scenes to show (%(default)s)")
    add("--rerank", metavar="W", help="a trained re-ranker (configs/crossover/rooms-rerank.py): the first candidates by how their scans' walls fit the query, a floorplan")
    add("--candidates", type=int, default=40, metavar="N", help="scenes that --rerank looks at (%(default)s)")
    add("--metres-per-pixel", type=float, metavar="S", help="scale of a floorplan for --rerank; a scene folder's floorplan.json says its own")
    add("--split", help="only scenes of this split")
    add("--category", help="kind of room")
    add("--dataset", help="only scenes of this data set")
    add("--feature-root", type=Path, metavar="FOLDER", help="where features lie that are not in the scenes, for a scene folder as query")
    add("--without", action="append", default=[], metavar="SCENE", help="a scene that must not be found, such as the query's own; may be repeated")
    add("--without-place", action="append", default=[], metavar="PLACE", help="a place none of whose scans may be found")
    add("--out", type=Path, action="append", default=[], metavar="FILE", help=".json: the ranking; .png: a sheet of pictures; may be repeated")
    add("--overwrite", action="store_true", help="replace --out where it exists")
    add_scan_arguments(parser)
    return parser


def localize_parser() -> argparse.ArgumentParser:
    """The command line of `pointcept3m localize`."""
    parser = _parser(
        "pointcept3m localize",
        "Finds the objects of one scene in another, with their boxes: matched one to one, then aligned.",
        "  pointcept3m localize --query data/rooms_modalities/val/room000003_1 --from cad --scene data/rooms_modalities/val/room000003 --to point --weight exp/crossover/rooms --out found.png\n"
        '  pointcept3m localize --query chair.obj --query "the lamp on the desk" --scene data/rooms_modalities/val/room000003 --weight exp/crossover/rooms\n',
    )
    add = parser.add_argument
    add("--query", required=True, action="append", metavar="Q", help="scene folder whose objects are looked for; or a mesh, a picture of an object or words, may be repeated")
    add("--scene", required=True, type=Path, metavar="SCENE", help="scene folder they are looked for in, such as the one retrieve found")
    add("--from", dest="source", default="cad", metavar="M", help="of a scene folder: modality of its objects, image, point, cad or text (%(default)s)")
    add("--to", dest="target", default="point", metavar="M", help="modality of the scene's objects (%(default)s)")
    add("--up", choices=("x", "y", "z"), default="z", help="axis of meshes that points up (%(default)s)")
    add("--tolerance", type=float, default=0.6, metavar="METRES", help="distance at which aligned centres agree (%(default)s)")
    _add_model(parser)
    add("--feature-root", type=Path, metavar="FOLDER", help="where features lie that are not in the scenes")
    add("--out", type=Path, action="append", default=[], metavar="FILE", help=".json: matches and boxes; .png: the scene from above with the boxes; may be repeated")
    add("--overwrite", action="store_true", help="replace --out where it exists")
    return parser

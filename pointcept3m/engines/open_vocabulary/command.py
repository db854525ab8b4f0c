"""`pointcept3m query`: where in a scene something is that one describes, as a heat map and in coordinates."""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointcept3m.engines.arguments import (
    add_scan_arguments,
    add_source_arguments,
    join_values,
    rgbd_options,
    scan_options,
    source_options,
)

EPILOG = """\
SCENE is a scene folder of .npy files, a .ply, .pcd, .las, .npy, .npz or text file, or a folder of posed RGB-D frames. What
it does not say is guessed, and each guess is printed with the flag that overrides it.

  pointcept3m query "somewhere to sit" --scene data/rooms/val/room000000 --weight exp/cua_o3d/words --out heat.ply
  pointcept3m query chair table lamp --scene scan.ply --weight model_best.pth --out heat.npz
  pointcept3m query --image chair.png --scene data/rooms/val/room000000 --source 2d
"""
OUTPUTS = (".ply", ".npy", ".npz", ".png", ".jpg")


def build_parser(prog: str = "pointcept3m query") -> argparse.ArgumentParser:
    """The command line; imports no torch."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Asks a scene in free text, by an image, or by one of its points.", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("text", nargs="*", metavar="TEXT", help="what is looked for, in free words; several texts are several queries")
    add("--scene", required=True, type=Path, metavar="SCENE", help="the scan, a file or a folder")
    add("--image", type=Path, action="append", default=[], metavar="FILE", help="a picture of what is looked for; may be repeated")
    add("--point", action="append", default=[], metavar="POINT", help="a point of the scene, by its INDEX or as x,y,z in its file; may be repeated")
    add("--out", type=Path, metavar="FILE", help=".ply (one for each query), .npy, .npz, .png or .jpg (<SCENE's name>.query.ply, here)")
    add("--overwrite", action="store_true", help="replace --out where it exists")
    add("--relevancy", action="store_true", help="how much likelier than 'object', 'things', 'stuff' and 'texture', 0..1, not the cosine")
    add("--negatives", metavar="A,B,...", help="other words than these for --relevancy")
    add("--threshold", type=float, metavar="S", help="similarity from which a point belongs to the answer (3/4 of the way from the median to the top)")
    add("--labels", metavar="SET", help="label set, or names with commas, to say what the best region is called (the weight's, else scannet20)")
    add_source_arguments(parser)
    add_scan_arguments(parser)
    return parser


def query_main(argv: Sequence[str] | None = None) -> int:
    """Asks as the arguments say, prints the best region of each query, writes the files; returns 0.

    Raises: ValueError, FileNotFoundError, ... for an empty query, an unknown label set, a file that cannot be written,
        features of another scene; whatever can be known beforehand is said before the network runs.
    """
    import sys

    arguments = build_parser().parse_args(join_values(sys.argv[1:] if argv is None else argv, ("--up-axis", "--point")))
    from pointcept3m.engines.open_vocabulary.answers import named_queries, report, save
    from pointcept3m.engines.open_vocabulary.query import NEGATIVES, SceneQuery
    from pointcept3m.engines.open_vocabulary.sources import check_source, open_sources
    from pointcept3m.structures.label_sets import named_or_free

    check_source(arguments.source, arguments.weight, arguments.scene)
    out = _outputs(arguments)
    labels = named_or_free(arguments.labels) if arguments.labels else None
    negatives = _negatives(arguments) or NEGATIVES
    sources = open_sources(arguments.scene, rgbd=rgbd_options(arguments), **source_options(arguments), **scan_options(arguments))
    query = SceneQuery(sources.embedding, sources.encoder, sources.prompt, negatives)
    queries = named_queries(arguments.text, arguments.image, arguments.point, sources.scene)
    if arguments.image and sources.encoder.reads_images:
        print(f"images are looked at by {sources.encoder.image_side}")
    vocabulary = query.vocabulary(labels or sources.labels())
    similarity = []
    for name, asked in queries:
        similarity.append(query(asked, arguments.relevancy))
        print(report(name, sources.scene, query, similarity[-1], vocabulary, arguments.threshold))
    start = time.monotonic()
    files = save(out, sources.scene, [name for name, _ in queries], similarity, arguments.threshold)
    print(f"{', '.join(map(str, files))}: {len(sources.scene):,} points, written in {time.monotonic() - start:.1f} s")
    return 0


def _outputs(arguments: Any) -> list[Path]:
    """The files to write: one .ply for each query, one .npy or .npz for all. Raises as `check_output`, ValueError for no query."""
    from pointcept3m.engines.open_vocabulary.answers import parse_point
    from pointcept3m.engines.predict.prediction import check_output
    from pointcept3m.utils.files import near_files

    for text in arguments.text:
        if not text.strip():
            raise ValueError("an empty query: wanted words, such as 'somewhere to sit'")
    names = [*arguments.text, *(f"image {path.stem}" for path in arguments.image), *(f"point {point}" for point in arguments.point)]
    if not names:
        raise ValueError("nothing was asked: give a text ('somewhere to sit'), --image FILE or --point INDEX")
    for point in arguments.point:
        parse_point(point)
    for path in arguments.image:
        if not path.is_file():
            raise FileNotFoundError(f"--image {path}: no such image; {near_files(path)}")
    scene = arguments.scene
    out = arguments.out or Path(f"{scene.resolve().name if scene.is_dir() else scene.stem}.query.ply")
    paths = [out]
    if out.suffix.lower() == ".ply" and len(names) > 1:
        paths = [out.with_name(f"{out.stem}.{number}-{slug(name)}.ply") for number, name in enumerate(names, 1)]
    for path in paths:
        check_output(path, arguments.overwrite, OUTPUTS)
        if path.resolve() == scene.resolve():
            raise ValueError(f"--out {path} is the scene itself; wanted another name")
    if arguments.out is None:
        print(f"writes {out} into this folder (--out)")
    return paths


def _negatives(arguments: Any) -> list[str]:
    """The words of --negatives, none where it was not given. Raises ValueError for empty ones, or without --relevancy."""
    if arguments.negatives is None:
        return []
    words = [word.strip() for word in arguments.negatives.split(",")]
    if not all(words):
        raise ValueError(f"--negatives {arguments.negatives!r}: wanted words with commas between them, such as 'object,things,stuff'")
    if not arguments.relevancy:
        raise ValueError("--negatives belongs to --relevancy; give both, or neither")
    return words


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "query"

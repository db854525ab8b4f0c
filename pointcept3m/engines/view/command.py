"""`pointcept3m view`: a page in the browser where a scene is asked."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pointcept3m.engines.arguments import (
    add_scan_arguments,
    add_source_arguments,
    join_axis,
    rgbd_options,
    scan_options,
    source_options,
)
from pointcept3m.engines.retrieval.arguments import add_encoders, encoder_options

EPILOG = """\
The page takes text, an image, or a click on a point, and shows the similarity on the cloud, the best region and its place.
It listens on this machine alone unless --host says otherwise; from elsewhere: ssh -L 8080:localhost:8080 THIS_MACHINE.

  pointcept3m view data/rooms/val/room000000 --weight exp/cua_o3d/words
  pointcept3m view data/rooms/val/room000000 --source 2d --query "somewhere to sit"
  pointcept3m view --gallery db --weight exp/crossover/rooms
"""


def build_parser(prog: str = "pointcept3m view") -> argparse.ArgumentParser:
    """The command line; imports no torch."""
    parser = argparse.ArgumentParser(
        prog=prog, description="A page in the browser where a scene is asked in free text.", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("scene", type=Path, nargs="?", metavar="SCENE", help="scene folder of .npy files, a scan (.ply, .pcd, .las, ...), or a folder of RGB-D frames")
    add("--gallery", type=Path, metavar="FOLDER", help="no scene but a gallery of pointcept3m embed: the page finds its scenes by pictures, floorplans, words, points")
    add("--query", default="", metavar="TEXT", help="asked when the page opens")
    add("--labels", metavar="SET", help="label set, or names with commas, that things are named by (the weight's, else scannet20)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets the whole network in, without a password (%(default)s)")
    add("--port", type=int, default=8080, metavar="N", help="0 takes any free one (%(default)s)")
    add("--shown", type=int, default=400_000, metavar="N", help="points that are drawn at most; queries look at all (%(default)s)")
    add_source_arguments(parser)
    add_scan_arguments(parser)
    add_encoders(parser)
    return parser


def view_main(argv: Sequence[str] | None = None) -> int:
    """Opens the scene, starts the page and serves it until it is interrupted; returns 0.

    Raises: as `open_sources`; ImportError without viser, OSError where the port is taken: both before the network runs.
    """
    arguments = build_parser().parse_args(join_axis(argv))
    if (arguments.scene is None) == (arguments.gallery is None):
        raise ValueError("wanted a scene (pointcept3m view SCENE), or a gallery (pointcept3m view --gallery FOLDER --weight W)")
    if arguments.gallery is not None:
        return _view_gallery(arguments)
    from pointcept3m.engines.open_vocabulary.query import SceneQuery
    from pointcept3m.engines.open_vocabulary.sources import check_source, open_sources
    from pointcept3m.engines.view.page import Page
    from pointcept3m.engines.view.scene_view import SceneView
    from pointcept3m.engines.view.server import check_address, import_viser, is_loopback, start_server
    from pointcept3m.structures.label_sets import named_or_free

    import_viser()
    check_address(arguments.host, arguments.port)
    check_source(arguments.source, arguments.weight, arguments.scene)
    labels = named_or_free(arguments.labels) if arguments.labels else None
    if arguments.shown < 1:
        raise ValueError(f"--shown must be at least 1, got {arguments.shown}")
    sources = open_sources(arguments.scene, rgbd=rgbd_options(arguments), **source_options(arguments), **scan_options(arguments))
    view = SceneView(sources, SceneQuery(sources.embedding, sources.encoder, sources.prompt), arguments.shown, arguments.seed)
    if labels is not None:
        view.set_labels(labels)
    server = start_server(arguments.host, arguments.port, sources.scene.name)
    try:
        Page(server, view, arguments.query)
        where = "localhost" if is_loopback(arguments.host) or arguments.host == "0.0.0.0" else arguments.host
        print(f"{sources.scene.name}: {view.about()}")
        if not is_loopback(arguments.host):
            print(f"caution: whoever reaches {arguments.host} on the network sees this page; there is no password")
        print(f"http://{where}:{server.get_port()}  (Ctrl-C ends it)", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
        return 0
    finally:
        server.stop()


def _view_gallery(arguments: argparse.Namespace) -> int:
    """Serves the page of a gallery until it is interrupted; returns 0."""
    from pointcept3m.engines.retrieval.gallery import Gallery
    from pointcept3m.engines.retrieval.inputs import open_retrieval_model
    from pointcept3m.engines.view.gallery_server import GallerySearch, start_gallery_server
    from pointcept3m.engines.view.server import check_address, is_loopback

    if not arguments.weight:
        raise ValueError("--gallery needs --weight, the CrossOver model that the gallery was embedded by")
    check_address(arguments.host, arguments.port)
    gallery = Gallery(arguments.gallery)
    model = open_retrieval_model(arguments.weight, arguments.config, arguments.device, **encoder_options(arguments))
    gallery.check_model(model.fingerprint, arguments.weight)
    server = start_gallery_server(
        GallerySearch(gallery, model, columns=arguments.columns, **scan_options(arguments)), arguments.host, arguments.port
    )
    where = "localhost" if is_loopback(arguments.host) or arguments.host == "0.0.0.0" else arguments.host
    print(f"{arguments.gallery}: {len(gallery)} scenes")
    if not is_loopback(arguments.host):
        print(f"caution: whoever reaches {arguments.host} on the network sees this page; there is no password")
    print(f"http://{where}:{server.server_address[1]}  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
    finally:
        server.server_close()
    return 0

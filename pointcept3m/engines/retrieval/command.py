"""`pointcept3m embed`, `retrieve` and `localize`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.engines.arguments import join_axis, scan_options
from pointcept3m.engines.retrieval.arguments import embed_parser, localize_parser, retrieve_parser


def embed_main(argv: Sequence[str] | None = None) -> int:
    """Writes a gallery or vectors; returns 0. Raises: what is wrong with the input, before the network runs where it can be told."""
    arguments = embed_parser().parse_args(join_axis(argv))
    if (arguments.gallery is None) == (arguments.out is None):
        raise ValueError("give --gallery FOLDER for scene folders, or --out FILE.npy for the vectors of anything else")
    if arguments.add and arguments.gallery is None:
        raise ValueError("--add belongs to --gallery")
    from pointcept3m.engines.retrieval.inputs import open_retrieval_model

    if arguments.gallery is not None:
        return _embed_gallery(arguments)
    if arguments.out.suffix != ".npy":
        raise ValueError(f"--out {arguments.out}: wanted a .npy file")
    model = open_retrieval_model(arguments.weight, arguments.config, arguments.device)
    from pointcept3m.engines.retrieval.inputs import embed_query
    from pointcept3m.engines.retrieval.scenes import read_any
    from pointcept3m.utils.files import replacing

    options = {**scan_options(arguments), "columns": arguments.columns}
    vectors = [embed_query(read_any(given, model, arguments.kind, **options), model) for given in arguments.given]
    with replacing(arguments.out) as part, open(part, "wb") as stream:
        np.save(stream, np.stack(vectors))
    print(f"{arguments.out}: {len(vectors)} vectors of {len(vectors[0])}")
    return 0


def _embed_gallery(arguments: Any) -> int:
    from pointcept3m.engines.retrieval.gallery import write_gallery
    from pointcept3m.engines.retrieval.index import import_faiss
    from pointcept3m.engines.retrieval.inputs import open_retrieval_model
    from pointcept3m.engines.retrieval.scenes import embed_folders, find_scene_folders, scene_picture

    if arguments.index == "faiss":
        import_faiss()
    folders = find_scene_folders(arguments.given)
    if (arguments.gallery / "embeddings.safetensors").is_file() and not arguments.add:
        raise FileExistsError(f"{arguments.gallery}: holds a gallery already; --add puts scenes into it, another folder makes a new one")
    model = open_retrieval_model(arguments.weight, arguments.config, arguments.device)
    embeddings = embed_folders(folders, model, arguments.feature_root)
    gallery = write_gallery(arguments.gallery, embeddings, lambda number: scene_picture(folders[number]), arguments.add)
    known = ", ".join(f"{int(mask.sum())} {name}" for name, mask in gallery.embeddings.scene_known.items())
    print(f"{arguments.gallery}: {len(gallery)} scenes ({known})")
    if arguments.index == "faiss":
        for modality in gallery.modalities:
            report = gallery.build_index(modality)
            print(
                f"{modality}: index built in {report.seconds:.1f} s, {report.bytes / 1e6:.1f} MB; of the ten nearest it finds "
                f"{report.recall:.2%} looking at {report.probes} cells"
            )
    return 0


def retrieve_main(argv: Sequence[str] | None = None) -> int:
    """Prints ranked scenes, writes them as JSON or as a sheet of pictures; returns 0. Raises as its parts do."""
    arguments = retrieve_parser().parse_args(join_axis(argv))
    out = arguments.out
    if out is not None and out.suffix not in (".json", ".png"):
        raise ValueError(f"--out {out}: wanted .json or .png")
    kinds = arguments.kind or [None]
    if len(kinds) not in (1, len(arguments.query)):
        raise ValueError(f"{len(kinds)} times --as for {len(arguments.query)} queries; wanted one, or one each")
    from pointcept3m.engines.retrieval.gallery import Filter, Gallery
    from pointcept3m.engines.retrieval.inputs import embed_query, open_retrieval_model
    from pointcept3m.engines.retrieval.scenes import read_any

    gallery = Gallery(arguments.gallery)
    chosen = Filter(arguments.split, arguments.category, arguments.dataset, tuple(arguments.without), tuple(arguments.without_place))
    targets = arguments.target or gallery.modalities
    for target in targets:
        gallery.allowed(target, chosen)
    model = open_retrieval_model(arguments.weight, arguments.config, arguments.device)
    gallery.check_model(model.fingerprint, arguments.weight)
    kinds = kinds * len(arguments.query) if len(kinds) == 1 else kinds
    options = {**scan_options(arguments), "columns": arguments.columns}
    queries = [read_any(given, model, kind, **options) for given, kind in zip(arguments.query, kinds, strict=True)]
    vector = np.mean([embed_query(query, model) for query in queries], axis=0)
    hits = gallery.search((vector / np.linalg.norm(vector)).astype(np.float32), targets, arguments.top, chosen)
    e = gallery.embeddings
    print(f"{'rank':>4}  {'score':>6}  {'in':<10}{'category':<14}scene")
    for rank, hit in enumerate(hits, 1):
        print(f"{rank:>4}  {hit.score:>6.3f}  {hit.modality:<10}{e.categories[hit.number] or '-':<14}{e.splits[hit.number]}/{hit.name}")
    if out is None:
        return 0
    if out.suffix == ".json":
        rows = [
            dict(rank=rank, scene=hit.name, split=e.splits[hit.number], place=e.places[hit.number], category=e.categories[hit.number],
                 modality=hit.modality, score=hit.score, folder=_folder(e.details, hit.number))
            for rank, hit in enumerate(hits, 1)
        ]  # fmt: skip
        _write_json(out, {"query": arguments.query, "gallery": str(arguments.gallery), "model": model.fingerprint, "hits": rows})
    else:
        from pointcept3m.engines.visualize.sheet import save_png

        save_png(out, ranking_sheet(queries, hits, gallery))
    print(f"{out}: written")
    return 0


def _folder(details: Mapping[str, Any], number: int) -> str | None:
    folders = details.get("folders") or []
    return folders[number] if number < len(folders) else None


def ranking_sheet(queries: Sequence[Any], hits: Sequence[Any], gallery: Any) -> NDArray[np.uint8]:
    """A row of pictures: the first query, then the scenes found, with ranks and scores above."""
    from pointcept3m.engines.visualize.sheet import compose

    first = next((query for query in queries if query.picture is not None), queries[0])
    shown = [_framed(first.picture, first.name)]
    shown += [_framed(gallery.picture(hit.number), hit.name) for hit in hits]
    titles = ["query", *(f"{rank}. {hit.name}  {hit.score:.2f}" for rank, hit in enumerate(hits, 1))]
    return compose(titles, [("", shown)], size=16)


def _framed(image: NDArray[np.uint8] | None, name: str, side: int = 280) -> NDArray[np.uint8]:
    """A picture in the middle of a white square; a scene or query without one shows its name."""
    from PIL import Image, ImageDraw

    from pointcept3m.engines.visualize.sheet import font

    square = Image.new("RGB", (side, side), "white")
    if image is None:
        words, lines = name.split(), [""]
        for word in words:
            lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < 24 else [*lines, word]
        ImageDraw.Draw(square).multiline_text((side // 2, side // 2), "\n".join(lines), (60, 60, 60), font(16), anchor="mm", align="center")
    else:
        picture = Image.fromarray(image)
        picture.thumbnail((side, side))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)


def localize_main(argv: Sequence[str] | None = None) -> int:
    """Prints which object is which, with boxes; writes JSON or a picture from above. Raises as its parts do."""
    arguments = localize_parser().parse_args(argv)
    out = arguments.out
    if out is not None and out.suffix not in (".json", ".png"):
        raise ValueError(f"--out {out}: wanted .json or .png")
    from pointcept3m.engines.retrieval.found_objects import describe_found, draw_found, find_objects
    from pointcept3m.engines.retrieval.inputs import open_retrieval_model

    model = open_retrieval_model(arguments.weight, arguments.config, arguments.device)
    found = find_objects(arguments.query, arguments.scene, model, arguments.source, arguments.target, arguments.tolerance, arguments.feature_root)
    print(describe_found(found))
    if out is None:
        return 0
    if out.suffix == ".json":
        _write_json(out, found.as_json())
    else:
        from pointcept3m.engines.visualize.sheet import save_png

        save_png(out, draw_found(found))
    print(f"{out}: written")
    return 0


def _write_json(path: Path, content: Any) -> None:
    from pointcept3m.utils.files import replacing

    with replacing(path) as part:
        Path(part).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

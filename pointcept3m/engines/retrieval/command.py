"""`pointcept3m embed`, `retrieve` and `localize`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pointcept3m.engines.arguments import join_axis, rgbd_options, scan_options
from pointcept3m.engines.retrieval.arguments import embed_parser, encoder_options, localize_parser, retrieve_parser

WRITE_EVERY = 300.0  # seconds of work after which a gallery is written, so that --resume has something to go on from


def embed_main(argv: Sequence[str] | None = None) -> int:
    """Writes a gallery or vectors; returns 0. Raises: what is wrong with the input, before the network runs where it can be told."""
    arguments = embed_parser().parse_args(join_axis(argv))
    if (arguments.gallery is None) == (arguments.out is None):
        raise ValueError("give --gallery FOLDER for scenes that are searched, or --out FILE.npy for their vectors alone")
    for flag in ("add", "resume", "skip_broken"):
        if getattr(arguments, flag) and arguments.gallery is None:
            raise ValueError(f"--{flag.replace('_', '-')} belongs to --gallery")
    if arguments.gallery is not None and (arguments.given_as or arguments.overwrite):
        raise ValueError(f"--{'as' if arguments.given_as else 'overwrite'} belongs to --out")
    from pointcept3m.engines.predict.prediction import check_output
    from pointcept3m.engines.retrieval.inputs import embed_query, open_retrieval_model
    from pointcept3m.engines.retrieval.scenes import read_any
    from pointcept3m.utils.files import replacing

    if arguments.gallery is not None:
        return _embed_gallery(arguments)
    check_output(arguments.out, arguments.overwrite, (".npy",))
    model = open_retrieval_model(arguments.weight, arguments.config, arguments.device, **encoder_options(arguments))
    vectors = [embed_query(read_any(given, model, arguments.given_as, **_reading(arguments)), model) for given in arguments.given]
    with replacing(arguments.out) as part, open(part, "wb") as stream:
        np.save(stream, np.stack(vectors))
    print(f"{arguments.out}: {len(vectors)} vectors of {len(vectors[0])}")
    return 0


def _reading(arguments: Any) -> dict[str, Any]:
    """What the command line says of scans and scene folders, as options of `read_any`."""
    return {**scan_options(arguments), "columns": arguments.columns, "rgbd": rgbd_options(arguments), "feature_root": arguments.feature_root}


def _embed_gallery(arguments: Any) -> int:
    from pointcept3m.engines.retrieval.gallery import Gallery, check_unique, folders_of, write_gallery
    from pointcept3m.engines.retrieval.index import import_faiss
    from pointcept3m.engines.retrieval.inputs import open_retrieval_model
    from pointcept3m.engines.retrieval.scenes import embed_scenes, find_scenes

    if arguments.index == "faiss":
        import_faiss()
    folders = find_scenes(arguments.given)
    there = (arguments.gallery / "embeddings.safetensors").is_file()
    if there and not (arguments.add or arguments.resume):
        raise FileExistsError(f"{arguments.gallery}: holds a gallery already; --add puts scenes into it, --resume those that it has not (with --index faiss alone it builds an index), another folder makes a new one")
    model = open_retrieval_model(arguments.weight, arguments.config, arguments.device, **encoder_options(arguments))
    gallery = Gallery(arguments.gallery) if there else None
    if gallery is not None:
        gallery.check_model(model.fingerprint, arguments.weight)
        if arguments.resume:
            before, embedded = len(folders), set(folders_of(gallery.embeddings))
            folders = [folder for folder in folders if str(folder.resolve()) not in embedded]
            print(f"{before - len(folders)} of {before} scenes are in {arguments.gallery} already")
    indexed = any((arguments.gallery / "index").glob("*.safetensors"))
    broken: dict[Path, Exception] | None = {} if arguments.skip_broken else None
    seen: dict[tuple[str, str, str], str | None] = {}
    for part, pictures in embed_scenes(folders, model, seconds=WRITE_EVERY, broken=broken, **_reading(arguments)):
        check_unique(part, seen)
        gallery = write_gallery(arguments.gallery, part, pictures.__getitem__, add=gallery is not None, say=print)
    if gallery is None:
        raise ValueError(f"none of {len(folders)} scenes could be read; the first: {next(iter(broken.values()))}")
    known = ", ".join(f"{int(mask.sum())} {name}" for name, mask in gallery.embeddings.scene_known.items())
    print(f"{arguments.gallery}: {len(gallery)} scenes ({known})")
    if broken:
        print(f"left out, since they could not be read: {', '.join(folder.name for folder in broken)}")
    if arguments.index == "faiss":
        for modality in gallery.modalities:
            print(f"{modality}: {gallery.build_index(modality)}")
    elif indexed and folders:
        print("its faiss index was of the scenes before and is gone; --index faiss builds it again")
    return 1 if broken else 0


def retrieve_main(argv: Sequence[str] | None = None) -> int:
    """Prints ranked scenes, writes them as JSON or as a sheet of pictures; returns 0. Raises as its parts do."""
    arguments = retrieve_parser().parse_args(join_axis(argv))
    kinds = arguments.given_as or [None]
    if len(kinds) not in (1, len(arguments.query)):
        raise ValueError(f"{len(kinds)} times --as for {len(arguments.query)} queries; wanted one, or one each")
    if arguments.top < 1:
        raise ValueError(f"--top must be at least 1, got {arguments.top}")
    _check_outputs(arguments)
    reranked = _reranker(arguments)
    from pointcept3m.engines.retrieval.ask import ask, hit_rows, ranking_sheet
    from pointcept3m.engines.retrieval.gallery import Filter, Gallery
    from pointcept3m.engines.retrieval.inputs import open_retrieval_model
    from pointcept3m.engines.retrieval.scenes import read_any
    from pointcept3m.engines.visualize.sheet import save_png

    gallery = Gallery(arguments.gallery)
    chosen = Filter(arguments.split, arguments.category, arguments.dataset, tuple(arguments.without), tuple(arguments.without_place))
    targets = arguments.target or gallery.targets(chosen)
    for target in targets:
        gallery.allowed(target, chosen)
    model = open_retrieval_model(arguments.weight, arguments.config, arguments.device, **encoder_options(arguments))
    gallery.check_model(model.fingerprint, arguments.weight)
    kinds = kinds * len(arguments.query) if len(kinds) == 1 else kinds
    queries = [read_any(given, model, kind, **_reading(arguments)) for given, kind in zip(arguments.query, kinds, strict=True)]
    if reranked is None:
        hits = ask(gallery, model, queries, targets, arguments.top, chosen)
    else:
        if queries[0].kind != "floorplan":
            raise ValueError(f"--rerank compares a floorplan with scans; {arguments.query[0]} is read as {queries[0].kind} (--as floorplan says otherwise)")
        candidates = ask(gallery, model, queries, targets, max(arguments.top, arguments.candidates), chosen)
        hits = reranked(candidates, gallery)[: arguments.top]
    rows = hit_rows(gallery, hits)
    print(f"{'rank':>4}  {'score':>6}  {'in':<10}{'category':<14}{'' if reranked is None else 'geometry  '}scene")
    for row in rows:
        fits = "" if reranked is None else f"{row['geometry']:>8.2f}  " if "geometry" in row else f"{'-':>8}  "
        print(f"{row['rank']:>4}  {row['score']:>6.3f}  {row['modality']:<10}{row['category'] or '-':<14}{fits}{row['split'] + '/' if row['split'] else ''}{row['scene']}")
    for out in arguments.out:
        if out.suffix.lower() == ".json":
            asked = [{"query": given, "as": query.kind} for given, query in zip(arguments.query, queries, strict=True)]
            _write_json(out, {"queries": asked, "gallery": str(arguments.gallery), "model": model.fingerprint, "hits": rows})
        else:
            save_png(out, ranking_sheet(queries, hits, gallery))
        print(f"{out}: written")
    return 0


def _reranker(arguments: Any) -> Any:
    """(candidates, gallery) -> hits by geometry, None without --rerank. Raises what is wrong with the plan or the re-ranker."""
    if arguments.rerank is None:
        if arguments.metres_per_pixel is not None:
            raise ValueError("--metres-per-pixel belongs to --rerank")
        return None
    if len(arguments.query) != 1:
        raise ValueError(f"--rerank compares one floorplan with scans, got {len(arguments.query)} queries")
    if arguments.candidates < 1:
        raise ValueError(f"--candidates must be at least 1, got {arguments.candidates}")
    import torch

    from pointcept3m.engines.retrieval.rerank import load_reranker, plan_to_compare, rerank_hits

    plan = plan_to_compare(arguments.query[0], arguments.metres_per_pixel)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_reranker(arguments.rerank, device)
    return lambda hits, gallery: rerank_hits(plan, hits, gallery, model)


def _check_outputs(arguments: Any) -> None:
    from pointcept3m.engines.predict.prediction import check_output

    for out in arguments.out:
        check_output(out, arguments.overwrite, (".json", ".png"))


def localize_main(argv: Sequence[str] | None = None) -> int:
    """Prints which object is which, with boxes; writes JSON or a picture from above. Raises as its parts do."""
    arguments = localize_parser().parse_args(argv)
    _check_outputs(arguments)
    from pointcept3m.engines.retrieval.found_objects import describe_found, find_objects
    from pointcept3m.engines.retrieval.found_picture import draw_found
    from pointcept3m.engines.retrieval.inputs import open_retrieval_model

    model = open_retrieval_model(arguments.weight, arguments.config, arguments.device, **encoder_options(arguments))
    found = find_objects(
        arguments.query, arguments.scene, model, arguments.source, arguments.target, arguments.tolerance, arguments.feature_root, arguments.up
    )
    print(describe_found(found))
    for out in arguments.out:
        if out.suffix.lower() == ".json":
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

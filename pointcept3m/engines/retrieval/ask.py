"""A gallery asked with anything a user has: several queries as one, answers as rows of a table, JSON and a page."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.engines.retrieval.gallery import Filter, Gallery, Hit, folders_of
from pointcept3m.engines.retrieval.inputs import Query, RetrievalModel, embed_query


def ask(
    gallery: Gallery, model: RetrievalModel, queries: Sequence[Query], targets: Sequence[str] | None = None, count: int = 5, chosen: Filter | None = None
) -> list[Hit]:
    """The `count` best scenes, best first, for the mean of the queries' unit vectors.

    targets: modalities of the gallery to look in; None, all that the filter leaves a scene in.
    Raises: as `Gallery.search` and `embed_query`; ValueError where the vectors cancel out.
    """
    chosen = chosen or Filter()
    vector = np.mean([embed_query(query, model) for query in queries], axis=0)
    length = float(np.linalg.norm(vector))
    if length < 1e-6:
        raise ValueError(f"the {len(queries)} queries point in opposite directions: their mean says nothing; ask them one by one")
    return gallery.search((vector / length).astype(np.float32), targets or gallery.targets(chosen), count, chosen)


def hit_rows(gallery: Gallery, hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """What is known of each hit: rank from 1, scene, split, dataset, place, category, modality, score, folder, number in the gallery;
    geometry where the hits were re-ranked."""
    e, folders = gallery.embeddings, folders_of(gallery.embeddings)
    return [
        dict(
            rank=rank, scene=hit.name, split=e.splits[hit.number], dataset=e.datasets[hit.number], place=e.places[hit.number],
            category=e.categories[hit.number], modality=hit.modality, score=round(hit.score, 6), folder=folders[hit.number], number=hit.number,
            **({} if hit.geometry is None else {"geometry": round(hit.geometry, 6)}),
        )
        for rank, hit in enumerate(hits, 1)
    ]  # fmt: skip


def ranking_sheet(queries: Sequence[Query], hits: Sequence[Hit], gallery: Gallery, across: int = 4) -> NDArray[np.uint8]:
    """Pictures `across` a row, uint8 [H, W, 3]: the queries, then the scenes found, with ranks and scores above."""
    from pointcept3m.engines.visualize.sheet import compose

    cells = [(f"query: {query.kind} {query.name[:24]}", _framed(query.picture, query.name)) for query in queries]
    kinds = gallery.embeddings.categories
    cells += [(f"{rank}. {hit.name}  {hit.score:.2f} {hit.modality}{f', {kinds[hit.number]}' if kinds[hit.number] else ''}", _framed(gallery.picture(hit.number), hit.name)) for rank, hit in enumerate(hits, 1)]
    blank = np.full_like(cells[0][1], 255)
    across = -(-len(cells) // -(-len(cells) // across))  # rows of about one length
    rows = [cells[start : start + across] for start in range(0, len(cells), across)]
    rows[-1] += [("", blank)] * (across - len(rows[-1]))
    return np.concatenate([compose([title for title, _ in row], [("", [picture for _, picture in row])], size=12) for row in rows])


def _framed(image: NDArray[np.uint8] | None, name: str, width: int = 380, height: int = 200) -> NDArray[np.uint8]:
    """A picture in the middle of a white panel; a scene or query without one shows its name."""
    from PIL import Image, ImageDraw

    from pointcept3m.engines.visualize.sheet import font

    panel = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(panel)
    if image is None:
        lines = [""]
        for word in name.split():
            lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < 26 else [*lines, word]
        draw.multiline_text((width // 2, height // 2), "\n".join(lines), (60, 60, 60), font(16), anchor="mm", align="center")
    else:
        picture = Image.fromarray(image)
        picture.thumbnail((width - 2, height - 2))
        panel.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    draw.rectangle((0, 0, width - 1, height - 1), outline=(210, 210, 210))
    return np.asarray(panel)

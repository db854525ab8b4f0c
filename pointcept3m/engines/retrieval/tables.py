"""Metrics of retrieval as tables in the paper's form: percent, a block for each pair of modalities, the chance level as a row."""

from collections.abc import Mapping

from .evaluation import FIRST_SCORE, Results, flatten

TITLES = {
    "instance": "Instance matching within a scene (Fig. 4, Table 4)",
    "temporal_instance": "Temporal instance matching, reference scan to rescan (Table 1)",
    "scene": "Scene matching recall (Fig. 6, Table 3)",
    "category": "Scene category recall (Table 2)",
    "temporal": "Temporal recall (Table 2, 3)",
    "intra_category": "Intra-category recall (Table 2)",
    "localisation": "Coarse localisation of single images among 50 scenes",
}
LETTERS = {"image": "I", "point": "P", "cad": "M", "text": "R", "floorplan": "F", "scene": "F_S"}
COUNTS = ("queries", "gallery", "scenes", "pairs", "categories", "left_out")


def pair_words(pair: str) -> str:
    """`image->point` in the paper's letters, I->P."""
    return "->".join(LETTERS.get(name, name) for name in pair.split("->"))


def table(metric: str, methods: Mapping[str, Results]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of one metric: for each pair a row a method, and one of chance (of the first method that has the pair)."""
    pairs = list(dict.fromkeys(pair for results in methods.values() for pair in results.get(metric, {})))
    found = [results[metric][pair] for results in methods.values() for pair in results.get(metric, {})]
    names = list(dict.fromkeys(name for scores in found for name in scores if _is_score(name)))
    counts = [name for name in COUNTS if any(name in scores for scores in found)]
    rows = []
    for pair in pairs:
        having = {method: results[metric][pair] for method, results in methods.items() if pair in results.get(metric, {})}
        for method, scores in having.items():
            rows.append([pair_words(pair), method, *(_percent(scores.get(name)) for name in names), *(_count(scores.get(name)) for name in counts)])
        scores = next(iter(having.values()))
        rows.append(["", "chance", *(_percent(scores.get(f"chance_{name}")) for name in names), *("" for _ in counts)])
    return ["pair", "method", *(_title(name) for name in names), *(name.replace("_", " ") for name in counts)], rows


def markdown(methods: Mapping[str, Results], note: str = "") -> str:
    """All metrics as Markdown."""
    parts = [note] if note else []
    for metric, header, rows in _tables(methods):
        lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
        parts.append(f"### {TITLES[metric]}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def text(methods: Mapping[str, Results]) -> str:
    """All metrics as aligned text."""
    parts = []
    for metric, header, rows in _tables(methods):
        widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
        lines = ["  ".join(_padded(cell, width, column) for column, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in (header, *rows)]
        parts.append(TITLES[metric] + "\n" + "\n".join(line.rstrip() for line in lines))
    return "\n\n".join(parts) + "\n"


def summary(methods: Mapping[str, Results]) -> str:
    """A line for each metric and method: the means over pairs of two modalities, with the chance level of the first score."""
    flat = {method: flatten(results) for method, results in methods.items()}
    lines = []
    for metric in TITLES:
        for method, scores in flat.items():
            names = [name for name in scores if name.startswith(f"{metric}_") and name.removeprefix(f"{metric}_").startswith(("top", "R@", "recall"))]
            chance = next((scores[name] for name in (f"{metric}_chance_top1", f"{metric}_chance_recall") if name in scores), None)
            if names:
                shown = "  ".join(f"{_title(name.removeprefix(f'{metric}_'))} {_percent(scores[name])}" for name in names)
                lines.append(f"{metric.replace('_', ' ')}, {method}: {shown}  (chance of {'recall' if metric in FIRST_SCORE else 'top-1'} {_percent(chance)})")
    return "\n".join(lines)


def _tables(methods: Mapping[str, Results]) -> list[tuple[str, list[str], list[list[str]]]]:
    return [(metric, *table(metric, methods)) for metric in TITLES if any(results.get(metric) for results in methods.values())]


def _is_score(name: str) -> bool:
    return not name.startswith("chance_") and not name.endswith(COUNTS)


def _title(name: str) -> str:
    return name.replace("top", "top-").replace("_", " ") + ("%" if "R@" in name else "")


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.2f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{int(value)}"


def _padded(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)

"""`report.html`: everything about one run in one file that needs no network.

`write_report` reads what a run folder holds (metrics.csv, metrics.json, run.json, config.py, pictures/, train.log)
and says in the page what it did not find. Nothing here needs torch.
"""

import base64
import csv
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pointcept3m.utils.files import atomic_write

MAX_BYTES = 5_000_000  # of the page; pictures get what the rest leaves
TEMPLATE = Path(__file__).with_name("report_template.html")
MAX_CSV_BYTES = 200_000_000
POINTS_PER_CURVE = 150
LINE_COLORS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#06b6d4", "#ca8a04", "#ec4899")
INK = "#123456"  # stands for the page's text colour until the SVG is written

# name: (what people call it, factor, unit, digits)
METRICS: dict[str, tuple[str, float, str, int]] = {
    "psnr": ("PSNR", 1, "dB", 2),
    "depth_mae": ("Depth error, mean", 100, "cm", 1),
    "depth_rmse": ("Depth error, RMS", 100, "cm", 1),
    "depth_abs_rel": ("Depth error, relative", 100, "%", 1),
    "depth_delta1": ("Depth within 25 %", 100, "%", 1),
    "feature_cosine": ("Feature cosine", 1, "", 3),
    "coverage": ("Pixels covered", 100, "%", 1),
    "probe_mIoU": ("Linear probe, mIoU", 100, "%", 1),
    "probe_mAcc": ("Linear probe, mAcc", 100, "%", 1),
    "probe_allAcc": ("Linear probe, accuracy", 100, "%", 1),
    "mIoU": ("mIoU", 100, "%", 1),
    "mAcc": ("mAcc", 100, "%", 1),
    "allAcc": ("Accuracy", 100, "%", 1),
    "iou": ("IoU", 100, "%", 1),
    "acc": ("Accuracy", 100, "%", 1),
    "mAP": ("mAP", 100, "%", 1),
    "AP50": ("AP50", 100, "%", 1),
    "AP25": ("AP25", 100, "%", 1),
    "ap": ("AP", 100, "%", 1),
    "ap50": ("AP50", 100, "%", 1),
    "ap25": ("AP25", 100, "%", 1),
}
# Open-vocabulary scores, alone and after where they come from (see engines/testers/open_vocabulary.py).
METRICS |= {name: (name, 100, "%", 1) for name in ("f-mIoU", "f-mAcc", "mIoU_base", "mIoU_novel", "hIoU")}
METRICS |= {
    f"{kind}_{name}": (f"{kind.replace('_', ', ')}: {words}", 100, "%", 1)
    for kind in ("3d", "2d", "2d3d_max", "2d3d_mean")
    for name, words in {
        "mIoU": "mIoU", "mAcc": "mAcc", "allAcc": "accuracy", "f-mIoU": "f-mIoU", "f-mAcc": "f-mAcc", "mIoU_base": "base mIoU",
        "mIoU_novel": "novel mIoU", "hIoU": "hIoU", "iou": "IoU", "acc": "accuracy", "mIoU_absent_zero": "mIoU, absent classes 0",
        "mAcc_absent_zero": "mAcc, absent classes 0", "mIoU_view_mean": "mIoU of a view", "mIoU_view_std": "mIoU of a view, std",
    }.items()
}  # fmt: skip
AT_START = "_at_start"


def write_report(run_folder: str | os.PathLike[str]) -> Path:
    """Writes <run_folder>/report.html, below 5 MB, and returns its path. Parts that are missing are named in it.

    Raises: FileNotFoundError where the folder does not exist; ValueError where metrics.json or metrics.csv is damaged.
    """
    import jinja2

    run = Path(run_folder)
    if not run.is_dir():
        raise FileNotFoundError(f"no run folder {str(run)!r}; wanted the save_path of a train or test run")
    parts = collect(run)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**parts)
    path = run / "report.html"
    atomic_write(path, lambda stream: stream.write(page.encode()))
    return path


def collect(run: Path) -> dict[str, Any]:
    """What the template shows, as plain values; `missing` lists the parts of the folder that are not there.

    The folder of a test, which has a test.log and no train.log, is not expected to hold curves or pictures.
    """
    is_test = (run / "test.log").is_file() and not (run / "train.log").is_file()
    results = _read_json(run / "metrics.json")
    facts = _read_json(run / "run.json")
    series = read_series(run / "metrics.csv")
    curves, config = draw_curves(series), _read_text(run / "config.py", 200_000)
    text_bytes = 200_000 + 2 * len(config) + sum(len(curve["svg"]) for curve in curves)
    pictures, left_out = inline_pictures(run / "pictures", max_bytes=(MAX_BYTES - text_bytes) * 3 // 4)  # base64 adds a third
    wanted = {
        "metrics.json (the final scores)": results,
        "metrics.csv (the curves)": series,
        "run.json (seed, commit, command)": facts,
        "pictures/": pictures,
        "config.py": config,
    }
    if is_test:
        del wanted["metrics.csv (the curves)"], wanted["pictures/"]
    return {
        "title": "/".join(run.resolve().parts[-2:]),
        "written": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "heading": " · ".join(str(results[key]) for key in ("task", "dataset", "split") if results.get(key)),
        "tiles": metric_tiles(results.get("metrics") or {}),
        "other_scores": other_scores(results.get("metrics") or {}),
        "curves": curves,
        "per_class": per_class_table(results.get("per_class") or {}),
        "pictures": pictures,
        "pictures_left_out": left_out,
        "facts": run_facts(results, facts),
        "command": facts.get("command", ""),
        "config": config,
        "log": "\n".join(_read_text(run / ("test.log" if is_test else "train.log"), 20_000).splitlines()[-40:]),
        "missing": [name for name, found in wanted.items() if not found],
    }


def read_series(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The curves of a metrics.csv by name, each a list of (step, value); {} where the file does not exist.

    Reads both layouts: rows `step,name,value`, or a column for each name. Empty cells and non-finite values are left out.
    Raises: ValueError where there is no `step` column or a cell holds no number.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_CSV_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; the report reads at most {MAX_CSV_BYTES:,}")
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        if names and "step" not in names:
            raise ValueError(f"{path}: wanted a column 'step', got {', '.join(names)}")
        long = {"name", "value"} <= set(names)
        for row in reader:
            if row["step"] is None or None in row.values():
                continue  # the last line of a run that was killed while writing it
            cells = [(row["name"], row["value"])] if long else [(n, row[n]) for n in names if n not in ("step", "epoch", "time")]
            for name, cell in cells:
                if cell == "":
                    continue
                try:
                    step, value = float(row["step"]), float(cell)
                except ValueError:
                    raise ValueError(f"{path} line {reader.line_num}: wanted numbers, got step {row['step']!r}, {name} {cell!r}") from None
                if math.isfinite(value):
                    series[name].append((step, value))
    return dict(series)


def metric_tiles(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """The known ones among the final scores: label, value with unit, and the value before training where there is one."""
    tiles = []
    for name, (label, *_) in METRICS.items():
        if _is_number(scores.get(name)):
            start = scores.get(name + AT_START)
            start = format_metric(name, start) if _is_number(start) else ""
            tiles.append({"name": name, "label": label, "value": format_metric(name, scores[name]), "start": start})
    return tiles


def other_scores(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of the final scores that are in no tile, in alphabetical order."""
    shown = {name + suffix for name in METRICS for suffix in ("", AT_START)}
    return [(name, format_metric(name, scores[name])) for name in sorted(scores) if name not in shown and _is_number(scores[name])]


def format_metric(name: str, value: float) -> str:
    """`value` in the unit people read it in: 0.0312 of depth_mae is '3.1 cm'; unknown names get four figures."""
    if not math.isfinite(value):
        return str(value)
    if name not in METRICS:
        return f"{value:.4g}"
    _, factor, unit, digits = METRICS[name]
    return f"{value * factor:.{digits}f} {unit}".rstrip()


def per_class_table(scores: Mapping[str, Any]) -> dict[str, Any]:
    """A row for each class: its name and per column a text and a bar from 0 to 100 (None where nothing is known)."""
    rows = {name: value if isinstance(value, Mapping) else {"value": value} for name, value in scores.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = []
    for name, row in rows.items():
        cells = []
        for column in columns:
            value = row.get(column)
            known = _is_number(value) and math.isfinite(value)
            bar = min(max(value * 100, 0), 100) if known and column in METRICS else None
            cells.append({"text": format_metric(column, value) if known else "-", "bar": bar})
        table.append({"name": name, "cells": cells})
    return {"columns": [METRICS.get(column, (column,))[0] for column in columns], "rows": table}


def run_facts(results: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table of how it was made; what is not known is not listed."""
    rows: list[tuple[str, Any]] = [
        *((f"Protocol of {section}", words) for section, words in (results.get("protocol") or {}).items()),
        ("Started", facts.get("started")),
        ("Time", _duration(facts.get("seconds", results.get("seconds")))),
        ("Steps", facts.get("steps")),
        ("Throughput", _joined(facts, ("steps_per_second", "{:.2f} steps/s"), ("samples_per_second", "{:.2f} scenes/s"))),
        ("Peak memory", _joined(facts, ("memory_mib", "{:,.0f} MiB"), ("gpu_memory_mib", "{:,.0f} MiB on the GPU"))),
        ("Parameters", _joined(facts, ("num_parameters", "{:,}"))),
        ("Seed", results.get("seed", facts.get("seed"))),
        ("Weight", results.get("weight")),
        ("Resumed", f"{len(facts['resumed'])} times" if facts.get("resumed") else None),
        ("Commit", facts.get("commit")),
        ("Device", facts.get("device")),
        ("Ops", facts.get("ops")),
        ("Versions", facts.get("versions")),
        ("Processes, threads", facts.get("processes")),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def draw_curves(series: Mapping[str, Sequence[tuple[float, float]]]) -> list[dict[str, str]]:
    """Panels as inline SVG: the losses together, each validation score alone, then learning rates, then times."""
    panels: dict[str, list[str]] = {}
    for name, points in series.items():
        if len(points) < 2 or name.replace("train/", "train_batch/", 1) in series.keys() - {name}:
            continue  # a single value is no curve, and means of epochs stand beside the curve of every step
        panels.setdefault(_panel_of(name), []).append(name)
    known = ["Losses", *(_titled(name) for name in METRICS)]
    last = ["Learning rate", "Seconds a step"]
    order = {title: i for i, title in enumerate(known)} | {title: len(known) + 1 + i for i, title in enumerate(last)}
    titles = sorted(panels, key=lambda title: (order.get(title, len(known)), title))
    return [{"title": title, "svg": _draw_panel(title, {name: series[name] for name in panels[title]})} for title in titles]


def _panel_of(name: str) -> str:
    leaf = name.rsplit("/", 1)[-1]
    if "loss" in leaf.lower():
        return "Losses"
    if leaf == "lr" or leaf.startswith("lr_"):
        return "Learning rate"
    if leaf.endswith("time") or name.startswith("time/"):
        return "Seconds a step"
    return _titled(leaf) if leaf in METRICS else leaf


def _titled(name: str) -> str:
    label, _, unit, _ = METRICS[name]
    return f"{label}, {unit}" if unit else label


def _draw_panel(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One panel as SVG text whose axes take the colour of the page's text, so that dark pages stay readable."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif", "font.size": 9,
        "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        leaves = [name.rsplit("/", 1)[-1] for name in curves]
        labels = dict(zip(curves, leaves if len(set(leaves)) == len(leaves) else curves, strict=True))
        for i, (name, points) in enumerate(curves.items()):
            color = LINE_COLORS[i % len(LINE_COLORS)]
            factor = METRICS.get(name.rsplit("/", 1)[-1], ("", 1))[1]
            steps, values = zip(*points, strict=True)
            values = [value * factor for value in values]
            thin_steps, means, lows, highs = thin_out(steps, values, POINTS_PER_CURVE)
            marker = "o" if len(means) <= 30 else None
            axes.plot(thin_steps, means, color=color, linewidth=1.4, marker=marker, markersize=3, label=labels[name])
            if len(means) < len(values):
                axes.fill_between(thin_steps, lows, highs, color=color, alpha=0.2, linewidth=0)
        everything = [value for points in curves.values() for _, value in points]
        if title == "Losses" and min(everything) > 0 and max(everything) > 30 * min(everything):
            axes.set_yscale("log")
        else:
            axes.ticklabel_format(useOffset=False)
        axes.set_xlabel("step")
        axes.grid(alpha=0.15, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8, ncols=2, labelcolor=INK)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def thin_out(
    steps: Sequence[float], values: Sequence[float], most: int
) -> tuple[list[float], list[float], list[float], list[float]]:
    """At most `most` bins of a curve: last step, mean, lowest and highest value of each. Short curves come back as they are."""
    size = math.ceil(len(values) / most)
    bins = [slice(i, i + size) for i in range(0, len(values), size)]
    return (
        [steps[b][-1] for b in bins],
        [sum(values[b]) / len(values[b]) for b in bins],
        [min(values[b]) for b in bins],
        [max(values[b]) for b in bins],
    )


def inline_pictures(folder: Path, max_bytes: int, most: int = 24) -> tuple[list[dict[str, Any]], list[str]]:
    """Pictures of a folder as data URIs, and the names of those that found no room.

    The ones of the end of the run come first, then those of its start, then the others from new to old. A picture is
    a PNG where that is small and a JPEG else, made narrower where the budget asks for it.
    """
    paths = [p for p in folder.glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg")] if folder.is_dir() else []
    paths.sort(key=lambda path: path.name, reverse=True)
    paths.sort(key=_picture_rank)
    chosen, left = paths[:most], [path.name for path in paths[most:]]
    shown, room = [], max_bytes
    for i, path in enumerate(chosen):
        share = max(room // (len(chosen) - i), 1)
        encoded = _encode_picture(path, share)
        if encoded is None:
            left.append(path.name)
            continue
        kind, data, width = encoded
        room -= len(data)
        uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
        shown.append({"name": path.stem, "uri": uri, "width": width, "main": _picture_rank(path) == 0})
    return shown, left


def _picture_rank(path: Path) -> int:
    return {"last": 0, "start": 1}.get(path.stem.rsplit("_", 1)[-1], 0 if "_" not in path.stem else 2)


def _encode_picture(path: Path, room: int) -> tuple[str, bytes, int] | None:
    """(png | jpeg, bytes, width in pixels) of at most `room` bytes, or None where even a thumbnail does not fit."""
    from PIL import Image

    with Image.open(path) as image:
        image = image.convert("RGB")
    for width in (1600, 1200, 900, 600, 300):
        if image.width > width:
            image = image.resize((width, max(round(image.height * width / image.width), 1)))
        for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88}), ("jpeg", {"quality": 70})):
            buffer = io.BytesIO()
            image.save(buffer, kind, **options)
            if buffer.tell() <= room and (kind == "jpeg" or buffer.tell() < 150_000):
                return kind, buffer.getvalue(), image.width
    return None


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path, 50_000_000)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: wanted a JSON object, got {type(value).__name__}")
    return value


def _read_text(path: Path, most: int) -> str:
    """The last `most` bytes of a text file; "" where it does not exist."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - most, 0))
        return file.read(most).decode("utf-8", errors="replace")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _duration(seconds: Any) -> str | None:
    if not _is_number(seconds):
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _joined(facts: Mapping[str, Any], *parts: tuple[str, str]) -> str | None:
    texts = [pattern.format(facts[key]) for key, pattern in parts if _is_number(facts.get(key))]
    return ", ".join(texts) or None

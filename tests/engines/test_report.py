"""report.html: complete, self-contained, small, safe, and written from whatever the run folder holds."""

import base64
import csv
import io
import json
import math
import re
import shlex
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pointcept3m.engines import report

METRICS = {
    "task": "pretrain", "dataset": "rooms", "split": "val", "weight": "model/model_last.pth", "seed": 7, "seconds": 754.2,
    "metrics": {"psnr": 17.314, "psnr_at_start": 9.8, "depth_mae": 0.152, "probe_mIoU": 0.512, "own_score": 0.123456},
    "per_class": {"wall": {"iou": 0.75, "acc": 0.9}, "<b>sofa</b>": {"iou": float("nan"), "acc": 0.5}},
}  # fmt: skip
FACTS = {"command": "pointcept3m train -c configs/gaussiancross/rooms.py", "commit": "0123456789abcdef", "seed": 7, "seconds": 754.2,
         "steps": 300, "steps_per_second": 1.5, "memory_mib": 1834.2}  # fmt: skip


def write_csv(path: Path, num_steps: int = 50) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "name", "value"])
        for step in range(1, num_steps + 1):
            writer.writerow([step, "train/loss", 10 * math.exp(-step / 5)])
            writer.writerow([step, "train/loss_depth", math.exp(-step / 9)])
            writer.writerow([step, "train/lr", 1e-3])
            if step % 10 == 0:
                writer.writerow([step, "val/psnr", 10 + step / 10])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with every part."""
    folder = tmp_path / "a run"
    (folder / "pictures").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "run.json").write_text(json.dumps(FACTS))
    (folder / "config.py").write_text('model = dict(type="GaussianCross-v1m1", tau=0.3)\n')
    (folder / "train.log").write_text("step 1\nstep 2 loss < 3\n")
    write_csv(folder / "metrics.csv")
    for name in ("room_last", "room_start", "room_epoch0001"):
        Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(folder / "pictures" / f"{name}.png")
    return folder


class Page(HTMLParser):
    """Collects what a page would load from elsewhere and checks that its tags nest."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.open_tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open_tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        assert tag not in ("script", "iframe", "link")

    def handle_startendtag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_full_run(run):
    path = report.write_report(run)
    assert path == run / "report.html"
    text = path.read_text()
    page = Page(text)
    for shown in ("17.31 dB", "before training 9.80 dB", "15.2 cm", "51.2 %", "0.1235", "75.0 %", "wall", "12 min 34 s",
                  "1.50 steps/s", "1,834 MiB", "0123456789abcdef", FACTS["command"], "tau=0.3", "step 2 loss < 3"):  # fmt: skip
        assert shown in page.text, shown
    assert "Not in this run folder" not in text
    assert text.count("<svg") == 3  # losses, PSNR, learning rate
    assert text.index("room_last") < text.index("room_start") < text.index("room_epoch0001")


def test_nothing_is_loaded_from_elsewhere(run):
    text = report.write_report(run).read_text()
    assert all(source.startswith(("data:image/", "#")) for source in Page(text).sources)
    assert not re.findall(r"url\((?!#)[^)]*\)|@import", text)


def test_names_from_outside_are_escaped(run):
    text = report.write_report(run).read_text()
    assert "<b>sofa</b>" not in text and "&lt;b&gt;sofa&lt;/b&gt;" in text


def test_svg_is_well_formed_and_takes_the_colour_of_the_page(run):
    for curve in report.draw_curves(report.read_series(run / "metrics.csv")):
        xml.etree.ElementTree.fromstring(curve["svg"])
        assert "currentColor" in curve["svg"] and report.INK not in curve["svg"]


def test_ids_of_two_curves_do_not_clash(run):
    curves = report.draw_curves(report.read_series(run / "metrics.csv"))
    clips = [set(re.findall(r'clipPath id="([^"]+)"', curve["svg"])) for curve in curves]
    assert all(clips) and len(set.union(*clips)) == sum(map(len, clips))


@pytest.mark.parametrize("part", ["metrics.json", "metrics.csv", "run.json", "config.py", "pictures"])
def test_a_missing_part_is_named(run, part):
    (run / part).rename(run.parent / "elsewhere")
    text = report.write_report(run).read_text()
    Page(text)
    assert "Not in this run folder" in text and part in text[text.index("Not in this run folder") :]


def test_an_empty_folder_still_gives_a_page(tmp_path):
    text = report.write_report(tmp_path).read_text()
    Page(text)
    assert all(part in text for part in ("metrics.json", "metrics.csv", "run.json", "pictures/", "config.py"))


def test_the_page_stays_below_five_megabytes(run):
    generator = np.random.default_rng(0)
    for i in range(30):  # noise is what compresses worst
        Image.fromarray(generator.integers(0, 256, (300, 900, 3), np.uint8)).save(run / "pictures" / f"noise{i:02d}_epoch0001.png")
    write_csv(run / "metrics.csv", 3000)
    path = report.write_report(run)
    assert 1_000_000 < path.stat().st_size < 5_000_000
    assert "left out to keep this page small" in path.read_text()


def test_pictures_are_what_was_saved(run):
    (picture, *_), left = report.inline_pictures(run / "pictures", max_bytes=10**6)
    data = base64.b64decode(picture["uri"].split(",")[1])
    assert picture["name"] == "room_last" and left == []
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (60, 40) and np.unique(np.asarray(image)).tolist() == [99]


def test_wide_and_long_tables_read_the_same(tmp_path):
    (tmp_path / "long.csv").write_text("step,name,value\n1,loss,3\n1,psnr,\n2,loss,2\n2,psnr,11\n3,loss,nan\n")
    (tmp_path / "wide.csv").write_text("step,loss,psnr\n1,3,\n2,2,11\n3,nan,\n")
    expected = {"loss": [(1, 3), (2, 2)], "psnr": [(2, 11)]}
    assert report.read_series(tmp_path / "long.csv") == report.read_series(tmp_path / "wide.csv") == expected


def test_a_line_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,name,value\n1,loss,3\n2,lo")
    assert report.read_series(tmp_path / "metrics.csv") == {"loss": [(1, 3)]}


def test_means_of_epochs_do_not_double_the_curves():
    """A run has train_batch/x of each step and train/x of each epoch; one panel of one curve is enough."""
    points = [(step, float(step)) for step in range(1, 4)]
    names = ["train_batch/loss", "train/loss", "train_batch/psnr", "val/psnr", "train/only_epochs", "params/lr"]
    curves = report.draw_curves(dict.fromkeys(names, points))
    assert [curve["title"] for curve in curves] == ["Losses", "PSNR, dB", "only_epochs", "Learning rate"]
    assert report.draw_curves({"val/psnr": points[:1]}) == []
    assert "val/psnr" in curves[1]["svg"] and "train_batch/psnr" in curves[1]["svg"]


def test_damaged_files_are_named(run, tmp_path):
    (run / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json is no JSON"):
        report.write_report(run)
    (tmp_path / "a.csv").write_text("step,name,value\n1,loss,abc\n")
    with pytest.raises(ValueError, match=r"a.csv line 2: wanted numbers, got step '1', loss 'abc'"):
        report.read_series(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("iteration,loss\n1,2\n")
    with pytest.raises(ValueError, match="wanted a column 'step', got iteration, loss"):
        report.read_series(tmp_path / "b.csv")
    with pytest.raises(FileNotFoundError, match="no run folder"):
        report.write_report(tmp_path / "absent")


def test_thin_out_keeps_mean_and_range():
    steps, means, lows, highs = report.thin_out([1, 2, 3, 4, 5], [1.0, 3.0, 5.0, 9.0, 2.0], most=3)
    assert (steps, means, lows, highs) == ([2, 4, 5], [2.0, 7.0, 2.0], [1.0, 5.0, 2.0], [3.0, 9.0, 2.0])
    assert report.thin_out([1, 2], [5.0, 6.0], most=150)[1] == [5.0, 6.0]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("psnr", 17.314, "17.31 dB"), ("depth_mae", 0.0312, "3.1 cm"), ("mIoU", 0.5, "50.0 %"), ("other", 12345.678, "1.235e+04"), ("psnr", math.nan, "nan")],
)
def test_format_metric(name, value, text):
    assert report.format_metric(name, value) == text


def test_the_hook_writes_facts_and_page(tmp_path):
    """ReportWriter through a training of three steps and a resumed one of two more."""
    import logging
    from types import SimpleNamespace

    import torch

    from pointcept3m.engines.hooks.report import ReportWriter

    def train(first_step: int, num_steps: int) -> dict:
        hook = ReportWriter()
        hook.trainer = trainer = SimpleNamespace(
            save_path=tmp_path, device="cpu", global_step=first_step, seed=5, cfg=SimpleNamespace(batch_size=4),
            model=torch.nn.Linear(3, 2), elapsed=lambda: 12.0, logger=logging.getLogger("test"),
        )  # fmt: skip
        hook.before_train()
        hook.before_epoch()
        for _ in range(num_steps):
            hook.before_step()
            trainer.global_step += 1
            hook.after_step()
        hook.after_epoch()
        hook.after_train()
        return json.loads((tmp_path / "run.json").read_text())

    first = train(0, 3)
    assert (first["seed"], first["steps"], first["num_parameters"], first["seconds"]) == (5, 3, 8, 12.0)
    assert first["samples_per_second"] == pytest.approx(4 * first["steps_per_second"])
    assert "pytest" in first["command"] and first["memory_mib"] > 10 and "resumed" not in first
    second = train(3, 2)
    assert second["steps"] == 5 and second["started"] == first["started"]
    assert [entry["step"] for entry in second["resumed"]] == [3]
    page = (tmp_path / "report.html").read_text()
    assert "Resumed" in page and "Parameters" in page


@pytest.mark.parametrize("word", ["plain", "two words", "data_root='/a b/c'", "it's $HOME", 'say "x"', "a\\b'c", "", "a`b'"])
def test_the_command_reads_back_in_a_shell(word):
    from pointcept3m.engines.facts import quote

    assert shlex.split(quote(word)) == [word]

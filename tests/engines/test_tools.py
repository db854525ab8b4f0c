"""tools/train.sh and tools/test.sh as a user types them, on a training of a second."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import losses
from .test_distributed import CONFIG, HERE, REPOSITORY, environment

# where recipes are: the repository's folders of them, and the project's own
FOLDERS = ", ".join(sorted({"configs/toy", *(f"configs/{path.name}" for path in (REPOSITORY / "configs").iterdir() if path.is_dir() and path.name != "_base_")}))


@pytest.fixture
def project(tmp_path):
    """A folder with configs/toy/tiny.py, to run the scripts in."""
    (tmp_path / "configs/toy").mkdir(parents=True)
    (tmp_path / "configs/toy/tiny.py").write_text(CONFIG.format(here=str(HERE), save_path="exp/unused", toy=str(HERE / "toy.py")))
    return tmp_path


def shell(project, script: str, *arguments: str, timeout: int = 100) -> subprocess.CompletedProcess:
    command = ["sh", str(REPOSITORY / "tools" / script), "-p", sys.executable, *arguments]
    return subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, timeout=timeout)


def test_train_then_test(project):
    done = shell(project, "train.sh", "-c", "configs/toy/tiny.py", "-g", "0", "seed=5", "hooks.4.save_freq=1")
    assert done.returncode == 0, done.stderr
    run = project / "exp/toy/tiny"  # dataset and name come from the config's path
    assert json.loads((run / "metrics.json").read_text())["seed"] == 5 and (run / "model/epoch_1.pth").is_file()
    assert (run / "report.html").is_file() and "tools/train.py" in json.loads((run / "run.json").read_text())["command"]
    done = shell(project, "test.sh", "-d", "toy", "-n", "tiny", "-w", "epoch_1", "-g", "0")
    assert done.returncode == 0, done.stderr
    scores = json.loads((run / "test/metrics.json").read_text())
    assert scores["weight"] == "exp/toy/tiny/model/epoch_1.pth" and 0 <= scores["metrics"]["mIoU"] <= 1


def test_resume_after_sigterm(project):
    """The script becomes python: a SIGTERM to it saves and gives 143, and -r true ends with the same losses."""
    arguments = ["-d", "toy", "-c", "tiny", "-g", "0"]
    assert shell(project, "train.sh", *arguments, "-n", "whole").returncode == 0
    command = ["sh", str(REPOSITORY / "tools/train.sh"), "-p", sys.executable, *arguments, "-n", "cut", "data.train.sleep=0.05"]
    process = subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = project / "exp/toy/cut/train.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "step 1/12" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "continue with --resume" in output, output
    assert 0 < len(losses(project / "exp/toy/cut")) < 24
    done = shell(project, "train.sh", "-d", "toy", "-n", "cut", "-r", "true", "-g", "0")
    assert done.returncode == 0, done.stderr
    assert losses(project / "exp/toy/cut") == losses(project / "exp/toy/whole")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["-c", "configs/toy/tinny.py"], 2, "no config file configs/toy/tinny.py; did you mean configs/toy/tiny.py?\n"),
        (["-c", "configs/toys/tiny.py"], 2, "no config file configs/toys/tiny.py; did you mean configs/toy/tiny.py?\n"),
        (["-c", "configs/toy/large.py"], 2, "no config file configs/toy/large.py; configs/toy has tiny.py\n"),
        (["-c", "configs/gaussiancross/roms.py"], 2, "did you mean configs/gaussiancross/rooms.py"),
        (["-d", "toy", "-c", "tinny"], 2, "no config file tinny; did you mean configs/toy/tiny.py?\n"),
        (["-c", "nowhere/nothing.py"], 2, f"no config file nowhere/nothing.py; configs lie in {FOLDERS}\n"),
        (["-d", "toy", "-n", "nothing", "-r", "true"], 2, "there is no exp/toy/nothing/config.py"),
        ([], 2, "give -c CONFIG"),
        (["-c", "configs/toy/tiny.py", "-r", "yes"], 2, "-r takes true or false, got yes"),
        (["-c", "configs/toy/tiny.py", "-g", "all"], 2, "-g and -m take numbers"),
        (["-c", "configs/toy/tiny.py", "-m", "2"], 2, "set NODE_RANK"),
        (["-c", "configs/toy/tiny.py", "-g", "0", "optimiser.lr=1"], 1, "did you mean 'optimizer'"),
        (["-c", "configs/toy/tiny.py", "-g", "0", "-w", "no.pth"], 1, "weight: no file no.pth"),
    ],
)
def test_mistakes_get_one_sentence(project, arguments, code, sentence):
    done = shell(project, "train.sh", *arguments)
    assert done.returncode == code and sentence in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (project / "exp").exists()


def test_scripts_are_plain_posix_shell():
    for script in ("train.sh", "test.sh", "common.sh"):
        subprocess.run(["sh", "-n", str(REPOSITORY / "tools" / script)], check=True)


def test_help_lists_the_options(project):
    done = shell(project, "train.sh", "-h")
    assert done.returncode == 0 and "-r true|false" in done.stdout and os.linesep + "#" not in done.stdout
    assert Path(REPOSITORY / "tools/train.py").is_file()

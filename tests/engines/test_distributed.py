"""Several processes under torchrun on the CPU: the same weights everywhere, and the loss of one process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

CONFIG = """
import sys
sys.path.insert(0, {here!r})
from toy import toy_config
for _key, _value in toy_config({save_path!r}).items():
    globals()[_key] = _value
custom_imports = dict(imports=[{toy!r}])
model = dict(type="DefaultSegmentor", backbone=dict(type="ToyBackbone", dropout=0.0, norm=False), criteria=[dict(type="CrossEntropyLoss")])
"""


def write_config(path: Path, save_path: Path, extra: str = "") -> Path:
    path.write_text(CONFIG.format(here=str(HERE), save_path=str(save_path), toy=str(HERE / "toy.py")) + extra)
    return path


def environment() -> dict:
    clean = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    return {**clean, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{HERE}"}


def torchrun(config: Path, *arguments: str, timeout: int = 100) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(REPOSITORY / "tools/train.py")]
    return subprocess.run([*command, "--config-file", str(config), *arguments], env=environment(), capture_output=True, text=True, timeout=timeout)


def weights(folder: Path) -> dict:
    return torch.load(folder / "model/model_last.pth", weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def pair(folder):
    """The folder of a run by two processes; each also left its weights in rank<r>.pth."""
    config = write_config(
        folder / "pair.py", folder / "pair", f'hooks = [*hooks, dict(type="SaveRank", folder={str(folder)!r})]\ncustom_imports["imports"].append({str(folder / "rank.py")!r})\n'
    )
    (folder / "rank.py").write_text(
        "import torch\nfrom pointcept3m.engines.hooks import HOOKS, HookBase\nfrom pointcept3m.utils import comm\n\n"
        "@HOOKS.register_module()\nclass SaveRank(HookBase):\n    def __init__(self, folder):\n        self.folder = folder\n\n"
        "    def after_train(self):\n        torch.save(self.trainer.bare_model.state_dict(), f'{self.folder}/rank{comm.get_rank()}.pth')\n"
    )
    done = torchrun(config)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "pair"


def test_both_processes_have_the_same_weights(folder, pair):
    first, second = (torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.equal(value, weights(pair)["state_dict"][name]) for name, value in first.items())


def test_two_processes_are_one_with_the_same_batch(tmp_path, pair, toy, train):
    """A global batch of 2 is split over the processes; dropout and batch norm aside, the training is the same one."""
    cfg = toy.toy_config(tmp_path / "one")
    cfg["model"] = dict(type="DefaultSegmentor", backbone=dict(type="ToyBackbone", dropout=0.0, norm=False), criteria=[dict(type="CrossEntropyLoss")])
    one = train(cfg)
    for name, value in weights(pair)["state_dict"].items():
        torch.testing.assert_close(one.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert one.results["mIoU"] == pytest.approx(float(weights(pair)["results"]["mIoU"]), abs=0.05)


@pytest.mark.long
def test_resume_with_two_processes(folder, pair, losses):
    """Process 1 gets the signal; both stop after the same step, save, and go on to the same losses."""
    extra = 'hooks = [*hooks, dict(type="SignalOnRankOne")]\n'
    (folder / "signal_one.py").write_text(
        "import os, signal\nfrom pointcept3m.engines.hooks import HOOKS, HookBase\nfrom pointcept3m.utils import comm\n\n"
        "@HOOKS.register_module()\nclass SignalOnRankOne(HookBase):\n    def after_step(self):\n"
        "        if self.trainer.global_step == 8 and comm.get_rank() == 1 and not self.trainer.cfg.resume:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    extra += f'custom_imports["imports"].append({str(folder / "signal_one.py")!r})\n'
    config = write_config(folder / "cut.py", folder / "cut", extra)
    stopped = torchrun(config)
    assert stopped.returncode != 0 and 8 <= len(losses(folder / "cut")) <= 10, stopped.stderr[-3000:]
    assert torchrun(config, "--resume").returncode == 0
    assert losses(folder / "cut") == losses(pair)


SILENT = """
import os, sys, time
from pointcept3m.utils import comm
comm.init_process_group(deadline=3)
comm.Heartbeat.beat(5)
comm.agree_max(0)
if comm.get_rank() == 1:
    {fault}
comm.Heartbeat.beat(6)
try:
    comm.{call}
except comm.MissingRankError as error:
    print("NAMED", error, flush=True)
    os._exit(7)
"""


@pytest.mark.parametrize(
    ("fault", "call"),
    [
        pytest.param("os.kill(os.getpid(), 9)", "agree_max(0)"),
        pytest.param("time.sleep(60)", "agree_max(0)", marks=pytest.mark.long),
        pytest.param("time.sleep(60)", "synchronize()", marks=pytest.mark.long),
    ],
)
def test_a_silent_process_is_named_soon(tmp_path, fault, call):
    """One of two processes stalls or dies: the other one says which within seconds, not after gloo's half hour."""
    script = tmp_path / "silent.py"
    script.write_text(SILENT.format(fault=fault, call=call))
    store = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29000 + os.getpid() % 900), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen([sys.executable, str(script)], env={**store, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in (0, 1)
    ]
    start = time.monotonic()
    output, _ = processes[0].communicate(timeout=40)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].communicate()
    assert time.monotonic() - start < 20
    assert "NAMED rank 0 at step 6: no answer" in output and "rank 1 (last: step 5, process" in output, output
    assert "raise dist_timeout" in output

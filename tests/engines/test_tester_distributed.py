"""A test by two processes has the confusion matrix of one, and the quick one waits for the slow one while that gets on."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent

SCRIPT = """
import json, sys, time
sys.path.insert(0, {here!r})
import toy
import torch
from pointcept3m.engines.testers import TESTERS
from pointcept3m.utils import comm

comm.init_process_group(deadline=100)
comm._deadline = 4
cfg = toy.toy_config({folder!r}, weight={weight!r})
cfg["data"]["test"]["size"] = 11
tester = TESTERS.build(dict(type="SemSegTester"), cfg=cfg)
pause = (lambda: time.sleep(0.8)) if comm.get_rank() == 0 else (lambda: None)
scores, _ = tester.test(check_stop=pause)
print("SCORES", json.dumps(scores), tester.protocol, flush=True)
if comm.get_rank() == 1:
    meeting = comm.Meeting()
    try:
        meeting.wait()
    except comm.MissingRankError as error:
        print("NAMED", error, flush=True)
    comm.Heartbeat._store().set("over", "1")
else:
    comm.Heartbeat._store().wait(["over"])
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_two_processes_are_one(toy, tmp_path):
    """Rank 0 takes 0.8 s for each of its six scenes, longer together than the 4 s after which a silent rank is given up."""
    from pointcept3m.engines.testers import TESTERS
    from pointcept3m.models.builder import build_model

    cfg = toy.toy_config(tmp_path / "one", weight=str(tmp_path / "weight.pth"))
    cfg["data"]["test"]["size"] = 11
    torch.save(dict(state_dict=build_model(cfg["model"]).state_dict()), cfg["weight"])
    tester = TESTERS.build(dict(type="SemSegTester"), cfg=cfg)
    scores, _ = tester.test()

    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(here=str(HERE), folder=str(tmp_path / "two"), weight=cfg["weight"]))
    store = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes = [subprocess.Popen(command, env={**store, "RANK": str(rank)}, **pipes) for rank in (0, 1)]
    try:
        outputs = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("SCORES")]
    assert len(lines) == 2 and lines[0] == lines[1], outputs
    assert lines[0] == f"SCORES {json.dumps(scores)} {tester.protocol}" and "176 raw points" in tester.protocol
    one, two = (json.loads((tmp_path / name / "result/confusion.json").read_text()) for name in ("one", "two"))
    assert one["confusion"] == two["confusion"] and np.sum(two["confusion"]) == 176
    files = sorted(path.name for path in (tmp_path / "two/result").glob("*.npy"))
    assert files == sorted(f"test{number}_pred.npy" for number in range(11))
    assert "rank 1 is done and waits: no progress within 4 s of rank 0 (pieces done: 0)" in outputs[1], outputs[1]

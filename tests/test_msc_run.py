"""The two contrastive pretrainings on generated rooms: what they learn in a few steps, and in two processes."""

import os
import subprocess
import sys

import pytest
import torch

from pointcept3m.datasets import build_dataset, collate_fn
from pointcept3m.datasets.preprocess_pairs import preprocess_pairs
from pointcept3m.datasets.rooms import write_rooms
from pointcept3m.models import build_model
from pointcept3m.utils.config import Config
from pointcept3m.utils.seed import set_seed
from tests.conftest import REPOSITORY

MSC = REPOSITORY / "configs/rooms/pretrain-msc-v1m1-0-spunet-base.py"
POINTCONTRAST = REPOSITORY / "configs/rooms/pretrain-msc-v1m1-1-spunet-pointcontrast.py"
SMALL = {"base_channels": 8, "channels": (8, 16, 16, 32), "layers": (1, 1, 1, 1)}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Two small rooms, and their pairs of frames."""
    root = tmp_path_factory.mktemp("rooms")
    write_rooms(root / "rooms", "train", 2, num_frames=6, workers=0)
    preprocess_pairs([root / "rooms/train"], root / "pairs")
    return root


def build(config, rooms):
    """The dataset of the config on these rooms, on a coarser grid, and its model with a smaller backbone."""
    options = {"grid_size": 0.15, "data_root": str(rooms / "rooms")}
    cfg = Config.fromfile(
        config, {**options, **({"pair_root": str(rooms / "pairs")} if config == POINTCONTRAST else {})}
    )
    train = cfg.data.train.to_dict()
    if config == POINTCONTRAST:
        train["overlap_threshold"] = 0.05
    model = {**cfg.model.to_dict(), "matching_max_radius": 0.2}
    model["backbone"].update(SMALL)
    return build_dataset(train), model, cfg


@pytest.mark.parametrize("config", [MSC, POINTCONTRAST], ids=["msc", "pointcontrast"])
def test_a_few_steps_on_rooms_lower_every_loss(rooms, config):
    dataset, model_cfg, cfg = build(config, rooms)

    def run():
        set_seed(0)
        batches = [collate_fn([dataset[i] for i in range(min(2, len(dataset)))]) for _ in range(2)]
        model = build_model(model_cfg)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        history = []
        for step in range(10):
            output = model(batches[step % 2])
            history.append({name: float(value.detach()) for name, value in output.items()})
            optimizer.zero_grad()
            output["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad)
            optimizer.step()
        return history

    history = run()
    assert ("color_loss" in history[0]) == (config == MSC)
    for name in (name for name in history[0] if name.endswith("loss")):
        first, last = (sum(row[name] for row in rows) / 2 for rows in (history[:2], history[-2:]))
        assert last < first - 0.02 * abs(first), (name, history)
    assert history[-1]["pos_sim"] - history[-1]["neg_sim"] > history[0]["pos_sim"] - history[0]["neg_sim"] + 0.05
    assert run() == history  # the same seed, the same losses to the digit


PROCESS = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from pointcept3m.models import build_model
from pointcept3m.utils import comm
from tests.models.test_msc import SPUNET, make_batch

comm.init_process_group(60)
rank = comm.get_rank()


def model():
    torch.manual_seed(0)
    return build_model(dict(type="MSC-v1m1", backbone=SPUNET, backbone_in_channels=6, backbone_out_channels=8,
                            mask_grid_size=0.5, matching_max_radius=0.2))


def losses(module, which):
    torch.manual_seed(10 + which)
    return module(make_batch((200, 100)))


spread = DistributedDataParallel(model(), broadcast_buffers=False)
losses(spread, rank)["loss"].backward()
alone = [model(), model()]
for which, each in enumerate(alone):
    losses(each, which)["loss"].backward()
for (name, found), *each in zip(spread.module.named_parameters(), *(m.parameters() for m in alone)):
    wanted = (each[0].grad + each[1].grad) / 2
    torch.testing.assert_close(found.grad, wanted, rtol=1e-4, atol=1e-6, msg=lambda text: f"{name}: {text}")
    assert not torch.allclose(each[0].grad, each[1].grad), name
print(f"rank {rank} agrees")
comm.destroy_process_group()
"""


@pytest.mark.long
def test_two_processes_average_their_gradients_once(tmp_path):
    """Pointcept averages the contrastive loss in place, so that half of its gradient is lost with two processes."""
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    clean = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        env={**clean, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 0 agrees" in done.stdout and "rank 1 agrees" in done.stdout

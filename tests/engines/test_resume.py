"""An interrupted training, continued, is the uninterrupted one to the digit."""

import json
import signal
from pathlib import Path

import pytest
import torch

from pointcept3m.engines.arguments import default_argument_parser
from pointcept3m.utils.config import Config
from pointcept3m.utils.hook import HookBase


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        pytest.param(10, dict(), id="in-epoch-1"),
        pytest.param(12, dict(), id="at-its-end"),
        pytest.param(15, dict(), id="in-epoch-2"),
        pytest.param(10, dict(gradient_accumulation_steps=3), id="in-the-middle-of-accumulation"),
        pytest.param(10, dict(num_worker=2, enable_amp=True, amp_dtype="bfloat16", clip_grad=1.0), id="workers-bf16-clip"),
        pytest.param(4, dict(mix_prob=0.5, batch_size=4), id="mix3d"),
    ],
)
def test_resume_is_exact(tmp_path, toy, train, losses, changes, step):
    whole = train(toy.toy_config(tmp_path / "whole", **changes))

    cfg = toy.toy_config(tmp_path / "cut", **changes)
    with pytest.raises(SystemExit) as stop:
        train({**cfg, "hooks": [*cfg["hooks"], dict(type="SignalAt", step=step)]})
    assert stop.value.code == 143
    assert len(losses(tmp_path / "cut")) == step
    resumed = train({**cfg, "resume": True})

    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == resumed.total_steps
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for key in ("mIoU", "val_loss", "train_loss"):
        assert whole.results[key] == resumed.results[key]
    assert whole.best_metric_value == resumed.best_metric_value


@pytest.mark.parametrize(("step", "point", "words"), [(12, "after_epoch", "12 of 24 steps done (epoch 1/2)"), (5, "after_step", "5 of 24 steps done (epoch 1/2)")])
def test_a_signal_says_what_is_done(tmp_path, toy, train, step, point, words):
    """Also after the last step of an epoch, while its hooks run."""
    cfg = toy.toy_config(tmp_path / "cut")
    cfg["hooks"].insert(1, dict(type="SignalAt", step=step, point=point))
    with pytest.raises(SystemExit):
        train(cfg)
    log = (tmp_path / "cut/train.log").read_text()
    assert f"model_last.pth with {words}; continue with --resume (train.sh: -r true)" in log


def test_other_seed_gives_other_losses(tmp_path, toy, train, losses):
    """The negative control of the test above: equality there is not an accident of a training without randomness."""
    train(toy.toy_config(tmp_path / "a"))
    train(toy.toy_config(tmp_path / "b", seed=4))
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


def test_number_of_workers_changes_nothing(tmp_path, toy, train, losses):
    train(toy.toy_config(tmp_path / "none", mix_prob=0.5))
    train(toy.toy_config(tmp_path / "two", mix_prob=0.5, num_worker=2))
    assert losses(tmp_path / "none") == losses(tmp_path / "two")


def test_evaluation_changes_nothing(tmp_path, toy, train, losses):
    train(toy.toy_config(tmp_path / "with"))
    train(toy.toy_config(tmp_path / "without", evaluate=False))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_interrupted_evaluation_is_repeated(tmp_path, toy, train, losses):
    """A signal during the evaluation after epoch 1: the resumed run evaluates again and goes on."""
    whole = train(toy.toy_config(tmp_path / "whole"))
    cfg = toy.toy_config(tmp_path / "cut")
    hooks = cfg["hooks"]
    with pytest.raises(SystemExit) as stop:
        train({**cfg, "hooks": [*hooks[:3], dict(type="SignalAt", step=12, point="after_epoch", number=signal.SIGINT), *hooks[3:]]})
    assert stop.value.code == 130
    resumed = train({**cfg, "resume": True})
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert whole.results["mIoU"] == resumed.results["mIoU"]


def test_saver_each_step_continues_after_a_kill(tmp_path, toy, train, losses):
    """Nothing is written at a kill -9: the run goes on from the last regular checkpoint, and drops later curve rows."""
    train(toy.toy_config(tmp_path / "whole"))
    cfg = toy.toy_config(tmp_path / "cut")
    cfg["hooks"][-1] = dict(type="CheckpointSaver", step_freq=5)

    class Killed(BaseException):
        pass

    from pointcept3m.engines import HOOKS, TRAINERS
    from pointcept3m.utils.hook import HookBase

    @HOOKS.register_module(force=True)
    class KillAtEight(HookBase):
        def after_step(self):
            if self.trainer.global_step == 8:
                raise Killed

    with pytest.raises(Killed):
        TRAINERS.build(dict(type="DefaultTrainer"), cfg={**cfg, "hooks": [*cfg["hooks"], dict(type="KillAtEight")]}).train()
    assert len(losses(tmp_path / "cut")) == 8
    resumed = train({**cfg, "resume": True})
    assert resumed.global_step == 24
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_resume_of_a_finished_run_trains_no_step(tmp_path, toy, train, losses):
    cfg = toy.toy_config(tmp_path / "run")
    train(cfg)
    before = losses(tmp_path / "run")
    trainer = train({**cfg, "resume": True})
    assert losses(tmp_path / "run") == before and trainer.global_step == 24


def test_resume_without_checkpoint(tmp_path, toy, train):
    with pytest.raises(FileNotFoundError, match="start without --resume"):
        train(toy.toy_config(tmp_path / "new", resume=True))


def test_resume_with_other_batch_size(tmp_path, toy, train):
    cfg = toy.toy_config(tmp_path / "run")
    train(cfg)
    with pytest.raises(ValueError, match="12 steps an epoch, this run has 6"):
        train({**cfg, "resume": True, "batch_size": 4})


def test_resume_from_weights_only(tmp_path, toy, train):
    cfg = toy.toy_config(tmp_path / "run")
    train(cfg)
    with pytest.raises(ValueError, match="cannot be resumed"):
        train({**cfg, "resume": str(tmp_path / "run/model/model_last.safetensors")})


def test_a_new_run_keeps_the_files_of_the_old_one(tmp_path, toy, train, losses):
    cfg = toy.toy_config(tmp_path / "run")
    train(cfg)
    first = losses(tmp_path / "run")
    train({**cfg, "seed": 9})
    assert losses(tmp_path / "run" / "previous-1") == first != losses(tmp_path / "run")
    assert (tmp_path / "run/previous-1/model/model_best.pth").is_file()


def cut_at(cfg, train, step):
    with pytest.raises(SystemExit):
        train({**cfg, "hooks": [*cfg["hooks"], dict(type="SignalAt", step=step)]})


def test_a_drawn_seed_is_kept(tmp_path, toy, train, losses):
    """seed=None: the drawn one is in config.py, and a run resumed with seed=None goes on with it, worker or not."""
    cfg = toy.toy_config(tmp_path / "cut", seed=None, mix_prob=0.5)
    cut_at(cfg, train, 10)
    seed = Config.fromfile(tmp_path / "cut/config.py").seed
    assert isinstance(seed, int)
    resumed = train({**cfg, "resume": True})
    assert resumed.seed == resumed.sampler.seed == resumed.train_loader.dataset.seed == seed
    train(toy.toy_config(tmp_path / "whole", seed=seed, mix_prob=0.5))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_resumed_run_remembers_what_it_was_started_from(tmp_path, toy, train, losses):
    """Resume goes on from model_last although the config names a weight, which stays in config.py and metrics.json."""
    train(toy.toy_config(tmp_path / "start"))
    weight = str(tmp_path / "start/model/model_best.pth")
    train(toy.toy_config(tmp_path / "whole", weight=weight))
    cut_at(toy.toy_config(tmp_path / "cut", weight=weight), train, 10)
    before = (tmp_path / "cut/config.py").read_text()
    from pointcept3m.engines.launch import _read_config

    parser = default_argument_parser()
    config = ["--config-file", str(tmp_path / "cut/config.py"), "--resume"]
    chosen = _read_config(parser.parse_args([*config, "--options", "weight=other.pth"]))
    assert (chosen.resume, chosen.weight) == ("other.pth", weight)
    cfg = _read_config(parser.parse_args(config))
    assert (cfg.resume, cfg.weight) == (True, weight)
    cfg.hooks = [hook for hook in cfg.hooks if hook.type != "SignalAt"]
    train(cfg)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert (tmp_path / "cut/config.py").read_text() == before
    assert json.loads((tmp_path / "cut/metrics.json").read_text())["weight"] == weight


def test_weight_from_the_folder_that_is_moved_away(tmp_path, toy, train):
    train(toy.toy_config(tmp_path / "run"))
    weight = str(tmp_path / "run/model/model_best.pth")
    with pytest.raises(ValueError, match="lies in the run folder .* give another save_path"):
        train(toy.toy_config(tmp_path / "run", weight=weight))
    assert (tmp_path / "run/model/model_best.pth").is_file() and not (tmp_path / "run/previous-1").exists()


def test_settings_without_effect_are_named(tmp_path, toy, train):
    train(toy.toy_config(tmp_path / "run", test_only=True, wandb_key="secret"))
    log = (tmp_path / "run/train.log").read_text()
    assert "settings without effect here: test_only" in log and "wandb_key" in log and "secret" not in log
    assert "without effect" not in (train(toy.toy_config(tmp_path / "b")).save_path / "train.log").read_text()


def broken_scene(toy):
    """A data set that fails like ours do, at a scene, while the file `broken` exists."""
    from pointcept3m.datasets.builder import DATASETS
    from pointcept3m.utils.registry import Registry

    @DATASETS.register_module(force=True)
    class BrokenScenes(toy.ToyScenes):
        def __init__(self, broken: str, **options):
            super().__init__(**options)
            self.broken = Path(broken)

        def __getitem__(self, index):
            if self.broken.exists() and index == 7:
                Registry("scene train7").get("coord.npy")
            return super().__getitem__(index)


@pytest.mark.parametrize("num_worker", [0, 2])
def test_an_error_in_the_data_saves_what_was_done(tmp_path, toy, train, losses, num_worker):
    """The file is mended, the run resumed: it is the run without the error, to the digit."""
    broken_scene(toy)
    train(toy.toy_config(tmp_path / "whole"))
    cfg = toy.toy_config(tmp_path / "cut", num_worker=num_worker)
    cfg["data"]["train"] = dict(type="BrokenScenes", broken=str(tmp_path / "broken"))
    (tmp_path / "broken").touch()
    with pytest.raises(KeyError, match="scene train7 has no 'coord.npy'") as caught:
        train(cfg)
    done = len(losses(tmp_path / "cut"))
    assert 0 < done < 12 and caught.value.__notes__ == [
        f"the state after step {done} is saved in {tmp_path / 'cut/model/model_last.pth'}; continue with --resume (train.sh: -r true)"
    ]
    (tmp_path / "broken").unlink()
    train({**cfg, "resume": True})
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize("point", ["before_train", "before_epoch", "after_train", "update"])
def test_an_error_that_leaves_nothing_to_save(tmp_path, toy, train, monkeypatch, point):
    """Before the first step, within an update, and in last hooks, which may hold other weights: model_last stays as it is."""
    from pointcept3m.engines import HOOKS, step

    @HOOKS.register_module(force=True)
    class Breaks(HookBase):
        pass

    def fail(*_):
        raise ValueError("broken on purpose")

    cfg = toy.toy_config(tmp_path / "run", gradient_accumulation_steps=3)
    cfg["hooks"] += [dict(type="Breaks")]
    last = tmp_path / "run/model/model_last.pth"
    if point == "update":
        monkeypatch.setattr(step, "update", fail)
    else:
        setattr(Breaks, point, fail)
    with pytest.raises(ValueError, match="broken on purpose") as caught:
        train(cfg)
    assert not hasattr(caught.value, "__notes__")
    assert last.exists() == (point == "after_train")
    if point == "after_train":
        state = torch.load(last, weights_only=True)
        assert (state["epoch"], state["epoch_step"], state["global_step"]) == (2, 0, 24)

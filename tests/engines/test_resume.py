"""An interrupted training, continued, is the uninterrupted one to the digit."""

import signal

import pytest
import torch


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
        train({**cfg, "resume": True, "weight": str(tmp_path / "run/model/model_last.safetensors")})


def test_a_new_run_keeps_the_files_of_the_old_one(tmp_path, toy, train, losses):
    cfg = toy.toy_config(tmp_path / "run")
    train(cfg)
    first = losses(tmp_path / "run")
    train({**cfg, "seed": 9})
    assert losses(tmp_path / "run" / "previous-1") == first != losses(tmp_path / "run")
    assert (tmp_path / "run/previous-1/model/model_best.pth").is_file()

"""The loop: its numbers, its files, and what stops it before work is lost."""

import json

import pytest
import torch

from pointcept3m.engines.hooks.builder import HOOKS
from pointcept3m.utils.config import Config
from pointcept3m.utils.hook import HookBase


def test_training_learns_and_leaves_its_files(tmp_path, toy, losses):
    from pointcept3m.engines import TRAINERS

    cfg = toy.toy_config(tmp_path / "run", epoch=40, eval_epoch=4)
    cfg["hooks"].append(dict(type="PreciseEvaluator"))
    trainer = TRAINERS.build(dict(type="DefaultTrainer"), cfg=cfg)
    trainer.train()
    curve = losses(tmp_path / "run")
    assert len(curve) == 240 and sum(curve[-12:]) < 0.6 * sum(curve[:12])
    names = {path.name.split(".")[0] for path in (tmp_path / "run").iterdir()}
    assert {"config", "train", "metrics", "run", "report", "events", "model", "result"} <= names
    scores = json.loads((tmp_path / "run/metrics.json").read_text())
    assert set(scores) == {"task", "dataset", "split", "weight", "seed", "protocol", "metrics", "per_class", "seconds"}
    assert (scores["task"], scores["dataset"], scores["split"], scores["seed"]) == ("semseg", "ToyScenes", "val", 3)
    assert scores["metrics"]["mIoU"] > 0.6 and scores["metrics"]["test_mIoU"] > 0.6 and scores["per_class"]["x"]["iou"] > 0.4
    assert Config.fromfile(tmp_path / "run/config.py").epoch == 40
    log = (tmp_path / "run/train.log").read_text()
    assert "epoch 1/4 step 1/60" in log and "left 0:0" in log


@pytest.mark.parametrize("first", ["write", "report"])
def test_a_final_test_that_fails_costs_no_results(tmp_path, toy, monkeypatch, first):
    """The training's scores and page are written, its weights are back, and the test's error is the one that is raised."""
    from pointcept3m.engines import TESTERS, TRAINERS
    from pointcept3m.engines.testers import SemSegTester

    calls = []

    class FullDisk(SemSegTester):
        def test(self, check_stop=lambda: None):
            self.model.eval()
            for parameter in self.model.parameters():
                parameter.data += 1
            raise OSError(28, "scene test1: its result cannot be written (No space left on device)")

    class Last(HookBase):
        def after_train(self):
            calls.append("last")

    monkeypatch.setitem(TESTERS.classes, "FullDisk", FullDisk)
    monkeypatch.setitem(HOOKS.classes, "Last", Last)
    cfg = toy.toy_config(tmp_path / "run", test=dict(type="FullDisk"))
    cfg["hooks"] += [dict(type="PreciseEvaluator"), dict(type="Last")]
    trainer = TRAINERS.build(dict(type="DefaultTrainer"), cfg=cfg)
    if first == "report":  # whatever else fails then is said beside it
        monkeypatch.setattr("pointcept3m.engines.hooks.report.write_report", lambda folder: 1 / 0)
    trainer.best_metric_value = 2.0  # so that the best weights are those of no epoch
    with pytest.raises(OSError, match="scene test1: its result cannot be written") as caught:
        trainer.train()
    notes = "\n".join(caught.value.__notes__)
    assert "the training is finished" in notes and f"weight={tmp_path}/run/model/model_last.pth" in notes
    assert ("ReportWriter failed too (ZeroDivisionError" in notes) == (first == "report") and not calls
    assert (tmp_path / "run/report.html").is_file() == (first == "write")
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {"mIoU", "val_loss"} <= set(written["metrics"]) and "test_mIoU" not in written["metrics"]
    assert written["protocol"]["test"].startswith("no scores, the test failed: OSError: [Errno 28] scene test1")
    assert trainer.model.training
    last = torch.load(tmp_path / "run/model/model_last.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in trainer.model.state_dict().items())


def test_a_run_without_evaluation_names_the_split_it_trained_on(tmp_path, toy, train):
    for name, changes in (("a", dict(evaluate=False)), ("b", dict(hooks=[dict(type="InformationWriter")]))):
        train(toy.toy_config(tmp_path / name, epoch=2, **changes))
        assert json.loads((tmp_path / name / "metrics.json").read_text())["split"] == "train"


def test_epoch_is_split_into_rounds(tmp_path, toy, train):
    trainer = train(toy.toy_config(tmp_path / "run", epoch=6, eval_epoch=3))
    assert (trainer.max_epoch, trainer.steps_per_epoch, trainer.global_step) == (3, 12, 36)
    assert trainer.scheduler.total_steps == 36


def test_derived_values_stay_out_of_the_config(tmp_path, toy, train):
    """Pointcept writes data.train.loop and scheduler.total_steps back; then the dumped config is not the one given."""
    cfg = toy.toy_config(tmp_path / "run")
    train(cfg)
    dumped = Config.fromfile(tmp_path / "run/config.py").to_dict()
    for key in cfg:
        assert dumped[key] == cfg[key], key


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        (dict(epoch=5, eval_epoch=2), ValueError, "epoch = 5 must be a multiple of eval_epoch = 2.*eval_epoch=1 would fit"),
        (dict(batch_size=0), ValueError, "batch_size must be a positive whole number, got 0"),
        (dict(batchsize=4), KeyError, "unknown setting 'batchsize'; did you mean 'batch_size'"),
        (dict(enable_amp=True, amp_dtype="float8"), ValueError, "amp_dtype must be one of"),
        (dict(hooks=[dict(type="CheckpointSaver"), dict(type="SemSegEvaluator")]), ValueError, "SemSegEvaluator must stand before CheckpointSaver"),
        (dict(hooks=[dict(type="CheckpointSavr")]), KeyError, "did you mean 'CheckpointSaver'"),
        (dict(hooks=[], weight="a.pth"), ValueError, "no dict\\(type='CheckpointLoader'\\)"),
        (dict(weight="exp/nothing/model.pth"), FileNotFoundError, "no file exp/nothing/model.pth"),
        (dict(data=dict(trian=dict(type="ToyScenes"))), KeyError, "data.train is missing; did you mean 'trian'"),
        (dict(data=dict(train=dict(type="ToyScenes", size=0))), ValueError, "data.train: the dataset is empty"),
        (dict(optimizer=dict(type="AdamV", lr=1)), KeyError, "AdamV.*did you mean .*AdamW"),
        (dict(custom_imports=dict(imports=["no_such_package.module"])), ModuleNotFoundError, "no_such_package"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_work(tmp_path, toy, train, changes, kind, sentence):
    with pytest.raises(kind, match=sentence):
        train(toy.toy_config(tmp_path / "run", **changes))


def test_loss_that_is_not_finite(tmp_path, toy, train):
    """The error comes before the update; what was saved stays, and nothing spoilt is saved."""
    cfg = toy.toy_config(tmp_path / "run")
    cfg["data"]["train"] = dict(type="ToyScenes", bad=5)
    cfg["hooks"][-1] = dict(type="CheckpointSaver", step_freq=1)
    with pytest.raises(FloatingPointError, match=r"step \d+ \(epoch 1/2, \d+/12\): loss is not finite \(loss nan\); batch: .*'train5'"):
        train(cfg)
    path = tmp_path / "run/model/model_last.pth"
    if path.exists():
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())
    assert "Traceback" in (tmp_path / "run/train.log").read_text()


def test_gradient_that_is_not_finite(tmp_path, toy, train):
    from pointcept3m.engines import HOOKS

    @HOOKS.register_module(force=True)
    class SpoilGradient(HookBase):
        def before_train(self):
            self.trainer.model.backbone.first.weight.register_hook(lambda grad: grad * float("inf"))

    cfg = toy.toy_config(tmp_path / "run")
    with pytest.raises(FloatingPointError, match="step 0 .*: the gradient is not finite .* first in parameter backbone.first.weight"):
        train({**cfg, "hooks": [*cfg["hooks"], dict(type="SpoilGradient")]})


@pytest.mark.parametrize("output", [torch.zeros(()), {"seg_logits": torch.zeros(2)}, {"loss": torch.zeros(2)}])
def test_model_that_breaks_the_contract(output):
    from pointcept3m.engines.step import check_output

    with pytest.raises((TypeError, KeyError), match="loss"):
        check_output(output)


def test_accumulation_equals_a_big_batch(tmp_path, toy, train):
    """Three batches of two, accumulated, make the update of one batch of six (no dropout, no batch norm, equal counts)."""
    model = toy.toy_config("x")["model"]
    model["backbone"] = dict(type="ToyBackbone", dropout=0.0, norm=False)
    model["criteria"] = [dict(type="CrossEntropyLoss")]
    common = dict(model=model, optimizer=dict(type="SGD", lr=0.1), scheduler=dict(type="PolyLR"))
    small = train(toy.toy_config(tmp_path / "small", batch_size=2, gradient_accumulation_steps=3, **common))
    big = train(toy.toy_config(tmp_path / "big", batch_size=6, **common))
    assert small.scheduler.last_epoch == big.scheduler.last_epoch == 8
    for name, value in big.model.state_dict().items():
        torch.testing.assert_close(small.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_last_short_group_is_an_update_too(tmp_path, toy, train):
    trainer = train(toy.toy_config(tmp_path / "run", gradient_accumulation_steps=5))
    assert trainer.global_step == 24 and trainer.scheduler.last_epoch == 5 and trainer.accumulated == 0


def test_clipping_bounds_the_gradient():
    from pointcept3m.engines.step import gradient_norm, update

    layer = torch.nn.Linear(4, 4)
    layer(torch.full((1, 4), 100.0)).sum().backward()
    before = [p.detach().clone() for p in layer.parameters()]
    norm = update(layer, torch.optim.SGD(layer.parameters(), lr=1.0), None, None, clip_grad=0.5, where="here")
    moved = torch.sqrt(sum(((p.detach() - b) ** 2).sum() for p, b in zip(layer.parameters(), before, strict=True)))
    assert norm > 100 and moved.item() == pytest.approx(0.5, rel=1e-4) and gradient_norm(layer.parameters()) == 0


def test_scaler_skips_an_overflow():
    """Finite scaled gradients step optimizer and schedule; inf skips both, halves the scale, and is no error."""
    from pointcept3m.engines.step import backward, update

    layer = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    start = layer.weight.item()
    backward(layer(torch.full((1, 1), 3.0)).sum(), 1, scaler)
    assert layer.weight.grad.item() == 24.0
    assert update(layer, optimizer, scheduler, scaler, None, "here") == pytest.approx(3.0)
    assert layer.weight.item() == pytest.approx(start - 0.3) and scheduler.last_epoch == 1
    backward(layer(torch.full((1, 1), float("inf"))).sum(), 1, scaler)
    update(layer, optimizer, scheduler, scaler, None, "here")
    assert layer.weight.item() == pytest.approx(start - 0.3) and scheduler.last_epoch == 1 and scaler.get_scale() == 4.0


def test_profiler_changes_no_weight_and_no_loss(tmp_path, toy, train, losses):
    train(toy.toy_config(tmp_path / "plain"))
    cfg = toy.toy_config(tmp_path / "profiled")
    cfg["hooks"].insert(1, dict(type="RuntimeProfiler", warm_up=1, row_limit=3))
    train(cfg)
    assert losses(tmp_path / "plain") == losses(tmp_path / "profiled")
    assert "Self CPU" in (tmp_path / "profiled/train.log").read_text()


def test_bfloat16_trains_and_is_used(tmp_path, toy, train):
    from pointcept3m.models import MODELS

    seen = []

    @MODELS.register_module(force=True)
    class Spy(toy.ToyBackbone):
        def forward(self, input_dict):
            output = super().forward(input_dict)
            seen.append(output.dtype)
            return output

    cfg = toy.toy_config(tmp_path / "run", enable_amp=True, amp_dtype="bfloat16")
    cfg["model"]["backbone"]["type"] = "Spy"
    trainer = train(cfg)
    assert set(seen) == {torch.bfloat16} and trainer.scaler is None
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


@pytest.mark.gpu
def test_float16_scales_the_loss(tmp_path, toy, train, losses):
    trainer = train(toy.toy_config(tmp_path / "run", enable_amp=True, epoch=20))
    assert trainer.scaler is not None and torch.load(tmp_path / "run/model/model_last.pth", weights_only=True)["scaler"]["scale"] > 1
    assert sum(losses(tmp_path / "run")[-12:]) < sum(losses(tmp_path / "run")[:12])


def test_weight_starts_a_training(tmp_path, toy, train):
    first = train(toy.toy_config(tmp_path / "first"))
    cfg = toy.toy_config(tmp_path / "second", weight=str(tmp_path / "first/model/model_last.pth"), optimizer=dict(type="SGD", lr=0.0), scheduler=None)
    second = train(cfg)
    assert torch.equal(first.model.backbone.last.weight, second.model.backbone.last.weight) and second.global_step == 24


def test_hooks_run_at_six_points_in_order(tmp_path, toy, train):
    from pointcept3m.engines import HOOKS

    calls = []

    @HOOKS.register_module(force=True)
    class Recorder(HookBase):
        pass

    for point in ("before_train", "before_epoch", "before_step", "after_step", "after_epoch", "after_train"):
        setattr(Recorder, point, lambda self, point=point: calls.append((point, self.trainer.global_step)))
    train(toy.toy_config(tmp_path / "run", epoch=2, batch_size=12, hooks=[dict(type="Recorder")]))
    epoch = lambda n: [("before_epoch", n), ("before_step", n), ("after_step", n + 1), ("after_epoch", n + 1)]  # noqa: E731
    assert calls == [("before_train", 0), *epoch(0), *epoch(1), ("after_train", 2)]


def test_model_gets_the_hook_points(tmp_path, toy, train):
    from pointcept3m.models import MODELS

    @MODELS.register_module(force=True)
    class Counting(toy.ToyBackbone):
        pass

    from pointcept3m.models.heads import DefaultSegmentor

    steps = []

    @MODELS.register_module(force=True)
    class HookedSegmentor(DefaultSegmentor):
        def before_step(self):
            steps.append(self.trainer.global_step)

    cfg = toy.toy_config(tmp_path / "run", epoch=2, batch_size=6)
    cfg["model"]["type"] = "HookedSegmentor"
    cfg["hooks"].insert(1, dict(type="ModelHook"))
    train(cfg)
    assert steps == [0, 1, 2, 3]


def test_curves_of_a_hook(tmp_path, toy, train):
    """What a hook puts into the storage under a name with a slash is in metrics.csv at that step."""
    from pointcept3m.engines import HOOKS
    from pointcept3m.utils.events import read_csv

    @HOOKS.register_module(force=True)
    class Curve(HookBase):
        def after_epoch(self):
            self.trainer.storage.put_scalar("val/curve", 1 / 3 + self.trainer.epoch)

    cfg = toy.toy_config(tmp_path / "run")
    train({**cfg, "hooks": [*cfg["hooks"], dict(type="Curve")]})
    rows = [row for row in read_csv(tmp_path / "run/metrics.csv") if row[1] == "val/curve"]
    assert rows == [(12, "val/curve", 1 / 3), (24, "val/curve", 1 / 3 + 1)]


def test_custom_imports_bring_a_backbone(tmp_path, toy, train):
    (tmp_path / "mine.py").write_text(
        "from pointcept3m.models import MODELS\nimport toy\n\n"
        "@MODELS.register_module()\nclass MineFromFile(toy.ToyBackbone):\n    pass\n"
    )
    cfg = toy.toy_config(tmp_path / "run", custom_imports=dict(imports=[str(tmp_path / "mine.py")]))
    cfg["model"]["backbone"]["type"] = "MineFromFile"
    assert type(train(cfg).model.backbone).__name__ == "MineFromFile"

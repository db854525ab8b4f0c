"""Loading weights: what does not fit is said, damaged and hostile files are refused, states that are not finite are not saved."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from pointcept3m.engines.checkpoint import load_weights, read_checkpoint, save_training, save_weights


def small(names=("backbone", "head"), width=2) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(2, width) for name in names})


def saved(path, model, **more):
    torch.save({"epoch": 1, "state_dict": model.state_dict(), **more}, path)
    return path


def same(a, b) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_load(tmp_path, suffix):
    source, target = small(), small()
    path = tmp_path / f"a{suffix}"
    saved(path, source) if suffix == ".pth" else save_weights(source, path, {"config": "x"})
    load_weights(target, path)
    assert same(source, target)


def test_ddp_prefix_raw_dict_and_pointcepts_numpy_metric(tmp_path):
    """Pointcept stores the best mIoU as a numpy number, which weights_only refuses unless it is allowed by name."""
    source = small()
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "best_metric_value": np.float64(0.7), "optimizer": {}}, tmp_path / "pointcept.pth")
    target = small()
    assert load_weights(target, tmp_path / "pointcept.pth")["best_metric_value"] == 0.7 and same(source, target)
    torch.save(source.state_dict(), tmp_path / "raw.pth")
    target = small()
    load_weights(target, tmp_path / "raw.pth")
    assert same(source, target)


def test_keywords_rename(tmp_path):
    source, target = small(("student", "head")), small(("backbone", "head"))
    path = saved(tmp_path / "a.pth", source)
    load_weights(target, path, keywords="module.student", replacement="module.backbone")
    assert torch.equal(source["student"].weight, target["backbone"].weight)


def test_partial_fit_is_an_error_that_lists_the_keys(tmp_path):
    path = saved(tmp_path / "a.pth", small(("backbone", "volume")))
    target = small(("backbone", "seg_head"))
    before = target["backbone"].weight.clone()
    with pytest.raises(ValueError) as error:
        load_weights(target, path)
    text = str(error.value)
    assert "2 of the model's 4 tensors fit" in text and "seg_head.bias, seg_head.weight" in text and "volume.bias" in text
    assert torch.equal(before, target["backbone"].weight), "a refused file must change nothing"


def test_allow_partial(tmp_path):
    source = small(("backbone", "volume"))
    path = saved(tmp_path / "a.pth", source)
    for choice in (dict(allow_partial=True), dict(strict=False), dict(allow_partial=["seg_head", "volume"])):
        target = small(("backbone", "seg_head"))
        load_weights(target, path, **choice)
        assert torch.equal(source["backbone"].weight, target["backbone"].weight)
    with pytest.raises(ValueError, match="unexpected .*volume.bias"):
        load_weights(small(("backbone", "seg_head")), path, allow_partial=["seg_head"])


def test_shape_mismatch_and_nothing_fits(tmp_path):
    path = saved(tmp_path / "a.pth", small(width=3))
    with pytest.raises(ValueError, match=r"backbone.bias \[3\] for \[2\]"):
        load_weights(small(), path)
    with pytest.raises(ValueError, match="0 of the model's 4 tensors fit"):
        load_weights(small(("x", "y")), path, allow_partial=True)


def test_near_name_of_a_missing_key(tmp_path):
    path = saved(tmp_path / "a.pth", small(("backbone", "heads")))
    with pytest.raises(ValueError, match="'head.bias': did you mean 'heads.bias'"):
        load_weights(small(), path)


def test_missing_file(tmp_path):
    saved(tmp_path / "model_last.pth", small())
    with pytest.raises(FileNotFoundError, match="near it: .*model_last.pth"):
        load_weights(small(), tmp_path / "model_lst.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_file_is_named(tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    saved(path, small()) if suffix == ".pth" else save_weights(small(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=f"cut{suffix}: truncated or damaged"):
        read_checkpoint(path)


class Attack:
    def __reduce__(self):
        return (eval, ("open('/tmp/pointcept3m-was-here', 'w')",))


def test_file_with_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {}, "extra": Attack()}, path)
    with pytest.raises(ValueError, match="evil.pth: holds more than tensors"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match="evil.pth"):
        read_checkpoint(path)
    import os

    assert not os.path.exists("/tmp/pointcept3m-was-here")


def test_file_without_weights(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="wanted a 'state_dict'.*epoch"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, toy, train):
    trainer = train(toy.toy_config(tmp_path / "run"))
    before = (tmp_path / "run/model/model_last.pth").read_bytes()
    with torch.no_grad():
        trainer.model.backbone.last.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="parameter backbone.last.weight is not finite"):
        save_training(trainer, tmp_path / "run/model")
    assert (tmp_path / "run/model/model_last.pth").read_bytes() == before


def test_saved_files(tmp_path, toy, train):
    from safetensors import safe_open

    cfg = toy.toy_config(tmp_path / "run")
    cfg["hooks"][-1] = dict(type="CheckpointSaver", save_freq=2)
    trainer = train(cfg)
    names = sorted(path.name for path in (tmp_path / "run/model").iterdir())
    assert names == ["epoch_2.pth", "model_best.pth", "model_best.safetensors", "model_last.pth", "model_last.safetensors"]
    content = torch.load(tmp_path / "run/model/model_last.pth", weights_only=True)
    wanted = {"epoch", "state_dict", "optimizer", "scheduler", "scaler", "best_metric_value", "rng", "global_step", "gradients", "config"}
    assert wanted <= set(content) and content["epoch"] == 2 and content["global_step"] == 24
    with safe_open(tmp_path / "run/model/model_last.safetensors", "pt") as file:
        assert "ToyBackbone" in file.metadata()["config"]
        assert torch.equal(file.get_tensor("backbone.last.weight"), trainer.model.backbone.last.weight)


def test_best_is_the_best(tmp_path, toy, train):
    """The metric falls in the second epoch: model_best stays that of the first."""
    from pointcept3m.engines import HOOKS
    from pointcept3m.utils.hook import HookBase

    @HOOKS.register_module(force=True)
    class Falling(HookBase):
        sets_metric = True

        def after_epoch(self):
            self.trainer.comm_info.update(current_metric_value=-float(self.trainer.epoch), current_metric_name="falling")

    cfg = toy.toy_config(tmp_path / "run")
    cfg["hooks"][3] = dict(type="Falling")
    trainer = train(cfg)
    best, last = (torch.load(tmp_path / f"run/model/model_{name}.pth", weights_only=True) for name in ("best", "last"))
    assert (best["epoch"], last["epoch"]) == (1, 2) and trainer.best_metric_value == 0.0


def test_fine_tuning_takes_the_backbone_alone(tmp_path):
    pretrained = nn.ModuleDict({"backbone": nn.Linear(3, 4), "decoder": nn.Linear(4, 2)})
    torch.save({"state_dict": pretrained.state_dict()}, tmp_path / "pretrained.pth")
    model = nn.ModuleDict({"backbone": nn.Linear(3, 4), "seg_head": nn.Linear(4, 5)})
    head = model["seg_head"].weight.clone()
    with pytest.raises(ValueError, match="seg_head"):
        load_weights(model, tmp_path / "pretrained.pth")
    load_weights(model, tmp_path / "pretrained.pth", part="backbone")
    assert torch.equal(model["backbone"].weight, pretrained["backbone"].weight)
    assert torch.equal(model["seg_head"].weight, head)
    # What is missing inside the part is an error as before.
    larger = nn.ModuleDict({"backbone": nn.Linear(3, 5), "seg_head": nn.Linear(5, 5)})
    with pytest.raises(ValueError, match="of another shape"):
        load_weights(larger, tmp_path / "pretrained.pth", part="backbone")
    with pytest.raises(ValueError, match="no tensor of that part; did you mean 'backbone'"):
        load_weights(model, tmp_path / "pretrained.pth", part="backbon")


def test_a_second_loader_puts_a_pretrained_backbone_into_a_model(tmp_path):
    """CrossOver starts from its own stage before, and its 3D encoder from GaussianCross or CUA-O3D."""
    from types import SimpleNamespace

    from pointcept3m.engines.hooks.checkpoint import CheckpointLoader
    from pointcept3m.utils.config import Config

    before, pretrained, model = small(), small(("backbone", "decoder")), small()
    loaders = [CheckpointLoader(), CheckpointLoader(weight=str(saved(tmp_path / "pretrained.pth", pretrained)), part="backbone")]
    cfg = Config(dict(weight=str(saved(tmp_path / "before.pth", before)), resume=False, save_path=str(tmp_path), data={}, hooks=[]))
    for loader in loaders:
        loader.checking = dict(weight_color=None, check=False)
        loader.trainer = SimpleNamespace(cfg=cfg, model=model, logger=None)
        loader.before_train()
    assert same(model["head"], before["head"]) and same(model["backbone"], pretrained["backbone"])

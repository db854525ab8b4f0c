"""What a training does with bad input: a sentence that names the scene, or the documented result."""

import errno
import resource

import numpy as np
import pytest
import torch

from pointcept3m.engines import TRAINERS
from pointcept3m.utils.hook import HookBase

CLASSES = 4


def write_scene(root, split, name, count=300, seed=0, **changes):
    """A scene folder of `count` random points in a cube of 1 m; `changes` replace or (None) leave out its arrays."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(count, 3)).astype(np.float32)
    arrays = dict(
        coord=rng.random((count, 3), dtype=np.float32),
        color=rng.integers(0, 256, (count, 3)).astype(np.uint8),
        normal=normal / np.linalg.norm(normal, axis=1, keepdims=True),
        segment=rng.integers(0, CLASSES, count),
    )
    folder = root / split / name
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in {**arrays, **changes}.items():
        if value is not None:
            np.save(folder / f"{key}.npy", value)
    return folder


@pytest.fixture
def scenes(tmp_path):
    """The root of a data set of three good scenes."""
    for number, name in enumerate(("hall", "kitchen")):
        write_scene(tmp_path / "data", "train", name, seed=number)
    write_scene(tmp_path / "data", "val", "bath", seed=7)
    return tmp_path / "data"


def config(root, save_path, **changes):
    """Two scenes a batch, one batch an epoch, a small SpUNet on colours and normals."""
    transform = [
        dict(type="GridSample", grid_size=0.05, return_grid_coord=True),
        dict(type="NormalizeColor"),
        dict(type="ToTensor"),
        dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=("color", "normal")),
    ]
    part = dict(type="PointDataset", data_root=str(root), transform=transform)
    small = dict(type="SpUNet-v1m1", in_channels=6, num_classes=CLASSES, base_channels=4, channels=(4, 4, 4, 4), layers=(1, 1, 1, 1))
    cfg = dict(
        save_path=str(save_path),
        seed=0,
        num_worker=0,
        batch_size=2,
        epoch=1,
        eval_epoch=1,
        model=dict(
            type="DefaultSegmentor",
            backbone=small,
            criteria=[dict(type="CrossEntropyLoss", ignore_index=-1), dict(type="LovaszLoss", mode="multiclass", ignore_index=-1)],
        ),
        data=dict(num_classes=CLASSES, ignore_index=-1, train=dict(**part, split="train"), val=dict(**part, split="val")),
        optimizer=dict(type="SGD", lr=0.01),
        hooks=[
            dict(type="CheckpointLoader"),
            dict(type="InformationWriter"),
            dict(type="SemSegEvaluator"),
            dict(type="CheckpointSaver"),
        ],
    )
    cfg.update(changes)
    return cfg


def test_good_scenes_train(scenes, train, tmp_path):
    """The frame of the tests below is sound, and its batches name their scenes although Collect does not ask for names."""
    trainer = train(config(scenes, tmp_path / "run"))
    assert trainer.global_step == 1 and np.isfinite(trainer.results["mIoU"])
    assert sorted(trainer.comm_info["input_dict"]["name"]) == ["hall", "kitchen"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_out_of_range_name_the_scene(scenes, train, tmp_path, workers, split):
    write_scene(scenes, split, "wrong", segment=np.arange(300) % (CLASSES + 2))
    cfg = config(scenes, tmp_path / "run", num_worker=workers, batch_size=3 if split == "train" else 2)
    sentence = r"scene wrong: \d+ of \d+ points have the label 4, 5, but data.num_classes = 4 allows 0..3 and ignore_index = -1"
    with pytest.raises(ValueError, match=sentence):
        train(cfg)


def test_another_ignore_index_is_no_label_of_points_without_one(scenes, train, tmp_path):
    """-1 on disk becomes the data set's ignore_index; where only `data` says 255, the -1 that is left is named."""
    write_scene(scenes, "train", "hall", segment=np.where(np.arange(300) % 3, 1, -1))
    cfg = config(scenes, tmp_path / "run")
    cfg["data"]["ignore_index"] = 255
    for loss in cfg["model"]["criteria"]:
        loss["ignore_index"] = 255
    with pytest.raises(ValueError, match="scene hall: .* the label -1, .* ignore_index = 255"):
        train(cfg)
    for section in ("train", "val"):
        cfg["data"][section]["ignore_index"] = 255
    assert np.isfinite(train(cfg).results["mIoU"])


def test_a_scene_without_the_attribute_that_is_asked_for(scenes, train, tmp_path):
    (scenes / "train" / "kitchen" / "normal.npy").unlink()
    for workers in (0, 1):
        with pytest.raises(KeyError, match="Collect needs the key 'normal'; the sample has .*color") as caught:
            train(config(scenes, tmp_path / "run", num_worker=workers))
        assert "in scene 'kitchen', whose folder has no normal.npy" in caught.value.__notes__


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_coordinates_that_are_not_finite_name_the_scene(scenes, train, tmp_path, value):
    coord = np.load(scenes / "train" / "kitchen" / "coord.npy")
    coord[5, 1] = value
    np.save(scenes / "train" / "kitchen" / "coord.npy", coord)
    with pytest.raises(ValueError, match="finite") as caught:
        train(config(scenes, tmp_path / "run"))
    assert "kitchen" in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))


def test_duplicate_points_share_a_voxel(scenes, train, tmp_path):
    for name in ("hall", "kitchen"):
        folder = scenes / "train" / name
        for path in folder.glob("*.npy"):
            np.save(path, np.concatenate([np.load(path)] * 2))
    once = config(scenes, tmp_path / "run")
    assert np.isfinite(train(once).results["train_loss"])
    # Without GridSample every point is a voxel of its own, so that half of the voxels are there twice.
    cfg = config(scenes, tmp_path / "twice")
    cfg["data"]["train"]["transform"][0] = dict(type="ToGrid")

    from pointcept3m.datasets.builder import TRANSFORMS
    from pointcept3m.datasets.transforms import Transform

    @TRANSFORMS.register_module(force=True)
    class ToGrid(Transform):
        reads = ("coord",)

        def apply(self, data_dict):
            data_dict["grid_coord"] = np.floor(data_dict["coord"] / 0.05).astype(np.int64)
            return data_dict

    trainer = train(cfg)
    grid = trainer.comm_info["input_dict"]["grid_coord"][:600]
    assert len(grid.unique(dim=0)) <= 300 and np.isfinite(trainer.results["train_loss"])


def test_scenes_of_one_point(scenes, train, tmp_path):
    """Beside another scene it trains; alone it is no batch that a batch norm can learn from, and is named."""
    write_scene(scenes, "train", "kitchen", count=1, segment=np.array([2]))
    write_scene(scenes, "val", "bath", count=1, segment=np.array([1]))
    assert np.isfinite(train(config(scenes, tmp_path / "run")).results["train_loss"])
    write_scene(scenes, "train", "hall", count=1, segment=np.array([2]))
    with pytest.raises(ValueError, match="a batch norm was given a single voxel") as caught:
        train(config(scenes, tmp_path / "alone", batch_size=1))
    assert "batch ['" in caught.value.__notes__[0]


def test_a_batch_without_labels_has_loss_zero(scenes, train, tmp_path):
    """Documented: points without labels add nothing, and a batch of nothing else leaves the weights as they are."""
    from pointcept3m.engines import HOOKS

    moved = {}

    @HOOKS.register_module(force=True)
    class Compare(HookBase):
        def before_step(self):
            self.before = [parameter.detach().clone() for parameter in self.trainer.model.parameters()]

        def after_step(self):
            same = all(torch.equal(a, b) for a, b in zip(self.before, self.trainer.model.parameters(), strict=True))
            name = self.trainer.comm_info["input_dict"]["name"][0]
            moved[name] = (not same, self.trainer.comm_info["scalars"]["loss"])

    write_scene(scenes, "train", "hall", segment=np.full(300, -1))
    cfg = config(scenes, tmp_path / "run", batch_size=1)
    cfg["hooks"].append(dict(type="Compare"))
    train(cfg)
    assert moved["hall"] == (False, 0.0) and moved["kitchen"][0] and moved["kitchen"][1] > 0


def test_an_epoch_without_one_label_is_an_error(scenes, train, tmp_path):
    """Not a training that ends with the weights of its start, loss 0 and status 0."""
    for name in ("hall", "kitchen"):
        write_scene(scenes, "train", name, segment=np.full(300, -1))
    for task, words in (("whole", "not one point of epoch 1 has a label, segment is -1 everywhere"), ("again", "not one point of epoch 1")):
        with pytest.raises(ValueError, match=words) as caught:
            train(config(scenes, tmp_path / task))
        assert "put them into segment.npy" in str(caught.value) and not getattr(caught.value, "__notes__", ())
    assert not (tmp_path / "whole/model").exists()


def test_scenes_without_a_file_of_labels(scenes, train, tmp_path, capsys):
    """One is named; none at all is an error before the first step; data that ask for no labels need none."""
    (scenes / "train/hall/segment.npy").unlink()
    train(config(scenes, tmp_path / "one"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "have no label" in line]
    words = f"PointDataset: 1 of 2 scenes in split train have no segment.npy, so their points have no label; first {scenes / 'train/hall'}"
    assert len(lines) == 1 and lines[0].endswith(f"WARNING] {words}")
    (scenes / "train/kitchen/segment.npy").unlink()
    with pytest.raises(ValueError, match="no scene of split train in .* has segment.npy; DefaultSegmentor learns from labels alone"):
        train(config(scenes, tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    capsys.readouterr()
    from pointcept3m.datasets import build_dataset

    section = config(scenes, tmp_path / "x")["data"]["train"]
    section["transform"][-1] = dict(type="Collect", keys=("coord",), feat_keys=("color",))
    assert build_dataset(section).num_labelled is None and "no label" not in capsys.readouterr().err


def test_class_counts_of_model_and_data_must_agree(scenes, train, tmp_path):
    """Before the first step where the model can tell, in its first forward where it cannot."""
    from pointcept3m.models import MODELS

    def sentence(**model):
        cfg = config(scenes, tmp_path / "run")
        cfg["model"] = {**cfg["model"], **model}
        with pytest.raises(ValueError, match="config: data.num_classes is 4, but ") as caught:
            train(cfg)
        return str(caught.value)

    backbone = config(scenes, "x")["model"]["backbone"]
    assert "model.backbone.num_classes is 3: DefaultSegmentor gives 3 class scores" in sentence(backbone={**backbone, "num_classes": 3})
    assert "model.backbone.num_classes is 0: DefaultSegmentor gives" in sentence(backbone={**backbone, "num_classes": 0, "channels": (4, 4, 4, 8)})
    wide = dict(backbone={**backbone, "num_classes": 0}, backbone_out_channels=4)
    assert "model.num_classes is 13: DefaultSegmentorV2 gives 13" in sentence(type="DefaultSegmentorV2", num_classes=13, **wide)
    group = config(scenes, tmp_path / "group")
    group["model"] = dict(type="PG-v1m1", semantic_num_classes=5, **wide)
    with pytest.raises(ValueError, match="data.num_classes is 4, but model.semantic_num_classes is 5: PointGroup gives 5"):
        TRAINERS.build(dict(type="DefaultTrainer"), cfg=group)
    assert not (tmp_path / "run").exists() and not (tmp_path / "group").exists()

    @MODELS.register_module(force=True)
    class Foreign(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = torch.nn.Linear(6, width)

        def forward(self, input_dict):
            return self.layer(input_dict["feat"])

    for width in (3, 5):
        assert f"DefaultSegmentor gives {width} class scores" in sentence(backbone=dict(type="Foreign", width=width))
    fitting = config(scenes, tmp_path / "fits")
    fitting["model"]["backbone"] = dict(type="Foreign", width=4)
    trainer = train(fitting)
    assert trainer.global_step == 1 and not trainer.model.criteria._forward_pre_hooks


def test_validation_without_labels_is_never_the_best(scenes, train, tmp_path):
    write_scene(scenes, "val", "bath", segment=np.full(300, -1))
    trainer = train(config(scenes, tmp_path / "run"))
    assert np.isnan(trainer.results["mIoU"]) and not np.isnan(trainer.best_metric_value)
    assert "mIoU is NaN, so this epoch is not the best" in (tmp_path / "run/train.log").read_text()
    assert sorted(path.name for path in (tmp_path / "run/model").glob("*.pth")) == ["model_last.pth"]


def test_a_folder_that_cannot_be_written_is_found_before_work_starts(scenes, train, tmp_path):
    (tmp_path / "file").write_text("no folder")
    (scenes / "train" / "hall" / "coord.npy").unlink()  # would be an error too, were a scene read
    with pytest.raises(OSError, match="save_path: nothing can be written to .*file/run .*save_path=FOLDER"):
        train(config(scenes, tmp_path / "file" / "run"))


def test_a_class_count_that_does_not_fit_names_both(scenes, train, tmp_path):
    train(config(scenes, tmp_path / "four"))
    cfg = config(scenes, tmp_path / "six", weight=str(tmp_path / "four/model/model_last.pth"))
    cfg["model"]["backbone"]["num_classes"] = cfg["data"]["num_classes"] = 6
    with pytest.raises(ValueError, match="class counts: backbone.final has 4 classes in the file and 6 in this config"):
        train(cfg)
    cfg["hooks"][0] = dict(type="CheckpointLoader", allow_partial=("backbone.final",))
    assert train(cfg).global_step == 1


def test_a_full_disk_leaves_the_checkpoint_before(toy, train, tmp_path):
    """A limit on the size of files stands for the disk: from the second epoch on, a checkpoint does not fit."""
    from pointcept3m.engines import HOOKS
    from pointcept3m.models import MODELS

    @MODELS.register_module(force=True)
    class Wide(toy.ToyBackbone):
        def __init__(self):
            super().__init__()
            self.more = torch.nn.Linear(3, 50_000)

        def forward(self, input_dict):
            return super().forward(input_dict) + self.more(input_dict["feat"]).mean(1, keepdim=True)

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    @HOOKS.register_module(force=True)
    class FillDisk(HookBase):
        def before_epoch(self):
            if self.trainer.epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, unlimited[1]))

    cfg = toy.toy_config(tmp_path / "run")
    cfg["model"]["backbone"] = dict(type="Wide")
    cfg["hooks"].insert(1, dict(type="FillDisk"))
    try:
        with pytest.raises(OSError, match="checkpoint of step 24: .* cannot be written to .*model_last.pth of step 12 is whole") as caught:
            train(cfg)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert caught.value.errno == errno.EFBIG and "--resume" in str(caught.value)
    folder = tmp_path / "run/model"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{name}.{kind}" for name in ("model_best", "model_last") for kind in ("pth", "safetensors")
    ]
    assert torch.load(folder / "model_last.pth", weights_only=True)["global_step"] == 12
    cfg["hooks"].pop(1)
    resumed = train({**cfg, "resume": True})
    assert resumed.global_step == 24
    assert torch.load(folder / "model_last.pth", weights_only=True)["global_step"] == 24

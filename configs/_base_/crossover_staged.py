"""All stages of CrossOver in one command: configs/crossover/<family>-<stage>.py one after the other, then the tables of the last one.

The settings are those of the last stage, so that tools/test.py with this config tests its weights. Options that are None leave a
stage's config as it is; `--options data_root=...` reaches all stages, `train.stages.1.epoch=20` the second alone.
"""

from pointcept3m.utils.config import Config

family = "scannet"
# stage, and the one whose weights it starts from
chain = (("baseline", None), ("instance", None), ("scene", "instance"), ("unified", "scene"))
rows = ("baseline", "instance")

data_root = None
test_root = None
feature_root = None
recipe = None
widths = None
drop = None
pairs = None
epochs = None
rounds = None
lr = None
backbone = None
backbone_out_channels = None
feat_keys = None
backbone_weight = None
shared = dict(
    data_root=data_root, test_root=test_root, feature_root=feature_root, recipe=recipe, widths=widths, drop=drop, pairs=pairs, epochs=epochs,
    rounds=rounds, lr=lr, backbone=backbone, backbone_out_channels=backbone_out_channels, feat_keys=feat_keys, backbone_weight=backbone_weight,
)  # fmt: skip
shared = {name: value for name, value in shared.items() if value is not None}

folder = "{{ fileDirname }}"
stages = [dict(name=name, start=start, **Config.fromfile(f"{folder}/../crossover/{family}-{name}.py", shared)) for name, start in chain]
globals().update({key: value for key, value in stages[-1].items() if key not in ("name", "start", "train")})
train = dict(type="StagedTrainer", stages=stages, rows=rows)

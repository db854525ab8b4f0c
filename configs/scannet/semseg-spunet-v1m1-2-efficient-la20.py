"""ScanNet with 20 labelled points a scene (GaussianCross, Table 2); weight=FILE starts from a pretrained backbone.

The benchmark's file, or one of `python tools/preprocess/limited.py --data-root data/scannet`.
"""

_base_ = ["../_base_/semseg_indoor.py"]
_options_ = dict(lr=0.003)

batch_size = 24
num_worker = 48
data = dict(train=dict(la_file="{{ _base_.data_root }}/tasks/points/points20"))

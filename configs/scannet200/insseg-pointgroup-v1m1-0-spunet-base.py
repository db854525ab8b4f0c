"""ScanNet, 200 classes: PointGroup (GaussianCross, Table 4); weight=FILE starts from a pretrained backbone."""

_base_ = ["../_base_/insseg_indoor.py"]
_options_ = dict(dataset_type="ScanNet200Dataset", segment_ignore_index=(-1, 0, 2), lr=0.005)

batch_size = 24
num_worker = 48

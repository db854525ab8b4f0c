"""Limited annotations: 20 labelled points in each training room (GaussianCross, Table 2).

python tools/preprocess/limited.py --data-root data/rooms --points 20 writes the table of rows.
"""

_base_ = ["semseg-spunet-v1m1-0-base.py"]

data = dict(train=dict(la_file="{{ _base_.data_root }}/tasks/points/points20"))

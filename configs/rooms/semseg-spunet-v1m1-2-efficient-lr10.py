"""Limited scenes: a tenth of the training rooms (GaussianCross, Table 2); as many steps as with all of them.

python tools/preprocess/limited.py --data-root data/rooms --scenes 10 writes the list.
"""

_base_ = ["semseg-spunet-v1m1-0-base.py"]

epoch = 128  # of 3 rooms

data = dict(train=dict(lr_file="{{ _base_.data_root }}/tasks/scenes/10.txt"))

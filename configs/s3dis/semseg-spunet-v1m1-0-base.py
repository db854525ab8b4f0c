"""S3DIS: semantic segmentation from scratch, tested on Area 5 (GaussianCross, Table 3).

--options area=1 tests on Area 1 and trains on the others; the six together are the 6-fold cross-validation. Pointcept's
own recipe has a grid of 0.05 m, coordinates in place of normals, and bends space.
"""

_base_ = ["../_base_/semseg_indoor.py"]
_options_ = dict(
    dataset_type="S3DISDataset",
    data_root="data/s3dis",
    class_names=(
        "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board", "clutter",
    ),
    elastic=False,
    point_max=204800,
    lr=0.003,
)  # fmt: skip

area = 5
held_out = f"Area_{area}"
others = tuple(f"Area_{n}" for n in range(1, 7) if n != area)

batch_size = 24
num_worker = 48
epoch = 3000
data = dict(train=dict(split=others), val=dict(split=held_out), test=dict(split=held_out))

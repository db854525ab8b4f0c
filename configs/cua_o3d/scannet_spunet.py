"""CUA-O3D on ScanNet with the SpUNet of the downstream recipes, which sees colours and normals, in the MinkUNet's place."""

_base_ = ["scannet.py"]
_options_ = dict(shape_alone=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type="SpUNet-v1m1",
        in_channels=6,
        num_classes=0,
        channels=(32, 64, 128, 256, 256, 128, 96, 96),
        layers=(2, 3, 4, 6, 2, 2, 2, 2),
    ),
)

"""GaussianCross on generated rooms with a MinkUNet as the backbone, about as wide and as fast as the SpUNet of rooms.py."""

_base_ = ["rooms.py", "../_base_/rooms_minkunet.py"]

model = dict(backbone="{{ _base_.backbone }}", backbone_out_channels=32)

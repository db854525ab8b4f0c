"""GaussianCross on generated rooms with Point Transformer V3 as the backbone, at a size that a CPU trains like rooms.py."""

_base_ = ["rooms.py", "../_base_/rooms_ptv3.py"]

model = dict(backbone="{{ _base_.backbone }}", backbone_out_channels=32)

# As in Pointcept's recipe, the blocks learn at a tenth of the rate.
param_dicts = [dict(keyword="block", lr=6e-4)]
scheduler = dict(max_lr=[6e-3, 6e-4])

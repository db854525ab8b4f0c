"""ScanNet, LSeg and OpenSeg, asked through LSeg's head (Table 11).

OpenScene's downloads of the two hold features of points that were drawn apart; those that both have are taken.
"""

_base_ = ["scannet.py"]
_options_ = dict(teachers=("lseg", "openseg"), uncertainty=None)

data = dict(train=dict(feature_common=True))

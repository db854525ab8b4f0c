"""CrossOver on generated rooms: unified encoders around a frozen object level (Eq. 3).

    sh tools/train.sh -c configs/crossover/rooms-unified.py -w exp/crossover/rooms-scene/model/model_last.pth
"""

_base_ = ["../_base_/crossover_rooms.py"]
_options_ = dict(stage="unified")

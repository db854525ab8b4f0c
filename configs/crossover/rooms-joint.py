"""CrossOver on generated rooms: scene and object level trained together (Eq. 4).

    sh tools/train.sh -c configs/crossover/rooms-joint.py -w exp/crossover/rooms-instance/model/model_last.pth
"""

_base_ = ["../_base_/crossover_rooms.py"]
_options_ = dict(stage="joint")

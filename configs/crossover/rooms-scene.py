"""CrossOver on generated rooms: fusion of a scene's objects, with a frozen object level (Eq. 2).

    sh tools/train.sh -c configs/crossover/rooms-scene.py -w exp/crossover/rooms-instance/model/model_last.pth
"""

_base_ = ["../_base_/crossover_rooms.py"]
_options_ = dict(stage="scene")

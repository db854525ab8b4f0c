"""3D object recognition by probing the space of configs/crossover/rooms-instance.py: linear probes across modalities, and class names.

    python tools/test.py -c configs/crossover/rooms-recognition.py --options weight=exp/crossover/rooms-instance/model/model_last.pth
"""

_base_ = ["../_base_/crossover_rooms.py"]
_options_ = dict(stage="instance")

test = dict(_delete_=True, type="RecognitionTester", at_least=10, train=dict(split="train", lr_file=None))

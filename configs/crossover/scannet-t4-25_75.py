"""CrossOver on ScanNet, image-point pairs in 25 % of the scenes, image-CAD pairs in the other 75 %; P->M is tested (Table 4).

tools/preprocess/chunks.py writes the lists of scenes.
"""

_base_ = ["../_base_/crossover.py"]
_options_ = dict(stage="instance", data_root="data/scannet", share="25_75", drop=dict(text=1.0))

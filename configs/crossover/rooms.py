"""CrossOver on generated rooms, all of it: Instance Baseline, then object level, fusion and unified encoders, and every table.

    python tools/preprocess/rooms.py --output-root data/rooms_modalities --train 250 --val 40 --modalities --rescans 1 --rescan-splits val
    python tools/preprocess/modalities.py --data-root data/rooms_modalities --split train val --recipe pocket --views 4 --num-texts 60 --workers 2
    sh tools/train.sh -c configs/crossover/rooms.py

`-r true` goes on where it was stopped; `--options data_root=... feature_root=...` reach every stage.
"""

_base_ = ["../_base_/crossover_staged.py"]
_options_ = dict(family="rooms")

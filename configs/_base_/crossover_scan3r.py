"""CrossOver on data that 3RScan is among: temporal matching asks about the furniture that LivingScenes compares on 3RScan, as Table 1 does."""

_base_ = ["crossover.py"]
_options_ = dict(
    data_root="data/scan3r",
    temporal_labels=(
        "dinning chair", "rocking chair", "armchair", "chair", "couching table", "dining table", "computer desk", "round table", "side table",
        "stand", "desk", "coffee table", "bench", "sofa", "sofa chair", "couch", "ottoman", "footstool", "cushion", "pillow", "bed", "trash can",
    ),  # as 3RScan spells them
)  # fmt: skip

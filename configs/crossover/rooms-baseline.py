"""CrossOver on generated rooms: Instance Baseline: heads alone."""

_base_ = ["../_base_/crossover_rooms.py"]
_options_ = dict(stage="baseline")

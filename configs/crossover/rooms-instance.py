"""CrossOver on generated rooms: the object level (Eq. 1)."""

_base_ = ["../_base_/crossover_rooms.py"]
_options_ = dict(stage="instance")

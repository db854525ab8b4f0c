"""Losses by name, and `build_criteria`, which sums a list of them."""

from .criteria import Criteria, build_criteria
from .segmentation import CrossEntropyLoss, LovaszLoss

__all__ = ["Criteria", "CrossEntropyLoss", "LovaszLoss", "build_criteria"]

"""What turns a backbone's features into a task's output."""

from .pointgroup import PointGroup, PointGroupWithCriteria
from .segmentor import DefaultSegmentor, DefaultSegmentorV2

__all__ = ["DefaultSegmentor", "DefaultSegmentorV2", "PointGroup", "PointGroupWithCriteria"]

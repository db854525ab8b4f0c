"""Frozen 2D models whose features a 3D backbone learns from. Importing this imports neither timm nor open_clip."""

from pointcept3m.models.teachers.base import Teacher
from pointcept3m.models.teachers.cache import FeatureCache
from pointcept3m.models.teachers.diffusion import DiffusionTeacher
from pointcept3m.models.teachers.lseg import LSegTeacher
from pointcept3m.models.teachers.open_clip import OpenClipTeacher
from pointcept3m.models.teachers.pocket import PocketTeacher
from pointcept3m.models.teachers.timm import TimmTeacher

__all__ = ["DiffusionTeacher", "FeatureCache", "LSegTeacher", "OpenClipTeacher", "PocketTeacher", "Teacher", "TimmTeacher"]

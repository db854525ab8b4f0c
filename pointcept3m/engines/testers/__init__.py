"""Tests of trained models. Importing this fills TESTERS."""

from .base import TESTERS, TesterBase
from .render import RenderTester
from .semseg import SemSegTester

__all__ = ["TESTERS", "RenderTester", "SemSegTester", "TesterBase"]

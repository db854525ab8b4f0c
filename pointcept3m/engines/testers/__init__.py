"""Tests of trained models. Importing this fills TESTERS."""

from .base import TESTERS, TesterBase
from .insseg import InsSegTester
from .render import RenderTester
from .semseg import SemSegTester

__all__ = ["TESTERS", "InsSegTester", "RenderTester", "SemSegTester", "TesterBase"]

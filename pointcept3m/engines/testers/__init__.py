"""Tests of trained models. Importing this fills TESTERS."""

from .base import TESTERS, TesterBase
from .semseg import SemSegTester

__all__ = ["TESTERS", "SemSegTester", "TesterBase"]

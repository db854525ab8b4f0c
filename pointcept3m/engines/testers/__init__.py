"""Tests of trained models. Importing this fills TESTERS."""

from .base import TESTERS, TesterBase
from .insseg import InsSegTester
from .open_vocabulary import OpenVocabularyTester
from .recognition import RecognitionTester
from .reconstruction import ReconstructionTester
from .render import RenderTester
from .rerank import RerankTester
from .retrieval import RetrievalTester
from .semseg import SemSegTester

__all__ = ["TESTERS", "InsSegTester", "OpenVocabularyTester", "RecognitionTester", "ReconstructionTester", "RenderTester", "RerankTester", "RetrievalTester", "SemSegTester", "TesterBase"]

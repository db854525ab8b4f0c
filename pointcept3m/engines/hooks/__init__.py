"""What happens around the steps of a training. Importing this fills HOOKS."""

from pointcept3m.utils.hook import HookBase

from .builder import HOOKS, build_hooks
from .checkpoint import CheckpointLoader, CheckpointSaver
from .dialect import CustomCheckpointLoader, CustomInformationWriter, CustomSemSegEvaluator
from .evaluator import PreciseEvaluator, SemSegEvaluator
from .insseg import InsSegEvaluator
from .misc import GarbageHandler, ModelHook
from .open_vocabulary import OpenVocabularyEvaluator
from .probe import LinearProbe
from .render import RenderEvaluator
from .report import ReportWriter
from .retrieval import RetrievalEvaluator
from .timer import IterationTimer, RuntimeProfiler
from .writer import InformationWriter, MetricsWriter

__all__ = [
    "HOOKS",
    "CheckpointLoader",
    "CheckpointSaver",
    "CustomCheckpointLoader",
    "CustomInformationWriter",
    "CustomSemSegEvaluator",
    "GarbageHandler",
    "HookBase",
    "InformationWriter",
    "InsSegEvaluator",
    "IterationTimer",
    "LinearProbe",
    "MetricsWriter",
    "ModelHook",
    "OpenVocabularyEvaluator",
    "PreciseEvaluator",
    "RenderEvaluator",
    "ReportWriter",
    "RetrievalEvaluator",
    "RuntimeProfiler",
    "SemSegEvaluator",
    "build_hooks",
]

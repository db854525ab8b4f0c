"""The job that fuses 2D features onto points: from posed frames and teachers to one file a scene and teacher."""

from pointcept3m.engines.fusion.job import Job, choose_device, find_scenes, fuse_scenes, guess_dataset, summary
from pointcept3m.engines.fusion.scene import Output, SceneReport, fuse_scene
from pointcept3m.engines.fusion.teachers import PRESETS, build_teachers, teacher_configs
from pointcept3m.engines.fusion.views import DATASETS, ViewSettings

__all__ = [
    "DATASETS",
    "PRESETS",
    "Job",
    "Output",
    "SceneReport",
    "ViewSettings",
    "build_teachers",
    "choose_device",
    "find_scenes",
    "fuse_scene",
    "fuse_scenes",
    "guess_dataset",
    "summary",
    "teacher_configs",
]

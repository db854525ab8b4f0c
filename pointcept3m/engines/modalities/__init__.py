"""The job that looks at scenes with frozen encoders: from pictures, masks, points and texts to one file of features a scene."""

from pointcept3m.engines.modalities.extract import ModalitySettings, extract_scene
from pointcept3m.engines.modalities.job import Job, SceneReport, extract_scenes, find_scenes, summary
from pointcept3m.engines.modalities.recipe import RECIPES, Recipe, build_recipe

__all__ = [
    "RECIPES",
    "Job",
    "ModalitySettings",
    "Recipe",
    "SceneReport",
    "build_recipe",
    "extract_scene",
    "extract_scenes",
    "find_scenes",
    "summary",
]

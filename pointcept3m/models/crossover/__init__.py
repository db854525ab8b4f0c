"""CrossOver (CVPR 2025): one space for images, point clouds, CAD models, floorplans and text of scenes and their objects."""

from pointcept3m.models.crossover.decoder import ObjectDecoder as ObjectDecoder
from pointcept3m.models.crossover.instance import CrossOverBaseline as CrossOverBaseline
from pointcept3m.models.crossover.instance import CrossOverInstance as CrossOverInstance
from pointcept3m.models.crossover.rerank import PlanReranker as PlanReranker
from pointcept3m.models.crossover.unified import CrossOver as CrossOver

"""Backbones, heads, losses, 2D teachers, encoders of text and shapes, and the methods; importing this package fills their registries."""

from pointcept3m.models import backbones as backbones
from pointcept3m.models import crossover as crossover
from pointcept3m.models import cua_o3d as cua_o3d
from pointcept3m.models import gaussiancross as gaussiancross
from pointcept3m.models import heads as heads
from pointcept3m.models import losses as losses
from pointcept3m.models import msc as msc
from pointcept3m.models import shapes as shapes
from pointcept3m.models import teachers as teachers
from pointcept3m.models import text as text
from pointcept3m.models.builder import LOSSES as LOSSES
from pointcept3m.models.builder import MODELS as MODELS
from pointcept3m.models.builder import SHAPE_ENCODERS as SHAPE_ENCODERS
from pointcept3m.models.builder import TEACHERS as TEACHERS
from pointcept3m.models.builder import TEXT_ENCODERS as TEXT_ENCODERS
from pointcept3m.models.builder import build_model as build_model

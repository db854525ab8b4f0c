"""CUA-O3D (Li et al., CVPR 2025): several 2D foundation models distilled into one 3D model, weighted by uncertainty."""

from pointcept3m.models.cua_o3d.model import CUAO3D as CUAO3D
from pointcept3m.models.cua_o3d.probe import CUAO3DProbe as CUAO3DProbe

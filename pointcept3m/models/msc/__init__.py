"""Masked Scene Contrast (Wu et al., CVPR 2023, arXiv 2303.14191), and PointContrast (Xie et al., ECCV 2020) as a case of it."""

from pointcept3m.models.msc.model import MaskedSceneContrast as MaskedSceneContrast

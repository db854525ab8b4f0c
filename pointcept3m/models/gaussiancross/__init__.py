"""GaussianCross (Yao et al., ACM MM 2025, arXiv 2508.02172): its modules follow the paper's sections."""

from pointcept3m.models.gaussiancross.model import GaussianCross as GaussianCross

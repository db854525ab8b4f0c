"""pointcept3m: pretraining, distillation and alignment of 3D scenes. Importing this imports no torch."""

from typing import Any

__version__ = "0.1.0"


def load(weight: Any, config: Any = None, device: Any = None, labels: Any = None) -> Any:
    """A trained model that labels scans: `pointcept3m.load("exp/rooms/semseg").predict("scan.ply").save("pred.ply")`.

    weight: a .pth or .safetensors file that carries its config, or a run folder. config: a config file, for weights that
    carry none. device: "cpu", "cuda", ... labels: for a distilled model, what to call points: "chair,table,plant".

    Returns: `pointcept3m.engines.predict.predictor.Predictor`. Raises: FileNotFoundError, ValueError; its `load` says when.
    """
    from pointcept3m.engines.predict import predictor

    return predictor.load(weight, config, device, labels)

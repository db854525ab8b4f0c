"""What `rasterization` refuses: values, shapes, types and options that do not fit, each by name."""

import math
import sys
import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pointcept3m import ops
from tests.ops.test_rasterize import make_scene


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "features"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_by_name(name, value):
    scene = make_scene()
    scene[name].view(-1)[1] = value
    with pytest.raises(ValueError, match=f"rasterization: {name} must be finite.*1 of"):
        ops.rasterization(**scene)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_backgrounds_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="rasterization: backgrounds must be finite, but 6 of 6"):
        ops.rasterization(**make_scene(), backgrounds=torch.full((2, 3), value, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "bad", "text"),
    [
        ("quats", [0.0, 0, 0, 0], "quats must have a length above 0, but 2 of 40 rows do not; the first is row 7 with 0.0"),
        ("quats", [0.0, 1e-13, 0, 0], "quats must have a length above 0, but 2 of 40 rows do not; the first is row 7"),
        ("scales", [0.5, -0.25, 0.5], r"scales must not be negative, but 2 of 40 rows do not; .* row 7 with \[0.5, -0.25, 0.5\]"),
        ("opacities", -0.5, r"opacities must lie in \[0, 1\], but 2 of 40 rows do not; the first is row 7 with -0.5"),
        ("opacities", 1.5, r"opacities must lie in \[0, 1\], but 2 of 40 rows do not; the first is row 7 with 1.5"),
    ],
)
def test_values_out_of_range_are_refused_by_row(name, bad, text):
    scene = make_scene(dtype=torch.float32)
    scene[name][[7, 31]] = torch.tensor(bad)
    with pytest.raises(ValueError, match=f"^rasterization: {text}"):
        ops.rasterization(**scene)


def test_checks_of_good_values_read_them_once():
    """A GPU waits at every read and launches every reduction, so that all checks share one read of few reductions."""
    calls = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    scene = make_scene(dtype=torch.float32)
    with Record():
        ops.rasterization(**scene)
    together = calls.index("cat")  # what follows works on the host
    kernels = [call for call in calls[:together] if call != "view"]
    assert kernels == ["linalg_vector_norm", "aminmax", "aminmax", "aminmax", "sum", "sum", "sum"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"means": torch.zeros(40, 2)}, ValueError, r"means must be \[G, 3\].*got \[40, 2\]"),
        ({"opacities": torch.zeros(39)}, ValueError, r"opacities must be \[G\] with G=40, C=2, got \[39\]"),
        ({"features": torch.zeros(3, 5)}, ValueError, r"features must be \[G, D\].*got \[3, 5\]"),
        ({"colors": torch.zeros(3, 40, 3)}, ValueError, r"colors must be \[G, X\] or \[C, G, X\].*got \[3, 40, 3\]"),
        ({"backgrounds": torch.zeros(2, 4)}, ValueError, r"backgrounds must be \[C, X\].*got \[2, 4\]"),
        ({"colors": torch.zeros(40, 4, 3), "sh_degree": 2}, ValueError, r"sh_degree=2 needs at least 9 harmonics.*have 4"),
        ({"features": torch.zeros(40, 4).int()}, TypeError, r"features must be float32 or float64, got torch.int32"),
        ({"quats": torch.zeros(40, 4).half()}, TypeError, r"quats must be float32 or float64, got torch.float16"),
        ({"quats": torch.zeros(40, 4).double()}, TypeError, r"quats must have the dtype of means, torch.float32"),
        ({"scales": [1.0]}, TypeError, r"scales must be a tensor, got list"),
        ({"render_mode": "rgb"}, ValueError, r"render_mode must be one of RGB, D, ED"),
        ({"width": 0}, ValueError, r"width and height must be positive"),
        ({"width": 16.5}, TypeError, r"^rasterization: width must be an int, got float"),
        ({"height": "3"}, TypeError, r"^rasterization: height must be an int, got str"),
        ({"colors": torch.zeros(40, 4, 3), "sh_degree": 1.5}, TypeError, r"^rasterization: sh_degree must be an int, got float"),
        ({"near_plane": 0.0}, ValueError, r"0 < near_plane < far_plane"),
        ({"rasterize_mode": "fast"}, ValueError, r"rasterize_mode must be"),
        ({"viewmats": torch.zeros(2, 4, 4)}, ValueError, r"viewmats\[0\] must be invertible"),
        ({"viewmats": torch.eye(4).mT.repeat(2, 1, 1) + torch.tensor([[0.0] * 4] * 3 + [[1.0, 0, 0, 0]])}, ValueError, r"last row"),
        ({"Ks": torch.zeros(2, 3, 3)}, ValueError, r"Ks must not be singular"),
        ({"Ks": torch.tensor([[9.0, 1, 4], [0, 9, 4], [0, 0, 1]]).repeat(2, 1, 1)}, ValueError, r"no skew"),
        ({"absgrad": True}, ValueError, r"absgrad=True is supported by backend='gsplat' only"),
        ({"camera_model": "fisheye"}, ValueError, r"camera_model='fisheye' is supported by backend='gsplat' only"),
        ({"camera_modle": "pinhole"}, TypeError, r"unknown argument 'camera_modle'; did you mean 'camera_model'"),
        ({"backend": "cuda"}, ValueError, r"backend must be None, 'native' or 'gsplat', got 'cuda'"),
    ],
)
def test_errors_name_the_argument(change, error, text):
    with pytest.raises(error, match=text):
        ops.rasterization(**{**make_scene(dtype=torch.float32), **change})


def test_gsplat_backend_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)  # "not installed"
    with pytest.raises(ImportError, match="needs the package gsplat, which is not installed"):
        ops.rasterization(**make_scene(), backend="gsplat")
    monkeypatch.setitem(sys.modules, "gsplat", types.ModuleType("gsplat"))
    with pytest.raises(ValueError, match="renders on CUDA only, and means is on cpu"):
        ops.rasterization(**make_scene(), backend="gsplat")

"""Fixtures shared by all tests: the seed, and the folder of real data where there is one."""

import importlib
import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state, whatever ran before it."""
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def importable(name: str):
    """The module, or the test is skipped, also where an import fails for what another package lacks (timm beside a torch whose
    torchvision is of another build)."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} cannot be imported here: {error}")


@pytest.fixture
def real_data():
    """`real_data("rgbd_7scenes")` is the path of that data set, or skips the test where it is absent."""
    root = Path(os.environ.get("POINTCEPT3M_DATA", REPOSITORY.parent / "shared" / "data"))

    def locate(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"real data {name!r} not found in {root}; set POINTCEPT3M_DATA")
        return path

    return locate

"""`made`: a model, scenes and their gallery, embedded once by the command."""

from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    from pointcept3m.engines.retrieval.command import embed_main
    from tests.engines.retrieval.made import write_model, write_scenes

    root = tmp_path_factory.mktemp("gallery")
    weight, scenes = write_model(root / "run" / "model" / "model_best.safetensors"), write_scenes(root)
    assert embed_main([str(scenes), "--weight", str(weight), "--gallery", str(root / "db"), "--device", "cpu"]) == 0
    return SimpleNamespace(root=root, weight=str(weight), scenes=scenes, gallery=root / "db")

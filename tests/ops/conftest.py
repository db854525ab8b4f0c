"""With POINTCEPT3M_REPLAY=cuda, every call of an op is repeated there (see replay.py); emulated kernels skip big tests."""

import os

import pytest

from pointcept3m.ops import _library


def pytest_collection_modifyitems(items):
    if not _library.emulated():
        return
    for item in items:
        if item.get_closest_marker("not_emulated"):
            item.add_marker(pytest.mark.skip(reason="not for the CUDA emulator"))


@pytest.fixture(scope="session")
def replay_counts():
    counts: dict[str, int] = {}
    yield counts
    device = os.environ.get("POINTCEPT3M_REPLAY")
    if device:
        assert counts, f"POINTCEPT3M_REPLAY={device} asks to repeat calls, and no test made one"
        print(f"\ncalls replayed on {device}:", dict(sorted(counts.items())))


@pytest.fixture(autouse=True)
def replay_elsewhere(replay_counts):
    device = os.environ.get("POINTCEPT3M_REPLAY")
    if not device:
        yield
        return
    from tests.ops.replay import Replay

    with Replay(device) as replay:
        yield
    for name, count in replay.checked.items():
        replay_counts[name] = replay_counts.get(name, 0) + count

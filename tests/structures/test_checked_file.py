"""Files with digests: what comes back, and every kind of damage."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pointcept3m.structures.checked_file import Kind, open_checked, read_header, write_checked

KIND = Kind("test_things", version=3, again="make it again")


def arrays():
    rng = np.random.default_rng(0)
    kinds = [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.bool_]
    return {np.dtype(kind).name: (rng.random((3, 4)) * 9).astype(kind) for kind in kinds} | {"none": np.zeros((0, 5), np.float32)}


@pytest.fixture
def path(tmp_path):
    write_checked(tmp_path / "deep" / "a.safetensors", arrays(), KIND, {"scene": "s", "list": [1, None]})
    return tmp_path / "deep" / "a.safetensors"


def test_what_is_written_comes_back(path):
    found, header = open_checked(path, KIND)
    for name, array in arrays().items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.array_equal(found[name], array)
    assert header["scene"] == "s" and header["list"] == [1, None] and header["format"] == 3
    with pytest.raises(ValueError, match="read-only"):
        found["float32"][0, 0] = 1.0


def test_the_same_content_gives_the_same_bytes(path, tmp_path):
    write_checked(tmp_path / "b.safetensors", arrays(), KIND, {"scene": "s", "list": [1, None]})
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_every_changed_byte_of_the_content_is_noticed(path):
    whole = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="does not match its digest.*make it again"):
            open_checked(path, KIND)


def test_a_short_file_and_a_changed_header_are_noticed(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match="damaged"):
        open_checked(path, KIND)
    path.write_bytes(whole)
    header = read_header(path, KIND)
    save_file(load_file(path), path, metadata={KIND.entry: json.dumps({**header, "scene": "t"})})
    with pytest.raises(ValueError, match="says of itself"):
        open_checked(path, KIND)


def test_files_of_another_kind_or_version_are_refused(path):
    with pytest.raises(ValueError, match="none of other things"):
        open_checked(path, Kind("other_things", 3, "x"))
    with pytest.raises(ValueError, match="written in format 3, this version reads 4; make it again"):
        open_checked(path, Kind("test_things", 4, "make it again"))
    with pytest.raises(FileNotFoundError, match="no such file of test things"):
        open_checked(path.with_name("b.safetensors"), KIND)

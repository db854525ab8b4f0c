"""Atomic files: at every moment the old content or the new one, whatever interrupts the writer."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pointcept3m.utils.files import atomic_copy, atomic_folder, atomic_write, file_stem, near_files, remove_leftovers

WRITER = """
import sys
from pointcept3m.utils.files import atomic_write
size = 4_000_000
print("ready", flush=True)
turn = 0
while True:
    turn = 1 - turn
    letter = b"ab"[turn : turn + 1]
    def write(stream):
        for _ in range(8):
            stream.write(letter * (size // 8))
    atomic_write(sys.argv[1], write)
"""


def test_kill_nine_while_writing_leaves_one_whole_file(tmp_path):
    path = tmp_path / "model_last.pth"
    atomic_write(path, lambda stream: stream.write(b"a" * 4_000_000))
    interrupted = 0
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.004 + 0.0037 * attempt)  # lands in different places of the loop
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = path.read_bytes()
        assert len(content) == 4_000_000 and len(set(content)) == 1, f"attempt {attempt} left a mixture"
        interrupted += any(".tmp-" in entry.name for entry in tmp_path.iterdir())
        remove_leftovers(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["model_last.pth"]
    assert interrupted, "no kill came while a file was being written; the test proves nothing"


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    atomic_write(path, lambda stream: stream.write(b"old"))

    def full_disk(stream):
        stream.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, full_disk)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.txt"]


def test_copy_is_untouched_by_later_writes(tmp_path):
    last, best = tmp_path / "last", tmp_path / "best"
    for content in (b"one", b"two"):
        atomic_write(last, lambda stream, content=content: stream.write(content))
        atomic_copy(last, best)
        atomic_copy(last, best)  # a second time, when both are one file already
        assert best.read_bytes() == content
    atomic_write(last, lambda stream: stream.write(b"three"))
    assert best.read_bytes() == b"two" and sorted(os.listdir(tmp_path)) == ["best", "last"]


def test_near_files(tmp_path):
    (tmp_path / "model_last.pth").touch()
    assert "model_last.pth" in near_files(tmp_path / "model_lst.pth")
    assert "does not exist" in near_files(tmp_path / "no" / "model.pth")
    assert "model_last.pth" in near_files(tmp_path / "zzz.pth")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "scene"
    with atomic_folder(target) as part:
        (part / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_folder(target) as part:
        (part / "b").write_text("2")
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["a"]
    with atomic_folder(target) as part:
        (part / "c").write_text("3")
    assert [path.name for path in target.iterdir()] == ["c"]
    assert [path.name for path in target.parent.iterdir()] == ["scene"]


@pytest.mark.parametrize(("name", "stem"), [("Area_5/hall", "Area_5_hall"), ("../../x", "_.._x"), ("a\\b", "a_b"), (7, "7"), (".hidden", "hidden")])
def test_names_of_scenes_stay_in_their_folder(tmp_path, name, stem):
    assert file_stem(name) == stem and (tmp_path / file_stem(name)).resolve().parent == tmp_path.resolve()

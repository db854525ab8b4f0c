"""Jobs in this process and in others: results, the first error, what is given up after it."""

import errno
import os
import time

import pytest
import torch

from pointcept3m.cli import describe
from pointcept3m.utils.errors import raised_here
from pointcept3m.utils.processes import as_done
from pointcept3m.utils.registry import Registry


def work(folder, number):
    if number == 0:
        raise ValueError("job 0 cannot be done")
    time.sleep(0.02)
    (folder / str(number)).touch()
    return number, os.getpid(), torch.get_num_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_job_is_done_once(tmp_path, workers):
    results = list(as_done(work, [(tmp_path, number) for number in range(1, 7)], workers))
    assert sorted(number for number, _, _ in results) == [1, 2, 3, 4, 5, 6] and len(list(tmp_path.iterdir())) == 6
    processes = {process for _, process, _ in results}
    assert processes == {os.getpid()} if workers == 0 else os.getpid() not in processes and len(processes) <= 2
    if workers:
        assert {threads for _, _, threads in results} == {1}
    else:
        assert [number for number, _, _ in results] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_ends_the_run(tmp_path, workers):
    jobs = [(tmp_path, number) for number in (1, 0, *range(2, 60))]
    with pytest.raises(ValueError, match="job 0 cannot be done"):
        list(as_done(work, jobs, workers))
    assert (tmp_path / "1").exists() and len(list(tmp_path.iterdir())) < 20  # some may have begun before it was seen


def test_no_jobs():
    assert list(as_done(work, [], 3)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_that_is_a_sentence_arrives_as_one(workers):
    """Also from another process: with its notes, and known as one that needs no traceback."""
    jobs = [({"type": "Absent"},), ({"type": "Absent"},)]
    with pytest.raises(KeyError) as caught:
        list(as_done(Registry("things").build, jobs, workers))
    assert raised_here(caught.value) and describe(caught.value).startswith("error: things has no 'Absent'; known: none\n")


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, True), (errno.EACCES, True), (errno.EBADF, False)])
def test_what_the_disk_says_needs_no_traceback(number, told):
    with pytest.raises(OSError) as caught:
        raise OSError(number, os.strerror(number))
    assert raised_here(caught.value) == told

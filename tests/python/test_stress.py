"""A short run of stress.py; the script runs for a minute."""

import sys

import pytest
import stress


@pytest.fixture(autouse=True)
def switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def test_threads_give_what_one_thread_gives():
    report = stress.run(threads=64, seconds=3, seed=1)
    assert report.threads_started >= 64
    assert stress.replay(report, seed=1) == report.rounds > 0


def test_memory_that_grows_is_seen():
    assert stress.is_flat([10, 20, 100, 100, 103, 100], slack=0)
    assert not stress.is_flat([10, 20, 100, 103, 106, 109], slack=0)

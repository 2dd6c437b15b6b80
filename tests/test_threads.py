"""The loop that is shared out among threads: every iteration runs once, whatever the threads and their neighbours do."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from minigpt.kernels.threads import MOST_THREADS, get_num_threads, parallel_for, set_num_threads

ROOT = Path(__file__).parents[1]


@njit
def _count(i, times, work):
    for _ in range(2 * work):               # takes time, and changes nothing
        times[i] = -times[i]
    times[i] += 1


@njit
def _count_all(row, times, work):
    parallel_for(times.shape[1], _count, times[row], work)


@njit
def _fail(i, which):
    if i == which:
        raise ValueError("an iteration that fails")


@njit
def count(times, work):
    parallel_for(len(times), _count, times, work)


@njit
def count_rows(times, work):
    parallel_for(len(times), _count_all, times, work)


@njit
def fail(count, which):
    parallel_for(count, _fail, which)


@pytest.fixture(params=[1, 2, 3, 8])
def number(request):
    """Loops run on that many threads, where this process may have so many."""
    if request.param > MOST_THREADS:
        pytest.skip(f"this process has at most {MOST_THREADS} threads")
    before = get_num_threads()
    set_num_threads(request.param)
    yield request.param
    set_num_threads(before)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 9, 1000, 100_003])
@pytest.mark.parametrize("work", [0, 2, 200])
def test_each_iteration_runs_once(number, size, work):
    times = np.zeros(size, np.int64)
    for calls in range(1, 20):
        count(times, work)
        assert (times == calls).all()


@pytest.mark.parametrize("pause", [0, 1e-5, 1e-4, 1e-3])
def test_workers_that_sleep_wake_up_and_those_that_spin_go_on(number, pause):
    times = np.zeros(64, np.int64)
    for calls in range(1, 200):
        count(times, 1000)
        time.sleep(pause)
        assert (times == calls).all()


def test_a_loop_inside_an_iteration_runs_where_it_is(number):
    times = np.zeros((17, 23), np.int64)
    for _ in range(50):
        count_rows(times, 10)
    assert (times == 50).all()


def test_an_exception_in_an_iteration_ends_the_loop_with_one_and_the_next_loop_is_well(number):
    times = np.zeros(100, np.int64)
    for which in (0, 50, 99):
        with pytest.raises(MemoryError, match="scratch buffers"):
            fail(100, which)
        count(times, 1)
    fail(100, -1)
    assert (times == 3).all()


def test_threads_of_python_call_kernels_in_turn(number):
    """Callers hold the GIL from the beginning of a loop to its end."""
    times = np.zeros((4, 1000), np.int64)
    callers = [threading.Thread(target=lambda row=row: [count(row, 20) for _ in range(300)]) for row in times]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert (times == 300).all()


@pytest.mark.parametrize("wrong", [0, -1, MOST_THREADS + 1])
def test_an_impossible_number_of_threads_is_refused(wrong):
    with pytest.raises(ValueError, match="from 1 to"):
        set_num_threads(wrong)


ELSEWHERE = """
import sys, time
import numpy as np
from tests.test_threads import *
def stress():
    for number in (8, 2, 5):
        set_num_threads(number)
        times = np.zeros(1003, np.int64)
        for calls in range(1, 500):
            count(times, calls % 50)
            if calls % 100 == 0:
                time.sleep(0.001)
            assert (times == calls).all()
"""


def run_elsewhere(code, timeout):
    environment = {**os.environ, "NUMBA_NUM_THREADS": "8"}
    run = subprocess.run([sys.executable, "-c", ELSEWHERE + code], cwd=ROOT, env=environment, capture_output=True, text=True,
                         timeout=timeout)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_more_threads_than_cores_beside_a_busy_process():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        run_elsewhere("stress()", 300)
    finally:
        busy.kill()
        busy.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_starts_workers_of_its_own():
    said = run_elsewhere("""
stress()
if (child := os.fork()) == 0:
    stress()
    print("child", get_num_threads(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
stress()
""", 300)
    assert said == "child 5\n"


def test_importing_the_kernels_changes_no_setting_of_the_process():
    said = run_elsewhere("from minigpt.kernels import threads; print(get_num_threads(), len(threads._workers))", 60)
    assert said == "8 7\n"

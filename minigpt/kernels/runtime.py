"""Threads, and the floating-point environment that every one of them must be in."""

import os
from contextlib import contextmanager

import numpy as np
from numba import get_num_threads, njit, prange, set_num_threads

# Threads that wait for each other do so in a loop, for milliseconds, before they sleep.  Between two kernels some microseconds
# are enough; and on a machine where others want the cores, too, the loop's full length makes training 100 times slower.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

LITTLE_WORK = 2 ** 18       # multiply-adds of one matrix product


@contextmanager
def threads_for(work):
    """All threads, or one where there is little work: to wake the others, and to wait for them, would cost more.

    FloatingPointError where one of them does not compute as IEEE 754 says (see `check_arithmetic`).
    """
    threads = get_num_threads()
    used = 1 if work < LITTLE_WORK else threads
    set_num_threads(used)
    try:
        check_arithmetic(used)
        yield used
    finally:
        set_num_threads(threads)


# A processor has modes, and a thread has its own: other roundings than to nearest, and flush-to-zero, where numbers below
# 2^-126 become 0, in results or in what is read.  Some libraries switch them on for the whole process (those that were
# built with -ffast-math as soon as they are loaded), and every sum may then be another one.
_PROBES = np.array([2.0 ** -149, 2.0 ** -126, 1.0, 2.0 ** -24, 3 * 2.0 ** -24], np.float32)


def check_arithmetic(threads):
    """FloatingPointError where this thread, or one that computes for it, is not in the mode that IEEE 754 begins in."""
    if not _standard(_PROBES) or threads > 1 and not _standard_everywhere(_PROBES, threads):
        raise FloatingPointError("something in this process has switched the processor to flush small numbers to zero, or to "
                                 "another rounding: results would not be the same as elsewhere (a library that was built with "
                                 "-ffast-math? torch.set_flush_denormal?)")


@njit(cache=True)
def _standard(probes):
    smallest, least_normal, one, half_a_step, three_halves = probes
    return (smallest + smallest > smallest                      # read as what it is
            and least_normal * (half_a_step + half_a_step) > 0  # a small result stays
            and one + half_a_step == one                        # ties go to even: downwards here,
            and one + three_halves > one + (half_a_step + half_a_step)    # and upwards here
            and -one - half_a_step == -one)


@njit(parallel=True, cache=True)
def _standard_everywhere(probes, threads):
    good = np.zeros(threads, np.bool_)
    for i in prange(threads):
        good[i] = _standard(probes)
    return good.all()

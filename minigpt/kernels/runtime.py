"""The number of threads, and the floating-point environment that each of them must have."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numba import get_num_threads, njit, prange, set_num_threads

# Idle OpenMP threads spin for milliseconds before they sleep.  Between two kernels some microseconds are enough; and where
# other processes use the cores as well, the default makes training 100 times slower.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

LITTLE_WORK = 2 ** 18       # multiply-adds of one matrix product


@contextmanager
def threads_for(work: int) -> Iterator[int]:
    """Use all threads for kernels of so many multiply-adds, or one thread where waking the others would cost more.

    Yields their number.  FloatingPointError where one of them deviates from IEEE 754 (see `check_arithmetic`).
    """
    threads = get_num_threads()
    used = 1 if work < LITTLE_WORK else threads
    set_num_threads(used)
    try:
        check_arithmetic(used)
        yield used
    finally:
        set_num_threads(threads)


# Each thread has its own floating-point environment: the rounding mode, and FTZ and DAZ, which replace subnormal results and
# operands by zero.  Some libraries change it for the whole process (those built with -ffast-math do when they are loaded), and
# any result may then differ.
_PROBES = np.array([2.0 ** -149, 2.0 ** -126, 1.0, 2.0 ** -24, 3 * 2.0 ** -24], np.float32)


def check_arithmetic(threads: int) -> None:
    """FloatingPointError where one of that many threads, this one included, is not in the default environment of IEEE 754."""
    if not _standard(_PROBES) or threads > 1 and not _standard_everywhere(_PROBES, threads):
        raise FloatingPointError("something in this process has switched the processor to flush small numbers to zero, or to "
                                 "another rounding: results would not be the same as elsewhere (a library that was built with "
                                 "-ffast-math? torch.set_flush_denormal?)")


@njit(cache=True)
def _standard(probes):
    smallest, least_normal, one, half_a_step, three_halves = probes
    return (smallest + smallest > smallest                      # no DAZ
            and least_normal * (half_a_step + half_a_step) > 0  # no FTZ
            and one + half_a_step == one                        # ties round to even: downwards here,
            and one + three_halves > one + (half_a_step + half_a_step)    # and upwards here
            and -one - half_a_step == -one)


@njit(parallel=True, cache=True)
def _standard_everywhere(probes, threads):
    good = np.zeros(threads, np.bool_)
    for i in prange(threads):
        good[i] = _standard(probes)
    return good.all()

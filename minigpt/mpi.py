"""The processes of an MPI run that train one model together: mpiexec -n 4 python train_shakespeare.py --shards 8 ...

Each holds the whole model and computes its shards of each batch (see shards.py).  Sums are exchanged by recursive doubling
along the tree: first between neighbours, then between pairs of neighbours, and so on.  MPI's own Allreduce may add in any
order.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .checkpoint import fingerprint
from .kernels.threads import get_num_threads, set_num_threads
from .shards import Alone
from .trainer import TrainingError

PATIENCE = 2            # seconds that the first process has to say what is wrong before another one says it
NAP = 1e-4              # seconds between two looks for a message: MPI's own waiting takes a whole core, and lets no signal in


class Processes(Alone):
    """All processes that mpiexec has started, as a context, in which only the first one writes to standard output and error.

    One that leaves the context with an exception exits without MPI_Finalize, upon which mpiexec ends the others.  TrainingError
    where MPI is not installed.
    """

    def __init__(self):
        try:
            import mpi4py
            mpi4py.rc.finalize = False
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:            # RuntimeError: mpi4py finds no MPI library
            raise TrainingError('training in several processes takes mpi4py and an MPI: pip install ".[mpi]" '
                                f"({' '.join(str(error).split())})") from None
        self.mpi, self.comm = MPI, MPI.COMM_WORLD
        self.rank, self.count = self.comm.Get_rank(), self.comm.Get_size()
        self._share_cores()

    def _share_cores(self):
        """Processes on one machine that may use the same cores share them: each computes with so many threads."""
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        neighbours = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED).allgather(cores)
        sharing = [others for others in neighbours if others & cores]
        set_num_threads(min(get_num_threads(), max(1, len(cores) // len(sharing))))

    def __str__(self):
        # Open MPI's mpiexec answers Ctrl-C by killing its processes 0.2 s later, MPICH's by passing it on.
        stop = f"; to stop and save: kill -USR1 {os.getppid()}" if "OMPI_COMM_WORLD_SIZE" in os.environ else ""
        return f"processes: {self.count}, the first with {get_num_threads()} thread{'s' * (get_num_threads() > 1)}{stop}"

    def __enter__(self):
        self.streams = sys.stdout, sys.stderr
        if self.rank:
            sys.stdout = sys.stderr = open(os.devnull, "w")
        self._ignore("SIGUSR1")                                 # outside of the training loop, which stops at it
        return self

    def __exit__(self, kind, error, traceback):
        sys.stdout, sys.stderr = self.streams
        if error is None or isinstance(error, SystemExit):      # all processes end here
            self._ignore("SIGUSR1", "SIGINT", "SIGTERM")        # a signal that has stopped another one may still be on its way
            sys.stdout.flush()
            self.mpi.Finalize()
        elif self.rank:
            time.sleep(PATIENCE)                                # it is likely that the first one has the same error

    def _ignore(self, *names):
        for name in names:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), lambda number, frame: None)

    def add(self, array: np.ndarray) -> None:
        other, distance = np.empty_like(array), 1
        while distance < self.count:
            partner = self.rank ^ distance
            try:
                messages = [self.comm.Irecv(other, partner), self.comm.Isend(array, partner)]
                while not self.mpi.Request.Testall(messages):
                    time.sleep(NAP)
            except self.mpi.Exception:
                raise TrainingError(f"process {partner} cannot be reached: --resume continues from the last "
                                    "checkpoint") from None
            array += other
            distance *= 2

    def any(self, flag: bool) -> bool:
        flags = np.array([flag], np.float32)
        self.add(flags)
        return bool(flags[0])

    def first(self, function: Callable[[], Any]) -> Any:
        return self.comm.bcast(function() if self.rank == 0 else None)

    def check(self, model) -> None:
        weights = self.comm.allgather(fingerprint(model))
        for rank, found in enumerate(weights):
            if found != weights[0]:
                raise TrainingError(f"process {rank}, on {self.comm.allgather(self.mpi.Get_processor_name())[rank]}, has other "
                                    "weights than process 0: run `python -m minigpt verify` on both machines")

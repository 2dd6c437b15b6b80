"""Who codes the segments of a large file: processes on this machine, a Dask cluster, or the processes of an MPI run.

An engine runs the tasks of archive.py, each of which is a segment, on any concurrent.futures.Executor, and gives their results
in order, whoever finishes first; so a file has the same bytes whatever the engine.  Its tasks say where their bytes are, and
what they need of the model is a file that every worker maps, so that workers on one machine share one copy in memory.

A worker that is killed costs time: an executor that is broken is replaced, and what it had not finished is done again.  A
segment whose worker is killed TRIES times ends the run, with one sentence and nothing written.

Each process does one task at a time, on its own number of threads: kernels of two tasks would share buffers and threads.
"""

import io
import mmap
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

from minigpt.corpus import cache_folder
from minigpt.kernels.threads import MOST_THREADS, set_num_threads

from .archive import Tools
from .container import CoderError

TRIES = 3                       # of a segment whose worker is killed
KILLED = f"a worker was killed {TRIES} times at the same segment: is there enough memory?"
PATIENCE = 30                   # seconds to find a Dask scheduler
ALIGNMENT = 64                  # bytes: of each array in a mapped file
ONE_AT_A_TIME = threading.Lock()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- a model that workers map -----------------------------------------------------------------------------------------

class Shared:
    """A model and a primer: in this process they are what they are; where they are sent, a map of a file in `folder`."""

    def __init__(self, model, primer: bytes, folder: str):
        self.here, self.folder, self.path = Tools(model, primer), folder, None

    def load(self) -> Tools:
        return self.here

    def __reduce__(self):
        if self.path is None:
            self.path = write_mapped(self.here, self.folder)
        return Mapped, (self.path,)


class Mapped:
    """What `Shared` is in another process."""

    def __init__(self, path: str):
        self.path = path

    def load(self) -> Tools:
        try:
            return read_mapped(self.path)
        except OSError as error:
            raise CoderError(f"{self.path} cannot be read by a worker ({error.strerror}): the machines need a common folder, "
                             "named by MINIGPT_CACHE") from None


def write_mapped(value, folder: str) -> str:
    """Pickle a value into a new file, whose arrays can be mapped.  Returns its path."""
    buffers = []
    described = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    sizes, place = [], 0
    for buffer in buffers:
        sizes.append((place, len(buffer.raw())))
        place += -(-len(buffer.raw()) // ALIGNMENT) * ALIGNMENT
    head = pickle.dumps((described, sizes))
    number, path = tempfile.mkstemp(dir=folder)
    with open(number, "wb") as file:
        start = -(-(8 + len(head)) // ALIGNMENT) * ALIGNMENT
        file.write((start.to_bytes(8, "little") + head).ljust(start, b"\0"))
        for buffer, (_, size) in zip(buffers, sizes):
            file.write(buffer.raw())
            file.write(bytes(-size % ALIGNMENT))
    return path


@lru_cache(1)
def read_mapped(path: str):
    """The value that `write_mapped` wrote.  Its arrays take no memory of this process until they are written to."""
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    start = int.from_bytes(data[:8], "little")
    described, sizes = pickle.load(io.BytesIO(data[8:start]))
    return pickle.loads(described, buffers=[data[start + place:start + place + size] for place, size in sizes])


# --- the engine -------------------------------------------------------------------------------------------------------

def work(task: Callable, threads: int):
    """Do a task, in a worker."""
    with ONE_AT_A_TIME:
        set_num_threads(min(threads, MOST_THREADS))
        return task()


class Engine:
    """Does tasks on an executor, which start() makes when there are several: a segment that is alone is done here.

    workers: how many tasks it does at once.  threads: of each.  folder: where a model is put for all workers to read.  To be
    used as a context, at whose end the executor is stopped.
    """
    elsewhere = True            # tasks read the input themselves, where it is a file

    def __init__(self, start: Callable[[], Executor], workers: int, threads: int = 1, folder: str | None = None):
        self.start, self.workers, self.threads = start, workers, threads
        self.executor, self.parent, self.folder = None, folder, None

    def share(self, model, primer: bytes) -> Shared:
        if self.folder is None:
            self.folder = tempfile.mkdtemp(dir=self.parent)
        return Shared(model, primer, self.folder)

    def run(self, tasks: Iterator, progress: Callable) -> Iterator[tuple]:
        """(task, its result) of each task, in order; at most one more than there are workers are under way.

        What is no task passes through, with None.  CoderError where a task fails.
        """
        waiting = deque()                                   # [task, its future if it is sent, how often its worker was killed]
        try:
            for task in tasks:
                here = not callable(task) or not task.more
                waiting.append([task, None if here else self._submit(task), 0])
                while waiting and (len(waiting) > self.workers + 1 or waiting[0][1] is None or waiting[0][1].done()):
                    yield self._first(waiting, progress)
            while waiting:
                yield self._first(waiting, progress)
        finally:
            for _, future, _ in waiting:                    # after an error; processes are killed as the context ends, and
                if future and not processes_of(self.executor):      # Python 3.11 fails where their futures were cancelled
                    future.cancel()

    def _first(self, waiting, progress):
        task, future, _ = waiting[0]
        if future is None:
            waiting.popleft()
            return task, task(progress) if callable(task) else None
        while (result := self._result(waiting)) is None:
            pass
        waiting.popleft()
        progress(task.size)
        return task, result

    def _result(self, waiting):
        """The result of the first that waits, or None where its worker was killed and it is sent again."""
        try:
            return waiting[0][1].result()
        except (BrokenExecutor, CancelledError):
            waiting[0][2] += 1
            if waiting[0][2] == TRIES:
                raise CoderError(KILLED) from None
            for item in waiting:
                if item[1] and item[1].done() and (item[1].cancelled() or isinstance(item[1].exception(), BrokenExecutor)):
                    item[1] = self._submit(item[0])
            return None
        except (CoderError, OSError, MemoryError, FloatingPointError, KeyboardInterrupt):
            raise
        except Exception as error:                              # of the executor: a cluster that is gone, a task it cannot send
            raise CoderError(KILLED if type(error).__name__ == "KilledWorker" else
                             f"a worker failed: {type(error).__name__}: {' '.join(str(error).split())}") from None

    def _submit(self, task):
        for _ in range(TRIES):
            self.executor = self.executor or self.start()
            try:
                return self.executor.submit(work, task, self.threads)
            except BrokenExecutor:
                self.executor.shutdown(wait=False)
                self.executor = None
        raise CoderError("the workers cannot be started")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self.executor:
            if error:                                           # do not wait for what nobody wants any more
                for process in processes_of(self.executor):
                    process.kill()
            self.executor.shutdown(wait=not error)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def processes_of(executor: Executor | None) -> list:
    """The processes of a ProcessPoolExecutor, which tells nobody before Python 3.14 how to kill them."""
    return [*(getattr(executor, "_processes", None) or {}).values()]


# --- executors --------------------------------------------------------------------------------------------------------

def processes(count: int | None = None) -> Engine:
    """An engine with that many processes (by default one per core), which share the cores."""
    count = count or cores()
    context = multiprocessing.get_context("spawn")              # a forked process has half of its parent's threads and locks
    start = partial(ProcessPoolExecutor, count, context, _prepare)
    return Engine(start, count, max(1, cores() // count))


def _prepare():
    """In a new process: Ctrl-C is its parent's business, and without its parent it has none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def dask(address: str) -> Engine:
    """An engine on the Dask cluster whose scheduler has that address.  Its workers need this package, and folders in common."""
    try:
        from distributed import Client
    except ImportError:
        raise CoderError('a Dask cluster is reached through the package distributed: pip install ".[dask]"') from None
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CoderError(f"there is no Dask scheduler at {address}: {' '.join(str(error).split())}") from None
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        client.close()
        raise CoderError(f"the Dask cluster at {address} has no workers")
    return DaskEngine(client, workers)


class DaskEngine(Engine):
    """The scheduler itself sends a task whose worker was killed to another, and gives up after TRIES times: KilledWorker."""

    def __init__(self, client, workers):
        super().__init__(partial(client.get_executor, pure=False, retries=TRIES), workers, 1, common_folder())
        self.client = client

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self.client.close()


def mpi() -> Engine:
    """An engine on the other processes of this MPI run: mpiexec -n 5 python -m mpi4py.futures -m coder compress --mpi ..."""
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPIPoolExecutor
    except ImportError as error:
        raise CoderError(f'MPI is reached through the package mpi4py: pip install ".[mpi]" ({error})') from None
    executor = MPIPoolExecutor()
    workers = executor.num_workers if MPI.COMM_WORLD.Get_size() > 1 else 0
    if not workers:
        raise CoderError("there are no other MPI processes: start with mpiexec -n 5 python -m mpi4py.futures -m coder ...")
    return Engine(lambda: executor, workers, 1, common_folder())


def common_folder() -> str:
    """A folder that workers on other machines have, too, as the cache folder in a home directory is."""
    folder = cache_folder(None)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CoderError(f"{folder} cannot be made ({error.strerror}): set MINIGPT_CACHE to a folder that all workers "
                         "have") from None
    return str(folder)

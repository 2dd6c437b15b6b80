"""Who does the segments: processes, Dask and MPI write the same bytes, and a worker that is killed costs only time."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from coder import __main__ as command_line
from coder import engines
from coder.archive import Here, Tools, compress, decompress
from coder.container import CoderError
from coder.engines import Engine, Shared, processes, read_mapped, write_mapped
from coder.retrieve import extract
from coder.verify import LICENSE
from tests.golden_coder import taught

TEXT = (LICENSE + LICENSE[::-1])[:2000]
ROOT = str(Path(__file__).parents[1])


@pytest.fixture(autouse=True)
def workers_find_this_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ROOT)


@pytest.fixture(scope="module")
def two():
    """An engine of two processes, for several tests."""
    with processes(2) as engine:
        yield engine


def shrink(engine, mode="fast", data=TEXT, **options):
    out = io.BytesIO()
    compress(io.BytesIO(data), out, mode, taught() if mode == "static" else None, segment=300, engine=engine, **options)
    return out.getvalue()


class Task(NamedTuple):
    """What an engine does, for a test: kills its process, as often as there are no more marks than `kills` in a folder."""
    number: int
    folder: str
    kills: int = 0
    error: BaseException | None = None
    more: bool = True
    size: int = 1

    def __call__(self, progress=None):
        if self.kills:
            mark = len(os.listdir(self.folder))
            if mark < self.kills:
                Path(self.folder, str(mark)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if self.error:
            raise self.error
        return self.number, os.getpid()


# --- processes ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["fast", "static"])
def test_processes_write_the_same_bytes_and_read_them(mode, two, tmp_path):
    """The model is mapped there; a file is read there, what comes through a pipe is sent."""
    file = shrink(Here(), mode)
    assert shrink(two, mode) == file
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "file").write_bytes(file)
    with open(tmp_path / "text", "rb") as source:
        out = io.BytesIO()
        compress(source, out, mode, taught() if mode == "static" else None, segment=300, engine=two)
        assert out.getvalue() == file
    for source in io.BytesIO(file), open(tmp_path / "file", "rb"):
        with source:
            done, out = [], io.BytesIO()
            decompress(source, out, lambda name: taught(), done.append, engine=two)
            assert out.getvalue() == TEXT and sum(done) == len(TEXT)
            out = io.BytesIO()
            extract(source, out, 250, 1700, lambda name: taught(), engine=two)
            assert out.getvalue() == TEXT[250:1700]


def test_a_primer_goes_to_the_workers(two):
    file, out = shrink(two, primer=LICENSE[:500]), io.BytesIO()
    assert file == shrink(Here(), primer=LICENSE[:500])
    decompress(io.BytesIO(file), out, None, primer=LICENSE[:500], engine=two)
    assert out.getvalue() == TEXT


def test_results_come_in_order_and_from_several_processes(two, tmp_path):
    tasks = [Task(i, str(tmp_path)) for i in range(40)]
    results = list(two.run(iter(tasks), lambda count: None))
    assert [task for task, _ in results] == tasks and [number for _, (number, _) in results] == list(range(40))
    assert os.getpid() not in {process for _, (_, process) in results}


def test_a_segment_that_is_alone_is_done_here():
    with processes(2) as engine:
        assert shrink(engine, data=TEXT[:300]) == shrink(Here(), data=TEXT[:300]) and engine.executor is None


def test_few_tasks_are_under_way_at_once(two, tmp_path):
    taken = []

    def tasks():
        for i in range(20):
            taken.append(i)
            yield Task(i, str(tmp_path))
    results = two.run(tasks(), lambda count: None)
    next(results)
    assert len(taken) <= two.workers + 3
    list(results)


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_worker_costs_time_but_nothing_else(kills, tmp_path):
    with processes(2) as engine:
        tasks = [Task(i, str(tmp_path), kills if i == 3 else 0) for i in range(8)]
        assert [number for _, (number, _) in engine.run(iter(tasks), lambda count: None)] == list(range(8))
    assert len(os.listdir(tmp_path)) == kills


@pytest.mark.slow
def test_a_worker_that_is_killed_again_and_again_ends_with_a_sentence(tmp_path):
    with pytest.raises(CoderError, match="killed 3 times at the same segment"), processes(1) as engine:
        list(engine.run(iter([Task(0, str(tmp_path), 99)]), lambda count: None))


@pytest.mark.parametrize("error", [CoderError("a sentence"), MemoryError(), OSError(28, "No space left")])
def test_an_error_in_a_worker_is_the_same_here(error, two, tmp_path):
    with pytest.raises(type(error), match=str(error).split("]")[-1].strip() or None):
        list(two.run(iter([Task(0, str(tmp_path), error=error)]), lambda count: None))


def test_an_error_that_nobody_thought_of_is_one_sentence(two, tmp_path):
    with pytest.raises(CoderError, match="a worker failed: KeyError: 'what'"):
        list(two.run(iter([Task(0, str(tmp_path), error=KeyError("what"))]), lambda count: None))


def children():
    return {int(line) for line in subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True,
                                                 text=True).stdout.split()}


@pytest.mark.slow
def test_after_an_error_no_process_and_no_file_is_left(tmp_path):
    before = children()
    with pytest.raises(ZeroDivisionError):
        with processes(2) as engine:
            shrink(engine, "static")
            folder = engine.folder
            assert os.listdir(folder)
            1 / 0
    time.sleep(0.5)
    assert not Path(folder).exists() and len(children() - before) <= 1          # multiprocessing's resource tracker


@pytest.mark.slow
def test_without_its_parent_a_worker_ends():
    code = ("import os, signal, sys, time\nfrom coder.engines import processes\nfrom tests.test_engines import Task\n"
            "if __name__ == '__main__':\n"
            "    engine = processes(2)\n"
            "    print(*{p for _, (_, p) in engine.run(iter([Task(i, '') for i in range(9)]), id)}, flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    workers = [int(word) for word in run.stdout.split()]            # one, if the other was late
    assert workers
    for _ in range(100):
        if not any(Path(f"/proc/{process}/cmdline").exists() and Path(f"/proc/{process}/cmdline").read_bytes()
                   for process in workers):
            return
        time.sleep(0.1)
    raise AssertionError(f"{workers} live on")


# --- a model that is mapped ---------------------------------------------------------------------------------------------

def test_a_mapped_model_is_the_same_and_takes_no_memory_of_its_own(tmp_path):
    path = write_mapped(Tools(taught(), b"primer"), str(tmp_path))
    model, primer = read_mapped(path)
    assert primer == b"primer" and read_mapped(path) is read_mapped(path)
    for name, parameter in model.parameters().items():
        assert np.array_equal(parameter.data, taught().parameters()[name].data)
        owner = parameter.data
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, memoryview) or type(owner).__name__ == "PickleBuffer"
        assert parameter.data.flags.writeable and parameter.data.ctypes.data % 64 == 0
    before = Path(path).read_bytes()
    next(iter(model.parameters().values())).data[:] += 1                        # on a private copy of the page
    assert Path(path).read_bytes() == before
    read_mapped.cache_clear()


def test_a_folder_that_a_worker_has_not_is_one_sentence(tmp_path):
    shared = Shared(None, b"", str(tmp_path))
    _, (path,) = shared.__reduce__()
    os.remove(path)
    with pytest.raises(CoderError, match="MINIGPT_CACHE"):
        engines.Mapped(path).load()


# --- the command line ----------------------------------------------------------------------------------------------------

def coder(*words, **options):
    return subprocess.run([sys.executable, "-m", "coder", *map(str, words)], capture_output=True, text=True, **options)


def test_the_file_is_the_same_for_any_number_of_workers(tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    for count in 1, 2:
        command_line.main(["compress", str(tmp_path / "text"), "-o", str(tmp_path / str(count)), "--workers", str(count),
                           "--segment", "300", "--mode", "fast"])
        command_line.main(["decompress", str(tmp_path / "1"), "-o", str(tmp_path / "back"), "-f", "--workers", str(count)])
        assert (tmp_path / "back").read_bytes() == TEXT
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_number_of_workers_that_is_none_shows_the_usage(count, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["compress", "text", "--workers", count])
    assert caught.value.code == 2 and "--workers" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_run_leaves_no_worker_and_nothing_else(tmp_path):
    (tmp_path / "text").write_bytes(os.urandom(2 ** 24))
    run = subprocess.Popen([sys.executable, "-m", "coder", "compress", "text", "--mode", "scratch", "--workers", "2"],
                           cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(15)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 1 and run.stderr.read() == "coder: interrupted, nothing written\n"
    run.stderr.close()
    time.sleep(1)
    left = subprocess.run(["ps", "-o", "args=", "-s", str(run.pid)], capture_output=True, text=True).stdout
    assert "spawn_main" not in left and os.listdir(tmp_path) == ["text"]


# --- Dask ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two workers on this machine, processes with one thread each."""
    distributed = pytest.importorskip("distributed")
    os.environ["PYTHONPATH"] = ROOT
    folder = tmp_path_factory.mktemp("dask")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0",
                                  local_directory=str(folder)) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_writes_the_same_bytes_and_reads_them(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    for mode in "fast", "static":
        with engines.dask(cluster.scheduler_address) as engine:
            file, out = shrink(engine, mode), io.BytesIO()
            decompress(io.BytesIO(file), out, lambda name: taught(), engine=engine)
        assert file == shrink(Here(), mode) and out.getvalue() == TEXT


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_dask_worker_costs_time_but_nothing_else(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    (tmp_path / "marks").mkdir()
    with engines.dask(cluster.scheduler_address) as engine:
        tasks = [Task(i, str(tmp_path / "marks"), 1 if i == 2 else 0) for i in range(8)]
        assert [number for _, (number, _) in engine.run(iter(tasks), lambda count: None)] == list(range(8))
        tasks = [Task(i, str(tmp_path / "marks"), 99 if i == 2 else 0) for i in range(5)]
        with pytest.raises(CoderError, match="killed"):
            list(engine.run(iter(tasks), lambda count: None))


@pytest.mark.slow
def test_the_command_line_uses_a_dask_cluster(cluster, tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    environment = {**os.environ, "MINIGPT_CACHE": str(tmp_path / "cache")}
    run = coder("compress", "text", "--segment", "300", "--mode", "fast", "--dask", cluster.scheduler_address, cwd=tmp_path,
                env=environment)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "text.mgz").read_bytes() == shrink(Here())


@pytest.mark.slow
def test_a_dask_cluster_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(engines, "PATIENCE", 2)
    with pytest.raises(CoderError, match="no Dask scheduler"):
        engines.dask("tcp://127.0.0.1:9")


def test_what_is_not_installed_is_one_sentence(monkeypatch):
    for module, start in ("distributed", lambda: engines.dask("x")), ("mpi4py", engines.mpi):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(CoderError, match="pip install"):
            start()


# --- MPI ----------------------------------------------------------------------------------------------------------------

def mpiexec(count, *words, **options):
    pytest.importorskip("mpi4py")
    program = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not program:
        pytest.skip("no mpiexec here")
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    return subprocess.Popen([program, "-n", str(count), sys.executable, "-m", "mpi4py.futures", "-m", *words], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
def test_mpi_processes_write_the_same_bytes_and_read_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").write_bytes(TEXT)
    for words in (["compress", "--mode", "fast", "--segment", "300", "text"], ["decompress", "text.mgz", "-o", "back"]):
        run = mpiexec(3, "coder", words[0], "--mpi", *words[1:], cwd=tmp_path)
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
    assert (tmp_path / "text.mgz").read_bytes() == shrink(Here()) and (tmp_path / "back").read_bytes() == TEXT


@pytest.mark.slow
def test_a_killed_mpi_process_ends_the_run_with_nothing_written(tmp_path, monkeypatch):
    """MPI ends every other process then."""
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").write_bytes(os.urandom(400_000))
    run = mpiexec(3, "coder", "compress", "--mpi", "--mode", "scratch", "--segment", "50K", "text", cwd=tmp_path)
    time.sleep(20)
    ranks = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(run.pid)], capture_output=True, text=True).stdout
    workers = [int(line.split()[0]) for line in ranks.splitlines() if "mpi4py.futures" in line]
    assert len(workers) == 3, ranks
    os.kill(workers[-1], signal.SIGKILL)
    run.communicate(timeout=120)
    assert run.returncode != 0 and not (tmp_path / "text.mgz").exists()


@pytest.mark.slow
def test_without_other_mpi_processes_there_is_one_sentence(tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    run = coder("compress", "text", "--mpi", cwd=tmp_path)
    said = "^coder: (there are no other MPI processes|MPI is reached).*\n\\Z"
    assert run.returncode == 1 and re.search(said, run.stderr), run.stderr


def test_engines_take_any_executor(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    with Engine(lambda: ThreadPoolExecutor(3), 3) as engine:
        assert shrink(engine) == shrink(Here())

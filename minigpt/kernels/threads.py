"""A loop whose iterations are divided among threads, compiled once for all kernels.

    parallel_for(count, body, *arguments)       in a kernel: body(i, *arguments) for each i in range(count), in any order

No iteration may write what another one reads or writes, so it does not matter which thread runs it, or when.  The range is cut
into stretches, a few for each thread, and whichever thread is free claims the next one, the calling thread included.  The
caller waits for stretches that have been claimed, never for a worker that has not woken up yet; and where it has to wait long,
it sleeps, so that a worker that the system has preempted can run in its place.

The workers are Python threads that stay in compiled code, without the GIL, for good.  Callers hold the GIL, so there is one
loop at a time; a nested loop runs entirely on the thread that reaches it.
"""

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .linking import linked

LITTLE_WORK = 2 ** 18       # multiply-adds of one matrix product
STRETCHES = 4               # for each thread
SPINS = 3000                # how often a thread looks for work before it sleeps: some 100 us, longer than between two kernels
YIELD = 100                 # after this many looks it yields, in case another thread needs the core
MOST_THREADS = config.NUMBA_NUM_THREADS
NO_MEMORY = "a kernel could not allocate its scratch buffers"

# What the threads share: 64-bit words, grouped into cache lines of 8 by who writes them and when.  The upper half of the ticket
# counts the loops, the lower half the claimed stretches of the current one; if that is CLOSED, there is no loop.  A thread
# claims a stretch by compare-and-swap of the ticket that it has read, which fails if what it read next is of another loop.
TICKET, DONE = 0, 8
STRETCH_COUNT, COUNT, BODY, ARGUMENTS = 16, 17, 18, 19
THREADS, BUSY, FAILED, CALLER_SLEEPS, CALLER_LOCK = 24, 25, 26, 27, 28
SLEEPS, LOCK, WORKER = 32, 33, 8                        # of worker 0; those of the next one follow after WORKER
CLOSED = (1 << 32) - 1
_words = np.zeros(SLEEPS + WORKER * (MOST_THREADS + 1), np.int64)
_words = _words[-_words.ctypes.data % 64 // 8:]         # aligned to a cache line

# --- what Numba lacks: atomic operations, locks that need no GIL, and calls of an address -----------------------------

_INT, _POINTER = ir.IntType(64), ir.IntType(8).as_pointer()
_PAUSE = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}.get(platform.machine())
_LOCKS = "PyThread_acquire_lock", "PyThread_release_lock"
for _name in _LOCKS:
    binding.add_symbol(_name, ctypes.cast(getattr(ctypes.pythonapi, _name), ctypes.c_void_p).value)
ctypes.pythonapi.PyThread_allocate_lock.restype = ctypes.c_void_p
binding.add_symbol(f"{__name__}.words", _words.ctypes.data)


def _word(builder, index):
    """The address of one of the words, wherever this process has them."""
    name = f"{__name__}.words"
    words = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, _INT, name)
    return builder.gep(words, [index])


def _to_pointer(builder, word):
    return builder.bitcast(word, _POINTER.as_pointer())


def _atomic(build, arguments, result=types.int64, argument=types.int64):
    """An intrinsic (index of a word, arguments) -> result, sequentially consistent, from build(builder, address, arguments)."""
    def make(typing, *types_):
        def generate(context, builder, sig, args):
            value = build(builder, _word(builder, args[0]), *args[1:])
            return context.get_dummy_value() if result == types.void else value
        return result(types.int64, *[argument] * arguments), generate
    if arguments == 0:
        return intrinsic(lambda typing, index: make(typing))
    if arguments == 1:
        return intrinsic(lambda typing, index, x: make(typing))
    return intrinsic(lambda typing, index, x, y: make(typing))


_store = _atomic(lambda builder, word, new: builder.store_atomic(new, word, "release", 8), 1, types.void)
_load = _atomic(lambda builder, word: builder.load_atomic(word, "seq_cst", 8), 0)
_load_pointer = _atomic(lambda builder, word: builder.load_atomic(_to_pointer(builder, word), "seq_cst", 8), 0, types.voidptr)
_store_pointer = _atomic(lambda builder, word, new: builder.store_atomic(new, _to_pointer(builder, word), "release", 8), 1,
                         types.void, types.voidptr)
_exchange = _atomic(lambda builder, word, new: builder.atomic_rmw("xchg", word, new, "seq_cst"), 1)     # returns the old value
_add = _atomic(lambda builder, word, x: builder.atomic_rmw("add", word, x, "seq_cst"), 1)               # the old value
_replace = _atomic(lambda builder, word, old, new: builder.zext(builder.extract_value(
    builder.cmpxchg(word, old, new, "seq_cst", "seq_cst"), 1), _INT), 2)                                # 1 if it was `old`


@intrinsic
def _pause(typing):
    """Tell the processor that this thread is waiting in a loop."""
    def generate(context, builder, sig, args):
        if _PAUSE:
            builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), _PAUSE), [])
        return context.get_dummy_value()
    return types.void(), generate


@intrinsic
def _yield(typing):
    """Let another thread that waits for this core run first."""
    def generate(context, builder, sig, args):
        if hasattr(os, "sched_yield"):
            builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "sched_yield"), [])
        return context.get_dummy_value()
    return types.void(), generate


def _lock_operation(name, *more):
    @intrinsic
    def operate(typing, lock):
        def generate(context, builder, sig, args):
            of_type = ir.FunctionType(ir.IntType(32) if more else ir.VoidType(), [_POINTER] + [ir.IntType(32)] * len(more))
            function = cgutils.get_or_insert_function(builder.module, of_type, name)
            builder.call(function, [args[0], *map(ir.IntType(32), more)])
            return context.get_dummy_value()
        return types.void(types.voidptr), generate
    return operate


_acquire, _release = _lock_operation(_LOCKS[0], 1), _lock_operation(_LOCKS[1])      # 1: wait until it is free

_LOOP_TYPES = types.none, (types.voidptr, types.int64, types.int64)         # of a compiled loop: arguments, start, stop


@intrinsic
def _call(typing, body, arguments, start, stop):
    """Run a compiled loop at the address `body` from start to stop; False where it raised an exception."""
    def generate(context, builder, sig, args):
        convention = context.call_conv
        function = builder.bitcast(args[0], convention.get_function_type(*_LOOP_TYPES).as_pointer())
        status, _ = convention.call_function(builder, function, *_LOOP_TYPES, args[1:])
        return builder.not_(status.is_error)
    return types.boolean(types.voidptr, types.voidptr, types.int64, types.int64), generate


# --- the loop ---------------------------------------------------------------------------------------------------------

@njit
def _work():
    """Claim stretches of the current loop, and compute them, until none is left."""
    while True:
        ticket = _load(TICKET)
        i, stretches, count = ticket & CLOSED, _load(STRETCH_COUNT), _load(COUNT)
        body, arguments = _load_pointer(BODY), _load_pointer(ARGUMENTS)
        if i >= stretches:
            return
        if _replace(TICKET, ticket, ticket + 1):
            if not _call(body, arguments, i * count // stretches, (i + 1) * count // stretches):
                _exchange(FAILED, 1)
            if _add(DONE, 1) + 1 == stretches and _load(CALLER_SLEEPS) and _exchange(CALLER_SLEEPS, 0):
                _release(_load_pointer(CALLER_LOCK))


@njit
def _spin(spins):
    """Wait a moment; returns spins + 1.  Now and then yield the core: the thread that is waited for may need it."""
    if spins % YIELD == YIELD - 1:
        _yield()
    _pause()
    return spins + 1


@njit
def _is_wanted(worker):
    return _load(TICKET) & CLOSED != CLOSED and worker + 1 < _load(THREADS)


# A thread that wants to sleep sets its flag, and then checks once more whether there is a reason not to.  If there is, but a
# waker has already cleared the flag, then the lock is open, or soon will be: the thread passes through, which closes it again.
@njit(types.void(types.int64), nogil=True, cache=True)
def _serve(worker):
    """What a worker does, for good."""
    sleeps, lock, spins = SLEEPS + WORKER * worker, _load_pointer(LOCK + WORKER * worker), 0
    while True:
        if _is_wanted(worker):
            _work()
            spins = 0
        elif spins < SPINS:
            spins = _spin(spins)
        else:
            spins = 0
            _exchange(sleeps, 1)
            if not (_is_wanted(worker) and _exchange(sleeps, 0)):
                _acquire(lock)


@linked(types.void(types.voidptr, types.voidptr, types.int64))
def _share(body, arguments, count):
    """Run a compiled loop over range(count) on all threads."""
    threads = _load(THREADS)
    if threads == 1 or count < 2 or _load(BUSY):
        if not _call(body, arguments, 0, count):
            raise MemoryError(NO_MEMORY)
        return
    stretches = min(count, STRETCHES * threads)
    _exchange(BUSY, 1)
    _exchange(DONE, 0)
    _store(STRETCH_COUNT, stretches)
    _store(COUNT, count)
    _store_pointer(BODY, body)
    _store_pointer(ARGUMENTS, arguments)
    _exchange(TICKET, _load(TICKET) + 1)                # from the last loop's closed ticket to this one's first
    for worker in range(min(threads - 1, stretches - 1)):
        if _load(SLEEPS + WORKER * worker) and _exchange(SLEEPS + WORKER * worker, 0):
            _release(_load_pointer(LOCK + WORKER * worker))
    _work()
    _exchange(TICKET, _load(TICKET) | CLOSED)
    spins = 0
    while _load(DONE) < stretches:
        if spins < SPINS:
            spins = _spin(spins)
        else:
            _exchange(CALLER_SLEEPS, 1)
            if not (_load(DONE) == stretches and _exchange(CALLER_SLEEPS, 0)):
                _acquire(_load_pointer(CALLER_LOCK))
    _exchange(BUSY, 0)
    if _load(FAILED) and _exchange(FAILED, 0):
        raise MemoryError(NO_MEMORY)


def _borrowed(context, builder, type_, value):
    """The value without the owners of its arrays.  Otherwise Numba would count references to them in each iteration, and the
    threads would pass the counters back and forth."""
    if isinstance(type_, types.Array):
        array = context.make_array(type_)(context, builder, value)
        array.meminfo, array.parent = (cgutils.get_null_value(field.type) for field in (array.meminfo, array.parent))
        return array._getvalue()
    if isinstance(type_, types.BaseTuple):
        for i, item in enumerate(type_):
            value = builder.insert_value(value, _borrowed(context, builder, item, builder.extract_value(value, i)), i)
    return value


@intrinsic
def parallel_for(typing, count, body, *arguments):
    """body(i, *arguments) for each i in range(count), on several threads and in any order.  body is compiled by Numba.

    MemoryError where an iteration raised an exception: kernels raise no other.
    """
    of_body = body.get_call_type(typing, (types.int64, *arguments), {})
    of_share, share = _share._defn(typing, types.voidptr, types.voidptr, types.int64)

    def generate(context, builder, sig, args):
        count, _, values = args
        convention = context.call_conv
        loop = ir.Function(builder.module, convention.get_function_type(*_LOOP_TYPES),
                           builder.module.get_unique_name(f"{builder.function.name}.loop"))
        loop.linkage = "internal"
        convention.decorate_function(loop, ["arguments", "start", "stop"], _LOOP_TYPES[1])
        inner = ir.IRBuilder(loop.append_basic_block("entry"))
        address, start, stop = convention.get_arguments(loop)
        stored = inner.load(inner.bitcast(address, values.type.as_pointer()))
        implementation = context.get_function(body, of_body)
        with cgutils.for_range_slice(inner, start, stop, _INT(1)) as (i, _):
            implementation(inner, [i, *cgutils.unpack_tuple(inner, stored, len(arguments))])
        convention.return_value(inner, context.get_dummy_value())
        values = cgutils.alloca_once_value(builder, _borrowed(context, builder, sig.args[2], values))
        addresses = [builder.bitcast(address, _POINTER) for address in (loop, values)]
        return share(context, builder, of_share, [*addresses, count])
    return types.void(types.int64, body, types.StarArgTuple(arguments)), generate


# --- how many threads, and their floating-point environment -----------------------------------------------------------

# Each thread has its own floating-point environment: the rounding mode, and FTZ and DAZ, which replace subnormal results and
# operands by zero.  Some libraries change it for the thread that loads them (those built with -ffast-math do), and threads that
# are started later inherit it.  Any result may then differ.
_PROBES = np.array([2.0 ** -149, 2.0 ** -126, 1.0, 2.0 ** -24, 3 * 2.0 ** -24], np.float32)
_workers, _deviant = [], []


def get_num_threads() -> int:
    """How many threads compute: at first as many as there are cores, or $NUMBA_NUM_THREADS."""
    return int(_words[THREADS])


def set_num_threads(count: int) -> None:
    """Compute on `count` threads from now on, the calling one included.  ValueError unless 1 <= count <= MOST_THREADS."""
    if not 1 <= count <= MOST_THREADS:
        raise ValueError(f"the number of threads must be from 1 to {MOST_THREADS}, but is {count}")
    while len(_workers) < count - 1:
        started = threading.Event()
        _words[LOCK + WORKER * len(_workers)] = _new_lock()
        _workers.append(threading.Thread(target=_start, args=(len(_workers), started), daemon=True))
        _workers[-1].start()
        started.wait()
    _words[THREADS] = count


def _start(worker, started):
    if not _standard(_PROBES):
        _deviant.append(worker)
    started.set()
    _serve(worker)


def _new_lock():
    """A closed lock, which any thread may open."""
    lock = ctypes.pythonapi.PyThread_allocate_lock()
    ctypes.pythonapi.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
    return lock


@contextmanager
def threads_for(work: int) -> Iterator[int]:
    """Use all threads for kernels of `work` multiply-adds, or one thread where waking the others would cost more.

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


def check_arithmetic(threads: int) -> None:
    """FloatingPointError unless all of that many threads, this one included, have the default floating-point environment."""
    if not _standard(_PROBES) or any(worker + 1 < threads for worker in _deviant):
        raise FloatingPointError("something in this process has switched the processor to flush small numbers to zero, or to "
                                 "another rounding: results would not be the same as elsewhere (a library that was built with "
                                 "-ffast-math? torch.set_flush_denormal?)")


@njit(types.boolean(types.float32[::1]), cache=True)
def _standard(probes):
    smallest, least_normal, one, half_a_step, three_halves = probes
    return (smallest + smallest > smallest                      # no DAZ
            and least_normal * (half_a_step + half_a_step) > 0  # no FTZ
            and one + half_a_step == one                        # ties round to even: downwards here,
            and one + three_halves > one + (half_a_step + half_a_step)    # and upwards here
            and -one - half_a_step == -one)


def _begin():
    """Start the workers, of which a forked process has none."""
    _workers.clear(), _deviant.clear()
    _words[:] = 0
    _words[TICKET] = CLOSED
    _words[CALLER_LOCK] = _new_lock()
    set_num_threads(MOST_THREADS)


_begin()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin)

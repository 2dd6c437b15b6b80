"""Functions that are compiled once, and to which the kernels that call them are linked.

Numba compiles a copy of each function into every kernel that calls it, and into a parallel kernel three times: the body of its
loop, a wrapper around that, and the kernel itself.  For a short function this is right, since it can be inlined.  For a long
one, such as the matrix product in attention, it takes time and gains nothing.

Compilation is announced, since it makes the first run half a minute longer than later ones.
"""

import inspect
import sys
from collections.abc import Callable

from llvmlite import binding
from numba import njit, types
from numba.core import cgutils, event
from numba.extending import intrinsic


def linked(signature: types.Type) -> Callable:
    """Like njit for a single signature that returns nothing, but compiled on its own; kernels call it by its symbol.

    signature: types.void(...) of the argument types.
    """
    def decorate(function):
        symbol = f"{function.__module__}.{function.__qualname__}"
        (code,) = njit(signature, cache=True)(function).overloads.values()
        # Registered anew in each process, so that callers loaded from the cache find it at its present address.
        binding.add_symbol(symbol, code.library.get_pointer_to_function(code.fndesc.llvm_func_name))

        def call(typing, *arguments):
            def generate(context, builder, sig, values):
                convention = context.call_conv
                function = convention.get_function_type(types.void, sig.args)
                callee = cgutils.get_or_insert_function(builder.module, function, symbol)
                status, _ = convention.call_function(builder, callee, types.void, sig.args, values)
                with cgutils.if_unlikely(builder, status.is_error):
                    convention.return_status_propagate(builder, status)
                return context.get_dummy_value()
            return signature, generate
        of_function = inspect.signature(function)
        typing = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_ONLY)
        call.__signature__ = of_function.replace(parameters=[typing, *of_function.parameters.values()])
        return intrinsic(call)
    return decorate


class _Announcement(event.Listener):
    """On a terminal, shows which kernel Numba is compiling."""
    depth = count = 0

    def on_start(self, compilation):
        self.depth += 1
        if self.depth == 1 and sys.stderr and sys.stderr.isatty():
            self.count += 1
            name = compilation.data["dispatcher"].py_func.__name__.strip("_")
            print(f"\r\033[Kcompiling kernels (once): {self.count}, {name}", end="", file=sys.stderr, flush=True)

    def on_end(self, compilation):
        self.depth -= 1
        if self.depth == 0 and sys.stderr and sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


event.register("numba:compile", _Announcement())

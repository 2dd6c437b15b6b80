"""Software prefetch: a load that misses the caches takes as long as coding a bit, so it is started early."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .lanes import call, pointer

_FLAG = ir.IntType(32)


def fetch(builder, address, locality):
    """Start loading the cache line at an address, to be read: into all caches (locality 3), or not into the first (2)."""
    call(builder, "llvm.prefetch.p0", [address, _FLAG(0), _FLAG(locality), _FLAG(1)], ir.VoidType())


@intrinsic
def prefetch(typing, array, index):
    """Start loading the cache line of element `index` of a contiguous array, counted flat.  No effect but on speed."""

    def generate(context, builder, sig, args):
        address = pointer(context, builder, sig.args[0], args[0], args[1])
        fetch(builder, builder.bitcast(address, ir.IntType(8).as_pointer()), 3)
        return context.get_dummy_value()

    return types.void(array, types.intp), generate

"""Software prefetch: a load that misses the caches takes as long as coding a bit, so it is started early."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import pointer


@intrinsic
def prefetch(typing, array, index):
    """Start loading the cache line of element `index` of a contiguous array, counted flat.  No effect but on speed."""

    def generate(context, builder, sig, args):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        fetch = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        address = builder.bitcast(pointer(context, builder, sig.args[0], args[0], args[1]), byte)
        builder.call(fetch, [address, flag(0), flag(3), flag(1)])  # to read, into all caches, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate

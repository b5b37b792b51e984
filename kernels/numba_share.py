"""Work shared among threads: compiled functions of one signature, which a compiled loop calls by their address.

What Numba runs in parallel by itself it compiles together with all that is called, once more for each loop. This way
there is one loop, and each function is compiled once, whether one thread takes all of the work or several a share.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastcifar.kernels.numba_jit import compiled_callback, compiled_for
from fastcifar.kernels.numba_vector import pointer_to

NUMBERS = types.CPointer(types.int64)
"""What a function is told: addresses and sizes."""


def shared(function: Any) -> Any:
    """Decorate what does the pieces first to last - 1 of some work: `function(numbers, task, first, last)`.

    Compiled at once. The result's `address` is what the loops here take.
    """
    return compiled_callback(function, types.void(NUMBERS, types.int64, types.int64, types.int64))


def reader(kind: Any) -> Callable[..., Any]:
    """Make a function, for compiled code, that reads numbers as the fields of a named tuple of int64."""

    @intrinsic
    def read(typing_context: Any, numbers: Any) -> Any:
        result = types.NamedUniTuple(types.int64, len(kind._fields), kind)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            places = [builder.gep(arguments[0], [ir.IntType(64)(at)]) for at in range(len(kind._fields))]
            return context.make_tuple(builder, result, [builder.load(place) for place in places])

        return result(NUMBERS), generate

    return read


@intrinsic
def call(typing_context: Any, function: Any, arguments: Any) -> Any:
    """Call a compiled function, which returns nothing, by its address; the arguments are a tuple."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        address, packed = given
        values = cgutils.unpack_tuple(builder, packed, len(arguments))
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(builder.inttoptr(address, kind.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), generate


@compiled_for(types.void(types.int64, types.int64, types.int64, types.int64[::1]), parallel=True)
def in_parallel(num_tasks, function, num, numbers):
    """Call a function, by its address, for as many shares of the pieces 0 to num - 1 as there are tasks."""
    for unsigned in prange(num_tasks):
        task = np.int64(unsigned)
        call(function, (pointer_to(numbers), task, num * task // num_tasks, num * (task + 1) // num_tasks))


@compiled_for(types.void(types.int64, types.int64, types.int64[::1]))
def alone(function, num, numbers):
    """Call a function for all the pieces, in the thread of the caller."""
    nothing = np.int64(0)
    call(function, (pointer_to(numbers), nothing, nothing, num))

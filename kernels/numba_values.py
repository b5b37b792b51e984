"""Values of maps in memory, float32 or bfloat16, read and written as float32 by compiled code.

What is read, what is written and what is added up are told to LLVM to be different memory. Pointers to bfloat16 are
those to uint16, in whose bits they are.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from fastcifar.kernels.numba_jit import compiled

_FLOAT, _INT, _WORD, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(8)


class _BFloatType(ir.Type):
    """LLVM's bfloat, for which llvmlite has no name."""

    def _to_string(self) -> str:
        return "bfloat"


BFLOAT = _BFloatType()


def target_has(feature: str) -> bool:
    """Whether what is compiled may use these units: those of this CPU, or of the one that NUMBA_CPU_NAME tells of."""
    return f"+{feature}" in cpu_target.target_context.codegen()._tm_features.split(",")


def rounded(builder: Any, value: Any, with_units: bool) -> Any:
    """A float32, or a vector of them, as the bits of the nearest bfloat16, of two the even one.

    with_units: by LLVM's own conversion, which without units for it would be a call of what is not there, and with them
    takes the numbers below 2**-126 for zeros.
    """
    lanes = value.type.count if isinstance(value.type, ir.VectorType) else 0

    def of(element: Any) -> Any:
        return ir.VectorType(element, lanes) if lanes else element

    def constant(number: int) -> Any:
        return ir.Constant(of(_INT), [number] * lanes if lanes else number)

    if with_units:
        return builder.bitcast(builder.fptrunc(value, of(BFLOAT)), of(_WORD))
    bits = builder.bitcast(value, of(_INT))
    lowest = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    nearest = builder.add(builder.add(bits, constant(0x7FFF)), lowest)
    # Rounding up would make a number of what is none.
    nearest = builder.select(builder.fcmp_unordered("uno", value, value), constant(0x7FC00000), nearest)
    return builder.trunc(builder.lshr(nearest, constant(16)), of(_WORD))


@intrinsic(prefer_literal=True)
def values_at(typing_context: Any, address: Any, in_words: Any) -> Any:
    """Pointer to bfloat16, or else to float32."""
    element = types.uint16 if in_words.literal_value else types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(element)(types.int64, in_words), generate


@intrinsic
def like(typing_context: Any, pointer: Any, address: Any) -> Any:
    """The address as a pointer of the same type."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[1], arguments[0].type)

    return pointer(pointer, types.int64), generate


def _mark(builder: Any, instruction: Any, kind: str) -> Any:
    """Say which kind of memory is read or written, and that it is none of the others.

    LLVM would have to find that out before each loop, and where there are many places gives up making vectors.
    """
    module = builder.module
    house = module.add_metadata(["maps"])
    scopes = {name: module.add_metadata([name, house]) for name in ("read", "written", "sums")}
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[kind]]))
    others = [scope for name, scope in scopes.items() if name != kind]
    instruction.set_metadata("noalias", module.add_metadata(others))
    return instruction


@intrinsic
def get(typing_context: Any, pointer: Any, at: Any) -> Any:
    """A value that no `put` or `add` of the same function writes, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _mark(builder, builder.load(builder.gep(arguments[0], [arguments[1]])), "read")
        if value.type == _FLOAT:
            return value
        if value.type == _BYTE:
            return builder.uitofp(value, _FLOAT)
        return builder.bitcast(builder.shl(builder.zext(value, _INT), _INT(16)), _FLOAT)

    return types.float32(pointer, types.intp), generate


@intrinsic
def put(typing_context: Any, pointer: Any, at: Any, value: Any) -> Any:
    """Write a float32 as it is, as the nearest bfloat16, of two the even one, or as a small whole number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, at, value = arguments
        there = builder.gep(pointer, [at])
        if there.type.pointee == _BYTE:
            value = builder.fptoui(value, _BYTE)
        elif there.type.pointee == _WORD:
            value = rounded(builder, value, target_has("avx512bf16"))
        _mark(builder, builder.store(value, there), "written")
        return context.get_dummy_value()

    return types.void(pointer, types.intp, types.float32), generate


@intrinsic
def add(typing_context: Any, pointer: Any, at: Any, value: Any) -> Any:
    """Add to one of the partial sums."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, at, value = arguments
        there = builder.gep(pointer, [at])
        total = builder.fadd(_mark(builder, builder.load(there), "sums"), value)
        _mark(builder, builder.store(total, there), "sums")
        return context.get_dummy_value()

    return types.void(pointer, types.intp, types.float32), generate


@compiled
def copy_values(target, source, num):
    """Write num values in the target's own kind."""
    for j in range(num):
        put(target, j, get(source, j))

"""Reads the pickles that CIFAR is distributed in, without a pickle machine.

`pickle.loads` runs whatever a file asks for, and even a subclass with a `find_class` of its own keeps opcodes that
allocate by a number in the file (memo indices), that skip `find_class` (extension codes) and that hand the file's
values to `ndarray.__setstate__`. So this is a small stack machine of its own. It knows the opcodes of protocols 2 to
5 that plain containers, text, numbers and NumPy arrays need, and four callables, which it never calls: it notes that
an array was asked for, and makes a plain array of numbers itself, as a view of the file's bytes. Anything else is a
`DataError`. Time and memory are linear in the size of the file, and the number of operations has a ceiling.

Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py. What an array's pickle looks like:
`numpy.ndarray.__reduce__` (protocols 2 to 4) and `numpy.ndarray.__reduce_ex__(5)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from fastcifar.data.errors import DataError, quote

# CIFAR-100's training file, the largest there is, takes 200,000.
MAX_OPERATIONS = 400_000

_RECONSTRUCT, _FROMBUFFER, _NDARRAY, _DTYPE, _ENCODE = "_reconstruct", "_frombuffer", "ndarray", "dtype", "encode"
# numpy.core was renamed numpy._core in NumPy 2; both spellings are in files that people have.
_KNOWN_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
    # How Python 3 writes bytes into a protocol-2 pickle: encode(text, "latin1").
    ("_codecs", "encode"): _ENCODE,
}


@dataclass(frozen=True)
class _Known:
    """One of the names that a file may ask for, as it lies on the stack: a mark, not a callable."""

    name: str


@dataclass
class _Dtype:
    typestr: str
    byteorder: str = "|"


@dataclass
class _Array:
    """An array that the file is about to describe; `value` is set once it has."""

    value: np.ndarray | None = None


class _Machine:
    """One pass over one pickle. `run` returns the object that it describes."""

    def __init__(self, data: memoryview, name: str, dtypes: tuple[str, ...]) -> None:
        self.data = data
        self.name = name
        self.dtypes = {np.dtype(text).str[1:]: np.dtype(text) for text in dtypes}
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open MARK
        self.memo: dict[int, Any] = {}  # a dict: a huge index takes no more room than a small one
        self.encode_budget_bytes = len(data)

    def fail(self, found: str, expected: str = "") -> NoReturn:
        tail = f"; expected {expected}" if expected else ""
        raise DataError(f"{self.name}: {found}{tail} (byte {self.at} of {len(self.data)})")

    def run(self) -> Any:
        data, size, operations = self.data, len(self.data), _OPERATIONS
        for _ in range(MAX_OPERATIONS):
            if self.at >= size:
                self.fail("ends early: the pickle is cut off", "a STOP at its end")
            operation = operations.get(data[self.at])
            if operation is None:
                if data[self.at] == ord("."):
                    return self.result()
                self.unknown_operation()
            self.at += 1
            try:
                operation(self)
            except IndexError:
                self.fail("corrupt: the pickle takes a value that is not there")
        return self.fail(f"more than {MAX_OPERATIONS:,} pickle operations", "a CIFAR file, which needs fewer")

    def result(self) -> Any:
        self.at += 1
        if self.at != len(self.data):
            self.fail(f"{len(self.data) - self.at:,} bytes after the end of the pickle", "none")
        if self.below or len(self.stack) != 1:
            self.fail("corrupt: the pickle leaves values behind")
        return self.stack[0]

    def unknown_operation(self) -> NoReturn:
        import pickletools

        code = chr(self.data[self.at])
        known = {operation.code: operation.name for operation in pickletools.opcodes}
        if self.at == 0:
            self.fail(f"starts with {quote(self.data[:8])}", "a pickle of protocol 2 to 5")
        if code not in known:
            self.fail(f"corrupt: {quote(code)} is no pickle operation")
        self.fail(f"refused, nothing was run: the pickle uses {known[code]}", "operations that CIFAR's files need")

    # What the operations are made of.

    def take(self, num_bytes: int) -> memoryview:
        end = self.at + num_bytes
        if end > len(self.data):
            left = len(self.data) - self.at
            self.fail(f"ends early: {num_bytes:,} bytes are announced, {left:,} are left")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, num_bytes: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(num_bytes), "little", signed=signed)

    def blob(self, num_bytes: int) -> bytes | memoryview:
        piece = self.take(num_bytes)
        return piece if num_bytes > 255 else bytes(piece)

    def text(self, num_bytes: int) -> str:
        piece = self.take(num_bytes)
        try:
            return str(piece, "utf-8")
        except UnicodeDecodeError:
            return self.fail("corrupt: text is not UTF-8")

    def line(self) -> str:
        window = bytes(self.data[self.at : self.at + 256])
        length = window.find(b"\n")
        if length < 0:
            self.fail("corrupt: a name does not end")
        self.at += length + 1
        return window[:length].decode("latin-1")

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below.pop()
        return items

    def extend_list(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            self.fail(f"corrupt: values are appended to {quote(target)}")
        target.extend(items)

    def fill_dict(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            self.fail(f"corrupt: key and value pairs are put into {quote(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Short text only: hashing a deeply nested tuple would overflow the interpreter's stack, and comparing
            # two long texts again and again would take for ever.
            if type(key) not in (str, bytes) or len(key) > 255:
                self.fail(f"corrupt: a key is {quote(key)}", "short text")
            target[key if type(key) is str else key.decode("latin-1")] = value

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            self.fail(f"corrupt: the pickle refers back to a value {index} that is not there")
        self.stack.append(self.memo[index])

    def know(self, module: object, name: object) -> None:
        known = _KNOWN_NAMES.get((module, name)) if type(module) is str and type(name) is str else None
        if known is None:
            asked = quote(f"{module}.{name}") if type(module) is str and type(name) is str else "an odd name"
            self.fail(f"refused, nothing was run: the pickle asks for {asked}", "only NumPy arrays in a CIFAR file")
        self.stack.append(_Known(known))

    # Arrays: what a file asks to be called is looked at, and never called.

    def reduce(self) -> None:
        arguments = self.stack.pop()
        wanted = self.stack.pop()
        if type(wanted) is not _Known or type(arguments) is not tuple or len(arguments) > 8:
            self.fail("refused, nothing was run: the pickle calls a value of its own")
        match (wanted.name, *arguments):
            case ["_reconstruct", _Known("ndarray"), tuple(), *_]:
                self.stack.append(_Array())
            case ["_frombuffer", (memoryview() | bytes()) as raw, _Dtype() as dtype, tuple() as shape, str(order)]:
                self.stack.append(_Array(self.array(shape, dtype, order == "F", raw)))
            case ["dtype", (bytes() | str()) as kind, *_] if len(kind) < 16:
                typestr = kind.decode("latin-1") if isinstance(kind, bytes) else kind
                if typestr not in self.dtypes:
                    takes = " or ".join(str(dtype) for dtype in self.dtypes.values())
                    self.fail(f"an array of type {quote(typestr)}", f"{takes} ({', '.join(self.dtypes)})")
                self.stack.append(_Dtype(typestr))
            case ["encode", str(text), ("latin1" | "latin-1")]:
                self.stack.append(self.encode(text))
            case _:
                self.fail(f"refused, nothing was run: an odd call of {wanted.name}")

    def encode(self, text: str) -> bytes:
        # The same text may be asked for any number of times, each a copy: no more in all than the file is long.
        self.encode_budget_bytes -= len(text)
        if self.encode_budget_bytes < 0:
            self.fail("refused: the pickle expands to more than its own size")
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            return self.fail("corrupt: bytes are given as text that is not Latin-1")

    def build(self) -> None:
        state = self.stack.pop()
        match (self.stack[-1], state):
            case _Array() as array, (int(), tuple() as shape, _Dtype() as dtype, bool(fortran), raw) if (
                array.value is None and type(raw) in (bytes, memoryview)
            ):
                array.value = self.array(shape, dtype, fortran, raw)
            case _Dtype() as dtype, (int(), order, None, None, None, *_) if order in ("|", "<", ">", b"|", b"<", b">"):
                dtype.byteorder = order if isinstance(order, str) else order.decode()
            case _:
                self.fail("refused, nothing was run: an odd state for an array")

    def array(self, shape: tuple[Any, ...], dtype: _Dtype, fortran: bool, raw: bytes | memoryview) -> np.ndarray:
        """A read-only view of `raw`; never an array of objects, never larger than the bytes that are there."""
        if not 1 <= len(shape) <= 4 or not all(type(length) is int and 0 <= length < 2**31 for length in shape):
            self.fail("corrupt: an array with an odd shape")
        plain = self.dtypes[dtype.typestr].newbyteorder(dtype.byteorder)  # type: ignore[arg-type]
        num_bytes = math.prod(shape) * plain.itemsize
        if num_bytes != len(raw):
            self.fail(f"an array of shape {list(shape)} with {len(raw):,} bytes", f"{num_bytes:,}")
        return np.frombuffer(raw, plain).reshape(shape, order="F" if fortran else "C")

    def long_integer(self) -> int:
        num_bytes = self.number(1)
        if num_bytes > 8:
            self.fail(f"an integer of {num_bytes} bytes", "at most 8")
        return self.number(num_bytes, signed=True)

    def protocol(self) -> None:
        version = self.number(1)
        if not 2 <= version <= 5:
            self.fail(f"pickle protocol {version}", "2 to 5")

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def stack_global(self) -> None:
        name = self.stack.pop()
        self.know(self.stack.pop(), name)


def _push(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    def operation(machine: _Machine) -> None:
        pushed = value(machine)  # first: it may put another stack in place
        machine.stack.append(pushed)

    return operation


def _open_mark(machine: _Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop_pair(machine: _Machine) -> list[Any]:
    value = machine.stack.pop()
    return [machine.stack.pop(), value]


_OPERATIONS: dict[int, Callable[[_Machine], Any]] = {
    ord(code): operation
    for code, operation in {
        "\x80": _Machine.protocol,
        "\x95": lambda m: m.number(8),  # FRAME: how far to read ahead, which a file in memory does not need
        "(": _open_mark,
        "N": _push(lambda m: None),
        "\x88": _push(lambda m: True),
        "\x89": _push(lambda m: False),
        "K": _push(lambda m: m.number(1)),
        "M": _push(lambda m: m.number(2)),
        "J": _push(lambda m: m.number(4, signed=True)),
        "\x8a": _push(_Machine.long_integer),
        "U": _push(lambda m: m.blob(m.number(1))),
        "C": _push(lambda m: m.blob(m.number(1))),
        "T": _push(lambda m: m.blob(m.number(4))),
        "B": _push(lambda m: m.blob(m.number(4))),
        "\x8e": _push(lambda m: m.blob(m.number(8))),
        "\x96": _push(lambda m: m.blob(m.number(8))),
        "X": _push(lambda m: m.text(m.number(4))),
        "\x8c": _push(lambda m: m.text(m.number(1))),
        "\x8d": _push(lambda m: m.text(m.number(8))),
        "]": _push(lambda m: []),
        "}": _push(lambda m: {}),
        ")": _push(lambda m: ()),
        "a": lambda m: m.extend_list([m.stack.pop()]),
        "e": lambda m: m.extend_list(m.pop_mark()),
        "s": lambda m: m.fill_dict(_pop_pair(m)),
        "u": lambda m: m.fill_dict(m.pop_mark()),
        "t": _push(lambda m: tuple(m.pop_mark())),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "q": lambda m: m.remember(m.number(1)),
        "r": lambda m: m.remember(m.number(4)),
        "\x94": lambda m: m.remember(len(m.memo)),
        "h": lambda m: m.recall(m.number(1)),
        "j": lambda m: m.recall(m.number(4)),
        "c": lambda m: m.know(m.line(), m.line()),
        "\x93": _Machine.stack_global,
        "R": _Machine.reduce,
        "b": _Machine.build,
    }.items()
}


def unpickle(data: bytes | memoryview, name: str, *, dtypes: tuple[str, ...] = ("uint8",)) -> dict[str, Any]:
    """The dictionary that a CIFAR pickle holds; nothing in the file is ever run or imported.

    `name` is the file's, for messages. `dtypes` are those that arrays in it may have. Keys are text
    (Python 2's strings decoded as Latin-1); values are None, bool, int, str, bytes, list, tuple, dict, memoryview (a
    Python 2 string of more than 255 bytes) or a NumPy array, read-only, that shares memory with `data`. `DataError`
    for everything else, for an operation or a name that CIFAR's files do not need, and for a file that is cut off.
    """
    machine = _Machine(memoryview(data), name, dtypes)
    result = machine.run()
    if type(result) is not dict:
        raise DataError(f"{name}: the pickle holds {quote(result)}; expected a dict")
    return {key: value.value if isinstance(value, _Array) else value for key, value in result.items()}

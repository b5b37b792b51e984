"""The unpickler reads what CIFAR's files hold, as pickle does, and refuses everything else without running it."""

import copyreg
import io
import os
import pickle
import struct
import time
import tracemalloc
from pathlib import Path

import cifar_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import DataError
from fastcifar.data.unpickle import MAX_OPERATIONS, unpickle

ARRAY = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)


def plain(value: object) -> object:
    """What two readers must agree on: long strings may come as views, keys as text."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, dict):
        return {k.decode("latin-1") if isinstance(k, bytes) else k: plain(v) for k, v in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.binary(min_size=1, max_size=300)
    | st.text(max_size=80)
)
contents = st.dictionaries(
    st.text(max_size=20) | st.binary(min_size=1, max_size=20),
    scalars | st.lists(scalars, max_size=30) | st.tuples(scalars, st.lists(scalars, max_size=3)),
    max_size=8,
)


@settings(max_examples=200)
@given(contents, st.integers(2, 5))
def test_plain_values_are_read_as_pickle_reads_them(content: dict, protocol: int) -> None:
    content = plain(content)  # type: ignore[assignment]
    file = pickle.dumps(content, protocol)
    read = unpickle(file, "batch")
    expected = pickle.loads(file, encoding="bytes")
    assert {k: list(map(plain, v)) if isinstance(v, tuple) else plain(v) for k, v in read.items()} == {
        k: list(map(plain, v)) if isinstance(v, tuple) else plain(v) for k, v in expected.items()
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_from_every_protocol(protocol: int, order: str) -> None:
    array = np.asarray(ARRAY, order=order)  # type: ignore[call-overload]
    read = unpickle(pickle.dumps({b"data": array, "again": array}, protocol), "batch")
    for key in ("data", "again"):
        assert type(read[key]) is np.ndarray
        assert read[key].dtype == np.uint8
        np.testing.assert_array_equal(read[key], ARRAY)


def test_python_2_files_are_read_and_share_their_bytes() -> None:
    content = {"data": ARRAY, "labels": list(range(2000)), "filenames": [f"file_{i}" for i in range(1500)]}
    file = cifar_files.pickled(content)
    by_pickle = pickle.loads(file, encoding="bytes")
    read = unpickle(file, "batch")
    np.testing.assert_array_equal(by_pickle[b"data"], read["data"])
    assert by_pickle[b"labels"] == read["labels"] == content["labels"]
    assert by_pickle[b"filenames"] == read["filenames"]
    assert not read["data"].flags.owndata
    assert not read["data"].flags.writeable


def test_both_spellings_of_numpy_are_known() -> None:
    file = pickle.dumps({"data": ARRAY}, 3)
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    assert (new in file) != (old in file)
    for spelling in (new, old):
        np.testing.assert_array_equal(
            unpickle(file.replace(new, spelling).replace(old, spelling), "batch")["data"], ARRAY
        )


def test_integer_arrays_are_read_only_where_they_are_asked_for() -> None:
    ids = np.array([5, -7, 2**40], np.int64)
    for array in (ids, ids.astype(">i8")):
        file = pickle.dumps({"ids": array}, 4)
        np.testing.assert_array_equal(unpickle(file, "batch", dtypes=("uint8", "int64"))["ids"], ids)
        with pytest.raises(DataError, match=r"batch: an array of type 'i8'; expected uint8 \(u1\)"):
            unpickle(file, "batch")


class Run:
    """What a pickle may ask to be called, with a file as the trace that it was."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.reduction = (call, arguments)

    def __reduce__(self) -> tuple:
        return self.reduction


MARK = "hostile-mark"


def hostile_by_dump() -> dict[str, bytes]:
    command = f"touch {MARK}"
    code = f"open({MARK!r}, 'w').close()"
    objects = {
        "os.system": Run(os.system, command),
        "eval": Run(eval, code),
        "exec": Run(exec, code),
        "open": Run(open, MARK, "w"),
        "getattr chain": Run(getattr, Run(__import__, "os"), "system"),
        "object array": np.array([Run(os.system, command)], dtype=object),
        "structured array": np.zeros(3, dtype=[("a", "u1"), ("b", "u1")]),
        "array subclass": np.ma.masked_array([1, 2], [0, 1]),
        "float array": np.zeros(4),
        "bytearray": Run(bytearray, 1 << 40),
        "numpy load": Run(np.load, MARK),
        "numpy scalar": np.float64(3),
        "set": {1, 2},
        "complex": 3j,
        "class": Run,
        "big integer": 1 << 400,
        "reduce with state": pytest.MonkeyPatch(),
    }
    return {
        f"{name}, protocol {protocol}": pickle.dumps({"data": value}, protocol)
        for name, value in objects.items()
        for protocol in (0, 1, 2, 3, 4, 5)
    }


HEAD = b"\x80\x02"
DTYPE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
HOSTILE_BY_HAND = {
    "system by INST": b"(S'touch hostile-mark'\nios\nsystem\n.",
    "system by OBJ": HEAD + b"(cos\nsystem\nU\x12touch hostile-marko.",
    "eval by NEWOBJ": HEAD + b"cbuiltins\neval\nU\x011\x85\x81.",
    "python 2 eval": HEAD + b"c__builtin__\neval\nU\x011\x85R.",
    "a dotted name": HEAD + b"\x8c\x05numpy\x8c\x09os.system\x93.",
    "a known name in another module": HEAD + b"cos\nndarray\n.",
    "names from the stack of other types": HEAD + b"K\x01K\x02\x93.",
    "a known name built on": HEAD + b"cnumpy\nndarray\n}b.",
    "a known name called with an array": HEAD + b"cnumpy\nndarray\n" + RECONSTRUCT + b"\x85R.",
    "dtype of objects": HEAD + b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
    "dtype by a long name": HEAD + b"cnumpy\ndtype\nT\x00\x10\x00\x00" + b"u" * 4096 + b"\x85R.",
    "dtype with fields": HEAD + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NU\x01a}K\x01K\x01K\x00tb.",
    "array with list as state": HEAD + RECONSTRUCT + b"(K\x01K\x01\x85" + DTYPE + b"\x89]K\x01atb.",
    "array larger than its bytes": HEAD + RECONSTRUCT + b"(K\x01M\xff\xff\x85" + DTYPE + b"\x89U\x01atb.",
    "array of negative size": HEAD + RECONSTRUCT + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89U\x00tb.",
    "array whose size wraps": HEAD
    + RECONSTRUCT
    + b"(K\x01("
    + 5 * b"\x8a\x04\xff\xff\xff\x7f"
    + b"t"
    + DTYPE
    + b"\x89U\x00tb.",
    "array described twice": HEAD + b"}U\x04data" + RECONSTRUCT + 2 * (b"(K\x01K\x01\x85" + DTYPE + b"\x89U\x01xtb"),
    "memo reference to nothing": HEAD + b"j\xff\xff\xff\xff.",
    "string of 4 GB": HEAD + b"T\xff\xff\xff\xff.",
    "string of 2**63": HEAD + b"\x8e" + b"\xff" * 7 + b"\x7f.",
    "bytearray of 2**62": HEAD + b"\x96" + b"\x00" * 7 + b"\x40.",
    "text of 2**63": HEAD + b"\x8d" + b"\xff" * 7 + b"\x7f.",
    "integer of 2 GB": HEAD + b"\x8b\xff\xff\xff\x7f.",
    "extension code 1": HEAD + b"\x82\x01.",
    "extension code 2": HEAD + b"\x83\x01\x00.",
    "extension code 4": HEAD + b"\x84\x01\x00\x00\x00.",
    "persistent id": HEAD + b"U\x01aQ.",
    "persistent id as text": HEAD + b"Pa\n.",
    "out-of-band buffer": HEAD + b"\x97.",
    "read-only buffer": HEAD + b"U\x01a\x98.",
    "a list in itself as the result": HEAD + b"]q\x00h\x00a.",
    "a list in itself as a call": HEAD + b"cnumpy\ndtype\n]q\x00h\x00aR.",
    "a nested tuple as a key": HEAD + b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "a nested tuple as the result": HEAD + b")" + b"\x85" * 100_000 + b".",
    "a list as a key": HEAD + b"}]Ns.",
    "an empty stack": HEAD + b".",
    "a mark without its values": HEAD + b"(.",
    "values without a mark": HEAD + b"t.",
    "values left behind": HEAD + b"}}.",
    "bytes left behind": HEAD + b"}.}",
    "an append to a dict": HEAD + b"}Na.",
    "an odd number of items": HEAD + b"}(Nu.",
    "not UTF-8": HEAD + b"X\x01\x00\x00\x00\xff.",
    "an endless name": HEAD + b"c" + b"a" * 1000,
    "no stop": HEAD + b"}",
    "protocol 99": b"\x80\x63}.",
    "a ZIP file": b"PK\x03\x04" + b"\x00" * 40,
    "an empty file": b"",
    "an unknown operation": HEAD + b"\xfe.",
    "encode that is not Latin-1": HEAD
    + b"c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R.",
    "encode by another codec": HEAD + b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
}
CORPUS = {**hostile_by_dump(), **HOSTILE_BY_HAND}


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_pickles_are_refused_and_nothing_is_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start_s = time.process_time()
    with pytest.raises(DataError) as error:
        unpickle(CORPUS[name], "batch")
    assert time.process_time() - start_s < 1
    assert not list(tmp_path.iterdir())
    message = str(error.value)
    assert message.startswith("batch: ")
    assert message.isascii()
    assert "\n" not in message
    assert len(message) < 300


def test_a_pickle_that_asks_for_a_call_says_for_which() -> None:
    with pytest.raises(DataError, match=r"^batch: refused, nothing was run: the pickle asks for '(posix|nt)\.system'"):
        unpickle(pickle.dumps({"data": Run(os.system, "true")}, 2), "batch")


def test_registered_extension_codes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """pickle's own find_class is not asked about one that was used before."""
    copyreg.add_extension("os", "system", 240)
    try:
        with pytest.raises(DataError, match="EXT1"):
            unpickle(HEAD + b"\x82\xf0.", "batch")
    finally:
        copyreg.remove_extension("os", "system", 240)


TEXT = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
MOST = MAX_OPERATIONS
BOMBS = {
    "many values": HEAD + b"(" + b"N" * (20 * MOST),
    "many dicts": HEAD + b"(" + b"}" * (2 * MOST),
    "many memo entries": HEAD + b"N" + b"".join(b"r" + struct.pack("<I", i << 8) for i in range(2 * MOST)),
    "bytes made of the same text again and again": HEAD
    + (b"(c_codecs\nencode\nq\x01" + TEXT + b"q\x02X\x06\x00\x00\x00latin1q\x03")
    + b"h\x01h\x02h\x03\x86R" * 1000,
    "a long tuple as arguments again and again": HEAD
    + (b"((" + b"N" * (MOST // 2) + b"tq\x01cnumpy\ndtype\nq\x02")
    + b"h\x02h\x01R" * (MOST // 8),
    "lists of lists of lists": HEAD + b"]q\x00" + b"](" + (b"h\x00" * 10 + b"eq\x00](") * 1000 + b"e.",
    "keys that are long and equal": HEAD + TEXT + b"q\x01" + TEXT + b"q\x02}" + b"h\x01Nsh\x02Ns" * 10_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_time_and_memory(name: str) -> None:
    start_s = time.process_time()
    tracemalloc.start()  # which takes most of the time
    try:
        with pytest.raises(DataError):
            unpickle(BOMBS[name], "batch")
        assert time.process_time() - start_s < 8
        assert tracemalloc.get_traced_memory()[1] < 120e6
    finally:
        tracemalloc.stop()


def test_a_huge_memo_index_takes_no_room() -> None:
    """pickle's own makes a table as long as the largest index."""
    tracemalloc.start()
    try:
        assert unpickle(HEAD + b"}r\xff\xff\xff\xff.", "batch") == {}
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


SMALL = cifar_files.pickled({"batch_label": "training batch 1 of 5", "data": ARRAY[:, :12], "labels": [1, 300]})


@pytest.mark.parametrize("length", range(len(SMALL)))
def test_a_file_cut_off_anywhere_says_so(length: int) -> None:
    with pytest.raises(DataError, match=r"^batch: .*byte \d+ of \d+\)$"):
        unpickle(SMALL[:length], "batch")


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_file_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    file = bytearray(SMALL)
    for at, value in changes:
        file[at] = value
    try:
        read = unpickle(bytes(file), "batch")
    except DataError as error:
        assert str(error).startswith("batch: ")
    else:
        assert all(value.dtype == np.uint8 for value in read.values() if isinstance(value, np.ndarray))


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_noise_is_read_or_refused(noise: bytes) -> None:
    for file in (noise, HEAD + noise, HEAD + b"}(" + noise + b"u."):
        try:
            assert type(unpickle(file, "batch")) is dict
        except DataError as error:
            assert str(error).startswith("batch: ")


def test_the_helper_writes_what_python_2_wrote() -> None:
    """Its own oracle: the standard library's pickle machine reads the file as the content that went in."""
    content = {"data": ARRAY, "labels": [0, 1, 256, 70_000], "batch_label": "x" * 300}
    read = pickle.load(io.BytesIO(cifar_files.pickled(content)), encoding="latin1")
    np.testing.assert_array_equal(read.pop("data"), ARRAY)
    assert read == {"labels": content["labels"], "batch_label": content["batch_label"]}

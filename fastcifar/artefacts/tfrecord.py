"""TFRecords of `tf.train.Example`, and the index that DALI reads them by; written and read without TensorFlow.

A record (https://www.tensorflow.org/tutorials/load_data/tfrecord): uint64 bytes of the payload, uint32 masked CRC-32C
of these 8 bytes, the payload, uint32 masked CRC-32C of the payload; all little-endian. The payload is an `Example`, a
protocol buffer (https://protobuf.dev/programming-guides/encoding/) with the features `image` (raw bytes, h * w * 3),
`index`, `label` (int64) and `shape` (int64: h, w, 3), in this order. Records whose label and index take equally many
bytes differ in nothing but pixels, index, label and CRC, so they are stamped from one template, thousands at a time.

The index has a line "offset bytes" for each record, as DALI's `tfrecord2idx` writes it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from crc32c import crc32c

from fastcifar.artefacts.content import MAX_CHUNK_IMAGES, Block, Content
from fastcifar.artefacts.index import Part, file_names
from fastcifar.data.errors import quote, refuse
from fastcifar.data.files import CHUNK_BYTES, check_size, open_plain, read_at, size_of

_FRAME_BYTES = 12  # before the payload; 4 follow it
_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True)
class _Template:
    """A record with zeros where images differ."""

    record_b: np.ndarray
    image: slice
    index: slice
    label: slice
    crc: slice

    def stamp(self, pixels_nb: np.ndarray, indices_n: np.ndarray, labels_n: np.ndarray) -> np.ndarray:
        """The records of these images: uint8 [m, bytes a record]."""
        records_nb = np.empty((len(pixels_nb), len(self.record_b)), np.uint8)
        records_nb[:, : self.image.start] = self.record_b[: self.image.start]
        records_nb[:, self.image] = pixels_nb
        records_nb[:, self.image.stop :] = self.record_b[self.image.stop :]
        records_nb[:, self.index] = _varints(indices_n, self.index.stop - self.index.start)
        records_nb[:, self.label] = _varints(labels_n, self.label.stop - self.label.start)
        records_nb[:, self.crc] = self.crcs(records_nb)
        return records_nb

    def crcs(self, records_nb: np.ndarray) -> np.ndarray:
        """The masked CRC-32C of each payload, as bytes: uint8 [m, 4]."""
        payloads_nb = records_nb[:, _FRAME_BYTES : self.crc.start]
        crcs_n = np.fromiter(map(crc32c, payloads_nb), np.uint32, len(payloads_nb))
        return _masked(crcs_n).astype("<u4").view(np.uint8).reshape(-1, 4)


def blocks(content: Content, part: str) -> Iterator[Block]:
    """The bytes of a part's records, then of its index."""
    records, index = file_names("dali", part)
    for first, last in _ranges(content.count, content.image_bytes):
        pixels_nb, labels_n = content.pixels(first, last), content.labels(first, last)
        yield Block(records, [_stamp(pixels_nb, first, labels_n, content.height, content.width)], first, last)
    position = 0
    for first, last in _ranges(content.count, 1):
        sizes_n = _sizes(first, content.labels(first, last), content.height, content.width)
        yield Block(index, [_index_lines(position, sizes_n)])
        position += int(sizes_n.sum())


def chunks(folder: Path, part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images, uint8 [m, bytes an image], and labels, int64 [m], of a part, chunk by chunk.

    `DataError` on a record of another form, a wrong CRC, and an index that does not name the records.
    """
    path, index_path = (folder / file.name for file in part.files)
    with open_plain(path) as file, open_plain(index_path) as index_file:
        _check_size(file, path, part)
        position = index_position = 0
        for first, last in _ranges(part.count, part.shape[0] * part.shape[1] * 3):
            templates = _templates_by_size(part, first)
            data_b, sizes_n = _read_records(file, path, position, first, last, templates)
            yield _parse(path, data_b, first, sizes_n, templates)
            lines = _index_lines(position, sizes_n)
            if read_at(index_file, index_path, index_position, len(lines)) != lines:
                raise refuse(index_path, f"does not name images {first} to {last - 1}", "the places of the records")
            position += len(data_b)
            index_position += len(lines)
        check_size(file, path, position)
        check_size(index_file, index_path, index_position)


def check(folder: Path, part: Part) -> None:
    """`DataError` unless both files have their sizes and the index names records of possible sizes, end to end.

    Reads no record: `chunks` checks those.
    """
    path, index_path = (folder / file.name for file in part.files)
    with open_plain(path) as file, open_plain(index_path) as index_file:
        _check_size(file, path, part)
        check_size(index_file, index_path, part.files[1].bytes)
        text = bytes(read_at(index_file, index_path, 0, size_of(index_file)))
        file_bytes = size_of(file)
    lines = text.splitlines()
    if len(lines) != part.count:
        raise refuse(index_path, f"names {len(lines):,} records", f"{part.count:,}")
    position = 0
    for first, last in _ranges(part.count, 1):
        possible = _templates_by_size(part, first)
        for number, line in enumerate(lines[first:last], first):
            offset, _, size = line.partition(b" ")
            if offset != b"%d" % position or not size.isdigit() or len(size) > 18 or int(size) not in possible:
                expected = f"{position} {' or '.join(map(str, sorted(possible)))}"
                raise refuse(index_path, f"line {number + 1} is {quote(line)}", expected)
            position += int(size)
    if position != file_bytes:
        raise refuse(path, f"has {file_bytes:,} bytes", f"{position:,}, as {index_path.name} says")


def _check_size(file: BinaryIO, path: Path, part: Part) -> None:
    """`DataError` unless the file has the bytes that the index says, and those are enough for its pixels."""
    check_size(file, path, part.files[0].bytes)
    pixel_bytes = part.count * part.shape[0] * part.shape[1] * 3
    if size_of(file) < pixel_bytes:
        raise refuse(path, f"has {size_of(file):,} bytes", f"more than the {pixel_bytes:,} of its pixels")


# Layout


def _varint_length(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def _varint(value: int) -> bytes:
    return _varints(np.array([value]), _varint_length(value)).tobytes()


def _varints(values_n: np.ndarray, length: int) -> np.ndarray:
    """Each value 7 bits a byte, the lowest first, the top bit of all but the last set: uint8 [m, length]."""
    out_nb = np.empty((len(values_n), length), np.uint8)
    for place in range(length):
        out_nb[:, place] = (values_n >> (7 * place)) & 0x7F | (0x80 if place < length - 1 else 0)
    return out_nb


def _numbers(varints_nb: np.ndarray) -> np.ndarray:
    """The inverse of `_varints`, whose top bits are not looked at: int64 [m]."""
    shifts = np.arange(varints_nb.shape[1], dtype=np.int64) * 7
    return ((varints_nb & 0x7F).astype(np.int64) << shifts).sum(axis=1)


def _masked(crc: np.ndarray) -> np.ndarray:
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK_DELTA)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _feature(name: bytes, kind: int, payload: bytes) -> bytes:
    """An entry of the map in `Features`: the name, and a `Feature` of kind 1 (bytes) or 3 (int64, packed)."""
    return _field(1, _field(1, name) + _field(2, _field(kind, _field(1, payload))))


@lru_cache(maxsize=64)
def _template(height: int, width: int, index_bytes: int, label_bytes: int) -> _Template:
    image_bytes = height * width * 3
    image = _feature(b"image", 1, bytes(image_bytes))
    index = _feature(b"index", 3, bytes(index_bytes))
    label = _feature(b"label", 3, bytes(label_bytes))
    shape = _feature(b"shape", 3, _varint(height) + _varint(width) + _varint(3))
    payload = _field(1, image + index + label + shape)
    length = struct.pack("<Q", len(payload))
    length_crc = _masked(np.array([crc32c(length)], np.uint32)).astype("<u4").tobytes()
    record = length + length_crc + payload + bytes(4)
    # A feature's value is its last part, so it ends where the feature ends.
    label_end = len(record) - 4 - len(shape)
    index_end = label_end - len(label)
    image_end = index_end - len(index)
    return _Template(
        np.frombuffer(record, np.uint8),
        slice(image_end - image_bytes, image_end),
        slice(index_end - index_bytes, index_end),
        slice(label_end - label_bytes, label_end),
        slice(len(record) - 4, len(record)),
    )


def _ranges(count: int, image_bytes: int) -> Iterator[tuple[int, int]]:
    """Chunks (first, last) in which all indices take equally many bytes."""
    step = min(MAX_CHUNK_IMAGES, max(1, CHUNK_BYTES // image_bytes))
    first = 0
    while first < count:
        last = min(first + step, count, 1 << 7 * _varint_length(first))
        yield first, last
        first = last


def _label_lengths(labels_n: np.ndarray) -> np.ndarray:
    """Bytes of each label as a varint: int64 [m]."""
    lengths_n = np.ones(len(labels_n), np.int64)
    while (more_n := labels_n >> (7 * lengths_n)).any():
        lengths_n += more_n > 0
    return lengths_n


def _sizes(first: int, labels_n: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bytes of the records of these labels, of images from `first` on: int64 [m]."""
    lengths_n = _label_lengths(labels_n)
    index_bytes = _varint_length(first)
    of_length = [len(_template(height, width, index_bytes, max(1, n)).record_b) for n in range(lengths_n.max() + 1)]
    return np.array(of_length)[lengths_n]


def _templates_by_size(part: Part, first: int) -> dict[int, _Template]:
    """All that a part's records from `first` on may be, by their bytes."""
    height, width = part.shape[:2]
    index_bytes, most = _varint_length(first), _varint_length(len(part.label_counts) - 1)
    templates = (_template(height, width, index_bytes, label_bytes) for label_bytes in range(1, most + 1))
    return {len(template.record_b): template for template in templates}


def _index_lines(position: int, sizes_n: np.ndarray) -> bytes:
    starts = position + np.concatenate([[0], np.cumsum(sizes_n[:-1])])
    pairs = zip(starts.tolist(), sizes_n.tolist(), strict=True)
    return "".join([f"{start} {size}\n" for start, size in pairs]).encode()


# Records


def _stamp(pixels_nb: np.ndarray, first: int, labels_n: np.ndarray, height: int, width: int) -> np.ndarray:
    """The records of these images, one after the other."""
    indices_n = np.arange(first, first + len(labels_n))
    lengths_n = _label_lengths(labels_n)
    index_bytes = _varint_length(first)
    if lengths_n.min() == lengths_n.max():
        return _template(height, width, index_bytes, int(lengths_n[0])).stamp(pixels_nb, indices_n, labels_n)
    sizes_n = _sizes(first, labels_n, height, width)
    starts_n = np.cumsum(sizes_n) - sizes_n
    out_b = np.empty(int(sizes_n.sum()), np.uint8)
    for length in np.unique(lengths_n).tolist():
        rows = np.flatnonzero(lengths_n == length)
        template = _template(height, width, index_bytes, length)
        records_nb = template.stamp(pixels_nb[rows], indices_n[rows], labels_n[rows])
        for start, record_b in zip(starts_n[rows].tolist(), records_nb, strict=True):
            out_b[start : start + len(record_b)] = record_b
    return out_b


def _read_records(
    file: BinaryIO, path: Path, position: int, first: int, last: int, possible: dict[int, _Template]
) -> tuple[np.ndarray, np.ndarray]:
    """The records of images first to last - 1, from `position` on: uint8 [bytes], and the bytes of each, int64 [m]."""
    num_bytes = min(max(possible) * (last - first), size_of(file) - position)
    data = read_at(file, path, position, max(0, num_bytes))
    sizes, at = [], 0
    for number in range(first, last):
        if at + _FRAME_BYTES > len(data):
            raise refuse(path, f"ends before image {number}", f"{last:,} images at least")
        size = struct.unpack_from("<Q", data, at)[0] + _FRAME_BYTES + 4
        if size not in possible:
            expected = " or ".join(str(n - _FRAME_BYTES - 4) for n in sorted(possible))
            raise refuse(path, f"the record of image {number} has {size - _FRAME_BYTES - 4} bytes", expected)
        sizes.append(size)
        at += size
    if at > len(data):
        raise refuse(path, f"ends within image {last - 1}", "a whole record")
    return np.frombuffer(data, np.uint8, at), np.array(sizes, np.int64)


def _parse(
    path: Path, data_b: np.ndarray, first: int, sizes_n: np.ndarray, templates: dict[int, _Template]
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the records in `data_b`, which has them all and nothing else."""
    indices_n = np.arange(first, first + len(sizes_n))
    kinds = np.unique(sizes_n).tolist()
    if len(kinds) == 1:
        return _unstamp(path, data_b.reshape(-1, kinds[0]), indices_n, templates[kinds[0]])
    starts_n = np.cumsum(sizes_n) - sizes_n
    image = templates[kinds[0]].image
    pixels_nb = np.empty((len(sizes_n), image.stop - image.start), np.uint8)
    labels_n = np.empty(len(sizes_n), np.int64)
    for size in kinds:
        rows = np.flatnonzero(sizes_n == size)
        records_nb = np.stack([data_b[start : start + size] for start in starts_n[rows].tolist()])
        pixels_nb[rows], labels_n[rows] = _unstamp(path, records_nb, indices_n[rows], templates[size])
    return pixels_nb, labels_n


def _unstamp(
    path: Path, records_nb: np.ndarray, indices_n: np.ndarray, template: _Template
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of records of one size; `DataError` unless the records are what would be written for them."""

    def check_all(wrong_n: np.ndarray, found: str, expected: str) -> None:
        if wrong_n.any():
            raise refuse(path, f"the record of image {indices_n[int(wrong_n.argmax())]} {found}", expected)

    before, after = slice(0, template.image.start), slice(template.image.stop, template.crc.start)
    labels_n = _numbers(records_nb[:, template.label])
    tails_nb = np.repeat(template.record_b[None, after], len(records_nb), axis=0)
    for place, numbers_n in ((template.index, indices_n), (template.label, labels_n)):
        columns = slice(place.start - after.start, place.stop - after.start)
        tails_nb[:, columns] = _varints(numbers_n, place.stop - place.start)
    check_all((records_nb[:, template.crc] != template.crcs(records_nb)).any(axis=1), "is damaged", "its CRC-32C")
    check_all((records_nb[:, before] != template.record_b[before]).any(axis=1), "begins in another form", "our own")
    check_all((records_nb[:, after] != tails_nb).any(axis=1), "ends in another form or has another index", "our own")
    return np.ascontiguousarray(records_nb[:, template.image]), labels_n

"""From a data set to an artefact on disk: in one pass, in flat memory, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import numpy as np

from fastcifar.artefacts import folder as folders
from fastcifar.artefacts import index as indexes
from fastcifar.artefacts.content import Content, Summary
from fastcifar.artefacts.formats import module_of
from fastcifar.artefacts.index import File, Index, Part, dumps
from fastcifar.claims import claimed
from fastcifar.data import DataError, Dataset, Split
from fastcifar.data.errors import refuse

Progress = Callable[[int, int], None]
"""Called as (images done, images in all)."""
_MAX_WAITING = 4  # blocks, of 2 MB, handed to the threads and not yet done
_FORGET_EVERY = 4
_FLUSH_EVERY = 32
_KEPT_BYTES = 1 << 29
"""Bytes of a file that stay in the system's cache. CIFAR's are read again at once; of a larger file each page would be
one more that the system has to find and clear, which takes longer than the writing (bench/LOG.md)."""


def convert(
    dataset: Dataset,
    to: str,
    dest: str | Path,
    *,
    fingerprint: str = "",
    copies: int = 1,
    on_progress: Progress | None = None,
) -> Path:
    """Writes `dataset` as an artefact into the folder `dest`, and returns that folder.

    to: "ffcv", "dali" or "npy". fingerprint: of where the data came from, kept in the index. copies: write each part
    so many times over, as one larger part. The same input gives the same bytes, on any machine.

    An artefact that is there is replaced at the end: a process that dies before leaves it as it was. Memory does not
    grow with the data set, whose images may be an `np.memmap`. `ValueError` on a wrong setting; `DataError` where the
    data set is empty, `dest` holds something else or cannot be written, or another process is writing it.
    """
    module_of(to)
    if type(copies) is not int or copies < 1:
        raise ValueError(f"copies: got {copies!r}, takes a whole number above 0")
    dest = real_path(dest)
    with claimed(dest, wait=False):
        write(dataset, to, dest, fingerprint=fingerprint, copies=copies, on_progress=on_progress)
    return dest


def real_path(dest: str | Path) -> Path:
    """`dest` without links, so that what is replaced is the folder and what is beside it lies on the same disk."""
    path = Path(os.path.realpath(dest))
    if not path.name:
        raise refuse(path, "is no place for an artefact", "a folder of its own")
    return path


def write(
    dataset: Dataset, to: str, dest: Path, *, fingerprint: str, copies: int = 1, on_progress: Progress | None = None
) -> None:
    """As `convert`, for a caller that has claimed `dest`."""
    contents = {name: Content(split, copies) for name, split in _parts(dataset).items()}
    _check_size_px(dataset, to)
    num_images = sum(content.count for content in contents.values())
    _check_room(dest, num_images * (contents["train"].image_bytes + 256) + (1 << 24))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if on_progress:
            on_progress(done, num_images)

    try:
        with folders.replacing(dest) as new:
            with _Writer(new, advance) as writer:
                train, summary = writer.part("train", contents["train"], to)
                test, _ = writer.part("test", contents["test"], to)
                writer.flush()
            mean, std = summary.mean_std()
            index = Index(
                new,
                to,
                dataset.name,
                dataset.class_names,
                Path(dataset.train.source).name,  # the same bytes wherever it lies
                f"{fingerprint} x{copies}" if fingerprint and copies > 1 else fingerprint,
                _tool(),
                mean,
                std,
                train,
                test,
            )
            with open(new / indexes.NAME, "xb") as file:
                file.write(dumps(index))
                file.flush()
                settle_times(index)
                os.fsync(file.fileno())
    except OSError as error:
        raise refuse(dest, f"cannot be written ({error.strerror or error})", "room and leave to write") from error


def settle_times(index: Index) -> None:
    """Give all files of an artefact one time of change, so that a later change of any of them shows."""
    now = time.time_ns()
    for name in (*(file.name for file in index.files), indexes.NAME):
        os.utime(index.path / name, ns=(now, now))


def _tool() -> str:
    from fastcifar import __version__

    return f"fastcifar {__version__}"


def _parts(dataset: Dataset) -> dict[str, Split]:
    parts = {"train": dataset.train, "test": dataset.test}
    for name, split in parts.items():
        if not split.images_nhwc.size:
            raise DataError(f"{split.source} ({name}): holds no pixels; expected at least one image")
    return parts


def _check_size_px(dataset: Dataset, to: str) -> None:
    height, width = dataset.train.images_nhwc.shape[1:3]
    if max(height, width) > indexes.MAX_SIDE_PX:
        raise ValueError(f"image size: got {height}x{width}, takes sides up to {indexes.MAX_SIDE_PX:,}")
    if to == "ffcv":
        from fastcifar.artefacts.beton import check_size_px

        check_size_px(height, width)


def _check_room(dest: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(dest.parent).free
    if free < num_bytes:
        raise refuse(dest, f"{free / 1e6:,.0f} MB are free on its disk", f"{num_bytes / 1e6:,.0f} MB")


class _Writer:
    """Writes the files of an artefact, all but its index. Use as a context manager: leaving it early stops its threads.

    The caller's thread lays out bytes, a second one writes and hashes them, a third one hashes and counts pixels, and a
    fourth waits for the disk to have what is whole.
    """

    def __init__(self, folder: Path, advance: Callable[[int], None]) -> None:
        self._folder = folder
        self._advance = advance
        self._files, self._stack = ExitStack(), ExitStack()
        self._waiting: deque[tuple[int, list[Future]]] = deque()
        self._flushed: list[Future] = []

    def __enter__(self) -> _Writer:
        # Left in the opposite order: no file is closed while a thread may write it.
        self._stack.enter_context(self._files)
        names = ("fastcifar-write", "fastcifar-count", "fastcifar-flush")
        self._writing, self._counting, self._flushing = (
            self._stack.enter_context(ThreadPoolExecutor(1, name)) for name in names
        )
        self._stack.callback(self._cancel)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def part(self, name: str, content: Content, to: str) -> tuple[Part, Summary]:
        """Write a part's files; they are on the disk after `flush`."""
        summary = Summary(content.count, content.height, content.width, content.class_names)
        files = []
        for file_name, blocks in groupby(module_of(to).blocks(content, name), key=lambda block: block.file):
            file = self._files.enter_context(_File(self._folder / file_name))
            for number, block in enumerate(blocks, 1):
                jobs = [self._writing.submit(file.append, block.data)]
                if block.last:
                    pixels_nb, labels_n = (rows(block.first, block.last) for rows in (content.pixels, content.labels))
                    jobs.append(self._counting.submit(summary.add, pixels_nb, labels_n, moments=name == "train"))
                self._waiting.append((block.last - block.first, jobs))
                self._wait(_MAX_WAITING)
                # Or else a larger set would keep more of a mapped source in memory, and more bytes off the disk.
                if number % _FORGET_EVERY == 0:
                    content.forget()
                if number % _FLUSH_EVERY == 0:
                    self._flushed.append(self._flushing.submit(file.flush))
            self._wait(0)
            files.append(File(file_name, file.num_bytes, file.digest.hexdigest()))
            self._flushed.append(self._flushing.submit(file.flush))
        shape = (content.height, content.width, 3)
        label_counts = tuple(summary.label_counts_n.tolist())
        return Part(content.count, shape, summary.sha256(), label_counts, tuple(files)), summary

    def flush(self) -> None:
        """Wait until the disk has everything."""
        for future in self._flushed:
            future.result()

    def _wait(self, most: int) -> None:
        """Wait until no more than `most` blocks are not yet written and counted."""
        while len(self._waiting) > most:
            num_images, jobs = self._waiting.popleft()
            for job in jobs:
                job.result()
            if num_images:
                self._advance(num_images)

    def _cancel(self) -> None:
        for job in [*self._flushed, *(job for _, jobs in self._waiting for job in jobs)]:
            job.cancel()


class _File:
    """A file that grows, and the digest of what is in it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def append(self, buffers: Sequence[bytes | np.ndarray]) -> None:
        for buffer in buffers:
            view = buffer.reshape(-1).view(np.uint8).data if isinstance(buffer, np.ndarray) else memoryview(buffer)
            self.digest.update(view)
            self.num_bytes += len(view)
            while len(view):
                view = view[os.write(self._descriptor, view) :]

    def flush(self) -> None:
        """Wait until the disk has what was appended; beyond some length, have the system's cache forget it."""
        num_bytes = self.num_bytes
        os.fsync(self._descriptor)
        if num_bytes > _KEPT_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, _KEPT_BYTES, num_bytes - _KEPT_BYTES, os.POSIX_FADV_DONTNEED)

"""Finds a data set: where the user says, in the usual places, on the original site, or drawn."""

from __future__ import annotations

import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastcifar.data import cifar, files
from fastcifar.data.download import ARCHIVES, Progress
from fastcifar.data.download import download as fetch
from fastcifar.data.errors import DataError, refuse
from fastcifar.data.split import Dataset
from fastcifar.data.tar import A_FILE, find_folder

DATASETS = ("auto", "cifar10", "cifar100", "shapes10")
_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
# Goes into every fingerprint: raise it when the readers come to mean something else by the same bytes.
_READER_VERSION = 1


@dataclass(frozen=True)
class Source:
    """A data set that was found and is not yet read."""

    dataset: str
    """"cifar10", "cifar100" or "shapes10"."""
    path: Path | None
    """The folder with the files, or the archive; None where the set is drawn."""
    layout: str
    """"python", "binary", "tar" or "drawn"."""
    note: str = ""
    """Why it is the stand-in: what was looked for and what went wrong. Empty where the set was what was asked for."""

    def fingerprint(self) -> str:
        """Hex SHA-256 that changes with any byte of the files, or with the generator's version.

        The path does not count. Reads the files, about 0.2 s for CIFAR-10; `DataError` when one is missing.
        """
        if self.path is None:
            from fastcifar.data.shapes10 import VERSION

            return hashlib.sha256(f"shapes10 version {VERSION}".encode()).hexdigest()
        if self.layout == "tar":
            names, paths = ["archive"], [self.path]
        else:
            names = list(_layout(self.dataset, self.layout).files)
            paths = [self.path / name for name in names]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(partial(files.sha256, expected=A_FILE), paths))
        head = f"fastcifar {_READER_VERSION} {self.dataset} {self.layout}\n"
        lines = "".join(f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True))
        return hashlib.sha256((head + lines).encode()).hexdigest()

    def load(self) -> Dataset:
        """Reads and checks all of it; `DataError` names the file, what was found and what was expected."""
        if self.path is None:
            from fastcifar.data import shapes10

            return shapes10.load()
        if self.layout != "tar":
            return cifar.read(_layout(self.dataset, self.layout), self.path)
        known = {layout.folder: layout for layout in cifar.LAYOUTS if layout.dataset == self.dataset}
        folder = find_folder(self.path, known)
        if folder is None:
            raise refuse(self.path, f"holds no {_TITLES[self.dataset]}", f"the folder {' or '.join(known)} in it")
        return cifar.read(known[folder], self.path)


def load(dataset: str = "auto", data: Path | None = None) -> Dataset:
    """Finds and reads a data set: `locate(dataset, data).load()`."""
    return locate(dataset, data).load()


def cache_dir() -> Path:
    """Where fastcifar keeps what it can make again: `$XDG_CACHE_HOME/fastcifar`, by default `~/.cache/fastcifar`.

    https://specifications.freedesktop.org/basedir-spec/latest/
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "fastcifar"
    try:
        return Path.home() / ".cache" / "fastcifar"
    except RuntimeError:  # no HOME and no entry in the user database, as in some containers
        return Path(tempfile.gettempdir()) / f"fastcifar-{os.getuid()}"


def locate(
    dataset: str = "auto",
    data: Path | None = None,
    *,
    download: bool = True,
    on_progress: Progress | None = None,
) -> Source:
    """Finds a data set, without reading it.

    Looks at `data`, `$FASTCIFAR_DATA`, `./data` and `cache_dir()`, then downloads into the last. Each may be the folder
    with the files, the `.tar.gz`, or a folder that holds either. `data` and `$FASTCIFAR_DATA` are what the user asked
    for: where they are given, the set must be there. `dataset` is "cifar10", "cifar100", "shapes10" (always drawn) or
    "auto": CIFAR-10, or what `data` or `$FASTCIFAR_DATA` holds, or else shapes10, with the reason in `Source.note`.
    `DataError` when a set that was asked for is not to be had, with the three ways to supply it; `ValueError` for
    another `dataset`, and for `data` with shapes10.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset: got {dataset!r}, takes one of {', '.join(DATASETS)}")
    if dataset == "shapes10":
        if data is not None:
            raise ValueError(f"--data: got {data}, takes nothing with --dataset shapes10, which is drawn")
        return Source("shapes10", None, "drawn")
    asked, setting = (Path(data), "") if data is not None else (_environment_path(), "$FASTCIFAR_DATA ")
    if asked is not None:
        found = find(asked, ("cifar10", "cifar100") if dataset == "auto" else (dataset,))
        if found is None:
            title = _TITLES.get(dataset, "CIFAR-10")
            why = "holds none" if os.path.exists(asked) else "is not there or may not be read"
            expected = f"{_names(dataset)}, or a folder that holds one"
            raise DataError(f"{setting}{asked}: {why}; expected {title} as {expected}")
        return found
    wanted = "cifar10" if dataset == "auto" else dataset
    for place in (Path("data"), cache_dir()):
        if os.path.isdir(place) and (found := find(place, (wanted,))) is not None:
            return found
    problem = "not downloaded: downloads are off"
    if download:
        try:
            return Source(wanted, fetch(ARCHIVES[wanted], cache_dir(), on_progress=on_progress), "tar")
        except DataError as error:
            problem = f"not downloaded: {error}"
    missing = f"no {_TITLES[wanted]} in {Path('data').absolute()} or {cache_dir()}; {problem}"
    if dataset == "auto":
        return Source("shapes10", None, "drawn", missing)
    archive = ARCHIVES[wanted]
    raise DataError(
        f"{missing}. To supply it: (1) --data PATH or FASTCIFAR_DATA=PATH, naming {_names(wanted)} or a folder that "
        f"holds one; (2) put one of these into ./data; (3) fetch {archive.url} on a machine with a network and put it "
        f"into {cache_dir()}"
    )


def find(place: Path, datasets: tuple[str, ...]) -> Source | None:
    """The first of `datasets` at `place`: the folder itself, the archive itself, or a folder that holds either.

    A set with all of its files there comes before one that lacks some; one that lacks some is still found, so that
    reading it can say what is missing.
    """
    if os.path.isfile(place):
        return _find_archive(place, datasets)
    layouts = [layout for dataset in datasets for layout in cifar.LAYOUTS if layout.dataset == dataset]
    folders = [(place / name, layout) for layout in layouts for name in ("", layout.folder)]
    partly = [(folder, layout, _count_files(folder, layout)) for folder, layout in folders]
    for folder, layout, num_files in partly:
        if num_files == len(layout.files):
            return Source(layout.dataset, folder, layout.kind)
    for layout in layouts:
        if os.path.isfile(place / layout.archive):
            return Source(layout.dataset, place / layout.archive, "tar")
    for folder, layout, num_files in partly:
        if num_files or (folder.name == layout.folder and os.path.isdir(folder)):
            return Source(layout.dataset, folder, layout.kind)
    return None


def _find_archive(path: Path, datasets: tuple[str, ...]) -> Source | None:
    known = {layout.folder: layout.dataset for layout in cifar.LAYOUTS if layout.dataset in datasets}
    folder = find_folder(path, known)  # DataError for a file that is no .tar.gz
    return Source(known[folder], path, "tar") if folder is not None else None


def _count_files(folder: Path, layout: cifar.Layout) -> int:
    return sum(os.path.isfile(folder / name) for name in layout.files)


def _environment_path() -> Path | None:
    text = os.environ.get("FASTCIFAR_DATA", "")
    return Path(text).expanduser() if text else None


def _names(dataset: str) -> str:
    wanted = "cifar10" if dataset == "auto" else dataset
    layouts = [layout for layout in cifar.LAYOUTS if layout.dataset == wanted]
    return " or ".join([*(layout.folder for layout in layouts), *(layout.archive for layout in layouts)])


def _layout(dataset: str, kind: str) -> cifar.Layout:
    return next(layout for layout in cifar.LAYOUTS if (layout.dataset, layout.kind) == (dataset, kind))

"""Unlabelled images as competitions hand them out: a pickle, a .npy file, or a folder of PNGs."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from fastcifar.data.errors import quote, refuse
from fastcifar.data.unpickle import unpickle
from fastcifar.evaluation.image_files import SUFFIXES, image_names, read_images

_LAYOUTS = "uint8 [n, 3072] (planes of red, green, blue) or uint8 [n, 32, 32, 3]"


@dataclass(frozen=True)
class Unlabelled:
    """Images in the order in which they came, and their ids."""

    images_nhwc: np.ndarray
    """uint8 [n, 32, 32, 3]."""
    ids_n: np.ndarray | None
    """int64 [n], no two alike, 0 at least; None where the input has none."""


def read(path: Path, *, resize: bool = False) -> Unlabelled:
    """Read what is at `path`. `DataError` names the file, what was found and what was expected.

    A pickle of `data` and perhaps `ids`, read without running anything in it; a `.npy` of the images; or a folder of
    PNG (or JPEG) files in natural order, whose names are the ids where they are numbers.
    """
    if path.is_dir():
        return _read_folder(path, resize)
    if not path.is_file():
        raise refuse(path, "is not there", "a pickle, a .npy file or a folder of PNG files")
    if path.suffix.lower() in SUFFIXES:
        raise refuse(path, "is one picture", "a folder of them")
    if path.suffix == ".npz":
        raise refuse(path, "is an archive of arrays", f"one of them as a .npy file: {_LAYOUTS}")
    if path.suffix == ".npy":
        return Unlabelled(_to_nhwc(str(path), _read_npy(path)), None)
    return _read_pickle(path)


def _read_pickle(path: Path) -> Unlabelled:
    content = unpickle(path.read_bytes(), str(path), dtypes=("uint8", "int64", "int32", "float32", "float64"))
    if "data" not in content:
        held = quote(", ".join(content)) if content else "nothing"
        raise refuse(path, f"holds {held}", "the key 'data', and perhaps 'ids'")
    pixels = content["data"]
    if not isinstance(pixels, np.ndarray):
        raise refuse(path, f"data is {quote(pixels)}", f"an array {_LAYOUTS}")
    images_nhwc = _to_nhwc(f"{path}: data", pixels)
    if content.get("ids") is None:
        return Unlabelled(images_nhwc, None)
    return Unlabelled(images_nhwc, _checked_ids(path, content["ids"], len(images_nhwc)))


def _read_npy(path: Path) -> np.ndarray:
    try:
        # Mapped, so that a header cannot ask for more memory than the file has bytes.
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OverflowError, SyntaxError, TokenError, MemoryError, RecursionError):
        # NumPy parses the header as Python's literals, and says what a parser says.
        raise refuse(path, "cannot be read (NumPy makes nothing of its header)", f"a .npy file of {_LAYOUTS}") from None


def _read_folder(path: Path, resize: bool) -> Unlabelled:
    if (path / "test_batch").is_file():
        raise refuse(path, "is a CIFAR folder", f"one of its pickles, such as {path / 'test_batch'}")
    names = image_names(path)
    stems = [name.rpartition(".")[0] for name in names]
    numbered = [stem.isascii() and stem.isdigit() for stem in stems]
    if any(numbered) and not all(numbered):
        raise refuse(path / names[numbered.index(False)], "has no number for a name, others have", "all, or none")
    ids_n = None
    if all(numbered):
        ids_n = _checked_ids(path, [int(stem) for stem in stems], len(names))
    return Unlabelled(read_images([path / name for name in names], (32, 32), resize=resize), ids_n)


def _to_nhwc(what: str, pixels: np.ndarray) -> np.ndarray:
    shape = pixels.shape
    planar = len(shape) == 2 and shape[1] == 3072
    if pixels.dtype != np.uint8 or not (planar or (len(shape) == 4 and shape[1:] == (32, 32, 3))):
        raise refuse(what, f"is {pixels.dtype} {list(shape)}", _LAYOUTS)
    if not len(pixels):
        raise refuse(what, "holds no images", "one at least")
    images_nhwc = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) if planar else pixels
    return np.ascontiguousarray(images_nhwc)


def _checked_ids(path: Path, ids: Any, num: int) -> np.ndarray:
    expected = f"{num:,} whole numbers, 0 or above, one an image"
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise refuse(path, f"ids are {ids.dtype} {list(ids.shape)}", expected)
        ids = ids.tolist()
    if type(ids) not in (list, tuple):
        raise refuse(path, f"ids are {quote(ids)}", expected)
    strange = next((value for value in ids if type(value) is not int), None)
    if strange is not None or None in ids:
        raise refuse(path, f"ids hold {quote(strange)}", expected)
    if len(ids) != num:
        raise refuse(path, f"{len(ids):,} ids for {num:,} images", "one each")
    wrong = next((value for value in ids if not 0 <= value < 2**63), None)
    if wrong is not None:
        raise refuse(path, f"ids hold {quote(wrong)}", expected)
    repeated = next((value for value, count in Counter(ids).items() if count > 1), None)
    if repeated is not None:
        raise refuse(path, f"the id {repeated} is there twice", "each once")
    return np.array(ids, np.int64)

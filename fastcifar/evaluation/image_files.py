"""PNG and JPEG files into arrays: one size, three channels, or one line that says which file is otherwise."""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastcifar.data import DataError, Split
from fastcifar.data.errors import refuse

SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = ("RGB", "L", "P", "1", "RGBA", "LA")


def read_image_folder(
    folder: Path, class_names: Sequence[str], size_px: tuple[int, int], *, resize: bool = False
) -> tuple[Split, list[str]]:
    """A folder with a subfolder of PNG or JPEG files for each class: the images by class and name, and their names.

    Every subfolder must be one of `class_names`; not every class needs to have one. Images must be `size_px` (height,
    width) or, with `resize`, are scaled to it. `DataError` names the file, what was found and what was expected.
    """
    subfolders = sorted(name for name in _visible(folder) if (folder / name).is_dir())
    stray = [name for name in _visible(folder) if not (folder / name).is_dir()]
    classes = ", ".join(class_names)
    if stray or not subfolders:
        raise refuse(
            folder, f"holds the file {stray[0]}" if stray else "holds no folder", f"one folder a class: {classes}"
        )
    strange = [name for name in subfolders if name not in class_names]
    if strange:
        raise refuse(folder / strange[0], "is no class of the run", f"folders named {classes}")
    names, labels = [], []
    for label, class_name in enumerate(class_names):
        if class_name in subfolders:
            found = image_names(folder / class_name)
            names += [f"{class_name}/{name}" for name in found]
            labels += [label] * len(found)
    images_nhwc = read_images([folder / name for name in names], size_px, resize=resize)
    labels_n = np.array(labels, np.int64)
    return Split(images_nhwc, labels_n, tuple(class_names), folder.name, "images", str(folder)), names


def image_names(folder: Path) -> list[str]:
    """Names of a folder's images in natural order (2.png before 10.png); `DataError` for any other file, or none."""
    names = _visible(folder)
    takes = "/".join(suffix[1:].upper() for suffix in SUFFIXES if suffix != ".jpeg")
    strange = [name for name in names if not name.lower().endswith(SUFFIXES) or not (folder / name).is_file()]
    if strange:
        raise refuse(folder / strange[0], "is no image", f"nothing but {takes} files")
    if not names:
        raise refuse(folder, "holds no files", f"{takes} files")
    return sorted(names, key=natural_key)


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts runs of digits by their number; the name itself breaks ties such as 1.png and 01.png."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(p), "") if p.isdecimal() and p.isascii() else (1, 0, p) for p in pieces], name


def read_images(paths: Sequence[Path], size_px: tuple[int, int], *, resize: bool = False) -> np.ndarray:
    """The images as uint8 [n, h, w, 3]; `DataError` for one of another size without `resize`, or of another kind."""
    height, width = size_px
    images_nhwc = np.empty((len(paths), height, width, 3), np.uint8)
    for place, path in enumerate(paths):
        images_nhwc[place] = _read(path, size_px, resize)
    return images_nhwc


def _read(path: Path, size_px: tuple[int, int], resize: bool) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    height, width = size_px
    try:
        # From memory: of a file, Pillow would take room for as many bytes as a damaged length says.
        with Image.open(io.BytesIO(path.read_bytes()), formats=("PNG", "JPEG")) as image:
            if image.size != (width, height) and not resize:
                found = f"is {image.height} x {image.width} pixels"
                raise refuse(path, found, f"{height} x {width}, or --resize to scale it")
            if image.mode not in _MODES:
                raise refuse(path, f"has pixels of kind {image.mode}", "8-bit grey or colour")
            if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise refuse(path, "is transparent in places", "an image without transparency")
            coloured = image.convert("RGB")
            if coloured.size != (width, height):
                coloured = coloured.resize((width, height), Image.Resampling.BICUBIC)
            return np.asarray(coloured)
    except DataError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        # Pillow names the object that it was given, which says nothing here.
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise refuse(path, f"cannot be read as an image{why}", "a whole PNG or JPEG file") from None


def _visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))

"""Which libraries a pipeline needs, whether they are here, and what to say where they are not. Imports none of them."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from fastcifar.kernels.errors import MissingLibraryError

_NEEDED = {
    "resident": ("torch",),
    "ffcv": ("torch", "numba", "cv2", "ffcv"),
    "dali": ("torch", "nvidia.dali"),
    "torchvision": ("torch", "torchvision"),
}
# FFCV is built from source against these, and at run time reads what setuptools dropped later.
_FFCV = "apt-get install libturbojpeg0-dev libopencv-dev pkg-config && pip install ffcv==1.0.2 'setuptools<82'"
_INSTALL = {
    "torch": "pip install torch",
    "torchvision": "pip install torchvision",
    "numba": "pip install numba",
    "nvidia.dali": "pip install nvidia-dali-cuda120",
    "cv2": _FFCV,
    "ffcv": _FFCV,
    "distutils": _FFCV,
}


def missing(name: str) -> str | None:
    """None where all that pipeline `name` needs is installed and can be loaded, else one sentence why not."""
    for package in _NEEDED[name]:
        if not _is_installed(package):
            return f"The {name} pipeline needs {package}, which is not installed: {_INSTALL[package]}"
    return _ffcv_trouble() if name == "ffcv" else None


def require(name: str) -> None:
    """Raise MissingLibraryError, with that sentence, unless pipeline `name` can work here."""
    sentence = missing(name)
    if sentence is not None:
        raise MissingLibraryError(sentence)


@contextmanager
def importing(name: str) -> Iterator[None]:
    """Turns what goes wrong while pipeline `name` imports its library into a MissingLibraryError."""
    try:
        yield
    except (ImportError, OSError) as error:
        library = _NEEDED[name][-1]
        reason = " ".join(str(error).split())
        raise MissingLibraryError(
            f"The {name} pipeline needs {library}, which does not import here ({reason}): {_INSTALL[library]}"
        ) from error


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a parent package is missing, or is no package
        return False


def _ffcv_trouble() -> str | None:
    """Why FFCV is installed and yet would not import: what it links against or reads is not here."""
    if not _is_installed("distutils"):
        return f"FFCV needs distutils, which this Python has only with setuptools: {_INSTALL['distutils']}"
    spec = find_spec("ffcv")
    folders = spec.submodule_search_locations if spec else None
    built = [file for folder in folders or () for file in Path(folder).glob("_libffcv*.so")]
    if not built:
        return f"FFCV is installed without its compiled part: {_FFCV}"
    if "ffcv" in sys.modules:
        return None
    try:
        ctypes.CDLL(str(built[0]))
    except OSError as error:
        return f"FFCV's compiled part does not load ({error}): {_FFCV}"
    return None

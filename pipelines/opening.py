"""`open`: from an artefact or from arrays, and from settings, to a pipeline; everything is checked here."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcifar.data import Split
from fastcifar.kernels import Augmentation, Normalisation
from fastcifar.kernels.checks import torch_dtype
from fastcifar.pipelines import libraries, needs
from fastcifar.pipelines.base import Contents, Pipeline, Settings
from fastcifar.pipelines.sources import ArrayPart, ArtefactPart, PartReader


def open(
    artefact: "Path | str | Split | tuple[Any, Any]",
    name: str = "resident",
    *,
    part: str = "train",
    batch_size: int,
    augmentation: Augmentation | None = None,
    normalisation: Normalisation | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
    num_threads: int | None = None,
    rows: Any = None,
    num_classes: int | None = None,
    native: bool = False,
    streaming: bool = False,
) -> Pipeline:
    """Open a pipeline.

    artefact: folder that `fastcifar convert` wrote, of the format that `needs(name)` says; for `resident` and
        `torchvision` also a `Split`, or (images, labels): uint8 [n, h, w, 3] of up to 256x256 pixels and integers
        [n], arrays or tensors.
    name: "resident", "ffcv", "dali" or "torchvision". part: "train" or "test" of an artefact; a `Split` or arrays are
        one part, whatever this says.
    batch_size: images a step, 1 at least; with `drop_last` at most as many as there are.
    augmentation: what is done to images; None: nothing. normalisation: None: mean and standard deviation of the
        artefact's training part, or of the images given. dtype: "float32", "bfloat16", "float16" or the torch.dtype
        of the images handed out.
    device: where batches are handed out, "cpu", "cuda" (the current GPU) or a GPU's name or torch.device; `resident`
        keeps the whole set there.
    seed, shuffle: the order and, but for `native`, the draws of an epoch are functions of `seed` and the epoch; without
        `shuffle`, the order is that of the data set. drop_last: leave out an incomplete last batch; else every image is
        shown once an epoch.
    num_threads: threads, or workers of `torchvision`; None: as many as torch computes with.
    rows: indices of the images to use, integers [m], for a subset such as a validation split; None: all. They are
        checked here, on a GPU too: no pipeline needs `kernels.raise_for_bad_rows`.
    num_classes: how many classes the labels of (images, labels) are of; None: one more than the largest label. An
        artefact and a `Split` name their classes.
    native: `ffcv` and `dali` only: the library's own transforms in the place of the fused kernel, drawn by its own
        generators. FFCV's cannot be seeded: no two epochs are alike. DALI's are seeded by `seed`, the epoch and the
        step that it is begun at: an epoch that is resumed is drawn anew.
    streaming: `ffcv` and `dali` only: for sets larger than memory: read the file through once an epoch, in shuffled
        blocks.

    Raises ValueError on a setting that does not fit, DataError (a ValueError) on an artefact that cannot be used, and
    `libraries.MissingLibraryError` (an ImportError), with the line that installs it, where the pipeline's library is
    not here.
    """
    needs(name)  # refuses unknown names
    _check(name in ("ffcv", "dali") or not native, "native", native, f"False for {name}: it has no form of its own")
    _check(name in ("ffcv", "dali") or not streaming, "streaming", streaming, f"False for {name}: use ffcv or dali")
    libraries.require(name)
    reader = _reader(artefact, name, part, num_classes)
    augmentation = augmentation if augmentation is not None else Augmentation()
    augmentation.check_size(*reader.size)
    if native:
        _check_native(name, augmentation)
    settings = Settings(
        batch_size=_count("batch_size", batch_size),
        augmentation=augmentation,
        normalisation=normalisation if normalisation is not None else reader.normalisation(),
        dtype=torch_dtype(dtype),
        device=_device(device),
        seed=_seed(seed),
        shuffle=bool(shuffle),
        drop_last=bool(drop_last),
        num_threads=None if num_threads is None else _count("num_threads", num_threads),
    )
    contents = Contents(*reader.size, reader.num_classes, _rows(rows, reader.num_images))
    if name == "resident":
        from fastcifar.pipelines.resident import ResidentPipeline

        return ResidentPipeline(settings, contents, *reader.arrays())
    if name == "torchvision":
        from fastcifar.pipelines.torchvision import TorchvisionPipeline

        return TorchvisionPipeline(settings, contents, *reader.arrays())
    if name == "ffcv":
        from fastcifar.pipelines.ffcv import FfcvPipeline

        return FfcvPipeline(settings, contents, reader.file(".beton"), native=native, streaming=streaming)
    from fastcifar.pipelines.dali import DaliPipeline

    return DaliPipeline(
        settings, contents, reader.file(".tfrecord"), reader.file(".idx"), native=native, streaming=streaming
    )


def _reader(artefact: Any, name: str, part: str, num_classes: Any) -> PartReader:
    if isinstance(artefact, tuple) and len(artefact) == 2:
        return ArrayPart(artefact, name, None if num_classes is None else _count("num_classes", num_classes))
    if not isinstance(artefact, str | Path | Split):
        raise ValueError(
            f"artefact: got {type(artefact).__name__}, takes an artefact's folder, a Split, or (images, labels)"
        )
    _check(num_classes is None, "num_classes", num_classes, "None for what names its classes: an artefact, a Split")
    return ArrayPart(artefact, name) if isinstance(artefact, Split) else ArtefactPart(Path(artefact), name, part)


def _check(holds: Any, setting: str, got: object, takes: str) -> None:
    if not holds:
        raise ValueError(f"{setting}: got {got!r}, takes {takes}")


def _check_native(name: str, augmentation: Augmentation) -> None:
    """Refuse what the library's own transforms do not do."""
    known = {"crop_padding", "padding_mode", "flip"} | ({"cutout"} if name == "ffcv" else set())
    off = Augmentation()
    for field in fields(augmentation):
        value = getattr(augmentation, field.name)
        mixing = field.name.startswith("mix_")  # says how to mix, where cutmix or mixup is on
        if field.name not in known and not mixing and value != getattr(off, field.name):
            raise ValueError(
                f"{field.name}: got {value!r}, takes {getattr(off, field.name)!r} with native=True for {name}"
            )
    takes = "with native=True"
    _check(augmentation.flip != "alternating", "flip", augmentation.flip, f"'none' or 'random' {takes}")
    is_plain = not augmentation.crop_padding or augmentation.padding_mode == "constant"
    _check(is_plain, "padding_mode", augmentation.padding_mode, f"'constant' {takes}")


def _count(setting: str, value: Any) -> int:
    is_count = isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0
    _check(is_count, setting, value, "an integer of at least 1")
    return int(value)


def _seed(value: Any) -> int:
    is_seed = isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < 1 << 64
    _check(is_seed, "seed", value, "an integer from 0 to 2**64 - 1")
    return int(value)


def _device(value: Any) -> torch.device:
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        device = None
    _check(device is not None and device.type in ("cpu", "cuda"), "device", value, "cpu or cuda")
    assert device is not None
    _check(
        device.type == "cpu" or torch.cuda.is_available(), "device", value, "cpu: there is no GPU that torch can use"
    )
    if device.type == "cuda" and device.index is None:
        # What "cuda" is may change from call to call, and not every library takes it for torch's current one.
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _rows(rows: Any, num_images: int) -> np.ndarray:
    """The rows to use, checked: int64 [m], a copy."""
    if rows is None:
        return np.arange(num_images)
    array = np.array(rows)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise ValueError(f"rows: got {array.dtype} {list(array.shape)}, takes integers [m], one at least")
    if array.min() < 0 or array.max() >= num_images:
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"rows: got {wrong}, takes 0 to {num_images - 1}")
    return array.astype(np.int64)

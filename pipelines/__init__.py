"""Where batches come from: four pipelines behind one interface.

    resident     the whole set on the device; the default
    ffcv         a .beton file through FFCV's Loader
    dali         TFRecords through a DALI pipeline
    torchvision  torch's DataLoader with torchvision's v2 transforms: the baseline, with draws of its own

Five lines, on your own uint8 images of any size up to 256x256 ([n, height, width, 3], arrays or tensors) and integer
labels:

    from fastcifar import kernels, pipelines
    augmentation = kernels.Augmentation(crop_padding=4, flip="random")
    with pipelines.open((images_nhwc, labels_n), batch_size=256, augmentation=augmentation) as pipeline:
        for batch in pipeline.epoch(0):
            train_step(batch.images, batch.labels)  # float32 [256, 3, height, width] channels-last, int64 [256]

What `resident`, `ffcv` and `dali` hand out is the same to the last bit: the same order, the same augmentation, a pure
function of the seed, the epoch and the images' indices (streamed from a disk, the order is another; with the libraries'
own transforms, `native=True`, the augmentation is). An epoch may be left early, and resumed at any step
(`pipeline.epoch(7, first_step=40)`).
"""

from typing import TYPE_CHECKING

from fastcifar.kernels.lazy import attributes

if TYPE_CHECKING:
    from fastcifar.pipelines.base import Batch, Pipeline
    from fastcifar.pipelines.opening import open

__all__ = ["NAMES", "Batch", "Pipeline", "available", "needs", "open"]

NAMES = ("resident", "ffcv", "dali", "torchvision")

_FORMATS = {"resident": "npy", "ffcv": "ffcv", "dali": "dali", "torchvision": "npy"}
_HOMES = {"Batch": "base", "Pipeline": "base", "open": "opening"}


def needs(name: str) -> str:
    """Format of the artefact that a pipeline reads, as `fastcifar.artefacts.convert` names it.

    Raises ValueError where there is no such pipeline.
    """
    if name not in _FORMATS:
        raise ValueError(f"pipeline: got {name!r}, takes one of {', '.join(NAMES)}")
    return _FORMATS[name]


def available(name: str) -> str | None:
    """None where a pipeline works here, else one sentence that says why not, with the line that installs it.

    Imports no heavy package. Raises ValueError where there is no such pipeline.
    """
    needs(name)
    from fastcifar.pipelines import libraries

    return libraries.missing(name)


__getattr__ = attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)

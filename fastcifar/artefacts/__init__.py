"""Data sets on disk, in the forms that loaders read: converted once, checked, and read back.

An artefact is a folder with the files of both parts and `index.json`, which holds their hashes, counts, mean and std:

    ffcv    train.beton, test.beton                                     for FFCV's Loader
    dali    train.tfrecord, train.idx, test.tfrecord, test.idx          for DALI's `fn.readers.tfrecord`, or TensorFlow
    npy     train.images.npy, train.labels.npy, test.images.npy, ...    for everyone: `np.load(name, mmap_mode="r")`

    from fastcifar import artefacts, data
    folder = artefacts.convert(data.load("cifar10"), "ffcv", "cifar10-ffcv")
    images_nhwc = artefacts.read(folder, "train").images_nhwc
"""

from fastcifar.artefacts.cache import Source, cached, is_current
from fastcifar.artefacts.conversion import convert
from fastcifar.artefacts.formats import FORMATS
from fastcifar.artefacts.index import File, Index, Part, read_index
from fastcifar.artefacts.reading import check, read, read_first, read_labels
from fastcifar.artefacts.verification import Finding, verify

__all__ = [
    "FORMATS",
    "File",
    "Finding",
    "Index",
    "Part",
    "Source",
    "cached",
    "check",
    "convert",
    "is_current",
    "read",
    "read_first",
    "read_index",
    "read_labels",
    "verify",
]

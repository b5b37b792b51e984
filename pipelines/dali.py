"""TFRecords through a DALI pipeline, on the CPU or a GPU.

DALI shuffles by drawing from a buffer whose state goes on from epoch to epoch, reads a TFRecord file in the order of
its index, and repeats images to fill a last batch. So each epoch gets a pipeline of its own, which takes about 10 ms
to build, with an index in that epoch's order: every image once, in the order that all pipelines share, from any step
on.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcifar.data.errors import refuse
from fastcifar.pipelines import libraries
from fastcifar.pipelines.base import Batch, Contents, Fuser, Pipeline, Settings


class DaliPipeline(Pipeline):
    """Batches that DALI reads: uint8 for the fused kernel or, natively, cropped, mirrored and normalised by DALI.

    The native form draws by DALI's generators, seeded by (seed, epoch, first step), and knows the random crop with
    constant padding and the random flip. `streaming` reads the file by calls instead of mapping it to memory, in an
    order that goes through it once.
    """

    name = "dali"

    def __init__(
        self, settings: Settings, contents: Contents, records: Path, index: Path, *, native: bool, streaming: bool
    ) -> None:
        super().__init__(settings, contents)
        with libraries.importing("dali"):
            import nvidia.dali.fn
            import nvidia.dali.tfrecord
            import nvidia.dali.types  # noqa: F401
        self._records = records
        self._lines = _index_lines(index)
        self._native = native
        self.streams = streaming
        self._fuser = None if native else Fuser(settings)

    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        order = self.order(epoch)[first_step * self.batch_size :]
        if not len(order):
            return
        pipeline = self._build(order, epoch, first_step)
        for start in range(0, len(order), self.batch_size):
            n = min(self.batch_size, len(order) - start)
            # DALI fills a last batch with images of the next epoch: left out here.
            images_nhwc, *told = self._run(pipeline)
            # As copies: beside a GPU these lie in pinned memory, which torch need not take from DALI, and which a GPU
            # would still be reading when DALI fills it again.
            labels_n, indices_n = (numbers.as_array().reshape(-1)[:n] for numbers in told)
            self._check(labels_n, indices_n, order[start : start + n])
            labels, indices = (
                torch.from_numpy(numbers_n).to(self.device, non_blocking=True) for numbers_n in (labels_n, indices_n)
            )
            yield self._finish(_tensor(images_nhwc)[:n], labels, indices, epoch)

    def _run(self, pipeline: Any) -> Any:
        """A batch; `DataError` where DALI cannot parse the records. Only their places were checked beforehand."""
        try:
            if self.device.type == "cuda":
                return pipeline.run(torch.cuda.current_stream(self.device))
            return pipeline.run()
        except RuntimeError as error:
            if "readers.tfrecord" not in str(error) and "reshape" not in str(error):
                raise
            raise refuse(
                self._records, "holds records that DALI cannot read", "what `fastcifar convert` wrote"
            ) from None

    def _check(self, labels_n: np.ndarray, indices_n: np.ndarray, expected_n: np.ndarray) -> None:
        """`DataError` where a record is not of the image that the index names, or its label is no class."""
        if not np.array_equal(indices_n, expected_n):
            raise refuse(self._records, "holds records in another order", "that of its index")
        if labels_n.min() < 0 or labels_n.max() >= self.contents.num_classes:
            found = f"labels reach from {labels_n.min()} to {labels_n.max()}"
            raise refuse(self._records, found, f"0 to {self.contents.num_classes - 1}")

    def _finish(self, images_nhwc: Tensor, labels: Tensor, indices: Tensor, epoch: int) -> Batch:
        if self._fuser is None:
            images = images_nhwc.to(self.settings.dtype).permute(0, 3, 1, 2)
            return Batch(images, labels, None, None, indices)
        return self._fuser.fuse(images_nhwc, None, labels, indices, epoch)

    def _build(self, order: np.ndarray, epoch: int, first_step: int) -> Any:
        """DALI pipeline over the images of `order`, in that order, built and ready to run."""
        from nvidia.dali import Pipeline as DaliGraph
        from nvidia.dali import fn, tfrecord

        settings, contents = self.settings, self.contents
        on_gpu = settings.device.type == "cuda"
        entropy = np.random.SeedSequence([settings.seed, epoch, first_step])
        graph = DaliGraph(
            batch_size=settings.batch_size,
            num_threads=settings.num_threads or torch.get_num_threads(),
            device_id=settings.device.index if on_gpu else None,
            seed=int(entropy.generate_state(1)[0] >> 1),
            prefetch_queue_depth=2,
        )
        with graph, _file_in_memory(self._lines[order]) as index_path:
            features: Any = fn.readers.tfrecord(
                path=[str(self._records)],
                index_path=[index_path],
                features={
                    "image": tfrecord.FixedLenFeature([], tfrecord.string, ""),
                    "label": tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
                    "index": tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
                },
                dont_use_mmap=self.streams,
            )
            images = fn.reshape(features["image"], shape=[contents.height, contents.width, 3], layout="HWC")
            # Labels and indices are looked at on the host before they go to a GPU: there, it would have to wait.
            outputs = [images.gpu() if on_gpu else images, features["label"], features["index"]]
            if self._native:
                outputs[0] = self._augmented(outputs[0])
            graph.set_outputs(*outputs)
            graph.build()
        return graph

    def _augmented(self, images: Any) -> Any:
        """DALI's own crop, mirror and normalise, as nodes of the graph."""
        import nvidia.dali.types
        from nvidia.dali import fn

        types: Any = nvidia.dali.types
        augmentation, contents = self.settings.augmentation, self.contents
        if augmentation.crop_padding:
            shifts = [float(shift) for shift in range(-augmentation.crop_padding, augmentation.crop_padding + 1)]
            start = fn.cast(fn.random.uniform(values=shifts, shape=[2]), dtype=types.INT32)
            images = fn.slice(
                images, start, [contents.height, contents.width], axes=(0, 1), out_of_bounds_policy="pad", fill_values=0
            )
        is_half = self.settings.dtype == torch.float16
        return fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip() if augmentation.flip == "random" else 0,
            mean=[255 * mean for mean in self.settings.normalisation.mean],
            std=[255 * std for std in self.settings.normalisation.std],
            dtype=types.FLOAT16 if is_half else types.FLOAT,
            output_layout="HWC",
        )

    def _release(self) -> None:
        self._fuser = None


def _tensor(output: Any) -> Tensor:
    """A DALI batch as a torch tensor on the same memory, which DALI takes back at its next run."""
    return torch.from_dlpack(output.as_tensor())


def _index_lines(index: Path) -> np.ndarray:
    """The index of a TFRecord file ("offset size" a record) as lines of one width: uint8 [n, width].

    DALI takes leading zeros, and lines of one width can be put in any order by one gather.
    """
    numbers = np.fromstring(index.read_text(encoding="ascii"), dtype=np.int64, sep=" ").reshape(-1, 2)
    columns = []
    for values, end in ((numbers[:, 0], " "), (numbers[:, 1], "\n")):
        digits = len(str(values.max(initial=0)))
        columns += [(values // 10**place % 10 + ord("0")).astype(np.uint8) for place in reversed(range(digits))]
        columns.append(np.full(len(values), ord(end), dtype=np.uint8))
    return np.stack(columns, axis=1)


@contextmanager
def _file_in_memory(content: np.ndarray) -> Iterator[str]:
    """Path of a file of this content that no disk holds, gone afterwards."""
    descriptor = os.memfd_create("fastcifar-index")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.data)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"

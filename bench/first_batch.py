"""A process's first batch, which `start` measures processes up to.

    python -m fastcifar.bench.first_batch PIPELINE ARTEFACT DEVICE BATCH_SIZE
    python -m fastcifar.bench.first_batch --from-dataset DATASET PATH DEVICE BATCH_SIZE

The second finds the data set (in PATH; empty: where it is looked for) and its artefact first, and opens `resident`.
"""

import sys
from pathlib import Path


def main(argv: list[str]) -> None:
    """Print `first batch` when it is there."""
    from fastcifar import pipelines
    from fastcifar.kernels import Augmentation

    # By hand: a parser would be one more import, and imports are part of what is measured.
    *place, device, batch_size = argv
    name, artefact = _find(*place[1:]) if place[0] == "--from-dataset" else (place[0], Path(place[1]))
    told = Augmentation(crop_padding=4, flip="random", cutmix=1.0)
    with pipelines.open(
        artefact, name, batch_size=int(batch_size), augmentation=told, dtype="bfloat16", device=device
    ) as pipeline:
        batch = next(iter(pipeline.epoch(0)))
        # A GPU's must be there, not only asked for.
        batch.images[-1, 0, 0, 0].item()
        print("first batch", flush=True)


def _find(dataset: str, path: str) -> tuple[str, Path]:
    """A pipeline and the data set's artefact for it."""
    from fastcifar import artefacts, data, pipelines

    source = data.locate(dataset, Path(path) if path else None, download=False)
    return "resident", artefacts.cached(source, pipelines.needs("resident"))


if __name__ == "__main__":
    main(sys.argv[1:])

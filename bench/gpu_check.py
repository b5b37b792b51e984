"""The compiled kernels against the reference, on a whole data set; run by `python -m fastcifar.bench.gpu_check`."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

NUM_REFERENCE_IMAGES = 2048


def main(argv: list[str] | None = None) -> int:
    """Print one line a setting and dtype, and JSON as the last line; exit code 1 where a value differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--dataset", default="auto")
    parser.add_argument("--images", type=int, default=0, help="0: all of the training part")
    told = parser.parse_args(argv)

    from fastcifar import artefacts, data
    from fastcifar.bench import settings

    source = data.locate(told.dataset, told.data)
    split = artefacts.read(artefacts.cached(source, "npy"), "train")
    images_nhwc = np.array(split.images_nhwc[: told.images or None])
    checks = []
    for setting in settings.NAMES:
        for dtype in ("bf16", "fp32"):
            check = compare(images_nhwc, setting, dtype, told.device)
            checks.append(check)
            wrong = f"{check['num_different']:,} values differ, by up to {check['largest_difference']:g}"
            verdict = "same" if not check["num_different"] else wrong
            print(f"{setting} {dtype}: {verdict}; {check['num_images']:,} images, {check['seconds']:.1f} s", flush=True)
    print(json.dumps({"device": told.device, "dataset": source.dataset, "checks": checks}))
    return 1 if any(check["num_different"] for check in checks) else 0


def compare(images_nhwc: np.ndarray, setting: str, dtype: str, device: str) -> dict[str, Any]:
    """All images in one shuffled batch by CUDA against Numba on the CPU, and the first 2048 against the reference.

    On a CPU, Numba against the reference alone. Values that differ are counted; NaN differs from everything.
    """
    import torch

    start_s = time.perf_counter()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images_nhwc)))
    first = order[:NUM_REFERENCE_IMAGES]
    pairs = [(first, "numba" if device == "cpu" else "cuda", "reference")]
    if device != "cpu":
        pairs.append((order, "cuda", "numba"))
    on_device = torch.from_numpy(images_nhwc).to(device)
    num_different, largest = 0, 0.0
    for rows, form, other in pairs:
        got = _batch(on_device, rows.to(device), setting, dtype, form).cpu()
        wants = _batch(images_nhwc, rows, setting, dtype, other)
        num_different += int(torch.ne(got, wants).sum())
        largest = max(largest, float((got.float() - wants.float()).abs().nan_to_num(nan=float("inf")).max()))
    return {
        "setting": setting,
        "dtype": dtype,
        "num_images": sum(len(rows) for rows, _, _ in pairs),
        "num_different": num_different,
        "largest_difference": largest,
        "seconds": time.perf_counter() - start_s,
    }


def _batch(images: Any, rows: Any, setting: str, dtype: str, form: str) -> Any:
    from fastcifar.bench import settings
    from fastcifar.kernels import Normalisation, augment_batch

    normalisation = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    augmentation = settings.augmentation(setting)
    told: dict[str, Any] = {"seed": 1, "epoch": 2, "dtype": settings.DTYPES[dtype], "form": form}
    return augment_batch(images, rows, augmentation, normalisation, **told)[0]


if __name__ == "__main__":
    sys.exit(main())

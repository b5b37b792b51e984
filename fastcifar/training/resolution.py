"""Progressive resolution: how large images are at which time, and making them so."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.schema import Config


def pixels_at(config: Config, progress: float) -> int:
    """Side in pixels that images are trained at when `progress` of the run is done; 0: as they are."""
    return next((stage.pixels for stage in config.train.resolution if progress < stage.until), 0)


def work(config: Config, steps: range, num_steps: int, side: int) -> float:
    """Pixels that an image has in each of these steps of a run, added up; `side`: of images trained at as they are."""
    return float(sum((pixels_at(config, step / num_steps) or side) ** 2 for step in steps))


def resize(images: Tensor, pixels: int) -> Tensor:
    """Images [n, c, h, w] scaled to `pixels` (0: as they are), bilinear with antialiasing, channels-last."""
    if pixels in (0, images.shape[-1]):
        return images
    # In float32: on a CPU torch has no antialiasing for 16 bits.
    scaled = F.interpolate(images.float(), (pixels, pixels), mode="bilinear", antialias=True, align_corners=False)
    return scaled.to(images.dtype, memory_format=torch.channels_last)

"""Images as a camera, a codec or the weather spoils them: six corruptions at five strengths.

What each does and how strong it is follows the common-corruptions benchmark's form for CIFAR-10 (CIFAR-10-C): Hendrycks
and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019, arXiv
1903.12261; numbers from `make_cifar_c.py` of https://github.com/hendrycks/robustness. Its noise comes from a global
generator, so that its files cannot be drawn again; here each image's noise is a function of its index in the data set,
the corruption and the strength. The rest of the six draws nothing. JPEG is what Pillow's codec makes of it.
"""

import io
from collections.abc import Callable

import numpy as np

SOURCE = "CIFAR-10-C's severities (Hendrycks and Dietterich 2019, arXiv 1903.12261)"
NUM_STRENGTHS = 5
_CHUNK_IMAGES = 256

GAUSSIAN_NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation, pixels on the scale 0..1
GAUSSIAN_BLUR_PX = (0.4, 0.6, 0.7, 0.8, 1.0)  # standard deviation
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # factor about each channel's mean
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)  # added to HSV's value
JPEG_QUALITY = (80, 65, 58, 50, 40)
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)  # side of the image in between, as a share


def corrupt(images_nhwc: np.ndarray, indices_n: np.ndarray, name: str, strength: int) -> np.ndarray:
    """Images uint8 [n, h, w, 3] under corruption `name` of NAMES at `strength` 1 to 5, as uint8 of the same shape.

    `indices_n` are the images' indices in the data set. Raises `ValueError` for another name or strength.
    """
    if name not in _CORRUPTIONS:
        raise ValueError(f"corruption: got {name!r}, takes one of: {', '.join(NAMES)}")
    if not 1 <= strength <= NUM_STRENGTHS:
        raise ValueError(f"strength: got {strength}, takes 1 to {NUM_STRENGTHS}")
    corrupted = np.empty(images_nhwc.shape, np.uint8)
    for start in range(0, len(images_nhwc), _CHUNK_IMAGES):
        rows = slice(start, start + _CHUNK_IMAGES)
        corrupted[rows] = _CORRUPTIONS[name](np.asarray(images_nhwc[rows]), np.asarray(indices_n[rows]), strength)
    return corrupted


def _gaussian_noise(images_nhwc: np.ndarray, indices_n: np.ndarray, strength: int) -> np.ndarray:
    noise = np.empty(images_nhwc.shape)
    for place, index in enumerate(indices_n.tolist()):
        # A counter-based generator with a key of its own for each image.
        draws = np.random.Generator(
            np.random.Philox(key=(index << 64) | (NAMES.index("gaussian_noise") << 8) | strength)
        )
        draws.standard_normal(out=noise[place])
    return _to_bytes(_to_shares(images_nhwc) + GAUSSIAN_NOISE[strength - 1] * noise)


def _gaussian_blur(images_nhwc: np.ndarray, _: np.ndarray, strength: int) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    sigma = GAUSSIAN_BLUR_PX[strength - 1]
    return _to_bytes(gaussian_filter(_to_shares(images_nhwc), (0, sigma, sigma, 0), mode="nearest", truncate=4.0))


def _contrast(images_nhwc: np.ndarray, _: np.ndarray, strength: int) -> np.ndarray:
    shares = _to_shares(images_nhwc)
    means = shares.mean((1, 2), keepdims=True)
    return _to_bytes((shares - means) * CONTRAST[strength - 1] + means)


def _brightness(images_nhwc: np.ndarray, _: np.ndarray, strength: int) -> np.ndarray:
    """Raise the value of HSV and keep hue and saturation: the channels are scaled alike. Black becomes grey."""
    shares = _to_shares(images_nhwc)
    value = shares.max(3, keepdims=True)
    raised = np.minimum(value + BRIGHTNESS[strength - 1], 1)
    # Divided first: the brightest channel becomes the raised value itself, without a rounding that cutting off shows.
    return _to_bytes(np.where(value > 0, shares / np.where(value > 0, value, 1) * raised, raised))


def _jpeg(images_nhwc: np.ndarray, _: np.ndarray, strength: int) -> np.ndarray:
    from PIL import Image

    def through_jpeg(image_hwc: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image_hwc).save(file, "JPEG", quality=JPEG_QUALITY[strength - 1])
        return np.asarray(Image.open(file))

    return np.stack([through_jpeg(image_hwc) for image_hwc in images_nhwc])


def _pixelate(images_nhwc: np.ndarray, _: np.ndarray, strength: int) -> np.ndarray:
    from PIL import Image

    height, width = images_nhwc.shape[1:3]
    share = PIXELATE[strength - 1]
    small = (max(1, int(width * share)), max(1, int(height * share)))

    def there_and_back(image_hwc: np.ndarray) -> np.ndarray:
        shrunk = Image.fromarray(image_hwc).resize(small, Image.Resampling.BOX)
        return np.asarray(shrunk.resize((width, height), Image.Resampling.BOX))

    return np.stack([there_and_back(image_hwc) for image_hwc in images_nhwc])


def _to_shares(images_nhwc: np.ndarray) -> np.ndarray:
    return images_nhwc / 255.0


def _to_bytes(shares_nhwc: np.ndarray) -> np.ndarray:
    # Cut off, not rounded, as the benchmark does.
    return (np.clip(shares_nhwc, 0, 1) * 255).astype(np.uint8)


_CORRUPTIONS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "gaussian_noise": _gaussian_noise,
    "gaussian_blur": _gaussian_blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
}
NAMES = tuple(_CORRUPTIONS)

"""shapes10: ten drawn shapes in CIFAR-10's own form, for machines that cannot have CIFAR-10.

Each image shows one shape, its label, at a random place, size, angle, aspect and colour, over a textured background
with small distractors, one of which may lie over the shape, and noise. Polarity and colours say nothing about the
class, so pixels seen one at a time say little; outlines say all.

The same bytes come out on every machine: random numbers are hashes of (image, stream) in 64-bit integers, and the
rest is float32 addition, multiplication, square root, floor, minimum and maximum, each of which IEEE 754 fixes to the
bit. Sines come from a table rounded far above the error of any mathematics library. No sums over an axis, whose order
could differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastcifar.data.split import Dataset, Split

VERSION = 1
"""Raised with every change of the bytes that are drawn; part of the fingerprint."""
CLASS_NAMES = ("disc", "ring", "square", "triangle", "pentagon", "star", "cross", "crescent", "half_disc", "arrow")
NUM_TRAIN, NUM_TEST = 50_000, 10_000
_SIZE_PX = 32
_CHUNK = 250  # images drawn at once: their planes of float32 stay in the cache
_NUM_ANGLES = 1024
_F = np.float32

Plane = np.ndarray  # float32 [n, 1024]: flat, so that inner loops are long


def load() -> Dataset:
    """Draws the whole set: 50,000 training and 10,000 test images, each class as often as the others."""
    return Dataset("shapes10", split("train", NUM_TRAIN), split("test", NUM_TEST))


def split(part: str, num_images: int) -> Split:
    """Draws one part, "train" or "test". Fewer images than the whole set's are another draw, not its first ones."""
    first_id = np.uint64({"train": 0, "test": 1 << 32}[part])
    ids_n = first_id + np.arange(num_images, dtype=np.uint64)
    labels_n = np.empty(num_images, np.int64)
    labels_n[np.argsort(_hash(ids_n, 0), kind="stable")] = np.arange(num_images) % len(CLASS_NAMES)
    images_nhwc = np.empty((num_images, _SIZE_PX, _SIZE_PX, 3), np.uint8)

    def draw(job: tuple[int, np.ndarray]) -> None:
        label, rows = job
        images_nhwc[rows] = _draw(_OUTLINES[label], ids_n[rows])

    rows_by_label = [np.flatnonzero(labels_n == label) for label in range(len(CLASS_NAMES))]
    jobs = [
        (label, rows[start : start + _CHUNK])
        for label, rows in enumerate(rows_by_label)
        for start in range(0, len(rows), _CHUNK)
    ]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(draw, jobs))
    return Split(images_nhwc, labels_n, CLASS_NAMES, "shapes10", part, f"drawn (shapes10 version {VERSION})")


# Random numbers: SplitMix64's finaliser over (id, stream), https://doi.org/10.1145/2714064.2660195


def _hash(ids: np.ndarray, stream: int) -> np.ndarray:
    """uint64, as many as `ids`."""
    value = (ids + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    value ^= np.uint64((stream + 1) * 0xD1342543DE82EF95 & 0xFFFFFFFFFFFFFFFF)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value ^= value >> np.uint64(shift)
        value *= np.uint64(factor)
    value ^= value >> np.uint64(31)
    return value


class _Draws:
    """Numbers for the images with `ids_n`: each call takes the next stream."""

    def __init__(self, ids_n: np.ndarray) -> None:
        self.ids_n = ids_n
        self.stream = 0

    def bits(self) -> np.ndarray:
        """uint64 [n, 1]."""
        self.stream += 1
        return _hash(self.ids_n, self.stream)[:, None]

    def uniform(self, low: float, high: float) -> np.ndarray:
        """float32 [n, 1] in [low, high)."""
        return _F(low) + _F(high - low) * _unit(self.bits())

    def angle(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine of any angle, float32 [n, 1] each."""
        step = (self.bits() >> np.uint64(54)).astype(np.int64)
        return _SINES[(step + _NUM_ANGLES // 4) % _NUM_ANGLES], _SINES[step]

    def grid(self, side: int) -> np.ndarray:
        """float32 [n, side, side] in [-1, 1)."""
        self.stream += 1
        cells = self.ids_n[:, None] * np.uint64(side * side) + np.arange(side * side, dtype=np.uint64)
        return (_unit(_hash(cells, self.stream)) * _F(2) - _F(1)).reshape(-1, side, side)

    def bytes(self) -> np.ndarray:
        """uint8 [n, 3, 1024]: eight to a hash."""
        self.stream += 1
        words = _SIZE_PX * _SIZE_PX * 3 // 8
        cells = self.ids_n[:, None] * np.uint64(words) + np.arange(words, dtype=np.uint64)
        return _hash(cells, self.stream).astype("<u8", copy=False).view(np.uint8).reshape(-1, 3, _SIZE_PX * _SIZE_PX)


def _unit(bits: np.ndarray) -> np.ndarray:
    """float32 in [0, 1), of the upper 24 bits."""
    return (bits >> np.uint64(40)).astype(np.float32) * _F(2.0**-24)


_SINES = (np.rint(np.sin(np.arange(_NUM_ANGLES) * (2 * np.pi / _NUM_ANGLES)) * 2**14) / 2**14).astype(np.float32)


# Outlines: distance to the edge at (u, v), negative inside, in units of the shape's radius


def _half_planes(u: Plane, v: Plane, num_sides: int, inner: float) -> list[Plane]:
    """Distance to each side of a regular polygon whose sides lie `inner` from its middle."""
    steps = [round(_NUM_ANGLES * (side + 0.5) / num_sides) for side in range(num_sides)]
    return [u * _SINES[(step + _NUM_ANGLES // 4) % _NUM_ANGLES] + v * _SINES[step] - _F(inner) for step in steps]


def _largest(planes: list[Plane]) -> Plane:
    largest = planes[0]
    for plane in planes[1:]:
        largest = np.maximum(largest, plane)
    return largest


def _box(u: Plane, v: Plane, half_u: float, half_v: float) -> Plane:
    return np.maximum(np.abs(u) - _F(half_u), np.abs(v) - _F(half_v))


def _radius(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v)


def _star(u: Plane, v: Plane) -> Plane:
    """Inside where at most one of five half planes is left: the second largest distance."""
    first, *planes = _half_planes(u, v, 5, 0.34)
    largest, second = first, np.full_like(first, -np.inf)
    for plane in planes:
        second = np.maximum(second, np.minimum(largest, plane))
        largest = np.maximum(largest, plane)
    return second


def _arrow(u: Plane, v: Plane) -> Plane:
    head = np.maximum(_F(-0.05) - u, (u - _F(0.95)) * _F(0.62) + np.abs(v) * _F(0.78))
    return np.minimum(head, _box(u + _F(0.45), v, 0.5, 0.26))


_OUTLINES: tuple[Callable[[Plane, Plane], Plane], ...] = (
    lambda u, v: _radius(u, v) - _F(0.84),
    lambda u, v: np.abs(_radius(u, v) - _F(0.68)) - _F(0.24),
    lambda u, v: _box(u, v, 0.75, 0.75),
    lambda u, v: _largest(_half_planes(u, v, 3, 0.52)),
    lambda u, v: _largest(_half_planes(u, v, 5, 0.78)),
    _star,
    lambda u, v: np.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95)),
    lambda u, v: np.maximum(_radius(u, v) - _F(0.92), _F(0.75) - _radius(u - _F(0.45), v)),
    lambda u, v: np.maximum(_radius(u + _F(0.35), v) - _F(0.98), _F(-0.35) - u),
    _arrow,
)


# Pictures


def _draw(outline: Callable[[Plane, Plane], Plane], ids_n: np.ndarray) -> np.ndarray:
    """uint8 [n, 32, 32, 3]: one image an id, all of one class."""
    draws = _Draws(ids_n)
    steps = np.arange(_SIZE_PX, dtype=np.float32) - _F((_SIZE_PX - 1) / 2)
    x, y = np.tile(steps, _SIZE_PX)[None], np.repeat(steps, _SIZE_PX)[None]
    backdrop = [draws.uniform(50, 205) for _ in range(3)]
    layers = [(_blob(draws, x, y), _contrast(draws, backdrop, 20, 90)) for _ in range(3)]
    shape = _shape(draws, outline, x, y)
    layers.insert(2, (shape, _contrast(draws, backdrop, 22, 85)))  # two blobs below, one above
    # A quarter of what lies below a layer shines through, so that inside and outside share their texture.
    shown = np.ones_like(shape)
    weights: list[Plane] = []
    for coverage, _ in reversed(layers):
        weights.insert(0, coverage * shown)
        shown *= _F(1) - coverage * _F(0.75)
    bands = _bands(draws, x, y)
    band_strengths = [draws.uniform(-28, 28) for _ in range(3)]
    noise_strength = draws.uniform(0.04, 0.2)
    noise = draws.bytes()
    images_nhwc = np.empty((len(ids_n), _SIZE_PX, _SIZE_PX, 3), np.uint8)
    pixels = images_nhwc.reshape(len(ids_n), -1, 3)
    for channel in range(3):
        plane = _clouds(draws)
        plane += bands * band_strengths[channel]
        plane *= shown
        for weight, (_, colour) in zip(weights, layers, strict=True):
            plane += weight * colour[channel]
        plane += noise[:, channel].astype(np.float32) * noise_strength
        plane += backdrop[channel] - _F(127.5) * noise_strength + _F(0.5)
        pixels[:, :, channel] = np.clip(plane, _F(0), _F(255), out=plane)
    return images_nhwc


def _contrast(draws: _Draws, backdrop: list[np.ndarray], low: float, high: float) -> list[np.ndarray]:
    """How a layer differs from the backdrop, per channel: by `low` to `high` levels, up or down, within 0 to 255."""
    shifts = []
    for base in backdrop:
        size = draws.uniform(low, high)
        up = draws.uniform(0, 1) < _F(0.5)
        up = np.where(base < size, True, np.where(base + size > _F(255), False, up))
        shifts.append(np.where(up, size, -size))
    return shifts


def _shape(draws: _Draws, outline: Callable[[Plane, Plane], Plane], x: np.ndarray, y: np.ndarray) -> Plane:
    """How much of each pixel the shape covers, 0 to 1."""
    radius_px = draws.uniform(6.0, 11.5)
    away_px = _F(15) - radius_px
    dx, dy = x - away_px * draws.uniform(-1, 1), y - away_px * draws.uniform(-1, 1)
    cosine, sine = draws.angle()
    aspect = draws.uniform(0.8, 1.25)
    slant = draws.uniform(-0.25, 0.25)
    u = (dx * cosine + dy * sine) * (aspect / radius_px)
    v = (dy * cosine - dx * sine) * (_F(1) / (radius_px * aspect)) + slant * u
    return np.minimum(np.maximum(_F(0.5) - outline(u, v) * radius_px, _F(0)), _F(1))


def _blob(draws: _Draws, x: np.ndarray, y: np.ndarray) -> Plane:
    """A short bar anywhere: 2 to 10 px long, 1.5 to 4 px wide."""
    dx, dy = x - draws.uniform(-16, 16), y - draws.uniform(-16, 16)
    cosine, sine = draws.angle()
    along = np.abs(dx * cosine + dy * sine) - draws.uniform(1, 5)
    across = np.abs(dy * cosine - dx * sine) - draws.uniform(0.75, 2)
    return np.minimum(np.maximum(_F(0.5) - np.maximum(along, across), _F(0)), _F(1))


def _bands(draws: _Draws, x: np.ndarray, y: np.ndarray) -> Plane:
    """Parallel stripes, a triangle wave of 4 to 14 px, -1 to 1."""
    cosine, sine = draws.angle()
    phase = (x * cosine + y * sine) * (_F(1) / draws.uniform(4, 14)) + draws.uniform(0, 1)
    phase -= np.floor(phase)
    return np.abs(phase - _F(0.5)) * _F(4) - _F(1)


def _clouds(draws: _Draws) -> Plane:
    """Smooth light and shade, in levels: a coarse grid of random values and a slope, bilinear in between."""
    side = 6
    ramp = np.arange(side, dtype=np.float32) - _F((side - 1) / 2)
    grid = draws.grid(side) * draws.uniform(0, 45)[..., None]
    grid += draws.uniform(-9, 9)[..., None] * ramp + draws.uniform(-9, 9)[..., None] * ramp[:, None]
    places = np.arange(_SIZE_PX, dtype=np.float32) * _F((side - 1) / _SIZE_PX)
    low = places.astype(np.int64)
    share = places - low.astype(np.float32)
    lines = grid[:, :, low] + (grid[:, :, low + 1] - grid[:, :, low]) * share
    upper = lines[:, low]
    return (upper + (lines[:, low + 1] - upper) * share[:, None]).reshape(len(grid), -1)

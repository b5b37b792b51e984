"""What augment() and its kin refuse, in words, before any memory is touched; cheap enough for every batch."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcifar.kernels.plan import (
    CUTMIX,
    CUTOUT,
    DTYPES,
    HUE,
    MAX_HUE,
    MAX_ROTATION_DEGREES,
    NUM_FLOATS,
    NUM_INTS,
    ROTATION,
    SHIFT_X,
    SHIFT_Y,
    WEIGHT,
    Plan,
    is_reflect,
    share,
)
from fastcifar.kernels.settings import MAX_SIDE_PX, check_side

if TYPE_CHECKING:
    import torch

FORMS = ("auto", "reference", "numba", "cuda")


@lru_cache(maxsize=32)
def torch_dtype(dtype: Any) -> "torch.dtype":
    """The output dtype, given as a name or as a torch.dtype."""
    import torch

    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, takes {', '.join(DTYPES)} or the torch.dtype of that name")
    return getattr(torch, name)


@lru_cache(maxsize=8)
def kind_of(dtype: "torch.dtype") -> int:
    """What kernels are told of the output's dtype: FLOAT32, BFLOAT16 or FLOAT16 of plan.py."""
    return DTYPES.index(str(dtype).removeprefix("torch."))


def check_form(form: str) -> None:
    """Raise ValueError unless form is a form."""
    if form not in FORMS:
        raise ValueError(f"form: got {form!r}, takes {', '.join(FORMS)}")


def check_images(images: Any) -> None:
    """Raise ValueError unless images is a contiguous uint8 [N, h, w, 3] tensor or array of a size that kernels take.

    Tensors lie in main memory or on a CUDA GPU.
    """
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    if shape is None or dtype is None:
        raise ValueError(f"images_nhwc: got {type(images).__name__}, takes a torch tensor or a NumPy array")
    # NumPy's and torch's dtypes agree in their names alone.
    if not _is_uint8(dtype):
        raise ValueError(f"images_nhwc: got dtype {dtype}, takes uint8")
    if len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"images_nhwc: got shape {tuple(shape)}, takes [N, height, width, 3]")
    is_array = isinstance(images, np.ndarray)
    # A meta tensor's memory begins at 0, and other accelerators' is not the host's.
    if not (is_array or images.is_cpu or images.is_cuda):
        raise ValueError(f"images_nhwc: got a tensor on {images.device}, takes one in main memory or on a CUDA GPU")
    if not (images.flags.c_contiguous if is_array else images.is_contiguous()):
        raise ValueError("images_nhwc: got a strided view, takes contiguous memory in the order [N, height, width, 3]")
    if not (1 <= shape[1] <= MAX_SIDE_PX and 1 <= shape[2] <= MAX_SIDE_PX):
        check_side("height of images_nhwc", int(shape[1]))
        check_side("width of images_nhwc", int(shape[2]))


@lru_cache(maxsize=32)
def _is_uint8(dtype: Any) -> bool:
    return str(dtype) in ("torch.uint8", "uint8")


def check_rows(rows_n: np.ndarray, num_images: int) -> None:
    """Raise ValueError where a row is not one of the images'."""
    if len(rows_n) and (rows_n.min() < 0 or rows_n.max() >= num_images):
        raise row_error(rows_n, num_images)


def row_error(rows_n: np.ndarray, num_images: int) -> ValueError:
    """The error for rows of which at least one lies outside."""
    position = int(np.flatnonzero((rows_n < 0) | (rows_n >= num_images))[0])
    return ValueError(f"rows_n: got {rows_n[position]} at position {position}, takes 0 to {num_images - 1}")


def check_num_indices(num_indices: int, num_rows: int) -> None:
    """Raise ValueError unless there is an index for each row."""
    if num_indices != num_rows:
        raise ValueError(f"indices_n: got {num_indices} indices, takes one for each of the {num_rows} rows")


def check_seed_epoch(seed: int, epoch: int) -> None:
    """Raise ValueError unless the seed and the epoch fit the generator's key and counter."""
    if not (isinstance(seed, int | np.integer) and 0 <= seed < 1 << 64):
        raise ValueError(f"seed: got {seed!r}, takes an integer from 0 to 2**64 - 1")
    if not (isinstance(epoch, int | np.integer) and 0 <= epoch < 1 << 32):
        raise ValueError(f"epoch: got {epoch!r}, takes an integer from 0 to 2**32 - 1")


def check_num_threads(num_threads: int | None) -> None:
    """Raise ValueError unless num_threads is None or an integer of at least 1, also for forms of one thread."""
    if num_threads is not None and not (isinstance(num_threads, int | np.integer) and num_threads >= 1):
        raise ValueError(f"num_threads: got {num_threads!r}, takes an integer of at least 1")


def int64_vector(name: str, values: Any) -> np.ndarray:
    """Values as a contiguous int64 [n] array on the host; raises ValueError where they are no vector of integers."""
    if type(values) is np.ndarray and values.dtype == np.int64 and values.ndim == 1 and values.flags.c_contiguous:
        return values
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name}: got shape {array.shape} of {array.dtype}, takes a vector of integers")
    return np.ascontiguousarray(array, dtype=np.int64)


def check_out(out: Any, shape: tuple[int, int, int, int], dtype: Any, device: Any) -> None:
    """Raise ValueError unless out is a channels-last tensor of this shape [n, 3, h, w], dtype and device."""
    import torch

    if not isinstance(out, torch.Tensor):
        raise ValueError(f"out: got {type(out).__name__}, takes a torch tensor")
    if out.shape != shape or out.dtype != dtype or out.device != device:
        raise ValueError(
            f"out: got {tuple(out.shape)} of {out.dtype} on {out.device}, takes {shape} of {dtype} on {device}"
        )
    _, channels, height, width = shape
    # By hand: is_contiguous(channels_last) is ambiguous where a side is 1, and the kernels write by these strides.
    strides = (height * width * channels, 1, width * channels, channels)
    if out.stride() != strides and any(
        side > 1 and got != takes for side, got, takes in zip(shape, out.stride(), strides, strict=True)
    ):
        raise ValueError(f"out: got strides {out.stride()}, takes channels-last memory, strides {strides}")


def output(out: Any, shape: tuple[int, int, int, int], dtype: Any, device: Any) -> "torch.Tensor":
    """The tensor to write to: the caller's, checked, or a new one in channels-last memory."""
    import torch

    if out is not None:
        check_out(out, shape, dtype, device)
        return out
    n, channels, height, width = shape
    return torch.empty((n, height, width, channels), dtype=dtype, device=device).permute(0, 3, 1, 2)


def check_plan_shape(plan: Plan, num_images: int, height: int, width: int) -> None:
    """Raise ValueError unless a plan on the host is for this many images of this size, in arrays of the right kind."""
    if len(plan) != num_images:
        raise ValueError(f"plan: got a plan for {len(plan)} images, takes one for the {num_images} of this batch")
    if (plan.height, plan.width) != (height, width):
        raise ValueError(f"plan: got one for {plan.height}x{plan.width} pixels, takes one for {height}x{width}")
    is_reflect(plan.padding_mode)
    for name, array, columns, dtype in (
        ("ints_nk", plan.ints_nk, NUM_INTS, np.int32),
        ("floats_nk", plan.floats_nk, NUM_FLOATS, np.float32),
    ):
        if type(array) is not np.ndarray:
            raise ValueError(f"plan.{name}: got {type(array).__name__}, takes a NumPy array")
        if array.shape != (num_images, columns) or array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(
                f"plan.{name}: got shape {array.shape} of {array.dtype}, takes contiguous {(num_images, columns)} of "
                f"{np.dtype(dtype)}"
            )


def check_plan_numbers(plan: Plan) -> None:
    """Raise ValueError unless all that a plan says can be done to images of its size."""
    ints, floats, height, width = plan.ints_nk, plan.floats_nk, plan.height, plan.width
    if not np.isfinite(floats).all():
        raise ValueError("plan.floats_nk: got a number that is not finite, takes finite numbers")
    for name, column, most in (("rotation", ROTATION, MAX_ROTATION_DEGREES), ("hue", HUE, MAX_HUE)):
        beyond = np.abs(floats[:, column]) > most
        if beyond.any():
            position = int(np.flatnonzero(beyond)[0])
            raise ValueError(
                f"plan.{name}_n: got {floats[position, column]:g} at position {position}, takes -{most} to {most}"
            )
    # Not by their absolute values: that of the least integer is negative.
    shifts = ints[:, SHIFT_Y : SHIFT_X + 1]
    if ((shifts < -MAX_SIDE_PX) | (shifts > MAX_SIDE_PX)).any():
        raise ValueError(f"plan.shifts_n2: got a shift beyond {MAX_SIDE_PX}, takes at most that many pixels either way")
    for name, column in (("cutout", CUTOUT), ("cutmix", CUTMIX)):
        y0, x0, y1, x1 = ints[:, column : column + 4].T
        wrong = (y0 < 0) | (x0 < 0) | (y1 > height) | (x1 > width) | (y0 > y1) | (x0 > x1)
        if wrong.any():
            position = int(np.flatnonzero(wrong)[0])
            box = tuple(ints[position, column : column + 4].tolist())
            raise ValueError(
                f"plan.{name}_boxes_n4: got (y0, x0, y1, x1) = {box} at position {position}, "
                f"takes boxes inside {height}x{width} pixels"
            )
    weights = floats[:, WEIGHT]
    if ((weights < 0) | (weights > 1)).any():
        raise ValueError("plan.mix_weights_n: got a weight outside 0 to 1, takes 0 to 1")
    _check_cutmix_weights(ints[:, CUTMIX : CUTMIX + 4], weights, height * width)


def _check_cutmix_weights(boxes_n4: np.ndarray, weights_n: np.ndarray, pixels: int) -> None:
    y0, x0, y1, x1 = boxes_n4.astype(np.int64).T
    area = (y1 - y0) * (x1 - x0)
    wrong = (area > 0) & (weights_n != share(pixels - area, pixels))
    if wrong.any():
        position = int(np.flatnonzero(wrong)[0])
        shown = (pixels - int(area[position])) / pixels
        raise ValueError(
            f"plan.mix_weights_n: got {weights_n[position]} at position {position}, "
            f"takes the share of own pixels that its CutMix box leaves, {shown:.6g}"
        )

"""The compiled form for NVIDIA GPUs: drawing and augmenting in one launch on torch's current stream.

Nothing outside this package knows Numba's CUDA target, be it Numba's own or the numba-cuda package; it is imported
where images lie on a GPU, or under NUMBA_ENABLE_CUDASIM=1. Its arithmetic is that of reference.py.

A launch can be captured in a CUDA graph once it has run for the same settings and number of images; the captured seed
and epoch are then fixed.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from fastcifar.kernels import checks
from fastcifar.kernels.numba_cuda.draw import config
from fastcifar.kernels.numba_cuda.pixels import NUM_THREADS, compiled_kernel
from fastcifar.kernels.plan import (
    FLOAT32,
    NUM_SETTING_INTS,
    Plan,
    beta_tables,
    is_reflect,
    partners,
    settings_for,
)
from fastcifar.kernels.settings import Augmentation, Normalisation

if TYPE_CHECKING:
    import torch


def load_compiler() -> None:
    """Load the library that compiles for GPUs, NVVM, which Numba looks for only when it compiles.

    Raises ImportError or RuntimeError where it is not here.
    """
    if config.ENABLE_CUDASIM:
        return
    try:
        from numba.cuda.cudadrv.nvvm import NVVM
    except ImportError:  # not public: a version that keeps it elsewhere will say so when it compiles
        return
    NVVM()


def augment(
    images_nhwc: Any, rows_n: Any, plan: Plan, normalisation: Normalisation, dtype: "torch.dtype", out: Any
) -> "torch.Tensor":
    """Apply a plan to images on the GPU; the arguments of dispatch.augment, images, form and dtype checked.

    images_nhwc: uint8 [N, h, w, 3] on a GPU (under the simulator in main memory); rows_n: integers [n], a sequence, an
    array or a tensor, or None for all; plan: NumPy arrays for n images of h x w pixels. Scale and shift, float32 [3]
    each, are those of the normalisation. Returns [n, 3, h, w] of the dtype, channels-last, on the images' device: out,
    where it is given. Raises ValueError, before anything is launched, on a wrong row, plan or out.
    """
    import torch

    num_images, height, width, _ = images_nhwc.shape
    rows = np.arange(num_images) if rows_n is None else checks.int64_vector("rows_n", rows_n)
    checks.check_rows(rows, num_images)
    checks.check_plan_shape(plan, len(rows), height, width)
    checks.check_plan_numbers(plan)
    device = _device(images_nhwc)
    settings = _Settings(Augmentation(padding_mode=plan.padding_mode), normalisation, height, width, num_images)
    batch, _weights = _launch(
        images_nhwc,
        torch.from_numpy(rows).to(device),
        torch.empty(0, dtype=torch.int64, device=device),
        torch.from_numpy(plan.ints_nk).to(device),
        torch.from_numpy(plan.floats_nk).to(device),
        settings,
        0,
        0,
        dtype,
        out,
    )
    return batch


def augment_batch(
    images_nhwc: Any,
    rows_n: Any,
    augmentation: Augmentation,
    normalisation: Normalisation,
    seed: int,
    epoch: int,
    indices_n: Any,
    dtype: "torch.dtype",
    out: Any,
) -> "tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]":
    """Draw and augment on the GPU; the arguments of dispatch.augment_batch, of which dispatch has checked some.

    Checked are images, form, dtype, seed, epoch, and that the settings fit the images.
    images_nhwc: uint8 [N, h, w, 3] on a GPU (under the simulator in main memory); rows_n, indices_n: integers [n], from
    main memory, or int64 [n], contiguous, on the images' GPU; indices_n None takes the rows. Returns (images
    [n, 3, h, w] of the dtype, channels-last, mix_weights float32 [n], partners int64 [n]), on the images' device, the
    last two None without mixing; the partners are shared by batches of a size. Raises ValueError, before anything is
    launched, on wrong indices or out, and on a wrong row from main memory; for rows on the GPU see raise_for_bad_rows.
    """
    num_images, height, width, _ = images_nhwc.shape
    device = _device(images_nhwc)
    rows = _int64("rows_n", rows_n, device, num_images)
    indices = rows if indices_n is None else _int64("indices_n", indices_n, device, None)
    checks.check_num_indices(len(indices), len(rows))
    settings = _Settings(augmentation, normalisation, height, width, num_images)
    nothing = _nothing(device)
    batch, weights = _launch(images_nhwc, rows, indices, *nothing, settings, int(seed), int(epoch), dtype, out)
    if not augmentation.mixes:
        return batch, None, None
    return batch, weights, _partners(device, len(rows))


def raise_for_bad_rows(device: Any) -> None:
    """Raise ValueError where, since the last call, a row on this GPU was not one of the images'; waits for the GPU.

    device: torch.device; without an index, the current one.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        # The flag is kept by device, as tensors name theirs: with the index.
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        # Batches may be under way on streams other than the current one.
        torch.cuda.synchronize(device)
    flag = _bad_rows(device)
    if int(flag.item()):
        flag.zero_()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        raise ValueError(
            "rows_n: got a row outside the images in a tensor on the GPU, takes 0 to the number of images - 1"
        )


class _Settings(NamedTuple):
    augmentation: Augmentation
    normalisation: Normalisation
    height: int
    width: int
    num_images: int


def _device(images: Any) -> Any:
    import torch

    return torch.device("cpu") if isinstance(images, np.ndarray) else images.device


def _int64(name: str, values: Any, device: Any, num_images: int | None) -> "torch.Tensor":
    """Values as int64 [n] on the device; those that come from main memory are checked to be rows."""
    import torch

    if isinstance(values, torch.Tensor) and values.is_cuda:
        if values.ndim != 1 or values.dtype != torch.int64 or not values.is_contiguous() or values.device != device:
            raise ValueError(
                f"{name}: got {tuple(values.shape)} of {values.dtype} on {values.device}, takes a contiguous vector of "
                f"int64 on {device}"
            )
        return values
    array = checks.int64_vector(name, values)
    if num_images is not None:
        checks.check_rows(array, num_images)
    return torch.from_numpy(array).to(device)


# What a launch reads besides its arguments, and what its callers share, is kept for ever: a captured CUDA graph goes on
# reading it, at the same addresses, and its memory must not go to others. For each settings that is some 33 KB, and 8
# bytes an image for each size of batch. It is made in main memory and copied, which unlike filling is over on return:
# the next launch, or caller, may be on any stream.


@cache
def _bad_rows(device: Any) -> "torch.Tensor":
    """Flag of a device, int32 [1]: whether a row was outside."""
    import torch

    with torch.inference_mode(False):  # or it could not be set back outside of it
        return torch.zeros(1, dtype=torch.int32).to(device)


@cache
def _stream(device: Any, pointer: int) -> Any:
    """Numba's name for torch's stream: Numba prepares a launch anew for every stream object that it has not seen."""
    return cuda.external_stream(pointer)


@cache
def _partners(device: Any, num_images: int) -> "torch.Tensor":
    """plan.partners on the device, so that a batch takes one launch alone."""
    import torch

    with torch.inference_mode(False):  # or it would be of no use outside of it
        return torch.from_numpy(partners(num_images)).to(device)


@cache
def _nothing(device: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    return torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, dtype=torch.float32, device=device)


@cache
def _on_device(settings: _Settings, kind: int, device: Any) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Settings as the kernel reads them, and the quantiles: int64, float32 and float32."""
    import torch

    augmentation, normalisation = settings.augmentation, settings.normalisation
    drawn = settings_for(augmentation, settings.height, settings.width)
    # In the order of the columns that pixels.py names.
    setting_ints = [*drawn[:NUM_SETTING_INTS], int(is_reflect(augmentation.padding_mode)), kind, settings.num_images]
    setting_floats = np.array([*drawn[NUM_SETTING_INTS:], *normalisation.scale, *normalisation.shift], dtype=np.float32)
    tables = np.concatenate(beta_tables(drawn))
    arrays = (np.array(setting_ints, dtype=np.int64), setting_floats, tables)
    return tuple(torch.from_numpy(array).to(device) for array in arrays)  # type: ignore[return-value]


def _launch(
    images: Any,
    rows: "torch.Tensor",
    indices: "torch.Tensor",
    plan_ints: "torch.Tensor",
    plan_floats: "torch.Tensor",
    settings: _Settings,
    seed: int,
    epoch: int,
    dtype: "torch.dtype",
    out: Any,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Run the kernel on torch's current stream; returns the batch and the weights of the own labels."""
    import torch

    device, height, width = rows.device, settings.height, settings.width
    num_values = 3 * height * width
    batch = checks.output(out, (len(rows), 3, height, width), dtype, _device(images))
    weights = torch.empty(len(rows), dtype=torch.float32, device=device)
    if len(rows) == 0:
        return batch, weights
    kind = checks.kind_of(dtype)
    setting_ints, setting_floats, tables = _on_device(settings, kind, device)
    flat = batch.permute(0, 2, 3, 1).reshape(-1)
    nothing = flat[:0]
    # NumPy has no bfloat16, and words of 32 bits need whole ones in every image.
    out32 = flat if kind == FLOAT32 else nothing.view(torch.int16).float()
    out16 = (nothing if kind == FLOAT32 else flat).view(torch.int16)
    pairs = (flat if kind != FLOAT32 and num_values % 2 == 0 else nothing).view(torch.int32)
    arrays = [
        images.reshape(-1),
        rows,
        indices,
        setting_ints,
        setting_floats,
        tables,
        plan_ints.reshape(-1),
        plan_floats.reshape(-1),
    ]
    results = [weights, out16, pairs, out32, _bad_rows(device)]
    arguments = (*_arrays(arrays), np.uint64(seed), np.uint64(epoch), *_arrays(results))
    if config.ENABLE_CUDASIM:
        compiled_kernel()[len(rows), NUM_THREADS](*arguments)
        return batch, weights
    with torch.cuda.device(device), cuda.gpus[device.index]:
        stream = _stream(device, torch.cuda.current_stream(device).cuda_stream)
        compiled_kernel()[len(rows), NUM_THREADS, stream](*arguments)
    return batch, weights


def _arrays(tensors: Any) -> Any:
    """What Numba takes: tensors on a GPU as they are, arrays under the simulator."""
    if config.ENABLE_CUDASIM:
        return [tensor if isinstance(tensor, np.ndarray) else tensor.numpy() for tensor in tensors]
    return tensors

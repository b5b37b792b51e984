"""The kernels as operators of torch, for use inside compiled functions: torch.ops.fastcifar.augment and .augment_batch.

Each has a fake kernel, so that `torch.compile(fullgraph=True)` traces through it, and works on the CPU and on the
GPU. The functions here take the same settings as those of the package and call the operators. Importing this module
registers them.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastcifar.kernels import dispatch
from fastcifar.kernels.plan import Plan, partners_on
from fastcifar.kernels.settings import Augmentation, Normalisation


def augment(
    images_nhwc: Tensor,
    rows_n: Tensor,
    ints_nk: Tensor,
    floats_nk: Tensor,
    normalisation: Normalisation,
    *,
    padding_mode: str = "reflect",
    dtype: torch.dtype = torch.bfloat16,
    form: str = "auto",
) -> Tensor:
    """Apply a plan inside a compiled function; as `fastcifar.kernels.augment`, on tensors.

    images_nhwc: uint8 [N, h, w, 3]; rows_n: int64 [n]; ints_nk, floats_nk: those of a Plan, in main memory. Returns
    [n, 3, h, w] in channels-last memory. Raises ValueError as the function of the package does.
    """
    return _augment(
        images_nhwc,
        rows_n,
        ints_nk,
        floats_nk,
        padding_mode,
        list(normalisation.mean),
        list(normalisation.std),
        dtype,
        form,
    )


def augment_batch(
    images_nhwc: Tensor,
    rows_n: Tensor,
    augmentation: Augmentation,
    normalisation: Normalisation,
    *,
    seed: int,
    epoch: int,
    indices_n: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    form: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw and augment inside a compiled function; as `fastcifar.kernels.augment_batch`, on tensors.

    seed: 0 to 2**63 - 1, as operators take integers. Returns (images [n, 3, h, w], mix_weights float32 [n], partners
    int64 [n]); without mixing the weights are 1. Raises ValueError as the function of the package does, where compiled
    when the operator runs.
    """
    a = augmentation.at(epoch)
    return _augment_batch(
        images_nhwc,
        rows_n,
        rows_n if indices_n is None else indices_n,
        [a.crop_padding, a.cutout],
        a.padding_mode,
        a.flip,
        a.mix_per,
        [a.cutmix, a.mixup, a.mix_probability, a.mix_switch, a.brightness, a.contrast, a.rotation, a.saturation, a.hue],
        list(normalisation.mean),
        list(normalisation.std),
        seed,
        epoch,
        dtype,
        form,
    )


# Under a CUDA graph the plan could not be brought to the GPU: a compiler leaves this operator out of its graphs.
@torch.library.custom_op("fastcifar::augment", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _augment(
    images_nhwc: Tensor,
    rows_n: Tensor,
    ints_nk: Tensor,
    floats_nk: Tensor,
    padding_mode: str,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    form: str,
) -> Tensor:
    height, width = images_nhwc.shape[1:3] if images_nhwc.ndim == 4 else (0, 0)
    plan = Plan(ints_nk.cpu().numpy(), floats_nk.cpu().numpy(), height, width, padding_mode)
    return dispatch.augment(
        images_nhwc, plan, _normalisation(tuple(mean), tuple(std)), rows_n=rows_n, dtype=dtype, form=form
    )


# What it keeps from its first call to its last must not lie in the memory of a graph that was being recorded.
@torch.library.custom_op("fastcifar::augment_batch", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _augment_batch(
    images_nhwc: Tensor,
    rows_n: Tensor,
    indices_n: Tensor,
    pixels: list[int],
    padding_mode: str,
    flip: str,
    mix_per: str,
    amounts: list[float],
    mean: list[float],
    std: list[float],
    seed: int,
    epoch: int,
    dtype: torch.dtype,
    form: str,
) -> tuple[Tensor, Tensor, Tensor]:
    images, weights, partners = dispatch.augment_batch(
        images_nhwc,
        rows_n,
        _augmentation(tuple(pixels), padding_mode, flip, mix_per, tuple(amounts)),
        _normalisation(tuple(mean), tuple(std)),
        seed=seed,
        epoch=epoch,
        indices_n=indices_n,
        dtype=dtype,
        form=form,
    )
    num_images = rows_n.shape[0]
    if weights is None or partners is None:
        weights = torch.ones(num_images, device=images.device)
        partners = partners_on(images.device, num_images)
    # What an operator returns is its caller's own.
    return images, weights, partners.clone()


@_augment.register_fake
def _(
    images_nhwc: Tensor,
    rows_n: Tensor,
    ints_nk: Tensor,
    floats_nk: Tensor,
    padding_mode: str,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    form: str,
) -> Tensor:
    return _empty(images_nhwc, rows_n, dtype)


@_augment_batch.register_fake
def _(
    images_nhwc: Tensor,
    rows_n: Tensor,
    indices_n: Tensor,
    pixels: list[int],
    padding_mode: str,
    flip: str,
    mix_per: str,
    amounts: list[float],
    mean: list[float],
    std: list[float],
    seed: int,
    epoch: int,
    dtype: torch.dtype,
    form: str,
) -> tuple[Tensor, Tensor, Tensor]:
    num_images = rows_n.shape[0]
    weights = images_nhwc.new_empty(num_images, dtype=torch.float32)
    return _empty(images_nhwc, rows_n, dtype), weights, images_nhwc.new_empty(num_images, dtype=torch.int64)


def _empty(images_nhwc: Tensor, rows_n: Tensor, dtype: torch.dtype) -> Tensor:
    _, height, width, channels = images_nhwc.shape
    return images_nhwc.new_empty((rows_n.shape[0], height, width, channels), dtype=dtype).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _normalisation(mean: Any, std: Any) -> Normalisation:
    return Normalisation(mean, std)


@lru_cache(maxsize=16)
def _augmentation(pixels: Any, padding_mode: str, flip: str, mix_per: str, amounts: Any) -> Augmentation:
    crop_padding, cutout = pixels
    cutmix, mixup, mix_probability, mix_switch, brightness, contrast, rotation, saturation, hue = amounts
    return Augmentation(
        crop_padding=crop_padding,
        padding_mode=padding_mode,
        flip=flip,
        cutout=cutout,
        cutmix=cutmix,
        mixup=mixup,
        mix_probability=mix_probability,
        mix_switch=mix_switch,
        mix_per=mix_per,
        brightness=brightness,
        contrast=contrast,
        rotation=rotation,
        saturation=saturation,
        hue=hue,
    )

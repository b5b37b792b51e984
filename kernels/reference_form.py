"""The reference form behind the calls that the compiled form for the CPU has too."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastcifar.kernels import checks, reference
from fastcifar.kernels.plan import Plan, PlanKey, beta_tables, scale_shift
from fastcifar.kernels.settings import Normalisation

if TYPE_CHECKING:
    import torch


def draw(key: PlanKey, plan: Plan, num_threads: int | None = None) -> None:
    """Fill a plan's arrays."""
    settings, seed, epoch, indices_n = key
    reference.draw(settings, beta_tables(settings), int(seed), int(epoch), indices_n, plan.ints_nk, plan.floats_nk)


check_rows = checks.check_rows


def check(plan: Plan, rows_n: np.ndarray, num_images: int, height: int, width: int) -> None:
    """Raise ValueError where a row or the plan is wrong."""
    checks.check_rows(rows_n, num_images)
    checks.check_plan_shape(plan, len(rows_n), height, width)
    checks.check_plan_numbers(plan)


def draw_and_augment(
    images_nhwc: Any,
    rows_n: np.ndarray,
    key: PlanKey,
    plan: Plan,
    normalisation: Normalisation,
    out: "torch.Tensor",
    num_threads: int | None = None,
) -> None:
    """Fill the plan's arrays, and write the batch to out."""
    draw(key, plan)
    augment(images_nhwc, rows_n, plan, normalisation, out)


def augment(
    images_nhwc: Any,
    rows_n: np.ndarray,
    plan: Plan,
    normalisation: Normalisation,
    out: "torch.Tensor",
    num_threads: int | None = None,
) -> None:
    """Write the batch to out, [n, 3, h, w] channels-last."""
    import torch

    if len(rows_n) == 0:
        return
    images = images_nhwc if isinstance(images_nhwc, np.ndarray) else images_nhwc.detach().cpu().numpy()
    batch = reference.augment(images, rows_n, plan, *scale_shift(normalisation))
    out.copy_(torch.from_numpy(batch).permute(0, 3, 1, 2))

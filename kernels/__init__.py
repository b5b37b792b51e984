"""Augmentation of uint8 image batches in one pass over memory, in a reference, a CPU and a CUDA form.

Five lines, on your own uint8 images of any size up to 256x256 (torch tensors or NumPy arrays, [N, height, width, 3]):

    from fastcifar.kernels import Augmentation, Normalisation, augment, draw_plan
    augmentation = Augmentation(crop_padding=4, flip="random", cutmix=1.0)
    normalisation = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    plan = draw_plan(augmentation, seed=0, epoch=3, indices_n=range(512), height=32, width=32)
    batch = augment(images_nhwc, plan, normalisation, rows_n=range(512))  # bfloat16 [512, 3, 32, 32], channels-last

`plan.mix_weights_n` and `plan.partners_n` say how to mix the labels. `augment_batch` draws and augments in one call,
and an `Augmenter` does that for one batch after the other, as a training loop wants it:

    augmenter = Augmenter(augmentation, normalisation, seed=0)
    images, mix_weights, partners = augmenter(images_nhwc, range(512), epoch=3)

`epoch_order` shuffles; `fastcifar.kernels.ops` holds the same as operators for compiled functions.

What happens to an image is a pure function of (seed, epoch, index) and of its partner in the batch, the same in every
form to the last bit, whatever the number of threads.
"""

from typing import TYPE_CHECKING

from fastcifar.kernels.lazy import attributes

if TYPE_CHECKING:
    from fastcifar.kernels.augmenter import Augmenter
    from fastcifar.kernels.dispatch import augment, augment_batch, draw_plan, epoch_order, prepare, raise_for_bad_rows
    from fastcifar.kernels.plan import Plan
    from fastcifar.kernels.settings import Augmentation, Normalisation

__all__ = [
    "Augmentation",
    "Augmenter",
    "Normalisation",
    "Plan",
    "augment",
    "augment_batch",
    "draw_plan",
    "epoch_order",
    "prepare",
    "raise_for_bad_rows",
]

_HOMES = {
    "Augmentation": "settings",
    "Augmenter": "augmenter",
    "Normalisation": "settings",
    "Plan": "plan",
    "augment": "dispatch",
    "augment_batch": "dispatch",
    "draw_plan": "dispatch",
    "epoch_order": "dispatch",
    "prepare": "dispatch",
    "raise_for_bad_rows": "dispatch",
}


__getattr__ = attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The public functions: check what came in, pick the form, hand it plain arrays."""

import threading
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastcifar.kernels import checks, philox
from fastcifar.kernels.errors import MissingLibraryError
from fastcifar.kernels.lazy import quick_imports
from fastcifar.kernels.plan import NUM_FLOATS, NUM_INTS, Plan, PlanKey, Settings, partners_of, settings_for
from fastcifar.kernels.settings import Augmentation, Normalisation

if TYPE_CHECKING:
    import torch


def draw_plan(
    augmentation: Augmentation,
    *,
    seed: int,
    epoch: int,
    indices_n: Any,
    height: int,
    width: int,
    form: str = "auto",
    num_threads: int | None = None,
) -> Plan:
    """Draw what is done to the images of a batch: a pure function of its arguments, the same in every form.

    indices_n: index of each image in the data set, integers [n] (a sequence, an array or a tensor). The images have
    height x width pixels. What is drawn per batch is drawn by the index of its first image. Returns a Plan of NumPy
    arrays. Raises ValueError on a wrong form, number of threads or indices, and where the settings do not fit the
    images, or seed or epoch the generator (64 and 32 bits).
    """
    checks.check_form(form)
    checks.check_num_threads(num_threads)
    checks.check_seed_epoch(seed, epoch)
    augmentation = augmentation.at(epoch)
    settings = settings_for(augmentation, height, width)
    indices = checks.int64_vector("indices_n", indices_n)
    # A plan is drawn in main memory for every form; augment() takes it to the GPU, augment_batch() draws it there.
    host = host_form(form if form == "reference" else "auto")
    plan = new_plan(augmentation, settings, len(indices))
    host.draw(PlanKey(settings, seed, epoch, indices), plan, num_threads)
    return plan


def augment(
    images_nhwc: Any,
    plan: Plan,
    normalisation: Normalisation,
    *,
    rows_n: Any = None,
    dtype: Any = "bfloat16",
    form: str = "auto",
    out: Any = None,
    num_threads: int | None = None,
) -> "torch.Tensor":
    """Gather, augment, normalise and cast a batch in one pass over memory.

    images_nhwc: uint8 [N, h, w, 3], torch tensor or NumPy array (memory-mapped too), contiguous, up to 256x256 pixels.
    plan: what is done to each of the n images, from `draw_plan`. rows_n: which rows make the batch, integers [n]; None
    takes all in order. dtype: "float32", "bfloat16", "float16" or the torch.dtype. form: "auto" takes "cuda" for images
    on a GPU, else "numba" where Numba is installed, else "reference". out: tensor to write to, shaped as the result.
    num_threads: on the CPU, at most this many; None takes torch.get_num_threads().

    Returns [n, 3, h, w] in channels-last memory, on the images' device. The image at position i is mixed with the one
    at (i + 1) % n. Raises ValueError, before any memory is touched, on a wrong dtype, layout, size, row, plan, form,
    number of threads or `out`.
    """
    import torch

    checks.check_images(images_nhwc)
    checks.check_num_threads(num_threads)
    torch_dtype = checks.torch_dtype(dtype)
    form = pick_form(form, images_nhwc)
    if form == "cuda":
        return cuda_form().augment(images_nhwc, rows_n, plan, normalisation, torch_dtype, out)
    num_images, height, width, _ = images_nhwc.shape
    rows = np.arange(num_images) if rows_n is None else checks.int64_vector("rows_n", rows_n)
    host = host_form(form)
    host.check(plan, rows, num_images, height, width)
    batch = checks.output(out, (len(rows), 3, height, width), torch_dtype, torch.device("cpu"))
    host.augment(images_nhwc, rows, plan, normalisation, batch, num_threads)
    return batch


def augment_batch(
    images_nhwc: Any,
    rows_n: Any,
    augmentation: Augmentation,
    normalisation: Normalisation,
    *,
    seed: int,
    epoch: int,
    indices_n: Any = None,
    dtype: Any = "bfloat16",
    form: str = "auto",
    out: Any = None,
    num_threads: int | None = None,
) -> "tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]":
    """Draw and augment in one call: `draw_plan` and `augment`, with less between them.

    rows_n: which rows of images_nhwc make the batch, integers [n]. indices_n: index of each image in the data set, by
    which is drawn; None where that is its row. The rest is as for `augment` and `draw_plan`.

    Returns (images [n, 3, h, w], mix_weights float32 [n], partners int64 [n]) on the images' device; the last two are
    None where no mixing is configured. The partners are shared by all batches of a size: do not write to them.
    Raises ValueError, before any memory is touched, on a wrong dtype, layout, size, row, number of indices, seed,
    epoch, form, number of threads or `out`, and where the settings do not fit the images.

    Rows in a tensor on a GPU are the exception: the kernel itself checks them, and nothing waits for it. The image of a
    row that does not exist comes out as zeros, and the ValueError is raised by `raise_for_bad_rows`, when it is called.
    """
    import torch

    checks.check_images(images_nhwc)
    checks.check_num_threads(num_threads)
    checks.check_seed_epoch(seed, epoch)
    augmentation = augmentation.at(epoch)
    torch_dtype = checks.torch_dtype(dtype)
    form = pick_form(form, images_nhwc)
    num_images, height, width, _ = images_nhwc.shape
    settings = settings_for(augmentation, height, width)
    if form == "cuda":
        return cuda_form().augment_batch(
            images_nhwc,
            rows_n,
            augmentation,
            normalisation,
            seed,
            epoch,
            indices_n,
            torch_dtype,
            out,
        )
    rows = checks.int64_vector("rows_n", rows_n)
    indices = rows if indices_n is None else checks.int64_vector("indices_n", indices_n)
    checks.check_num_indices(len(indices), len(rows))
    host = host_form(form)
    host.check_rows(rows, num_images)
    batch = checks.output(out, (len(rows), 3, height, width), torch_dtype, torch.device("cpu"))
    plan = _kept_plan(augmentation, settings, len(indices))
    key = PlanKey(settings, seed, epoch, indices)
    host.draw_and_augment(images_nhwc, rows, key, plan, normalisation, batch, num_threads)
    if not augmentation.mixes:
        return batch, None, None
    return batch, torch.from_numpy(plan.mix_weights_n.copy()), partners_of(len(rows))


def prepare(device: Any) -> None:
    """Have the compiled form for a device ready, which otherwise happens with the first batch.

    It is read from Numba's cache or, the first time on a machine, compiled. For a GPU that takes a batch of one pixel,
    and of what is for the CPU the order of images alone. device: torch.device or its name. Raises MissingLibraryError
    (a ValueError) where what compiles for a GPU is not here, as does whatever is given images on one.
    """
    import torch

    # All at once: between two imports the collector would look through what the first has made.
    with quick_imports():
        if has_numba():
            _compiled_order()
        if torch.device(device).type != "cuda":
            host_form("auto")
    if torch.device(device).type == "cuda":
        pixel_nhwc = torch.zeros((1, 1, 1, 3), dtype=torch.uint8, device=device)
        augment_batch(pixel_nhwc, [0], Augmentation(), Normalisation.identity(), seed=0, epoch=0)


def raise_for_bad_rows(device: Any) -> None:
    """Raise ValueError where, since the last call, a row in a tensor on this GPU was not one of the images'.

    device: torch.device or its name; "cuda" is the current one. Waits for all that the GPU has been given. Does nothing
    for a CPU, where augment_batch raises by itself.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda" or simulates_cuda():
        cuda_form().raise_for_bad_rows(device)


def epoch_order(num_images: int, seed: int, epoch: int, *, form: str = "auto") -> np.ndarray:
    """Order in which an epoch shows the images: a permutation, int64 [num_images], a pure function of its arguments.

    Raises ValueError where num_images is no count below 2**32, or seed or epoch does not fit the generator.
    """
    checks.check_seed_epoch(seed, epoch)
    if not (isinstance(num_images, int | np.integer) and 0 <= num_images < 1 << 32):
        raise ValueError(f"num_images: got {num_images!r}, takes an integer from 0 to 2**32 - 1")
    checks.check_form(form)
    if form == "reference" or not has_numba():
        return philox.epoch_order(int(num_images), seed, epoch)
    return _compiled_order().epoch_order(int(num_images), seed, epoch)


def _compiled_order() -> ModuleType:
    with quick_imports():
        from fastcifar.kernels import numba_order

    return numba_order


def pick_form(form: str, images: Any) -> str:
    """Form for these images; raises ValueError where the named one cannot take them."""
    checks.check_form(form)
    on_gpu = not isinstance(images, np.ndarray) and images.is_cuda
    if form == "auto":
        form = "cuda" if on_gpu else "numba" if has_numba() else "reference"
    if form in ("numba", "reference") and on_gpu:
        raise ValueError(f"form: got {form!r} for images on a GPU, takes 'auto' or 'cuda'")
    if form == "cuda" and not on_gpu and not simulates_cuda():
        raise ValueError("form: got 'cuda' for images in main memory, takes 'auto', 'numba' or 'reference'")
    return form


@lru_cache(maxsize=1)
def has_numba() -> bool:
    """Whether Numba is installed."""
    from importlib.util import find_spec

    return find_spec("numba") is not None


def simulates_cuda() -> bool:
    """Whether Numba runs CUDA kernels on the CPU, as tests ask it to."""
    import os

    return os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"


class HostForm(Protocol):
    """What the module of a form for the CPU has. What it is given has been checked, rows and plans by itself.

    num_threads: at most this many; None takes torch.get_num_threads(). The reference form takes one, whatever is asked.
    """

    def draw(self, key: PlanKey, plan: Plan, num_threads: int | None = None) -> None:
        """Fill a plan's arrays."""

    def check(self, plan: Plan, rows_n: np.ndarray, num_images: int, height: int, width: int) -> None:
        """Raise ValueError where a row (int64 [n]) or the plan is wrong."""

    def check_rows(self, rows_n: np.ndarray, num_images: int) -> None:
        """Raise ValueError where a row is not one of the images'."""

    def augment(
        self,
        images_nhwc: Any,
        rows_n: np.ndarray,
        plan: Plan,
        normalisation: Normalisation,
        out: "torch.Tensor",
        num_threads: int | None = None,
    ) -> None:
        """Write the batch to out, [n, 3, h, w] channels-last."""

    def draw_and_augment(
        self,
        images_nhwc: Any,
        rows_n: np.ndarray,
        key: PlanKey,
        plan: Plan,
        normalisation: Normalisation,
        out: "torch.Tensor",
        num_threads: int | None = None,
    ) -> None:
        """Fill the plan's arrays and write the batch to out."""


@lru_cache(maxsize=4)
def host_form(form: str) -> HostForm:
    """Module of the reference or of the compiled form for the CPU."""
    if form == "reference" or (form == "auto" and not has_numba()):
        from fastcifar.kernels import reference_form

        return reference_form
    if not has_numba():
        raise ValueError("form: got 'numba' without Numba, takes it after: pip install numba")
    with quick_imports():
        from fastcifar.kernels import numba_cpu

    return numba_cpu


def new_plan(augmentation: Augmentation, settings: Settings, num_images: int) -> Plan:
    """A plan in new memory, yet to be filled; the settings are those of the augmentation."""
    ints = np.empty((num_images, NUM_INTS), dtype=np.int32)
    floats = np.empty((num_images, NUM_FLOATS), dtype=np.float32)
    return Plan(ints, floats, settings.height, settings.width, augmentation.padding_mode)


_LOCAL = threading.local()


def _kept_plan(augmentation: Augmentation, settings: Settings, num_images: int) -> Plan:
    """A plan in memory of the calling thread, to be filled and gone when that thread asks for another.

    New memory for every batch would take hundredths of its time.
    """
    of = (num_images, settings.height, settings.width, augmentation.padding_mode)
    kept: tuple[tuple[int, int, int, str], Plan] | None = getattr(_LOCAL, "plan", None)
    if kept is None or kept[0] != of:
        kept = _LOCAL.plan = of, new_plan(augmentation, settings, num_images)
    return kept[1]


@lru_cache(maxsize=1)
def cuda_form() -> ModuleType:
    """Module of the compiled form for the GPU. `MissingLibraryError` where Numba's CUDA target does not work here."""
    try:
        from fastcifar.kernels import numba_cuda

        numba_cuda.load_compiler()
    except (ImportError, OSError, RuntimeError) as error:
        import torch

        major = (torch.version.cuda or "13").partition(".")[0]
        reason = " ".join(str(error).split())
        raise MissingLibraryError(
            f"Images on a GPU need numba-cuda, which does not load here ({reason}): pip install 'numba-cuda[cu{major}]'"
        ) from error
    return numba_cuda

"""What to say when memory runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from fastcifar.training.device import describe


class OutOfMemoryError(ValueError):
    """The device's memory does not hold a step, or an evaluation, of this batch size."""


# Of the CPU's allocator; of pinned memory and launches, of cuBLAS and of cuDNN, which ask the driver themselves.
_WORDINGS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is one of torch's ways of saying so; only that of a GPU's own allocator has a class."""
    return isinstance(error, torch.OutOfMemoryError) or any(wording in str(error) for wording in _WORDINGS)


@contextmanager
def told_of_memory(why: str, device: torch.device) -> Iterator[None]:
    """Where memory runs out in the body, say so by an `OutOfMemoryError`, and `why`."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory on {describe(device)} {why}") from None


def fits(work: Callable[[], object]) -> bool:
    """Do some work; False where memory ran out, of which nothing of the work holds any more then."""
    try:
        work()
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        return False
    return True


def largest_fitting(attempt: Callable[[int], None], batch_size: int) -> int:
    """The largest of batch_size / 2, / 4 ... for which `attempt` does not run out of memory; 0 where none is."""
    num = batch_size // 2
    while num:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if fits(partial(attempt, num)):
            return num
        num //= 2
    return 0

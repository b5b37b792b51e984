"""How many threads compiled code runs in, and running it in them."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import get_num_threads, set_num_threads, threading_layer

from fastcifar.kernels import numba_share
from fastcifar.kernels.checks import check_num_threads
from fastcifar.kernels.numba_jit import config

_LOCK = threading.Lock()


def num_tasks_for(num_images: int, num_threads: int | None = None) -> int:
    """Number of threads to share the images among; num_threads: at most this many, None takes torch.get_num_threads().

    Raises ValueError where num_threads is less than 1.
    """
    check_num_threads(num_threads)
    if num_threads is None:
        import torch

        num_threads = torch.get_num_threads()
    return max(1, min(num_threads, num_images, config.NUMBA_NUM_THREADS))


def share_out(function: Any, num: int, numbers: Sequence[int] | np.ndarray, num_tasks: int) -> None:
    """Do num pieces of work in num_tasks threads; a single task is the caller's, which may be a forked process.

    function: of numba_share.shared; numbers: what it takes, addresses of memory that the caller keeps among them; an
    array of them is not copied.
    """
    told = np.asarray(numbers, dtype=np.int64)
    if num_tasks == 1:
        numba_share.alone(function.address, num, told)
    else:
        run_parallel(numba_share.in_parallel, num_tasks, function.address, num, told)


def run_parallel(parallel: Callable[..., None], num_tasks: int, *arguments: Any) -> None:
    """Run a compiled loop over num_tasks tasks in as many threads."""
    # The caller's own functions, if parallel, go by the same number.
    kept = get_num_threads()
    try:
        if kept != num_tasks:
            set_num_threads(num_tasks)
        if threading_layer() == "workqueue":
            # Numba's own thread pool breaks when two threads enter it; OpenMP and TBB do not.
            with _LOCK:
                parallel(num_tasks, *arguments)
        else:
            parallel(num_tasks, *arguments)
    finally:
        if kept != num_tasks:
            set_num_threads(kept)

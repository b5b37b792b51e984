"""Several devices train one network: a process for each, as torchrun starts them, or a single one without it.

Every process makes the same batches and trains on its share of each; gradients, running statistics and what is told of
a step are averaged before the weights move, so that after every step all hold the same network. Norms take their
statistics from a share, not from the batch. torch's DistributedDataParallel wraps the network for as much; averaging
all at once instead leaves the network as it is to compilers, checkpoints and the frozen stem.
"""

import atexit
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fastcifar import torchrun
from fastcifar.interruption import FailedError

if TYPE_CHECKING:
    from fastcifar.pipelines import Batch


_Path = TypeVar("_Path", Path, Path | None)


def join() -> None:
    """Join the processes that torchrun started beside this one; nothing where it did not. Before anything else.

    All but the first are silent on stdout. `ValueError` where a machine has fewer GPUs than processes.
    """
    if torchrun.num_processes() == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        local, num = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= num:
            raise ValueError(f"torchrun: got more processes than GPUs, takes --nproc-per-node={num} at most here")
        torch.cuda.set_device(local)
    dist.init_process_group(backend)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        # torchrun ends the others where one has failed: they take their folders with them.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def num_processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that speaks and keeps the run."""
    return not dist.is_initialized() or dist.get_rank() == 0


def seeds() -> list[int]:
    """What sets this process's draws apart from those of the first, which draws as one that is alone."""
    return [] if is_first() else [dist.get_rank()]


def command() -> str:
    """What a user starts as many processes by as there are."""
    num = num_processes()
    return "fastcifar" if num == 1 else f"torchrun --standalone --nproc-per-node={num} -m fastcifar"


def own_folder(path: _Path, *, goes_on: bool = False) -> _Path:
    """The run folder that this process writes: `path` in the first; in others one that nobody keeps.

    So that everything is written in one way. Of a run that goes on they get a copy of what that takes. All processes
    must call it.
    """
    if num_processes() == 1:
        return path
    own = path
    if not is_first():
        scratch = tempfile.mkdtemp(prefix="fastcifar-")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        own = Path(scratch) / "run"
        if goes_on and path is not None and path.is_dir():
            shutil.copytree(path, own, ignore=shutil.ignore_patterns("*.png", "weights.*", "best.*", "predictions.*"))
    wait_for_all()
    return own


def wait_for_all() -> None:
    """Until every process is here."""
    largest(0)


@torch.no_grad()
def begin(network: nn.Module, *about: str) -> None:
    """Have all processes begin with the first one's network; `FailedError` where they are told other things about it.

    Such as another data set: one process may have found what another has not.
    """
    if num_processes() == 1:
        return
    digest = int.from_bytes(hashlib.sha256("\0".join(about).encode()).digest()[:7])
    if largest(digest) != -largest(-digest):
        raise FailedError("torchrun's processes found other settings or other images than each other")
    for tensor in network.state_dict().values():
        dist.broadcast(tensor, 0)


def check_batch_size(batch_size: int) -> None:
    """Raise `ValueError` where a batch cannot be shared out evenly."""
    if batch_size % num_processes():
        raise ValueError(
            f"pipeline.batch_size: got {batch_size}, takes a multiple of the {num_processes()} processes that share it"
        )


def share(batch: "Batch") -> "Batch":
    """This process's part of a batch, which is as long as that of every other."""
    if num_processes() == 1:
        return batch
    length = len(batch.labels) // num_processes()
    part = slice(dist.get_rank() * length, (dist.get_rank() + 1) * length)
    return batch.part(part)


@torch.no_grad()
def average_step(network: nn.Module, *told: Tensor) -> None:
    """After a backward pass, have gradients, running statistics and what is told of a step hold their means.

    Over all processes, by one exchange in float32.
    """
    if num_processes() == 1:
        return
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    tensors = [*gradients, *(buffer for buffer in network.buffers() if buffer.is_floating_point()), *told]
    flat = torch.cat([tensor.float().flatten() for tensor in tensors])
    _exchange(flat, dist.ReduceOp.SUM)
    flat /= num_processes()
    for tensor, average in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(average.view(tensor.shape))


def largest(number: int) -> int:
    """The largest of a number over all processes: what stops one must stop all at the same step. All must call it."""
    if num_processes() == 1:
        return number
    numbers = torch.tensor([number])
    _exchange(numbers, dist.ReduceOp.MAX)
    return int(numbers.item())


def mean(number: float) -> float:
    """Mean of a number over all processes, which all get to the same bits. All must call it."""
    if num_processes() == 1:
        return number
    numbers = torch.tensor([number], dtype=torch.float64)
    _exchange(numbers, dist.ReduceOp.SUM)
    return numbers.item() / num_processes()


def _exchange(values: Tensor, how: dist.ReduceOp.RedOpType) -> None:
    """Put together what all processes have. `FailedError` where one has ended."""
    try:
        dist.all_reduce(values, how)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise FailedError(f"another of torchrun's processes has ended: {str(error).splitlines()[0]}") from None

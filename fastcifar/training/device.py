"""What a run computes on: device, dtype, threads, and a memory allocator that keeps what it has."""

import ctypes
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from fastcifar.schema import TrainConfig
from fastcifar.training import distributed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def set_up(config: TrainConfig) -> tuple[torch.device, torch.dtype]:
    """Set the process up for a network trained by these settings; the device and dtype that it computes in."""
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device()
    use_tensor_cores(device)
    return device, pick_dtype(config, device)


def pick_device() -> torch.device:
    """The current GPU, which is the first or, of several processes, each its own; without any the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The compute dtype: as set, or bfloat16 where the device has units for it.

    Without them bfloat16 is emulated: on a CPU hundreds of times slower than float32, and on a GPU slower than float16,
    which is taken there.
    """
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    units = torch.cpu.get_capabilities()
    return torch.bfloat16 if units.get("amx_bf16") or units.get("avx512_bf16") else torch.float32


def use_tensor_cores(device: torch.device) -> None:
    """Have a GPU's float32 products take TF32, as its convolutions do by default: float32 is one thing then."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def use_compile(config: TrainConfig, device: torch.device) -> bool:
    """Whether to compile the step: on a CPU it was measured to cost 40 s and win nothing (bench/LOG.md).

    `ValueError` where the settings say so and what it takes is not here; "auto" goes without then.
    """
    if config.compile == "off" or (config.compile == "auto" and device.type != "cuda"):
        return False
    lacks = without_compiler(device)
    if lacks and config.compile == "on":
        raise ValueError(f"train.compile: got 'on', takes 'auto' or 'off' here: {lacks}")
    return lacks is None


def without_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device: one sentence, with the line that installs it; None where it can.

    torch.compile builds its launchers against Python's headers, for a GPU in C (Triton), for a CPU in C++ (Inductor).
    """
    if sys.platform != "linux":  # elsewhere they look elsewhere, and say so themselves
        return None
    variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    # Both look there, also where Debian's Python would install headers elsewhere.
    header = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    lacks = []
    if not any(shutil.which(name) for name in ((os.environ[variable],) if os.environ.get(variable) else names)):
        lacks.append(f"a compiler ({' or '.join(names)}, or ${variable})")
    if not header.is_file():
        lacks.append(str(header))
    return f"torch.compile needs {' and '.join(lacks)}: apt-get install build-essential python3-dev" if lacks else None


def describe(device: torch.device) -> str:
    """The device in words, for cards: a GPU's name, or the CPU's, its cores' kind, the threads in use and its units;
    where several processes train, as many of it.

    Virtual machines call unlike cores by one name: "AMD EPYC" is Zen 3 as well as Zen 5. LLVM's names of kinds tell
    them apart (znver3, znver5, sapphirerapids).
    """
    several = f"{distributed.num_processes()} x " if distributed.num_processes() > 1 else ""
    if device.type == "cuda":
        return several + torch.cuda.get_device_name(device)
    from llvmlite.binding import get_host_cpu_name

    cpu = torch.cpu.get_capabilities()
    units = "AMX" if cpu.get("amx_bf16") else torch.backends.cpu.get_cpu_capability()
    num = torch.get_num_threads()
    name = f"{cpu.get('cpu_name') or platform.machine()} ({get_host_cpu_name()})"
    return f"{several}{name}, {num} {'thread' if num == 1 else 'threads'}, {units}"


def keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of returning it to the system after every step; nothing without glibc.

    A step frees and takes the same few hundred megabytes again. By default glibc maps blocks of this size afresh each
    time, and the system clears every page: that was a quarter of a training step (bench/LOG.md).
    """
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    # -1: never give the heap's end back (mallopt(3)); what a step has freed there may be gigabytes.
    settings = ((m_mmap_max, 0), (m_trim_threshold, -1), (m_top_pad, 2**28))
    for name, value in settings:
        mallopt(name, value)

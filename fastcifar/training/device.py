"""What a run computes on: device, dtype, threads, and a memory allocator that keeps what it has."""

import ctypes
import platform

import torch

from fastcifar.schema import TrainConfig

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
    """The first GPU where there is one, else the CPU."""
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
    """Whether to compile the step: on a CPU it was measured to cost 40 s and win nothing (bench/LOG.md)."""
    return config.compile == "on" or (config.compile == "auto" and device.type == "cuda")


def describe(device: torch.device) -> str:
    """The device in words, for cards: a GPU's name, or the CPU's with the threads in use and its matrix units."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = torch.cpu.get_capabilities()
    units = "AMX" if cpu.get("amx_bf16") else torch.backends.cpu.get_cpu_capability()
    num = torch.get_num_threads()
    return f"{cpu.get('cpu_name') or platform.machine()}, {num} {'thread' if num == 1 else 'threads'}, {units}"


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

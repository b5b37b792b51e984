"""Energy that a device says it has used: an NVIDIA GPU's by NVML, a CPU's by Linux's RAPL counters."""

from pathlib import Path


def used_j() -> float | None:
    """Joules since some moment in the past, of the GPU in use, else of all CPU packages; None where nobody tells.

    Only differences mean anything. A RAPL counter starts anew after some hundred kilojoules: a difference below zero
    is none.
    """
    import torch

    return _gpu_j() if torch.cuda.is_available() else _cpu_j()


def _gpu_j() -> float | None:
    import torch

    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        # NVML counts all GPUs of the machine, torch those that CUDA_VISIBLE_DEVICES leaves.
        used = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(used)) / 1000
    except Exception:
        return None


def _cpu_j() -> float | None:
    total_uj = 0
    counters = list(Path("/sys/class/powercap").glob("intel-rapl:[0-9]*/energy_uj"))
    packages = [path for path in counters if path.parent.name.count(":") == 1]
    try:
        for path in packages:
            total_uj += int(path.read_text())
    except (OSError, ValueError):
        return None
    return total_uj / 1e6 if packages else None

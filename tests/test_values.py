"""Rounding to bfloat16 in compiled code, with a CPU's units for it and without."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit, types
from numba.extending import intrinsic

from fastcifar.kernels import numba_values

HAS_UNITS = numba_values.target_has("avx512bf16")


def rounding(with_units: bool) -> object:
    """A compiled function of vectors: float32 to the bits of bfloat16."""

    @intrinsic
    def bits(typing_context: object, value: object) -> tuple:
        def generate(context: object, builder: object, signature: object, arguments: tuple) -> object:
            return numba_values.rounded(builder, arguments[0], with_units)

        return types.uint16(types.float32), generate

    @njit
    def all_bits(values, out):  # type: ignore[no-untyped-def]
        for i in range(len(values)):
            out[i] = bits(values[i])

    return all_bits


@pytest.mark.parametrize(
    "with_units", [False, pytest.param(True, marks=pytest.mark.skipif(not HAS_UNITS, reason="no units for bfloat16"))]
)
def test_rounding_is_torchs(with_units: bool) -> None:
    random = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    halves = (np.arange(1 << 16, dtype=np.uint32) << 16) + 0x8000
    values = np.concatenate([random, halves, halves - 1, halves + 1]).view(np.float32)
    # A CPU's own conversion takes the least numbers for zeros.
    values = values[(np.abs(values) >= np.finfo(np.float32).tiny) | np.isnan(values)]
    bits = np.empty(len(values), np.uint16)
    rounding(with_units)(values, bits)
    ours = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    theirs = torch.from_numpy(values).bfloat16()
    assert torch.equal(ours.isnan(), theirs.isnan())
    numbers = ~theirs.isnan()
    assert torch.equal(ours[numbers], theirs[numbers])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the older CPU is one of x86")
def test_code_for_a_cpu_without_units_needs_nothing_else(tmp_path: Path) -> None:
    """LLVM's own conversion would be a call of a function that nobody has: the process would end."""
    code = """
import numpy as np
import torch
from fastcifar.kernels import Augmentation, Normalisation, augment, draw_plan
from fastcifar.kernels import maps, winograd
x = torch.randn(2, 8, 4, 4).bfloat16().contiguous(memory_format=torch.channels_last)
maps.gelu(x, maps.Affine(torch.ones(8), torch.zeros(8)))
winograd.Convolution.of(x, torch.randn(8, 8, 3, 3).bfloat16(), (1, 1, 1, 1)).output(x)
images = np.random.default_rng(0).integers(0, 256, (60, 9, 43, 3), dtype=np.uint8)
for padding_mode in ("reflect", "constant"):
    augmentation = Augmentation(crop_padding=3, padding_mode=padding_mode, flip="random", cutmix=1.0, mix_per="image")
    plan = draw_plan(augmentation, seed=0, epoch=0, indices_n=range(60), height=9, width=43)
    for mean in (0.0, 0.47, -0.5 / 255):  # the last makes ties of all bytes
        normalisation = Normalisation(mean=(mean,) * 3, std=(1 / 255,) * 3)
        ours, theirs = (augment(images, plan, normalisation, form=form) for form in ("numba", "reference"))
        assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))
print("done")
"""
    older = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **older}
    )
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr

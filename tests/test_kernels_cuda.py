"""The form for GPUs: under Numba's simulator on tiny images, and on a GPU at full size where there is one."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from kernel_cases import CIFAR, pictures, same_bits

from fastcifar.kernels import Augmentation, Augmenter, augment, augment_batch, draw_plan, raise_for_bad_rows

SIMULATED = """
import itertools, warnings
warnings.simplefilter("error")
import numpy as np, torch
from fastcifar.kernels import Augmentation, Augmenter, Normalisation, Plan, augment, augment_batch, draw_plan
from fastcifar.kernels import raise_for_bad_rows
bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
normalisation = Normalisation((0.49, 0.48, 0.44), (0.2, 0.21, 0.22))
cases = [
    dict(),
    dict(crop_padding=1, flip="random", cutmix=1.0, cutout=1, mix_per="image"),
    dict(padding_mode="constant", crop_padding=2, flip="alternating", mixup=1.0, brightness=0.2),
    dict(flip="random", cutmix=1.0, mixup=0.3, mix_per="image", rotation=180, hue=0.2, saturation=0.3, contrast=0.2),
    dict(padding_mode="constant", rotation=45, mix_probability=0.5, cutmix=0.5, hue=0.5),
]
count = 0
for (height, width), settings in itertools.product([(4, 4), (3, 5)], cases):
    images = np.random.default_rng(count).integers(0, 256, (5, height, width, 3), dtype=np.uint8)
    augmentation, rows, indices = Augmentation(**settings), np.array([4, 1, 2]), np.array([9, 2**35, 3])
    drawn = dict(seed=2**63 + 5, epoch=3, indices_n=indices)
    dtype = list(bits)[count % 3]
    expected, *labels = augment_batch(images, rows, augmentation, normalisation, dtype=dtype, form="reference", **drawn)
    got, *got_labels = augment_batch(images, rows, augmentation, normalisation, dtype=dtype, form="cuda", **drawn)
    assert torch.equal(got.view(bits[dtype]), expected.view(bits[dtype])), (height, width, settings, dtype)
    for one, other in zip(labels, got_labels):
        assert (one is None and other is None) or torch.equal(one, other)
    plan = draw_plan(augmentation, height=height, width=width, form="reference", **drawn)
    got = augment(images, plan, normalisation, rows_n=rows, dtype=dtype, form="cuda")
    assert torch.equal(got.view(bits[dtype]), expected.view(bits[dtype])), (height, width, settings, dtype)
    count += 1
# More than one tile of pixels, and rows that end within one.
large = np.random.default_rng(9).integers(0, 256, (2, 33, 37, 3), dtype=np.uint8)
turning = Augmentation(crop_padding=3, flip="random", cutmix=1.0, mix_per="image", rotation=40)
drawn = dict(seed=4, epoch=1, dtype=torch.bfloat16)
expected = augment_batch(large, [1, 0], turning, normalisation, form="reference", **drawn)[0]
got = augment_batch(large, [1, 0], turning, normalisation, form="cuda", **drawn)[0]
assert torch.equal(got.view(torch.int16), expected.view(torch.int16))
augmenter = Augmenter(turning, normalisation, seed=4, form="cuda")
for rows in ([0], [1, 0]):
    again = augmenter(large, rows, epoch=1)[0]
assert torch.equal(again.view(torch.int16), expected.view(torch.int16))
count += 1
for bad in (-1, 5):
    try:
        augment_batch(images, [0, bad], augmentation, normalisation, seed=0, epoch=0, form="cuda")
    except ValueError as error:
        assert str(error) == f"rows_n: got {bad} at position 1, takes 0 to 4", error
        count += 1
for name, value, takes in (("rotation", 7.6e18, "-360 to 360"), ("hue", -2, "-1 to 1"), ("shifts", -2**31, "at most")):
    plan = Plan.identity(5, height, width)
    getattr(plan, "shifts_n2" if name == "shifts" else f"{name}_n")[3] = value
    try:
        augment(images, plan, normalisation, form="cuda")
    except ValueError as error:
        assert str(error).startswith(f"plan.{name}_n") and takes in str(error), error
        count += 1
try:
    augment_batch(images, [0], augmentation, normalisation, seed=0, epoch=0, form="cuda", num_threads=0)
except ValueError as error:
    assert str(error) == "num_threads: got 0, takes an integer of at least 1", error
    count += 1
from fastcifar.kernels import numba_cuda
# A captured graph may go on reading what batches share: none of it is let go of.
kept = [numba_cuda._partners(torch.device("cpu"), size) for size in range(1, 200)]
assert all(numba_cuda._partners(torch.device("cpu"), len(partners)) is partners for partners in kept)
assert kept[2].tolist() == [1, 2, 0]
settings = numba_cuda._Settings(Augmentation(), normalisation, height, width, 5)
rows = torch.tensor([1, 5])
nothing = numba_cuda._nothing(rows.device)
batch, _ = numba_cuda._launch(images, rows, rows, *nothing, settings, 0, 0, torch.float32, None)
assert (batch[1] == 0).all() and (batch[0] != 0).all()
try:
    raise_for_bad_rows("cpu")
except ValueError:
    count += 1
raise_for_bad_rows(rows.device)
# The flag may be made where nothing is learned, and is set back elsewhere.
numba_cuda._bad_rows.cache_clear()
with torch.inference_mode():
    numba_cuda._launch(images, rows, rows, *nothing, settings, 0, 0, torch.float32, None)
try:
    raise_for_bad_rows("cpu")
except ValueError:
    count += 1
print(count)
"""


def test_simulated_form_agrees_with_reference_on_every_bit():
    result = subprocess.run(
        [sys.executable, "-c", SIMULATED],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "19"


COMPILED = """
from types import SimpleNamespace
from numba import cuda
from numba.cuda import dispatcher
from numba.cuda.cudadrv.nvvm import NVVM
try:
    NVVM()
except (ImportError, RuntimeError):
    raise SystemExit("no NVVM")
# Numba compiles what a kernel calls for the current GPU, of which it asks no more than this.
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))
from fastcifar.kernels.numba_cuda.pixels import SIGNATURE, kernel
print(cuda.compile_ptx(kernel, SIGNATURE, cc=(9, 0))[0])
"""


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_kernel_compiles_without_a_gpu_and_rounds_as_the_reference_does():
    """To the assembly that NVIDIA's driver takes: what the simulator, which runs Python, does not show."""
    result = subprocess.run(
        [sys.executable, "-c", COMPILED],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"},
    )
    if result.stderr.strip().endswith("no NVVM"):
        pytest.skip("NVVM is not installed")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(".visible .entry ") == 1
    # A product whose rounding is named is fused with no sum; of one that says "mul" alone the driver may do it yet.
    # In float64, as which a rotation's sine is worked out, fusing is no harm: products that feed a sum are exact there.
    assert "mul.rn.f32" in result.stdout
    assert re.findall(r"\b(?:fma|mad)\.\S*f32\b|\bmul\.f32\b", result.stdout) == []
    # Nor are small numbers flushed to zero, or quotients and roots approximated.
    assert re.findall(r"\S+\.(?:ftz|approx|full)\b\S*", result.stdout) == []


def test_cuda_is_not_imported_without_a_gpu():
    code = """
import sys, numpy as np
from fastcifar.kernels import Augmentation, Normalisation, augment_batch, raise_for_bad_rows
augment_batch(np.zeros((4, 8, 8, 3), np.uint8), [1, 2], Augmentation(), Normalisation.identity(), seed=0, epoch=0)
raise_for_bad_rows("cpu")
print([name for name in sys.modules if name.startswith(("numba.cuda", "fastcifar.kernels.numba_cuda"))])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


EVERYTHING = Augmentation(
    crop_padding=4,
    flip="random",
    cutout=6,
    cutmix=1.0,
    mixup=0.4,
    mix_per="image",
    brightness=0.2,
    contrast=0.2,
    rotation=30,
    saturation=0.4,
    hue=0.1,
)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (31, 45), (256, 256)])
def test_gpu_agrees_with_cpu_on_every_bit(height, width, dtype):
    images = torch.from_numpy(pictures(64, height, width))
    rows = torch.randperm(64)
    for augmentation in (EVERYTHING, Augmentation(), Augmentation(crop_padding=4, flip="alternating", cutmix=1.0)):
        expected, *labels = augment_batch(images, rows, augmentation, CIFAR, seed=7, epoch=3, dtype=dtype)
        got, *got_labels = augment_batch(images.cuda(), rows.cuda(), augmentation, CIFAR, seed=7, epoch=3, dtype=dtype)
        again = Augmenter(augmentation, CIFAR, seed=7, dtype=dtype)(images.cuda(), rows.cuda(), epoch=3)[0]
        assert same_bits(again.cpu(), got.cpu())
        assert same_bits(got.cpu(), expected)
        for one, other in zip(labels, got_labels, strict=True):
            assert (one is None and other is None) or torch.equal(one, other.cpu())
        plan = draw_plan(augmentation, seed=7, epoch=3, indices_n=rows, height=height, width=width)
        assert same_bits(augment(images.cuda(), plan, CIFAR, rows_n=rows, dtype=dtype).cpu(), expected)


@pytest.mark.gpu
def test_gpu_runs_on_the_current_stream_and_in_a_graph():
    images, rows = torch.from_numpy(pictures(64, 32, 32)).cuda(), torch.randperm(64).cuda()
    out = torch.empty((64, 3, 32, 32), dtype=torch.bfloat16, device="cuda", memory_format=torch.channels_last)
    expected = augment_batch(images, rows, EVERYTHING, CIFAR, seed=7, epoch=3)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        augment_batch(images, rows, EVERYTHING, CIFAR, seed=7, epoch=3, out=out)
    stream.synchronize()
    assert same_bits(out, expected)
    out.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        augment_batch(images, rows, EVERYTHING, CIFAR, seed=7, epoch=3, out=out)
    graph.replay()
    torch.cuda.synchronize()
    assert same_bits(out, expected)


@pytest.mark.gpu
def test_what_batches_share_is_there_on_any_stream():
    """Of a size that no other test has: its partners are laid out while the first stream is busy."""
    images, rows = torch.from_numpy(pictures(37, 8, 8)).cuda(), torch.arange(37, device="cuda")
    torch.cuda.synchronize()
    busy, free = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(10**9)
        augment_batch(images, rows, EVERYTHING, CIFAR, seed=7, epoch=3)
    with torch.cuda.stream(free):
        partners = augment_batch(images, rows, EVERYTHING, CIFAR, seed=7, epoch=3)[2].clone()
    free.synchronize()
    assert partners.tolist() == [*range(1, 37), 0]


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_a_bad_row_on_a_gpu_is_told_of_once(device):
    images, rows = torch.from_numpy(pictures(4, 8, 8)).to(device), torch.tensor([1, 4], device=device)
    raise_for_bad_rows(device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        augment_batch(images, rows, Augmentation(), CIFAR, seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"^rows_n: got a row outside the images"):
        raise_for_bad_rows(device)
    raise_for_bad_rows(device)


WITHOUT = """
import sys
from fastcifar.kernels import dispatch
from fastcifar.kernels.errors import MissingLibraryError
if sys.argv[1] == "no target":
    sys.modules["numba.cuda"] = None
else:
    import numba.cuda.cudadrv.nvvm

    def nowhere():
        raise numba.cuda.cudadrv.nvvm.NvvmSupportError("libNVVM cannot\\nbe found")

    numba.cuda.cudadrv.nvvm.NVVM = nowhere
for _ in range(2):
    try:
        dispatch.cuda_form()
    except MissingLibraryError as error:
        assert isinstance(error, ValueError) and isinstance(error, ImportError)
        print(error)
"""


@pytest.mark.parametrize(("lacks", "reason"), [("no target", "numba.cuda"), ("no compiler", "libNVVM cannot be found")])
def test_without_numbas_cuda_target_or_its_compiler_one_sentence_says_how_to_get_them(lacks, reason):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, lacks],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"},
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("Images on a GPU need numba-cuda, which does not load here (") and reason in line
        assert re.search(r": pip install 'numba-cuda\[cu\d+\]'$", line)


FLAGS = """
import torch
from fastcifar.kernels import numba_cuda, raise_for_bad_rows
asked, waited = [], []
torch.cuda.current_device = lambda: 1
torch.cuda.synchronize = waited.append
numba_cuda._bad_rows = lambda device: asked.append(device) or torch.ones(1)
for device in ("cuda", torch.device("cuda:1"), torch.device("cuda", 0)):
    try:
        raise_for_bad_rows(device)
    except ValueError as error:
        assert str(error).startswith("rows_n: got a row outside the images"), error
print(*asked, set(asked) == set(waited))
"""


def test_the_flag_of_bad_rows_is_found_by_any_name_of_the_device():
    # In a process of its own, since Numba is told when it is imported whether to simulate.
    result = subprocess.run(
        [sys.executable, "-c", FLAGS],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["cuda:1", "cuda:1", "cuda:0", "True"]


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_a_kept_kernel_that_cannot_be_read_is_compiled_anew(monkeypatch):
    from fastcifar.kernels.numba_cuda import pixels

    did = []

    def jit(signature=None, *, cache=False):
        def compiled(function):
            did.append((signature is not None, cache))
            if signature is not None and cache:
                raise EOFError
            return SimpleNamespace(_cache=SimpleNamespace(flush=lambda: did.append("flushed")))

        return compiled

    monkeypatch.setattr(pixels, "cuda", SimpleNamespace(jit=jit))
    monkeypatch.setattr(pixels.config, "ENABLE_CUDASIM", 0)
    pixels.compiled_kernel.__wrapped__()
    assert did == [(True, True), (False, True), "flushed", (True, False)]


@pytest.mark.gpu
def test_a_second_process_does_not_compile_for_the_gpu(tmp_path):
    code = """
import time, torch
from fastcifar import kernels
torch.zeros(1, device="cuda")
start_s = time.perf_counter()
kernels.prepare("cuda")
print(time.perf_counter() - start_s)
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    first_s, second_s = (
        float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
        for _ in range(2)
    )
    assert list(tmp_path.glob("**/pixels.kernel*.nbc"))
    assert second_s < first_s / 2

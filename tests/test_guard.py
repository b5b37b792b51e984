"""Memory's guard finds what it is for, and the compiled code of a training step has nothing to be found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cifar_files import make

SOURCE = Path(__file__).parent / "guard" / "guard.c"
BLOCK = """
import ctypes
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.malloc.argtypes = [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
block = c.malloc(5000)
"""
# 5000 bytes in whole 16 are 5008: the page behind them begins there.
FAULTS = {
    "behind": (BLOCK + "ctypes.memset(block + 5000, 0, 1); c.free(block)", "guard: written behind a block of 5000"),
    "before": (BLOCK + "ctypes.memset(block - 1, 0, 1); c.free(block)", "guard: written before a block of 5000"),
    "far behind": (BLOCK + "ctypes.memset(block + 5008, 0, 1)", "Segmentation fault"),
    "read behind": (BLOCK + "ctypes.string_at(block + 5008, 1)", "Segmentation fault"),
    "freed": (BLOCK + "c.free(block); ctypes.string_at(block, 1)", "Segmentation fault"),
    "freed twice": (BLOCK + "c.free(block); c.free(block)", "Segmentation fault"),
}
# Numbers of images and channels that leave no block whole registers or tiles, but where products of 8 bits want it.
SETTINGS = ["model.widths=[32, 64, 96]", "pipeline.batch_size=37", "train.epochs=1", "train.whiten_epochs=0.5"]
AUGMENTED = [f"augmentation.{told}" for told in ("cutout=5", "cutmix=1.0", "rotation=15.0", "hue=0.1")]


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("takes Linux and a C compiler")
    library = tmp_path_factory.mktemp("guard") / "guard.so"
    subprocess.run([compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return library


def run(guard: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "faulthandler", *map(str, arguments)]
    environment = {**os.environ, "LD_PRELOAD": str(guard)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(("program", "found"), FAULTS.values(), ids=FAULTS)
def test_what_goes_beyond_a_block_is_found(guard: Path, program: str, found: str) -> None:
    done = run(guard, "-c", program)
    assert done.returncode < 0
    assert found in done.stderr


def test_what_stays_within_a_block_is_left_alone(guard: Path) -> None:
    done = run(guard, "-c", BLOCK + "ctypes.memset(block, 0, 5000); c.free(block); print('done')")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_run_stays_within_its_memory(guard: Path, dtype: str, tmp_path: Path) -> None:
    """From conversion to the evaluated network: every compiled kernel of the speedrun, and the colours too."""
    make(tmp_path)
    settings = [f"data.path='{tmp_path}'", f"train.dtype={dtype}", *SETTINGS, *AUGMENTED]
    told = [word for setting in settings for word in ("--set", setting)]
    done = run(guard, "-m", "fastcifar", "train", "speedrun", "--out", tmp_path / "run", *told)
    assert done.returncode == 0, done.stderr

"""What the README shows in Python runs as it stands, and is as short as it says."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcifar import pipelines
from fastcifar.bench import readme

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["pipelines", "convert", "plan", "kernels"])
def test_an_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if '"ffcv"' in block and (trouble := pipelines.available("ffcv")):
        pytest.skip(trouble)
    monkeypatch.chdir(tmp_path)
    steps: list[Any] = []
    names: dict[str, Any] = {
        "images_nhwc": np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), dtype=np.uint8),
        "labels_n": np.arange(600) % 10,
        "parts": [(np.zeros((600, 32, 32, 3), np.uint8), np.arange(600) % 2)] * 2,
        "torch": torch,
        "step": lambda *given: steps.append([tuple(value.shape) for value in given]),
    }
    assert len([line for line in block.splitlines() if line]) == 5
    assert max(map(len, block.splitlines())) <= 120
    exec(block, names)
    if "batch" in names and isinstance(names["batch"], torch.Tensor):
        assert (names["batch"].shape, names["batch"].dtype) == ((512, 3, 32, 32), torch.bfloat16)
        assert torch.equal(names.get("images", names["batch"]), names["batch"])
    elif "num_images" in names:
        assert names["num_images"] == 512
    else:
        assert steps == [[(256, 3, 32, 32), (256,), (256,), (256,)]] * 2


def test_the_tables_are_those_of_the_results_and_records(tmp_path: Path) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    for name in ("results", "records"):
        shutil.copytree(ROOT / "bench" / name, tmp_path / "bench" / name)
    assert not readme.update(tmp_path / "README.md", tmp_path / "bench" / "results", tmp_path / "bench" / "records")

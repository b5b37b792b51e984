"""Pictures and comparisons: what is drawn, from what, and what is said beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
from cifar_files import make
from finished_runs import make_run
from PIL import Image

from fastcifar import config as configs
from fastcifar import kernels
from fastcifar.cli import main
from fastcifar.data import locate
from fastcifar.evaluation.preview import augmented
from fastcifar.evaluation.results import draw_finished
from fastcifar.report import pictures
from fastcifar.report.curves import Curves
from fastcifar.report.progress import Reporter
from fastcifar.report.run_folder import RunFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("small"), num_test=100).path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one", data, "data.validation=0.2")


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10, f"{path} is empty"
        return image.size


def test_a_finished_run_is_drawn_into_its_folder(run: Path, data: Path) -> None:
    with Reporter() as reporter:
        written = draw_finished(RunFolder(run), locate("auto", data), reporter)
    names = ["curves.png", "confusion.png", "predictions.png", "mistakes.png", "augmentation.png"]
    assert sorted(path.name for path in written) == sorted(name for name in names if (run / name).exists())
    assert {"curves.png", "confusion.png", "predictions.png", "augmentation.png"} <= {path.name for path in written}
    for path in written:
        assert min(size(path)) > 200
    assert not list(run.glob(".*"))


def test_the_same_run_gives_the_same_picture(run: Path, tmp_path: Path) -> None:
    first, second = (
        pictures.curves.draw_run(Curves.of(RunFolder(run)), tmp_path / name).read_bytes() for name in ("a.png", "b.png")
    )
    assert first == second


def test_curves_are_the_metrics(run: Path) -> None:
    folder = RunFolder(run)
    curves = Curves.of(folder)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert curves.epochs == [1, 2]
    assert curves.loss == [line["loss"] for line in lines]
    assert curves.train_accuracy == [100 * line["accuracy"] for line in lines]
    assert curves.validation_accuracy == [100 * line["validation_accuracy"] for line in lines]
    assert curves.test_accuracy == 100 * json.loads(folder.card.read_text())["accuracy"]


# Preview


@pytest.mark.parametrize(
    "settings", [[], ["augmentation.cutmix=1.0"], ["augmentation.mixup=0.5", "data.validation=0.2"]]
)
def test_a_preview_shows_what_training_sees(settings: list[str], data: Path) -> None:
    """Each cell is the image as it comes out of training's own batches, by the reference form of the kernel."""
    settings = [f"data.path='{data}'", "pipeline.batch_size=50", "augmentation.cutout=6", *settings]
    config = configs.load("speedrun", settings)
    with Reporter() as reporter:
        shown = augmented(config, locate("auto", data), reporter, num_images=3, num_epochs=2)
    split = locate("auto", data).load().train
    assert [row[0].caption for row in shown.rows] == ["airplane", "automobile", "bird"]
    mixes = config.augmentation.mixes
    for row in shown.rows:
        assert len(row) == 3
        index = next(i for i, image in enumerate(split.images_nhwc) if (image == row[0].image_hwc).all())
        for epoch, cell in enumerate(row[1:]):
            assert bool(cell.caption) == mixes
            if mixes:
                continue
            plan = kernels.draw_plan(
                config.augmentation, seed=0, epoch=epoch, indices_n=[index], height=32, width=32, form="reference"
            )
            identity = kernels.Normalisation.identity()
            expected = kernels.augment(
                split.images_nhwc, plan, identity, rows_n=[index], dtype="float32", form="reference"
            )
            pixels_hwc = expected[0].permute(1, 2, 0).numpy()
            box = plan.cutout_boxes_n4[0]
            kept = np.ones((32, 32), bool)
            kept[box[0] : box[2], box[1] : box[3]] = False
            assert cell.image_hwc[kept] == pytest.approx(pixels_hwc[kept], abs=1e-5)


def test_preview_is_a_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "preview.png"
    small = ["--set", "pipeline.batch_size=50", "--set", "data.dataset=auto", "--images", "4", "--epochs", "3"]
    assert main(["preview", "--recipe", "speedrun", "--data", str(data), *small, "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["title"] == "Augmentation of speedrun on cifar10-small training images"
    assert result["augmentation"].startswith("crop_padding 2, flip alternating; seed 0")
    assert min(size(out)) > 300
    assert main(["preview", "--data", str(data), *small, "--images", "501", "--out", str(out)]) == 2
    assert "--images: got 501, takes at most the 500 that every epoch shows" in capsys.readouterr().err
    assert main(["preview", "--data", str(data), "--epochs", "0", "--out", str(out)]) == 2
    assert "--epochs: got 0" in capsys.readouterr().err

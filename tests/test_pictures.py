"""Pictures and comparisons: what is drawn, from what, and what is said beside it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cifar_files import make
from finished_runs import make_run
from PIL import Image

from fastcifar import config as configs
from fastcifar import kernels, pipelines
from fastcifar.cli import main
from fastcifar.data import locate, stratified_rows
from fastcifar.evaluation.preview import augmented
from fastcifar.evaluation.results import draw_finished
from fastcifar.report import comparison, pictures
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


@pytest.mark.parametrize("mixing", [[], ["cutmix=1.0"], ["mixup=0.5", "mix_per='image'"]])
@pytest.mark.parametrize("validation", [0, 0.2])
def test_a_preview_shows_what_training_sees(mixing: list[str], validation: float, data: Path) -> None:
    """Each cell is the image as a whole epoch of batches holds it, partner and all."""
    settings = ["pipeline.batch_size=50", f"data.path='{data}'", f"data.validation={validation}"]
    augmentation = [f"augmentation.{setting}" for setting in ("cutout=6", "brightness=0.1", *mixing)]
    config = configs.load("speedrun", [*settings, *augmentation])
    with Reporter() as reporter:
        shown = augmented(config, locate("auto", data), reporter, num_images=3, num_epochs=2)
    split = locate("auto", data).load().train
    rows_n = stratified_rows(split.labels_n, validation, 0)[0] if validation else None
    assert [row[0].caption for row in shown.rows] == ["airplane", "automobile", "bird"]
    assert {len(row) for row in shown.rows} == {3}
    with pipelines.open(
        split,
        batch_size=50,
        augmentation=config.augmentation,
        normalisation=(mean_and_std := kernels.Normalisation(*channel_moments(split.images_nhwc))),
        rows=rows_n,
    ) as pipeline:
        for epoch in range(2):
            seen = {}
            for batch in pipeline.epoch(epoch):
                shares = batch.images.permute(0, 2, 3, 1).double().numpy() * mean_and_std.std + mean_and_std.mean
                seen |= dict(zip(batch.indices.tolist(), np.clip(shares, 0, 1), strict=True))
            for row in shown.rows:
                index = next(i for i, image in enumerate(split.images_nhwc) if (image == row[0].image_hwc).all())
                assert row[1 + epoch].image_hwc == pytest.approx(seen[index], abs=1e-5)
                assert bool(row[1 + epoch].caption) == bool(mixing)


def channel_moments(images_nhwc: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    channels = (images_nhwc / 255).reshape(-1, 3)
    return tuple(channels.mean(0).tolist()), tuple(channels.std(0).tolist())


def test_preview_is_a_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "preview.png"
    small = ["--set", "pipeline.batch_size=50", "--set", "data.dataset=auto", "--images", "4", "--epochs", "3"]
    assert main(["preview", "speedrun", "--data", str(data), *small, "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["title"] == "Augmentation of speedrun on cifar10-small training images"
    assert result["augmentation"].startswith("crop_padding 2, flip alternating; seed 0")
    assert min(size(out)) > 300
    assert main(["preview", "--data", str(data), *small, "--images", "501", "--out", str(out)]) == 2
    assert "--images: got 501, takes at most the 500 that every epoch shows" in capsys.readouterr().err
    assert main(["preview", "--data", str(data), "--epochs", "0", "--out", str(out)]) == 2
    assert "--epochs: got 0" in capsys.readouterr().err


# Compare


def test_compare_is_the_cards_side_by_side(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert main(["compare", str(run), str(other), "--plot", str(tmp_path / "plot.png")]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    card = json.loads((run / "card.json").read_text())
    assert (result["datasets"], result["comparable"]) == (["cifar10-small"], True)
    for row, path in zip(result["runs"], (run, other), strict=True):
        assert row["run"] == str(path)
        for key in ("recipe", "network", "num_parameters", "epochs", "accuracy", "tta_accuracy", "validation_accuracy"):
            assert row[key] == card[key], key
        assert row["train_s"] == card["seconds"]["train"]
    assert "(!)" not in out
    title = f"2 runs on cifar10-small, recipe {card['recipe']}, network speednet, parameters {card['num_parameters']:,}"
    assert out.splitlines()[0].rstrip() == title
    assert min(size(tmp_path / "plot.png")) > 300
    assert not [line for line in out.splitlines() if " % " in line and "cifar10-small" not in line]


def test_runs_on_different_data_sets_are_marked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    for name in ("card.json", "metrics.jsonl"):
        (other / name).write_text((other / name).read_text().replace("cifar10-small", "shapes10"))
    assert main(["compare", str(run), str(other), "--plot", str(tmp_path / "plot.png")]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["comparable"] is False
    assert "shapes10 (!)" in out
    assert "do not compare" in " ".join(out.replace("│", " ").split())


def test_a_run_that_is_not_finished_is_compared_by_what_there_is(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    (tmp_path / "other" / "card.json").unlink()
    rows = comparison.compare([RunFolder(run), RunFolder(tmp_path / "other")]).rows
    assert (rows[1].accuracy, rows[1].train_s, rows[1].epochs, rows[1].dataset) == (None, None, 2, "cifar10-small")
    assert rows[1].validation_accuracy == rows[0].validation_accuracy


def test_json_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", str(run), "--json", "--plot", str(tmp_path / "plot.png")]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert len(json.loads(out)["runs"]) == 1


def test_what_cannot_be_compared_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plot = ["--plot", str(tmp_path / "plot.png")]
    for runs, message in (([run, run], "is named twice"), ([tmp_path], "not a run folder")):
        assert main(["compare", *map(str, runs), *plot]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_a_damaged_run_is_one_line_and_one_that_was_killed_is_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    card, lines = json.loads((run / "card.json").read_text()), (run / "metrics.jsonl").read_text()
    for number, (name, text, message) in enumerate(
        (
            ("card.json", "{}", "card.json: holds no 'dataset'"),
            ("card.json", json.dumps({**card, "seconds": [1]}), "'seconds' is a list, expected a JSON object"),
            ("card.json", json.dumps({**card, "seconds": {}}), "seconds: holds no 'train'"),
            ("metrics.jsonl", lines + "no\n", "metrics.jsonl:3: not JSON"),
            ("metrics.jsonl", '{"dataset": 5}\n', "metrics.jsonl:1: 'dataset' is 5, expected text"),
            ("metrics.jsonl", lines + '{"epoch"', ""),
        )
    ):
        broken = tmp_path / str(number)
        shutil.copytree(run, broken)
        (broken / name).write_text(text)
        assert main(["compare", str(broken), "--plot", str(tmp_path / "plot.png")]) == (2 if message else 0)
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == (1 if message else 0)

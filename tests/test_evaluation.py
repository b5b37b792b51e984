"""What an evaluation says holds: measures against plain counting, corruptions against other code, and the files."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as vision
from cifar_files import Made, make, make_archive
from finished_runs import make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastcifar import pipelines
from fastcifar.cli import main
from fastcifar.evaluation import corruptions, measures
from fastcifar.evaluation.finished import Finished
from fastcifar.evaluation.image_files import natural_key
from fastcifar.report.run_folder import RunFolder

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
INDICES = np.array([0, 1, 2, 3, 9_999, 299_999])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("small"), num_test=100).path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", data)


def last_line(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


# Measures


@settings(max_examples=12)
@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_measures_are_what_counting_gives(num: int, num_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num, num_classes)).astype(np.float32) * 4
    labels = rng.integers(0, num_classes, num)
    probabilities = measures.probabilities(logits)
    assert probabilities == pytest.approx(torch.from_numpy(logits).double().softmax(1).numpy(), abs=1e-12)
    predicted = probabilities.argmax(1)
    confusion = measures.confusion(labels, predicted, num_classes)
    for truth in range(num_classes):
        for prediction in range(num_classes):
            pairs = zip(labels, predicted, strict=True)
            assert confusion[truth, prediction] == sum(pair == (truth, prediction) for pair in pairs)
        own = labels == truth
        expected = (predicted[own] == truth).mean() if own.any() else None
        assert measures.class_accuracies(confusion)[truth] == (None if expected is None else pytest.approx(expected))
    wrong = sorted(
        (row for row in range(num) if predicted[row] != labels[row]), key=lambda row: -probabilities[row].max()
    )
    assert measures.most_confident_mistakes(probabilities, labels, 5).tolist() == wrong[:5]
    error = 0.0
    for number in range(measures.NUM_BINS):
        low, high = number / measures.NUM_BINS, (number + 1) / measures.NUM_BINS
        rows = [row for row in range(num) if low < probabilities[row].max() <= high]
        if rows:
            confidence = np.mean([probabilities[row].max() for row in rows])
            accuracy = np.mean([predicted[row] == labels[row] for row in rows])
            error += len(rows) / num * abs(accuracy - confidence)
    assert measures.calibration(probabilities, labels).error == pytest.approx(error, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # Two at 0.9, one of them right; two at 0.6, both right: (2 * |0.5 - 0.9| + 2 * |1 - 0.6|) / 4.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    found = measures.calibration(probabilities, np.array([0, 1, 0, 1]), num_bins=5)
    assert found.error == pytest.approx(0.4)
    assert found.counts == (0, 0, 2, 0, 2)
    assert found.accuracies == (None, None, 1.0, None, 0.5)
    assert found.confidences[4] == pytest.approx(0.9)


# Corruptions


def test_severities_are_those_of_the_benchmark() -> None:
    """Hendrycks and Dietterich's make_cifar_c.py, by hand."""
    assert corruptions.GAUSSIAN_NOISE == (0.04, 0.06, 0.08, 0.09, 0.10)
    assert corruptions.GAUSSIAN_BLUR_PX == (0.4, 0.6, 0.7, 0.8, 1)
    assert corruptions.CONTRAST == (0.75, 0.5, 0.4, 0.3, 0.15)
    assert corruptions.BRIGHTNESS == (0.05, 0.1, 0.15, 0.2, 0.3)
    assert corruptions.JPEG_QUALITY == (80, 65, 58, 50, 40)
    assert corruptions.PIXELATE == (0.95, 0.9, 0.85, 0.75, 0.65)


def as_bytes(shares: np.ndarray) -> np.ndarray:
    return np.uint8(np.clip(shares, 0, 1) * 255)


@pytest.mark.parametrize("strength", range(1, 6))
def test_corruptions_are_what_other_code_makes_of_an_image(strength: int) -> None:
    def close(name: str, expected: list[np.ndarray]) -> None:
        """The same, but where a value lies on the edge between two bytes."""
        difference = np.abs(corruptions.corrupt(IMAGES, INDICES, name, strength).astype(int) - np.stack(expected))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.05

    brighter = []
    for image in IMAGES:
        hsv = matplotlib.colors.rgb_to_hsv(image / 255)
        hsv[..., 2] = np.clip(hsv[..., 2] + corruptions.BRIGHTNESS[strength - 1], 0, 1)
        brighter.append(as_bytes(matplotlib.colors.hsv_to_rgb(hsv)))
    close("brightness", brighter)

    flatter = []
    for image in IMAGES / 255:
        mean = np.array([image[..., channel].mean() for channel in range(3)])
        flatter.append(as_bytes(mean + corruptions.CONTRAST[strength - 1] * (image - mean)))
    close("contrast", flatter)

    sigma = corruptions.GAUSSIAN_BLUR_PX[strength - 1]
    side = 2 * int(4 * sigma + 0.5) + 1
    padded = torch.nn.functional.pad(torch.from_numpy(IMAGES / 255).permute(0, 3, 1, 2), (4,) * 4, "replicate")
    blurred = vision.gaussian_blur(padded, [side, side], [sigma, sigma])[:, :, 4:-4, 4:-4]
    close("gaussian_blur", list(as_bytes(blurred.permute(0, 2, 3, 1).numpy())))


@pytest.mark.parametrize("strength", range(1, 6))
def test_jpeg_and_pixelation_are_pillows(strength: int) -> None:
    for index, image in enumerate(IMAGES):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=corruptions.JPEG_QUALITY[strength - 1])
        expected = np.array(Image.open(file))
        assert (corruptions.corrupt(IMAGES, INDICES, "jpeg", strength)[index] == expected).all()
        side = (30, 28, 27, 24, 20)[strength - 1]
        expected = np.array(Image.fromarray(image).resize((side, side), 4).resize((32, 32), 4))
        assert (corruptions.corrupt(IMAGES, INDICES, "pixelate", strength)[index] == expected).all()


@pytest.mark.parametrize("strength", range(1, 6))
def test_noise_has_the_strength_it_should(strength: int) -> None:
    grey = np.full((40, 32, 32, 3), 128, np.uint8)
    noisy = corruptions.corrupt(grey, np.arange(40), "gaussian_noise", strength)
    noise = noisy / 255 - (128 - 0.5) / 255
    assert noise.std() == pytest.approx(corruptions.GAUSSIAN_NOISE[strength - 1], rel=0.02)
    assert abs(noise.mean()) < 0.001


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_a_corruption_is_a_function_of_image_index_and_strength(name: str) -> None:
    """Whatever else is in the batch, and in whatever order."""
    whole = corruptions.corrupt(IMAGES, INDICES, name, 3)
    order = np.array([4, 0, 5])
    assert (corruptions.corrupt(IMAGES[order], INDICES[order], name, 3) == whole[order]).all()
    assert whole.dtype == np.uint8
    assert (corruptions.corrupt(IMAGES, INDICES, name, 4) != whole).any()
    same_pixels = np.repeat(IMAGES[:1], 2, axis=0)
    two = corruptions.corrupt(same_pixels, np.array([7, 8]), name, 3)
    assert (two[0] == two[1]).all() == (name != "gaussian_noise")


def test_noise_is_the_same_everywhere() -> None:
    """Golden: another one means that all published tables of corruptions are of other images."""
    noisy = corruptions.corrupt(IMAGES, INDICES, "gaussian_noise", 5)
    assert hashlib.sha256(noisy.tobytes()).hexdigest()[:16] == "5869c22a602862b4"


@pytest.mark.parametrize(("name", "strength"), [("fog", 1), ("jpeg", 0), ("jpeg", 6)])
def test_an_unknown_corruption_is_an_error(name: str, strength: int) -> None:
    with pytest.raises(ValueError, match=r"corruption: got 'fog'|strength: got [06], takes 1 to 5"):
        corruptions.corrupt(IMAGES, INDICES, name, strength)


# The command


def test_evaluate_tells_and_writes_everything(run: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", str(run)]) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    card = json.loads((run / "card.json").read_text())
    assert (found["accuracy"], found["tta_accuracy"]) == (card["accuracy"], card["tta_accuracy"])
    assert json.loads((run / "evaluation.json").read_text()) == found
    assert found["calibration"]["num_bins"] == 15
    assert found["corruptions"] is None
    # By hand: the network on the pixels, normalised here.
    finished = Finished.load(RunFolder(run))
    small = make(run.parent / "again", num_test=100)
    mean, std = (np.array(x, np.float32) for x in (finished.normalisation.mean, finished.normalisation.std))
    images = torch.from_numpy(((small.test_images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        predicted = finished.network(images).argmax(1).numpy()
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (small.test_labels, predicted), 1)
    assert found["confusion"] == confusion.tolist()
    assert found["accuracy"] == pytest.approx(confusion.trace() / 100)
    assert [row["num_images"] for row in found["classes"]] == [10] * 10
    for row in found["mistakes"]:
        assert predicted[row["index"]] == small.class_names.index(row["prediction"])
        assert small.test_labels[row["index"]] == small.class_names.index(row["truth"])
    assert not [line for line in out.splitlines() if "%" in line and "cifar10-small" not in line]


def test_a_few_corrupted_images_say_that_they_are_few(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", str(run), "--corruptions", "--limit", "20", "--no-pictures"]) == 0
    out = capsys.readouterr().out
    assert "20 of 100 cifar10-small test images" in out
    found = json.loads(out.splitlines()[-1])
    assert (found["num_images"], found["num_whole"]) == (20, 100)
    assert list(found["corruptions"]["accuracy"]) == list(corruptions.NAMES)
    assert {len(shares) for shares in found["corruptions"]["accuracy"].values()} == {5}
    assert "Hendrycks" in found["corruptions"]["source"]
    assert json.loads((run / "evaluation-20-images.json").read_text()) == found


def write_images(folder: Path, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...], kind: str) -> None:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / names[label] / f"{index}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_a_folder_of_the_test_images_scores_as_the_test_set(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    small = make(tmp_path / "cifar", num_test=100)
    write_images(tmp_path / "photos", small.test_images, small.test_labels, small.class_names, "png")
    (tmp_path / "photos" / ".DS_Store").write_bytes(b"")
    assert main(["evaluate", str(run), "--data", str(tmp_path / "photos"), "--no-pictures"]) == 0
    from_folder = last_line(capsys)
    assert main(["evaluate", str(run), "--data", str(small.path), "--no-pictures"]) == 0
    from_cifar = last_line(capsys)
    assert (from_folder["dataset"], from_folder["trained_on"]) == ("photos", "cifar10-small")
    for key in ("accuracy", "tta_accuracy", "confusion", "classes"):
        assert from_folder[key] == from_cifar[key]
    assert from_folder["loss"] == pytest.approx(from_cifar["loss"], rel=1e-5)
    name = from_folder["mistakes"][0]["name"]
    assert (tmp_path / "photos" / name).is_file()
    assert (run / "evaluation-photos.json").is_file()


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("write", [make, make_archive])
def test_a_set_in_any_of_cifars_forms_is_scored(
    write: Callable[..., Made], kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path, "cifar10", kind, num_test=100).path
    assert main(["evaluate", str(run), "--data", str(path), "--no-pictures"]) == 0
    assert last_line(capsys)["accuracy"] == json.loads((run / "card.json").read_text())["accuracy"]


def test_an_artefact_is_scored(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", str(data), "--to", "ffcv", "--out", str(tmp_path / "a")]) == 0
    assert main(["evaluate", str(run), "--data", str(tmp_path / "a"), "--no-pictures"]) == 0
    assert last_line(capsys)["accuracy"] == json.loads((run / "card.json").read_text())["accuracy"]


def test_larger_images_are_scaled_where_that_is_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    large = np.random.default_rng(1).integers(0, 256, (2, 64, 48, 3), dtype=np.uint8)
    write_images(tmp_path / "photos", large, np.array([3, 5]), ("",) * 3 + ("cat", "", "dog"), "jpg")
    arguments = ["evaluate", str(run), "--data", str(tmp_path / "photos"), "--no-pictures"]
    assert main(arguments) == 2
    assert "0.jpg: is 64 x 48 pixels; expected 32 x 32, or --resize" in capsys.readouterr().err
    assert main([*arguments, "--resize"]) == 0
    found = last_line(capsys)
    assert found["num_images"] == 2
    assert found["classes"][0]["accuracy"] is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"lion/1.png": None}, "lion: is no class of the run; expected folders named airplane"),
        ({"cat/1.png": b"GIF89a"}, "cat/1.png: cannot be read as an image"),
        ({"cat/1.txt": b"x"}, "cat/1.txt: is no image; expected nothing but PNG/JPG files"),
        ({"1.png": None}, "holds the file 1.png; expected one folder a class"),
        ({}, "holds no folder; expected one folder a class"),
        ({"cat/.hidden": b""}, "cat: holds no files"),
    ],
)
def test_a_folder_that_cannot_be_scored_is_one_line(
    files: dict[str, bytes | None], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, content in files.items():
        (photos / name).parent.mkdir(exist_ok=True)
        if content is None:
            Image.fromarray(IMAGES[0]).save(photos / name)
        else:
            (photos / name).write_bytes(content)
    assert main(["evaluate", str(run), "--data", str(photos)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_other_data_that_does_not_fit_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = make(tmp_path, "cifar100", num_test=100).path
    for arguments, message in (
        (["--data", str(other)], "expected those of the run: airplane"),
        (["--data", str(tmp_path / "nowhere")], "is not there"),
        (["--limit", "-1"], "--limit: got -1"),
    ):
        assert main(["evaluate", str(run), *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_a_run_without_weights_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "config.toml").write_bytes((run / "config.toml").read_bytes())
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "weights.safetensors: no such file" in capsys.readouterr().err


def test_running_out_of_memory_is_one_line_that_names_the_setting(
    run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory\nand much more")

    monkeypatch.setattr(pipelines, "open", full)
    assert main(["evaluate", str(run)]) == 2
    said = capsys.readouterr().err
    assert "config.toml holds it: less takes less" in said and "with evaluate.batch_size " in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("about", [[1], {"class_names": ["cat"]}, {"class_names": 5, "dataset": "x"}])
def test_weights_that_say_nonsense_of_themselves_are_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, about: object
) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.toml").write_bytes((run / "config.toml").read_bytes())
    told = {"fastcifar": json.dumps(about)}
    save_file(load_file(run / "weights.safetensors"), tmp_path / "weights.safetensors", metadata=told)
    assert main(["evaluate", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "weights.safetensors: " in error and "metadata is" in error
    assert len(error.splitlines()) == 1


def test_the_best_validated_weights_can_be_scored(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    validated = make_run(tmp_path / "validated", data, "data.validation=0.2")
    assert main(["evaluate", str(validated), "--best", "--no-pictures"]) == 0
    last_line(capsys)
    assert (validated / "evaluation-best.json").is_file()
    assert not (validated / "evaluation.json").exists()
    assert main(["evaluate", str(run), "--best"]) == 2
    assert "best.safetensors is not there; only runs with data.validation" in capsys.readouterr().err


def test_names_with_numbers_are_in_the_order_of_the_numbers() -> None:
    names = ["10.png", "9.png", "a10.png", "a9.png", "1.png", "01.png"]
    assert sorted(names, key=natural_key) == ["01.png", "1.png", "9.png", "10.png", "a9.png", "a10.png"]

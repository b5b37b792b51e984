"""Submission files: what goes in, what comes out, and the one line for everything that does not fit."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from cifar_files import make, pickled
from finished_runs import make_run
from PIL import Image

from fastcifar.cli import main
from fastcifar.data import DataError
from fastcifar.evaluation.ensemble import load_runs, mean_probabilities
from fastcifar.report.run_folder import RunFolder
from fastcifar.submission import formats, inputs

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
PLANAR = IMAGES.transpose(0, 3, 1, 2).reshape(12, 3072)
IDS = [5, 3, 8, 0, 1, 2, 11, 10, 9, 4, 6, 7]
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = make(folder / "data", num_test=100).path
    return [make_run(folder / f"seed{seed}", data, f"seed={seed}", "train.epochs=0.5") for seed in (0, 1)]


def python3_pickle(content: dict) -> bytes:
    return pickle.dumps(content, protocol=4)


# Input


@pytest.mark.parametrize("layout", [PLANAR, IMAGES], ids=["planar", "nhwc"])
@pytest.mark.parametrize("ids", [None, IDS, np.array(IDS), np.array(IDS, np.int32)], ids=["none", "list", "i8", "i4"])
def test_a_pickle_of_either_layout_is_read_with_and_without_ids(
    layout: np.ndarray, ids: list[int] | np.ndarray | None, tmp_path: Path
) -> None:
    content = {b"data": layout} if ids is None else {b"data": layout, b"ids": ids}
    (tmp_path / "test.pkl").write_bytes(python3_pickle(content))
    found = inputs.read(tmp_path / "test.pkl")
    assert (found.images_nhwc == IMAGES).all()
    assert found.ids_n is None if ids is None else found.ids_n.tolist() == IDS


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "test.pkl").write_bytes(pickled({"data": PLANAR, "ids": IDS}))
    found = inputs.read(tmp_path / "test.pkl")
    assert (found.images_nhwc == IMAGES).all()
    assert found.ids_n.tolist() == IDS


@pytest.mark.parametrize("layout", [PLANAR, IMAGES], ids=["planar", "nhwc"])
def test_an_npy_file_is_read(layout: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "test.npy", layout)
    found = inputs.read(tmp_path / "test.npy")
    assert (found.images_nhwc == IMAGES).all()
    assert found.ids_n is None


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number, image in enumerate(IMAGES, start=1):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    found = inputs.read(tmp_path)
    assert (found.images_nhwc == IMAGES).all()
    assert found.ids_n.tolist() == list(range(1, 13))


def test_names_that_are_no_numbers_give_no_ids(tmp_path: Path) -> None:
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"test_{number}.png")
    found = inputs.read(tmp_path)
    assert (found.images_nhwc == IMAGES).all()
    assert found.ids_n is None


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("this was run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"images": PLANAR}, "holds 'images'; expected the key 'data'"),
        ({}, "holds nothing; expected the key 'data'"),
        ({b"data": PLANAR[:, :3071].copy()}, "data: is uint8 [12, 3071]; expected uint8 [n, 3072]"),
        ({b"data": IMAGES[:, :28].copy()}, "data: is uint8 [12, 28, 32, 3]; expected uint8 [n, 3072]"),
        ({b"data": IMAGES.astype(np.float32)}, "data: is float32 [12, 32, 32, 3]; expected uint8"),
        ({b"data": [1, 2]}, "data is a list; expected an array uint8"),
        ({b"data": IMAGES[:0].copy()}, "holds no images"),
        ({b"data": PLANAR, b"ids": "0123456789ab"}, "ids are '0123456789ab'; expected 12 whole numbers"),
        ({b"data": PLANAR, b"ids": ["a"] * 12}, "ids hold 'a'; expected 12 whole numbers"),
        ({b"data": PLANAR, b"ids": [*IDS[:-1], None]}, "ids hold None; expected 12 whole numbers"),
        ({b"data": PLANAR, b"ids": np.array(IDS, np.float64)}, "ids are float64 [12]; expected 12 whole numbers"),
        ({b"data": PLANAR, b"ids": IDS[:-1]}, "11 ids for 12 images; expected one each"),
        ({b"data": PLANAR, b"ids": [*IDS[:-1], 5]}, "the id 5 is there twice"),
        ({b"data": PLANAR, b"ids": [*IDS[:-1], -1]}, "ids hold -1"),
        ({b"data": PLANAR, b"ids": [*IDS[:-1], True]}, "ids hold True"),
        ({b"data": Evil()}, "refused, nothing was run"),
        ([PLANAR], "the pickle holds a list; expected a dict"),
    ],
)
def test_a_pickle_that_does_not_fit_is_one_line(
    content: object, message: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "test.pkl").write_bytes(pickle.dumps(content, protocol=4))
    assert main(["predict", str(runs[0]), str(tmp_path / "test.pkl"), "--out", str(tmp_path / "out.csv")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.png": IMAGES[0], "a.png": IMAGES[1]}, "a.png: has no number for a name, others have"),
        ({"1.png": IMAGES[0], "01.png": IMAGES[1]}, "the id 1 is there twice"),
        ({"1.png": IMAGES[0, :16]}, "1.png: is 16 x 32 pixels; expected 32 x 32"),
        ({"1.png": b"no image"}, "1.png: cannot be read as an image"),
        ({"1.csv": b"id"}, "1.csv: is no image; expected nothing but PNG/JPG files"),
        ({}, "holds no files; expected PNG/JPG files"),
    ],
)
def test_a_folder_that_does_not_fit_is_an_error(files: dict, message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            Image.fromarray(content).save(tmp_path / name)
    with pytest.raises(ValueError, match="expected") as caught:
        inputs.read(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr'", b"PK\x03\x04"])
def test_a_damaged_npy_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "test.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"test.npy: cannot be read"):
        inputs.read(tmp_path / "test.npy")


def test_an_npy_of_objects_is_an_error_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.save(tmp_path / "test.npy", np.array([Evil()], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"test.npy: cannot be read"):
        inputs.read(tmp_path / "test.npy")
    assert capsys.readouterr().out == ""


# Output


@pytest.mark.parametrize("format", list(formats.FORMATS))
def test_what_is_written_keeps_the_rules(format: str, tmp_path: Path) -> None:
    labels = np.arange(12) % 10
    ids = formats.ids_for(format, None, 12)
    formats.write(tmp_path / "out.csv", format, ids, labels, NAMES)
    assert formats.check_submission(tmp_path / "out.csv", NAMES, format=format, ids_n=ids) == format
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[:3] == (
        ["ID,Labels", "0,0", "1,1"] if format == "ID,Labels" else ["id,label", "1,airplane", "2,automobile"]
    )
    assert len(lines) == 13
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: got '', expected ID,Labels or id,label"),
        ("ID,Labels\n", "holds no rows"),
        ("id,Labels\n1,2\n", ":1: got 'id,Labels', expected ID,Labels or id,label"),
        ("\ufeffID,Labels\n0,1\n", ":1: got"),
        ("ID,Labels\n0,1", "the last line does not end"),
        ("ID,Labels\n0,1\n\n1,1\n", ":3: got 0 cells"),
        ("ID,Labels\n0,1,2\n", ":2: got 3 cells"),
        ("ID,Labels\n0,cat\n", ":2: class 'cat', expected 0 to 9"),
        ("ID,Labels\n0,10\n", ":2: class '10', expected 0 to 9"),
        ("ID,Labels\n0,1.0\n", ":2: class '1.0'"),
        ("ID,Labels\n-1,1\n", ":2: id '-1', expected a whole number from 0"),
        ("ID,Labels\n00,1\n", ":2: id '00'"),
        ("ID,Labels\n0,1\r\n1,1\r\n", ":1: got 'ID,Labels\\r'"),
        ("ID,Labels\n0,1\n1,1\n0,2\n", ":4: id 0 is on line 2 already"),
        ("id,label\n0,cat\n", ":2: id '0', expected a whole number from 1"),
        ("id,label\n1,3\n", ":2: class '3', expected airplane"),
        ("id,label\n1,Cat\n", ":2: class 'Cat'"),
    ],
)
def test_a_file_that_breaks_a_rule_is_told_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    text = text.replace("ID,Labels\n0,1\r", "ID,Labels\r\n0,1\r")
    (tmp_path / "out.csv").write_bytes(text.encode())
    with pytest.raises(ValueError, match="expected") as caught:
        formats.check_submission(tmp_path / "out.csv", NAMES)
    assert message in str(caught.value)


def test_another_order_number_or_format_than_expected_is_told(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("ID,Labels\n3,1\n1,0\n")
    assert formats.check_submission(path, NAMES, ids_n=np.array([3, 1])) == "ID,Labels"
    with pytest.raises(ValueError, match=r":2: id 3, expected 1"):
        formats.check_submission(path, NAMES, ids_n=np.array([1, 3]))
    with pytest.raises(ValueError, match="holds 2 rows, expected 3"):
        formats.check_submission(path, NAMES, ids_n=np.arange(3))
    with pytest.raises(ValueError, match="expected id,label"):
        formats.check_submission(path, NAMES, format="id,label")


def test_names_of_another_number_of_classes_are_refused() -> None:
    formats.check_classes("ID,Labels", NAMES * 10)
    with pytest.raises(ValueError, match="--format id,label: got a run of 100 classes, takes 10"):
        formats.check_classes("id,label", NAMES * 10)


# The command


def read_csv(path: Path) -> tuple[str, list[list[str]]]:
    header, *rows = path.read_text().splitlines()
    return header, [row.split(",") for row in rows]


def expected_labels(runs: list[Path]) -> np.ndarray:
    """The mean of softmaxes, by torch."""
    loaded = load_runs([RunFolder(path) for path in runs])
    logits = [run.predictions(IMAGES, tta=run.config.evaluate.tta).tta_logits.double() for run in loaded]
    mean = sum(one.softmax(1) for one in logits) / len(logits)
    assert mean.numpy() == pytest.approx(mean_probabilities(loaded, IMAGES), abs=1e-12)
    return mean.argmax(1).numpy()


def test_rows_are_in_order_and_ids_are_kept(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "test.pkl").write_bytes(python3_pickle({b"data": PLANAR, b"ids": IDS}))
    out = tmp_path / "out.csv"
    out.write_text("what was there before")
    assert main(["predict", str(runs[0]), str(tmp_path / "test.pkl"), "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["num_rows"], result["ids"], sum(result["predicted"].values())) == (12, "of the input", 12)
    assert result["trained_on"] == ["cifar10-small"]
    header, rows = read_csv(out)
    assert header == "ID,Labels"
    assert rows == [[str(i), str(label)] for i, label in zip(IDS, expected_labels(runs[:1]), strict=True)]
    # Ids from 0 are none of the older format's.
    assert main(["predict", str(runs[0]), str(tmp_path / "test.pkl"), "--out", str(out), "--format", "id,label"]) == 2
    assert "ids: got 0, --format id,label takes whole numbers from 1" in capsys.readouterr().err


def test_several_runs_are_averaged(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.save(tmp_path / "test.npy", IMAGES)
    out = tmp_path / "out.csv"
    arguments = [*map(str, runs), str(tmp_path / "test.npy"), "--out", str(out), "--format", "id,label"]
    assert main(["predict", *arguments]) == 0
    assert "2 runs averaged, trained on cifar10-small" in capsys.readouterr().out
    header, rows = read_csv(out)
    assert header == "id,label"
    assert rows == [[str(i), NAMES[label]] for i, label in enumerate(expected_labels(runs), start=1)]


def test_a_run_predicts_without_the_data_it_was_trained_on(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    config = (runs[0] / "config.toml").read_text().replace(str(runs[0].parent), str(tmp_path / "gone"))
    (copy / "config.toml").write_text(config)
    (copy / "weights.safetensors").write_bytes((runs[0] / "weights.safetensors").read_bytes())
    np.save(tmp_path / "test.npy", IMAGES)
    assert main(["predict", str(copy), str(tmp_path / "test.npy"), "--out", str(tmp_path / "out.csv")]) == 0


def test_wrong_arguments_are_one_line(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, message in (
        (["--out", str(tmp_path / "o.csv")], "got 0 paths, takes one run folder or more"),
        ([str(runs[0]), "--out", str(tmp_path / "o.csv")], "got 1 path, takes one run folder or more"),
        ([str(runs[0]), str(tmp_path / "no.pkl"), "--out", str(tmp_path / "o.csv")], "no.pkl: is not there"),
        ([str(tmp_path), str(tmp_path), "--out", str(tmp_path / "o.csv")], "not a run folder"),
        ([str(runs[0]), str(tmp_path), "--out", str(tmp_path / "a" / "o.csv")], "--out:"),
    ):
        assert main(["predict", *arguments]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert len(captured.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_a_newcomer_may_name_is_told_what_to_name(tmp_path: Path) -> None:
    for name, message in (
        ("cat.png", "cat.png: is one picture; expected a folder of them"),
        ("cats.npz", "cats.npz: is an archive of arrays; expected one of them as a .npy file"),
        ("folder/test_batch", "folder: is a CIFAR folder; expected one of its pickles, such as"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        with pytest.raises(DataError, match=message):
            inputs.read(path.parent if path.name == "test_batch" else path)

"""`fastcifar convert`, `inspect` and `verify` as a user meets them."""

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artefact_sets import FORMATS, bytes_of
from cifar_files import make, make_archive

from fastcifar import artefacts
from fastcifar.cli import main


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> list[str]:
    """The lines that a command prints, on stdout where it is right, on stderr where it is not."""
    capsys.readouterr()
    assert main([*map(str, args)]) == code
    captured = capsys.readouterr()
    assert captured.err == "" or code == 2
    return (captured.err if code == 2 else captured.out).splitlines()


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(("dataset", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_convert_inspect_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, dataset: str, num_classes: int
) -> None:
    made = make_archive(tmp_path / "data", dataset, "python", num_test=100)
    (line,) = run(capsys, "convert", made.path, "--to", to, "--out", "a")
    assert line.startswith(f"a: {dataset}-small, 600 images, ")
    assert sorted(os.listdir(tmp_path)) == ["a", "data"]

    (line,) = run(capsys, "inspect", "a", "--json")
    found = json.loads(line)
    assert set(found) == {"path", "bytes", "format", "version", "tool", "dataset", "source", "fingerprint",
                          "class_names", "mean", "std", "train", "test"}  # fmt: skip
    assert (found["path"], found["format"], found["version"]) == ("a", to, 1)
    assert (found["dataset"], found["source"]) == (f"{dataset}-small", made.path.name)
    assert found["bytes"] == sum(path.stat().st_size for path in Path("a").iterdir() if path.name != "index.json")
    assert found["class_names"] == list(made.class_names)
    assert found["mean"] == pytest.approx((made.train_images / 255).mean(axis=(0, 1, 2)).tolist())
    assert found["std"] == pytest.approx((made.train_images / 255).std(axis=(0, 1, 2)).tolist())
    for part, count, labels in (("train", 500, made.train_labels), ("test", 100, made.test_labels)):
        entry = found[part]
        assert set(entry) == {"count", "shape", "pixel_sha256", "label_counts", "files"}
        assert (entry["count"], entry["shape"]) == (count, [32, 32, 3])
        assert entry["label_counts"] == np.bincount(labels, minlength=num_classes).tolist()
        assert [set(file) for file in entry["files"]] == [{"name", "bytes", "sha256"}] * len(entry["files"])
        assert all(file["name"].startswith(f"{part}.") for file in entry["files"])

    text = "\n".join(run(capsys, "inspect", "a"))
    for said in (
        f"{dataset}-small",
        "500 train, 100 test",
        "32 x 32 x 3",
        made.class_names[-1],
        f"{found['mean'][0]:.6f}",
    ):
        assert said in text

    for against in ((), ("--against", made.path), ("--against", tmp_path / "data"), ("--against", "a")):
        lines = run(capsys, "verify", "a", *against)
        assert all(line.startswith("ok ") for line in lines[:-1])
        assert lines[-1] == f"a: 0 of {len(lines) - 1} checks failed"
        assert len(lines) > 8


def test_a_source_in_any_form_gives_the_same_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("python", "binary"):
        make(tmp_path / kind, "cifar10", kind, num_test=20)
        run(capsys, "convert", tmp_path / kind, "--to", "ffcv", "--out", f"{kind}-ffcv")
    run(capsys, "convert", "python-ffcv", "--to", "ffcv", "--out", "again")
    for name in ("train.beton", "test.beton"):
        assert Path("python-ffcv", name).read_bytes() == Path("binary-ffcv", name).read_bytes()
        assert Path("python-ffcv", name).read_bytes() == Path("again", name).read_bytes()
    assert len(run(capsys, "verify", "python-ffcv", "--against", "binary-ffcv")) > 8
    # Not even the index says where the source lay, or how that was typed.
    (folder,) = (tmp_path / "python").iterdir()
    shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(capsys, "convert", folder.name, "--to", "ffcv", "--out", tmp_path / "moved")
    assert bytes_of(tmp_path / "moved") == bytes_of(tmp_path / "python-ffcv")


def test_what_is_there_is_kept_and_only_replaced_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (make(tmp_path / str(seed), num_test=20, seed=seed).path for seed in (1, 2))
    run(capsys, "convert", one, "--to", "npy")
    before = bytes_of(Path("cifar10-npy"))
    assert run(capsys, "convert", one, "--to", "npy") == ["cifar10-npy: is up to date"]
    for wrong in ((other, "--to", "npy"), (one, "--to", "ffcv")):
        (line,) = run(capsys, "convert", *wrong, "--out", "cifar10-npy", code=2)
        assert line == (
            f"fastcifar convert: cifar10-npy: holds cifar10-small as npy, from {one.name}; "
            "expected another --out, or --force to replace it"
        )
        assert bytes_of(Path("cifar10-npy")) == before
    path = Path("cifar10-npy", "train.images.npy")
    path.write_bytes(path.read_bytes()[:-1])  # damaged: made again without being told to
    run(capsys, "convert", one, "--to", "npy")
    assert bytes_of(Path("cifar10-npy")) == before
    run(capsys, "convert", other, "--to", "npy", "--force")
    assert bytes_of(Path("cifar10-npy")) != before


def test_a_set_may_be_named_and_the_stand_in_says_that_it_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastcifar.data import shapes10

    monkeypatch.setattr(shapes10, "NUM_TRAIN", 40)
    monkeypatch.setattr(shapes10, "NUM_TEST", 10)
    (line,) = run(capsys, "convert", "shapes10", "--to", "dali", "--out", "a")
    assert line.startswith("a: shapes10, 50 images, ")
    assert artefacts.read_index("a").source.startswith("drawn")
    run(capsys, "verify", "a", "--against", "shapes10")


def test_verify_says_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(tmp_path, num_test=20)
    run(capsys, "convert", made.path, "--to", "npy", "--out", "a")
    path = Path("a", "test.images.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    lines = run(capsys, "verify", "a", "--against", made.path, code=1)
    failed = [line for line in lines if line.startswith("FAILED  ")]
    assert [line.split(":")[0] for line in failed] == [
        "FAILED  sha256 of test.images.npy",
        "FAILED  pixels and labels of test",
        "FAILED  test against its source",
    ]
    assert all("; expected " in line for line in failed)
    assert lines[-1] == f"a: 3 of {len(lines) - 1} checks failed"
    Path("a", "index.json").write_text("{}")
    lines = run(capsys, "verify", "a", code=1)
    assert lines[0].startswith("FAILED  index.json: a/index.json: ")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["inspect", "nothing"], "fastcifar inspect: nothing: is not there; expected the folder of an artefact"),
        (["inspect", "."], "fastcifar inspect: .: holds no index.json; expected an artefact"),
        (["verify", "."], "fastcifar verify: .: holds no index.json; expected an artefact"),
        (["convert", "nothing", "--to", "npy"], "fastcifar convert: nothing: is not there; expected a CIFAR folder"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    (line,) = run(capsys, *args, code=2)
    assert line.startswith(said)


@pytest.mark.parametrize("to", FORMATS)
def test_a_damaged_artefact_is_the_source_of_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    """Converted anew, what is wrong in it would get hashes by which it is right, and the name of the true data."""
    made = make(tmp_path / "data", num_test=100)
    run(capsys, "convert", made.path, "--to", to, "--out", "a")
    shutil.copytree("a", "b")
    assert run(capsys, "convert", "b", "--to", "npy", "--out", "c")[0].startswith("c: cifar10-small")
    path = next(Path("b").glob("train.[ibt]*"))
    with open(path, "r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(bytes(100))
    (line,) = run(capsys, "convert", "b", "--to", "npy", "--out", "d", code=2)
    assert line == (
        "fastcifar convert: b: is damaged; expected files as they were written; `fastcifar verify` says which are"
    )
    (line,) = run(capsys, "train", "--data", "b", "--out", "run", code=2)
    assert "b: is damaged" in line
    assert not Path("d").exists() and not Path("run").exists()


def test_inspect_shows_files_that_are_not_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    made = make(tmp_path / "data", num_test=100)
    run(capsys, "convert", made.path, "--to", "npy", "--out", "a")
    assert "damaged" not in "".join(run(capsys, "inspect", "a"))
    os.truncate("a/train.labels.npy", 1000)
    os.unlink("a/test.labels.npy")
    said = "".join(run(capsys, "inspect", "a"))
    assert "train.labels.npy (damaged: 1,000 bytes on the disk)" in said
    assert "test.labels.npy (missing)" in said


def test_a_terminal_sees_progress_and_a_pipe_does_not(tmp_path: Path) -> None:
    made = make(tmp_path, num_test=200)
    command = [sys.executable, "-m", "fastcifar.cli", "convert", str(made.path), "--to", "npy", "--force"]
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    assert piped.stderr == ""
    assert len(piped.stdout.splitlines()) == 1
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as shown:
        os.close(theirs)
        seen = b""
        # A terminal that nobody holds any more ends in an error.
        with contextlib.suppress(OSError):
            while data := os.read(ours, 1 << 16):
                seen += data
        os.close(ours)
        assert shown.stdout is not None
        assert len(shown.stdout.read().splitlines()) == 1
    assert b"converting to npy" in seen


def test_a_source_and_a_data_set_that_contradict_each_other_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path / "data", num_test=100).path
    run(capsys, "convert", source, "--to", "npy", "--out", "made")
    for args, said in (
        (("cifar10", "--dataset", "shapes10"), "--dataset: got shapes10, takes cifar10"),
        (("made", "--dataset", "cifar100"), "made: is an artefact of cifar10"),
        (("made", "--out", "made", "--force"), "--out: got made, which is what is converted"),
    ):
        (line,) = run(capsys, "convert", *args, "--to", "npy", code=2)
        assert said in line

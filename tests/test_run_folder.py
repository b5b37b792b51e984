"""A run's folder: one run at a time writes it, files are whole or as before, what a kill left is cleared away."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cifar_files import make
from training_runs import SMALL, small_config, train

from fastcifar import config as configs
from fastcifar.atomic import write_atomically
from fastcifar.cli import main, one_line
from fastcifar.report.run_folder import RunFolder

CONFIG = configs.load("speedrun")


def test_a_second_run_in_a_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path / "run", CONFIG)
    code = (
        "import sys; from pathlib import Path; from fastcifar.report.run_folder import RunFolder\n"
        "try: RunFolder.open(Path(sys.argv[1]), claim=True)\n"
        "except ValueError as error: print(error)\n"
        "else: print('free')"
    )

    def ask() -> str:
        command = [sys.executable, "-c", code, str(first.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert f"process {os.getpid()} on" in ask()
    RunFolder.open(first.path).read_config()  # reading needs no claim
    first.release()
    assert ask() == "free\n"
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from fastcifar import config\n"
        "from fastcifar.report.run_folder import RunFolder\n"
        "folder = RunFolder.create(Path(sys.argv[1]), config.load('speedrun'))\n"
        "(folder.path / '.weights.safetensors.1.tmp').write_text('half')\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert done.returncode == -signal.SIGKILL
    folder = RunFolder.open(tmp_path / "run", claim=True)
    assert os.listdir(folder.path) == ["config.toml"]


def test_a_run_killed_as_its_folder_began_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    ours, theirs = tmp_path / ".config.toml.4711.tmp", tmp_path / ".notes.tmp"
    ours.write_text("cut off")
    theirs.write_text("a person's")
    RunFolder.create(tmp_path, CONFIG).release()
    assert not ours.exists() and theirs.exists()


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")  # a clock that stands still, or jumps back
    folders = [RunFolder.create(None, CONFIG) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3


def test_metrics_cut_off_by_a_kill_lose_their_last_line_only(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.append_metrics({"step": 5})
    folder.append_metrics({"step": 10})
    with folder.metrics.open("a") as file:
        file.write('{"step": 1')
    folder.keep_metrics_until(10)
    assert folder.metrics.read_text() == '{"step": 5}\n{"step": 10}\n'
    folder.keep_metrics_until(5)
    assert folder.last_metrics() == {"step": 5}


@pytest.mark.parametrize("line", [b"1\n", b"{}\n", b"[\n", b'{"step": []}\n', b"\xff\n", b"[" * 100_000 + b"\n"])
def test_lines_of_metrics_that_are_none_are_dropped(tmp_path: Path, line: bytes) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.append_metrics({"step": 5})
    folder.metrics.write_bytes(folder.metrics.read_bytes() + line)
    assert folder.last_metrics() == {"step": 5}
    folder.keep_metrics_until(5)
    assert folder.metrics.read_text() == '{"step": 5}\n'


def test_a_disk_that_is_full_leaves_the_old_file_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write_atomically(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match=re.escape(str(path))):
            write_atomically(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


def mounted(place: Path, options: str) -> Iterator[Path]:
    """A disk of its own."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if (
        os.getuid() != 0
        or not shutil.which("mount")
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("a disk of its own takes leave to mount one")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "size=16m")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "ro")


def test_a_disk_without_room_is_one_line(small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "data", num_test=10).path
    (small_disk / "ballast").write_bytes(bytes(14 << 20))
    assert main(["convert", "--to", "npy", str(folder), "--out", str(small_disk / "a")]) == 2
    assert "MB are free on its disk" in capsys.readouterr().err
    assert os.listdir(small_disk) == ["ballast"]


@pytest.mark.parametrize(
    "words",
    [["convert", "DATA", "--to", "npy", "--out", "DISK/a"], ["train", "--data", "DATA", "--out", "DISK/run"]],
    ids=["convert", "train"],
)
def test_a_disk_that_is_read_only_is_one_line(
    words: list[str], read_only_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "data", num_test=10).path
    told = [word.replace("DATA", str(folder)).replace("DISK", str(read_only_disk)) for word in words]
    assert main(told) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Read-only file system" in said and str(read_only_disk) in said


def test_a_cache_that_is_read_only_is_one_line(
    read_only_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "data", num_test=10).path
    monkeypatch.setenv("XDG_CACHE_HOME", str(read_only_disk))
    assert main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), "--set", "train.epochs=0.5"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Read-only file system" in said and str(read_only_disk) in said


# Converts once to where it may, which imports all that it needs: Python itself may lie where only root reads.
AS_NOBODY = """
import os, sys
from fastcifar.cli import main, one_line
*words, may, may_not = sys.argv[1:]
assert main([*words, "--out", may]) == 0
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
sys.exit(main([*words, "--out", may_not]))
"""


@pytest.mark.parametrize("to", ["npy", "ffcv", "dali"])
def test_a_target_that_may_not_be_written_is_one_line(to: str) -> None:
    # Not in pytest's folders, which are closed to others.
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        folder = make(Path(place) / "data", num_test=10).path
        target = Path(place) / "target"
        target.mkdir(mode=0o555)
        words = ["convert", "--to", to, str(folder), str(Path(place) / "a"), str(target / "a")]
        command = [sys.executable, "-c", AS_NOBODY, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Permission denied" in done.stderr.splitlines()[-1]


def test_a_path_with_spaces_and_other_alphabets_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a folder with spaces, ünï ☃ and 'quotes'"
    monkeypatch.setenv("XDG_CACHE_HOME", str(odd / "cache"))
    folder = make(odd, num_test=20).path
    train = ["train", "--data", str(folder), "--out", str(odd / "my run"), "--set", "train.epochs=0.5"]
    small = ["--set", "pipeline.batch_size=50", "--set", "model.widths=[8, 16, 16]", "--set", "train.threads=1"]
    threads = torch.get_num_threads()
    assert main([*train, *small]) == 0
    torch.set_num_threads(threads)
    assert main(["evaluate", str(odd / "my run")]) == 0


def test_a_hostile_message_is_one_printable_line() -> None:
    shown = one_line("run\n\x1b[2J: " + "a" * 9_000 + " takes\u202e one")
    assert shown.startswith(r"run \x1b[2J: aaa")
    assert shown.endswith(r"aaa takes\u202e one")
    assert len(shown) < 1_600


def test_no_home_is_no_matter(tmp_path: Path) -> None:
    folder = make(tmp_path, num_test=10).path
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    command = [
        sys.executable,
        "-m",
        "fastcifar.cli",
        "convert",
        "--to",
        "npy",
        str(folder),
        "--out",
        str(tmp_path / "a"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_run_whose_folder_vanishes_says_so(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    shutil.rmtree(folder.path)
    for write in (lambda: folder.append_metrics({"step": 1}), lambda: write_atomically(folder.card, b"")):
        with pytest.raises(OSError, match=r"run/(metrics|card)\.json") as raised:
            write()
        assert raised.value.errno == errno.ENOENT


# A run that never began


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("small"), num_test=100).path


@pytest.mark.parametrize("wrong", ["pipeline.batch_size=60000", "augmentation.cutout=33", "model.name='none'"])
def test_a_run_that_never_began_leaves_its_name_free(
    wrong: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "run"
    small = [part for setting in SMALL for part in ("--set", setting)]
    told = ["train", "--data", str(folder), "--out", str(out), *small, "--no-pictures"]
    assert main([*told, "--set", wrong]) == 2
    assert not out.exists() and list(tmp_path.iterdir()) == []
    assert main(told) == 0
    capsys.readouterr()
    assert main([*told, "--set", wrong]) == 2
    assert "holds a run already" in capsys.readouterr().err and RunFolder(out).card.is_file()


def test_somebodys_own_files_stay(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="batch_size"):
        train(small_config(folder, "pipeline.batch_size=501"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

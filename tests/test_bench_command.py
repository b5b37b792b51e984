"""`fastcifar bench` as a user meets it, on a small set: what each measurement writes, says and ends with."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cifar_files
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastcifar import artefacts, data, models, pipelines
from fastcifar import config as configs
from fastcifar.bench import first_batch, gpu, results, step
from fastcifar.bench.job import Job
from fastcifar.bench.measure import Measured, Opened, Sample
from fastcifar.bench.results import Result, Row
from fastcifar.bench.workers import Place
from fastcifar.cli import main
from fastcifar.models import convolution


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cifar_files.make(tmp_path_factory.mktemp("small"), num_test=40).path


class Ran:
    """One run of the command: exit code, figures, rows, files."""

    def __init__(self, what: str, folder: Path, out: Path, capsys: pytest.CaptureFixture, *options: str) -> None:
        told = ["--quick", "--device", "cpu", "--data", str(folder), "--out", str(out)]
        self.code = main(["bench", what, *told, *options])
        captured = capsys.readouterr()
        self.text, self.errors = captured.out, captured.err
        self.report: dict[str, Any] = json.loads(self.text.splitlines()[-1])
        self.figures: dict[str, float] = self.report["figures"]
        self.rows: list[dict[str, Any]] = self.report["results"][what]["rows"]

    def names(self, role: str = "ours") -> set[str]:
        return {row["contestant"] for row in self.rows if row["role"] == role}


def check_report(ran: Ran, what: str, out: Path) -> None:
    """What holds for every measurement."""
    assert ran.code == 0, ran.errors
    assert ran.report["bench"] == what
    assert ran.report["environment"]["versions"]["torch"]
    assert ran.report["failures"] == []
    assert ran.figures
    # One process beside another: on a busy machine their difference may have either sign.
    differences = {name for name in ran.figures if "over_import_torch" in name}
    assert all(value >= 0 for name, value in ran.figures.items() if name not in differences), ran.figures
    files = {Path(file).suffix: Path(file) for file in ran.report["files"]}
    assert set(files) == {".csv", ".png"}
    assert files[".csv"].parent == out
    assert files[".csv"].name.startswith(f"{what}_")
    with files[".csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(ran.rows)
    assert {"contestant", "task", "role", "device", "dataset", "date", "revision", "versions"} <= set(lines[0])
    assert {line["dataset"] for line in lines} == {"cifar10"}
    read = results.read_csv(files[".csv"])
    assert set(read.figures()) == set(ran.figures)
    assert "mean nothing" in read.title
    assert read.title.split(" (")[0] in ran.text


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_kernels(folder: Path, in_folder: Path, capsys: pytest.CaptureFixture) -> None:
    ran = Ran("kernels", folder, in_folder, capsys)
    check_report(ran, "kernels", in_folder)
    assert ran.names() == {"numba", "reference"}
    assert ran.names("bound") == {"gather", "copy"}
    tasks = {row["task"] for row in ran.rows}
    assert {"identity.bf16", "crop_flip_cutmix.bf16", "rotation_jitter.bf16"} <= tasks
    row = next(r for r in ran.rows if r["contestant"] == "numba" and r["task"] == "crop_flip_cutmix.bf16")
    # 3 KB read and 6 KB written an image.
    assert row["gb_s"] == pytest.approx(row["images_s"] * (3072 + 6144) / 1e9)
    assert {"share_of_copy", "share_of_gather", "first_call_s", "compile_s", "peak_memory_mb"} <= set(row)
    assert row["images_s_q1"] <= row["images_s"] <= row["images_s_q3"]


def test_loaders_with_a_gate_that_holds_and_two_that_do_not(
    folder: Path, in_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    name = "loaders.resident.crop_flip_cutmix.bf16.images_s"
    holds, fails = ("--assert-min", f"{name}=1"), ("--assert-max", f"{name}=2")
    missing = ("--assert-min", "loaders.kornia.crop_flip.bf16.images_s=1")
    ran = Ran("loaders", folder, in_folder, capsys, "--no-peers", *holds, *fails, *missing)
    assert ran.code == 1
    assert {gate["name"]: gate["passed"] for gate in ran.report["gates"] if "min" in gate} == {
        name: True,
        "loaders.kornia.crop_flip.bf16.images_s": False,
    }
    complaints = [line for line in ran.errors.splitlines() if line.startswith("fastcifar bench: gate")]
    assert len(complaints) == 2
    assert "not measured" in complaints[0]
    assert "takes at most 2" in complaints[1]
    here = {name for name in ("resident", "ffcv", "dali") if pipelines.available(name) is None}
    assert ran.names() == here
    row = next(row for row in ran.rows if row["contestant"] == "resident")
    assert {"first_batch_ms", "cold_first_batch_s", "compile_s", "share_of_gather", "own_memory_mb"} <= set(row)


def test_step(folder: Path, in_folder: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = in_folder / "small.toml"
    recipe.write_text(configs.dumps(configs.load("speedrun", ["model.widths=[8,16,16]", "train.resolution=[]"])))
    ran = Ran("step", folder, in_folder, capsys, "--batch-size", "8", "--recipe", str(recipe))
    check_report(ran, "step", in_folder)
    row = next(row for row in ran.rows if row["contestant"] == "eager")
    parts_ms = sum(row[f"{part}_ms"] for part in ("data", "forward", "backward", "optimizer"))
    # Medians of parts do not add up to the median of sums exactly.
    assert parts_ms == pytest.approx(row["step_ms"], rel=0.5)
    assert row["gflop_image"] > 0
    assert row["stall_share"] == pytest.approx(row["data_ms"] / row["step_ms"])
    assert "compile_s" not in row
    assert ran.names("bound") == {"matmul"}


def test_only_a_compiled_step_says_what_compiling_took() -> None:
    told = {f"{phase}_ms": 1.0 for phase in step.PHASES}
    told |= {"step_ms": 4.0, "flops_image": 3e6, "forward_flops_image": 1e6, "batch": 8.0}
    eager = Measured(Opened(50.0), [Sample(8, 0.004, told)])
    compiled = Measured(Opened(50.0), [Sample(8, 0.004, told | {"compile_s": 30.0})])
    assert "compile_s" not in step._values("eager", eager, {})
    assert step._values("compiled", compiled, {})["compile_s"] == 30.0


def test_operations_are_those_of_the_librarys_own_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    network = models.build("speednet", num_classes=10, widths=(8, 8, 16))
    counted = step.count_flops(network, 24)
    monkeypatch.setattr(convolution, "_way", lambda *_: None)
    with FlopCounterMode(display=False) as counter:
        logits = network(torch.zeros(1, 3, 24, 24))
        forward = counter.get_total_flops()
        logits.sum().backward()
    assert counted == (counter.get_total_flops(), forward)


def test_start(folder: Path, in_folder: Path, capsys: pytest.CaptureFixture) -> None:
    ran = Ran("start", folder, in_folder, capsys, "--rounds", "1", "--batch-size", "20")
    check_report(ran, "start", in_folder)
    assert "first batch of 20" in ran.report["results"]["start"]["title"]
    assert ran.figures["start.import_torch.first_batch.seconds"] > 0.05
    assert ran.names() == {"resident_dataset"}


def test_a_first_batch_is_told_of_an_artefact_and_of_a_data_set(folder: Path, capsys: pytest.CaptureFixture) -> None:
    artefact = artefacts.cached(data.locate("cifar10", folder, download=False), "npy")
    for place in ["resident", str(artefact)], ["--from-dataset", "cifar10", str(folder)]:
        first_batch.main([*place, "cpu", "20"])
        assert capsys.readouterr().out == "first batch\n"


def test_what_is_timed_to_its_first_batch_imports_nothing_by_itself() -> None:
    code = "import sys, fastcifar.bench.first_batch; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    ours = {name for name in names if name.partition(".")[0] == "fastcifar"}
    assert ours == {"fastcifar", "fastcifar.bench", "fastcifar.bench.first_batch"}
    assert not names & {"torch", "numpy", "numba", "tyro"}


def test_convert_leaves_nothing_behind(folder: Path, in_folder: Path, capsys: pytest.CaptureFixture) -> None:
    ran = Ran("convert", folder, in_folder, capsys)
    check_report(ran, "convert", in_folder)
    assert ran.names() == {"npy", "ffcv", "dali", "read"}
    row = next(row for row in ran.rows if row["contestant"] == "npy")
    assert {"seconds", "gb_s", "share_of_write", "peak_memory_mb"} <= set(row)
    assert not list(Path(os.environ["XDG_CACHE_HOME"], "fastcifar").glob("bench-*"))


def test_stream(folder: Path, in_folder: Path, capsys: pytest.CaptureFixture) -> None:
    here = {name for name in ("ffcv", "dali") if pipelines.available(name) is None}
    if not here:
        pytest.skip("neither FFCV nor DALI is installed")
    ran = Ran("stream", folder, in_folder, capsys)
    check_report(ran, "stream", in_folder)
    assert ran.names() == here
    row = next(row for row in ran.rows if row["task"] == "copies4")
    assert {"rate_over_one", "memory_over_one", "own_memory_over_one"} <= set(row)
    assert not list(Path(os.environ["XDG_CACHE_HOME"], "fastcifar").glob("bench-*"))


@pytest.mark.parametrize(
    ("asked", "quick", "picked"),
    [(0, False, 500), (700, False, 700), (0, True, 100), (700, True, 100), (20, True, 20)],
)
def test_the_batch_size_is_the_one_asked_for_and_small_where_quick(asked: int, quick: bool, picked: int) -> None:
    source: Any = None
    told: dict[str, Any] = {"seconds": 1.0, "rounds": 1, "peers": False, "recipe": "speedrun"}
    job = Job(source=source, place=Place(), batch_size=asked, quick=quick, **told)
    assert job.pick_batch_size(500) == picked
    assert job.pick_batch_size(500, quick=10) == (10 if quick else picked)


def test_quick_figures_are_kept_only_where_told(
    folder: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def measure(job: Job) -> Result:
        job.notes.append("a note")
        return Result(
            "kernels", "Kernels", "images_s", [Row("numba", "task", "ours", {"images_s": 1.0})], notes=job.notes
        )

    monkeypatch.setattr("fastcifar.bench.kernels.measure", measure)
    told = ["bench", "kernels", "--device", "cpu", "--data", str(folder)]
    for options, expected in (["--quick"], 0), (["--quick", "--out", "here"], 2), (["--no-plot"], 1):
        assert main([*told, *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "a note" in lines
        files = json.loads(lines[-1])["files"]
        assert len(files) == expected
        assert all(Path(file).is_file() for file in files)
    assert sorted(path.name for path in in_folder.iterdir()) == ["bench-results", "here"]


def test_a_contestant_of_ours_that_breaks_fails_the_run(
    folder: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def measure(job: Job) -> Result:
        job.failures.append("numba: its process ended with exit code -11")
        return Result("kernels", "Kernels", "images_s", [Row("reference", "task", "ours", {"images_s": 1.0})])

    monkeypatch.setattr("fastcifar.bench.kernels.measure", measure)
    assert main(["bench", "kernels", "--quick", "--device", "cpu", "--data", str(folder)]) == 1
    captured = capsys.readouterr()
    assert "fastcifar bench: broke: numba: its process ended with exit code -11" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["failures"] == ["numba: its process ended with exit code -11"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["kernels", "--seconds", "0"], "--seconds: got 0.0, takes a number above 0"),
        (["kernels", "--rounds", "0"], "--rounds: got 0"),
        (["kernels", "--batch-size", "-1"], "--batch-size: got -1"),
        (["kernels", "--assert-min", "fast"], "--assert-min: got 'fast', takes NAME=VALUE"),
        (["table"], "--out: got bench-results"),
        (["plot"], "--out: got bench-results"),
        (["step", "--data", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    options: list[str], message: str, in_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["bench", *options]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert list(in_folder.iterdir()) == []


def stage(name: str, script: str, reserved_s: float = 10.0, none_code: int | None = None) -> gpu.Stage:
    return gpu.Stage(name, (sys.executable, "-c", script), reserved_s, none_code)


def test_the_gpu_check_bounds_each_stage_and_keeps_what_it_has(tmp_path: Path) -> None:
    # The stage that hangs starts a process of its own, which must not outlive it.
    child = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    stages = [
        stage("hangs", f"{child}; print(p.pid, flush=True); time.sleep(60)", reserved_s=3.0),
        stage("passes", "print('words'); print('{\"images\": 3}')"),
        stage("nothing", "import sys; sys.exit(5)", none_code=5),
        stage("fails", "import sys; print('why', file=sys.stderr); sys.exit(3)"),
    ]
    told: list[str] = []
    start_s = time.perf_counter()
    check = gpu.run(stages, tmp_path, {"device": "none"}, told.append, total_s=33.0)
    assert time.perf_counter() - start_s < 50
    assert [(done.name, done.exit_code, done.passed) for done in check.stages] == [
        ("hangs", None, False),
        ("passes", 0, True),
        ("nothing", 5, True),
        ("fails", 3, False),
    ]
    assert check.stages[1].result == {"images": 3}
    assert [line.split(" (")[0] for line in told] == [
        "hangs: ended at its limit",
        "passes: passed",
        "nothing: passed",
        "fails: failed",
    ]
    # The limit is what the later stages leave; what a stage leaves goes to those after it.
    assert check.stages[0].limit_s == pytest.approx(3.0, abs=1.0)
    assert check.stages[1].limit_s < check.stages[3].limit_s
    assert json.loads((tmp_path / "gpu.json").read_text())["stages"][3]["exit_code"] == 3
    log = (tmp_path / "gpu.log").read_text()
    assert "words" in log
    assert "why" in log
    process_id = next(line for line in log.split("== hangs")[1].splitlines() if line.isdigit())
    state = Path(f"/proc/{process_id}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in ("Z", "X")


def test_the_gpu_check_as_a_whole_has_a_limit(tmp_path: Path) -> None:
    stages = [stage("first", "import time; time.sleep(60)"), stage("second", "pass")]
    check = gpu.run(stages, tmp_path, {}, lambda line: None, total_s=0.5)
    assert [done.exit_code for done in check.stages] == [None, None]
    assert sum(done.seconds for done in check.stages) < 20
    assert not any(done.passed for done in check.stages)


def test_the_gpu_stages_fit_into_their_limit(tmp_path: Path) -> None:
    found = gpu.stages(tmp_path, tmp_path, "cuda", ["--dataset", "shapes10"], quick=False)
    names = [one.name for one in found]
    assert [name for name in names if name != "tests"] == ["check", "kernels", "step", "loaders", "speedrun", "start"]
    assert sum(one.reserved_s for one in found) <= gpu.TOTAL_S < 600
    assert all("shapes10" in one.command for one in found if one.name != "tests")

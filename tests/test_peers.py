"""Record scripts of other people beside our own: what they ask of CUDA, one run at a time, and the comparison."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cifar_files import make

from fastcifar.cli import main
from fastcifar.peers import Peer, PeerRun
from fastcifar.report import record

# Of airbench's kind: the data in a .pt file beside it, everything on the GPU in half precision, a table of rows.
SCRIPT = """
import sys
import torch
from torch import nn

with open(sys.argv[0]) as file:
    code = file.read()


@torch.compile
def scaled(x):
    return x.bfloat16() * 2


@torch.compile(mode="max-autotune")
def shifted(x):
    return x + 1


pinned = torch.zeros(3).pin_memory() + torch.zeros(3, pin_memory=True)


def main(run, model):
    data = torch.load("cifar10/test.pt", map_location=torch.device("cuda"))
    images = (data["images"].half() / 255).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    noise = torch.rand(3, device="cuda").to("cuda", torch.half)
    assert noise.dtype == images.dtype == model.weight.dtype
    logits = model(shifted(scaled(images)))
    logits.float().sum().backward()
    end.record()
    torch.cuda.synchronize()
    assert end.query()
    seconds = 1e-3 * start.elapsed_time(end)
    print("|  %s  |  eval  |  |  |  %.4f  |  %.4f  |" % (run, len(data["labels"]) / 1000, seconds))


columns = ["run", "epoch", "train_acc", "val_acc", "tta_val_acc", "time_seconds"]
print("|  " + "  |  ".join(columns) + "  |")
layer = nn.Conv2d(3, 2, 3)
layer.compile(mode="max-autotune")
model = torch.compile(layer, mode="max-autotune").half().cuda()
assert model._orig_mod is layer and isinstance(model, nn.Module)
assert list(model.state_dict()) == ["weight", "bias"] and list(model.parameters()) == [layer.weight, layer.bias]
assert not model.eval().training and not layer.training and model.train().training and layer.training
for run in ["warmup", *range(200)]:
    torch.cuda._sleep(1000)
    main(run, model)
    print("Mean after %s | and so on" % run, end="\\r", flush=True)
"""
# What airbench95 and 96 ask of the weights that they average, and what any script may do with a tensor.
HALF = """
import io
import torch
from fastcifar.peers import shim

shim.install(torch.%s)
weight = torch.ones(3).half().cuda()
assert weight.dtype in (torch.half, torch.float), weight.dtype
assert torch.zeros(3, dtype=torch.half).dtype == weight.to(torch.float16).dtype == weight.dtype
file = io.BytesIO()
torch.save({"weight": weight, "mean": weight.float()}, file)
file.seek(0)
loaded = torch.load(file)
assert torch.equal(loaded["weight"], weight) and loaded["mean"].dtype == torch.float
"""
SMALL = ["model.widths=[8, 16, 16]", "train.epochs=1", "pipeline.batch_size=50", "evaluate.tta=mirror"]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "record script.py"
    path.write_text(SCRIPT)
    return path


def command(tmp_path: Path, script: Path, runs: int) -> list[str]:
    data = tmp_path / "data"
    folder = data / "cifar-10-batches-py"
    if not folder.exists():
        make(data, num_test=100)
    sets = [part for setting in SMALL for part in ("--set", setting)]
    place = ["--out", str(tmp_path / "out"), "--name", "one"]
    return ["record", "--data", str(data), "--runs", str(runs), "--peer", str(script), *place, *sets]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the shim stands in for a GPU")
def test_a_script_runs_in_turn_with_ours_and_goes_on(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, script, 1)) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(command(tmp_path, script, 2)) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    runs = last["peer"]["runs"]
    assert {seed: run["accuracy"] for seed, run in runs.items()} == {"0": 0.1, "1": 0.1}
    assert runs["0"] == first["peer"]["runs"]["0"]
    mean_s = sum(run["seconds"] for run in runs.values()) / 2
    assert last["peer"]["time_ratio"] == pytest.approx(last["counted_mean_s"] / mean_s)
    kept = json.loads((tmp_path / "out" / "one" / "peer.json").read_text())
    assert kept["script"] == script.name and kept["runs"] == runs


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's scripts compile, and warm up")
@pytest.mark.parametrize(
    ("calls", "seconds"),
    [
        ("main('warmup', 2)\n[main(run, 3) for run in range(2)]", [3.0, 3.0]),
        ("[main(run, 3) for run in range(2)]", [3.0, 3.0]),
        ("main(0, 2)\nmain(run=1, seconds=3)", [2.0, 3.0]),
        ("'warmup' == 0 or 0 in ('warmup',)\nmain(0, 2)\nmain(1, 3)", [2.0, 3.0]),
        ("print('warmup')\nmain('a', 2)\nmain('b', 3)\nmain('c', 4)", [3.0, 4.0]),
        ("for run in ['warmup', 0, 1]:\n    main(run, 2 if run == 'warmup' else 3)", [3.0, 3.0]),
    ],
)
def test_on_a_cpu_no_run_warms_up_that_can_be_left_out(calls: str, seconds: list[float], tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(f"""
def main(run, seconds):
    if run == "warmup":
        print("labels that mean nothing")
    print("| %s | eval | 0.5 | %s |" % (run, seconds))
print("| run | epoch | tta_val_acc | time_seconds |")
{calls}
""")
    with Peer(path) as peer:
        assert [peer.run().seconds for _ in seconds] == seconds


def test_what_is_written_past_python_is_no_row(tmp_path: Path) -> None:
    """As a C library does, or a process that the script starts."""
    path = tmp_path / "script.py"
    path.write_text("""
import os, subprocess, sys
print("| run | epoch | tta_val_acc | time_seconds |")
for run in range(3):
    os.write(1, b"a warning of the compiler's\\n{")
    subprocess.run(["echo", "another"])
    sys.__stdout__.write("and one of its own\\n")
    sys.__stdout__.flush()
    print("| %s | eval | 0.5 | %s |" % (run, run + 1))
raise SystemExit("no more runs")
""")
    with Peer(path) as peer:
        first = peer.run().seconds
        assert peer.run().seconds == first + 1
        assert b"warning of the compiler" in (Path(peer._folder.name) / "log").read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_made_half_is_half_or_single(dtype: str) -> None:
    ended = subprocess.run([sys.executable, "-c", HALF % dtype], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_runs_of_another_version_of_a_script_are_kept(script: Path, tmp_path: Path) -> None:
    peers = record.read_peers(tmp_path, script, "cifar10")
    peers.runs["0"] = {"accuracy": 0.5, "seconds": 2.0}
    record.write_peers(tmp_path, peers)
    assert record.read_peers(tmp_path, script, "cifar10") == peers
    script.write_text(SCRIPT + "# changed\n")
    with pytest.raises(ValueError, match=r"another version of record script\.py: takes a new --name"):
        record.read_peers(tmp_path, script, "cifar10")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the shim stands in for a GPU")
def test_a_peers_time_is_not_on_our_clock(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Peer.run

    def slow(self: Peer) -> PeerRun:
        time.sleep(3)
        return run(self)

    monkeypatch.setattr(Peer, "run", slow)
    assert main(command(tmp_path, script, 2)) == 0
    capsys.readouterr()
    cards = [json.loads((tmp_path / f"out/one/seed{seed}/card.json").read_text()) for seed in (0, 1)]
    assert all(card["seconds"]["other"] < 2 for card in cards)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the shim stands in for a GPU")
def test_a_script_that_is_killed_between_two_runs_is_one_line(script: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "data", num_test=20)
    from fastcifar import artefacts, data

    with Peer(script) as peer:
        peer.lay_out(artefacts.cached(data.locate("cifar10", made.path, download=False), "npy"))
        assert peer.run().accuracy == 0.02
        assert peer._child is not None
        peer._child.kill()
        with pytest.raises(ValueError, match="ended before a run did, exit code -9"):
            peer.run()
        folder = Path(peer._folder.name)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("raise SystemExit('no luck')", "no luck"),
        ("print('| epoch |')", "nothing was printed|epoch"),
        ("1 / 0", "Zero"),
    ],
)
def test_a_script_that_ends_early_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(content)
    with Peer(path) as peer, pytest.raises(ValueError, match=rf"script.py ended before a run did.*({said})"):
        peer.run()


def test_a_script_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, tmp_path / "none.py", 1)) == 2
    assert "--peer: got" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

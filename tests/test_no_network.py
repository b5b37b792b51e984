"""No network is used at import or in training: a child process in which every connection is an error."""

import subprocess
import sys
from pathlib import Path

import pytest
from cifar_files import make

# An audit hook sees every way to a network, in every library; a child, as no process gets rid of a hook.
CHILD = """
import sys

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise RuntimeError(f"network: {event} {arguments}")
    if event == "socket.connect" and not isinstance(arguments[1], (str, bytes)):  # a text is a socket of this machine
        raise RuntimeError(f"network: {event} {arguments}")

sys.addaudithook(refuse)
"""
IMPORT_ALL = """
import importlib, pkgutil, fastcifar
skipped = []
for name in ("fastcifar", "fastcifar.kernels", "fastcifar.pipelines", "fastcifar.bench"):
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, name + "."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except ImportError:  # an optional library is not here
                skipped.append(found.name)
print(len(sys.modules), skipped)
"""
TRAIN = """
from fastcifar.cli import main
small = ["pipeline.batch_size=50", "model.widths=[8, 8, 8]", "train.epochs=1", "train.threads=1"]
sets = [word for setting in small for word in ("--set", setting)]
assert main(["train", "--data", sys.argv[1], "--out", sys.argv[2], *sets]) == 0
assert main(["evaluate", sys.argv[2]]) == 0
"""


def child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_hook_sees_a_connection() -> None:
    done = child("import socket; socket.create_connection(('127.0.0.1', 9), 1)")
    assert "network: socket.getaddrinfo" in done.stderr


def test_importing_everything_uses_no_network() -> None:
    done = child(IMPORT_ALL)
    assert done.returncode == 0, done.stderr[-2000:]


def test_training_and_evaluating_use_no_network(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", num_test=20).path
    done = child(TRAIN, str(folder), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_test_may_reach_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with pytest.raises(OSError, match="no network in tests"):
        socket.create_connection(("192.0.2.1", 80), 0.1)

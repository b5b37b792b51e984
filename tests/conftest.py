"""What tests share: real CIFAR-10 where it can be had, a small made one everywhere."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Tests compute on tiny networks and small batches, for which a second thread costs more than it gives.
os.environ["OMP_NUM_THREADS"] = "1"

# How long an example takes is the machine's business, and what else it does.
settings.register_profile("fastcifar", deadline=None)
settings.load_profile("fastcifar")


def pytest_configure(config: pytest.Config) -> None:
    """Tests are of the CPU, also where there is a GPU, but for those marked `gpu` (-m gpu)."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked `gpu` is skipped where torch sees none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real cifar-10-batches-py folder: $FASTCIFAR_TEST_CIFAR10, or unpacked from ../shared; else a skip."""
    named = os.environ.get("FASTCIFAR_TEST_CIFAR10")
    if named:
        return Path(named)
    unpack = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10" / "unpack"
    if not unpack.is_file():
        pytest.skip("real CIFAR-10 is not here: name its folder by FASTCIFAR_TEST_CIFAR10")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(unpack), str(folder)], check=True, capture_output=True)
    return folder / "cifar-10-batches-py"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test connects to another machine."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"no network in tests: {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no fixture of a module, reads or writes the user's cache, data or settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        for name in ("FASTCIFAR_DATA", "FASTCIFAR_TRACEBACK", "FORCE_COLOR", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        # A process that a test starts finds no other machine either; its own servers it asks directly.
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals() -> None:
    """As from a terminal: what runs in the background (nohup, &) ignores some, and so would all that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

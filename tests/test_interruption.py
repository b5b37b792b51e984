"""What Ctrl-C, SIGTERM and SIGHUP do, before and while something can be kept."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastcifar.interruption import StopRequest, termination_interrupts
from fastcifar.kernels.signals import signals_wait


def test_the_first_signal_asks_and_the_second_is_the_systems() -> None:
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.exit_code == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("number", "code", "said"), [(15, 143, "SIGTERM"), (1, 129, "SIGHUP"), (2, 130, "interrupted")]
)
def test_a_signal_before_the_first_step_is_one_line(number: int, code: int, said: str) -> None:
    """A scheduler's SIGTERM, or a connection that breaks, while imports and data are on their way."""
    program = (
        "import os, sys, time\n"
        "from fastcifar import cli\n"
        "def run(name, rest):\n    os.kill(os.getpid(), int(rest[0]))\n    time.sleep(20)\n"
        "cli._run = run\nsys.exit(cli.main(['train', *sys.argv[1:]]))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(number)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("fastcifar train: ") and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_second_ctrl_c_ends_the_process_whatever_it_is_clearing_up() -> None:
    program = (
        "import os, signal, sys, time\n"
        "from fastcifar import cli\n"
        "def run(name, rest):\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(20)\n"
        "    finally:\n        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(20)\n"
        "cli._run = run\nsys.exit(cli.main(['train']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=15)
    assert done.returncode == -signal.SIGINT


def test_ctrl_c_waits_for_llvm(tmp_path: Path) -> None:
    """Raised where LLVM has taken a module over and Python has not noted it, it would free the module twice."""
    program = (
        "import os, signal\n"
        "from numba import int64\n"
        "from llvmlite.binding import ffi\n"
        "from fastcifar.kernels import numba_jit\n"
        "honest, asked = ffi.lib.LLVMPY_LinkModules, []\n"
        "def link(*arguments):\n"
        "    code = honest(*arguments)\n"
        "    if not asked:\n        asked.append(1)\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return code\n"
        "ffi.lib._fntab['LLVMPY_LinkModules'] = link\n"
        "def double(x):\n    return 2 * x\n"
        "try:\n    numba_jit.compiled_for(int64(int64))(double)\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
        "print(numba_jit.compiled_for(int64(int64))(double)(21), len(asked))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["interrupted", "42", "1"]), done.stderr


def test_signals_that_wait_are_handled_in_the_end_by_who_handled_them() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with signals_wait():
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == []
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert came == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == 2 * [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_nohup_stays_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with termination_interrupts(), StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal_number == 0
    finally:
        signal.signal(signal.SIGHUP, before)

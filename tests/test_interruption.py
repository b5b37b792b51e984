"""What Ctrl-C, SIGTERM and SIGHUP do, before and while something can be kept."""

import os
import signal
import subprocess
import sys

import pytest

from fastcifar.interruption import StopRequest, termination_interrupts


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


def test_nohup_stays_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with termination_interrupts(), StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal_number == 0
    finally:
        signal.signal(signal.SIGHUP, before)

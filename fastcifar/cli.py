"""The `fastcifar` command: picks a subcommand, and turns a user's mistake into one line and exit code 2."""

import atexit
import gc
import importlib
import os
import re
import select
import signal
import sys

from fastcifar import torchrun
from fastcifar.interruption import FailedError, InterruptedRunError, termination_interrupts

# Kept here as text so that `fastcifar --help` imports nothing.
COMMANDS = {
    "speedrun": "train a network to a target accuracy by the fastest recipe for it; one result card at the end",
    "train": "train by a recipe, with settings changed on the command line",
    "record": "train many times, test the mean against a target, and write the record down",
    "sweep": "search settings on the validation split, by any number of workers, and go on where one stopped",
    "evaluate": "score a finished run: by class, calibration, mistakes, corruptions; on the test set or other images",
    "compare": "several runs in one table and one plot",
    "predict": "write a submission file with one or several runs' predictions for unlabelled images",
    "preview": "draw what a recipe's augmentation does to training images",
    "recipes": "list the recipes, or print one with every setting",
    "convert": "write a data set as an FFCV, DALI or NumPy artefact",
    "inspect": "say what is in an artefact",
    "verify": "check an artefact's hashes and pixels",
    "bench": "measure loaders, kernels, conversion and steps; gpu checks a GPU, plot and table show results",
    "summary": "print a network's layers: shapes, parameters, FLOPs, memory",
    "doctor": "say which pipelines work here and how to get the others; versions, device, data",
}

TOGETHER = ("train", "speedrun")
"""The commands that several processes, each with a device of its own, may run together."""


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: fastcifar COMMAND [OPTIONS]",
        "",
        "Train small image networks fast and honestly: CIFAR-10 from converted data, on whatever device there is.",
        "",
        "commands:",
        *(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()),
        "",
        "`fastcifar COMMAND --help` lists a command's options; `fastcifar --version` prints the version.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Exit codes: 0 done; 1 a check, a gate or the training itself failed; 2 a wrong setting or unusable data; 130
    interrupted, 143, 129 and 141 ended by SIGTERM, SIGHUP and a closed pipe. Each failure is one line on stderr;
    `FASTCIFAR_TRACEBACK=1` shows where it came from.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        with termination_interrupts():
            code = _main(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        name = argv[0] if argv else ""
        if not _readers_are_gone():
            return _fail(f" {name}: {error}", 2)
        # As with `fastcifar recipes | head`: not our mistake, and nobody is left to tell.
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        return 128 + signal.SIGPIPE


def _readers_are_gone() -> bool:
    """Whether nobody reads stdout or stderr any more."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _main(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        from fastcifar import __version__

        print(f"fastcifar {__version__}")
        return 0
    if name not in COMMANDS:
        from fastcifar.suggestion import did_you_mean

        hint = did_you_mean(name, COMMANDS)
        return _fail(f": no command {name!r}{hint}; it takes one of: {', '.join(COMMANDS)}", 2)
    if torchrun.num_processes() > 1 and name not in TOGETHER:
        return _fail(f" {name}: got several processes from torchrun, takes one; {' and '.join(TOGETHER)} take more", 2)
    try:
        return _run(name, argv[1:])
    except (ValueError, OSError, FailedError, KeyboardInterrupt) as error:
        if os.environ.get("FASTCIFAR_TRACEBACK") or isinstance(error, BrokenPipeError):
            raise
        if _is_told_by_another(error):
            return 0
        if isinstance(error, KeyboardInterrupt):
            return _fail(f" {name}: {str(error) or 'interrupted'}", getattr(error, "exit_code", 130))
        return _fail(f" {name}: {error}", 1 if isinstance(error, FailedError) else 2)
    except InterruptedRunError as error:
        return 0 if _is_told_by_another(error) else _fail(f" {name}: {error}", error.exit_code)


def _fail(message: str, code: int) -> int:
    which = f" (process {torchrun.rank()})" if torchrun.rank() else ""
    print("fastcifar" + which + one_line(message), file=sys.stderr)
    return code


def _is_told_by_another(error: BaseException) -> bool:
    """Whether the first of several processes says the same, of its own folder, and ends with the code for it.

    This one ends as if all were well: torchrun ends the rest as soon as one does not, even while that one is writing.
    """
    return torchrun.rank() > 0 and getattr(error, "in_all_processes", False)


def one_line(message: str, most: int = 1500) -> str:
    """A message as a terminal may show it: one line, no control characters, the middle of a huge one left out."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in re.sub(r"\s+", " ", message))
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def _run(name: str, rest: list[str]) -> int:
    # Python would look for garbage in what imports have made again and again, for a sixth of the time to the first
    # batch, and once more when the process ends, for half a second.
    gc.set_threshold(20_000, 50, 100)
    atexit.register(gc.freeze)
    import tyro

    command = importlib.import_module(f"fastcifar.commands.{name}")
    args = tyro.cli(
        command.Args,
        prog=f"fastcifar {name}",
        description=COMMANDS[name],
        args=rest,
    )
    return command.run(args)


if __name__ == "__main__":
    sys.exit(main())

"""`fastcifar bench`: what loaders, kernels, conversion and training steps give here, beside what the machine allows."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fastcifar.commands import Option

if TYPE_CHECKING:
    from fastcifar.artefacts import Source
    from fastcifar.bench.gates import Gate
    from fastcifar.bench.job import Job
    from fastcifar.bench.results import Result
    from fastcifar.report.progress import Reporter

MEASUREMENTS = ("kernels", "loaders", "step", "start", "convert", "stream")


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar bench`."""

    what: tyro.conf.Positional[
        Literal["kernels", "loaders", "step", "start", "convert", "stream", "all", "gpu", "plot", "table"]
    ]
    """start: time to the first batch; gpu: a bounded check; plot: draw results; table: write them into the README."""
    data: Option[Path] = None
    """CIFAR folder, its .tar.gz, or a folder that holds one; else $FASTCIFAR_DATA, ./data, the cache, a download."""
    dataset: Literal["auto", "cifar10", "cifar100", "shapes10"] = "auto"
    """auto: the set at --data or $FASTCIFAR_DATA, else CIFAR-10, else the drawn stand-in shapes10."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    seconds: float = 5.0
    """Measured time for a contestant on a task, in all; each round is one epoch, step or conversion at least."""
    rounds: int = 5
    """Rounds in which contestants take turns; quartiles are over these."""
    batch_size: int = 0
    """Images a batch; 0: what suits the device."""
    threads: int = 0
    """CPU threads; 0: as torch takes."""
    peers: bool = True
    """Measure other people's loaders too."""
    recipe: str = "speedrun"
    """Recipe whose training step is measured."""
    quick: bool = False
    """A few images and short rounds, to see that it works; figures mean nothing, and are kept only where --out says."""
    out: Option[Path] = None
    """Folder of the results; bench/results in a checkout, else ./bench-results."""
    plot: bool = True
    """Draw a PNG beside each CSV file."""
    assert_min: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """NAME=VALUE: exit code 1 unless the figure is at least so much; names are in the JSON. May be given repeatedly."""
    assert_max: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """NAME=VALUE: exit code 1 unless the figure is at most so much."""
    readme: Path = Path("README.md")
    """table: the file to write to."""
    records: Path = Path("bench/records")
    """table: the folder of records, a folder of run folders each."""


def run(args: Args) -> int:
    """Measure and show; JSON is the last line. Exit code 1 where a gate fails or one of our own contestants breaks."""
    from fastcifar.bench import gates

    _check(args)
    if args.what in ("gpu", "plot", "table") and (args.assert_min or args.assert_max):
        raise ValueError(f"--assert-min, --assert-max: got {args.what}, which measures no figures of its own")
    wanted = gates.parse(args.assert_min, args.assert_max)
    if args.what == "table":
        return _write_table(args)
    if args.what == "plot":
        return _draw_all(args)
    if args.what == "gpu":
        return _run_gpu(args)
    gates.check_measured(wanted, _measurements(args))
    return _measure(args, wanted)


def _measurements(args: Args) -> tuple[str, ...]:
    return MEASUREMENTS if args.what == "all" else (args.what,)


def _check(args: Args) -> None:
    for name, value, holds, takes in (
        ("--seconds", args.seconds, args.seconds > 0, "a number above 0"),
        ("--rounds", args.rounds, args.rounds > 0, "a whole number above 0"),
        ("--batch-size", args.batch_size, args.batch_size >= 0, "a whole number above 0, or 0 for what suits"),
        ("--threads", args.threads, args.threads >= 0, "a whole number above 0, or 0 for what torch takes"),
    ):
        if not holds:
            raise ValueError(f"{name}: got {value}, takes {takes}")


def _results_folder(args: Args) -> Path:
    if args.out is not None:
        return args.out
    in_checkout = Path("bench/__init__.py").is_file() and Path("pyproject.toml").is_file()
    return Path("bench/results") if in_checkout else Path("bench-results")


def _device(args: Args) -> str:
    """`cpu` or `cuda`; with `cpu`, GPUs are hidden from whatever is started, too."""
    import os

    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if args.device == "cuda":
        raise ValueError("--device: got cuda, but torch sees no GPU here; takes auto or cpu")
    return "cpu"


def _measure(args: Args, wanted: "list[Gate]") -> int:
    import importlib
    import json
    import os
    import sys

    import torch

    from fastcifar.bench import gates, results
    from fastcifar.report.environment import environment
    from fastcifar.report.progress import Reporter
    from fastcifar.schema import DataConfig
    from fastcifar.training.clock import Clock
    from fastcifar.training.device import describe
    from fastcifar.training.session import find_data

    # Before our own work counts to it.
    load = os.getloadavg()[0]
    device = _device(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    words = describe(torch.device(device))
    measured: dict[str, Result] = {}
    files: list[str] = []
    failures: list[str] = []
    with Reporter() as reporter:
        source = find_data(DataConfig(args.dataset, str(args.data or "")), Clock(), reporter)
        for name in _measurements(args):
            job = _job(args, source, device)
            result = importlib.import_module(f"fastcifar.bench.{name}").measure(job)
            result.about = results.about(words, device, torch.get_num_threads(), load, source.dataset)
            if args.quick:
                result.title += " (quick: the figures mean nothing)"
            result.notes += results.load_notes(load, os.cpu_count() or 1)
            measured[name] = result
            failures += job.failures
            _show(result, reporter)
            files += _keep(result, args)
    figures = {key: value for result in measured.values() for key, value in result.figures().items()}
    outcomes = gates.judge(wanted, figures)
    lines = [outcome.sentence for outcome in outcomes if not outcome.passed]
    lines += [f"broke: {line}" for line in failures]
    for line in lines:
        print(f"fastcifar bench: {line}", file=sys.stderr)
    report = {
        "bench": args.what,
        "quick": args.quick,
        "load": load,
        "environment": environment(words),
        "results": {name: result.to_json() for name, result in measured.items()},
        "figures": figures,
        "gates": [outcome.to_json() for outcome in outcomes],
        "failures": failures,
        "files": files,
    }
    print(json.dumps(report))
    return 1 if lines else 0


def _job(args: Args, source: "Source", device: str) -> "Job":
    import sys

    from fastcifar.bench.job import Job
    from fastcifar.bench.workers import Place

    return Job(
        source=source,
        place=Place(device, args.threads),
        seconds=min(args.seconds, 0.1) if args.quick else args.seconds,
        rounds=min(args.rounds, 2) if args.quick else args.rounds,
        batch_size=args.batch_size,
        peers=args.peers,
        quick=args.quick,
        recipe=args.recipe,
        tell=lambda line: print(f"bench {line}", file=sys.stderr, flush=True),
    )


def _keep(result: "Result", args: Args) -> list[str]:
    """Write a result's files, unless it is a quick one that nobody asked for; their names."""
    from fastcifar.bench import plot, results

    if args.quick and args.out is None:
        return []
    path = results.write_csv(result, _results_folder(args))
    return [str(path), *([str(plot.draw(result, path.with_suffix(".png")))] if args.plot else [])]


def _show(result: "Result", reporter: "Reporter") -> None:
    from fastcifar.bench import table

    reporter.table(table.render(result))
    for note in result.notes:
        reporter.line(note)


def _write_table(args: Args) -> int:
    from fastcifar.bench import readme

    results = _results_folder(args)
    if not results.is_dir():
        raise ValueError(f"--out: got {results}, takes a folder with results of `fastcifar bench`")
    changed = readme.update(args.readme, results, args.records)
    print(f"{args.readme}: {'written' if changed else 'is up to date'}")
    return 0


def _draw_all(args: Args) -> int:
    from fastcifar.bench import plot, results

    paths = sorted(_results_folder(args).glob("*.csv"))
    if not paths:
        raise ValueError(f"--out: got {_results_folder(args)}, takes a folder with CSV files of `fastcifar bench`")
    for path in paths:
        print(plot.draw(results.read_csv(path), path.with_suffix(".png")))
    return 0


def _run_gpu(args: Args) -> int:
    import json
    import tempfile
    from dataclasses import asdict

    import torch

    from fastcifar.bench import gpu
    from fastcifar.report.environment import environment
    from fastcifar.training.device import describe

    device = _device(args)
    if device == "cpu" and args.device != "cpu":
        raise ValueError("bench gpu: torch sees no GPU here; --device cpu --quick rehearses it without one")
    out = args.out or Path("gpu-results")
    told = [*(["--data", str(args.data)] if args.data else []), "--dataset", args.dataset]
    about = environment(describe(torch.device(device)))
    with tempfile.TemporaryDirectory() as scratch:
        stages = gpu.stages(out, Path(scratch), device, told, args.quick)
        check = gpu.run(stages, out, about, lambda line: print(line, flush=True))
    print(json.dumps(asdict(check)))
    return 0 if all(done.passed for done in check.stages) else 1

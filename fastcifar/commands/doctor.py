"""`fastcifar doctor`: what is installed, what works here, and how to get the rest."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

OPTIONAL = {
    "numba-cuda": ("cuda", "kernels on a GPU"),
    "nvidia-ml-py": ("cuda", "the energy that a GPU uses"),
    "optuna": ("sweep", "fastcifar sweep"),
    "tensorboard": ("track", "--track tensorboard"),
    "wandb": ("track", "--track wandb"),
    "kornia": ("bench", "a peer in bench loaders"),
}
"""By package: the extra that installs it, and what it is for."""


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar doctor`."""

    json: bool = False
    """Print JSON instead of a table."""


def run(args: Args) -> int:
    """Print device, versions, pipelines and data; exit code 1 where nothing can train."""
    import json

    import torch

    from fastcifar import data, pipelines
    from fastcifar.report.environment import revision, versions
    from fastcifar.schema import TrainConfig
    from fastcifar.training.device import describe, pick_device, pick_dtype, use_compile, without_compiler

    device = pick_device()
    settings = TrainConfig()
    try:
        source = data.locate("auto", download=False)
        found = "not found; the drawn stand-in shapes10 takes its place" if source.path is None else str(source.path)
    except ValueError as error:
        found = str(error)
    kernels, available = _without_kernels(device), {name: pipelines.available(name) for name in pipelines.NAMES}
    report = {
        "device": describe(device),
        "dtype": str(pick_dtype(settings, device)).removeprefix("torch."),
        "compile": use_compile(settings, device),
        "without_compiler": without_compiler(device),
        "gpu": torch.cuda.is_available(),
        "revision": revision(),
        "versions": versions(),
        "kernels": kernels,
        "pipelines": available,
        "missing": {name: line for name, line in map(_missing, OPTIONAL) if line},
        "cifar10": found,
        "cache": str(data.cache_dir()),
    }
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0 if kernels is None and available["resident"] is None else 1


def _without_kernels(device: "torch.device") -> str | None:
    """Why a GPU can be given no images: one sentence; None where it can, and for a CPU."""
    from fastcifar import kernels

    if device.type == "cpu":
        return None
    try:
        kernels.prepare(device)
    except Exception as error:  # a driver that is too old, say: the rest is worth knowing all the same
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _missing(package: str) -> tuple[str, str]:
    """The package, and what it is for and how to install it; an empty line where it is there."""
    from importlib.metadata import PackageNotFoundError, version

    extra, purpose = OPTIONAL[package]
    try:
        version(package)
    except PackageNotFoundError:
        return package, f"{purpose}: pip install -e '.[{extra}]' in fastcifar's folder"
    return package, ""


def _print(report: dict) -> None:
    from rich.markup import escape
    from rich.table import Table

    from fastcifar.report.console import Console

    table = Table(show_header=False, title="fastcifar doctor", title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    compiled = "compiled" if report["compile"] else "not compiled"
    table.add_row("device", f"{report['device']}: trains in {report['dtype']}, {compiled}")
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    if report["revision"]:
        table.add_row("revision", report["revision"])
    table.add_row("train.compile=on", escape(report["without_compiler"] or "works"))
    if report["gpu"]:
        table.add_row("kernels", escape(report["kernels"] or "work on the GPU"))
    for name, reason in report["pipelines"].items():
        table.add_row(f"pipeline {name}", "works" if reason is None else reason)
    for name, line in report["missing"].items():
        table.add_row(f"without {name}", escape(line))
    table.add_row("CIFAR-10", report["cifar10"])
    table.add_row("cache", report["cache"])
    console = Console(highlight=False)
    console.print(table)

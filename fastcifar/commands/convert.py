"""`fastcifar convert`: a data set as an artefact on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastcifar.commands import Option


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar convert`."""

    to: Literal["ffcv", "dali", "npy"]
    """Format: .beton files for FFCV, TFRecords with an index for DALI, or plain .npy files."""
    source: Annotated[Option[Path], tyro.conf.Positional, tyro.conf.arg(metavar="[SRC]")] = None
    """CIFAR folder, its .tar.gz, a folder that holds one, another artefact, or a set's name; by default as speedrun."""
    out: Option[Path] = None
    """The artefact's folder; by default ./<dataset>-<format>."""
    dataset: str = "auto"
    """cifar10, cifar100, shapes10, or auto: the set at SRC or $FASTCIFAR_DATA, else CIFAR-10, else drawn shapes10."""
    force: bool = False
    """Replace an artefact that is there, of whatever data and format."""


def run(args: Args) -> int:
    """Convert, and print where to and what; an artefact of the same data that is there and whole is left as it is."""
    import sys
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fastcifar import artefacts
    from fastcifar.artefacts import sources
    from fastcifar.report.console import Console

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("looking", total=None)

        def show(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        source = sources.find(args.source, args.dataset, download=True, on_progress=show)
        if source.note:
            print(f"{source.dataset}, a drawn stand-in: {source.note}", file=sys.stderr)
        dest = args.out or Path(f"{source.dataset}-{args.to}")
        if args.force and source.path is not None and source.path.resolve() == dest.resolve():
            raise ValueError(f"--out: got {dest}, which is what is converted; takes another folder")
        bars.update(task, description=f"reading {source.dataset}", completed=0, total=None)
        fingerprint = source.fingerprint()
        if not args.force:
            if artefacts.is_current(dest, args.to, fingerprint):
                print(f"{dest}: is up to date")
                return 0
            _refuse_other(dest, args.to, fingerprint)
        dataset = source.load()
        start = time.perf_counter()
        artefacts.convert(
            dataset,
            args.to,
            dest,
            fingerprint=fingerprint,
            on_progress=lambda done, total: show(f"converting to {args.to}", done, total),
        )
    index = artefacts.read_index(dest)
    num_images = index.train.count + index.test.count
    num_bytes = sum(file.bytes for file in index.files)
    took_s = time.perf_counter() - start
    print(f"{dest}: {index.dataset}, {num_images:,} images, {num_bytes / 1e6:,.0f} MB, converted in {took_s:.2f} s")
    return 0


def _refuse_other(dest: Path, to: str, fingerprint: str) -> None:
    """`DataError` where `dest` is an artefact of another format or of other data."""
    from fastcifar import artefacts
    from fastcifar.data import DataError

    try:
        index = artefacts.read_index(dest)
    except DataError:
        return  # nothing, or damaged, or no artefact: `convert` knows
    if (index.format, index.fingerprint) != (to, fingerprint):
        held = f"{index.dataset} as {index.format}, from {index.source}"
        raise DataError(f"{dest}: holds {held}; expected another --out, or --force to replace it")

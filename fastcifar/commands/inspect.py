"""`fastcifar inspect`: what is in an artefact."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from fastcifar.artefacts import Index


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar inspect`."""

    artefact: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ARTEFACT")]
    """Folder that `fastcifar convert` wrote."""
    json: bool = False
    """Print JSON instead of tables."""


def run(args: Args) -> int:
    """Print what the artefact's index says; `fastcifar verify` checks that it is true."""
    import json

    from fastcifar import artefacts

    index = artefacts.read_index(args.artefact)
    if args.json:
        print(json.dumps(to_json(index)))
    else:
        _print(index)
    return 0


def to_json(index: "Index") -> dict[str, Any]:
    """All of the index, the folder, and the bytes of all files."""
    return {"path": str(index.path), "bytes": sum(file.bytes for file in index.files), **index.to_json()}


def _trouble(path: Path, num_bytes: int) -> str:
    """What can be seen of a file without reading it, in words; empty where that is right."""
    if not path.is_file():
        return " (missing)"
    found = path.stat().st_size
    return "" if found == num_bytes else f" (damaged: {found:,} bytes on the disk)"


def _print(index: "Index") -> None:
    from rich.table import Table

    from fastcifar.report.console import Console

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
        for number, name in enumerate(columns):
            made.add_column(name, justify="right" if number else "left", overflow="fold")
        return made

    parts = {"train": index.train, "test": index.test}
    numbers = {
        "mean": ", ".join(f"{value:.6f}" for value in index.mean),
        "std": ", ".join(f"{value:.6f}" for value in index.std),
    }
    head = Table(title=str(index.path), title_justify="left", title_style="bold", show_header=False)
    head.add_column(style="bold")
    head.add_column(overflow="fold")
    for name, text in {
        "format": f"{index.format} (version {index.to_json()['version']}, written by {index.tool})",
        "dataset": index.dataset,
        "images": ", ".join(f"{part.count:,} {name}" for name, part in parts.items()),
        "shape": " x ".join(map(str, index.train.shape)) + " (height, width, channels), uint8",
        "classes": str(len(index.class_names)),
        "bytes": f"{sum(file.bytes for file in index.files):,}",
        **numbers,
        "source": index.source,
        "fingerprint": index.fingerprint or "unknown",
        **{f"pixels of {name}": f"sha256 {part.pixel_sha256}" for name, part in parts.items()},
    }.items():
        head.add_row(name, text)
    files = table("files", "name", "bytes", "sha256")
    for file in index.files:
        files.add_row(f"{file.name}{_trouble(index.path / file.name, file.bytes)}", f"{file.bytes:,}", file.sha256)
    classes = table("images of each class", "class", *parts)
    for label, name in enumerate(index.class_names):
        classes.add_row(f"{label} {name}", *(f"{part.label_counts[label]:,}" for part in parts.values()))
    console = Console(highlight=False, markup=False)
    for each in (head, files, classes):
        console.print(each)

"""`fastcifar compare`: several runs in one table and one plot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Args:
    """Settings of `fastcifar compare`."""

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)"),
    ]
    """Folders of runs."""
    plot: Path = Path("compare.png")
    """The PNG of the runs' curves."""
    json: bool = False
    """Print nothing but the JSON line."""


def run(args: Args) -> int:
    """Print the table and draw the curves; JSON is the last line."""
    import json

    from fastcifar.report.comparison import compare, labels, render
    from fastcifar.report.curves import Curves, draw_comparison
    from fastcifar.report.progress import Reporter
    from fastcifar.report.run_folder import RunFolder

    folders = [RunFolder.open(path) for path in args.runs]
    comparison = compare(folders)
    names = labels(comparison)
    shown = [Curves.of(folder, name) for folder, name in zip(folders, names, strict=True) if folder.read_metrics()]
    plot = draw_comparison(shown, args.plot) if shown else None
    if not args.json:
        with Reporter() as reporter:
            reporter.table(render(comparison))
            if comparison.warning:
                reporter.banner(comparison.warning)
            reporter.line(f"wrote {plot}" if plot else "no plot: no run has finished an epoch")
    print(json.dumps({**comparison.to_json(), "plot": None if plot is None else str(plot)}))
    return 0
